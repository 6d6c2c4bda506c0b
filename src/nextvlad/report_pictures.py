"""One small picture of a video, found by its id in a folder of videos."""

from __future__ import annotations

import io
import os
from collections.abc import Collection, Iterable
from pathlib import Path

from nextvlad.errors import NextvladError, UsageError, VideoError
from nextvlad.progress import ProgressBar
from nextvlad.video.decode import Clip, Picture, ReadOptions, probe

_SIDE = 240
"""Pixels; the square in the middle of the picture, as the visual backbone sees it."""

_QUALITY = 72


def check_can_read() -> None:
    """Raises UsageError where what reads videos, or writes JPEG, is not installed."""
    try:
        import av  # noqa: F401
        import PIL.Image  # noqa: F401
    except ImportError as error:
        raise UsageError(
            f"--videos: pictures of videos need PyAV and Pillow ({error}): pip install 'nextvlad[video]'"
        ) from error


def find_videos(folder: Path, video_ids: Collection[str]) -> dict[str, Path]:
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
    return {key: paths[0] for key, paths in found.items() if len(paths) == 1}


def pictures(folder: Path, video_ids: Iterable[str]) -> tuple[dict[str, bytes], list[str]]:
    """A JPEG of the middle of each video, by id, and what could not be shown.

    Args:
        folder: where the videos are, subfolders included.
        video_ids: those wanted.

    Returns:
        The pictures, and for each file that is there but has none a sentence.

    Raises:
        UsageError: what reads videos is not installed, or the folder cannot be listed.
    """
    check_can_read()
    wanted = sorted(set(video_ids))
    files = find_videos(folder, wanted)
    made, failures = {}, []
    with ProgressBar("Pictures", total=len(files), unit="videos") as bar:
        for video_id, path in files.items():
            try:
                made[video_id] = _jpeg(path)
            except NextvladError as error:
                failures.append(str(error))
            bar.advance(1)
    return made, failures


def _jpeg(path: Path) -> bytes:
    """The picture in the middle of one video.

    Raises:
        VideoError: there is none.
    """
    from PIL import Image

    middle = (probe(path).duration_seconds or 0.0) / 2
    try:
        shown = _first_picture(path, start_seconds=middle)
    except NextvladError:  # a file that says it is longer than it is
        shown = _first_picture(path, start_seconds=None)
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
