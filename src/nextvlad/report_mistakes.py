"""What a model gets wrong: which labels stand for which, and videos worth looking at. NumPy only.

Letters: B videos of a batch, C labels, n labels of one video.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nextvlad.metrics.ranking import best_classes

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

_FEW_PAIRS = 1 << 22


@dataclass(frozen=True)
class Confusion:
    """In how many videos one label stood in the place of another.

    Attributes:
        missed: the label that should have been there.
        taken: the one that was.
        videos: how many.
        expected: how many there would be if what is taken did not depend on what is missed.
    """

    missed: int
    taken: int
    videos: int
    expected: float

    @property
    def times_chance(self) -> float:
        """Videos over expected ones."""
        return self.videos / self.expected


class Confusions:
    """Which label stands where a true one should: counts of pairs (missed, taken).

    A video has n labels, and the model names its n best. A label of the video that is not among them is
    *missed*; a label among them that the video does not have is *taken*. There are equally many of both, and
    each pair of them counts one video. With one label a video these are the cells of the confusion matrix
    beside its diagonal.

    Memory: 16 bytes a different pair.

    >>> confusions = Confusions(3)
    >>> confusions.add(np.array([[0.1, 0.7, 0.2]], np.float32), np.array([[True, False, False]]))
    >>> confusions.most_frequent(5)
    [Confusion(missed=0, taken=1, videos=1, expected=1.0)]
    """

    def __init__(self, num_labels: int) -> None:
        self._num_labels = num_labels
        self._pairs, self._counts = np.empty(0, np.int64), np.empty(0, np.int64)
        self._new: list[Ints] = []
        self._num_new = 0
        self.missed = np.zeros(num_labels, np.int64)
        """[C] in how many videos each label was missed."""

    def add(self, scores: NDArray[np.float32], truth: Bools) -> None:
        """Count the videos of a batch: scores [B, C], labels [B, C]."""
        num_true = np.count_nonzero(truth, axis=1)
        depth = int(num_true.max(initial=0))
        if depth == 0:
            return
        named = np.zeros_like(truth)
        inside = np.arange(depth) < num_true[:, None]
        named[np.nonzero(inside)[0], best_classes(scores, depth)[inside]] = True
        videos, missed = np.nonzero(truth & ~named)
        _, taken = np.nonzero(named & ~truth)
        self.missed += np.bincount(missed, minlength=self._num_labels)
        wrong = np.bincount(videos, minlength=len(truth))  # of each video, missed and taken alike
        repeats = wrong[videos]
        first = (np.cumsum(wrong) - wrong)[videos]  # of the video's own in `taken`
        within = np.arange(repeats.sum()) - np.repeat(np.cumsum(repeats) - repeats, repeats)
        pairs = np.repeat(missed, repeats) * self._num_labels + taken[np.repeat(first, repeats) + within]
        self._new.append(pairs)
        self._num_new += len(pairs)
        if self._num_new > max(_FEW_PAIRS, len(self._pairs)):
            self._settle()

    def _settle(self) -> None:
        """Adds what came since last time to the counts."""
        if not self._new:
            return
        pairs, place = np.unique(np.concatenate([self._pairs, *self._new]), return_inverse=True)
        counts = np.zeros(len(pairs), np.int64)
        counts[place[: len(self._pairs)]] = self._counts
        counts += np.bincount(place[len(self._pairs) :], minlength=len(pairs))
        self._pairs, self._counts, self._new, self._num_new = pairs, counts, [], 0

    def most_frequent(self, count: int) -> list[Confusion]:
        """The `count` commonest pairs, commonest first; equal ones by label."""
        self._settle()
        return self._listed(np.argsort(-self._counts, kind="stable")[:count])

    def most_telling(self, count: int, *, at_least: int = 5) -> list[Confusion]:
        """The `count` pairs that are furthest from chance, of those of `at_least` videos.

        A label that is often named stands in the place of every other; here it does not, since pairs are
        ordered by videos x log(videos / expected), their part of the G-test's statistic.
        """
        self._settle()
        expected = self._expected()
        weight = self._counts * np.log(self._counts / expected)
        weight[self._counts < at_least] = 0.0
        order = np.argsort(-weight, kind="stable")[:count]
        return self._listed(order[weight[order] > 0])

    def _expected(self) -> NDArray[np.float64]:
        missed, taken = self._pairs // self._num_labels, self._pairs % self._num_labels
        of_missed, of_taken = (np.bincount(side, self._counts, self._num_labels) for side in (missed, taken))
        total = max(float(self._counts.sum()), 1.0)
        expected: NDArray[np.float64] = of_missed[missed] * of_taken[taken] / total
        return expected

    def _listed(self, places: NDArray[np.intp]) -> list[Confusion]:
        expected = self._expected()
        return [
            Confusion(
                missed=int(self._pairs[place]) // self._num_labels,
                taken=int(self._pairs[place]) % self._num_labels,
                videos=int(self._counts[place]),
                expected=float(expected[place]),
            )
            for place in places.tolist()
        ]

    def taken_for(self, label: int, count: int) -> list[tuple[int, int]]:
        """(taken, videos) where `label` was missed, commonest first."""
        self._settle()
        low, high = np.searchsorted(self._pairs, [label * self._num_labels, (label + 1) * self._num_labels])
        order = low + np.argsort(-self._counts[low:high], kind="stable")[:count]
        return [(int(self._pairs[i]) % self._num_labels, int(self._counts[i])) for i in order]

    def matrix(self, num_positives: Ints) -> Ints:
        """[C, C] counts, true labels down and named ones across, where every video has one label."""
        self._settle()
        counts = np.zeros((self._num_labels, self._num_labels), np.int64)
        counts.ravel()[self._pairs] = self._counts
        counts[np.diag_indices(self._num_labels)] = num_positives - self.missed
        return counts


@dataclass(frozen=True)
class Example:
    """One video and one label of interest.

    Attributes:
        video_id: the video.
        label: the label that makes it an example.
        score: the label's.
        labels: what the video has.
        best: (label, score) of the video's best, best first.
        ranked_above: share of the videos without the label that it ranks above this one; None where not told.
    """

    video_id: str
    label: int
    score: float
    labels: tuple[int, ...]
    best: tuple[tuple[int, float], ...]
    ranked_above: float | None = None


class Examples:
    """Videos worth looking at: surely right, surely wrong, and labels that were scored lowest though true.

    Of each label the `a_label` most extreme are kept, so that common labels do not take every place.
    """

    SHOWN_BEST = 3

    def __init__(self, a_label: int = 2) -> None:
        self._a_label = a_label
        self._right: dict[int, list[Example]] = {}
        self._wrong: dict[int, list[Example]] = {}
        self._missed: dict[int, list[Example]] = {}

    def add(self, video_ids: Sequence[str], scores: NDArray[np.float32], truth: Bools) -> None:
        """Consider the labelled videos of a batch: ids, scores [B, C], labels [B, C]."""
        depth = min(self.SHOWN_BEST, scores.shape[1])
        best = best_classes(scores, depth)
        missed = np.where(truth, scores, 2).argmin(axis=1).tolist()

        def offer(kept: dict[int, list[Example]], video: int, label: int, sign: int) -> None:
            """Keeps the video with its label if it is among the most extreme; `sign` -1: highest first."""
            row = kept.setdefault(label, [])
            score = float(scores[video, label])
            if len(row) == self._a_label and sign * score >= sign * row[-1].score:
                return
            shown = tuple((int(c), float(scores[video, c])) for c in best[video])
            labels = tuple(np.flatnonzero(truth[video]).tolist())
            row.append(Example(video_ids[video], label, score, labels, shown))
            row.sort(key=lambda example: sign * example.score)
            del row[self._a_label :]

        for video in np.flatnonzero(truth.any(axis=1)).tolist():
            top = int(best[video, 0])
            if truth[video, top]:
                offer(self._right, video, top, -1)
            else:
                offer(self._wrong, video, top, -1)
                offer(self._missed, video, missed[video], 1)

    def right(self, count: int) -> list[Example]:
        """The `count` videos whose best label is right, highest score first."""
        return _surest(self._right, count)

    def wrong(self, count: int) -> list[Example]:
        """The `count` videos whose best label is wrong, highest score first."""
        return _surest(self._wrong, count)

    def missed(self, label: int) -> list[Example]:
        """Videos whose best label is wrong and whose lowest true one is `label`; lowest score first."""
        return list(self._missed.get(label, ()))


def _surest(kept: dict[int, list[Example]], count: int) -> list[Example]:
    found = [example for row in kept.values() for example in row]
    return sorted(found, key=lambda example: (-example.score, example.video_id))[:count]
