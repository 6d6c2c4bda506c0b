"""Time in a clip: when a frame is shown, and which frame stands for which row.

Row t of a clip at rate r covers [t/r, (t+1)/r) seconds. Its picture is the one shown at its middle, and it
exists if the clip goes on past its middle; a clip that is shorter than half a row has one row.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Generic, TypeVar

Frame = TypeVar("Frame")

_BACKWARDS_SECONDS = 1.0  # less is jitter, more a new start of the timestamps
_LONGEST_GAP_SECONDS = 3600.0  # where the file does not say how long it is
_BEYOND_END_SECONDS = 60.0
_JITTER_SECONDS = 1e-6  # of times that went through floats


def middle_of(row: int, rate_hz: float) -> float:
    """The second that a row's picture is taken from."""
    return (row + 0.5) / rate_hz


def rows_of(seconds: float, rate_hz: float) -> int:
    """How many rows a clip has that lasts `seconds`: those whose middle it reaches, at least one."""
    return max(1, math.ceil(seconds * rate_hz - 0.5 - _JITTER_SECONDS))


class Clock:
    """Seconds from the start of the clip for one stream's frames, in the order they are shown.

    Timestamps that are missing are counted on; those that start anew or jump out of the file are taken
    to follow the frame before.

    Args:
        zero_seconds: the timestamp that is the clip's second 0.
        file_seconds: how long the file says it is, if it does.
        step_seconds: from a frame to the next, where frames do not say.
    """

    def __init__(self, zero_seconds: float, file_seconds: float | None, step_seconds: float) -> None:
        self.zero_seconds = zero_seconds
        self.file_seconds = file_seconds
        self.step_seconds = step_seconds
        self.last_seconds: float | None = None
        self.end_seconds = 0.0
        """Where the last frame ends."""
        self.num_missing = 0
        self.num_jumps = 0

    def place(self, timestamp_seconds: float | None, duration_seconds: float | None) -> float:
        """When the next frame is shown; never before the one before it."""
        follows = self.end_seconds if self.last_seconds is not None else 0.0
        if timestamp_seconds is None or not math.isfinite(timestamp_seconds):
            self.num_missing += 1
            seconds = follows
        else:
            seconds = timestamp_seconds - self.zero_seconds
            if self._jumps(seconds):
                self.num_jumps += 1
                self.zero_seconds += seconds - follows
                seconds = follows
        if self.last_seconds is not None:
            seconds = max(seconds, self.last_seconds)
        if not duration_seconds or not 0 < duration_seconds <= _BEYOND_END_SECONDS:
            duration_seconds = self.step_seconds
        self.last_seconds = seconds
        self.end_seconds = seconds + duration_seconds
        return seconds

    def _jumps(self, seconds: float) -> bool:
        last = self.last_seconds or 0.0
        if self.file_seconds is not None and seconds > max(last, self.file_seconds) + _BEYOND_END_SECONDS:
            return True
        if seconds > last + max(_LONGEST_GAP_SECONDS, self.file_seconds or 0.0):
            return True
        return self.last_seconds is not None and seconds < last - _BACKWARDS_SECONDS


class RowPicker(Generic[Frame]):
    """Gives every row the frame that is shown at its middle; the first frame stands for rows before it.

    Args:
        rate_hz: rows a second.
        num_rows: rows there can be at most, where the clip is cut.
    """

    def __init__(self, rate_hz: float, num_rows: int | None = None) -> None:
        self.rate_hz = rate_hz
        self.num_rows = num_rows
        self.next_row = 0
        self._held: tuple[float, Frame] | None = None

    @property
    def is_done(self) -> bool:
        """Whether the last row has its frame."""
        return self.num_rows is not None and self.next_row >= self.num_rows

    def offer(self, seconds: float, frame: Frame) -> Iterator[tuple[float, Frame]]:
        """The next frame in time; gives (its second, frame) for each row that the frame before is for."""
        if self._held is not None:
            yield from self._until(seconds - _JITTER_SECONDS)
        self._held = (seconds, frame)

    def finish(self, end_seconds: float) -> Iterator[tuple[float, Frame]]:
        """The rows that are left when the last frame ends at `end_seconds`."""
        if self._held is None:
            return
        rows = rows_of(end_seconds, self.rate_hz)
        yield from self._until(middle_of(rows - 1, self.rate_hz) + _JITTER_SECONDS)

    def _until(self, seconds: float) -> Iterator[tuple[float, Frame]]:
        while middle_of(self.next_row, self.rate_hz) < seconds and not self.is_done:
            assert self._held is not None
            self.next_row += 1
            yield self._held
