"""Every score of every class, class by class, in memory and beyond a budget in a temporary file.

Untruncated average precision needs the rank of each hit among all scores of its class, so nothing can be
thrown away: 4 bytes a score, 15.4 kB a video with 3,862 classes, 15.4 GB a million videos. Scores come
video by video and are read class by class; chunks of 64 MiB, laid out [C, n], keep both cheap.
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
        memory_bytes: chunks beyond this are written to a file. The chunk being filled comes on top: 64 MiB,
            or `memory_bytes` where that is less.
        directory: where the file goes; None: the system's folder for temporary files. The file has no
            name where the system allows that, and goes when the store goes, even if the process is killed.
    """

    def __init__(self, num_classes: int, memory_bytes: int, directory: str | None) -> None:
        self._num_classes = num_classes
        self._memory_left = memory_bytes
        self._directory = directory
        self._chunk_videos = max(1, min(_CHUNK_BYTES, memory_bytes) // (_KEY_BYTES * num_classes))
        self._filling: NDArray[np.uint32] | None = None
        self._num_filled = 0
        self._chunks: list[NDArray[np.uint32] | _FileChunk] = []
        self._file: BinaryIO | None = None
        self._closed = False
        self.spilled_bytes = 0
        self.num_videos = 0

    def add(self, keys: NDArray[np.uint32]) -> None:
        """Keys [B, C] of more videos. Raises OutputError; ValueError after `close`."""
        self._check_open()
        while len(keys):
            if self._filling is None:
                self._filling = np.empty((self._num_classes, self._chunk_videos), np.uint32)
            taken = keys[: self._chunk_videos - self._num_filled]
            self._filling[:, self._num_filled : self._num_filled + len(taken)] = taken.T
            self._num_filled += len(taken)
            self.num_videos += len(taken)
            if self._num_filled == self._chunk_videos:
                full, self._filling, self._num_filled = self._filling, None, 0
                self._put_away(full)
            keys = keys[len(taken) :]

    def add_chunk(self, chunk: NDArray[np.uint32]) -> None:
        """Keys [C, n], as `chunks` yields them; the array is kept, not copied. Errors as for `add`."""
        self._check_open()
        self.num_videos += chunk.shape[1]
        self._put_away(chunk)

    def chunks(self) -> Iterator[NDArray[np.uint32]]:
        """All keys, as arrays [C, n] of at most 64 MiB."""
        self._check_open()
        for chunk in list(self._chunks):
            yield self._rows(chunk, 0, self._num_classes)
        if self._filling is not None:
            yield self._filling[:, : self._num_filled].copy()

    def classes(self, start: int, stop: int) -> NDArray[np.uint32]:
        """[stop - start, N] keys of these classes, over all videos."""
        self._check_open()
        keys = np.empty((stop - start, self.num_videos), np.uint32)
        done = 0
        for chunk in self._chunks:
            rows = self._rows(chunk, start, stop)
            keys[:, done : done + rows.shape[1]] = rows
            done += rows.shape[1]
        if self._filling is not None:
            keys[:, done:] = self._filling[start:stop, : self._num_filled]
        return keys

    def close(self) -> None:
        """Forget all keys and remove the file. Nothing else may be called afterwards."""
        self._closed = True
        self._chunks, self._filling = [], None
        if self._file is not None:
            self._file.close()

    def _check_open(self) -> None:
        if self._closed:
            raise ValueError("this accumulator is closed; make a new one.")

    def _put_away(self, chunk: NDArray[np.uint32]) -> None:
        if chunk.nbytes <= self._memory_left:
            self._memory_left -= chunk.nbytes
            self._chunks.append(chunk)
        else:
            self._chunks.append(self._write(chunk))

    def _write(self, chunk: NDArray[np.uint32]) -> _FileChunk:
        try:
            file = self._file or self._open()
            offset = file.seek(0, os.SEEK_END)
            left = np.ascontiguousarray(chunk).reshape(-1).view(np.uint8).data
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
        file = self._file or self._open()
        file.seek(chunk.offset + start * chunk.num_videos * _KEY_BYTES)
        left = rows.reshape(-1).view(np.uint8).data
        while left:
            count = file.readinto(left)  # type: ignore[attr-defined]
            if not count:
                raise OutputError("the temporary file with the scores for mAP was cut short by someone else.")
            left = left[count:]
        return rows


def _close_quietly(file: BinaryIO) -> None:
    with suppress(OSError):
        file.close()
