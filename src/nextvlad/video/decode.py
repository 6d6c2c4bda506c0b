"""A video file decoded once from its start: pictures at a stated rate, and sound as 16 kHz mono.

Nothing here imports torch. Memory does not grow with the length of the film.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from typing import Self

from nextvlad.errors import VideoError
from nextvlad.video.files import Media as Media
from nextvlad.video.files import Opened, open_media, pyav
from nextvlad.video.reading import SEEK_MARGIN_SECONDS, Reading, SeekMissed
from nextvlad.video.reading import Picture as Picture
from nextvlad.video.reading import ReadOptions as ReadOptions
from nextvlad.video.reading import Sound as Sound

_SEEK_FORMATS = ("mp4", "matroska", "avi")
"""Containers whose timestamps stay exact after a jump; others are read from their start."""


def probe(path: str | os.PathLike[str]) -> Media:
    """What a file says of itself; decodes at most its first picture (for the rotation).

    Raises:
        UsageError: PyAV is not installed.
        VideoError: the file cannot be read.
    """
    opened = open_media(path, ReadOptions())
    with opened.container:
        return _with_rotation(opened)


class Clip:
    """One pass over a file: iterate for `Picture` and `Sound` in the order in which they are ready.

    A context manager; can be iterated once.

    Args:
        path: the file.
        options: what to read of it.

    Raises:
        UsageError: PyAV is not installed.
        VideoError: the file cannot be read; while iterating, nothing in it could be decoded.
    """

    def __init__(self, path: str | os.PathLike[str], options: ReadOptions | None = None) -> None:
        self.path = os.fspath(path)
        self.options = options or ReadOptions()
        self._opened = open_media(self.path, self.options)
        self.media = self._opened.media
        self.notes: list[str] = list(self.media.notes)
        """What was unusual, in sentences without a full stop; complete when the iteration is."""
        self.picture_end_seconds: float | None = None
        """Where the pictures end, known after the iteration; None if there are none."""
        self.sound_end_seconds: float | None = None
        """Where the sound ends, likewise."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._opened.container.close()

    def __iter__(self) -> Iterator[Picture | Sound]:
        start = self.options.start_seconds or 0.0
        if start > 2 * SEEK_MARGIN_SECONDS and self._may_seek():
            reading = Reading(self._opened, self.options, seek=True)
            try:
                yield from reading.held_until_proven()
            except SeekMissed:
                self.close()
                self._opened = open_media(self.path, self.options)
                reading = Reading(self._opened, self.options, seek=False)
                yield from reading
        else:
            reading = Reading(self._opened, self.options, seek=False)
            yield from reading
        self._conclude(reading)

    def _may_seek(self) -> bool:
        if self.media.duration_seconds is None:
            return False
        return any(name in self._opened.container.format.name for name in _SEEK_FORMATS)

    def _conclude(self, reading: Reading) -> None:
        self.picture_end_seconds = reading.picture_end_seconds
        self.sound_end_seconds = reading.sound_end_seconds
        self.notes += reading.all_notes()
        if self.picture_end_seconds is None and self.sound_end_seconds is None:
            raise VideoError(f"{self.path}: {self._nothing(reading)}")

    def _nothing(self, reading: Reading) -> str:
        start, end = self.options.start_seconds, self.options.end_seconds
        if reading.saw_any and (start or end is not None):
            long = self.media.duration_seconds
            length = f"it is {long:.2f} seconds long" if long else "it is shorter than that"
            return f"nothing from second {start or 0:g} to {'its end' if end is None else end}; {length}."
        for name, wanted, other, there in (
            ("pictures", self.options.pictures, self.options.sound, self.media.has_video),
            ("sound", self.options.sound, self.options.pictures, self.media.has_audio),
        ):
            if wanted and not other and not there:
                return f"no {name} in it, and nothing else is asked for."
        asked = "" if self.options.pictures and self.options.sound else " of what was asked for"
        return (
            f"nothing{asked} could be decoded ({'; '.join(self.notes) or 'no frames'}). "
            "The file is damaged or cut off; fetch it again."
        )


def _with_rotation(opened: Opened) -> Media:
    """The media with the rotation that its first picture carries."""
    av = pyav()
    if opened.video is None:
        return opened.media
    try:
        frame = next(opened.container.decode(opened.video))
    except (av.FFmpegError, StopIteration, ValueError):
        return opened.media
    return replace(opened.media, rotation_degrees=frame.rotation)
