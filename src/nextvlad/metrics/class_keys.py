"""Every score of every class, class by class, in memory and beyond a budget in a temporary file.

Untruncated average precision needs the rank of each hit among all scores of its class, so nothing can be
thrown away: 4 bytes a score, 15.4 kB a video with 3,862 classes, 15.4 GB a million videos. Scores come
video by video and are read class by class; chunks of about 64 MiB, turned to [C, n] before they are put
away, keep both cheap.
"""

from __future__ import annotations

import os
import tempfile
import weakref
from collections.abc import Iterator
from contextlib import suppress
from typing import BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nextvlad.errors import OutputError

_CHUNK_BYTES = 64 << 20
_KEY_BYTES = 4


class _FileChunk(NamedTuple):
    offset: int
    num_videos: int


class ClassKeys:
    """A store of uint32 keys, filled [B, C] at a time and read back [c, N] at a time.

    Args:
        num_classes: C.
        memory_bytes: chunks beyond this are written to a file. A chunk being filled, and its copy while it
            is turned, come on top: 128 MiB, less where the budget is smaller.
        directory: where the file goes; None: the system's folder for temporary files. The file has no
            name where the system allows that, and goes when the store goes, even if the process is killed.
    """

    def __init__(self, num_classes: int, memory_bytes: int, directory: str | None) -> None:
        self._num_classes = num_classes
        self._memory_left = memory_bytes
        self._directory = directory
        self._chunk_videos = max(1, min(_CHUNK_BYTES, memory_bytes) // (_KEY_BYTES * num_classes))
        self._pending: list[NDArray[np.uint32]] = []
        self._num_pending = 0
        self._chunks: list[NDArray[np.uint32] | _FileChunk] = []
        self._file: BinaryIO | None = None
        self.spilled_bytes = 0
        self.num_videos = 0

    def add(self, keys: NDArray[np.uint32]) -> None:
        """Keys [B, C] of more videos; the array is kept, not copied. Raises OutputError."""
        self._pending.append(keys)
        self._num_pending += len(keys)
        self.num_videos += len(keys)
        if self._num_pending >= self._chunk_videos:
            self._put_pending_away()

    def add_chunk(self, chunk: NDArray[np.uint32]) -> None:
        """Keys [C, n], as `chunks` yields them; the array is kept, not copied. Raises OutputError."""
        self.num_videos += chunk.shape[1]
        self._put_away(chunk)

    def chunks(self) -> Iterator[NDArray[np.uint32]]:
        """All keys, as arrays [C, n] of about 64 MiB at most (more where a single batch was larger)."""
        self._put_pending_away()
        for chunk in list(self._chunks):
            yield self._rows(chunk, 0, self._num_classes)

    def classes(self, start: int, stop: int) -> NDArray[np.uint32]:
        """[stop - start, N] keys of these classes, over all videos."""
        self._put_pending_away()
        keys = np.empty((stop - start, self.num_videos), np.uint32)
        filled = 0
        for chunk in self._chunks:
            rows = self._rows(chunk, start, stop)
            keys[:, filled : filled + rows.shape[1]] = rows
            filled += rows.shape[1]
        return keys

    def close(self) -> None:
        """Forget all keys and remove the file."""
        self._pending, self._chunks, self._num_pending, self.num_videos = [], [], 0, 0
        if self._file is not None:
            self._file.close()
            self._file = None

    def _put_pending_away(self) -> None:
        if self._pending:
            chunk = np.ascontiguousarray(np.concatenate(self._pending).T)
            self._pending, self._num_pending = [], 0
            self._put_away(chunk)

    def _put_away(self, chunk: NDArray[np.uint32]) -> None:
        if chunk.nbytes <= self._memory_left:
            self._memory_left -= chunk.nbytes
            self._chunks.append(chunk)
        else:
            self._chunks.append(self._write(np.ascontiguousarray(chunk)))

    def _write(self, chunk: NDArray[np.uint32]) -> _FileChunk:
        try:
            file = self._file or self._open()
            offset = file.seek(0, os.SEEK_END)
            left = chunk.reshape(-1).view(np.uint8).data
            while left:
                left = left[file.write(left) :]
        except OSError as error:
            folder = self._directory or tempfile.gettempdir()
            raise OutputError(
                f"{folder}: cannot keep the scores of {self.num_videos} videos x {self._num_classes} classes "
                f"for mAP ({error.strerror or error}); that takes {_KEY_BYTES * self._num_classes} bytes a "
                "video beyond the memory budget. Make room, choose another folder (TMPDIR), or leave mAP out."
            ) from error
        self.spilled_bytes += chunk.nbytes
        return _FileChunk(offset, chunk.shape[1])

    def _open(self) -> BinaryIO:
        # Unbuffered: with a buffer, a full disk would be met a second time when the file is closed.
        self._file = file = tempfile.TemporaryFile(  # noqa: SIM115
            buffering=0, prefix="nextvlad-metrics-", dir=self._directory
        )
        weakref.finalize(self, _close_quietly, file)
        return file

    def _rows(self, chunk: NDArray[np.uint32] | _FileChunk, start: int, stop: int) -> NDArray[np.uint32]:
        if not isinstance(chunk, _FileChunk):
            return chunk[start:stop]
        rows = np.empty((stop - start, chunk.num_videos), np.uint32)
        if self._file is None:
            raise OutputError("the temporary file with the scores for mAP is closed.")
        self._file.seek(chunk.offset + start * chunk.num_videos * _KEY_BYTES)
        left = rows.reshape(-1).view(np.uint8).data
        while left:
            count = self._file.readinto(left)  # type: ignore[attr-defined]
            if not count:
                raise OutputError("the temporary file with the scores for mAP was cut short by someone else.")
            left = left[count:]
        return rows


def _close_quietly(file: BinaryIO) -> None:
    with suppress(OSError):
        file.close()
