"""What became of a clip, and of which state of its file."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

_SECOND_NS = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a clip.

    Attributes:
        clip: its number.
        num_bytes: of its file.
        mtime_ns: when its file was last written, in nanoseconds since 1970; None: an earlier version of this
            program, which did not note it, has made the clip.
        num_rows: name of a stream -> T.
        seconds: how long its file is, where that says so.
        notes: what was unusual.
        failure: why it could not be read; None: it was.
    """

    clip: int
    num_bytes: int
    mtime_ns: int | None = None
    num_rows: dict[str, int] = field(default_factory=dict)
    seconds: float | None = None
    notes: tuple[str, ...] = ()
    failure: str | None = None

    def is_of(self, path: str) -> bool:
        """Whether the file is still as it was then, by its size and the time it was written.

        What is not there any more is not in doubt: its features are made.
        """
        num_bytes, mtime_ns = size_and_time(path)
        if mtime_ns is None:
            return True
        return num_bytes == self.num_bytes and (
            self.mtime_ns is None or _are_same_time(mtime_ns, self.mtime_ns)
        )


def size_and_time(path: str) -> tuple[int, int | None]:
    """Of a file, as an `Outcome` notes them; -1 and None if it is not there."""
    try:
        status = os.stat(path)
    except OSError:
        return -1, None
    return status.st_size, status.st_mtime_ns


def _are_same_time(one_ns: int, other_ns: int) -> bool:
    """A copy by tar or onto some file systems keeps whole seconds."""
    if one_ns % _SECOND_NS and other_ns % _SECOND_NS:
        return one_ns == other_ns
    return one_ns // _SECOND_NS == other_ns // _SECOND_NS
