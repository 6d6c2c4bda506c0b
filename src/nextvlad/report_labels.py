"""The sections of a report about labels: their average precision, and which are taken for which."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np

from nextvlad.report_charts import Axis, axis_over, scatter_chart, short
from nextvlad.report_findings import Findings, LabelFindings
from nextvlad.report_mistakes import Confusion
from nextvlad.report_parts import card, cell, decimal, meter

LISTED_LABELS = 5000
"""Rows of the table of labels; more make a page slow."""

FEW_POSITIVES = 5
"""Below so many videos a label is not named among the worst or the best: its AP is mostly chance."""

_EXTREME_LABELS = 12


def labels_section(found: Findings) -> str:
    """Average precision: over support, the worst and the best, and the table of all labels."""
    seen = found.seen_labels
    mean = float(np.mean([label.prevalence for label in seen]))
    points = [
        (
            float(label.num_positives),
            label.average_precision or 0.0,
            f"{label.name}: AP {decimal(label.average_precision)}, {label.num_positives:,} videos",
        )
        for label in seen
    ]
    chart = scatter_chart(
        "Average precision over videos",
        axis_over("videos that have the label", [p[0] for p in points], log=True),
        Axis("average precision", 0.0, 1.0, write=short),
        points,
    )
    judged = [label for label in seen if label.num_positives >= FEW_POSITIVES]
    if len(judged) < _EXTREME_LABELS:
        judged = seen
    ranked = sorted(judged, key=lambda label: (label.average_precision or 0.0, label.index))
    count = min(_EXTREME_LABELS, (len(ranked) + 1) // 2)
    above = "" if judged is seen else f", of those with {FEW_POSITIVES} videos or more"
    return (
        "<p>Average precision (AP) of a label: all videos ranked by its score, the precision at each video "
        "that has it, in the mean. 1 is perfect; a random order gives the share of the videos that have the "
        f"label, its <em>baseline</em>, {mean:.4f} in the mean over labels. The mean AP is mAP, "
        f"{found.metrics['map']:.4f}.</p>"
        f'<div class="pair"><div class="stack">{card("AP and number of videos", chart)}'
        f"{card(f'Best labels{above}', _extremes(ranked[::-1][:count], found, 'good'))}</div>"
        f"{card(f'Worst labels{above}', _extremes(ranked[:count], found, 'bad'))}</div>"
        f"{_label_table(found)}"
    )


def _extremes(labels: Sequence[LabelFindings], found: Findings, kind: str) -> str:
    rows = "".join(
        f"<tr><td>{escape(label.name)}{_taken(label, found) if kind == 'bad' else ''}</td>"
        f'<td class="n">{meter(label.average_precision or 0.0, kind)}{decimal(label.average_precision)}'
        "</td>"
        f'<td class="n">{label.num_positives:,}</td></tr>'
        for label in labels
    )
    return (
        f'<table><thead><tr><th>label</th><th class="n">AP</th><th class="n">videos</th></tr></thead>{rows}'
        "</table>"
    )


def _taken(label: LabelFindings, found: Findings) -> str:
    names = ", ".join(found.labels[index].name for index, _ in label.taken_for[:2])
    return f'<div class="soft">instead: {escape(names)}</div>' if names else ""


def _label_table(found: Findings) -> str:
    labels = sorted(found.labels, key=lambda label: (-label.num_positives, label.index))
    shown = labels[:LISTED_LABELS]
    left = f" The {len(labels) - len(shown):,} rarest are in report.json only." if labels != shown else ""
    heads = [
        ("label", "", "The label"),
        ("videos", "n", "Videos of this data that have it"),
        ("AP", "n", "Average precision"),
        ("baseline", "n", "Share of the videos that have it: the AP of a random order"),
        ("threshold", "n", "The label is set from this score on"),
        ("precision", "n", "Of the videos given the label at its threshold, the share that has it"),
        ("recall", "n", "Of the videos that have the label, the share given it at its threshold"),
        ("F1", "n", "Harmonic mean of precision and recall"),
        ("missed", "n", "Videos with n labels, this among them, where it is not among the n best"),
        ("instead", "", "What stood among the n best then, most often"),
    ]
    rows = "".join(_label_row(label, found) for label in shown)
    return (
        "<h3>All labels</h3>"
        '<div class="card"><div class="tools"><input type="search" placeholder="find a label" '
        'aria-label="find a label" data-filters="all-labels" data-counts="num-shown">'
        f'<span class="soft" id="num-shown">{len(shown):,} of {len(shown):,}</span>'
        f'<span class="soft">A click on a heading sorts.{left}</span></div>'
        f'<div class="scroll"><table class="sortable" id="all-labels"><thead>{_heads(heads)}</thead>'
        f"<tbody>{rows}</tbody></table></div></div>"
    )


def _label_row(label: LabelFindings, found: Findings) -> str:
    cut, ap = label.cut, label.average_precision
    instead = ", ".join(f"{found.labels[index].name} ({count:,})" for index, count in label.taken_for)
    bar = "" if ap is None else meter(ap)
    return (
        f"<tr><td>{escape(label.name)}</td>{cell(label.num_positives, f'{label.num_positives:,}')}"
        f"{cell(ap, bar + decimal(ap))}{cell(label.prevalence, f'{label.prevalence:.4f}')}"
        f"{cell(cut.threshold, f'{cut.threshold:.3f}')}{cell(cut.precision, decimal(cut.precision))}"
        f"{cell(cut.recall, decimal(cut.recall))}{cell(cut.f1, decimal(cut.f1))}"
        f"{cell(label.num_missed, f'{label.num_missed:,}')}<td>{escape(instead)}</td></tr>"
    )


def confusions_section(found: Findings) -> str:
    """Which labels stand in the place of which: a matrix where it can be read, else the commonest pairs."""
    if found.matrix is not None:
        return (
            "<p>Each video has one label (down), and the model names one, its best (across). Shade: share of "
            f'the row.</p><div class="card wide">{_matrix(found)}</div>'
        )
    if not found.frequent:
        return "<p>None: every video's n labels are its n best.</p>"
    return (
        "<p>A video has n labels, and the model names its n best. A label of the video that is not among "
        "them is missed; one among them that the video does not have stands in its place. Each such pair "
        "counts one video. A label that is often named stands in the place of every other, so beside the "
        "most frequent pairs are those that are furthest from chance: <em>times chance</em> is the number of "
        "videos over what it would be if what is named did not depend on what is missed.</p>"
        f'<div class="pair">{card("Most frequent", _pairs(found.frequent, found))}'
        f"{card('Furthest from chance', _pairs(found.telling, found))}</div>"
    )


def _pairs(pairs: Sequence[Confusion], found: Findings) -> str:
    if not pairs:
        return '<p class="soft">No pair in enough videos to tell.</p>'
    rows = "".join(
        f"<tr><td>{escape(found.labels[pair.missed].name)}</td><td>{escape(found.labels[pair.taken].name)}</td>"
        f"{cell(pair.videos, f'{pair.videos:,}')}"
        f"{cell(share, f'{share:.0%}')}{cell(pair.times_chance, f'{pair.times_chance:.1f}')}</tr>"
        for pair in pairs
        for share in [pair.videos / found.labels[pair.missed].num_positives]
    )
    heads = [
        ("missed", "", "A label of the video"),
        ("named instead", "", "A label that the video does not have"),
        ("videos", "n", "How many"),
        ("share", "n", "Of the videos that have the missed label"),
        ("times chance", "n", "Over what it would be if the one did not depend on the other"),
    ]
    table = f'<table class="sortable"><thead>{_heads(heads)}</thead><tbody>{rows}</tbody></table>'
    return f'<div class="scroll">{table}</div>'


def _heads(heads: Sequence[tuple[str, str, str]]) -> str:
    """A row of headings: name, class, and what the pointer shows."""
    cells = (
        f'<th class="{kind}" title="{escape(text)}" scope="col">{name}</th>' for name, kind, text in heads
    )
    return f"<tr>{''.join(cells)}</tr>"


def _matrix(found: Findings) -> str:
    if found.matrix is None:
        return ""
    names = [label.name for label in found.labels]
    head = "".join(f"<th>{escape(name)}</th>" for name in names)
    body = []
    for index, row in enumerate(found.matrix):
        total = max(int(row.sum()), 1)
        cells = "".join(
            f'<td class="{"right" if other == index else ""}{" strong" if count > 0.6 * total else ""}" '
            f'style="--share:{100 * count / total:.0f}">{f"{count:,}" if count else ""}</td>'
            for other, count in enumerate(row.tolist())
        )
        body.append(f"<tr><th>{escape(names[index])}</th>{cells}</tr>")
    return f'<table class="matrix"><tr><th></th>{head}</tr>{"".join(body)}</table>'
