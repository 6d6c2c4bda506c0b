"""Packs videos into batches one by one, as they are read, into memory that is used again.

The frames of a video are copied while they are still in the processor's cache, and never lie elsewhere. How
many frames a batch will have is not known when its first video comes: the room is that of the batches
before and a little more, and where it does not do, all moves into a larger block.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nextvlad.config import StreamConfig
from nextvlad.data.batch import PackedBatch, Part, aligned, mark, packed_size, set_offsets
from nextvlad.data.video_record import VideoRecord
from nextvlad.errors import RecordError

_SPARE = 1.1  # of room, over the most that a batch took
_LARGEST_GUESS = 1 << 26  # bytes of room for a stream before there are frames for half of it
_MOST_KEPT = 3  # blocks of memory that wait to be used again


@dataclass(slots=True)
class _Stream:
    """What is known of one stream of the batch that is being made, and of those before."""

    name: str
    size: int
    dtype: np.dtype[Any] = field(default_factory=lambda: np.dtype(np.uint8))
    most_frames: int = 0  # of a full batch
    capacity: int = 0
    lengths: list[int] = field(default_factory=list)
    num_frames: int = 0
    values: NDArray[Any] = field(default_factory=lambda: np.empty((0, 0), np.uint8))  # [capacity, D]

    def room(self) -> int:
        return self.capacity * self.size * self.dtype.itemsize

    def torch_dtype(self) -> torch.dtype:
        """Bytes where there are no frames, whatever the batch before had."""
        return torch.from_numpy(np.empty(0, self.dtype if self.num_frames else np.uint8)).dtype


class Packer:
    """Makes one batch after another; the same as `nextvlad.data.batch.pack` on all videos of each.

    Args:
        streams: what goes into a batch.
        num_classes: C.
        batch_size: videos a batch has at most.
        allocate: number of bytes -> [bytes] uint8 on the CPU; None: `ReusedMemory`.
    """

    def __init__(
        self,
        streams: Sequence[StreamConfig],
        num_classes: int,
        batch_size: int,
        *,
        allocate: Callable[[int], Tensor] | None = None,
    ) -> None:
        self._num_classes = num_classes
        self._batch_size = batch_size
        self._allocate = allocate or ReusedMemory().allocate
        self._streams = [_Stream(stream.name, stream.size) for stream in streams]
        self._buffer: Tensor | None = None
        self._begin()

    def _begin(self) -> None:
        self._ids: list[str] = []
        self._label_counts: list[int] = []
        self._labels: list[NDArray[np.int64]] = []  # of all videos, in pieces
        self._rated: list[NDArray[np.int64] | None] = []
        self._has_rated = False
        self._buffer = None
        for stream in self._streams:
            stream.lengths, stream.num_frames = [], 0
            stream.capacity = int(stream.most_frames * _SPARE)

    def __len__(self) -> int:
        """Videos in the batch so far."""
        return len(self._ids)

    @property
    def missing(self) -> int:
        """Videos until the batch is full."""
        return self._batch_size - len(self._ids)

    def add(self, record: VideoRecord) -> None:
        """Copy one video, in which `find_fault` finds nothing, to the end of the batch.

        Raises:
            RecordError: a stream of another dtype than its companions in the batch.
        """
        for stream in self._streams:
            values = record.streams.get(stream.name)
            count = 0 if values is None else len(values)
            if values is not None and count:
                start, stop = stream.num_frames, stream.num_frames + count
                if self._buffer is None or stop > stream.capacity or values.dtype != stream.dtype:
                    self._prepare(stream, record.video_id, values)
                stream.values[start:stop] = values
                stream.num_frames = stop
            stream.lengths.append(count)
        self._ids.append(record.video_id)
        self._label_counts.append(len(record.labels))
        self._labels.append(record.labels)
        self._rated.append(record.rated)
        self._has_rated |= record.rated is not None

    def rooms(self) -> tuple[NDArray[np.uint8], ...] | None:
        """Of each stream [frames, D], where the bytes of videos to come go; `added` tells which are there.

        None: the size of the batch is not known before a first video was added, or it holds floats.
        """
        if self._buffer is None:
            if not any(stream.capacity for stream in self._streams):
                return None
            self._lay_out()
        if any(stream.dtype != np.uint8 for stream in self._streams):
            return None
        return tuple([stream.values[stream.num_frames :] for stream in self._streams])

    def added(self, video_ids: list[str], counts: NDArray[np.int64], labels: NDArray[np.int64]) -> None:
        """Videos whose frames were put into `rooms`, without a gap.

        Args:
            video_ids: B ids.
            counts: [B, streams + 1]: the frames of each stream, and the number of labels.
            labels: the labels of all, one video's behind the other's; what follows is not looked at.
        """
        *lengths, label_counts = counts.T.tolist()
        for stream, of_stream in zip(self._streams, lengths, strict=True):
            stream.lengths += of_stream
            stream.num_frames += sum(of_stream)
        self._ids += video_ids
        self._label_counts += label_counts
        self._labels.append(labels[: sum(label_counts)].copy())
        self._rated += [None] * len(video_ids)

    def finish(self) -> PackedBatch:
        """The batch; what is added next is another one."""
        buffer = self._lay_out() if self._buffer is None else self._buffer
        parts = [
            Part(stream.name, stream.torch_dtype(), stream.num_frames, stream.size, stream.room())
            for stream in self._streams
        ]
        packed = PackedBatch(buffer, self._ids, self._num_classes, parts, self._has_rated)
        batch = packed.batch()
        mark(batch, self._label_counts, self._labels, self._rated)
        for stream in self._streams:
            set_offsets(batch.streams[stream.name], stream.lengths)
            if len(self._ids) == self._batch_size:  # a smaller one may be of a few long videos
                stream.most_frames = max(stream.most_frames, stream.num_frames)
            stream.values = np.empty((0, stream.size), np.uint8)  # else it would keep the memory in use
        self._begin()
        return packed

    def _prepare(self, stream: _Stream, video_id: str, values: NDArray[Any]) -> None:
        """Have room for more frames of this dtype."""
        if values.dtype != stream.dtype:
            if stream.num_frames:
                raise RecordError(
                    f"video {video_id}: stream {stream.name} holds {values.dtype}, that of video "
                    f"{self._first_with(stream)} holds {stream.dtype}. Keep data of the two kinds apart."
                )
            stream.dtype = values.dtype
            self._lay_out()
        wanted = stream.num_frames + len(values)
        if wanted > stream.capacity:
            # As if the videos to come were like those that came.
            expected = wanted / (len(self._ids) + 1) * self._batch_size * _SPARE
            most = _LARGEST_GUESS // (stream.size * stream.dtype.itemsize)
            stream.capacity = max(wanted, 2 * stream.capacity, min(int(expected), most))
            self._lay_out()
        elif self._buffer is None:
            self._lay_out()

    def _first_with(self, stream: _Stream) -> str:
        """Id of the first video of the batch that has frames."""
        return next(name for name, length in zip(self._ids, stream.lengths, strict=True) if length)

    def _lay_out(self) -> Tensor:
        """Takes a block for the capacities as they are, and moves there what the batch has."""
        rooms = [stream.room() for stream in self._streams]
        total = packed_size(rooms, self._batch_size, self._num_classes, has_rated=True)
        self._buffer = buffer = self._allocate(total)
        memory = buffer.numpy()
        start = 0
        for stream, room in zip(self._streams, rooms, strict=True):
            values = memory[start : start + room].view(stream.dtype).reshape(stream.capacity, stream.size)
            if stream.num_frames:
                values[: stream.num_frames] = stream.values[: stream.num_frames]
            stream.values = values
            start += aligned(room)
        return buffer


class ReusedMemory:
    """Memory of this process that is given out again once nobody has any part of it.

    The system takes back freed memory of this size and gives it out again page by page, which costs as much
    as filling it.
    """

    def __init__(self) -> None:
        self._free: list[NDArray[np.uint8]] = []

    def allocate(self, size: int) -> Tensor:
        """[size] uint8."""
        while self._free:
            memory = self._free.pop()
            if len(memory) >= size:
                break
        else:
            memory = np.empty(size, np.uint8)
        lease = memory[:size]
        weakref.finalize(lease, _give_back, self._free, memory).atexit = False
        return torch.from_numpy(lease)


def _give_back(free: list[NDArray[np.uint8]], memory: NDArray[np.uint8]) -> None:
    if len(free) < _MOST_KEPT:
        free.append(memory)
