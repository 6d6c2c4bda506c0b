"""Inference on a GPU through CUDA graphs: all kernels of a batch are started at once, not one by one.

A batch is some 40 kernels. Where the frames are few, the GPU runs each faster than the host starts the next.
A graph holds them all, and the host says only "again". It is captured once for fixed places in memory and for
fixed numbers of videos and of frames. So there is a buffer for frames, which all graphs share, and each graph
has room for a rounded-up number of frames in it (`room_for`). A batch is copied to its place; frames behind
its last video, left there by others, belong to none and count nowhere.

The logits are those of the same work kernel by kernel, but for the last bits: products of other sizes may add
up in another order.
"""

from __future__ import annotations

import math
import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nextvlad.data.batch import FrameBatch, Frames, aligned
from nextvlad.errors import is_out_of_memory

_AFTER = 50  # batches: to capture takes about as long as a graph then has saved in so many; not measured
_MOST_BYTES = 1 << 25  # of frames: with more, the GPU has work for longer than the host needs to start it
_MOST_SHAPES = 64
_FEWEST_FRAMES = 128  # with fewer, no kernel is faster

Answer = Callable[[FrameBatch], Tensor]
"""Batch -> logits, in new memory, without waiting for the device."""
Replay = Callable[[], Tensor]
"""Does captured work once more; the result is always in the same memory."""
Capture = Callable[[Callable[[], Tensor]], Replay]
"""Work on tensors that stay where they are -> what does it again."""


class Graphs:
    """Answers batches, those of shapes that come often from graphs.

    A shape is a number of videos and a rounded number of frames in each stream. All else is done kernel by
    kernel: rare shapes, batches of floats or without videos, and ones so large that a graph gains nothing.
    So is everything if a capture fails, for want of memory too, or if memory runs out elsewhere, which the
    graphs could be holding; a RuntimeWarning says so once.

    Calls from several threads take turns. Graphs share memory, so that all serve one CUDA stream, that of the
    batch that was the first to be captured; others go kernel by kernel.

    Args:
        device: where the batches and the model are.
        capture: makes graphs; None: CUDA's.
        after: batches of a shape that come before it is captured.
        most_bytes: of frames that a graph has room for, and of the buffer.
        most_shapes: that are counted, or have a graph; of more the one that did not come for longest is
            forgotten.
    """

    def __init__(
        self,
        device: torch.device,
        capture: Capture | None = None,
        *,
        after: int = _AFTER,
        most_bytes: int = _MOST_BYTES,
        most_shapes: int = _MOST_SHAPES,
    ) -> None:
        self._device = device
        self._capture = _CudaCapture(device) if capture is None else capture
        self._after, self._most_bytes, self._most_shapes = after, most_bytes, most_shapes
        self._shapes: OrderedDict[_Shape, _Known] = OrderedDict()
        self._buffer: Tensor | None = None
        self._stream: object = None
        self._given_up = False
        self._lock = threading.Lock()

    @property
    def num_captured(self) -> int:
        """Graphs there are now."""
        return sum(known.graph is not None for known in self._shapes.values())

    def __call__(self, answer: Answer, batch: FrameBatch) -> Tensor:
        """What `answer` gives for a batch, without a gradient; nobody else has the memory of the result.

        Args:
            answer: the same for all batches.
            batch: on the device or, to be refused by `answer`, elsewhere.
        """
        shape = None if self._given_up else self._shape_of(batch)
        try:
            logits = None if shape is None else self._from_graph(shape, answer, batch)
            return answer(batch) if logits is None else logits
        except (MemoryError, RuntimeError) as error:
            if self._buffer is None or not is_out_of_memory(error):
                raise
        # Nothing of the attempt is alive any more here. If this fails as well, the caller has halves to try.
        with self._lock:
            self._give_up("their memory is needed")
        return answer(batch)

    def _shape_of(self, batch: FrameBatch) -> _Shape | None:
        """None for a batch that no graph is for."""
        streams = []
        for name, frames in batch.streams.items():
            if frames.values.dtype != torch.uint8 or frames.values.device != self._device:
                return None
            streams.append(_Room(name, room_for(len(frames.values)), frames.values.shape[1]))
        shape = _Shape(batch.num_videos, tuple(streams))
        if not batch.num_videos or not streams or shape.num_bytes > self._most_bytes:
            return None
        return shape

    def _from_graph(self, shape: _Shape, answer: Answer, batch: FrameBatch) -> Tensor | None:
        """The logits of a batch of this shape; None without a graph for it on this CUDA stream."""
        with self._lock:
            # Looked at here, since another thread may have captured the first one while this one waited.
            if self._stream is not None and self._stream != _current_stream(self._device):
                return None
            graph = self._find(shape, answer)
            return None if graph is None else graph(batch)

    def _find(self, shape: _Shape, answer: Answer) -> _Graph | None:
        """The graph for a batch of this shape, captured now if it is time; counts the batch."""
        if self._given_up:
            return None
        known = self._shapes.setdefault(shape, _Known())
        self._shapes.move_to_end(shape)
        if len(self._shapes) > self._most_shapes:
            self._shapes.popitem(last=False)
        known.num_batches += 1
        if known.graph is None and known.num_batches > self._after:
            try:
                known.graph = self._make(shape, answer)
            except Exception as error:  # whatever the driver comes up with: slower is better than not at all
                fault = f"{type(error).__name__}: {error}"
            if known.graph is None:
                self._give_up(fault)
        return known.graph

    def _make(self, shape: _Shape, answer: Answer) -> _Graph:
        # Made in inference mode they could not be written outside of it.
        with torch.inference_mode(False), torch.no_grad():
            if self._buffer is None:
                self._buffer = torch.zeros(self._most_bytes, dtype=torch.uint8, device=self._device)
                self._stream = _current_stream(self._device)
            batch = shape.place_in(self._buffer)
            return _Graph(batch, self._capture(partial(answer, batch)))

    def _give_up(self, why: str) -> None:
        if self._given_up:  # in another thread meanwhile
            return
        self._given_up = True
        self._shapes.clear()
        self._buffer = None
        warnings.warn(
            f"CUDA graphs are not used on {self._device} from here on ({why}); small batches take longer.",
            RuntimeWarning,
            stacklevel=2,
        )


class _Graph:
    """Captured work on the batch in its place."""

    def __init__(self, place: FrameBatch, replay: Replay) -> None:
        self._place, self._replay = place, replay

    def __call__(self, batch: FrameBatch) -> Tensor:
        for name, frames in batch.streams.items():
            own = self._place.streams[name]
            own.values[: len(frames.values)].copy_(frames.values)
            own.offsets.copy_(frames.offsets)
        return self._replay().clone()


@dataclass(slots=True)
class _Known:
    """What there is for one shape."""

    num_batches: int = 0
    graph: _Graph | None = None


class _Room(NamedTuple):
    """For frames of one stream."""

    name: str
    num_frames: int
    size: int

    @property
    def num_bytes(self) -> int:
        return aligned(self.num_frames * self.size)


class _Shape(NamedTuple):
    """What batches have in common that one graph can answer."""

    num_videos: int
    streams: tuple[_Room, ...]

    @property
    def num_bytes(self) -> int:
        """Of all frames."""
        return sum(room.num_bytes for room in self.streams)

    def place_in(self, buffer: Tensor) -> FrameBatch:
        """A batch of all of the room: frames in the buffer, and offsets of its own, as of empty videos."""
        streams, start = {}, 0
        for room in self.streams:
            values = buffer[start : start + room.num_frames * room.size].view(room.num_frames, room.size)
            offsets = torch.zeros(self.num_videos + 1, dtype=torch.int64, device=buffer.device)
            streams[room.name] = Frames(values, offsets)
            start += room.num_bytes
        labels = torch.zeros(self.num_videos, 0, dtype=torch.bool, device=buffer.device)
        return FrameBatch([""] * self.num_videos, labels, streams)


def room_for(num_frames: int) -> int:
    """The room that a graph for so many frames has: at most an eighth more.

    Between two powers of two there are eight of them, so that batches of about the same size share one.

    >>> [room_for(number) for number in (0, 128, 129, 1600, 18_400)]
    [128, 128, 144, 1664, 18432]
    """
    num_frames = max(num_frames, _FEWEST_FRAMES)
    step = 1 << (num_frames.bit_length() - 4)
    return math.ceil(num_frames / step) * step


def _current_stream(device: torch.device) -> object:
    """What work on the device is queued on; None where nothing is queued."""
    return torch.cuda.current_stream(device) if device.type == "cuda" else None


class _CudaCapture:
    """Makes CUDA graphs that share the memory between their first and their last kernel."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream: torch.cuda.Stream | None = None
        self._pool: Any = None

    def __call__(self, run: Callable[[], Tensor]) -> Replay:
        with torch.cuda.device(self._device):
            current = torch.cuda.current_stream(self._device)
            if self._stream is None:
                self._stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
                self._pool = torch.cuda.graph_pool_handle()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.stream(current):  # a capture that fails leaves its own as the current one
                self._stream.wait_stream(current)
                with torch.cuda.stream(self._stream):
                    run()  # what is made on first use: workspaces, kernels for these sizes
                # Mistakes of other threads are theirs: the loader's page-locks memory at any time.
                with torch.cuda.graph(
                    graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
                ):
                    logits = run()
                current.wait_stream(self._stream)

        def replay() -> Tensor:
            graph.replay()
            return logits

        return replay
