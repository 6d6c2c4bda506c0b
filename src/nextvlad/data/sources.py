"""What a user names as data - files, folders, globs, .list files - to records."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Collection, Iterator, Sequence

import numpy as np

from nextvlad.data.paddle_pickle import count_pickle, is_pickle, read_pickle
from nextvlad.data.tfrecord import count_records, read_records
from nextvlad.data.video_record import VideoRecord, parse_video_record
from nextvlad.errors import RecordError, RecordPlace, UsageError

_Path = str | os.PathLike[str]
_Folder = Callable[[str], list[str]]
_LIST_SUFFIX = ".list"


def expand(data: _Path | Sequence[_Path], *, folder: Callable[[str], list[str]] | None = None) -> list[str]:
    """The files that `data` names, in the order given; each file once.

    - a file: itself; one whose name ends in .list holds one path a line, with # comments and blank lines;
      a path in it may be a glob, a folder or another .list file; it is relative to the folder of the list,
      or else to the current folder, as PaddleVideo writes its lists
    - a folder: its files in alphabetical order, without hidden ones, those that only describe data (.csv,
      .json), and subfolders; what `folder` gives for it, where that is given
    - a glob (* ? [...], and ** for any depth): what it finds in alphabetical order, folders left out

    A leading ~ is the home folder, since a quoted glob reaches us unexpanded.

    Raises:
        UsageError: a path that is not there, a glob or a folder without files, a bad .list file.
    """
    items = [data] if isinstance(data, str | os.PathLike) else data
    found: dict[str, str] = {}
    for item in items:
        for path in _expand_one(os.path.expanduser(os.fspath(item)), (), folder or _folder):
            found.setdefault(os.path.abspath(path), path)
    if not found:
        raise UsageError("no data given; name files, folders, quoted globs or .list files.")
    return list(found.values())


def read(
    data: _Path | Sequence[_Path],
    *,
    max_frames: int | None = None,
    on_damage: Callable[[RecordError], None] | None = None,
) -> Iterator[VideoRecord]:
    """Yield every video of `data`, in order. The records are copies, safe to keep and to change.

    Args:
        data: as `expand` takes it.
        max_frames: keep the first so many frames of each stream; None keeps all.
        on_damage: called with each error; the damaged record is left out. None: the error is raised.

    Raises:
        RecordError: a damaged record, with file, byte, record number, and video id where known.
        UsageError: as `expand`.
    """
    for path in expand(data):
        for _, record in read_file(path, max_frames=max_frames, on_damage=on_damage):
            record.streams = {name: np.array(frames) for name, frames in record.streams.items()}
            yield record


def read_file(
    path: _Path,
    *,
    start: RecordPlace | None = None,
    max_frames: int | None = None,
    streams: Collection[str] | None = None,
    on_damage: Callable[[RecordError], None] | None = None,
) -> Iterator[tuple[RecordPlace, VideoRecord]]:
    """Yield the records of one file and their places. Streams are views, valid until the next record.

    Args:
        path: one file, a TFRecord file or a pickle of PaddleVideo, told by its content.
        start: a place this function gave out before; reading goes on with that very record.
        max_frames: as `nextvlad.data.video_record.parse_video_record`.
        streams: likewise.
        on_damage: called with each error, of the framing or of the content, instead of raising it.
    """
    if is_pickle(path):
        first = start.number if start else 0
        yield from read_pickle(path, first=first, max_frames=max_frames, streams=streams, on_damage=on_damage)
        return
    for payload, place in read_records(path, start=start, on_damage=on_damage):
        try:
            record = parse_video_record(payload, max_frames=max_frames, streams=streams)
        except RecordError as error:
            if on_damage is None:
                raise error.at(place) from None
            on_damage(error.at(place))
            continue
        yield place, record


def count_videos(path: _Path, *, on_damage: Callable[[RecordError], None] | None = None) -> int:
    """Number of records of one file of either kind, damaged ones included; frames are not read.

    Args:
        path: one file.
        on_damage: called instead of raising; the count then ends where nothing more can be read.
    """
    return (count_pickle if is_pickle(path) else count_records)(path, on_damage=on_damage)


def _expand_one(path: str, lists: tuple[str, ...], folder: _Folder) -> list[str]:
    """The files of one item; `lists` are the .list files that led here."""
    if os.path.isdir(path):
        return folder(path)
    if os.path.exists(path):
        return _list_file(path, lists, folder) if path.endswith(_LIST_SUFFIX) else [path]
    if glob.has_magic(path):
        matches = [match for match in sorted(glob.glob(path, recursive=True)) if not os.path.isdir(match)]
        if not matches:
            raise UsageError(f"{path}: no file matches. Check the pattern, and quote it in a shell.")
        return [file for match in matches for file in _expand_one(match, lists, folder)]
    raise UsageError(f"{path}: no such file or folder. Check the path.")


def _folder(path: str) -> list[str]:
    try:
        with os.scandir(path) as entries:
            names = sorted(entry.name for entry in entries if entry.is_file() and _is_data(entry.name))
    except OSError as error:
        raise UsageError(f"{path}: cannot be listed ({error.strerror or error}).") from error
    if not names:
        deep = os.path.join(path, "**", "*.tfrecord")
        raise UsageError(f"{path}: no files in this folder. For files in subfolders give '{deep}'.")
    return [os.path.join(path, name) for name in names]


def _is_data(name: str) -> bool:
    """May a file of this name in a folder hold records? Vocabularies and indexes lie beside them."""
    return not name.startswith(".") and not name.endswith((".csv", ".json"))


def _list_file(path: str, lists: tuple[str, ...], folder: _Folder) -> list[str]:
    here = os.path.abspath(path)
    if here in lists:
        raise UsageError(f"{path}: this .list file leads back to itself.")
    try:
        with open(path, "rb") as file:
            lines = os.fsdecode(file.read().removeprefix(b"\xef\xbb\xbf")).splitlines()
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror or error}).") from error
    found: list[str] = []
    for number, line in enumerate(lines, 1):
        item = line.strip()
        if not item or item.startswith("#"):
            continue
        try:
            found += _expand_line(path, os.path.expanduser(item), (*lists, here), folder)
        except UsageError as error:
            raise UsageError(
                f"{path}, line {number}: {error} Paths in a list are relative to its folder, or else to the "
                "current one."
            ) from None
    if not found:
        raise UsageError(f"{path}: names no files; wanted one path a line.")
    return found


def _expand_line(path: str, item: str, lists: tuple[str, ...], folder: _Folder) -> list[str]:
    """The files of one line of a list: beside it, or else from the current folder."""
    beside = os.path.join(os.path.dirname(path), item)
    if (
        not os.path.lexists(beside)
        and not glob.glob(beside, recursive=True)
        and (os.path.lexists(item) or glob.glob(item, recursive=True))
    ):
        return _expand_one(item, lists, folder)
    return _expand_one(beside, lists, folder)
