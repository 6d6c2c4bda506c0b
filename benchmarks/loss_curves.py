"""Does training in bfloat16 learn what training in float32 learns? Loss curves side by side.

    python benchmarks/loss_curves.py --train 'audioset/bal_train*' --valid 'audioset/eval*' --out

Not a matter of time. `nextvlad train` runs with the same seed, so on the same batches in the same order, in
float32 and in bfloat16, and again in float32 with other seeds: how far these are from the first says how far
two good runs are apart. The difference that bfloat16 makes should be small beside that.

A CPU without instructions for bfloat16 trains in float32 instead; here it has to convert, which is slow and
gives the same numbers. With `--out` the curves are drawn into loss_curves.png, too.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal
from unittest import mock

import numpy as np
from measure import RESULTS, finish
from numpy.typing import NDArray

from nextvlad.models import cpu
from nextvlad.recipes import find_recipe
from nextvlad.run_config import TrainConfig
from nextvlad.train import train

_METRICS = ("loss", "gap", "hit_at_one", "perr", "map")


@dataclass(frozen=True)
class Curve:
    """One run: mean training loss of every few steps, and the metrics at the end."""

    precision: str
    seed: int
    steps: list[int]
    losses: list[float]
    metrics: dict[str, float]


def main() -> None:
    given = _options()
    settings = _settings(given)
    with tempfile.TemporaryDirectory() as folder, mock.patch.object(cpu, "multiplies", return_value=True):
        runs = [("fp32", given.seeds[0]), ("bf16", given.seeds[0])]
        runs += [("fp32", seed) for seed in given.seeds[1:]]
        curves = [
            _run(settings, precision, seed, Path(folder) / str(number))
            for number, (precision, seed) in enumerate(runs)
        ]
    reference, half, *others = curves
    _print(reference, half, others)
    found = {
        "epochs": given.epochs,
        "bf16_to_fp32": _apart(half, reference),
        "seeds_to_first": [_apart(other, reference) for other in others],
        "runs": [vars(curve) for curve in curves],
    }
    finish("loss_curves", [], given, found)
    if given.out:
        _draw(reference, half, others, Path(given.out) / "loss_curves.png")


def _options() -> argparse.Namespace:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--train", nargs="+", required=True, metavar="FILES")
    options.add_argument("--valid", nargs="+", required=True, metavar="FILES")
    options.add_argument("--recipe", default="audioset", help="name or .json file (default %(default)s)")
    options.add_argument("--epochs", type=int, default=1, help="(default %(default)s)")
    options.add_argument("--every", type=int, default=5, help="steps of one mean (default %(default)s)")
    options.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="the first for both")
    options.add_argument("--threads", type=int, help="of arithmetic")
    options.add_argument("--out", nargs="?", const=str(RESULTS), metavar="FOLDER", help="keep line and plot")
    return options.parse_args()


def _settings(given: argparse.Namespace) -> TrainConfig:
    config = find_recipe(given.recipe)
    data = replace(config.data, train=tuple(given.train), valid=tuple(given.valid), workers=1)
    return replace(
        config, data=data, epochs=given.epochs, eval_every=None, log_every=given.every, threads=given.threads
    )


def _run(settings: TrainConfig, precision: Literal["fp32", "bf16"], seed: int, folder: Path) -> Curve:
    result = train(replace(settings, precision=precision, seed=seed), folder)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    rows = [row for row in rows if row["kind"] == "train"]
    metrics = {name: result[name] for name in _METRICS if result.get(name) is not None}
    return Curve(precision, seed, [row["step"] for row in rows], [row["loss"] for row in rows], metrics)


def _apart(one: Curve, other: Curve) -> dict[str, Any]:
    """How far two runs are from each other: of the training loss, relative, and of the metrics."""
    difference = np.abs(_relative(one, other))
    return {
        "loss_mean": float(difference.mean()),
        "loss_largest": float(difference.max()),
        "metrics": {name: value - other.metrics[name] for name, value in one.metrics.items()},
    }


def _relative(one: Curve, other: Curve) -> NDArray[np.float64]:
    losses = np.array(other.losses)
    return (np.array(one.losses) - losses) / losses


def _print(reference: Curve, half: Curve, others: Sequence[Curve]) -> None:
    print(f"{'':26s}{'mean':>10s}{'largest':>10s}" + "".join(f"{name:>12s}" for name in reference.metrics))
    print(f"{_name(reference):46s}" + "".join(f"{value:12.4f}" for value in reference.metrics.values()))
    for curve in (half, *others):
        apart = _apart(curve, reference)
        print(
            f"{_name(curve) + ', difference':26s}{apart['loss_mean']:10.3%}{apart['loss_largest']:10.3%}"
            + "".join(f"{value:+12.4f}" for value in apart["metrics"].values())
        )


def _name(curve: Curve) -> str:
    return f"{curve.precision}, seed {curve.seed}"


def _draw(reference: Curve, half: Curve, others: Sequence[Curve], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for curve in others:
        left.plot(curve.steps, curve.losses, color="0.75", label=_name(curve))
        right.plot(curve.steps, 100 * _relative(curve, reference), color="0.75", label=_name(curve))
    left.plot(reference.steps, reference.losses, label=_name(reference), linewidth=2.5)
    left.plot(half.steps, half.losses, "--", label=_name(half))
    right.plot(half.steps, 100 * _relative(half, reference), "C1", label=_name(half))
    left.set(xlabel="step", ylabel="training loss", yscale="log", title="Loss while training")
    right.set(xlabel="step", ylabel="%", title=f"Difference from {_name(reference)}")
    for axes in (left, right):
        axes.legend()
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
