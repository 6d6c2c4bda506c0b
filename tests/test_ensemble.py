"""`nextvlad ensemble` against a dictionary of NumPy numbers, in every mix of formats and orders."""

from __future__ import annotations

import json
import os
import pickle
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from makers import nextvlad
from nextvlad.data.vocabulary import Vocabulary
from nextvlad.ensemble import aligned, ensemble, normalised
from nextvlad.errors import ConfigError, DataError, OutputError, UsageError
from nextvlad.predictions import Prediction, read_predictions, write_predictions

SUFFIXES = [".jsonl", ".csv", ".parquet", ".pkl"]
Scores = dict[str, dict[int, float]]

numbers = st.floats(0, 1, width=32)
rows = st.dictionaries(st.integers(0, 9), numbers, max_size=6)


def write(path: Path, content: Scores) -> Path:
    write_predictions(
        path, (Prediction(name, list(row), list(row.values())) for name, row in content.items()), None
    )
    return path


def reference(contents: Sequence[Scores], weights: Sequence[float]) -> dict[str, np.ndarray]:
    """Video -> [10] mean scores: a class that a file does not list counts 0."""
    dense = np.zeros((len(contents), len(contents[0]), 10))
    for number, content in enumerate(contents):
        for place, name in enumerate(contents[0]):
            for label, score in content[name].items():
                dense[number, place, label] = score
    mean = np.average(dense, axis=0, weights=weights)
    return dict(zip(contents[0], mean, strict=True))


@st.composite
def ensembles(draw: st.DrawFn) -> tuple[list[Scores], list[float], list[str]]:
    names = draw(st.lists(st.text(min_size=1, max_size=4), unique=True, min_size=1, max_size=6))
    count = draw(st.integers(2, 4))
    contents = [{name: draw(rows) for name in draw(st.permutations(names))} for _ in range(count)]
    weights = draw(st.lists(st.floats(0.01, 10) | st.just(0.0), min_size=count, max_size=count).filter(any))
    return contents, weights, draw(st.lists(st.sampled_from(SUFFIXES), min_size=count, max_size=count))


@given(ensembles(), st.integers(1, 12))
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_weighted_mean_of_any_formats_and_orders(
    tmp_path: Path, made: tuple[list[Scores], list[float], list[str]], top_k: int
) -> None:
    contents, weights, suffixes = made
    files = [
        write(tmp_path / f"{number}{suffix}", content)
        for number, (content, suffix) in enumerate(zip(contents, suffixes, strict=True))
    ]
    out = tmp_path / "out.pkl"
    assert ensemble(files, out=out, weights=weights, top_k=top_k) == len(contents[0])
    means = reference(contents, weights)
    found = list(read_predictions(out))
    assert [row.video_id for row in found] == list(contents[0])
    for row in found:
        mean, listed = means[row.video_id], {x for content in contents for x in content[row.video_id]}
        assert len(row.labels) == min(top_k, len(listed))
        assert set(row.labels) <= listed
        np.testing.assert_allclose(row.scores, mean[row.labels], atol=6e-7)  # of the CSV files
        left = [mean[label] for label in listed - set(row.labels)]
        assert not left or max(left) <= row.scores[-1] + 6e-7
        assert row.scores == sorted(row.scores, reverse=True)


def test_a_class_that_a_file_leaves_out_counts_0_there(tmp_path: Path) -> None:
    a = write(tmp_path / "a.csv", {"v": {1: 0.8, 2: 0.4}, "w": {}})
    b = write(tmp_path / "b.csv", {"w": {7: 0.5}, "v": {2: 0.6, 3: 0.4}})
    ensemble([a, b], out=tmp_path / "out.csv", weights=[1, 3])
    assert (tmp_path / "out.csv").read_text() == (
        "VideoId,LabelConfidencePairs\nv,2 0.550000 3 0.300000 1 0.200000\nw,7 0.375000\n"
    )


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_out_by_its_suffix_with_names(tmp_path: Path, suffix: str, capfd: Any) -> None:
    a = write(tmp_path / "a.csv", {"v": {1: 0.5, 0: 0.25}})
    Vocabulary(("zero", "one")).save(tmp_path / "names.csv")
    out = tmp_path / "deep" / f"out{suffix}"
    ensemble([a, a, a], out=out, vocabulary=tmp_path / "names.csv")
    assert list(read_predictions(out)) == [Prediction("v", [1, 0], [0.5, 0.25])]
    assert f"1 video, the mean of 3 files -> {out}" in capfd.readouterr().err
    if suffix == ".jsonl":
        assert json.loads(out.read_text())["names"] == ["one", "zero"]
    assert [file.name for file in out.parent.iterdir()] == [out.name]


def test_top_k(tmp_path: Path) -> None:
    a = write(tmp_path / "a.pkl", {"v": {label: 0.5 for label in range(30)}})
    for top_k, kept in ((None, 20), (1, 1), (50, 30)):
        ensemble([a, a], out=tmp_path / "out.pkl", top_k=top_k)
        assert next(read_predictions(tmp_path / "out.pkl")).labels == list(range(kept))


def test_memory_where_the_order_is_the_same(tmp_path: Path) -> None:
    peaks = []
    for count in (1_000, 3_000):
        files = [tmp_path / f"{count}-{name}" for name in ("a.jsonl", "b.csv", "c.parquet")]
        labels, scores = list(range(20)), [0.5 - label / 64 for label in range(20)]
        for file in files:
            write_predictions(file, (Prediction(f"v{i}", labels, scores) for i in range(count)), None)
        tracemalloc.start()
        for _ in aligned(files):
            pass
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] - peaks[0] < 300_000  # the rows added take 12 MB in memory


def test_only_what_is_ahead_is_held(tmp_path: Path) -> None:
    names = [f"v{i}" for i in range(50)]
    a = write(tmp_path / "a.csv", {name: {1: 0.5} for name in names})
    b = write(tmp_path / "b.csv", {name: {2: 0.5} for name in [*names[5:], *names[:5]]})
    found = [[row.video_id for row in rows] for rows in aligned([a, b])]
    assert found == [[name, name] for name in names]


# What is refused


@pytest.mark.parametrize(
    ("one", "other", "message"),
    [
        ("a,1 0.5\nb,1 0.5\n", "b,1 0.5\n", r"2.csv: no video a, which .*1.csv has"),
        ("b,1 0.5\n", "b,1 0.5\na,1 0.5\n", r"1.csv: no video a, which .*2.csv has"),
        ("b,1 0.5\n", "a,1 0.5\nb,1 0.5\n", r"1.csv: no video a, which .*2.csv has"),
        ("a,1 0.5\n", "b,1 0.5\n", r"2.csv: no video a, which .*1.csv has"),
        ("a,1 0.5\n", "", r"2.csv: no video a, which .*1.csv has"),
        ("a,1 0.5\n", "a,1 0.5\na,1 0.5\n", r"2.csv, line 2: video a a second time \(first in line 1\)"),
        ("a,1 0.5\na,1 0.5\n", "a,1 0.5\n", r"2.csv: no video a, .*\(or it comes twice there\)"),
        ("a,1 0.5\na,1 0.5\n", "a,1 0.5\na,1 0.5\n", r"csv, line 2: video a a second time"),
        ("a,1 0.5\nb,1 0.5 2\n", "a,1 0.5\nb,1 0.5\n", r"1.csv, line 2: video b: 3 numbers"),
        ("a,1 0.5\nb,1 0.5\n", "a,1 0.5\nb,1 -1\n", r"2.csv, line 2: video b: score -1.0, wanted 0 or more"),
        ("a,1 0.5\n", "Class,Segments\n", r"2.csv: a file of segments"),
        ("a,1 0.5\n", "rubbish", r"2.csv: begins with b'rubbish'"),
    ],
)
def test_files_that_do_not_belong_together(tmp_path: Path, one: str, other: str, message: str) -> None:
    (tmp_path / "1.csv").write_text(one)
    (tmp_path / "2.csv").write_text(other)
    (tmp_path / "out.jsonl").write_text("of an earlier run")
    with pytest.raises(DataError, match=message):
        ensemble([tmp_path / "1.csv", tmp_path / "2.csv"], out=tmp_path / "out.jsonl")
    assert (tmp_path / "out.jsonl").read_text() == "of an earlier run"
    assert sorted(os.listdir(tmp_path)) == ["1.csv", "2.csv", "out.jsonl"]


def test_a_single_file_is_converted_whole(tmp_path: Path) -> None:
    scores = {"v": {label: 1 / (label + 1) for label in range(30)}, "w": {3: 0.25}}
    source = write(tmp_path / "a.jsonl", scores)
    assert ensemble([source], out=tmp_path / "b.pkl") == 2
    assert list(read_predictions(tmp_path / "b.pkl")) == list(read_predictions(source))
    assert len(next(read_predictions(tmp_path / "b.pkl")).labels) == 30


def test_calls_that_are_refused(tmp_path: Path) -> None:
    a, b = (write(tmp_path / name, {"v": {1: 0.5}}) for name in ("a.csv", "b.csv"))
    out = tmp_path / "out.csv"
    for files, options, message in [
        ([], {}, r"ensemble: no FILE given"),
        ([a], {"weights": [1, 2]}, r"--weights: got 2, wanted one for each of the 1 files"),
        ([a, b], {"weights": [1]}, r"--weights: got 1, wanted one for each of the 2 files"),
        ([a, b], {"weights": [1, -1]}, r"--weights: got 1 -1; wanted finite numbers, 0 or more"),
        ([a, b], {"weights": [1, float("nan")]}, r"--weights: got 1 nan; wanted"),
        ([a, b], {"weights": [1, float("inf")]}, r"--weights: got 1 inf; wanted"),
        ([a, b], {"weights": [0, 0]}, r"--weights: got 0 0; wanted .* not all 0"),
        ([a, b], {"top_k": 0}, r"--top-k: got 0, wanted 1 or more"),
        ([a, tmp_path / "none.csv"], {}, r"none.csv: no such file"),
    ]:
        with pytest.raises(UsageError, match=message):
            ensemble(files, out=out, **options)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"suffix '.txt'"):
        ensemble([a, b], out=tmp_path / "out.txt")
    Vocabulary(("zero",)).save(tmp_path / "names.csv")
    with pytest.raises(ConfigError, match=r"names.csv: 1 classes, but video v has class 1"):
        ensemble([a, b], out=out, vocabulary=tmp_path / "names.csv")
    assert not out.exists()


def test_no_input_is_overwritten(tmp_path: Path) -> None:
    a, b = (write(tmp_path / name, {"v": {1: 0.5}}) for name in ("a.csv", "b.csv"))
    (tmp_path / "link.csv").symlink_to(b)
    partial = write(tmp_path / "x.csv", {"v": {1: 0.5}}).rename(tmp_path / "c.csv.partial")
    for files, out in [([a, b], a), ([a, b], tmp_path / "link.csv"), ([a, partial], tmp_path / "c.csv")]:
        before = [file.read_bytes() for file in files]
        with pytest.raises(UsageError, match=r"--out .*: would overwrite .*, which is read"):
            ensemble(files, out=out)
        assert [file.read_bytes() for file in files] == before


def test_a_malicious_pickle_is_not_run(tmp_path: Path) -> None:
    class Malicious:
        def __reduce__(self) -> Any:
            return (os.system, (f"touch {tmp_path}/ran",))

    a = write(tmp_path / "a.csv", {"v": {1: 0.5}})
    (tmp_path / "b.pkl").write_bytes(pickle.dumps([("v", [0.5], [Malicious()])]))
    with pytest.raises(DataError, match="Nothing was run"):
        ensemble([a, tmp_path / "b.pkl"], out=tmp_path / "out.csv")
    assert sorted(os.listdir(tmp_path)) == ["a.csv", "b.pkl"]


def test_a_full_disk(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full")
    a = write(tmp_path / "a.csv", {f"v{i}": {1: 0.5} for i in range(3)})
    (tmp_path / "out.csv.partial").symlink_to("/dev/full")
    with pytest.raises(OutputError, match=r"out.csv: cannot be written \(No space left"):
        ensemble([a, a], out=tmp_path / "out.csv")
    assert os.listdir(tmp_path) == ["a.csv"]


@pytest.mark.parametrize(
    ("weights", "wanted"),
    [(None, [0.25] * 4), ([1, 1, 1, 1], [0.25] * 4), ([0, 0, 0, 5], [0, 0, 0, 1]), ([1e308] * 4, [0.25] * 4),
     ([5e-324] * 4, [0.25] * 4)],
)  # fmt: skip
def test_weights_sum_to_one(weights: list[float] | None, wanted: list[float]) -> None:
    assert normalised(weights, 4) == wanted


# The command line


def test_the_command(tmp_path: Path) -> None:
    a = write(tmp_path / "a.csv", {"v": {1: 0.75}, "w": {2: 0.5}})
    b = write(tmp_path / "b.pkl", {"w": {2: 0.5}, "v": {1: 0.25}})
    out = tmp_path / "out.parquet"
    done = nextvlad("ensemble", a, b, "--weights", "3", "1", "--out", out)
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr == f"2 videos, the mean of 2 files -> {out}\n"
    assert list(read_predictions(out)) == [Prediction("v", [1], [0.625]), Prediction("w", [2], [0.5])]


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["a.csv", "b.csv", "--out", "out.csv", "--weights", "1", "-1"], 2, "--weights: got 1 -1; wanted"),
        (["--out", "out.csv"], 2, "ensemble: no FILE given"),
        (["a.csv", "b.csv", "--out", "out.csv"], 1, "b.csv: no video v, which a.csv has"),
        (["a.csv", "none.csv", "--out", "out.csv"], 2, "none.csv: no such file"),
    ],
)
def test_what_the_command_says(tmp_path: Path, arguments: list[str], status: int, message: str) -> None:
    write(tmp_path / "a.csv", {"v": {1: 0.5}})
    write(tmp_path / "b.csv", {"w": {1: 0.5}})
    done = nextvlad("ensemble", *arguments, cwd=tmp_path)
    assert done.returncode == status
    assert done.stderr.startswith(f"nextvlad: {message}")
    assert sorted(os.listdir(tmp_path)) == ["a.csv", "b.csv"]
