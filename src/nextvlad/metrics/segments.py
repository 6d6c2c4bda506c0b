"""MAP@K of five-second segments, as YouTube-8M 2019 ranked its entries, from scores or from ranks alone.

Letters: S segments, C classes, K segments a class may list. Of most (segment, class) pairs nobody knows
whether they are right: only *rated* ones were judged. A class's list is cut to its K best segments, rated
or not; then the unrated ones are taken out; its average precision is the precision at each hit that is left,
summed, over all rated positives of the class, listed or not. MAP@K is the mean over the classes that have
a rated positive.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nextvlad.metrics.accumulator import MetricAccumulator, Piece
from nextvlad.metrics.ranking import (
    DEFAULT_TOP_K,
    Keys,
    average_precision,
    checked,
    defined_mean,
    score_keys,
)

SEGMENTS_A_CLASS = 100_000
"""K of the competition."""


def segment_map(
    probabilities: Any, labels: Any, rated: Any = None, *, max_segments: int = SEGMENTS_A_CLASS
) -> np.float64:
    """MAP@K over segments, in [0, 1]: every segment stands in the list of every class.

    Args:
        probabilities: [S, C] numbers in [0, 1].
        labels: [S, C] bool, or 0 and 1: what was judged to be there.
        rated: [S, C] bool, or 0 and 1: what was judged at all; None: everything.
        max_segments: K, 1 or more.

    Returns:
        Scalar float64; NaN where no class has a positive.

    Raises:
        ValueError: shapes differ or are not 2-D, a probability is NaN or outside [0, 1], a label or a rating
            is neither 0 nor 1, a label is not rated, or `max_segments` is below 1.

    Source: YouTube-8M starter code of 2019, segment_eval_inference.py, and the competition's own text where
    the two differ (docs/metrics.md). Equal scores: the mean over their orders, at the cut too.

    >>> float(segment_map([[0.9], [0.8], [0.7]], [[1], [0], [1]], [[1], [0], [1]]))
    1.0
    >>> float(segment_map([[0.9], [0.8], [0.7]], [[1], [0], [1]], [[1], [0], [1]], max_segments=2))
    0.5
    """
    precisions = per_class_segment_average_precision(probabilities, labels, rated, max_segments=max_segments)
    return np.float64(defined_mean(precisions))


def per_class_segment_average_precision(
    probabilities: Any, labels: Any, rated: Any = None, *, max_segments: int = SEGMENTS_A_CLASS
) -> NDArray[np.float64]:
    """[C] average precision of each class's list; NaN for a class without positives. As `segment_map`."""
    scores, truth = checked(probabilities, labels)
    known = _checked_rated(rated, truth)
    _check_max(max_segments)
    keys = score_keys(scores, truth)
    precisions = np.full(keys.shape[1], np.nan)
    for index, num_positives in enumerate(np.count_nonzero(truth, axis=0).tolist()):
        column, judged = keys[:, index], known[:, index]
        precisions[index] = _precision_of_list(column[judged], column[~judged], num_positives, max_segments)
    return precisions


def precision_of_ranking(hits: NDArray[np.bool_], num_positives: int) -> float:
    """AP of the rated segments of a list that is in order, best first; NaN without positives.

    Args:
        hits: [n] whether each is a positive.
        num_positives: of the class, listed or not.

    >>> precision_of_ranking(np.array([True, False]), 2)
    0.5
    """
    if num_positives == 0:
        return math.nan
    places = np.flatnonzero(hits)
    return float((np.arange(1, len(places) + 1) / (places + 1)).sum()) / num_positives


class SegmentAccumulator:
    """The metrics of rated segments that come in batches: MAP@K, and those of whole videos.

    Only rated pairs are kept for MAP@K, 6 bytes each (8 above 65,536 classes): 1.4 MB for the 237,000 of
    YouTube-8M. So a class's list is its rated segments alone, and K cuts off nothing below K of them.

    For the other metrics (see `MetricAccumulator`) a segment stands for a video, and the score of every
    class it was not rated for counts as 0, as in the starter code.

    Args:
        num_classes: C.
        top_k: classes kept a segment for GAP and `map_at_k`, as `MetricAccumulator`.
        max_segments: K.

    Raises:
        ValueError: as `MetricAccumulator`; `max_segments` below 1.

    >>> metrics = SegmentAccumulator(2)
    >>> metrics.update([[0.9, 0.8], [0.7, 0.2]], [[0, 0], [1, 0]], [[1, 0], [1, 0]])
    >>> metrics.compute()["segment_map"], metrics.compute()["num_segments"]
    (0.5, 2)
    """

    def __init__(
        self, num_classes: int, *, top_k: int = DEFAULT_TOP_K, max_segments: int = SEGMENTS_A_CLASS
    ) -> None:
        _check_max(max_segments)
        self._videos = MetricAccumulator(num_classes, top_k=top_k, with_map=False)
        self.num_classes, self.top_k, self.max_segments = num_classes, self._videos.top_k, max_segments
        self._class_type = np.uint16 if num_classes <= 1 << 16 else np.uint32
        self._keys: list[NDArray[np.uint32]] = []
        self._classes: list[NDArray[Any]] = []

    @property
    def num_segments(self) -> int:
        """Segments seen."""
        return self._videos.num_videos

    def update(self, probabilities: Any, labels: Any, rated: Any = None, *, losses: Any = None) -> None:
        """Count the segments of one batch.

        Args:
            probabilities: [S, C] numbers in [0, 1]; an array or a tensor of any device.
            labels: [S, C] bool, or 0 and 1.
            rated: [S, C] likewise; None: everything is rated.
            losses: [S] loss of each segment.

        Raises:
            ValueError: as `segment_map`, or a loss that is not finite. Nothing is counted then.
        """
        scores, truth = checked(probabilities, labels)
        known = _checked_rated(rated, truth)
        scores = scores.astype(np.float32, copy=False)
        self._videos.update(np.where(known, scores, np.float32(0)), truth, losses=losses)
        self._keys.append(score_keys(scores, truth)[known].astype(np.uint32, copy=False))
        self._classes.append(np.nonzero(known)[1].astype(self._class_type))

    def compute(self) -> dict[str, Any]:
        """The metrics of all segments so far, as plain values for JSON; None where one is not defined.

        Keys: those of `MetricAccumulator.compute`, where `map` is the mean average precision over rated
        pairs without the cut at K; before them num_segments (the same number as num_videos), num_ratings
        (rated pairs) and segment_map. Does not change the state.
        """
        precisions, uncut = self._precisions()
        values = {"segment_map": defined_mean(precisions), "map": defined_mean(uncut)}
        defined = {name: None if math.isnan(value) else value for name, value in values.items()}
        counts = {"num_segments": self.num_segments, "num_ratings": sum(map(len, self._keys))}
        return counts | {"segment_map": None} | self._videos.compute() | defined

    def per_class_average_precision(self) -> NDArray[np.float64]:
        """[C] average precision of each class's list of rated segments; NaN for one without positives."""
        return self._precisions()[0]

    def _precisions(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """[C] each: with lists cut at K, and with whole lists."""
        keys = np.concatenate([np.empty(0, np.uint32), *self._keys])
        classes = np.concatenate([np.empty(0, self._class_type), *self._classes])
        keys = keys[np.argsort(classes, kind="stable")]
        lists = np.split(keys, np.cumsum(np.bincount(classes, minlength=self.num_classes))[:-1])
        nothing = np.empty(0, np.uint32)
        precisions = np.full((2, self.num_classes), np.nan)
        for index, of_class in enumerate(lists):
            positives = int(np.count_nonzero((of_class & 1) == 0))
            precisions[0, index] = _precision_of_list(of_class, nothing, positives, self.max_segments)
            long = len(of_class) > self.max_segments
            precisions[1, index] = average_precision(of_class, positives) if long else precisions[0, index]
        return precisions[0], precisions[1]

    def merge(self, other: SegmentAccumulator) -> None:
        """Count the segments of another accumulator too; ValueError if its settings are others."""
        for piece in other.pieces():
            self.add_piece(piece)

    def pieces(self) -> Iterator[Piece]:
        """The state as dictionaries of arrays, to send to another process (see `MetricAccumulator`)."""
        yield from self._videos.pieces()
        yield {
            "segment_settings": self._settings(),
            "keys": np.concatenate([np.empty(0, np.uint32), *self._keys]),
            "classes": np.concatenate([np.empty(0, self._class_type), *self._classes]),
        }

    def add_piece(self, piece: Piece) -> None:
        """Count what one of another accumulator's `pieces` holds; errors as for `merge`."""
        if "segment_settings" not in piece:
            self._videos.add_piece(piece)
            return
        ours, theirs = self._settings().tolist(), piece["segment_settings"].tolist()
        if ours != theirs:
            raise ValueError(
                f"merge: got an accumulator with [num_classes, top_k, max_segments] = {theirs}, "
                f"wanted {ours}."
            )
        self._keys.append(piece["keys"])
        self._classes.append(piece["classes"])

    def close(self) -> None:
        """As `MetricAccumulator.close`; nothing is kept outside of memory."""
        self._videos.close()

    def _settings(self) -> NDArray[np.int64]:
        return np.array([self.num_classes, self.top_k, self.max_segments], np.int64)


def _precision_of_list(rated: Keys, others: Keys, num_positives: int, max_segments: int) -> float:
    """AP of one class's list, from the keys of its rated segments and of the others."""
    if num_positives == 0:
        return math.nan
    scores = np.concatenate([rated, others]) >> 1
    if len(scores) <= max_segments:
        return average_precision(rated, num_positives)
    last = np.partition(scores, len(scores) - max_segments)[len(scores) - max_segments]
    above, tied = rated[rated >> 1 > last], rated[rated >> 1 == last]
    size = int(np.count_nonzero(scores == last))
    room = max_segments - int(np.count_nonzero(scores > last))
    among_tied = _mean_of_cut_group(
        hits_before=int(np.count_nonzero((above & 1) == 0)),
        ranked_before=len(above),
        hits=int(np.count_nonzero((tied & 1) == 0)),
        rated=len(tied),
        size=size,
        room=room,
    )
    return average_precision(above, num_positives) + among_tied / num_positives


def _mean_of_cut_group(
    *, hits_before: int, ranked_before: int, hits: int, rated: int, size: int, room: int
) -> float:
    """Sum of the precisions at the hits of equal scores of which not all fit, in the mean over orders.

    Of `size` segments with the same score the first `room` of a random order stay. How many of the rated
    ones are among them is hypergeometric; those that are stand in a random order themselves.
    """
    if hits == 0:
        return 0.0
    least, most = max(0, room - (size - rated)), min(rated, room)
    counts = range(least, most + 1)
    logs = [_log_binomial(rated, n) + _log_binomial(size - rated, room - n) for n in counts]
    chances = np.exp(np.array(logs) - _log_binomial(size, room))
    at_least = np.ones(most)  # for place j = 1..most among the rated: that so many stay
    at_least[least:] = np.cumsum(chances[::-1])[::-1][1:]
    place = np.arange(most)
    growth = (hits - 1) / (rated - 1) if rated > 1 else 0.0
    found = hits_before + 1 + place * growth
    return float((at_least * (hits / rated) * found / (ranked_before + place + 1)).sum())


def _log_binomial(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


def _checked_rated(rated: Any, truth: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """[S, C] bool, or a ValueError; a class that is there must be rated."""
    if rated is None:
        return np.ones_like(truth)
    if hasattr(rated, "detach"):  # a torch tensor, recognised without importing torch
        rated = rated.detach().cpu().numpy()
    known = np.asarray(rated)
    if known.shape != truth.shape:
        raise ValueError(f"rated: got shape {known.shape}, wanted that of labels, {truth.shape}.")
    for wrong, wanted in (
        ((known != 0) & (known != 1), "bool, or 0 and 1"),
        (truth & (known == 0), "True where a label is"),
    ):
        if wrong.any():
            row, column = np.argwhere(wrong)[0]
            raise ValueError(f"rated[{row}, {column}]: got {known[row, column]}, wanted {wanted}.")
    return known.astype(np.bool_, copy=False)


def _check_max(max_segments: int) -> None:
    if max_segments < 1:
        raise ValueError(f"max_segments: got {max_segments}, wanted 1 or more.")
