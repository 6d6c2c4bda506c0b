"""Everything that can go wrong for a reason a user can act on.

    NextvladError
    ├── UsageError           the call is at fault: exit status 2
    │   └── ConfigError      a configuration value or file
    └── DataError            the data, a file or the machine is at fault: exit status 1
        ├── RecordError      one record of one file
        ├── CheckpointError  a checkpoint folder
        ├── OutputError      a file that could not be written
        ├── VideoError       a video file that cannot be decoded
        ├── TrainingError    training cannot go on (non-finite loss, no labels)
        └── WorkerError      a reader process died

Each message says where, what we got, what was wanted and what to do, in the user's own spelling. The
command line prints the message alone and leaves with `exit_status`; only a bug shows a traceback.
"""

from __future__ import annotations

import errno
from typing import NamedTuple


class NextvladError(Exception):
    """Base of every error this package raises on purpose."""

    exit_status = 1


class UsageError(NextvladError):
    """The call is at fault: a path that is not there, an option that does not fit."""

    exit_status = 2


class ConfigError(UsageError):
    """A configuration value is out of range, or a configuration file has an unknown key."""


class DataError(NextvladError):
    """The data, a file, or the machine is at fault."""


class RecordPlace(NamedTuple):
    """Where a record stands, as far as it is known.

    `offset` counts bytes from the start of the file (of the decompressed bytes for a compressed
    file); `number` counts records from 0.
    """

    path: str
    offset: int
    number: int
    video_id: str | None = None

    def __str__(self) -> str:
        """The place as error messages spell it."""
        video = f" (video {self.video_id})" if self.video_id else ""
        return f"{self.path}, byte {self.offset}, record {self.number}{video}"


class RecordError(DataError):
    """One record is damaged, or does not hold what was wanted.

    Attributes:
        place: where the record stands; None until the reader that knows it fills it in.
        reason: what is wrong and what was wanted, without the place.
        framing_lost: True if nothing after this record can be read in the same file.
    """

    def __init__(self, reason: str, place: RecordPlace | None = None, *, framing_lost: bool = False) -> None:
        super().__init__(reason, place, framing_lost)
        self.reason = reason
        self.place = place
        self.framing_lost = framing_lost

    def __str__(self) -> str:
        """Place, then reason."""
        return f"{self.place}: {self.reason}" if self.place else self.reason

    def at(self, place: RecordPlace) -> RecordError:
        """The same error with its place; keeps a video id that is already known."""
        if self.place is not None and place.video_id is None and self.place.video_id is not None:
            place = RecordPlace(place.path, place.offset, place.number, self.place.video_id)
        return RecordError(self.reason, place, framing_lost=self.framing_lost)

    def __reduce__(self) -> tuple[object, ...]:
        """Survive the trip from a reader process to its parent."""
        return (_rebuild_record_error, (self.reason, self.place, self.framing_lost))


def _rebuild_record_error(reason: str, place: RecordPlace | None, framing_lost: bool) -> RecordError:
    return RecordError(reason, place, framing_lost=framing_lost)


class CheckpointError(DataError):
    """A checkpoint folder is missing, incomplete, damaged, or of another model."""


class OutputError(DataError):
    """A file could not be written: disk full, no permission, a folder in the way."""


class VideoError(DataError):
    """A video file cannot be read, or holds neither pictures nor sound that can be decoded."""


class TrainingError(DataError):
    """Training cannot go on: a non-finite loss, no labels in the data."""


class WorkerError(DataError):
    """A reader process died without saying why."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, the machine's or a GPU's.

    Torch has an error of its own for a GPU, and on the CPU only a text. What maps memory raises OSError.
    """
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
        or (isinstance(error, RuntimeError) and any(text in str(error) for text in _NO_MEMORY))
    )


_NO_MEMORY = ("DefaultCPUAllocator: can't allocate memory", "Storage size calculation")
