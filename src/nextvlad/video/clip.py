"""A clip in parts: rows of pictures and rows of sound, ready for a backbone. Imports no torch."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nextvlad.video.audio import SIZE, LogMel, SampleWindows
from nextvlad.video.decode import Clip, Picture, ReadOptions
from nextvlad.video.files import Media
from nextvlad.video.timeline import rows_of

ROWS_A_PART = 32
"""A part has at most about so many rows of a stream."""
_HELD_BACK = 2  # rows of each stream that are given only when both ends are known


@dataclass(frozen=True)
class ClipPart:
    """The next rows of a clip. Parts are joined by stacking; either stream may be ahead of the other."""

    pictures: NDArray[np.uint8]
    """[n, S, S, 3], one a row; n may be 0."""
    seconds: NDArray[np.float64]
    """[n] when each picture is first shown, from the start of the clip."""
    sound: NDArray[np.float32]
    """[m, 128] log-mel rows (see `audio.LogMel`), or [m, samples] where windows are asked for; m may be 0."""
    level_db: NDArray[np.float32]
    """[m] loudness of each row of sound in dBFS, -100 for silence."""
    media: Media
    """What the file says of itself."""
    is_last: bool
    notes: tuple[str, ...]
    """What was unusual, in sentences without a full stop; in the last part only."""


def read_clip(path: str | os.PathLike[str], options: ReadOptions | None = None) -> Iterator[ClipPart]:
    """Decodes one file once, in bounded memory.

    Streams that the clip lacks have no rows. Where pictures and sound end within a row of each other, both
    streams have the same number of rows, that of the shorter; otherwise each has its own, and a note tells.

    Args:
        path: the video, sound or image file.
        options: what to read of it.

    Yields:
        At least one part; the last one has `is_last`.

    Raises:
        UsageError: PyAV is not installed.
        VideoError: the file cannot be read, or nothing in it could be decoded.
    """
    options = options or ReadOptions()
    with Clip(path, options) as clip:
        rows = _Rows(options, clip.media)
        for piece in clip:
            if isinstance(piece, Picture):
                rows.pictures.append(piece)
            else:
                rows.sound += rows.analysis.add(piece.samples)
            if max(len(rows.pictures), len(rows.sound)) >= ROWS_A_PART + _HELD_BACK:
                yield rows.take(_HELD_BACK)
        rows.sound += rows.analysis.finish()
        notes = [*clip.notes, *rows.settle(clip.picture_end_seconds, clip.sound_end_seconds)]
        yield rows.take(0, is_last=True, notes=tuple(notes))


class _Rows:
    """Rows that are waiting to be given."""

    def __init__(self, options: ReadOptions, media: Media) -> None:
        self.options = options
        self.media = media
        window = options.sound_window_seconds
        self.analysis: LogMel | SampleWindows = (
            LogMel(options.rate_hz) if window is None else SampleWindows(options.rate_hz, window)
        )
        self.sound_size = SIZE if isinstance(self.analysis, LogMel) else self.analysis.size
        self.pictures: list[Picture] = []
        self.sound: list[tuple[NDArray[np.float32], float]] = []
        self._given_pictures = 0
        self._given_sound = 0

    def settle(self, picture_end: float | None, sound_end: float | None) -> list[str]:
        """At the end: both streams to the same number of rows where they end together; notes where not."""
        rate = self.options.rate_hz
        pictures = self._given_pictures + len(self.pictures)
        sound = self._given_sound + len(self.sound)
        if not pictures or not sound or picture_end is None or sound_end is None:
            if sound_end is not None:
                self._cut_sound(min(sound, rows_of(sound_end, rate)))
            return []
        if abs(picture_end - sound_end) <= 1.0 / rate or self.media.is_still:
            rows = min(pictures, sound)
            del self.pictures[rows - self._given_pictures :]
            self._cut_sound(rows)
            return []
        self._cut_sound(min(sound, rows_of(sound_end, rate)))
        which = (
            "the sound ends {} before the pictures"
            if sound_end < picture_end
            else "the pictures end {} before the sound"
        )
        return [which.format(f"{abs(picture_end - sound_end):.1f} seconds")]

    def _cut_sound(self, rows: int) -> None:
        del self.sound[max(0, rows - self._given_sound) :]

    def take(self, hold: int, *, is_last: bool = False, notes: tuple[str, ...] = ()) -> ClipPart:
        """All rows but the last `hold` of each stream."""
        num_pictures, num_sound = max(0, len(self.pictures) - hold), max(0, len(self.sound) - hold)
        pictures, self.pictures = self.pictures[:num_pictures], self.pictures[num_pictures:]
        sound, self.sound = self.sound[:num_sound], self.sound[num_sound:]
        self._given_pictures += num_pictures
        self._given_sound += num_sound
        size = self.options.image_size
        return ClipPart(
            pictures=np.stack([picture.rgb for picture in pictures])
            if pictures
            else np.zeros((0, size, size, 3), dtype=np.uint8),
            seconds=np.array([picture.seconds for picture in pictures], dtype=np.float64),
            sound=np.stack([row for row, _ in sound])
            if sound
            else np.zeros((0, self.sound_size), dtype=np.float32),
            level_db=np.array([level for _, level in sound], dtype=np.float32),
            media=self.media,
            is_last=is_last,
            notes=notes,
        )
