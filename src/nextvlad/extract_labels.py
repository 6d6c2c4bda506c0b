"""Labels from tables: `path,label;label` with or without a header, and Kinetics' lists of clips."""

from __future__ import annotations

import csv
import io
import os
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from nextvlad.errors import UsageError
from nextvlad.files import cannot_open

SEPARATOR = ";"
"""Between the labels of one video."""

# Names of columns, in any letter case; the first of a table's own is taken.
_PATH = ("path", "video_path", "file", "filename", "file_name", "video")
_LABELS = ("labels", "label", "class", "classes", "tags")
_SPLIT = ("split", "subset")
_GROUP = ("group", "source")
_ID = ("video_id", "id")
_START = ("start_seconds", "start", "time_start")
_END = ("end_seconds", "end", "time_end")
_YOUTUBE_ID = "youtube_id"
_MOST_SECONDS = 1e7  # 115 days; far more does not fit what FFmpeg counts in
_SPLIT_NAMES = {"train": "train", "training": "train", "test": "test", "testing": "test"} | dict.fromkeys(
    ("valid", "val", "validate", "validation", "dev", "eval"), "valid"
)


@dataclass(frozen=True)
class LabelOptions:
    """Where labels come from."""

    tables: tuple[Path, ...] = ()
    """CSV files: `path,label;label`, or Kinetics' lists."""
    from_folders: bool = False
    """The name of the folder that a video is in is its label."""
    split_column: str | None = None
    group_column: str | None = None
    vocabulary: Path | None = None
    """The class names, in order; None: those of the labels, by alphabet."""

    def __post_init__(self) -> None:
        if self.tables and self.from_folders:
            raise UsageError("--labels and --labels-from-folders: labels come from the one or the other.")
        if not self.tables and (self.split_column or self.group_column):
            raise UsageError(
                "--split-column and --group-column name columns of a table; give it by --labels."
            )


@dataclass(frozen=True, slots=True)
class Row:
    """What a table says of one clip.

    Attributes:
        where: "labels.csv, line 3".
        video: a path as written there, or Kinetics' youtube_id.
        labels: names; none in a test split.
        split: "train", "valid" or "test"; None: not said.
        group: clips of one group are never parted; None: not said.
        video_id: None: not said.
        start_seconds, end_seconds: the part of the file that is meant; None: its start, its end.
        is_kinetics: whether the file is one of Kinetics, cut already or not.
    """

    where: str
    video: str
    labels: tuple[str, ...]
    split: str | None = None
    group: str | None = None
    video_id: str | None = None
    start_seconds: float | None = None
    end_seconds: float | None = None
    is_kinetics: bool = False


def read_table(
    path: Path, *, split_column: str | None = None, group_column: str | None = None
) -> tuple[list[Row], list[str]]:
    """Reads one table.

    Args:
        path: a CSV file in UTF-8. With a header: a column `path` (or one of its other names), and `labels`,
            `split`, `group`, `video_id`, `start_seconds`, `end_seconds` where it has them; or that of
            Kinetics. Without a header: path and labels.
        split_column: name of the column of splits; None: `split`, if there is one.
        group_column: likewise of groups.

    Returns:
        The rows, and the names of the columns that are not used.

    Raises:
        UsageError: not such a file, not UTF-8, a column that is missing, a value that cannot be; with line.
    """
    content = _text(path)
    lines = list(_lines(content, path))
    if not lines:
        raise UsageError(f"{path}: no lines in it; wanted `path,label;label` a line, with or without header.")
    header = [cell.strip() for cell in lines[0][1]]
    names = [cell.lower() for cell in header]
    if _YOUTUBE_ID in names or any(name in _PATH for name in names):
        columns = _Columns(path, header, split_column, group_column)
        if len(lines) == 1:
            raise UsageError(f"{path}: a header and no rows below it; wanted a row for each video.")
        return [columns.row(line, cells) for line, cells in lines[1:]], columns.unused()
    for option, name in (("--split-column", split_column), ("--group-column", group_column)):
        if name is not None:
            raise UsageError(
                f"{path}: {option} {name}, but the first line names no columns: {','.join(header)[:80]!r}. "
                f"Wanted a header such as path,labels,{name}."
            )
    return [_bare_row(path, line, cells) for line, cells in lines], []


def _text(path: Path) -> str:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise cannot_open(str(path), error) from error
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        kind = "UTF-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "not UTF-8"
        raise UsageError(
            f"{path}, line {line}: {kind} text (byte {data[error.start]:#04x} at {error.start}). Save it "
            'as "CSV UTF-8", or convert it with iconv.'
        ) from error


def _lines(content: str, path: Path) -> Iterator[tuple[int, list[str]]]:
    """Rows that are neither blank nor comments, with the line each begins on."""
    if "\0" in content:
        raise UsageError(f"{path}: holds NUL bytes; is it a text file?")
    reader = csv.reader(io.StringIO(content, newline=""), strict=True)
    line = 1
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells) and not cells[0].startswith("#"):
                yield line, cells
            line = reader.line_num + 1
    except csv.Error as error:
        raise UsageError(
            f"{path}, line {line}: not valid CSV ({error}). Is a quotation mark not closed, or not doubled?"
        ) from error


def _bare_row(path: Path, line: int, cells: list[str]) -> Row:
    where = f"{path}, line {line}"
    if len(cells) != 2:
        hint = ""
        if len(cells) == 1 and ("\t" in cells[0] or ";" in cells[0]):
            hint = " The columns seem to be parted by something else than commas."
        raise UsageError(
            f"{where}: {len(cells)} column{'s' if len(cells) != 1 else ''}, wanted two: path,label;label. "
            f"More columns need a header, such as path,labels,split.{hint}"
        )
    return Row(where, _video(where, cells[0]), labels_of(cells[1]))


def labels_of(cell: str) -> tuple[str, ...]:
    """The labels of a cell, each once; letters with accents in one spelling, or one label would become two.

    >>> labels_of("dog; barking;dog")
    ('dog', 'barking')
    """
    labels = (unicodedata.normalize("NFC", part).strip() for part in cell.split(SEPARATOR))
    return tuple(dict.fromkeys(label for label in labels if label))


def _video(where: str, cell: str) -> str:
    video = cell.strip()
    if not video:
        raise UsageError(f"{where}: no path.")
    return video


class _Columns:
    """The columns of a table with a header."""

    def __init__(
        self, path: Path, header: list[str], split_column: str | None, group_column: str | None
    ) -> None:
        self._path, self._header = path, header
        self._used: set[int] = set()
        repeated = next((name for name in header if name and header.count(name) > 1), None)
        if repeated is not None:
            raise UsageError(f"{path}: two columns are called {repeated!r}; give each a name of its own.")
        self._is_kinetics = self._find((_YOUTUBE_ID,)) is not None
        self._video = self._find((_YOUTUBE_ID,) if self._is_kinetics else _PATH)
        self._labels = self._find(_LABELS)
        self._split = self._find(_SPLIT, split_column, "--split-column")
        self._group = self._find(_GROUP, group_column, "--group-column")
        self._start, self._end = self._find(_START), self._find(_END)
        self._id = None if self._is_kinetics else self._find(_ID)
        if self._is_kinetics and (self._start is None or self._end is None):
            raise UsageError(
                f"{path}: has {_YOUTUBE_ID} as Kinetics' lists, but not time_start and time_end; its "
                f"columns: {', '.join(header)}."
            )
        if self._labels is None and not self._is_kinetics and self._split is None:
            raise UsageError(
                f"{path}: no column of labels; wanted one called {' or '.join(_LABELS)}. Its columns: "
                f"{', '.join(header)}."
            )

    def _find(self, names: Sequence[str], asked: str | None = None, option: str = "") -> int | None:
        lowered = [name.lower() for name in self._header]
        if asked is not None:
            if asked.lower() not in lowered:
                raise UsageError(
                    f"{self._path}: {option} {asked}: no such column. Its columns: {', '.join(self._header)}."
                )
            names = (asked.lower(),)
        column = next((lowered.index(name) for name in names if name in lowered), None)
        if column is not None:
            self._used.add(column)
        return column

    def unused(self) -> list[str]:
        return [name for column, name in enumerate(self._header) if column not in self._used and name]

    def row(self, line: int, cells: list[str]) -> Row:
        where = f"{self._path}, line {line}"
        if len(cells) != len(self._header):
            raise UsageError(
                f"{where}: {len(cells)} columns, the header has {len(self._header)}. Names with commas in "
                "them need quotation marks."
            )

        def cell(column: int | None) -> str:
            return "" if column is None else cells[column].strip()

        start, end = _seconds(where, cell(self._start)), _seconds(where, cell(self._end))
        if end is not None and (start or 0.0) >= end:
            raise UsageError(
                f"{where}: from second {start or 0:g} to {end:g}; wanted an end after the start."
            )
        video = _video(where, cell(self._video))
        video_id, group = cell(self._id) or None, cell(self._group) or None
        if self._is_kinetics:
            if start is None or end is None:
                raise UsageError(f"{where}: no time_start or no time_end.")
            video_id, group = kinetics_name(video, start, end), group or video
        labels = cell(self._labels)
        return Row(
            where,
            video,
            # Kinetics has one label a clip; in none of its names is a separator.
            ((labels,) if labels else ()) if self._is_kinetics else labels_of(labels),
            _split(where, cell(self._split)),
            group,
            video_id,
            start,
            end,
            self._is_kinetics,
        )


def _seconds(where: str, cell: str) -> float | None:
    if not cell:
        return None
    clock = re.fullmatch(r"(?:(\d+):)?(\d{1,2}):(\d{1,2}(?:\.\d+)?)", cell)
    if clock:
        return int(clock[1] or 0) * 3600 + int(clock[2]) * 60 + float(clock[3])
    if not re.fullmatch(r"\d+(\.\d*)?", cell):
        raise UsageError(f"{where}: time {cell!r}, wanted seconds (12.5) or h:mm:ss.")
    seconds = float(cell)
    if seconds > _MOST_SECONDS:
        raise UsageError(f"{where}: time {seconds:g} seconds, which is more than {_MOST_SECONDS:g}; a typo?")
    return seconds


def _split(where: str, cell: str) -> str | None:
    if not cell:
        return None
    split = _SPLIT_NAMES.get(cell.lower())
    if split is None:
        raise UsageError(f"{where}: split {cell!r}, wanted train, valid (val, validate, ...) or test.")
    return split


def split_of_folder(name: str) -> str | None:
    """The split that a folder of this name holds; None for other names."""
    return _SPLIT_NAMES.get(name.lower())


def kinetics_name(youtube_id: str, start_seconds: float, end_seconds: float) -> str:
    """How Kinetics' tools name a clip that they have cut.

    >>> kinetics_name("---QUuC4vJs", 84, 94)
    '---QUuC4vJs_000084_000094'
    """
    return f"{youtube_id}_{int(start_seconds):06d}_{int(end_seconds):06d}"


def kinetics_stems(row: Row) -> tuple[str, str]:
    """Names without suffix of the files that may hold a clip of Kinetics once it is cut."""
    start, end = int(row.start_seconds or 0), int(row.end_seconds or 0)
    return kinetics_name(row.video, start, end), f"{row.video}_{start}_{end}"


def stem_of(path: str) -> str:
    """A file's name without folder and suffix."""
    return os.path.splitext(os.path.basename(path))[0]
