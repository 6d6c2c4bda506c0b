"""One small picture of a video: of a file in a folder of videos, or of one that `nextvlad extract` listed."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from nextvlad.errors import NextvladError, UsageError, VideoError
from nextvlad.progress import ProgressBar
from nextvlad.video.decode import Clip, Picture, ReadOptions, probe

_SIDE = 240
"""Pixels; the square in the middle of the picture, as the visual backbone sees it."""

_QUALITY = 72
_INDEX = "index.csv"


@dataclass(frozen=True)
class VideoFile:
    """Where a video is: a file, or a part of one. None for the start and the end of the file."""

    path: Path
    start_seconds: float | None = None
    end_seconds: float | None = None


def check_can_read() -> None:
    """Raises UsageError where what reads videos, or writes JPEG, is not installed."""
    try:
        import av  # noqa: F401
        import PIL.Image  # noqa: F401
    except ImportError as error:
        raise UsageError(
            f"--videos: pictures of videos need PyAV and Pillow ({error}): pip install 'nextvlad[video]'"
        ) from error


def find_videos(folder: Path, video_ids: Collection[str]) -> dict[str, VideoFile]:
    """The files of `folder` and its subfolders that have these ids for a name, by id.

    A name is that of the file, or its path inside the folder, each with or without its ending. An id that
    several files have is left out: any of them could be the wrong one.

    Raises:
        UsageError: the folder cannot be listed.
    """
    found: dict[str, list[Path]] = {}

    def refuse(error: OSError) -> None:
        raise UsageError(f"--videos {error.filename}: cannot be listed ({error.strerror or error}).")

    for place, folders, names in os.walk(folder, onerror=refuse):
        folders.sort()
        for name in names:
            path = Path(place, name)
            inside = path.relative_to(folder)
            for key in {name, path.stem, inside.as_posix(), inside.with_suffix("").as_posix()}:
                if key in video_ids:
                    found.setdefault(key, []).append(path)
    return {key: VideoFile(paths[0]) for key, paths in found.items() if len(paths) == 1}


def listed_videos(files: Iterable[str], video_ids: Collection[str]) -> dict[str, VideoFile]:
    """Where the videos are whose features `nextvlad extract` made, by id, as far as they are still there.

    Args:
        files: the feature files; beside them lies the index.csv of extract.
        video_ids: those wanted.
    """
    found: dict[str, VideoFile] = {}
    for folder in sorted({Path(file).parent for file in files}):
        # A table that is no index, or a damaged one, is as good as none: pictures are an extra.
        with suppress(OSError, ValueError, csv.Error), (folder / _INDEX).open(newline="") as table:
            for row in csv.DictReader(table):
                if row.get("video_id") in video_ids and row.get("path"):
                    path = Path(row["path"])
                    ends = (float(row.get(name) or "nan") for name in ("start_seconds", "end_seconds"))
                    start, end = (None if second != second else second for second in ends)
                    for place in (path, folder / path):
                        if place.is_file():
                            found.setdefault(row["video_id"], VideoFile(place, start, end))
    return found


def pictures(files: Mapping[str, VideoFile]) -> tuple[dict[str, bytes], list[str]]:
    """A JPEG of the middle of each video, by id; and for each that gives none, why.

    Raises:
        UsageError: what reads videos is not installed.
    """
    check_can_read()
    made, failures = {}, []
    with ProgressBar("Pictures", total=len(files), unit="videos") as bar:
        for video_id, file in sorted(files.items()):
            try:
                made[video_id] = _jpeg(file)
            except NextvladError as error:
                failures.append(str(error))
            bar.advance(1)
    return made, failures


def _jpeg(file: VideoFile) -> bytes:
    """The picture in the middle of one video. Raises VideoError where there is none."""
    from PIL import Image

    start = file.start_seconds or 0.0
    end = file.end_seconds if file.end_seconds is not None else probe(file.path).duration_seconds
    try:
        shown = _first_picture(file.path, start_seconds=(start + (end or start)) / 2)
    except VideoError:  # a file that says it is longer than it is
        shown = _first_picture(file.path, start_seconds=file.start_seconds)
    target = io.BytesIO()
    Image.fromarray(shown.rgb).save(target, "JPEG", quality=_QUALITY)
    return target.getvalue()


def _first_picture(path: Path, *, start_seconds: float | None) -> Picture:
    options = ReadOptions(image_size=_SIDE, start_seconds=start_seconds, sound=False, threads=1)
    with Clip(path, options) as clip:
        for piece in clip:
            if isinstance(piece, Picture):
                return piece
    raise VideoError(f"{path}: no picture in it.")
