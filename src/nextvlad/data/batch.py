"""A batch of videos: packed frames a stream, labels, ids.

Videos have between no and a few hundred frames, so a batch is not padded: the frames of all its
videos lie one behind the other, and offsets say where each video begins. Frames stay bytes until
they are on the device. Letters: B videos, N frames of all of them together, T frames of the longest
one, D values a frame, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nextvlad.config import StreamConfig
from nextvlad.data.video_record import VideoRecord
from nextvlad.errors import RecordError

_ALIGNMENT = 64  # bytes; each part of a packed batch starts at a multiple of it


@dataclass(slots=True)
class Frames:
    """One stream of a batch. The frames of video b are `values[offsets[b]:offsets[b + 1]]`.

    Attributes:
        values: [N, D] uint8 as stored in YouTube-8M, or float32 where the records hold floats.
        offsets: [B + 1] int64, rising from 0 to N; two equal neighbours are a video without frames.
    """

    values: Tensor
    offsets: Tensor

    def __getitem__(self, videos: slice) -> Frames:
        """The frames of some neighbouring videos; `values` is a view."""
        offsets = self.offsets[videos.start : videos.stop + 1]
        first, last = int(offsets[0]), int(offsets[-1])
        return Frames(self.values[first:last], offsets - first)


@dataclass(slots=True)
class FrameBatch:
    """B videos, packed.

    Attributes:
        video_ids: B ids.
        labels: [B, C] bool, True for a class the video has; all False for a video without labels.
        streams: name of each stream -> its frames.
        rated: [B, C] bool, True where somebody judged whether the class is there (segments of YouTube-8M
            2019): only there a loss or a score means anything. None: everywhere.
    """

    video_ids: list[str]
    labels: Tensor
    streams: dict[str, Frames]
    rated: Tensor | None = None

    @property
    def num_videos(self) -> int:
        """B."""
        return len(self.video_ids)

    @classmethod
    def empty(cls, streams: Sequence[StreamConfig], num_classes: int) -> FrameBatch:
        """No videos: what a process computes on while others still have data.

        >>> FrameBatch.empty([StreamConfig(name="rgb", size=1024)], 10).streams["rgb"].values.shape
        torch.Size([0, 1024])
        """
        return collate([], streams=streams, num_classes=num_classes)

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> FrameBatch:
        """The batch on a device; `non_blocking` pays where the batch is pinned."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> FrameBatch:
        """A copy in page-locked memory, from which a GPU can fetch by itself. Needs CUDA."""
        return self._map(lambda tensor: tensor.pin_memory())

    def __getitem__(self, videos: slice) -> FrameBatch:
        """Some neighbouring videos, `batch[:80]`; labels and frames are views."""
        start, stop, step = videos.indices(self.num_videos)
        if step != 1:
            raise ValueError(f"FrameBatch[...]: got step {step}, wanted neighbouring videos (step 1).")
        part = slice(start, max(start, stop))
        streams = {name: frames[part] for name, frames in self.streams.items()}
        rated = None if self.rated is None else self.rated[part]
        return FrameBatch(self.video_ids[part], self.labels[part], streams, rated)

    def split(self, parts: int) -> list[FrameBatch]:
        """At most `parts` batches of about equal numbers of videos, none empty, in order."""
        if parts < 1:
            raise ValueError(f"FrameBatch.split: got {parts} parts, wanted 1 or more.")
        parts = min(parts, self.num_videos)
        bounds = [self.num_videos * part // parts for part in range(parts + 1)] if parts else [0]
        return [self[start:stop] for start, stop in pairwise(bounds)]

    def padded(self, name: str) -> tuple[Tensor, Tensor]:
        """One stream with zeros behind the shorter videos, for those who want a rectangle.

        Returns:
            values [B, T, D] of the stream's dtype, and mask [B, T] bool, True for a real frame.
        """
        frames = self.streams[name]
        lengths = frames.offsets.diff()  # [B]
        longest = int(lengths.max()) if self.num_videos else 0
        mask = torch.arange(longest, device=lengths.device) < lengths[:, None]  # [B, T]
        values = frames.values.new_zeros(*mask.shape, frames.values.shape[1])  # [B, T, D]
        values[mask] = frames.values
        return values, mask

    def _map(self, change: Callable[[Tensor], Tensor]) -> FrameBatch:
        streams = {
            name: Frames(change(frames.values), change(frames.offsets))
            for name, frames in self.streams.items()
        }
        rated = None if self.rated is None else change(self.rated)
        return FrameBatch(self.video_ids, change(self.labels), streams, rated)


def collate(
    records: Sequence[VideoRecord], *, streams: Sequence[StreamConfig], num_classes: int
) -> FrameBatch:
    """Packs records into one batch; each frame is copied once.

    A record that lacks one of `streams` has no frames in it. A label given twice counts once.

    Args:
        records: B records, any number of frames each, also none.
        streams: what the model wants; other streams of a record are left out.
        num_classes: C; labels lie in 0..C-1.

    Raises:
        RecordError: names the video: a stream of another size, a label out of range, other
            streams than the wanted ones (see `find_fault`), or another dtype than its companions.
    """
    for record in records:
        if fault := find_fault(record, streams, num_classes):
            raise RecordError(f"video {record.video_id}: {fault}")
    return pack(records, streams, num_classes).batch()


def find_fault(record: VideoRecord, streams: Sequence[StreamConfig], num_classes: int) -> str | None:
    """Why a model with these streams and classes cannot take the record; None if it can.

    A missing stream alone is no fault (a video without sound), nor is a surplus one; both together
    are, since then the names are probably mistaken.
    """
    missing = False
    for stream in streams:
        values = record.streams.get(stream.name)
        if values is None:
            missing = True
        elif len(values) and values.shape[1] != stream.size:
            return (
                f"stream {stream.name} has {values.shape[1]} values a frame, wanted {stream.size}. "
                "Take data of that size, or train a model with "
                f"--model.streams {stream.name}:{values.shape[1]}."
            )
        elif values.dtype != np.uint8 and values.dtype != np.float32:
            return f"stream {stream.name} holds {values.dtype}, wanted bytes (uint8) or float32."
    if missing and not {stream.name for stream in streams}.issuperset(record.stream_names):
        return _wrong_names(record, streams)
    labels = record.labels.tolist() + ([] if record.rated is None else record.rated.tolist())
    if labels and (min(labels) < 0 or max(labels) >= num_classes):
        wrong = next(label for label in labels if not 0 <= label < num_classes)
        return (
            f"label {wrong}, wanted 0..{num_classes - 1} for {num_classes} classes. Take data with the "
            "labels of this model, or train one with the vocabulary of this data (--data.vocabulary)."
        )
    return None


def _wrong_names(record: VideoRecord, streams: Sequence[StreamConfig]) -> str:
    sizes = {name: values.shape[1] for name, values in record.streams.items()}
    found = ", ".join(f"{name} ({sizes.get(name, '?')})" for name in record.stream_names)
    wanted = ", ".join(f"{stream.name} ({stream.size})" for stream in streams)
    option = " ".join(f"{name}:{sizes.get(name, 'SIZE')}" for name in record.stream_names)
    return (
        f"found streams {found}; the model wants {wanted}. Take data that has them, or train a model of "
        f"these with --model.streams {option}."
    )


class Part(NamedTuple):
    """The frames of one stream in a `PackedBatch`: N of `size` values, in `room` bytes, which may be more."""

    name: str
    dtype: torch.dtype
    num_frames: int
    size: int
    room: int


@dataclass(slots=True)
class PackedBatch:
    """A batch in one block of memory, so that it is pinned, or sent to another process, in one go.

    Attributes:
        buffer: [bytes] uint8: the frames of each stream, the offsets of each, the labels, and what was rated
            if known. What lies between is nothing.
        video_ids: B ids.
        num_classes: C.
        parts: the streams, in order.
        has_rated: whether the buffer says what was rated.
    """

    buffer: Tensor
    video_ids: list[str]
    num_classes: int
    parts: list[Part]
    has_rated: bool = False
    _batch: FrameBatch = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._batch = self._views()

    def batch(self) -> FrameBatch:
        """The tensors, as views into the block."""
        return self._batch

    def _views(self) -> FrameBatch:
        num_videos, start = len(self.video_ids), 0

        def take(dtype: torch.dtype, *shape: int, room: int | None = None) -> Tensor:
            nonlocal start
            size = math.prod(shape) * dtype.itemsize
            part = self.buffer[start : start + size].view(dtype).view(shape)
            start += aligned(size if room is None else room)
            return part

        values = [take(part.dtype, part.num_frames, part.size, room=part.room) for part in self.parts]
        offsets = [take(torch.int64, num_videos + 1) for _ in self.parts]
        labels = take(torch.bool, num_videos, self.num_classes)
        rated = take(torch.bool, num_videos, self.num_classes) if self.has_rated else None
        names = [part.name for part in self.parts]
        streams = dict(zip(names, map(Frames, values, offsets), strict=True))
        return FrameBatch(self.video_ids, labels, streams, rated)

    def pin_memory(self) -> PackedBatch:
        """A copy in page-locked memory. Needs CUDA."""
        return self.copy(lambda size: torch.empty(size, dtype=torch.uint8, pin_memory=True))

    def copy(self, allocate: Callable[[int], Tensor]) -> PackedBatch:
        """A copy without the room that is not used, into [bytes] uint8 that `allocate` gives."""
        parts = [part._replace(room=part.num_frames * part.size * part.dtype.itemsize) for part in self.parts]
        rooms = [part.room for part in parts]
        size = packed_size(rooms, len(self.video_ids), self.num_classes, has_rated=self.has_rated)
        copy = replace(self, buffer=allocate(size), parts=parts)
        ours, theirs = self.batch(), copy.batch()
        for name, frames in theirs.streams.items():
            frames.values.copy_(ours.streams[name].values)
            frames.offsets.copy_(ours.streams[name].offsets)
        theirs.labels.copy_(ours.labels)
        if theirs.rated is not None and ours.rated is not None:
            theirs.rated.copy_(ours.rated)
        return copy


def packed_size(rooms: Sequence[int], num_videos: int, num_classes: int, *, has_rated: bool) -> int:
    """Bytes of the block of a batch whose streams have these `rooms`."""
    frames = sum(aligned(room) + aligned((num_videos + 1) * 8) for room in rooms)
    return frames + aligned(num_videos * num_classes) * (1 + has_rated)


def pack(records: Sequence[VideoRecord], streams: Sequence[StreamConfig], num_classes: int) -> PackedBatch:
    """`collate` for B records in which `find_fault` finds nothing.

    `nextvlad.data.packer.Packer` does the same video by video.
    """
    values = {stream.name: _values_of(records, stream) for stream in streams}
    parts = []
    for stream in streams:
        dtype = _dtype_of(values[stream.name], records, stream)
        num_frames = sum(map(len, values[stream.name]))
        room = num_frames * stream.size * dtype.itemsize
        parts.append(Part(stream.name, dtype, num_frames, stream.size, room))
    has_rated = any(record.rated is not None for record in records)
    rooms = [part.room for part in parts]
    buffer = torch.empty(
        packed_size(rooms, len(records), num_classes, has_rated=has_rated), dtype=torch.uint8
    )
    packed = PackedBatch(buffer, [record.video_id for record in records], num_classes, parts, has_rated)
    batch = packed.batch()
    labels = [record.labels for record in records]
    mark(batch, [len(of_one) for of_one in labels], labels, [record.rated for record in records])
    for name, frames in batch.streams.items():
        set_offsets(frames, [len(array) for array in values[name]])
        if len(frames.values):
            np.concatenate(values[name], out=frames.values.numpy())
    return packed


def set_offsets(frames: Frames, lengths: list[int]) -> None:
    """Writes where each video of a new batch begins, from its number of frames."""
    offsets = frames.offsets.numpy()
    offsets[0] = 0
    np.cumsum(lengths, out=offsets[1:])


def mark(
    batch: FrameBatch,
    label_counts: list[int],
    labels: list[NDArray[np.int64]],
    rated: list[NDArray[np.int64] | None],
) -> None:
    """Writes the labels of a new batch, and what was rated.

    Args:
        batch: of B videos.
        label_counts: B numbers of labels.
        labels: the classes of all videos, one's behind the other's, in any number of pieces.
        rated: the classes of each video; None: all of them.
    """
    _mark(batch.labels.numpy(), label_counts, labels)
    if batch.rated is not None:
        everything = np.arange(batch.rated.shape[1])
        classes = [everything if of_one is None else of_one for of_one in rated]
        _mark(batch.rated.numpy(), [len(of_one) for of_one in classes], classes)


def _values_of(records: Sequence[VideoRecord], stream: StreamConfig) -> list[NDArray[Any]]:
    """[T, D] of each record; no rows where a record lacks the stream, in the dtype of the others."""
    found = [record.streams.get(stream.name) for record in records]
    dtype = next((array.dtype for array in found if array is not None and len(array)), np.dtype(np.uint8))
    nothing: NDArray[Any] = np.empty((0, stream.size), dtype)
    return [array if array is not None and len(array) else nothing for array in found]


def _dtype_of(
    values: list[NDArray[Any]], records: Sequence[VideoRecord], stream: StreamConfig
) -> torch.dtype:
    dtypes = {array.dtype for array in values}
    if len(dtypes) > 1:
        first = values[0].dtype
        odd = next(index for index, array in enumerate(values) if array.dtype != first)
        raise RecordError(
            f"video {records[odd].video_id}: stream {stream.name} holds {values[odd].dtype}, that of video "
            f"{records[0].video_id} holds {first}. Keep data of the two kinds apart."
        )
    return torch.from_numpy(np.empty(0, dtypes.pop() if dtypes else np.uint8)).dtype


def _mark(out: NDArray[np.bool_], counts: list[int], pieces: list[NDArray[np.int64]]) -> None:
    """Sets [B, C] to True at so many classes of each row, and to False elsewhere."""
    out[:] = False
    if any(counts):
        out[np.repeat(np.arange(len(counts)), counts), np.concatenate(pieces)] = True


def aligned(size: int) -> int:
    """Bytes that `size` bytes take up in a packed batch."""
    return -(-size // _ALIGNMENT) * _ALIGNMENT
