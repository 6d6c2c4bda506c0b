"""How a training ends before its time: a signal asks, the step is finished, everything is saved."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import torch

from nextvlad import distributed
from nextvlad.progress import say


class Interrupted(Exception):
    """Training stopped on a signal, after saving; `signum` says which."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum


class Stop:
    """The signal that asked to stop, 0 for none."""

    signum = 0


@contextmanager
def stop_on_signals() -> Iterator[Stop]:
    """SIGINT and SIGTERM ask to stop after the step; a second one stops at once."""
    stop = Stop()

    def ask(signum: int, frame: FrameType | None) -> None:
        if stop.signum:
            raise KeyboardInterrupt
        stop.signum = signum
        say(f"{signal.Signals(signum).name}: saving after this step; once more to stop at once.")

    previous = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def ask_all_ranks(stop: Stop, *, due: bool) -> tuple[bool, bool]:
    """Whether to stop, and whether it is time to save: the same answer on every rank.

    Saving takes all ranks, and their clocks differ, so the first rank's decides.

    Args:
        stop: of this rank; one that was asked stops all.
        due: whether it is time by this rank's clock.
    """
    wishes = torch.tensor(
        [stop.signum != 0, due and distributed.is_main()],
        dtype=torch.int64,
        device=distributed.collective_device(),
    )
    asked, due = (bool(votes) for votes in distributed.sum_over_ranks(wishes).tolist())
    return asked, due
