"""Every benchmark runs, with tiny sizes; the README has the table that the results give."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from makers import SIZES, make_data
from nextvlad.config import StreamConfig
from nextvlad.data.batch import collate
from nextvlad.data.sources import read
from nextvlad.metrics import gap

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"
SCRIPTS = (
    *(
        "reading",
        "metrics",
        "inference",
        "training",
        "extraction",
        "whole_process",
        "scaling",
        "startup",
        "gpu",
    ),
)


def load(name: str) -> ModuleType:
    """A benchmark's module, without running it."""
    specification = importlib.util.spec_from_file_location(f"benchmark_{name}", FOLDER / f"{name}.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules[module.__name__] = module  # dataclasses look their module up
    specification.loader.exec_module(module)
    return module


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_benchmark_runs_and_keeps_its_result(script: str, tmp_path: Path) -> None:
    command = [sys.executable, "-W", "error", FOLDER / f"{script}.py", "--quick", "--out", tmp_path]
    if script == "gpu" and not torch.cuda.is_available():
        command += ["--device", "cpu"]
    done = subprocess.run(
        list(map(str, command)),
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout.splitlines()[-1])
    assert (record["what"], record["quick"]) == (script, True)
    assert record["environment"]["versions"]["numpy"] == np.__version__
    for comparison in record["comparisons"]:
        assert all(timing["median_s"] > 0 for timing in comparison["timings"].values())
        assert list(comparison["ratios"]) == list(comparison["timings"])[1:]
    (file,) = tmp_path.glob(f"{script}_*.jsonl")
    assert json.loads(file.read_text()) == record


def test_loss_curves(tmp_path: Path) -> None:
    data = make_data(tmp_path, "train", num_videos=40, num_shards=1)
    command = [
        sys.executable,
        FOLDER / "loss_curves.py",
        "--train",
        data,
        "--valid",
        data,
        "--recipe",
        "small",
    ]
    command += ["--every", "1", "--seeds", "0", "1", "--threads", "1", "--out", tmp_path / "out"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout.splitlines()[-1])
    assert [(run["precision"], run["seed"]) for run in record["runs"]] == [
        ("fp32", 0),
        ("bf16", 0),
        ("fp32", 1),
    ]
    assert 0 < record["bf16_to_fp32"]["loss_mean"] < record["seeds_to_first"][0]["loss_mean"]
    assert (tmp_path / "out" / "loss_curves.png").stat().st_size > 10_000


def test_all_are_in_the_readme() -> None:
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    for script in (*SCRIPTS, "loss_curves", "small_data"):
        assert f"| `benchmarks/{script}.py` |" in text


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_its_benchmark_says_so() -> None:
    done = subprocess.run(
        [sys.executable, str(FOLDER / "gpu.py")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr == "benchmarks/gpu.py: no CUDA device here; it measures nothing elsewhere.\n"


def test_alternatives_take_turns() -> None:
    measure = load("measure")
    calls: list[str] = []

    def note(name: str) -> Any:
        return lambda: calls.append(name) or 10

    comparison = measure.compare("c", {"a": note("a"), "b": note("b")}, unit="calls", rounds=2, warmup=1)
    assert "".join(calls) == "ababab"
    assert [len(timing.seconds) for timing in comparison.timings.values()] == [2, 2]


def test_ratio_is_that_of_the_rates() -> None:
    measure = load("measure")
    timings = {"ours": measure.Timing([1.0, 2.0, 3.0], 10), "theirs": measure.Timing([2.0, 2.0, 3.0], 5)}
    ratios = measure.Comparison("c", "videos", timings, {"theirs": 2.0}, {}).ratios()
    assert ratios == {"theirs": {"ratio": 2.0, "quartiles": [2.0, 3.0], "wanted": 2.0}}


def test_protobuf_reader_gives_our_batches(tmp_path: Path) -> None:
    pytest.importorskip("google.protobuf", reason="needs the extra bench")
    reader = load("protobuf_reader")
    path = make_data(tmp_path, "train", num_videos=7, num_shards=1)
    streams = [StreamConfig(name=name, size=size) for name, size in SIZES.items()]
    wanted = collate(list(read([path], max_frames=5)), streams=streams, num_classes=5)
    for frame_by_frame in (False, True):
        (batch,) = reader.batches(
            [path.replace("*", "0")],
            streams,
            num_classes=5,
            batch_size=10,
            max_frames=5,
            frame_by_frame=frame_by_frame,
        )
        assert batch.video_ids == wanted.video_ids
        assert np.array_equal(batch.labels, wanted.labels)
        for name, (values, offsets) in batch.streams.items():
            assert np.array_equal(values, wanted.streams[name].values)
            assert np.array_equal(offsets, wanted.streams[name].offsets)


def test_plain_python_gap_agrees() -> None:
    numbers = np.random.default_rng(0)
    scores = numbers.permutation(600).reshape(30, 20) / 600
    labels = numbers.random((30, 20)) < 0.1
    theirs = load("starter_gap").gap(scores.ravel().tolist(), labels.ravel().tolist(), int(labels.sum()))
    assert theirs == pytest.approx(gap(scores, labels), abs=1e-12)


def test_readme_has_the_table_of_the_results() -> None:
    table = load("table")
    readme = (FOLDER.parent / "README.md").read_text(encoding="utf-8")
    wanted = table.insert(readme, table.speed_table(table.read_results(FOLDER / "results")))
    assert readme == wanted, "python benchmarks/table.py --write"


def test_exponents_and_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(FOLDER)
    scaling = load("scaling")
    sizes = np.array([1.0, 2.0, 4.0, 8.0, 16.0])
    assert scaling.exponent(sizes, 3 * sizes**1.5) == pytest.approx(1.5)
    assert scaling.line_explains(sizes, 5 + 2 * sizes) == pytest.approx(1)
    assert scaling.line_explains(sizes, sizes**3) < 0.95


def test_scaling_rows_and_plot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(FOLDER)
    table, scaling = load("table"), load("scaling")
    record = _record(1, 1.0) | {"what": "scaling", "comparisons": []}
    for axis in scaling._POINTS:
        for kind in scaling._KINDS:
            facts = {"seconds a video": [0.1, 0.2], "time exponent": 0.987, "expected": 1.0}
            facts |= {"bytes a video": [1e6, 2e6], "memory exponent": 1.1}
            timings = {"10": {"per_second": 10.0}, "20": {"per_second": 5.0}}
            record["comparisons"].append(
                {
                    "name": f"{kind}, {axis}",
                    "unit": "videos",
                    "timings": timings,
                    "ratios": {},
                    "facts": facts,
                }
            )
    (tmp_path / "scaling_x.jsonl").write_text(json.dumps(record) + "\n")
    text = table.speed_table(table.read_results(tmp_path))
    assert (
        "| a video's cost against frames, training | exponent of time 0.99, of memory 1.10 | | | | 1 |"
        in text
    )
    pytest.importorskip("matplotlib")
    scaling._plot(tmp_path)
    assert (tmp_path / "scaling.png").read_bytes().startswith(b"\x89PNG")


def test_table_takes_the_last_result_and_leaves_out_what_there_is_none_of(tmp_path: Path) -> None:
    table = load("table")
    for day, ratio in ((2, 4.0), (1, 3.0)):
        (tmp_path / f"{day}.jsonl").write_text(json.dumps(_record(day, ratio)) + "\n")
    rows = (table.Row("w", "c", "theirs", "this", "that"), table.Row("w", "c", "nobody", "no", "no"))
    text = table.speed_table(table.read_results(tmp_path), rows)
    assert "| this | 1,230 videos/s | that | **4.00x** | 3.90 to 4.10 | 2x |" in text.splitlines()
    assert "| no |" not in text
    assert "Intel Xeon, 2 cores" in text
    assert table.speed_table({}, rows) == "Nothing has been measured yet."


def test_table_of_tiny_sizes_and_of_other_precisions(tmp_path: Path) -> None:
    table = load("table")
    quick, other = _record(3, 9.0) | {"quick": True}, _record(2, 4.0)
    other["comparisons"][0]["facts"] = {"computed in": "fp32"}
    (tmp_path / "all.jsonl").write_text(json.dumps(quick) + "\n" + json.dumps(other) + "\n")
    text = table.speed_table(table.read_results(tmp_path), (table.Row("w", "c", "theirs", "this", "that"),))
    assert "| this (computed in fp32: faster on that CPU) | 1,230 videos/s | that | **4.00x** |" in text


def test_rows_of_the_table_are_comparisons_that_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the benchmarks with a fixed list of them name them."""
    monkeypatch.syspath_prepend(FOLDER)
    monkeypatch.setenv("THP_MEM_ALLOC_ENABLE", "1")  # which one of them sets
    table = load("table")
    named = {(row.what, row.comparison, row.other) for row in table.ROWS}
    for what in ("inference", "training"):
        module = load(what)
        for precision in module._WANTED:
            for size in (32, 80):
                assert (what, f"{what} {precision}, batch {size}", module._EQUATIONS) in named


def _record(day: int, ratio: float) -> dict[str, Any]:
    timings = {"ours": {"per_second": 1234.0}, "theirs": {"per_second": 1234.0 / ratio}}
    ratios = {"theirs": {"ratio": ratio, "quartiles": [ratio - 0.1, ratio + 0.1], "wanted": 2.0}}
    comparison = {"name": "c", "unit": "videos", "timings": timings, "ratios": ratios, "facts": {}}
    environment = {"cpu": "Intel(R) Xeon", "cores": 2}
    return {"what": "w", "date": f"2030-01-0{day}", "environment": environment, "comparisons": [comparison]}
