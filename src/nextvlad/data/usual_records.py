"""Records of the usual layout from a file straight into a batch, many in one call of compiled code.

What is not usual is left: damage, another layout, floats, streams or labels that do not fit, and videos for
which there is no room yet. The caller reads one such record the general way, and comes back. So this code
decides nothing: `nextvlad.data.video_record` and `nextvlad.data.packer` do the same without it, only slower.

The compiled code is some hundred lines of C without dependencies (`nextvlad/data/compiled`). Where it could
not be built, for want of a compiler, or where NEXTVLAD_COMPILED is 0, everything goes the general way.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from nextvlad.config import StreamConfig
from nextvlad.data.packer import Packer
from nextvlad.data.tfrecord import HEADER_SIZE, RecordFile

try:
    from nextvlad.data import _usual_records as compiled
except ImportError:
    compiled = None  # type: ignore[assignment]

MOST_STREAMS = 8
_LABELS_A_VIDEO = 64  # of room, on average; a batch with more of them is packed in several calls
_SPANS = 256  # records found in one call


def available() -> bool:
    """Whether the compiled code is there and wanted."""
    wanted = os.environ.get("NEXTVLAD_COMPILED", "1") != "0"
    return compiled is not None and wanted and sys.byteorder == "little"


class Found(NamedTuple):
    """A record in the window of a file: its number and offset there, and its payload, a view."""

    number: int
    offset: int
    payload: NDArray[np.uint8]


class UsualRecords:
    """Takes usual records out of files.

    Args:
        streams: what goes into a batch; at most 8.
        max_frames: frames beyond these are left out, of each stream.
        num_classes: labels lie in 0..C-1.
        batch_size: videos a batch has at most.
        with_labels: False reads no labels.

    Attributes:
        origin: the provenance that records must have; None: any.
    """

    def __init__(
        self,
        streams: Sequence[StreamConfig],
        max_frames: int,
        num_classes: int,
        batch_size: int,
        *,
        with_labels: bool,
    ) -> None:
        if len(streams) > MOST_STREAMS:
            raise ValueError(f"got {len(streams)} streams, wanted at most {MOST_STREAMS}.")
        names_and_sizes = tuple((stream.name.encode(), stream.size) for stream in streams)
        # As large as a number gets in C; no video has as many frames.
        self._settings = names_and_sizes, min(max_frames, sys.maxsize), num_classes if with_labels else 0
        self._counts = np.empty((batch_size, len(streams) + 1), np.int64)
        self._labels = np.empty(batch_size * _LABELS_A_VIDEO, np.int64)
        self._spans = np.empty((_SPANS, 3), np.int64)
        self.origin: bytes | None = None

    def pack(self, file: RecordFile, packer: Packer, first: int = 0, every: int = 1) -> int:
        """Move records of a file into a batch, until it is full or a record is for another way.

        Args:
            file: whose window is moved past the records.
            packer: has room for one video at least.
            first: record number n is taken where n % every == first; of others the checksums are verified.
            every: see `first`.

        Returns:
            The number of records passed, taken or not.

        Raises:
            RecordError, UsageError: as `RecordFile.fill`.
        """
        window, passed = file.window, 0
        while missing := packer.missing:
            rooms = packer.rooms()
            if rooms is None:
                break
            seen, size, needed, ids = compiled.pack(
                window.bytes[window.low : window.high],
                (*self._settings, self.origin),
                (first - window.number) % every,
                every,
                rooms,
                self._counts[:missing],
                self._labels,
            )
            packer.added(ids, self._counts[: len(ids)], self._labels)
            window.consume(size)
            window.number += seen
            passed += seen
            if not needed or not file.fill(needed):
                break
        return passed

    def find(self, file: RecordFile, first: int = 0, every: int = 1) -> Iterator[Found]:
        """The next usual records, one after another, as `pack` would take them.

        The window of the file is moved past all that are found in it before the first is yielded.
        """
        window = file.window
        while True:
            data = window.bytes[window.low : window.high]
            offset, number = window.offset, window.number
            seen, size, needed, found = compiled.find(
                data, (*self._settings, self.origin), (first - number) % every, every, self._spans
            )
            window.consume(size)
            window.number += seen
            for index, start, length in self._spans[:found].tolist():
                yield Found(number + index, offset + start - HEADER_SIZE, data[start : start + length])
            if found < _SPANS and (not needed or not file.fill(needed)):
                return

    def pack_payload(self, payload: NDArray[np.uint8], packer: Packer) -> bool:
        """Copy one video that `find` found into a batch; False if there is no room yet."""
        rooms = packer.rooms()
        if rooms is None:
            return False
        # Its provenance was looked at when it was found, and another may be wanted by now.
        video_id = compiled.pack_payload(payload, (*self._settings, None), rooms, self._counts, self._labels)
        if video_id is None:
            return False
        packer.added([video_id], self._counts[:1], self._labels)
        return True
