"""The best segments of every class out of a stream of any length, in bounded memory.

Rank: score, then video id, then start. That is a total order, and no part of it is when a segment came, so
the lists are the same for every batch size and number of readers, cut and all.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from nextvlad.data.segments import SEGMENT_SECONDS
from nextvlad.errors import DataError

_STAGED_BYTES = 64 << 20
_MOST = 1 << 32  # segments; their numbers take four bytes

_Places = tuple[NDArray[np.int64], NDArray[np.int64]]


class BestSegments:
    """Keeps the `max_segments` best segments of each class.

    Memory: 8 bytes a kept segment and class, a quarter more while they come, so about 1 GB for 1,000 classes
    at 100,000 segments each, and 3.9 GB for 3,862; 64 MiB of scores not yet looked at; about 100 bytes a
    video for ids.

    Args:
        classes: [c] the class of each column of scores.
        max_segments: kept a class, 1 or more.

    >>> best = BestSegments(np.array([7]), max_segments=2)
    >>> best.add(["a:0", "a:5", "b:0"], np.array([[0.1], [0.3], [0.2]], np.float32))
    >>> list(best.lists())
    [(7, ['a:5', 'b:0'])]
    """

    def __init__(self, classes: NDArray[np.int64], *, max_segments: int) -> None:
        self._classes, self._max = classes, max_segments
        self._names = _SegmentNames()
        width = max(1, _STAGED_BYTES // (4 * max(1, len(classes))))
        self._staged = np.empty((len(classes), width), np.float32)
        self._num_staged = 0
        self._kept = [_Kept() for _ in classes]
        self.num_repeated = 0

    @property
    def num_segments(self) -> int:
        """Segments seen."""
        return self._names.count

    def add(self, segment_ids: Sequence[str], scores: NDArray[np.float32]) -> None:
        """Look at some segments.

        Args:
            segment_ids: B ids, `VIDEO:START`.
            scores: [B, c] finite; the larger the better.
        """
        self._names.extend(segment_ids)
        while len(scores):
            part = scores[: self._staged.shape[1] - self._num_staged]
            self._staged[:, self._num_staged : self._num_staged + len(part)] = part.T
            self._num_staged += len(part)
            scores = scores[len(part) :]
            if self._num_staged == self._staged.shape[1]:
                self._settle(self._names.count - len(scores))

    def lists(self) -> Iterator[tuple[int, list[str]]]:
        """Each class in ascending order, and the ids of its best segments, best first.

        A segment that came twice is listed once, with its better score; `num_repeated` counts the others.
        """
        self._settle(self._names.count)
        self.num_repeated = 0
        ranks = self._names.ranks()
        for column in np.argsort(self._classes):
            scores, numbers = self._kept[column].cut(self._max, self._names)
            runs, starts = self._names.places(numbers)
            order = np.lexsort((starts, ranks[runs], -scores))
            identity = (ranks[runs] << 32 | starts)[order]
            first = np.sort(np.unique(identity, return_index=True)[1])
            self.num_repeated += len(order) - len(first)
            yield int(self._classes[column]), self._names.of(numbers[order[first]])

    def _settle(self, seen: int) -> None:
        """Hand what was staged, the last of the first `seen` segments, to the classes."""
        numbers = np.arange(seen - self._num_staged, seen, dtype=np.uint32)
        for kept, scores in zip(self._kept, self._staged[:, : self._num_staged], strict=True):
            good = scores >= kept.least
            kept.add(scores[good], numbers[good])
            if kept.size > self._max + self._max // 4:
                kept.cut(self._max, self._names)
        self._num_staged = 0


class _Kept:
    """The best segments of one class so far, and those that may be among them."""

    def __init__(self) -> None:
        self.least = np.float32(-np.inf)
        """Below it, nothing can get onto the list any more."""
        self.size = 0
        self._scores: list[NDArray[np.float32]] = [np.empty(0, np.float32)]
        self._numbers: list[NDArray[np.uint32]] = [np.empty(0, np.uint32)]

    def add(self, scores: NDArray[np.float32], numbers: NDArray[np.uint32]) -> None:
        if len(scores):
            self._scores.append(scores)
            self._numbers.append(numbers)
            self.size += len(scores)

    def cut(self, most: int, names: _SegmentNames) -> tuple[NDArray[np.float32], NDArray[np.uint32]]:
        """Scores and numbers of the best `most` segments, in any order; the others are forgotten."""
        scores, numbers = np.concatenate(self._scores), np.concatenate(self._numbers)
        if len(scores) > most:
            self.least = np.partition(scores, len(scores) - most)[len(scores) - most]
            tied = np.flatnonzero(scores == self.least)
            above = scores > self.least
            room = most - int(np.count_nonzero(above))
            if room < len(tied):
                tied = tied[names.order(numbers[tied])[:room]]
            above[tied] = True
            scores, numbers = scores[above], numbers[above]
        self._scores, self._numbers, self.size = [scores], [numbers], len(scores)
        return scores, numbers


class _SegmentNames:
    """The ids of segments by their number, in the order they came.

    Segments of a video come one behind the other, so a run of them is kept: the video, and the first.
    """

    def __init__(self) -> None:
        self.count = 0
        self._videos: list[str] = []
        self._firsts = array("q")  # number of each run's first segment
        self._starts = array("q")  # and its start, in seconds
        self._next = ("", -1)  # no segment's, whatever the first id is

    def extend(self, segment_ids: Sequence[str]) -> None:
        if self.count + len(segment_ids) > _MOST:
            raise DataError(f"more than {_MOST:,} segments; predict the data in parts.")
        for segment_id in segment_ids:
            video, _, start = segment_id.rpartition(":")
            second = int(start)
            if (video, second) != self._next:
                self._videos.append(video)
                self._firsts.append(self.count)
                self._starts.append(second)
            self._next = (video, second + SEGMENT_SECONDS)
            self.count += 1

    def places(self, numbers: NDArray[np.uint32]) -> _Places:
        """Run and start of each segment."""
        firsts = np.frombuffer(self._firsts, np.int64)
        runs = np.searchsorted(firsts, numbers.astype(np.int64), side="right") - 1
        starts = np.frombuffer(self._starts, np.int64)[runs] + SEGMENT_SECONDS * (numbers - firsts[runs])
        return runs, starts

    def of(self, numbers: NDArray[np.uint32]) -> list[str]:
        runs, starts = self.places(numbers)
        pairs = zip(runs.tolist(), starts.tolist(), strict=True)
        return [f"{self._videos[run]}:{start}" for run, start in pairs]

    def order(self, numbers: NDArray[np.uint32]) -> NDArray[np.int64]:
        """What sorts these segments by video id and start."""
        runs, starts = self.places(numbers)
        different, which = np.unique(runs, return_inverse=True)
        ranks = _ranks([self._videos[run] for run in different.tolist()])
        order: NDArray[np.int64] = np.lexsort((starts, ranks[which]))
        return order

    def ranks(self) -> NDArray[np.int64]:
        """The place of each run's video among all ids, sorted."""
        return _ranks(self._videos)


def _ranks(videos: list[str]) -> NDArray[np.int64]:
    """The place of each id among them all, sorted; an array of text would pad each id to the longest."""
    rank = {video: index for index, video in enumerate(sorted(set(videos)))}
    return np.array([rank[video] for video in videos], np.int64)
