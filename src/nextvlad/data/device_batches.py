"""Batches on their way to the device: on CUDA the next one is copied while the model works on the last.

The loader leaves batches in page-locked memory, from which the GPU fetches by itself, on a stream of its own.
Two buffers take turns on either side without being named: torch gives page-locked memory out again only when
the copies from it are done, and a batch's memory on the device only when the work that was queued on it when
the batch was let go of is done, as `record_stream` tells it.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import NamedTuple, cast

import torch
from torch import Tensor

from nextvlad.data.batch import FrameBatch
from nextvlad.data.loader import FrameLoader, Place


class DeviceBatch(NamedTuple):
    """One batch in both places."""

    host: FrameBatch
    here: FrameBatch
    """On the device; where that is the CPU, the same tensors."""


class DeviceBatches:
    """The batches of a loader, each on the host and on a device.

    Args:
        loader: with `pin_memory` where the device is CUDA; other memory is copied while everything waits.
        device: of the model.
    """

    def __init__(self, loader: FrameLoader, device: torch.device) -> None:
        self._loader = loader
        self._device = device
        self._place: Place | None = None  # after the batch handed out last, while the loader is further

    def __iter__(self) -> Iterator[DeviceBatch]:
        """The batches from here on; work on the current stream waits for each by itself.

        Leaving the loop, by any way, leaves the loader after the last batch that was handed out.
        """
        if self._device.type == "cuda":
            yield from self._one_ahead(_Copier(self._device))
        else:
            yield from (DeviceBatch(batch, batch.to(self._device)) for batch in self._loader)

    def position(self) -> dict[str, object]:
        """As `FrameLoader.position`, after the last batch that was handed out here."""
        return self._loader.position(self._place)

    def _one_ahead(self, copier: _Copier) -> Iterator[DeviceBatch]:
        batches = cast(Generator[FrameBatch, None, None], iter(self._loader))
        coming = _start_next(batches, copier)
        try:
            while coming is not None:
                if isinstance(coming, Exception):
                    raise coming
                now, self._place = coming, self._loader.place()
                coming = _start_next(batches, copier)
                yield DeviceBatch(now.host, copier.finish(now))
            self._place = None
        finally:
            if self._place is not None:
                batches.close()
                self._loader.go_back(self._place)
                self._place = None


class _Started(NamedTuple):
    """A copy that may still be under way."""

    host: FrameBatch
    here: FrameBatch
    done: torch.cuda.Event


class _Copier:
    """Copies on a stream of its own."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def start(self, batch: FrameBatch) -> _Started:
        with torch.cuda.stream(self._stream):
            here = batch.to(self._device, non_blocking=True)
            return _Started(batch, here, self._stream.record_event())

    def finish(self, started: _Started) -> FrameBatch:
        """The copy, for work on the current stream."""
        current = torch.cuda.current_stream(self._device)
        current.wait_event(started.done)
        for tensor in _tensors(started.here):
            tensor.record_stream(current)
        return started.here


def _start_next(batches: Iterator[FrameBatch], copier: _Copier) -> _Started | Exception | None:
    """The next batch under way, or what went wrong with it, to be told in its turn; None at the end."""
    try:
        batch = next(batches, None)
        return None if batch is None else copier.start(batch)
    except Exception as error:
        return error


def _tensors(batch: FrameBatch) -> Iterator[Tensor]:
    yield batch.labels
    if batch.rated is not None:
        yield batch.rated
    for frames in batch.streams.values():
        yield from (frames.values, frames.offsets)
