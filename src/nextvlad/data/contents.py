"""What a file of either kind holds, one after the other, and copies of payloads that have to wait."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from nextvlad.data.paddle_pickle import is_pickle, read_pickle
from nextvlad.data.tfrecord import FRAMING_SIZE, RecordFile
from nextvlad.data.video_record import VideoRecord
from nextvlad.errors import RecordError, RecordPlace

_SMALL = 1 << 16  # bytes below which an allocator keeps freed memory at hand

Content = NDArray[np.uint8] | VideoRecord
"""A payload, as a view of what the next one overwrites; of a pickle a record."""


class Contents:
    """What one file holds; a context manager.

    Args:
        path: a TFRecord file or a pickle of PaddleVideo, told by its content.
        start: where to begin.
        on_damage: called with each error that loses a whole record, instead of raising it.

    Attributes:
        file: None for a pickle.

    Raises:
        RecordError, UsageError: as `nextvlad.data.tfrecord.read_records`.
    """

    def __init__(
        self, path: str, start: RecordPlace, on_damage: Callable[[RecordError], None] | None
    ) -> None:
        self.file: RecordFile | None = None
        self._pickled: Iterator[tuple[RecordPlace, VideoRecord]] = iter(())
        if is_pickle(path):
            self._pickled = read_pickle(path, first=start.number, on_damage=on_damage)
        else:
            self.file = RecordFile(path, start=start if start.offset else None, on_damage=on_damage)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.file is not None:
            self.file.__exit__(kind, error, trace)

    def read(self) -> tuple[Content, RecordPlace, int] | None:
        """The next payload or record, its place, and the offset where the next begins; None at the end."""
        if self.file is None:
            for place, record in self._pickled:
                return record, place, place.offset + 1  # a pickle is entered by the number of the record
            return None
        found = self.file.read()
        return found and (found.payload, found.place, found.place.offset + FRAMING_SIZE + len(found.payload))


class Copies:
    """Copies of payloads, in memory that is used again.

    The system takes back freed memory of this size and gives it out again page by page, which costs
    more than the copy itself.

    Args:
        most: pieces of memory that are kept to be used again.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._free: list[NDArray[np.uint8]] = []

    def of(self, payload: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """A copy, until `done` is told of it."""
        if len(payload) < _SMALL:
            return payload.copy()
        memory = self._free.pop() if self._free else None
        if memory is None or len(memory) < len(payload):
            memory = np.empty(len(payload) + len(payload) // 4, np.uint8)
        copy = memory[: len(payload)]
        copy[:] = payload
        return copy

    def done(self, copy: NDArray[np.uint8] | None) -> None:
        """Nobody reads this copy any more."""
        memory = None if copy is None else copy.base
        if isinstance(memory, np.ndarray) and len(self._free) < self._most:
            self._free.append(memory)
