"""Parts of clips -> whole clips of features: rows of several clips go through the backbone together."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nextvlad.errors import DataError
from nextvlad.extract_decoding import Event, Failure
from nextvlad.video.extractor import AUDIO, VISUAL, Extractor

_Rows = NDArray[Any]
_Embed = Callable[[_Rows], NDArray[np.uint8]]


@dataclass(slots=True)
class Features:
    """What became of a clip.

    Attributes:
        number: which clip.
        streams: name -> [T, D] uint8; T is 0 where the clip has no such thing.
        notes: what was unusual.
        seconds: how long its file is, where that says so.
        failure: why it could not be read; then there is nothing else.
    """

    number: int
    streams: dict[str, NDArray[np.uint8]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    seconds: float | None = None
    failure: str | None = None


def embed_all(events: Iterable[Event], extractor: Extractor) -> Iterator[Features]:
    """The features of each clip, as soon as its last row is embedded; in any order.

    Args:
        events: what decoding gives, clips in any mixture.
        extractor: what turns rows into features.
    """
    size = extractor.options.batch_size
    embed: dict[str, _Embed] = {VISUAL: extractor.embed_pictures, AUDIO: extractor.embed_sound}
    batches = {name: _Batches(embed[name], size) for name in extractor.sizes}
    clips: dict[int, _Clip] = {}
    failed: set[int] = set()  # more of them may be on its way
    for number, part in events:
        if number in failed:
            continue
        clip = clips.setdefault(number, _Clip(Features(number)))
        if isinstance(part, Failure):
            clip.fail(part.reason)
            for waiting in batches.values():
                waiting.forget(clip)
        else:
            rows: dict[str, _Rows] = {VISUAL: part.pictures, AUDIO: part.sound}
            for name, waiting in batches.items():
                waiting.add(clip, rows[name])
            if part.is_last:
                clip.is_read = True
                clip.features.notes = part.notes
                clip.features.seconds = part.media.duration_seconds
        for name, waiting in batches.items():
            waiting.embed(name, whole_batches_only=True)
        for done in _finished(clips, extractor.sizes):
            if done.failure is not None:
                failed.add(done.number)
            yield done
    for name, waiting in batches.items():
        waiting.embed(name, whole_batches_only=False)
    yield from _finished(clips, extractor.sizes)


@dataclass(slots=True)
class _Clip:
    """A clip on its way."""

    features: Features
    rows: dict[str, list[NDArray[np.uint8]]] = field(default_factory=dict)
    num_waiting: int = 0
    is_read: bool = False

    def fail(self, reason: str) -> None:
        self.features.failure = reason
        self.is_read, self.num_waiting = True, 0
        self.rows.clear()


class _Batches:
    """Rows of one stream that wait for a batch to be full."""

    def __init__(self, embed: _Embed, size: int) -> None:
        self._embed, self._size = embed, size
        self._waiting: deque[tuple[_Clip, _Rows]] = deque()
        self._count = 0

    def add(self, clip: _Clip, rows: _Rows) -> None:
        if len(rows):
            self._waiting.append((clip, rows))
            self._count += len(rows)
            clip.num_waiting += len(rows)

    def forget(self, clip: _Clip) -> None:
        """Drops what waits of a clip that failed."""
        self._waiting = deque(item for item in self._waiting if item[0] is not clip)
        self._count = sum(len(rows) for _, rows in self._waiting)

    def embed(self, name: str, *, whole_batches_only: bool) -> None:
        """Embeds what waits, in full batches; the rest stays, or goes as a smaller one."""
        while self._count >= self._size or (self._count and not whole_batches_only):
            taken = self._take()
            try:
                values = self._embed(np.concatenate([rows for _, rows in taken]))
            except DataError:
                self._one_by_one(name, taken)
                continue
            start = 0
            for clip, rows in taken:
                _hand_over(clip, name, values[start : start + len(rows)])
                start += len(rows)

    def _take(self) -> list[tuple[_Clip, _Rows]]:
        """The next batch."""
        taken, room = [], self._size
        while self._waiting and room:
            clip, rows = self._waiting.popleft()
            if len(rows) > room:
                self._waiting.appendleft((clip, rows[room:]))
                rows = rows[:room]
            taken.append((clip, rows))
            room -= len(rows)
        self._count -= self._size - room
        return taken

    def _one_by_one(self, name: str, taken: list[tuple[_Clip, _Rows]]) -> None:
        """Each clip for itself, to find the one that the backbone cannot take."""
        for clip, rows in taken:
            if clip.features.failure is not None:
                continue
            try:
                _hand_over(clip, name, self._embed(rows))
            except DataError as error:
                clip.fail(str(error))


def _hand_over(clip: _Clip, name: str, values: NDArray[np.uint8]) -> None:
    if clip.features.failure is None:
        clip.rows.setdefault(name, []).append(values)
        clip.num_waiting -= len(values)


def _finished(clips: dict[int, _Clip], sizes: dict[str, int]) -> Iterator[Features]:
    """Takes out the clips that are whole."""
    for number in [number for number, clip in clips.items() if clip.is_read and not clip.num_waiting]:
        clip = clips.pop(number)
        if clip.features.failure is None:
            clip.features.streams = {
                name: np.concatenate(clip.rows.get(name) or [np.empty((0, size), np.uint8)])
                for name, size in sizes.items()
            }
        yield clip.features
