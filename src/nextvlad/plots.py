"""Pictures of a training run and of its mistakes: .png, .svg or .pdf, by suffix.

matplotlib is an extra (`pip install 'nextvlad[plot]'`), imported when a picture is asked for. Figures
are made without pyplot: no window, no state left behind, safe in threads and on machines without a screen.
"""

from __future__ import annotations

import importlib.util
import io
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nextvlad.errors import DataError, OutputError, UsageError
from nextvlad.files import NewFile, why

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row = dict[str, Any]

TRAINING, VALIDATION, QUIET = "#3465a4", "#d1651a", "#8a8f98"
METRICS = {
    "gap": ("GAP", "#d1651a"),
    "hit_at_one": ("Hit@1", "#3465a4"),
    "perr": ("PERR", "#5a8f29"),
    "map": ("mAP", "#8f4ba8"),
}
_DRAWN = {"examples", "loss", "lr", *METRICS}
SUFFIXES = (".png", ".svg", ".pdf")
MOST_WRITTEN_CLASSES = 20
"""Above so many classes a confusion matrix shows colours without numbers, and not every name."""


def training_curves(metrics_jsonl: Path, out: Path) -> None:
    """Loss, validation metrics and learning rate over the videos seen, one picture.

    Args:
        metrics_jsonl: the `metrics.jsonl` of a run: rows of kind "train" (step, examples, epoch, loss, lr)
            and of kind "valid" (step, examples, gap, hit_at_one, perr, map, loss). Where a run was resumed
            and went over the same steps again, the later row counts.
        out: the picture, .png, .svg or .pdf.

    Raises:
        UsageError: no such file, no matplotlib, or another suffix.
        DataError: a line that is not a row, or no row of training at all.
        OutputError: the picture cannot be written.
    """
    figure_of = _load_matplotlib(out)
    rows = read_metrics(metrics_jsonl)
    train = [row for row in rows if row["kind"] == "train"]
    valid = [row for row in rows if row["kind"] == "valid"]
    if not train:
        raise DataError(f"{metrics_jsonl}: no row of training yet; train for at least log_every steps first.")
    panels: list[tuple[Callable[[Axes, list[Row], list[Row]], None], float]] = [(_draw_loss, 3.0)]
    if valid:
        panels.append((_draw_validation, 3.0))
    panels.append((_draw_learning_rate, 1.6))

    heights = [height for _, height in panels]
    figure = figure_of(8.0, sum(heights) + 0.6)
    grid = figure.subplots(len(panels), 1, sharex=True, squeeze=False, height_ratios=heights)
    for (draw, _), axes in zip(panels, grid[:, 0], strict=True):
        _tidy(axes)
        draw(axes, train, valid)
    _name_the_x_axis(grid[0, 0], grid[-1, 0], train)
    _save(figure, out)


def confusion_matrix(counts: ArrayLike, names: Sequence[str], out: Path) -> None:
    """Which class was taken for which: true classes down, predicted across, shaded by share of the row.

    Args:
        counts: [C, C] int, 0 or more; counts[t, p] videos of class t whose best class was p.
        names: C class names.
        out: the picture, .png, .svg or .pdf.

    Raises:
        ValueError: `counts` is not square, or there are not C names.
        UsageError: no matplotlib, or another suffix.
        OutputError: the picture cannot be written.
    """
    matrix = np.asarray(counts)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or matrix.shape[0] != len(names):
        raise ValueError(
            f"counts of shape {matrix.shape} with {len(names)} names: wanted [C, C] with C names"
        )
    figure_of = _load_matplotlib(out)
    side = float(np.clip(2.6 + 0.5 * len(names), 4.5, 12.0))
    figure = figure_of(side + 0.8, side)
    axes = figure.subplots()
    totals = matrix.sum(axis=1, keepdims=True)
    shares = matrix / np.maximum(totals, 1)
    image = axes.imshow(shares, cmap="Blues", vmin=0.0, vmax=1.0)
    figure.colorbar(image, ax=axes, label="share of the true class", shrink=0.8)

    step = max(1, -(-len(names) // 40))
    ticks = range(0, len(names), step)
    shown = [names[index] for index in ticks]
    axes.set_xticks(ticks, labels=shown, rotation=45, ha="right", rotation_mode="anchor", parse_math=False)
    axes.set_yticks(ticks, labels=shown, parse_math=False)
    axes.tick_params(length=0)
    axes.spines[:].set_color("#c9ccd1")
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    right, videos = int(np.trace(matrix)), int(totals.sum())
    axes.set_title(f"{right:,} of {videos:,} right ({right / max(videos, 1):.1%})", loc="left")
    if len(names) <= MOST_WRITTEN_CLASSES:
        _write_counts(axes, matrix, shares)
    _save(figure, out)


def label_precision(num_positives: ArrayLike, precisions: ArrayLike, out: Path) -> None:
    """Average precision of each label over the number of videos that have it, one point each.

    Args:
        num_positives: [n] videos of each label, 1 or more.
        precisions: [n] average precision of each, in [0, 1].
        out: the picture, .png, .svg or .pdf.

    Raises:
        UsageError: no matplotlib, or another suffix.
        OutputError: the picture cannot be written.
    """
    figure_of = _load_matplotlib(out)
    counts, values = np.asarray(num_positives), np.asarray(precisions)
    figure = figure_of(8.0, 5.0)
    axes = figure.subplots()
    _tidy(axes)
    size = 30 if len(counts) <= 200 else 14
    axes.scatter(counts, values, s=size, color=TRAINING, alpha=0.55, linewidths=0)
    axes.set_xscale("log")
    axes.set_ylim(-0.02, 1.02)
    axes.set_xlabel("videos that have the label")
    axes.set_ylabel("average precision")
    axes.set_title(f"{len(counts):,} labels, mAP {values.mean():.4f}", loc="left")
    _save(figure, out)


def reliability(curves: Mapping[str, tuple[ArrayLike, ArrayLike, ArrayLike]], out: Path) -> None:
    """Share right over score, and how many pairs of a video and a label each bin holds.

    Args:
        curves: one or two, by name: [n] mean score of each bin, [n] share that is right, [n] pairs; empty
            bins have NaN and 0.
        out: the picture, .png, .svg or .pdf.

    Raises:
        UsageError: no matplotlib, or another suffix.
        OutputError: the picture cannot be written.
    """
    figure_of = _load_matplotlib(out)
    figure = figure_of(6.4, 7.4)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[3.2, 1.0])
    above.plot([0, 1], [0, 1], color=QUIET, linestyle="--", linewidth=1.0)
    for (name, curve), colour in zip(curves.items(), (TRAINING, VALIDATION), strict=False):
        scores, shares, counts = (np.asarray(part, np.float64) for part in curve)
        some = counts > 0
        above.plot(scores[some], shares[some], color=colour, marker="o", markersize=4, label=name)
        below.plot(scores[some], counts[some], color=colour, marker="o", markersize=4)
    for axes in (above, below):
        _tidy(axes)
    above.set_ylabel("share right")
    above.legend(frameon=False, loc="upper left")
    below.set_yscale("log")
    below.set_ylabel("pairs")
    below.set_xlabel("score")
    below.set_xlim(-0.02, 1.02)
    _save(figure, out)


def can_draw() -> bool:
    """Whether matplotlib is installed; it is not loaded for that."""
    return "matplotlib" in sys.modules or importlib.util.find_spec("matplotlib") is not None


def read_metrics(path: Path) -> list[Row]:
    """The rows of a `metrics.jsonl`, one a kind and step, ordered by step.

    A last line cut short by a killed run is left out. Raises UsageError and DataError as
    `training_curves`.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror or error}).") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not text ({error}); wanted the metrics.jsonl of a training run.") from error
    rows: dict[tuple[str, int], Row] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            for key in _DRAWN & row.keys():
                row[key] = None if row[key] is None else float(row[key])
            rows[str(row["kind"]), int(row["step"])] = row
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            if number == len(lines):  # no newline after it: it was being written when the run was killed
                break
            raise DataError(
                f"{path}, line {number}: got {line[:60]!r}, wanted a JSON object with kind, step and "
                "numbers. Remove the line, or name the metrics.jsonl of a training run."
            ) from error
    return sorted(rows.values(), key=lambda row: int(row["step"]))


def _load_matplotlib(out: Path) -> Callable[[float, float], Figure]:
    """A maker of empty figures, width and height in inches; refuses what could not be saved at the end."""
    if out.suffix.lower() not in SUFFIXES:
        raise UsageError(
            f"{out}: cannot draw to {out.suffix or 'a name without suffix'}; wanted {', '.join(SUFFIXES)}."
        )
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UsageError(f"{out}: drawing needs matplotlib: pip install 'nextvlad[plot]'") from error

    def figure_of(width: float, height: float) -> Figure:
        return Figure(figsize=(width, height), layout="constrained", facecolor="white")

    return figure_of


def _save(figure: Figure, out: Path) -> None:
    picture = io.BytesIO()
    figure.savefig(picture, format=out.suffix[1:].lower(), dpi=130)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{out}: cannot be written ({why(error)}).") from error
    with NewFile(out) as file:
        file.write(picture.getvalue())


def _tidy(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e3e5e8", linewidth=0.8)
    axes.set_axisbelow(True)


def _column(rows: list[Row], key: str) -> NDArray[np.float64]:
    """One value a row; NaN, which draws nothing, where a row has none."""
    return np.array([np.nan if row.get(key) is None else float(row[key]) for row in rows])


def _line(axes: Axes, x: NDArray[np.float64], y: NDArray[np.float64], colour: str, label: str | None) -> None:
    """With points where there are few: a single one would draw nothing as a line."""
    marker = "o" if len(x) <= 40 else ""
    axes.plot(x, y, color=colour, linewidth=1.8, marker=marker, markersize=4, label=label)


def _draw_loss(axes: Axes, train: list[Row], valid: list[Row]) -> None:
    seen, loss = _column(train, "examples"), _column(train, "loss")
    if len(train) > 60:
        axes.plot(seen, loss, color=TRAINING, linewidth=1.0, alpha=0.3)
        _line(axes, seen, _smooth(loss), TRAINING, "training, smoothed")
    else:
        _line(axes, seen, loss, TRAINING, "training")
    checked = _column(valid, "loss")
    if np.isfinite(checked).any():
        _line(axes, _column(valid, "examples"), checked, VALIDATION, "validation")
    drawn = np.concatenate([loss, checked])
    drawn = drawn[np.isfinite(drawn)]
    if drawn.size and drawn.min() > 0 and drawn.max() > 20 * drawn.min():
        _log_scale(axes)  # the first steps would flatten all the rest
    axes.set_ylabel("loss (nats a video)")
    axes.legend(frameon=False, loc="upper right")


def _draw_validation(axes: Axes, train: list[Row], valid: list[Row]) -> None:
    seen = _column(valid, "examples")
    for key, (name, colour) in METRICS.items():
        values = _column(valid, key)
        if np.isfinite(values).any():
            last, best = f"{values[np.isfinite(values)][-1]:.3f}", f"{np.nanmax(values):.3f}"
            _line(axes, seen, values, colour, f"{name} {last}" + ("" if last == best else f", best {best}"))
    axes.set_ylabel("validation metrics")
    if axes.lines:
        # Above the panel: inside, there is no corner that the curves always leave free.
        axes.legend(
            frameon=False, loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=4, fontsize=9, borderpad=0.2
        )


def _draw_learning_rate(axes: Axes, train: list[Row], valid: list[Row]) -> None:
    _line(axes, _column(train, "examples"), _column(train, "lr"), QUIET, None)
    axes.set_ylim(bottom=0.0)
    axes.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
    axes.set_ylabel("learning rate")


def _log_scale(axes: Axes) -> None:
    """Powers of ten with 2 and 5 between them, written as plain numbers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _name_the_x_axis(top: Axes, bottom: Axes, train: list[Row]) -> None:
    """Videos below; epochs above where the rows tell them."""
    from matplotlib.ticker import EngFormatter

    bottom.set_xlabel("videos seen")
    bottom.set_xlim(left=0)
    bottom.xaxis.set_major_formatter(EngFormatter(sep=" "))
    epoch, seen = float(train[-1].get("epoch") or 0.0), float(train[-1]["examples"])
    if epoch > 0 and seen > 0:
        a_epoch = seen / epoch
        above = top.secondary_xaxis(
            "top", functions=(lambda x: np.asarray(x) / a_epoch, lambda x: np.asarray(x) * a_epoch)
        )
        above.set_xlabel("epochs")
        above.spines["top"].set_visible(False)


def _smooth(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean over a fortieth of the run, centred, shorter towards the ends; gaps are left out."""
    half = max(1, len(values) // 80)
    windows = (values[max(0, i - half) : i + half + 1] for i in range(len(values)))
    return np.array([np.nanmean(w) if np.isfinite(w).any() else np.nan for w in windows])


def _write_counts(axes: Axes, matrix: NDArray[Any], shares: NDArray[np.float64]) -> None:
    for (row, column), count in np.ndenumerate(matrix):
        if count:
            colour = "white" if shares[row, column] > 0.5 else "#20242a"
            axes.text(column, row, f"{count:,}", ha="center", va="center", color=colour, fontsize=9)
