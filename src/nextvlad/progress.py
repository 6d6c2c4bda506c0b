"""What a person sees while long work goes on, and how the verbs speak.

On a terminal: one bar with rate and time left. Elsewhere (a log file, CI): a line now and then, so
that a log stays readable. All of it goes to standard error; standard output is for results.
"""

from __future__ import annotations

import time
from datetime import timedelta
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

console = Console(stderr=True, highlight=False, emoji=False)
"""Where all messages go."""

_SECONDS_BETWEEN_LINES = 20.0


def say(message: str) -> None:
    """One line of plain text to the user."""
    console.print(message, markup=False, soft_wrap=True)


def counted(number: int, what: str) -> str:
    """With the plural that it wants.

    >>> counted(1, "video"), counted(1200, "video")
    ('1 video', '1,200 videos')
    """
    return f"{number:,} {what}{'' if number == 1 else 's'}"


class ProgressBar:
    """Progress over `total` items (None: unknown); use as a context manager.

    >>> with ProgressBar("Reading", total=2, unit="videos", show=False) as bar:
    ...     bar.advance(2)
    """

    def __init__(self, title: str, *, total: int | None, unit: str, done: int = 0, show: bool = True) -> None:
        self._title, self._total, self._unit, self._done = title, total, unit, done
        self._first = done
        self._show = show
        self._start = self._last_line = time.monotonic()
        self._bar: Progress | None = None
        self._task = TaskID(0)

    def __enter__(self) -> ProgressBar:
        self._start = self._last_line = time.monotonic()
        if self._show and console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=28),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"),
                TextColumn("{task.fields[note]}"),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                console=console,
                transient=True,
            )
            self._bar.start()
            self._task = self._bar.add_task(
                self._title, total=self._total, completed=self._done, rate="", note=""
            )
        return self

    def advance(self, count: int, note: str = "") -> None:
        """Counts `count` more items as done; `note` is shown beside the bar."""
        self._done += count
        if not self._show:
            return
        now = time.monotonic()
        if self._bar is not None:
            self._bar.update(self._task, advance=count, rate=self._rate(now), note=note)
        elif now - self._last_line >= _SECONDS_BETWEEN_LINES:
            self._last_line = now
            of_total = f" of {self._total:,}" if self._total else ""
            parts = [f"{self._title}: {self._done:,}{of_total} {self._unit}", self._rate(now)]
            say(", ".join([*parts, *self._time_left(now), *([note] if note else [])]))

    def _rate(self, now: float) -> str:
        rate = (self._done - self._first) / max(now - self._start, 1e-9)
        return f"{rate:,.0f} {self._unit}/s" if rate >= 10 else f"{rate:.2g} {self._unit}/s"

    def _time_left(self, now: float) -> list[str]:
        """At the rate so far, as h:mm:ss; nothing where that is not known."""
        done = self._done - self._first
        if not self._total or not done or self._done > self._total:
            return []
        left = (self._total - self._done) * (now - self._start) / done
        return [f"{timedelta(seconds=round(left))} left"]

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
