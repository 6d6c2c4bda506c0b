"""What a user names as videos - files, folders, globs, .list files - to files."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass

from nextvlad.data.sources import expand
from nextvlad.errors import UsageError

_VIDEO = "3gp avi flv m2ts m4v mkv mov mp4 mpeg mpg mts ogv ts vob webm wmv"
_SOUND = "aac flac m4a mp3 oga ogg opus wav"
SUFFIXES = frozenset(f".{ending}" for ending in f"{_VIDEO} {_SOUND}".split())
"""What is looked for in folders, in any letter case; a file that is named itself may end in anything."""

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")  # would move the cursor, or begin a line in a table


@dataclass(frozen=True, slots=True)
class VideoFile:
    """A file, and its name for people and for lists of labels.

    Attributes:
        path: where it is.
        name: its path from the folder that was given, or from the first folder of the glob that names it
            without a wildcard; of a file that was given itself, its name alone.
    """

    path: str
    name: str


def expand_videos(videos: Sequence[str]) -> list[VideoFile]:
    """The files that `videos` names, in the order given; each once, however many names lead to it.

    As `nextvlad.data.sources.expand`, but that of a folder all files at any depth are taken whose suffix is
    one of `SUFFIXES`, without hidden ones.

    Raises:
        UsageError: a path that is not there, a folder or glob without videos, a bad .list file.
    """
    roots = [_root(os.path.expanduser(item)) for item in videos]
    found: dict[tuple[int, int] | str, VideoFile] = {}
    for path in expand(videos, folder=_videos_in):
        found.setdefault(_identity(path), VideoFile(path, _name(path, roots)))
    return list(found.values())


def _identity(path: str) -> tuple[int, int] | str:
    """The same for all names of a file. A link that leads nowhere has its own: it fails when it is read."""
    try:
        status = os.stat(path)
    except OSError:
        return os.path.abspath(path)
    return status.st_dev, status.st_ino


def shown(name: str) -> str:
    r"""A path as text that can be printed and written: control characters and what is not UTF-8 as \xNN.

    >>> shown("a\nb")
    'a\\x0ab'
    """
    text = os.fsencode(name).decode(errors="backslashreplace")
    return _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


def _videos_in(folder: str) -> list[str]:
    """Follows links to files, but not to folders, which may lead round in a circle."""
    found = []
    for here, folders, names in os.walk(folder, onerror=_cannot_list):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [
            os.path.join(here, name)
            for name in sorted(names)
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in SUFFIXES
        ]
    if not found:
        raise UsageError(
            f"{shown(folder)}: no videos in this folder or below it; wanted files that end in "
            f"{' '.join(sorted(SUFFIXES))}. Others can be given by name or by a quoted glob."
        )
    return found


def _cannot_list(error: OSError) -> None:
    raise UsageError(f"{error.filename}: cannot be listed ({error.strerror or error}).") from error


def _root(item: str) -> str | None:
    """The folder from which the files of an item are named; None for a file."""
    if os.path.isdir(item):
        return os.path.abspath(item)
    if not os.path.exists(item) and glob.has_magic(item):
        fixed = []
        for part in os.path.dirname(item).split(os.sep):
            if glob.has_magic(part):
                break
            fixed.append(part)
        return os.path.abspath(os.sep.join(fixed) or (os.sep if item.startswith(os.sep) else "."))
    return None


def _name(path: str, roots: list[str | None]) -> str:
    here = os.path.abspath(path)
    for root in roots:
        if root is not None and here.startswith(os.path.join(root, "")):
            return os.path.relpath(here, root)
    return os.path.basename(here)
