"""Prediction files: what is written is read again, other systems' files are read, bad ones are refused."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import pickle
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nextvlad.errors import DataError, NextvladError, UsageError
from nextvlad.predictions import Prediction, detect, read_predictions, text_rows, write_predictions

SUFFIXES = [".jsonl", ".csv", ".parquet", ".pkl"]
ROWS = [
    Prediction("v0", [2, 0], [0.75, 0.25]),
    Prediction('odd, "id"\r\n\n', [1, 4], [1.0, 0.5]),
    Prediction(" vidéo 3 \r", [3, 0, 3861], [0.5, 0.125, 0.0]),
    Prediction("none", [], []),
]
KAGGLE = "VideoId,LabelConfidencePairs\na,3 0.9 1 0.25\nb,7 0.5\n"
# Without the time of day: test processes must agree on the names of the cases.
KAGGLE_IN_GZIP = gzip.compress(KAGGLE.encode(), mtime=0)
A_AND_B = [Prediction("a", [3, 1], [0.9, 0.25]), Prediction("b", [7], [0.5])]


def rows_of(content: bytes | str, folder: Path, name: str = "x.csv") -> list[Prediction]:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return list(read_predictions(path))


# What we write


float32s = st.floats(0, 1, width=32) | st.floats(0, 2.0**127, width=32)
lists = st.dictionaries(st.integers(0, 5000), float32s, max_size=25)
files = st.dictionaries(st.text(min_size=1, max_size=8), lists, max_size=6)


def as_rows(content: dict[str, dict[int, float]]) -> list[Prediction]:
    rows = []
    for video_id, scores in content.items():
        best = sorted(scores.items(), key=lambda pair: (-pair[1], pair[0]))
        rows.append(Prediction(video_id, [label for label, _ in best], [score + 0.0 for _, score in best]))
    return rows


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet", ".pkl"])
@given(files)
@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_is_written_is_read(tmp_path: Path, suffix: str, content: dict[str, dict[int, float]]) -> None:
    """Exactly: these formats keep every bit of a 32-bit float."""
    path, rows = tmp_path / f"x{suffix}", as_rows(content)
    write_predictions(path, iter(rows), None)
    read = list(read_predictions(path))
    assert [(row.video_id, row.labels) for row in read] == [(row.video_id, row.labels) for row in rows]
    for row, wanted in zip(read, rows, strict=True):
        assert np.array_equal(np.float32(row.scores), np.float32(wanted.scores))


@given(st.dictionaries(st.text(min_size=1, max_size=8), st.dictionaries(st.integers(0, 5000), float32s)))
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_csv_is_read_to_six_decimals(tmp_path: Path, content: dict[str, dict[int, float]]) -> None:
    path, rows = tmp_path / "x.csv", as_rows(content)
    write_predictions(path, iter(rows), None)
    for row, wanted in zip(read_predictions(path), rows, strict=True):
        assert row.video_id == wanted.video_id
        scores = dict(zip(row.labels, row.scores, strict=True))
        assert scores == {
            label: float(f"{score:.6f}") for label, score in zip(wanted.labels, wanted.scores, strict=True)
        }


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("name", ["{}", "renamed.txt"])
def test_odd_rows_in_every_format_whatever_its_name(tmp_path: Path, suffix: str, name: str) -> None:
    path = tmp_path / f"x{suffix}"
    write_predictions(path, iter(ROWS), None)
    assert list(read_predictions(path.rename(tmp_path / name.format(path.name)))) == ROWS


def test_empty_text(tmp_path: Path) -> None:
    for content in (b"", gzip.compress(b""), b"VideoId,LabelConfidencePairs"):
        assert rows_of(content, tmp_path) == []


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_file_of_no_rows(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x{suffix}"
    write_predictions(path, iter([]), None)
    assert list(read_predictions(path)) == []


def test_python_csv_reads_what_we_write(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    write_predictions(path, iter(ROWS), None)
    with path.open(newline="", encoding="utf-8") as file:
        assert [row[0] for row in csv.reader(file)] == ["VideoId", *(row.video_id for row in ROWS)]


# What others wrote


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text,
        lambda text: text.split("\n", 1)[1],
        lambda text: text.lower(),
        lambda text: text.replace("\n", "\r\n"),
        lambda text: "\ufeff" + text,
        lambda text: "\n \n" + text.replace("\n", "\n\n"),
        lambda text: text.rstrip("\n"),
        lambda text: text.replace("3 0.9 1 0.25", "1 0.25 3 0.9"),
        lambda text: text.replace("0.25", "2.5e-1").replace(" ", "  "),
        lambda text: text.replace("a,3 0.9 1 0.25", '"a","3 0.9 1 0.25"').replace("b,7 0.5", 'b,"7 0.5 "'),
        lambda text: '"VideoId","LabelConfidencePairs"' + text[text.index("\n") :],
    ],
)
@pytest.mark.parametrize("compressed", [False, True])
def test_kaggle_files(tmp_path: Path, change: Callable[[str], str], compressed: bool) -> None:
    content = change(KAGGLE).encode()
    assert rows_of(gzip.compress(content) if compressed else content, tmp_path) == A_AND_B


def test_a_row_of_many_pairs_and_rows_of_other_lengths(tmp_path: Path) -> None:
    scores = np.random.default_rng(0).random(20_000).tolist()
    pairs = " ".join(f"{label} {score}" for label, score in enumerate(scores))
    for text in (f"long,{pairs}\nshort,1 0.5\nempty,\n", f'"long","{pairs}"\n"short","1 0.5"\n"empty",""\n'):
        long, short, empty = rows_of(text, tmp_path)
        assert long.scores == sorted(scores, reverse=True)
        assert short.labels == [1]
        assert empty.labels == []


def test_equal_scores_come_in_the_order_of_the_classes(tmp_path: Path) -> None:
    assert rows_of("a,5 0.5 9 0.7 2 0.5 3 0.5\n", tmp_path)[0].labels == [9, 2, 3, 5]


@pytest.mark.parametrize("nested", [False, True])
def test_gclouds_json_of_the_starter_code(tmp_path: Path, nested: bool) -> None:
    lines = [
        {"video_id": "a", "class_indexes": [1, 3], "predictions": [0.25, 0.9]},
        {"video_id": "b", "class_indexes": [7], "predictions": [0.5], "key": 1},
    ]
    for line in lines if nested else []:
        line.update({key: [line[key]] for key in ("video_id", "class_indexes", "predictions")})
    content = "\n".join(json.dumps(line) for line in lines)
    assert rows_of(content, tmp_path, "prediction.results-00000-of-00001") == A_AND_B
    assert rows_of(gzip.compress(content.encode()), tmp_path) == A_AND_B


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("swapped", [False, True])
def test_paddles_pickles(tmp_path: Path, protocol: int, swapped: bool) -> None:
    rows: list[Any] = [("a", [0.25, 0.9], [1, 3]), ("b", [0.5], [7]), ("c", [], [])]
    if swapped:
        rows = [(name, labels, scores) for name, scores, labels in rows]
    wanted = [*A_AND_B, Prediction("c", [], [])]
    assert rows_of(pickle.dumps(rows, protocol), tmp_path) == wanted
    lists = [list(row) for row in rows]
    assert rows_of(pickle.dumps(lists, protocol), tmp_path) == wanted
    arrays = [(row[0], *(np.array(part) for part in row[1:])) for row in rows[:2]]
    assert rows_of(pickle.dumps(arrays, protocol), tmp_path) == A_AND_B
    numbers = [(row[0], *([x for x in np.array(part)] for part in row[1:])) for row in rows[:2]]
    assert rows_of(pickle.dumps(numbers, protocol), tmp_path) == A_AND_B


def test_paddles_own_result(golden: Path) -> None:
    """Written by the real infer.py of v1.5.1 under Python 2."""
    path = golden / "paddle" / "NEXTVLAD_infer_result.pkl"
    theirs = pickle.loads(path.read_bytes(), encoding="latin1")
    read = list(read_predictions(path))
    assert [(row.video_id.encode(), row.scores, row.labels) for row in read] == theirs
    assert len(read) == 12


def test_other_columns_of_parquet_do_not_matter(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    table = pyarrow.table(
        {
            "scores": pyarrow.array([[0.25, 0.9], [0.5]], pyarrow.large_list(pyarrow.float64())),
            "other": ["x", None],
            "video_id": pyarrow.array(["a", "b"], pyarrow.large_string()),
            "labels": pyarrow.array([[1, 3], [7]], pyarrow.list_(pyarrow.uint16())),
        }
    )
    parquet.write_table(table, tmp_path / "x")
    assert list(read_predictions(tmp_path / "x")) == A_AND_B


# Bad files


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a,1 0.5 2\n", r"line 1: video a: 3 numbers, wanted pairs"),
        ("a,1 0.5\nb,x 0.5\n", r"line 2: video b: pair 1: class 'x', wanted a whole number"),
        ("a,1 0.5 2 half\n", r"line 1: video a: pair 2: score 'half', wanted a number"),
        ("a,1 0.5 1.5 0.25\n", r"pair 2: class '1.5', wanted a whole number"),
        ("a,1_0 0.5\n", r"begins with|class '1_0'"),
        ("a,1 0.5\nb,1 0.25 1_0 0.5\n", r"line 2: video b: pair 2: class '1_0'"),
        ("a,1 -0.5\n", r"line 1: video a: score -0.5, wanted 0 or more: probabilities. Logits"),
        ("a,1 nan\n", r"video a: score nan, wanted a finite number"),
        ("a,1 inf\n", r"video a: score inf, wanted a finite number"),
        ("a,1 1e39\n", r"video a: score 1e\+39, wanted a finite number"),
        ("a,1 0.5 1 0.25\n", r"line 1: video a: class 1 twice"),
        ("a,1 0.5 -1 0.25\n", r"video a: class -1, wanted a whole number from 0 to 1048575"),
        ("a,1048576 0.5\n", r"video a: class 1048576, wanted a whole number"),
        ("a,1 0.5\n,1 0.5\n", r"line 2: video id '', wanted text"),
        ("a,1 0.5\nb\n", r"line 2: 1 columns, wanted two"),
        ("a,1 0.5\nb,1,0.5\n", r"line 2: 3 columns, wanted two"),
        ('a,1 0.5\n"b,1 0.5\n', r"line 2: a quotation mark is not closed"),
        ('a,1 0.5\n"b"c,1 0.5\n', r"line 2: no row of two columns"),
        ("a,1 0.5\nb,2 0.5\na,3 0.5\n", r"line 3: video a a second time \(first in line 1\)"),
        (b"a,1 0.5\nb\xff,1 0.5\n", r"line 2: not UTF-8 text .* at byte 1"),
        (
            KAGGLE_IN_GZIP[:-12],
            r"its beginning: the gzip data is cut short or damaged",
        ),
        (KAGGLE_IN_GZIP + b"\x1f\x8brest", r"the gzip data is cut short or damaged"),
        ('{"video_id": "a", "labels": [1], "scores": [0.5]}\n{"video_id": "b", "la', r"line 2: no JSON"),
        ("{}\n", r"line 1: no object|line 1: keys ; wanted video_id, labels and scores"),
        ('{"a": 1, "video_id": 2}\n', r"line 1: keys 'a', 'video_id'; wanted video_id, labels"),
        ('{"video_id": "a", "labels": [1], "scores": [0.5]}\n[1]\n', r"line 2: no object; wanted"),
        ('{"video_id": 7, "labels": [1], "scores": [0.5]}', r"line 1: video id 7, wanted text"),
        (
            '{"video_id": "\\ud800", "labels": [1], "scores": [0.5]}',
            r"line 1: video id '.ud800', wanted Unicode",
        ),
        (
            f'{{"video_id": "a", "labels": {[*range(50_000), 49_999]}, "scores": {[0.5] * 50_001}}}',
            r"video a: class 49999 twice",  # at once
        ),
        ('{"video_id": "a", "labels": [1, 2], "scores": [0.5]}', r"2 classes and 1 scores"),
        ('{"video_id": "a", "labels": 1, "scores": [0.5]}', r"classes or scores that are no list"),
        ('{"video_id": "a", "labels": [1.0], "scores": [0.5]}', r"class 1.0, wanted a whole number"),
        ('{"video_id": "a", "labels": [true], "scores": [0.5]}', r"class True, wanted a whole number"),
        ('{"video_id": "a", "labels": [1], "scores": ["0.5"]}', r"score '0.5', wanted a finite number"),
        ('{"video_id": "a", "labels": [1], "scores": [true]}', r"score True, wanted a finite number"),
        ('{"video_id": "a", "labels": [1], "scores": [NaN]}', r"score nan, wanted"),
        ('{"video_id": "a", "labels": [1], "scores": [1e999]}', r"score inf, wanted"),
        ('{"video_id": "a", "labels": [1], "scores": [' + "9" * 400 + "]}", r"score 9+\.\.\., wanted"),
        ('{"video_id": "a", "labels": [1], "scores": [' + "9" * 5000 + "]}", r"thousands of digits"),
        ('{"video_id": ' + "[" * 100_000, r"line 1: no JSON \(nested too deep\)"),
        (
            '{"video_id": ["a", "b"], "class_indexes": [[1]], "predictions": [[0.5]]}',
            r"video id \['a', 'b'\]",
        ),
        ('[{"video_id": "a"}]', r"one JSON array; wanted JSON Lines"),
        ("Class,Segments\n3,abcd:0 efgh:5\n", r"a file of segments"),
        ("3,abcd:0 efgh:5\n", r"a file of segments"),
        (b"PK\x03\x04rest", r"a zip archive; unpack it first"),
        ("<!doctype html>", r"a web page"),
        (KAGGLE.encode("utf-16"), r"UTF-16 text; save it as UTF-8"),
        (b"\x00" * 100, r"begins with b'.x00.*wanted JSON Lines, a Kaggle CSV, Parquet"),
        ("VideoId;LabelConfidencePairs\n", r"begins with b'VideoId;"),
        (" \n\n", r"nothing but blank lines"),
        (gzip.compress(pickle.dumps([]), mtime=0), r"a pickle file inside gzip; unpack it first"),
        (gzip.compress(b"PAR1", mtime=0), r"a parquet file inside gzip; unpack it first"),
        (b"PAR1 and rubbish", r"row 0 or after it: not readable as Parquet"),
        (pickle.dumps({"a": 1}), r"holds a dict, wanted a list"),
        (pickle.dumps([("a", [0.5], [1])])[:-5], r"cut short or damaged"),
        (pickle.dumps([("a", [0.5], [1])]) + b"more", r"4 more bytes follow"),
        (pickle.dumps([("a", [0.5], [1]), 3]), r"row 1 \(byte \d+\): a int, wanted \(video id, scores"),
        (pickle.dumps([("a", [0.5])]), r"row 0 \(byte \d+\): a tuple of 2, wanted \(video id"),
        (pickle.dumps([("a", [0.5], [1.0])]), r"two lists of scores"),
        (pickle.dumps([("a", [5], [1])]), r"two lists of whole numbers"),
        (pickle.dumps([("a", 0.5, [1])]), r"video a: a float, wanted a list"),
        (pickle.dumps([(5, [0.5], [1])]), r"row 0: video id None, wanted text"),
        (
            pickle.dumps([("a", [0.5], [1]) for _ in "ab"], 0),
            r"row 1: video a a second time \(first in row 0\)",
        ),
    ],
)
def test_what_is_refused(tmp_path: Path, content: bytes | str, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        rows_of(content, tmp_path)
    assert str(tmp_path / "x.csv") in str(caught.value)


def test_a_line_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_rows, "MAX_LINE", 1 << 20)
    with pytest.raises(DataError, match=r"line 1: longer than 1 MiB"):
        rows_of("a,1 0.5" + " " * (1 << 20), tmp_path)
    with pytest.raises(DataError, match=r"line 2: no row of two columns"):
        rows_of('a,1 0.5\n"open\n' + "b,1 0.5\n" * 100, tmp_path)


def test_paths_that_are_no_files(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none.csv: no such file"):
        list(read_predictions(tmp_path / "none.csv"))
    for path in (tmp_path, Path(os.devnull)):
        with pytest.raises(UsageError, match=r"is no regular file"):
            list(read_predictions(path))


def test_bad_columns_of_parquet(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    good = {"video_id": ["a", "b"], "labels": [[1], [2]], "scores": [[0.5], [0.5]]}
    for change, message in [
        ({"labels": ["1", "2"]}, r"column labels is string, wanted lists of whole numbers"),
        ({"labels": [[1.0], [2.0]]}, r"column labels is list.*double.*, wanted lists of whole"),
        ({"scores": [["x"], ["y"]]}, r"column scores is list.*, wanted lists of numbers"),
        ({"video_id": [1, 2]}, r"column video_id is int64, wanted text"),
        ({"video_id": ["a", None]}, r"a value is missing"),
        ({"labels": [[1], None]}, r"a value is missing"),
        ({"scores": [[0.5], [None]]}, r"a value is missing"),
        ({"scores": [[0.5], [0.5, 0.25]]}, r"row 1: video b: 1 classes and 2 scores"),
        ({"scores": [[0.5], [float("nan")]]}, r"row 1: video b: score nan"),
    ]:
        parquet.write_table(pyarrow.table(good | change), tmp_path / "x.parquet")
        with pytest.raises(DataError, match=message):
            list(read_predictions(tmp_path / "x.parquet"))
    parquet.write_table(pyarrow.table({"video_id": ["a"]}), tmp_path / "x.parquet")
    with pytest.raises(DataError, match=r"no column labels, scores .* among video_id; wanted"):
        list(read_predictions(tmp_path / "x.parquet"))


class Malicious:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (os.system, (f"touch {self.path}",))


@pytest.mark.parametrize("protocol", range(6))
def test_a_malicious_pickle_is_not_run(tmp_path: Path, protocol: int) -> None:
    content = [("a", [0.5], [1]), ("b", [Malicious(tmp_path / "ran")], [1])]
    with pytest.raises(DataError, match=r"system', which plain data and arrays do not need. Nothing was run"):
        rows_of(pickle.dumps(content, protocol), tmp_path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_cut_files_never_end_in_a_traceback(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x{suffix}"
    write_predictions(path, iter(ROWS), None)
    whole = path.read_bytes()
    for size in range(1, len(whole), max(1, len(whole) // 60)):
        path.write_bytes(whole[:size])
        try:
            rows = list(read_predictions(path))
        except DataError:
            continue
        assert suffix in (".csv", ".jsonl")  # where a cut between two rows, or numbers, cannot be seen
        assert [row.video_id for row in rows] == [row.video_id for row in ROWS[: len(rows)]]


@given(st.sampled_from(SUFFIXES), st.integers(0, 10**6), st.integers(0, 255))
@settings(deadline=None, max_examples=120, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_changed_bytes_never_end_in_a_traceback(tmp_path: Path, suffix: str, place: int, byte: int) -> None:
    path = tmp_path / f"x{suffix}"
    write_predictions(path, iter(ROWS), None)
    content = bytearray(path.read_bytes())
    content[place % len(content)] = byte
    path.write_bytes(content)
    try:
        for row in read_predictions(path):
            assert row.scores == sorted(row.scores, reverse=True)
    except NextvladError:
        pass


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_memory_does_not_grow(tmp_path: Path, suffix: str) -> None:
    peaks = []
    for count in (1_500, 3_500):
        path = tmp_path / f"{count}{suffix}"
        labels, scores = list(range(20)), [0.5 - label / 64 for label in range(20)]
        write_predictions(path, (Prediction(f"v{i}", labels, scores) for i in range(count)), None)
        for _ in read_predictions(path):  # what is imported on the way
            break
        tracemalloc.start()
        for _ in read_predictions(path):
            pass
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] - peaks[0] < 250_000  # the rows added take 3 MB in memory


def test_formats_are_told_by_content(tmp_path: Path) -> None:
    for suffix, kind in zip(SUFFIXES, ["json", "kaggle", "parquet", "pickle"], strict=True):
        path = tmp_path / f"x{suffix}"
        write_predictions(path, iter(ROWS), None)
        assert detect(path.rename(tmp_path / "any")) == kind
    buffer = io.BytesIO(b"Class,Segments\n1,abcd:0\n")
    (tmp_path / "any").write_bytes(buffer.getvalue())
    assert detect(tmp_path / "any") == "segments"
