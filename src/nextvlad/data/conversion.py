"""One data file to files of the other kind: TFRecord to PaddleVideo's pickle, and back."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Literal, Self

from nextvlad.data.paddle_pickle import PickleWriter
from nextvlad.data.sources import count_videos, read_file
from nextvlad.data.tfrecord import RecordWriter
from nextvlad.data.video_record import VideoRecord, serialize_video_record
from nextvlad.data.window import Compression
from nextvlad.errors import OutputError, RecordError, UsageError

Kind = Literal["tfrecord", "pickle"]

MAX_DAMAGE = 1000
"""Damaged records of one file that are listed; all are counted."""

_PROGRESS_BYTES = 8 << 20
_SUFFIXES: dict[tuple[Kind, Compression | None], str] = {
    ("tfrecord", None): ".tfrecord",
    ("tfrecord", "gzip"): ".tfrecord.gz",
    ("tfrecord", "zlib"): ".tfrecord.zlib",
    ("pickle", None): ".pkl",
}


@dataclass(frozen=True, slots=True)
class Target:
    """What to make of each file.

    Attributes:
        to: the kind of file.
        videos_per_file: None makes one file of each; else numbered files of at most so many videos.
        compression: of TFRecord files, as a whole.
    """

    to: Kind
    videos_per_file: int | None = None
    compression: Compression | None = None

    @property
    def suffix(self) -> str:
        """What its files' names end in."""
        return _SUFFIXES[self.to, self.compression]

    def name(self, stem: str, part: int) -> str:
        """The name of a file."""
        return f"{stem}{self.suffix}" if self.videos_per_file is None else f"{stem}-{part:05d}{self.suffix}"

    def stem(self, name: str) -> str | None:
        """The reverse: the stem of a name that `name` makes, None for other names."""
        if not name.endswith(self.suffix):
            return None
        stem = name.removesuffix(self.suffix)
        if self.videos_per_file is None:
            return stem
        stem, dash, part = stem.rpartition("-")
        return stem if dash and len(part) >= 5 and part.isdecimal() else None


@dataclass(slots=True)
class Converted:
    """What became of one file.

    Attributes:
        number: which source it is, from 0.
        outputs: name and size in bytes of each file made.
        num_videos: that were read and written, counted again in the files made.
        num_frames: of the longest stream of each video, together.
        num_bytes: of the source.
        num_damaged: records left out.
        damage: the messages of the first of them.
    """

    number: int
    outputs: list[tuple[str, int]] = field(default_factory=list)
    num_videos: int = 0
    num_frames: int = 0
    num_bytes: int = 0
    num_damaged: int = 0
    damage: list[str] = field(default_factory=list)

    def blame(self, error: RecordError) -> None:
        """Counts a record that is left out."""
        self.num_damaged += 1
        if len(self.damage) < MAX_DAMAGE:
            self.damage.append(str(error))


def convert_file(
    number: int,
    path: str,
    on_bytes: Callable[[int], None],
    *,
    folder: str,
    stems: tuple[str, ...],
    target: Target,
    skip_damaged: bool = False,
) -> Converted:
    """Converts one file, one video at a time, and counts what was written.

    Args:
        number: which source it is; its files are named after `stems[number]`.
        path: the source.
        on_bytes: called now and then with how many bytes of it were read since the last call.
        folder: where to write.
        stems: names of the files to make of all sources, without suffix.
        target: what to make.
        skip_damaged: leave damaged records out, instead of raising.

    Raises:
        RecordError: a damaged record, or one that the other kind of file cannot hold.
        OutputError: a file cannot be written, or does not hold what was written to it.
        UsageError: the source is missing or may not be read.
    """
    done = Converted(number, num_bytes=os.stat(path).st_size if os.path.exists(path) else 0)
    told = 0
    with _Parts(os.path.join(folder, stems[number]), target) as parts:
        for place, record in read_file(path, on_damage=done.blame if skip_damaged else None):
            if place.offset - told >= _PROGRESS_BYTES and place.offset < done.num_bytes:
                on_bytes(place.offset - told)
                told = place.offset
            try:
                parts.write(record)
            except UsageError as error:  # a value that the other kind has no form for
                wrong = RecordError(str(error)).at(place)
                if not skip_damaged:
                    raise wrong from error
                done.blame(wrong)
                continue
            done.num_videos += 1
            done.num_frames += max((len(frames) for frames in record.streams.values()), default=0)
        parts.finish()
        parts.check()
        done.outputs = [(os.path.basename(made), os.path.getsize(made)) for made in parts.made]
    on_bytes(max(0, done.num_bytes - told))
    return done


class _Parts:
    """The files made of one source; a context manager that removes them after an exception."""

    def __init__(self, stem: str, target: Target) -> None:
        self._folder, self._stem = os.path.split(stem)
        self._target = target
        self._writer: RecordWriter | PickleWriter | None = None
        self._path = ""  # of the file that is written
        self._count = 0
        self._counts: list[int] = []
        self.made: list[str] = []

    def __enter__(self) -> Self:
        return self

    def write(self, record: VideoRecord) -> None:
        """Appends a video, to a new file where the last is full."""
        most = self._target.videos_per_file
        if most is not None and self._count == most:
            self._close()
        if self._writer is None:
            self._open()
        if isinstance(self._writer, RecordWriter):
            self._writer.write(serialize_video_record(record))
        elif self._writer is not None:
            self._writer.write(record)
        self._count += 1

    def finish(self) -> None:
        """Closes the last file; a source without videos gives one file without videos."""
        if self._writer is None and not self.made:
            self._open()
        self._close()

    def check(self) -> None:
        """Counts the videos in the files, as a reader would find them."""
        for path, wanted in zip(self.made, self._counts, strict=True):
            try:
                found: object = count_videos(path)
            except RecordError as error:
                found = str(error)
            if found != wanted:
                raise OutputError(
                    f"{path}: {wanted} videos were written, but what is there is {found}. It was removed; "
                    "check the disk, and convert again."
                )

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            return
        if self._writer is not None:
            self._writer.__exit__(kind, error, trace)
        for path in self.made:
            with suppress(OSError):
                os.unlink(path)

    def _open(self) -> None:
        path = os.path.join(self._folder, self._target.name(self._stem, len(self.made)))
        writer: RecordWriter | PickleWriter
        if self._target.to == "pickle":
            writer = PickleWriter(path)
        else:
            writer = RecordWriter(path, self._target.compression)
        writer.__enter__()
        self._writer, self._path = writer, path

    def _close(self) -> None:
        if self._writer is None:
            return
        writer, self._writer = self._writer, None
        writer.__exit__(None, None, None)
        self.made.append(self._path)
        self._counts.append(self._count)
        self._count = 0
