"""Class index <-> name."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

from nextvlad.errors import ConfigError, OutputError

_NAME_COLUMNS = ("name", "display_name")
_TABLE_COLUMNS = {"path", "video_path", "file", "filename", "video", "video_id", "youtube_id", "labels"}
_CODE_COLUMNS = ("knowledgegraphid", "mid")


@dataclass(frozen=True)
class Vocabulary:
    """The names of the classes; `names[i]` belongs to class index i.

    Names may repeat (YouTube-8M has such); `index_of` then knows none of them.
    """

    names: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.names or "" in self.names:
            raise ConfigError(f"vocabulary: got {len(self.names)} names, wanted at least one and none empty.")

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> str:
        return self.names[index]

    def index_of(self) -> dict[str, int]:
        """Name -> index, without the names that stand for several classes."""
        index: dict[str, int] = {}
        repeated = set()
        for number, name in enumerate(self.names):
            if index.setdefault(name, number) != number:
                repeated.add(name)
        return {name: number for name, number in index.items() if name not in repeated}

    def check_size(self, num_classes: int, where: str = "vocabulary") -> None:
        """Refuse a vocabulary that does not fit `num_classes`.

        Raises:
            ConfigError: names `where` the vocabulary came from and both sizes.
        """
        if len(self) != num_classes:
            raise ConfigError(
                f"{where}: {len(self)} classes, the model has {num_classes}. Give the vocabulary that the "
                "labels of the training data refer to."
            )

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read a vocabulary file.

        Formats, by content: a CSV whose header has `index` and `name` or `display_name` in any letter
        case (YouTube-8M's vocabulary.csv, AudioSet's class_labels_indices.csv, and what `save` writes);
        the same two columns without a header; or one name a line, commas and quotes taken as they are.

        Raises:
            ConfigError: unreadable; an index wrong, twice or missing, with its line; an empty name.
        """
        where = os.fspath(path)
        try:
            with open(path, encoding="utf-8-sig", newline="") as file:
                content = file.read()
        except OSError as error:
            raise ConfigError(f"{where}: cannot be read ({error.strerror or error}).") from error
        except UnicodeDecodeError as error:
            raise ConfigError(f"{where}: not UTF-8 text ({error.reason} at byte {error.start}).") from error
        columns = _columns(content, where)
        names = _plain_names(content, where) if columns is None else _csv_names(content, where, *columns)
        if not names:
            raise ConfigError(f"{where}: no classes in it; wanted index,name rows or one name a line.")
        return cls(tuple(names))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write `index,name` CSV; `load` gives the same vocabulary back.

        Raises:
            OutputError: the file cannot be written.
        """
        try:
            with open(path, "w", encoding="utf-8", newline="") as file:
                file.write("index,name\n")
                # All names quoted: minimal quoting leaves a carriage return in a name bare.
                writer = csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
                writer.writerows(enumerate(self.names))
        except OSError as error:
            raise OutputError(
                f"{os.fspath(path)}: cannot be written ({error.strerror or error}). "
                "Free space or give another place."
            ) from error


def _columns(content: str, where: str) -> tuple[int, int, int | None, bool] | None:
    """Columns of index, name and code, and if there is a header; None for one name a line."""
    first_line = content.lstrip().splitlines()[:1]
    first = next((row for _, row in _rows("".join(first_line), where, strict=False)), [])
    header = [cell.strip().lower() for cell in first]
    name = next((header.index(column) for column in _NAME_COLUMNS if column in header), None)
    if "index" in header and name is not None:
        code = next((header.index(column) for column in _CODE_COLUMNS if column in header), None)
        return header.index("index"), name, code, True
    if len(first) == 2 and header[0].isdecimal():
        return 0, 1, None, False
    if len(first) > 1 and not _TABLE_COLUMNS.isdisjoint(header):
        raise ConfigError(
            f"{where}: a table of videos ({','.join(first)[:60]}), wanted class names: index,name rows or "
            "one name a line. `nextvlad extract` writes a vocabulary.csv."
        )
    return None


def _rows(content: str, where: str, *, strict: bool = True) -> Iterator[tuple[int, list[str]]]:
    """Rows that are not blank, with the line each begins on."""
    reader = csv.reader(io.StringIO(content, newline=""), strict=strict)
    line = 1
    try:
        for row in reader:
            if row:
                yield line, row
            line = reader.line_num + 1
    except csv.Error as error:
        raise ConfigError(
            f"{where}, line {line}: not valid CSV ({error}). Is a quotation mark not closed, or not doubled?"
        ) from error


def _csv_names(
    content: str, where: str, index_column: int, name_column: int, code_column: int | None, header: bool
) -> list[str]:
    named: dict[int, str] = {}
    for line, row in list(_rows(content, where))[header:]:
        if len(row) <= max(index_column, name_column):
            raise ConfigError(f"{where}, line {line}: {len(row)} columns, wanted an index and a name.")
        cell = row[index_column].strip()
        if not (cell.isascii() and cell.isdecimal()):
            raise ConfigError(f"{where}, line {line}: index {cell!r}, wanted a number from 0 up.")
        index = int(cell)
        if index in named:
            raise ConfigError(f"{where}, line {line}: index {index} a second time ({named[index]!r} has it).")
        name = row[name_column]
        if not name and code_column is not None and code_column < len(row):
            name = row[code_column]
        if not name:
            raise ConfigError(f"{where}, line {line}: no name for index {index}.")
        named[index] = name
    for index in range(len(named)):
        if index not in named:
            raise ConfigError(
                f"{where}: no line for index {index}; wanted each of 0 to {len(named) - 1} once for "
                f"{len(named)} classes."
            )
    return [named[index] for index in range(len(named))]


def _plain_names(content: str, where: str) -> list[str]:
    names = [line.strip() for line in content.rstrip().splitlines()]
    for line, name in enumerate(names, 1):
        if not name:
            raise ConfigError(f"{where}, line {line}: empty, wanted one class name a line.")
    return names
