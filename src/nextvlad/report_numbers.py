"""Calibration and thresholds of a report, from scores and labels that come in batches. NumPy only.

Letters: B videos of a batch, N of all, C labels, P positives of a label. A *key* is a score and whether it is
a hit in one integer, see `nextvlad.metrics.ranking`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nextvlad.metrics.ranking import Keys

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

NUM_BINS = 20
"""Of a reliability curve, of equal width."""

PRIOR_POSITIVES = 5.0
"""How many positives of an average label count with a label's own where its threshold is chosen."""

GRID_SHIFT = 14
"""Bits of a float32 that `ScoreGrid` leaves out: its steps are a five-hundredth of the score."""

_ONE = int(np.float32(1.0).view(np.uint32))
_Z = 1.959964  # of a normal distribution, two-sided 95 %


class Reliability:
    """How often scores come true: of the pairs (video, label) scored about p, is a share of p right?

    `NUM_BINS` bins of equal width; the last holds a score of 1 too.

    >>> reliability = Reliability()
    >>> reliability.add(np.array([0.9, 0.9]), np.array([True, False]))
    >>> reliability.expected_error()
    0.4
    """

    def __init__(self) -> None:
        self.counts = np.zeros(NUM_BINS, np.int64)
        self.hits = np.zeros(NUM_BINS, np.int64)
        self._sums = np.zeros(NUM_BINS)

    def add(self, scores: NDArray[np.floating[Any]], hits: Bools) -> None:
        """Count pairs: scores in [0, 1] and whether each label is right, two arrays of one shape."""
        flat = scores.ravel().astype(np.float64)
        bins = np.minimum((flat * NUM_BINS).astype(np.int64), NUM_BINS - 1)
        self.counts += np.bincount(bins, minlength=NUM_BINS)
        self.hits += np.bincount(bins[hits.ravel()], minlength=NUM_BINS)
        self._sums += np.bincount(bins, flat, minlength=NUM_BINS)

    def mean_scores(self) -> Floats:
        """[NUM_BINS] mean score of the pairs in each bin; NaN for an empty one."""
        means: Floats = self._sums / np.where(self.counts, self.counts, np.nan)
        return means

    def shares(self) -> Floats:
        """[NUM_BINS] share of the pairs in each bin that are right; NaN for an empty one."""
        shares: Floats = self.hits / np.where(self.counts, self.counts, np.nan)
        return shares

    def intervals(self) -> tuple[Floats, Floats]:
        """[NUM_BINS] twice: low and high ends of the 95 % interval of each share (Wilson, 1927)."""
        counts, shares = np.where(self.counts, self.counts, np.nan), self.shares()
        spread = _Z * np.sqrt(shares * (1 - shares) / counts + (_Z / (2 * counts)) ** 2)
        middle, scale = shares + _Z**2 / (2 * counts), 1 + _Z**2 / counts
        return (middle - spread) / scale, (middle + spread) / scale

    def expected_error(self) -> float:
        """Expected calibration error in [0, 1]: mean over pairs of |mean score - share right| of their bin.

        NaN for no pairs. Source: Naeini, Cooper and Hauskrecht, AAAI 2015.
        """
        total = int(self.counts.sum())
        return float(np.abs(self._sums - self.hits).sum()) / total if total else math.nan


class ScoreGrid:
    """Hits and misses of all (video, label) pairs, counted by score, on steps of a five-hundredth of it.

    1 MB, however many pairs.
    """

    def __init__(self) -> None:
        size = (_ONE >> GRID_SHIFT) + 1
        self._hits, self._misses = np.zeros(size, np.int64), np.zeros(size, np.int64)

    def add(self, scores: NDArray[np.float32], hits: Bools) -> None:
        """Count pairs: float32 scores in [0, 1] and whether each is a hit."""
        places = (scores.ravel() + np.float32(0)).view(np.uint32) >> np.uint32(GRID_SHIFT)
        found = np.bincount(places[hits.ravel()], minlength=len(self._hits))
        self._hits += found
        self._misses += np.bincount(places, minlength=len(self._hits)) - found

    @property
    def num_hits(self) -> int:
        """Positives of all labels together."""
        return int(self._hits.sum())

    def edges(self) -> NDArray[np.uint32]:
        """Float bits of the steps that hold a hit, rising: nowhere else can a cut be the best one."""
        return (np.flatnonzero(self._hits) << GRID_SHIFT).astype(np.uint32)

    def at_or_above(self) -> tuple[Ints, Ints]:
        """Hits and misses at or above each step; the step of a score is its float bits >> `GRID_SHIFT`."""
        return np.cumsum(self._hits[::-1])[::-1], np.cumsum(self._misses[::-1])[::-1]


@dataclass(frozen=True)
class Cut:
    """A threshold, and what it gives on the data it was chosen on: a label is set where score >= threshold.

    Attributes:
        threshold: exactly a float32, in [0, 1].
        hits: positives at or above it.
        misses: negatives at or above it.
        num_positives: P.
    """

    threshold: float
    hits: int
    misses: int
    num_positives: int

    @property
    def precision(self) -> float:
        """Share of the videos given the label that have it; NaN where none is given it."""
        return self.hits / (self.hits + self.misses) if self.hits + self.misses else math.nan

    @property
    def recall(self) -> float:
        """Share of the videos with the label that are given it; NaN without positives."""
        return self.hits / self.num_positives if self.num_positives else math.nan

    @property
    def f1(self) -> float:
        """2 hits / (2 hits + false alarms + missed); NaN without positives."""
        given = self.hits + self.misses
        return 2 * self.hits / (given + self.num_positives) if self.num_positives else math.nan


class Thresholds:
    """Chooses the threshold of each label that gives the best F1, with a share of what all labels say.

    F1 of a few positives is mostly chance, and its best cut may well be "every video". So to the hits, false
    alarms and positives of a label, `prior` positives of an average label are added, with the hits and
    false alarms that those would have at the same threshold:

        F1(t) = 2 (TP + w tp(t)) / (TP + FP + w tp(t) + w fp(t) + P + w)

    where tp and fp are those of all labels pooled, divided by all positives, and w is `prior`. A label
    without positives gets nearly the common threshold, one with hundreds its own. Of equal F1 the highest
    threshold is taken; it lies between the lowest score it keeps and the next lower, so that the rounding of
    a score changes nothing.

    Args:
        pooled: the pairs of all labels.
        prior: w, 0 or more; 0 is the best F1 on this data exactly.
    """

    def __init__(self, pooled: ScoreGrid, prior: float = PRIOR_POSITIVES) -> None:
        self._edges = pooled.edges()
        self._hits, self._misses = pooled.at_or_above()
        self._num_hits = pooled.num_hits
        self._prior = prior if pooled.num_hits else 0.0
        self._weight = self._prior / max(pooled.num_hits, 1)

    def common(self) -> Cut:
        """The one threshold for all labels that gives the best F1 of all pairs pooled.

        Raises:
            ValueError: there is no positive at all.
        """
        if not len(self._edges):
            raise ValueError("common: no pair is a hit, so no threshold is better than another.")
        steps = self._edges >> np.uint32(GRID_SHIFT)
        hits, misses = self._hits[steps], self._misses[steps]
        best = _last_best(2 * hits / (hits + misses + self._num_hits))
        threshold = float(self._edges[best : best + 1].view(np.float32)[0])
        return Cut(threshold, int(hits[best]), int(misses[best]), self._num_hits)

    def best(self, keys: Keys) -> Cut:
        """The threshold for one label from its keys [N], in any order.

        Raises:
            ValueError: neither this label nor, where `prior` is above 0, any other has a positive.
        """
        bits = keys >> np.uint32(1)
        is_hit = (keys & np.uint32(1)) == 0
        hits, misses = np.sort(bits[is_hit]), np.sort(bits[~is_hit])
        edges = self._edges if self._prior else self._edges[:0]
        candidates = np.sort(np.concatenate([hits, edges]))
        if not len(candidates):
            raise ValueError("best: no pair is a hit, so no threshold is better than another.")
        own_hits = len(hits) - np.searchsorted(hits, candidates)
        own_misses = len(misses) - np.searchsorted(misses, candidates)
        steps = candidates >> np.uint32(GRID_SHIFT)
        good = own_hits + self._weight * self._hits[steps]
        given = good + own_misses + self._weight * self._misses[steps]
        best = _last_best(2 * good / (given + len(hits) + self._prior))
        threshold = _below(int(candidates[best]), hits, misses)
        return Cut(threshold, int(own_hits[best]), int(own_misses[best]), len(hits))


def _last_best(values: Floats) -> int:
    """Where the largest value stands; of equal ones the last."""
    return len(values) - 1 - int(np.argmax(values[::-1]))


def _below(bits: int, *others: NDArray[np.uint32]) -> float:
    """Halfway from a score to the next lower among `others` (sorted) or the step of `ScoreGrid` below it."""
    lower = (bits >> GRID_SHIFT) << GRID_SHIFT
    for scores in others:
        place = int(np.searchsorted(scores, np.uint32(bits)))
        if place:
            lower = max(lower, int(scores[place - 1]))
    # Bits of floats in [0, 1] are ordered as the floats, so the middle of two bits lies between the two.
    return float(np.uint32((bits + lower + 1) // 2).view(np.float32))
