"""Time and memory of a video against frames, clusters, classes and batch: linear where it should be.

One stream of 256 values, the rest as the paper's model but for what is varied. Each point is the training of
one batch (forward and backward) or its inference (a model put into inference), a video's share of it. Printed
for each: the exponent of a power law through the last three points, and how much of the variance a straight
line (a fixed cost and a cost a unit) explains. Frames and clusters should be 1 in time; classes less, until
they are most of the work; and a video should cost the same in any batch, which is 0. Memory is the peak of
the process beyond what it had before (Linux alone).

`--plot` draws the last results into benchmarks/results/scaling.png, and measures nothing.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import RESULTS, Comparison, compare, finish, parser

from nextvlad.batch_size import made_up_batch
from nextvlad.config import NeXtVLADConfig, StreamConfig
from nextvlad.data.batch import FrameBatch
from nextvlad.models import for_inference
from nextvlad.models.nextvlad import NeXtVLAD

_BASE = {"frames": 200, "clusters": 64, "classes": 2000, "batch": 32}
_POINTS = {
    "frames": [50, 100, 200, 400, 800],
    "clusters": [16, 32, 64, 128, 256],
    "classes": [500, 1000, 2000, 4000, 8000, 16000],
    "batch": [4, 8, 16, 32, 64, 128],
}
_EXPECTED = {"frames": 1.0, "clusters": 1.0, "classes": 1.0, "batch": 0.0}
_KINDS = ("training", "inference")
_M_MMAP_THRESHOLD = -3  # of glibc's mallopt


def main() -> None:
    options = _options()
    if options.plot:
        _plot(Path(options.out or RESULTS))
        return
    if options.threads:
        torch.set_num_threads(options.threads)
    if sys.platform == "linux":  # so that freed memory is given back at once, and the next peak is its own
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, 1 << 17)
    comparisons = [_along(axis, kind, options) for axis in _POINTS for kind in _KINDS]
    finish("scaling", comparisons, options)


def _options() -> argparse.Namespace:
    options = parser(__doc__, rounds=3)
    options.add_argument("--plot", action="store_true", help="draw the last results, measure nothing")
    given = options.parse_args()
    if given.quick:
        given.rounds, given.warmup = 1, 0
        _BASE.update(frames=6, clusters=4, classes=20, batch=4)
        for points in _POINTS.values():
            points[:] = [4, 8, 16]
    return given


def _along(axis: str, kind: str, options: argparse.Namespace) -> Comparison:
    """One axis; every point in turn, so that drift of the machine meets all alike."""
    runs = {str(value): _work(kind, **_BASE | {axis: value}) for value in _POINTS[axis]}
    memory = [_peak_bytes(run) / run() for run in runs.values()]  # a video's share
    found = compare(f"{kind}, {axis}", runs, unit="videos", rounds=options.rounds, warmup=options.warmup)
    sizes = np.array(_POINTS[axis], float)
    times = np.array([timing.median / timing.amount for timing in found.timings.values()])
    facts: dict[str, Any] = {
        "threads": torch.get_num_threads(),
        "seconds a video": times.tolist(),
        "time exponent": round(exponent(sizes, times), 3),
        "time, share explained by a line": round(line_explains(sizes, times), 4),
        "expected": _EXPECTED[axis],
        **{f"fixed {name}": value for name, value in _BASE.items() if name != axis},
    }
    if all(memory):
        facts |= {
            "bytes a video": [round(size) for size in memory],
            "memory exponent": round(exponent(sizes, np.array(memory)), 3),
        }
    return replace(found, facts=facts)


def _work(kind: str, *, frames: int, clusters: int, classes: int, batch: int) -> Callable[[], float]:
    stream = StreamConfig(name="rgb", size=256)
    config = NeXtVLADConfig(streams=(stream,), num_classes=classes, clusters=clusters)
    torch.manual_seed(0)
    model = NeXtVLAD(config)
    videos = made_up_batch(config.streams, classes, batch, frames)
    if kind == "training":
        return lambda: _train(model, videos)
    fast = for_inference(model.eval())

    def infer() -> float:
        with torch.inference_mode():
            torch.sigmoid(fast(videos))
        return videos.num_videos

    return infer


def _train(model: NeXtVLAD, batch: FrameBatch) -> float:
    model.zero_grad(set_to_none=False)  # gradients stay allocated: their memory is the model's, not a video's
    model.loss(batch, batch.labels.float()).backward()  # type: ignore[no-untyped-call]
    return batch.num_videos


def _peak_bytes(run: Callable[[], float]) -> float:
    """Memory at the peak of a run beyond that before; 0 where the system does not tell."""
    run()  # what is made once, such as gradients, is there before
    gc.collect()
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        before = _status("VmRSS")
        run()
        return max(_status("VmHWM") - before, 0)
    except OSError:
        return 0.0


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def exponent(sizes: np.ndarray[Any, Any], values: np.ndarray[Any, Any]) -> float:
    """Of the power law through the last three points.

    >>> round(exponent(np.array([1.0, 2.0, 4.0, 8.0]), np.array([9.0, 4.0, 16.0, 64.0])), 6)
    2.0
    """
    slope, _ = np.polyfit(np.log(sizes[-3:]), np.log(np.maximum(values[-3:], 1e-12)), 1)
    return float(slope)


def line_explains(sizes: np.ndarray[Any, Any], values: np.ndarray[Any, Any]) -> float:
    """Share of the variance that a straight line through all points explains, at most 1."""
    fitted = np.polyval(np.polyfit(sizes, values, 1), sizes)
    variance = float(((values - values.mean()) ** 2).sum())
    return 1.0 - float(((values - fitted) ** 2).sum()) / variance if variance else 1.0


def _plot(folder: Path) -> None:
    """benchmarks/results/scaling.png from the last result lines."""
    from matplotlib.figure import Figure

    lines = [line for path in folder.glob("scaling_*.jsonl") for line in path.read_text().splitlines()]
    if not lines:
        raise SystemExit(f"{folder}: no results of scaling.py; run it with --out first.")
    record = max(map(json.loads, lines), key=lambda record: str(record["date"]))
    found = {comparison["name"]: comparison for comparison in record["comparisons"]}
    figure = Figure(figsize=(11, 5.2), layout="constrained")
    axes = figure.subplots(2, len(_POINTS), sharex="col")
    for column, axis in enumerate(_POINTS):
        for kind in _KINDS:
            comparison = found[f"{kind}, {axis}"]
            facts = comparison["facts"]
            sizes = [float(size) for size in comparison["timings"]]
            label = f"{kind} ({facts['time exponent']:.2f})"
            axes[0, column].loglog(sizes, np.array(facts["seconds a video"]) * 1e3, "o-", label=label)
            if "bytes a video" in facts:
                label = f"{kind} ({facts['memory exponent']:.2f})"
                axes[1, column].loglog(sizes, np.array(facts["bytes a video"]) / 1e6, "o-", label=label)
        for row in axes[:, column]:
            row.grid(alpha=0.3, which="both")
            if row.lines:
                row.legend(fontsize=8)
            row.set_xticks(_POINTS[axis], [str(size) for size in _POINTS[axis]], fontsize=8)
            row.set_xticks([], minor=True)
        axes[1, column].set_xlabel("videos in a batch" if axis == "batch" else axis)
    axes[0, 0].set_ylabel("ms a video")
    axes[1, 0].set_ylabel("MB a video")
    environment = record["environment"]
    figure.suptitle(
        "NeXtVLAD: time and memory of a video (exponents of the last points in brackets); "
        f"{environment['cpu']}, {environment.get('threads')} threads",
        fontsize=10,
    )
    place = folder / "scaling.png"
    figure.savefig(place, dpi=90)
    print(place)


if __name__ == "__main__":
    main()
