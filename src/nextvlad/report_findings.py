"""All that a report tells of a model on labelled videos, collected in one pass. NumPy only.

Kept meanwhile: what `MetricAccumulator` keeps (4 bytes a video and label, beyond 1 GiB in a temporary file),
counts of confusions, and a few examples a label. So 3,862 labels and a million videos take 15.4 GB of disk.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nextvlad.metrics import MetricAccumulator
from nextvlad.metrics.ranking import Keys, average_precision, best_classes, defined_mean
from nextvlad.progress import ProgressBar
from nextvlad.report_mistakes import Confusion, Confusions, Example, Examples
from nextvlad.report_numbers import Cut, Reliability, ScoreGrid, Thresholds

Ints = NDArray[np.int64]

SHOWN_EXAMPLES = 12
SHOWN_CONFUSIONS = 30
LARGEST_MATRIX = 30
"""Labels up to which a confusion matrix can be read."""


@dataclass(frozen=True)
class LabelFindings:
    """One label.

    Attributes:
        index: of the class.
        name: of the class.
        num_positives: videos that have it.
        prevalence: share of the videos that have it, which is the average precision of a random order.
        average_precision: untruncated; None without positives.
        cut: its threshold, and what that gives.
        num_missed: videos with n labels, this among them, where it is not among the n best.
        taken_for: (label, videos) most often among the n best then, wrongly.
    """

    index: int
    name: str
    num_positives: int
    prevalence: float
    average_precision: float | None
    cut: Cut
    num_missed: int
    taken_for: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Findings:
    """What `Collector` found.

    Attributes:
        metrics: as `MetricAccumulator.compute`.
        top_k: labels a video for GAP and for `reliability["kept"]`.
        labels: one a class, by index.
        common: the one threshold for all labels together that gives the best pooled F1.
        reliability: of the "best" label of each video, of its `top_k` best ("kept"), of "all" pairs.
        frequent: the confusions in the most videos, commonest first.
        telling: those that are furthest from chance.
        matrix: [C, C] counts, true down, named across; None where a video has several labels or none, or
            the labels are too many to be read.
        right: videos whose best label is right, surest first.
        wrong: videos whose best label is wrong, surest first.
        missed: videos of a label that the model knows, ranked lowest for it.
    """

    metrics: dict[str, Any]
    top_k: int
    labels: list[LabelFindings]
    common: Cut
    reliability: dict[str, Reliability]
    frequent: list[Confusion]
    telling: list[Confusion]
    matrix: Ints | None
    right: list[Example]
    wrong: list[Example]
    missed: list[Example]

    @property
    def seen_labels(self) -> list[LabelFindings]:
        """Those with a positive."""
        return [label for label in self.labels if label.num_positives]

    def micro_f1(self) -> float:
        """F1 of all pairs pooled, each label cut at its own threshold."""
        cuts = [label.cut for label in self.labels]
        hits, given = sum(cut.hits for cut in cuts), sum(cut.hits + cut.misses for cut in cuts)
        return 2 * hits / (given + sum(cut.num_positives for cut in cuts))

    def macro_f1(self) -> float:
        """Mean over the labels with a positive of the F1 at their own threshold."""
        return float(np.mean([label.cut.f1 for label in self.seen_labels]))

    def to_json(self) -> dict[str, Any]:
        """All of it as plain values; None where something is not defined."""
        curves = {name: _reliability_json(curve) for name, curve in self.reliability.items()}
        return {
            "metrics": self.metrics,
            "top_k": self.top_k,
            "macro_f1": self.macro_f1(),
            "micro_f1": self.micro_f1(),
            "common_threshold": _cut_json(self.common),
            "labels": [
                asdict(label) | {"cut": _cut_json(label.cut), "taken_for": list(label.taken_for)}
                for label in self.labels
            ],
            "reliability": curves,
            "confusions": {
                kind: [asdict(pair) for pair in getattr(self, kind)] for kind in ("frequent", "telling")
            },
            "examples": {
                kind: [asdict(example) for example in getattr(self, kind)]
                for kind in ("right", "wrong", "missed")
            },
        }


class Collector:
    """Takes scored batches, then says what was found.

    Args:
        num_labels: C.
        top_k: labels a video for GAP and the reliability curve, in 1..C.
    """

    def __init__(self, num_labels: int, top_k: int) -> None:
        self._metrics = MetricAccumulator(num_labels, top_k=top_k)
        self._top_k = top_k
        self._pooled = ScoreGrid()
        self._reliability = {name: Reliability() for name in ("best", "kept", "all")}
        self._confusions, self._examples = Confusions(num_labels), Examples()
        self._one_label_each = True

    @property
    def num_videos(self) -> int:
        """Videos seen."""
        return self._metrics.num_videos

    @property
    def num_positives(self) -> int:
        """Labels seen, of all videos."""
        return int(self._metrics.num_positives.sum())

    def add(
        self,
        video_ids: Sequence[str],
        scores: NDArray[np.float32],
        truth: NDArray[np.bool_],
        losses: NDArray[np.float64],
    ) -> None:
        """Counts a batch: B ids, scores [B, C] in [0, 1], labels [B, C], losses [B]."""
        self._metrics.update(scores, truth, losses=losses)
        self._pooled.add(scores, truth)
        best = best_classes(scores, self._top_k)
        kept, hits = np.take_along_axis(scores, best, axis=1), np.take_along_axis(truth, best, axis=1)
        self._reliability["best"].add(kept[:, :1], hits[:, :1])
        self._reliability["kept"].add(kept, hits)
        self._reliability["all"].add(scores, truth)
        self._confusions.add(scores, truth)
        self._examples.add(video_ids, scores, truth)
        self._one_label_each &= bool((truth.sum(axis=1) == 1).all())

    def _ranked(self) -> Iterator[Keys]:
        """The keys of each label, with a progress bar."""
        with ProgressBar("Ranking", total=len(self._metrics.num_positives), unit="labels") as bar:
            for keys in self._metrics.class_keys():
                yield keys
                bar.advance(1)

    def findings(self, names: Sequence[str]) -> Findings:
        """What was found; the collector takes no more videos then.

        Raises:
            ValueError: there was no positive at all.
        """
        thresholds = Thresholds(self._pooled)
        common = thresholds.common()
        positives = self._metrics.num_positives
        labels, lowest = [], []
        for index, keys in enumerate(self._ranked()):
            precision = average_precision(keys, int(positives[index]))
            labels.append(
                LabelFindings(
                    index=index,
                    name=names[index],
                    num_positives=int(positives[index]),
                    prevalence=int(positives[index]) / self.num_videos,
                    average_precision=None if math.isnan(precision) else precision,
                    cut=thresholds.best(keys),
                    num_missed=int(self._confusions.missed[index]),
                    taken_for=tuple(self._confusions.taken_for(index, 3)),
                )
            )
            lowest += [_placed(example, keys) for example in self._examples.missed(index)[:1]]
        self._metrics.leave_out_map()  # the same values, ranked a second time
        precisions = np.array([label.average_precision for label in labels], np.float64)
        small = len(labels) <= LARGEST_MATRIX and self._one_label_each
        return Findings(
            metrics=self._metrics.compute() | {"map": defined_mean(precisions)},
            top_k=self._top_k,
            labels=labels,
            common=common,
            reliability=self._reliability,
            frequent=self._confusions.most_frequent(SHOWN_CONFUSIONS),
            telling=self._confusions.most_telling(SHOWN_CONFUSIONS),
            matrix=self._confusions.matrix(positives) if small else None,
            right=self._examples.right(SHOWN_EXAMPLES),
            wrong=self._examples.wrong(SHOWN_EXAMPLES),
            missed=_most_missed(lowest, precisions),
        )


def _placed(example: Example, keys: Keys) -> Example:
    """The example, with the share of the videos without its label that stand above it; keys [N]."""
    others = (keys[(keys & 1) == 1] >> 1).view(np.float32)
    above = int(np.count_nonzero(others > np.float32(example.score)))
    return replace(example, ranked_above=above / max(len(others), 1))


def _most_missed(lowest: list[Example], precisions: NDArray[np.float64]) -> list[Example]:
    """The most surprising: of labels that do no worse than the median label, ranked lowest for them."""
    known = [example for example in lowest if precisions[example.label] >= np.nanmedian(precisions)]
    known.sort(key=lambda example: (-(example.ranked_above or 0.0), example.video_id))
    return known[:SHOWN_EXAMPLES]


def _cut_json(cut: Cut) -> dict[str, Any]:
    rates = {"precision": cut.precision, "recall": cut.recall, "f1": cut.f1}
    return asdict(cut) | {name: None if math.isnan(rate) else rate for name, rate in rates.items()}


def _reliability_json(curve: Reliability) -> dict[str, Any]:
    def plain(values: NDArray[np.float64]) -> list[float | None]:
        return [None if math.isnan(value) else value for value in values.tolist()]

    return {
        "expected_error": curve.expected_error(),
        "counts": curve.counts.tolist(),
        "hits": curve.hits.tolist(),
        "mean_scores": plain(curve.mean_scores()),
        "shares": plain(curve.shares()),
    }
