"""A report as one HTML page that needs nothing beside it: no network, no files, no other fonts.

Names of labels, videos and files come from outside: every one is escaped, and the page allows itself no
address.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from importlib.resources import files
from typing import Any

import numpy as np

from nextvlad.report_charts import Series, Spot, axis_over, line_chart, reliability_chart
from nextvlad.report_findings import Findings
from nextvlad.report_labels import confusions_section, labels_section
from nextvlad.report_mistakes import Example
from nextvlad.report_numbers import PRIOR_POSITIVES, Reliability
from nextvlad.report_parts import card, cell, decimal, small

_LISTED_NAMES = 6
_MOST = 1e100  # of what is drawn
_METRICS = {
    "gap": ("GAP", "orange"),
    "hit_at_one": ("Hit@1", "blue"),
    "perr": ("PERR", "green"),
    "map": ("mAP", "purple"),
}


@dataclass(frozen=True, kw_only=True)
class About:
    """What a report is about.

    Attributes:
        title: of the page.
        facts: (name, value) pairs for its head.
        notes: remarks that the reader should see first.
        thresholds: what became of the thresholds: where they were saved, or how to save them.
        rows: the run's metrics.jsonl, as `nextvlad.plots.read_metrics`; empty for a checkpoint without.
        pictures: JPEG of a video, by its id.
    """

    title: str
    facts: Sequence[tuple[str, str]]
    notes: Sequence[str]
    thresholds: str
    rows: Sequence[dict[str, Any]] = ()
    pictures: Mapping[str, bytes] = field(default_factory=dict)


def page(found: Findings, about: About) -> str:
    """The whole HTML document."""
    sections = [
        ("training", "Training", _training(about.rows)),
        ("labels", "Labels", labels_section(found)),
        ("confusions", "Confusions", confusions_section(found)),
        ("calibration", "Calibration", _calibration(found)),
        ("thresholds", "Thresholds", _thresholds(found, about.thresholds)),
        ("examples", "Examples", _examples(found, about.pictures)),
    ]
    sections = [section for section in sections if section[2]]
    links = "".join(f'<a href="#{anchor}">{name}</a>' for anchor, name, _ in sections)
    facts = " &middot; ".join(f"{escape(name)} {escape(value)}" for name, value in about.facts)
    notes = "".join(f'<div class="note">{escape(note)}</div>' for note in about.notes)
    body = "".join(
        f'<section id="{anchor}"><h2>{name}</h2>{text}</section>' for anchor, name, text in sections
    )
    style, script = (
        (files("nextvlad") / f"report_page.{kind}").read_text(encoding="utf-8") for kind in ("css", "js")
    )
    policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(about.title)}</title><style>{style}</style></head><body><main>"
        f'<h1>{escape(about.title)}</h1><div class="soft">{facts}</div>{_tiles(found)}{notes}'
        f"<nav>{links}</nav>{body}<footer>Made by nextvlad report. The numbers behind this page are in "
        "report.json.</footer>"
        f"</main><script>{script}</script></body></html>\n"
    )


def _tiles(found: Findings) -> str:
    metrics = found.metrics
    shown = [
        (f"{metrics['num_videos']:,}", "videos"),
        (f"{len(found.seen_labels):,}", f"of {len(found.labels):,} labels occur"),
        (decimal(metrics["gap"]), f"GAP@{found.top_k}"),
        (decimal(metrics["map"]), "mAP"),
        (decimal(metrics["hit_at_one"]), "Hit@1"),
        (decimal(metrics["perr"]), "PERR"),
        (decimal(found.macro_f1()), "F1 of labels"),
        (decimal(found.reliability["best"].expected_error()), "calibration error"),
    ]
    return (
        '<div class="tiles">'
        + "".join(f'<div class="tile"><b>{value}</b><span>{name}</span></div>' for value, name in shown)
        + "</div>"
    )


def _training(rows: Sequence[dict[str, Any]]) -> str:
    train = [row for row in rows if row["kind"] == "train"]
    valid = [row for row in rows if row["kind"] == "valid"]
    if not train and not valid:
        return ""
    losses, checked = _curve(train, "loss"), _curve(valid, "loss")
    smooth = _smoothed(losses)
    x = axis_over("videos seen", [p[0] for p in [*losses, *checked]], from_zero=True)
    values = [p[1] for p in [*losses, *checked]]
    low, high = min(values, default=1.0), max(values, default=1.0)
    series = [
        Series(name="training, each row", points=losses, colour="blue", faint=smooth is not losses),
        *([Series(name="training", points=smooth, colour="blue")] if smooth is not losses else []),
        Series(name="validation", points=checked, colour="orange"),
    ]
    if smooth is losses:
        series[0] = Series(name="training", points=losses, colour="blue")
    loss = axis_over("loss (nats a video)", values, log=low > 0 and high > 20 * low)
    chart = line_chart("Loss over videos seen", x, loss, [one for one in series if one.points])
    left, right = [card("Loss", chart)], []
    if len(rates := _curve(train, "lr")) > 1:
        y = axis_over("", [p[1] for p in rates], from_zero=True)
        line = Series(name="learning rate", points=rates, colour="grey")
        left.append(card("Learning rate", line_chart("Learning rate", x, y, [line], height=190)))
    metrics = [
        Series(name=_last_and_best(name, points), points=points, colour=colour)
        for key, (name, colour) in _METRICS.items()
        if (points := _curve(valid, key))
    ]
    if metrics:
        y = axis_over("validation metrics", [p[1] for one in metrics for p in one.points], from_zero=True)
        chart = line_chart("Validation metrics over videos seen", x, y, metrics, height=518)
        right.append(card("Validation", chart))
    columns = (f'<div class="stack">{"".join(cards)}</div>' for cards in (left, right) if cards)
    return f'<div class="pair">{"".join(columns)}</div>'


def _curve(rows: Sequence[dict[str, Any]], key: str) -> list[tuple[float, float]]:
    """(videos seen, value) of the rows that have a finite value, and none that no axis could hold."""
    pairs = ((row.get("examples"), row.get(key)) for row in rows)
    return [
        (float(seen), float(value))
        for seen, value in pairs
        if isinstance(seen, int | float) and isinstance(value, int | float)
        if abs(seen) < _MOST and abs(value) < _MOST
    ]


def _smoothed(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Mean over a fortieth of the run, centred; the very list where there are few."""
    if len(points) <= 60:
        return points
    half = len(points) // 80 or 1
    values = np.array([value for _, value in points])
    return [
        (seen, float(values[max(0, i - half) : i + half + 1].mean())) for i, (seen, _) in enumerate(points)
    ]


def _last_and_best(name: str, points: Sequence[tuple[float, float]]) -> str:
    last, best = f"{points[-1][1]:.3f}", f"{max(value for _, value in points):.3f}"
    return f"{name} {last}" + ("" if last == best else f", best {best}")


def _calibration(found: Findings) -> str:
    kept = f"{found.top_k} best labels" if found.top_k < len(found.labels) else "all labels"
    curves = [("best label of a video", "blue", _spots(found.reliability["best"]))]
    if found.top_k > 1:
        curves.append((f"{kept} of a video", "orange", _spots(found.reliability["kept"])))
    errors = {name: curve.expected_error() for name, curve in found.reliability.items()}
    chart = reliability_chart("Reliability: share right over score", curves)
    kept_error = f"<tr><td>{kept} of a video</td>{cell(None, decimal(errors['kept'], 4))}</tr>"
    all_pairs = f"<tr><td>all pairs of video and label</td>{cell(None, decimal(errors['all'], 4))}</tr>"
    return (
        "<p>Are scores probabilities? Of the labels scored about 0.7, seven in ten should be right: then the "
        "curve lies on the diagonal. Below it the model is too sure, above it not sure enough.</p>"
        f'<div class="pair">{card("Reliability", chart)}'
        + card(
            "Expected calibration error",
            "<table><thead><tr><th>over</th><th class='n'>error</th></tr></thead>"
            f"<tr><td>best label of a video</td>{cell(None, decimal(errors['best'], 4))}</tr>"
            f"{kept_error if 1 < found.top_k < len(found.labels) else ''}{all_pairs}</table>"
            '<p class="soft" style="margin-top:10px">Pairs of a video and a label are put into 20 bins of '
            "equal width by their score. The error is the mean over pairs of the distance between the mean "
            "score of their bin and the share of it that is right. Over all pairs it is small for any model "
            "of many labels, since nearly all scores are near 0. Whiskers: where the share lies with 95 % "
            "(Wilson), if videos are independent.</p>",
        )
        + "</div>"
    )


def _spots(curve: Reliability) -> list[Spot]:
    columns = (curve.mean_scores(), curve.shares(), *curve.intervals(), curve.counts)
    rows = zip(*(column.tolist() for column in columns), strict=True)
    return [Spot(*row) for row in rows if row[-1]]


def _thresholds(found: Findings, outcome: str) -> str:
    return (
        "<p>A label is set on a video whose score reaches the label's threshold. Chosen is what gives the "
        f"best F1 on this data, counted with {PRIOR_POSITIVES:g} positives of an average label besides, so "
        "that a label with few videos leans on what is best for all together, and one with hundreds on its "
        f"own. With these thresholds F1 is {found.macro_f1():.4f} in the mean over labels that occur, and "
        f"{found.micro_f1():.4f} over all pairs pooled; with one threshold for all, "
        f"{found.common.threshold:.3f}, the latter is {found.common.f1:.4f}. These are figures for the "
        f"videos they were chosen on; on others they are lower.</p><p>{escape(outcome)}</p>"
    )


def _examples(found: Findings, pictures: Mapping[str, bytes]) -> str:
    groups = [
        (
            "Surely right",
            "The best label is right, highest score first; two videos a label at most.",
            found.right,
        ),
        ("Surely wrong", "The best label is wrong, highest score first; two a label at most.", found.wrong),
        (
            "Missed",
            "A true label far down: of the labels that the model knows (AP not below the median), the video "
            "ranked lowest for each. Often the video or its label is at fault.",
            found.missed,
        ),
    ]
    return "".join(
        f'<h3>{name}</h3><p class="soft">{text}</p><div class="clips">'
        f"{''.join(_clips(examples, found, pictures))}</div>"
        for name, text, examples in groups
        if examples
    )


def _clips(examples: Sequence[Example], found: Findings, pictures: Mapping[str, bytes]) -> Iterator[str]:
    names = [label.name for label in found.labels]
    for example in examples:
        best = "".join(
            f'<li class="{"yes" if label in example.labels else "no"}"><span>{escape(names[label])}</span>'
            f"<b>{score:.3f}</b></li>"
            for label, score in example.best
        )
        listed = ", ".join(names[label] for label in example.labels[:_LISTED_NAMES])
        more = f" and {len(example.labels) - _LISTED_NAMES} more" * (len(example.labels) > _LISTED_NAMES)
        why = ""
        if example.ranked_above is not None:
            why = (
                f'<div class="why"><span class="yes">{escape(names[example.label])}</span> scored '
                f"{small(example.score)}: {example.ranked_above:.1%} of the videos without it rank "
                "above</div>"
            )
        jpeg = pictures.get(example.video_id)
        data = base64.b64encode(jpeg).decode("ascii") if jpeg else ""
        image = f'<img alt="" src="data:image/jpeg;base64,{data}">' if jpeg else ""
        yield (
            f'<div class="card clip">{image}<div><div class="id">{escape(example.video_id)}</div>'
            f'<ul>{best}</ul><div class="why">has: {escape(listed + more)}</div>{why}</div></div>'
        )
