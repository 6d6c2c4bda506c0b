"""Some classes of each video with their scores, as prediction files hold them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

_NO_CLASS = np.uint64(0)  # ranks below every class: of class 2^32 - 1, with a score of 0


class RankedLists:
    """Lists of different length of classes and scores, one list a video, each ranked on arrival.

    Scores are compared as float32; of equal scores the lower class ranks first.

    Args:
        classes: B sequences of whole numbers in 0..2^32-2, none twice in a list; in any order.
        scores: as many finite numbers, 0 or more, also beyond 1.

    Raises:
        ValueError: lengths that do not fit, a class outside the range, a class twice in a list, a score that
            is negative or not a finite float32.

    >>> lists = RankedLists([[7, 2], []], [[0.25, 0.5], []])
    >>> lists.best(3)[0].tolist(), lists.best(3)[2].tolist()
    ([[2, 7, -1], [-1, -1, -1]], [[True, True, False], [False, False, False]])
    """

    def __init__(self, classes: Sequence[Sequence[int]], scores: Sequence[Sequence[float]]) -> None:
        lengths = [len(of_video) for of_video in classes]
        if lengths != [len(of_video) for of_video in scores]:
            raise ValueError("lists: classes and scores differ in length.")
        flat_classes, flat_scores = _flat(classes, np.int64), _flat(scores, np.float64)
        _check(flat_classes, flat_scores)
        packed = _float32(flat_scores).view(np.uint32).astype(np.uint64) << np.uint64(32)
        packed |= np.uint64(0xFFFFFFFF) - flat_classes.astype(np.uint64)
        self._lengths = np.array(lengths, np.int64)
        table = np.full((len(lengths), max(lengths, default=0)), _NO_CLASS)
        table[np.arange(table.shape[1]) < self._lengths[:, None]] = packed
        table.sort(axis=1)
        self._table = table[:, ::-1]
        self.num_classes = int(flat_classes.max(initial=-1)) + 1
        _check_once(flat_classes, self._lengths, self.num_classes)

    def __len__(self) -> int:
        return len(self._lengths)

    @property
    def longest(self) -> int:
        """Classes of the longest list."""
        return int(self._lengths.max(initial=0))

    def best(self, depth: int) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.bool_]]:
        """Classes, scores, and whether there is one, all [B, depth], best first; else class -1, score 0."""
        table = np.full((len(self), depth), _NO_CLASS)
        width = min(depth, self._table.shape[1])
        table[:, :width] = self._table[:, :width]
        listed = np.arange(depth) < self._lengths[:, None]
        classes = (np.uint64(0xFFFFFFFF) - (table & np.uint64(0xFFFFFFFF))).astype(np.int64)
        scores = (table >> np.uint64(32)).astype(np.uint32).view(np.float32)
        return np.where(listed, classes, -1), scores, listed

    def hold_all(self, num_classes: int) -> bool:
        """Does every list hold every class of 0..num_classes-1?"""
        return self.num_classes <= num_classes and bool((self._lengths == num_classes).all())

    def dense(self, num_classes: int) -> NDArray[np.float32]:
        """[B, C] scores by class, of lists that hold all C classes."""
        classes, scores, _ = self.best(num_classes)
        dense = np.empty_like(scores)
        np.put_along_axis(dense, classes, scores, axis=1)
        return dense


def _flat(lists: Sequence[Sequence[Any]], dtype: Any) -> NDArray[Any]:
    return np.array([value for values in lists for value in values], dtype)


def _float32(scores: NDArray[np.float64]) -> NDArray[np.float32]:
    return scores.astype(np.float32) + np.float32(0)  # 0.0 for -0.0, whose bits would rank first


def _check(classes: NDArray[np.int64], scores: NDArray[np.float64]) -> None:
    if len(classes) and not 0 <= classes.min() <= classes.max() < 0xFFFFFFFF:
        wrong = classes[(classes < 0) | (classes >= 0xFFFFFFFF)][0]
        raise ValueError(f"lists: got class {wrong}, wanted a whole number in 0..2^32-2.")
    good = (scores >= 0) & (scores <= np.finfo(np.float32).max)
    if not good.all():
        raise ValueError(f"lists: got score {scores[~good][0]}, wanted a finite float32, 0 or more.")


def _check_once(classes: NDArray[np.int64], lengths: NDArray[np.int64], num_classes: int) -> None:
    pairs = np.repeat(np.arange(len(lengths)) * num_classes, lengths) + classes
    if len(np.unique(pairs)) != len(pairs):
        raise ValueError("lists: a class twice in one list; wanted each once.")
