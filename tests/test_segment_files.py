"""Files of segments: kept, written, read, scored."""

from __future__ import annotations

import gzip
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import reference_metrics as reference
from nextvlad.data.segments import SEGMENT_SECONDS
from nextvlad.data.tfrecord import RecordWriter
from nextvlad.data.video_record import VideoRecord, serialize_video_record
from nextvlad.errors import DataError, OutputError, UsageError
from nextvlad.metrics import segment_map
from nextvlad.predictions import Prediction, best_segments, write_predictions
from nextvlad.predictions.best_segments import BestSegments
from nextvlad.predictions.segment_files import (
    lists_of_rows,
    read_segment_lists,
    remarks,
    score_segment_file,
    write_segment_lists,
)
from test_segments import Rating, video

# The best of a stream


def split_name(segment: str) -> tuple[str, int]:
    name, _, start = segment.rpartition(":")
    return name, int(start)


def best_lists(ids: list[str], scores: Any, classes: list[int], most: int) -> list[tuple[int, list[str]]]:
    """By sorting everything."""
    return [
        (
            classes[column],
            sorted(ids, key=lambda s: (-scores[ids.index(s), column], *split_name(s)))[:most],
        )
        for column in sorted(range(len(classes)), key=lambda column: classes[column])
    ]


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 4), min_size=1, max_size=12),
    most=st.integers(1, 9),
    batch_size=st.integers(1, 7),
    staged=st.integers(1, 9),
    levels=st.integers(1, 6),
    seed=st.integers(0, 99),
)
def test_the_best_by_sorting_everything(
    lengths: list[int], most: int, batch_size: int, staged: int, levels: int, seed: int
) -> None:
    """In every order of videos, batches of every size, and with many equal scores."""
    numbers = np.random.default_rng(seed)
    ids = [
        f"{name:x}:{part * SEGMENT_SECONDS}"
        for name in numbers.permutation(len(lengths))
        for part in range(lengths[name])
    ]
    scores = numbers.integers(0, levels, (len(ids), 3)).astype(np.float32) - 2
    classes = [4, 1, 9]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(best_segments, "_STAGED_BYTES", 12 * staged)
        best = BestSegments(np.array(classes), max_segments=most)
        for start in range(0, len(ids), batch_size):
            best.add(ids[start : start + batch_size], scores[start : start + batch_size])
        found = list(best.lists())
    assert found == best_lists(ids, scores, classes, most)
    assert best.num_segments == len(ids)
    assert best.num_repeated == 0
    assert list(best.lists()) == found


def test_batches_of_several_readers_in_turns() -> None:
    """A video that is cut by a batch goes on after a batch of another reader."""
    best = BestSegments(np.array([0]), max_segments=3)
    best.add(["b:0", "b:5"], np.array([[1], [5]], np.float32))
    best.add(["a:0", "a:5"], np.array([[5], [2]], np.float32))
    best.add(["b:10", "c:x:0"], np.array([[5], [5]], np.float32))
    assert list(best.lists()) == [(0, ["a:0", "b:5", "b:10"])]


def test_a_video_that_stands_twice_in_the_data() -> None:
    best = BestSegments(np.array([0]), max_segments=3)
    best.add(["a:0", "b:0", "a:0"], np.array([[1], [2], [3]], np.float32))
    assert list(best.lists()) == [(0, ["a:0", "b:0"])]
    assert best.num_repeated == 1


def test_one_long_id_is_not_paid_for_by_all() -> None:
    best = BestSegments(np.array([0]), max_segments=500)
    ids = ["b" * 100_000 + ":0", *(f"a{number:04d}:0" for number in range(1000))]
    tracemalloc.start()
    best.add(ids, np.zeros((1001, 1), np.float32))
    assert list(best.lists()) == [(0, ids[1:501])]
    assert tracemalloc.get_traced_memory()[1] < 100_000_000  # 400 if each were as long
    tracemalloc.stop()


def test_memory_of_a_long_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever comes, a class holds at most a quarter more than it lists, and what was staged."""
    monkeypatch.setattr(best_segments, "_STAGED_BYTES", 4 * 100)
    best = BestSegments(np.array([0]), max_segments=400)
    numbers = np.random.default_rng(0)
    for video_number in range(200):
        ids = [f"{video_number}:{5 * part}" for part in range(60)]
        rising = numbers.random((60, 1)) + video_number  # the worst order
        best.add(ids, rising.astype(np.float32))
        assert best._kept[0].size <= 500 + 100


# Reading and writing


def test_written_lists_are_read(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "segments.csv"
    lists = [(2, ["kX4a:0", "b-_Q:25"]), (3, []), (7, ["é:5"])]
    assert write_segment_lists(path, lists) == 2
    assert path.read_bytes() == "Class,Segments\n2,kX4a:0 b-_Q:25\n7,é:5\n".encode()
    rows = list(read_segment_lists(path))
    assert rows == [(2, 2, ["kX4a:0", "b-_Q:25"], 0), (3, 7, ["é:5"], 0)]
    assert [file.name for file in path.parent.iterdir()] == ["segments.csv"]


@pytest.mark.parametrize("video_id", ["a b", "a,b", "a\nb", 'a"b', "a\u00a0b", "\x1ca"])
def test_ids_that_would_break_the_file(tmp_path: Path, video_id: str) -> None:
    with pytest.raises(DataError, match=r"s\.csv: video '.*' cannot stand in it: ids are parted by blanks"):
        write_segment_lists(tmp_path / "s.csv", [(1, ["x:0"]), (2, [f"{video_id}:0"])])
    assert list(tmp_path.iterdir()) == []


def test_a_video_without_id(tmp_path: Path) -> None:
    best = BestSegments(np.array([0]), max_segments=5)
    best.add([":0", ":5", "b:0"], np.array([[0.5], [0.75], [0.25]], np.float32))
    ((_, found),) = best.lists()
    assert found == [":5", ":0", "b:0"]
    with pytest.raises(DataError, match=r"s\.csv: a video without id cannot stand in it"):
        write_segment_lists(tmp_path / "s.csv", [(0, found)])
    assert not list(tmp_path.iterdir())


def test_where_nothing_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(
        OutputError, match=r"s\.csv: cannot be written \(a file is where a folder should be\)"
    ):
        write_segment_lists(tmp_path / "file" / "s.csv", [])


SAME = [(0, ["a:0", "b:5"], 0), (4, [], 0), (12, ["a:10"], 1)]


@pytest.mark.parametrize(
    "text",
    [
        b"Class,Segments\n0,a:0 b:5\n4,\n12,a:10 a:10\n",
        b"0,a:0 b:5\n4,\n12,a:10 a:10",
        b"\xef\xbb\xbfclass,segments\r\n0,a:0 b:5\r\n4,\r\n12,a:10 a:10\r\n",
        b"\n\nClass Id,Segment Ids\n\n0, a:0  b:5 \n4,  \n12,a:10\ta:10\n\n",
        b'"Class","Segments"\n"0","a:0 b:5"\n4,""\n12,"a:10 a:10"\n',
        gzip.compress(b"Class,Segments\n0,a:0 b:5\n4,\n12,a:10 a:10\n", mtime=0),
    ],
)
def test_ways_to_write_the_same(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "s.csv").write_bytes(text)
    assert [tuple(row[1:]) for row in read_segment_lists(tmp_path / "s.csv")] == SAME


def test_a_file_without_rows(tmp_path: Path) -> None:
    (tmp_path / "s.csv").write_bytes(b"")
    assert list(read_segment_lists(tmp_path / "s.csv")) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Class,Segments\n1,a:0\n1,b:0\n", r"line 3: class 1 a second time, after line 2; wanted it once"),
        ("1,a:0\n2,b\n", r"line 2: segment 'b', wanted VIDEO:START, as kX4a:25"),
        ("1,:5\n", r"line 1: segment ':5', wanted VIDEO:START"),
        ("1,a:\n", r"segment 'a:', wanted"),
        ("1,a:-5\n", r"segment 'a:-5', wanted"),
        ("1,a:0 b:5\n2,a:0,b:5\n", r"line 2: segment 'a:0,b:5', wanted .* parted by blanks"),
        ("1\n", r"line 1: no comma, wanted `class,VIDEO:START VIDEO:START \.\.\.`"),
        ("x,a:0\n", r"line 1: class 'x', wanted a whole number from 0 to 1048575"),
        ("1,a:0\nClass,Segments\n", r"line 2: class 'Class', wanted"),
        ("-1,a:0\n", r"class '-1', wanted"),
        ("99999999,a:0\n", r"class '99999999', wanted"),
    ],
)
def test_what_is_no_file_of_segments(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "s.csv").write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        list(read_segment_lists(tmp_path / "s.csv"))
    assert str(caught.value).startswith(f"{tmp_path / 's.csv'}, line ")


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"s\.csv: no such file"):
        list(read_segment_lists(tmp_path / "s.csv"))


# Scoring


def write_ratings(path: Path, ratings: dict[str, list[Rating]]) -> str:
    with RecordWriter(path) as writer:
        for name, of_video in ratings.items():
            writer.write(serialize_video_record(video(of_video, video_id=name)))
    return str(path)


@pytest.fixture
def data(tmp_path: Path) -> str:
    """Class 1: a:0 and b:5 are there, a:5 and b:0 not; 2: a:0 is; 3: b:0 is not; 4: c:0 is."""
    return write_ratings(
        tmp_path / "rated.tfrecord",
        {
            "a": [(0, 5, 1, 1.0), (5, 10, 1, 0.0), (0, 5, 2, 1.0)],
            "b": [(0, 5, 1, 0.0), (5, 10, 1, 1.0), (0, 5, 3, 0.0)],
            "c": [(0, 5, 4, 1.0)],
        },
    )


def score(tmp_path: Path, data: str, text: str, **more: Any) -> dict[str, Any]:
    path = tmp_path / "s.csv"
    path.write_text(text)
    return score_segment_file(path, data, **more)


def test_a_score_by_hand(tmp_path: Path, data: str) -> None:
    text = "Class,Segments\n1,x:0 a:0 a:5 a:0 b:5 a:10\n2,\n3,b:0\n9,a:0\n"
    result = score(tmp_path, data, text)
    assert result == {
        "segment_map": pytest.approx(((1 + 2 / 3) / 2 + 0 + 0) / 3),
        "num_segments": 5,
        "num_ratings": 7,
        "num_classes": 3,
        "num_classes_missing": 1,
        "num_listed": 8,
        "num_repeated": 1,
        "num_beyond": 0,
        "num_unrated": 3,
        "num_classes_without_positive": 2,
    }
    assert remarks(result) == [
        "3 of 8 listed segments have no rating for their class: left out.",
        "1 segments were listed twice for a class: only the first place counts.",
        "2 listed classes have no positive in the data: left out.",
        "1 of 3 classes with positives are missing: they count 0.",
    ]


def test_the_list_is_cut_first(tmp_path: Path, data: str) -> None:
    text = "1,x:0 a:0 a:0 a:5 b:5\n2,a:0\n4,c:0\n"
    assert score(tmp_path, data, text)["segment_map"] == pytest.approx(((1 + 2 / 3) / 2 + 2) / 3)
    cut = score(tmp_path, data, text, max_segments=3)
    assert cut["segment_map"] == pytest.approx((1 / 2 + 2) / 3)
    assert (cut["num_unrated"], cut["num_beyond"], cut["num_repeated"]) == (1, 1, 1)
    assert score(tmp_path, data, text, max_segments=1)["segment_map"] == pytest.approx(2 / 3)
    assert remarks(score(tmp_path, data, "1,a:0 b:5 x:5\n2,a:0\n4,c:0\n", max_segments=2)) == [
        "1 segments stood beyond the end of what a list may hold: left out."
    ]


def test_a_perfect_file(tmp_path: Path, data: str) -> None:
    result = score(tmp_path, data, "4,c:0\n2,a:0\n1,b:5 a:0 b:0 a:5\n")
    assert result["segment_map"] == 1.0
    assert remarks(result) == []


def test_of_two_records_of_a_video_the_last_rating_counts(tmp_path: Path, data: str) -> None:
    again = write_ratings(tmp_path / "again.tfrecord", {"a": [(0, 5, 2, 0.0), (0, 5, 1, 1.0)]})
    path = tmp_path / "s.csv"
    path.write_text("1,a:0 b:5\n4,c:0\n")
    assert score_segment_file(path, [data, again])["segment_map"] == 1.0


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 999), most=st.integers(1, 12))
def test_a_file_scores_as_the_scores_it_came_from(
    tmp_path_factory: pytest.TempPathFactory, seed: int, most: int
) -> None:
    """Ten segments, three classes, no equal scores: the array, the file, and the slow way."""
    folder = tmp_path_factory.mktemp("scores")
    numbers = np.random.default_rng(seed)
    scores = numbers.permutation(30).reshape(10, 3).astype(np.float32) / 30
    rated = numbers.random((10, 3)) < 0.6
    labels = rated & (numbers.random((10, 3)) < 0.5)
    labels[0, 0] = rated[0, 0] = True
    ids = [f"v{index // 2}:{index % 2 * 5}" for index in range(10)]
    ratings: dict[str, list[Rating]] = {f"v{number}": [] for number in range(5)}
    for row, column in np.argwhere(rated).tolist():
        name, start = split_name(ids[row])
        ratings[name].append((start, start + 5, column, float(labels[row, column])))
    data = write_ratings(folder / "rated.tfrecord", ratings)
    best = BestSegments(np.arange(3), max_segments=most)
    best.add(ids, scores)
    write_segment_lists(folder / "s.csv", best.lists())
    rows = (Prediction(name, [0, 1, 2], row.tolist()) for name, row in zip(ids, scores, strict=True))
    write_predictions(folder / "s.jsonl", rows, None)
    value = segment_map(scores, labels, rated, max_segments=most)
    slow = []
    for column in range(3):
        order = np.argsort(-scores[:, column])[:most]
        kept = labels[order, column][rated[order, column]].tolist()
        if labels[:, column].any():
            slow.append(reference.average_precision_of_order(kept, int(labels[:, column].sum())))
    assert value == pytest.approx(np.mean(slow), rel=1e-12)
    if value == 0:  # perhaps nothing rated is listed at all
        return
    assert score_segment_file(folder / "s.csv", data)["segment_map"] == pytest.approx(value, rel=1e-12)
    of_rows = score_segment_file(folder / "s.jsonl", data, max_segments=most)
    assert of_rows["segment_map"] == pytest.approx(value, rel=1e-12)


def test_rows_of_segments_as_lists() -> None:
    rows = [
        Prediction("b:5", [1, 2], [0.5, 0.25]),
        Prediction("a:10", [1], [0.75]),
        Prediction("a:5", [1], [0.5]),
    ]
    found = [(row.label, row.segments) for row in lists_of_rows(rows, where="p.jsonl")]
    assert found == [(1, ["a:10", "a:5", "b:5"]), (2, ["b:5"])]
    for name in ("a", "a:", ":5", "a:x", "a:-5"):
        with pytest.raises(DataError, match=r"p.jsonl: row '.*', wanted a segment, VIDEO:START"):
            list(lists_of_rows([Prediction(name, [], [])], where="p.jsonl"))


def test_what_cannot_be_scored(tmp_path: Path, data: str) -> None:
    message = r"s\.csv: none of the 2 segments in its lists has a rating for its class in the data"
    with pytest.raises(DataError, match=message):
        score(tmp_path, data, "1,x:0\n2,b:5\n")
    negative = write_ratings(tmp_path / "negative", {"a": [(0, 5, 1, 0.0)]})
    with pytest.raises(DataError, match=r"negative: none of its rated segments is rated positive"):
        score(tmp_path, negative, "1,a:0\n")
    unrated = write_ratings(tmp_path / "unrated", {"a": []})
    with pytest.raises(
        DataError, match=r"unrated: no rated segments in it; wanted videos with segment_labels"
    ):
        score(tmp_path, unrated, "1,a:0\n")


def test_damaged_ratings(tmp_path: Path, data: str) -> None:
    bad: VideoRecord = video([(0, 5, 1, 1.0)], video_id="bad")
    bad.context["segment_scores"] = []
    with RecordWriter(tmp_path / "bad") as writer:
        writer.write(serialize_video_record(bad))
    both = [data, str(tmp_path / "bad")]
    path = tmp_path / "s.csv"
    path.write_text("1,a:0 b:5\n2,a:0\n4,c:0\n")
    with pytest.raises(DataError, match=r"record 0 \(video bad\): lists of different length"):
        score_segment_file(path, both)
    errors: list[Any] = []
    assert score_segment_file(path, both, on_damage=errors.append)["segment_map"] == 1.0
    assert len(errors) == 1
