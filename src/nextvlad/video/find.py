"""What a user names as videos - files, folders, globs, .list files - to files. Imports no torch."""

from __future__ import annotations

import os
from collections.abc import Sequence

from nextvlad.data.sources import expand
from nextvlad.errors import UsageError
from nextvlad.files import why

_PICTURES = "3gp avi flv gif m2ts m4v mkv mov mp4 mpeg mpg mts ogv ts vob webm wmv"
_SOUND = "aac aif aiff flac m4a mp3 oga ogg opus wav"
SUFFIXES = frozenset(f".{name}" for name in f"{_PICTURES} {_SOUND}".split())
"""Of what is taken from a folder, in any letter case. A file that is named is taken whatever its name."""


def find_videos(items: Sequence[str]) -> list[str]:
    """The files that `items` name, in the order given; each file once.

    Files, globs and .list files are taken as `nextvlad.data.sources.expand` takes them. Of a folder: the
    video and sound files in it and in its subfolders, by their names' endings, in alphabetical order; hidden
    ones are left out.

    Raises:
        UsageError: nothing given, a path that is not there, a folder or a glob without videos.
    """
    found: dict[str, str] = {}
    for item in items:
        path = os.path.expanduser(item)
        for file in _folder(path) if os.path.isdir(path) else expand(path):
            found.setdefault(os.path.abspath(file), file)
    if not found:
        raise UsageError("no videos given; name files, folders, quoted globs or .list files.")
    return list(found.values())


def _folder(path: str) -> list[str]:
    def refuse(error: OSError) -> None:
        raise UsageError(f"{error.filename or path}: cannot be listed ({why(error)}).") from error

    files = []
    for folder, subfolders, names in os.walk(path, onerror=refuse):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        files += [
            os.path.join(folder, name)
            for name in sorted(names)
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in SUFFIXES
        ]
    if not files:
        raise UsageError(
            f"{path}: no videos in this folder or below (known by .mp4, .mkv, .webm, ...). Name them, or "
            "give a quoted glob."
        )
    return files
