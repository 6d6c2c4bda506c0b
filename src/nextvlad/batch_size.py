"""`--batch-size auto`: how many videos at a time, found by trying made-up ones on the real model.

In evaluation and prediction the batch size changes no result, so it is the fastest that fits. In training it
changes what is learnt, so it is the recipe's, or half of that, a quarter and so on where memory does not do.
On a GPU a size fits if a try does not run out of memory. On a CPU the system would rather kill the process
than refuse, so there the memory that each video takes is measured on few of them, and compared with what is
free.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from nextvlad.config import StreamConfig
from nextvlad.data.batch import FrameBatch, Frames
from nextvlad.data.sources import read
from nextvlad.errors import RecordError, is_out_of_memory
from nextvlad.memory import available_memory, peak_memory

_LOOK_AT = 256  # videos, for the longest
_SHARE = 0.8  # of free memory that may be filled
_SMALLEST, _LARGEST = 16, 4096  # videos, for inference
_LONG_ENOUGH = 0.5  # seconds for a batch, beyond which larger ones gain nothing
_FASTER = 1.05  # by how much a larger batch has to be
_VISIBLE = 1 << 24  # bytes by which the peak has to rise to say something
_IN_READING = 6  # copies of a batch that reading has in the machine's memory at once


@dataclass(frozen=True)
class Chosen:
    """A batch size, and why: a line for the user."""

    batch_size: int
    reason: str


def longest_video(data: Sequence[str], streams: Sequence[StreamConfig], max_frames: int) -> int:
    """Frames of the longest of the first videos, at most `max_frames`; of any of the streams."""
    longest = 1
    for number, record in enumerate(read(data, max_frames=max_frames, on_damage=_ignore)):
        frames = [len(record.streams[stream.name]) for stream in streams if stream.name in record.streams]
        longest = max(longest, *frames)
        if number == _LOOK_AT - 1:
            break
    return min(longest, max_frames)


def made_up_batch(
    streams: Sequence[StreamConfig], num_classes: int, num_videos: int, num_frames: int
) -> FrameBatch:
    """Videos of random bytes, `num_frames` in each stream, with one label each; the same at each call."""
    numbers = torch.Generator().manual_seed(0)
    offsets = torch.arange(num_videos + 1) * num_frames
    frames = {
        stream.name: Frames(
            torch.randint(
                0, 256, (num_videos * num_frames, stream.size), dtype=torch.uint8, generator=numbers
            ),
            offsets,
        )
        for stream in streams
    }
    labels = torch.zeros(num_videos, num_classes, dtype=torch.bool)
    labels[torch.arange(num_videos), torch.arange(num_videos) % num_classes] = True
    return FrameBatch([f"made up {number}" for number in range(num_videos)], labels, frames)


def for_inference(
    work: Callable[[FrameBatch], object],
    batch_of: Callable[[int], FrameBatch],
    device: torch.device,
    *,
    workers: int = 1,
) -> Chosen:
    """The smallest batch size that is within 5 % of the fastest that fits.

    Args:
        work: what is done with a batch, to its end (on a GPU: until the result is there).
        batch_of: so many made-up videos, as long as real ones may be.
        device: where the model is.
        workers: reader processes, which have batches in memory as well.
    """
    rates: dict[int, float] = {}
    meter = _Meter(device, batch_of(1), workers)
    size, why = _SMALLEST, "larger ones were not tried"
    while size <= _LARGEST:
        if not meter.fits(size):
            why = f"memory does not do for {size}"
            break
        seconds = _time(work, batch_of(size))
        if seconds is None:
            why = f"memory did not do for {size}"
            break
        meter.note(size)
        rates[size] = size / seconds
        *before, last, newest = [0.0, *rates.values()]
        if max(last, newest) < _FASTER * max(before, default=0.0):
            why = f"{size} were no faster"
            break
        if seconds > _LONG_ENOUGH:
            why = "larger ones gain nothing"
            break
        size *= 2
    if not rates:
        return Chosen(1, "one video at a time: memory does not do for more")
    best = min(size for size, rate in rates.items() if rate * _FASTER >= max(rates.values()))
    return Chosen(best, f"{rates[best]:,.0f} videos/s in a try; {why}")


def for_training(
    work: Callable[[FrameBatch], object],
    batch_of: Callable[[int], FrameBatch],
    device: torch.device,
    *,
    wanted: int,
    reserve_bytes: int,
) -> Chosen:
    """`wanted`, or the first of its halves, quarters, ... that fits.

    Args:
        work: one pass of training, whose traces the caller removes.
        batch_of: so many made-up videos, as long as real ones may be.
        device: where the model is.
        wanted: the recipe's batch.
        reserve_bytes: what training will take besides (the optimiser's state).
    """
    if device.type == "cuda":
        fitting, why = _try_down(work, batch_of, device, wanted, reserve_bytes), "it fits"
    else:
        fitting, why = _measure_up(work, batch_of, device, wanted, reserve_bytes)
    chosen = wanted
    while chosen > max(fitting, 1):
        chosen //= 2
    if chosen == wanted:
        return Chosen(chosen, f"the recipe's; {why}")
    return Chosen(
        chosen, f"instead of the recipe's {wanted}, for which memory does not do ({why}); it learns otherwise"
    )


def _try_down(
    work: Callable[[FrameBatch], object],
    batch_of: Callable[[int], FrameBatch],
    device: torch.device,
    wanted: int,
    reserve_bytes: int,
) -> int:
    held = _attempt(lambda: torch.empty(reserve_bytes, dtype=torch.uint8, device=device))
    size = wanted
    while size > 1 and _time(work, batch_of(size)) is None:
        size //= 2
    del held
    torch.cuda.empty_cache()
    return size


def _measure_up(
    work: Callable[[FrameBatch], object],
    batch_of: Callable[[int], FrameBatch],
    device: torch.device,
    wanted: int,
    reserve_bytes: int,
) -> tuple[int, str]:
    meter = _Meter(device, batch_of(1), workers=1, reserve_bytes=reserve_bytes)
    size = 1
    while size <= wanted and not meter.knows and meter.fits(size):
        if _time(work, batch_of(size), repeat=False) is None:
            return size // 2, f"memory did not do for {size}"
        meter.note(size)
        size *= 2
    return meter.most(), meter.describe()


class _Meter:
    """What a video takes of the machine's memory, from how the peak rises when batches grow."""

    def __init__(
        self, device: torch.device, one: FrameBatch, workers: int, *, reserve_bytes: int = 0
    ) -> None:
        self.knows = False
        self._on_gpu = device.type == "cuda"
        self._free = _SHARE * available_memory() - (0 if self._on_gpu else reserve_bytes)
        size = sum(frames.values.nbytes for frames in one.streams.values()) + one.labels.nbytes
        # A batch waits in the readers, one is used, and the try has a made-up one.
        self._in_reading = size * (_IN_READING * max(workers, 1))
        self._per_video = float(size)
        self._peak, self._size = peak_memory(), 0
        self._largest = 0

    def note(self, size: int) -> None:
        """A batch of `size` has been done."""
        peak = peak_memory()
        risen, more = peak - self._peak, size - self._size
        self._largest = max(self._largest, size)
        if risen >= _VISIBLE:
            # The first rise may be of what all batches share; from the second on it is of the videos.
            self.knows = self._size > 0
            self._per_video = risen / more
            self._peak, self._size = peak, size

    def most(self) -> int:
        """Videos for which the free memory does; at least as many as were done."""
        return max(self._largest, int(self._free / (self._per_video + self._in_reading)))

    def fits(self, size: int) -> bool:
        """Whether so many should be tried: on a GPU only the readers' part is foreseen."""
        cost = self._in_reading + (0 if self._on_gpu else self._per_video)
        return size * cost <= self._free

    def describe(self) -> str:
        """For the line that says why."""
        cost = (self._per_video + self._in_reading) / 1e6
        return f"about {cost:,.1f} MB a video, {max(self._free, 0) / 1e9:,.1f} GB to fill"


def _time(work: Callable[[FrameBatch], object], batch: FrameBatch, *, repeat: bool = True) -> float | None:
    """Seconds of the work, after a first time that does not count; None where memory ran out."""
    seconds = 0.0
    for _ in range(1 + repeat):
        start = time.perf_counter()
        if _attempt(lambda: work(batch)) is None:
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            return None
        seconds = time.perf_counter() - start
    return seconds


def _attempt(work: Callable[[], object]) -> tuple[object] | None:
    try:
        return (work(),)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
    return None


def _ignore(error: RecordError) -> None:
    del error
