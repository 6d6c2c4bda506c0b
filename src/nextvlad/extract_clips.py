"""Which clips there are: files and what the labels say of them, brought together."""

from __future__ import annotations

import os
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from nextvlad.errors import UsageError
from nextvlad.extract_labels import Row, kinetics_stems, stem_of
from nextvlad.video_files import VideoFile, shown

_Key = tuple[str, float | None, float | None]


@dataclass(frozen=True, slots=True)
class Draft:
    """A clip before it has a split.

    Attributes:
        file: which file it is, or a part of.
        video_id: of its record; "" until `with_ids`.
        labels: names.
        split, group: where they are known.
        start_seconds, end_seconds: the part of the file; None: its start, its end.
        where: the line that tells of it, or the file.
        is_kinetics: of a list of Kinetics.
    """

    file: VideoFile
    video_id: str
    labels: tuple[str, ...]
    split: str | None
    group: str | None
    start_seconds: float | None
    end_seconds: float | None
    where: str
    is_kinetics: bool = False


@dataclass
class Found:
    """The clips, and what did not come together.

    Attributes:
        drafts: the clips, in the order of the files.
        without_labels: files that nothing says anything of; they are left out.
        missing: rows whose video is not there.
        num_joined: clips whose labels stood in several rows.
    """

    drafts: list[Draft]
    without_labels: list[VideoFile] = field(default_factory=list)
    missing: list[Row] = field(default_factory=list)
    num_joined: int = 0


def all_files(files: Sequence[VideoFile], *, folders_are_labels: bool, given: Sequence[str]) -> Found:
    """A clip of each whole file; its label is the name of the folder it is in, or it has none.

    Args:
        files: the videos.
        folders_are_labels: clips/dog/x.mp4 is a dog.
        given: what the user named; files directly in such a folder have no label.
    """
    roots = {os.path.abspath(os.path.expanduser(item)) for item in given}
    found = Found([])
    for file in files:
        labels: tuple[str, ...] = ()
        if folders_are_labels:
            folder = os.path.dirname(os.path.abspath(file.path))
            if folder in roots:
                found.without_labels.append(file)
                continue
            labels = (unicodedata.normalize("NFC", shown(os.path.basename(folder))),)
        found.drafts.append(Draft(file, "", labels, None, None, None, None, shown(file.path)))
    if files and not found.drafts:
        raise UsageError(
            f"--labels-from-folders: {shown(files[0].path)} and the others lie directly in the folder "
            "that was given; wanted a folder for each label in it, as clips/dog/x.mp4."
        )
    return found


def match_rows(files: Sequence[VideoFile], rows: Sequence[Row]) -> Found:
    """A clip of each row whose file is there; rows of one clip are joined.

    Raises:
        UsageError: a row that may mean several files; rows of one clip that contradict each other; not one
            row that names one of the files.
    """
    finder = _Finder(files)
    clips: dict[_Key, Draft] = {}
    joined: set[_Key] = set()
    found = Found([])
    for row in rows:
        draft = finder.draft(row)
        if draft is None:
            found.missing.append(row)
            continue
        key = draft.file.path, draft.start_seconds, draft.end_seconds
        if key in clips:
            joined.add(key)
            draft = _joined(clips[key], draft)
        clips[key] = draft
    if rows and not clips:
        raise UsageError(
            f"{rows[0].where}: {shown(rows[0].video)!r} is none of the {len(files):,} videos, as with all "
            f"{len(rows):,} rows; the first video is {shown(files[0].name)!r}. A path in the table is taken "
            "from the folder of the table, from here, or from the folder of videos, with or without suffix."
        )
    order = {file.path: number for number, file in enumerate(files)}
    found.drafts = sorted(
        clips.values(), key=lambda draft: (order[draft.file.path], draft.start_seconds or 0)
    )
    found.num_joined = len(joined)
    labelled = {draft.file.path for draft in found.drafts}
    found.without_labels = [file for file in files if file.path not in labelled]
    return found


def with_ids(drafts: Sequence[Draft]) -> list[Draft]:
    """Gives every clip an id of its own: its file's name without suffix; with folders where two are alike.

    Raises:
        UsageError: the table gives an id twice.
    """
    stems = Counter(stem_of(path) for path in {draft.file.path for draft in drafts})
    names = Counter(_without_suffix(draft.file.name) for draft in drafts if draft.start_seconds is None)
    first: dict[str, Draft] = {}
    found = []
    for draft in drafts:
        video_id = draft.video_id
        if not video_id:
            video_id = stem_of(draft.file.path)
            if stems[video_id] > 1:
                video_id = _without_suffix(draft.file.name)
                if names[video_id] > 1:
                    video_id = draft.file.name
            if draft.start_seconds is not None or draft.end_seconds is not None:
                end = "" if draft.end_seconds is None else f"{draft.end_seconds:g}"
                video_id += f"_{draft.start_seconds or 0:g}_{end}"
        draft = replace(draft, video_id=shown(video_id))
        other = first.setdefault(draft.video_id, draft)
        if other is not draft:
            raise UsageError(
                f"{draft.where}: the id {draft.video_id!r} a second time, after {other.where}; a reader "
                "could not tell the two apart. Give each video an id of its own in a column video_id."
            )
        found.append(draft)
    return found


def _spellings(video: str) -> list[str]:
    r"""A path as written; with accents as macOS writes them, and as others do; with the slashes of Windows.

    >>> _spellings("cat\\a.mp4")[1]
    'cat/a.mp4'
    """
    spellings = [video]
    if not video.isascii():
        spellings += [unicodedata.normalize(form, video) for form in ("NFC", "NFD")]
    if os.sep == "/":
        spellings += [spelling.replace("\\", "/") for spelling in spellings]
    return list(dict.fromkeys(spellings))


def _without_suffix(name: str) -> str:
    return os.path.splitext(name)[0]


def _joined(old: Draft, new: Draft) -> Draft:
    """One clip of two rows; what both say has to be the same, but for labels."""
    for name in ("split", "group", "video_id"):
        one, two = getattr(old, name), getattr(new, name)
        if one != two:
            raise UsageError(
                f"{new.where}: {shown(new.file.name)!r} a second time, with {name} {two or 'none'!r}, after "
                f"{old.where} with {one or 'none'!r}. Keep one of the two rows."
            )
    return replace(old, labels=tuple(dict.fromkeys([*old.labels, *new.labels])))


class _Finder:
    """Which file a row means."""

    def __init__(self, files: Sequence[VideoFile]) -> None:
        self._by_path = {os.path.abspath(file.path): file for file in files}
        self._by_name: dict[str, list[VideoFile]] = defaultdict(list)
        self._by_end: dict[str, list[VideoFile]] = defaultdict(list)  # last part, with and without suffix
        for file in files:
            self._by_name[file.name].append(file)
            self._by_end[os.path.basename(file.path)].append(file)
            self._by_end[stem_of(file.path)].append(file)

    def draft(self, row: Row) -> Draft | None:
        """The clip of a row; None if its file is not there."""
        start, end = row.start_seconds, row.end_seconds
        if row.is_kinetics:
            file = None
            for stem in kinetics_stems(row):
                file = file or self._only(row, self._by_end.get(stem, []))
            if file is not None:
                start = end = None  # it is cut already
            else:
                file = self._only(row, self._by_end.get(row.video, []))
        else:
            file = self._file(row)
        if file is None:
            return None
        return Draft(
            file, row.video_id or "", row.labels, row.split, row.group, start, end, row.where, row.is_kinetics
        )

    def _file(self, row: Row) -> VideoFile | None:
        for video in _spellings(row.video):
            file = self._named(row, video)
            if file is not None:
                return file
        return None

    def _named(self, row: Row, video: str) -> VideoFile | None:
        video = os.path.normpath(os.path.expanduser(video))
        table = row.where.rpartition(", line ")[0]
        for folder in (os.path.dirname(table), ""):
            file = self._by_path.get(os.path.abspath(os.path.join(folder, video)))
            if file is not None:
                return file
        if video in self._by_name:
            return self._only(row, self._by_name[video])
        # The last parts of a path, with or without suffix: all that the row names, lest dog/1 be cat/1.
        ending = os.path.join(os.sep, video)
        return self._only(
            row,
            [
                file
                for file in self._by_end.get(os.path.basename(video), [])
                if os.path.abspath(file.path).endswith(ending)
                or _without_suffix(os.path.abspath(file.path)).endswith(ending)
            ],
        )

    @staticmethod
    def _only(row: Row, files: Sequence[VideoFile]) -> VideoFile | None:
        if len(files) > 1:
            raise UsageError(
                f"{row.where}: {shown(row.video)!r} may be any of {len(files)} files: "
                f"{shown(files[0].path)}, {shown(files[1].path)}{', ...' if len(files) > 2 else ''}. Write "
                "its folder too, or give only one of them."
            )
        return files[0] if files else None
