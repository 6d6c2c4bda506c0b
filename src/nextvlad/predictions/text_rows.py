"""Rows of prediction files that are text: JSON Lines, ours and gcloud's, and Kaggle's CSV; gzip or not.

Each function yields (line, video id, class indices, scores) as they stand in the file, one row at a time.
Lines count from 1.
"""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

from nextvlad.errors import DataError
from nextvlad.files import cannot_open, why
from nextvlad.predictions.row import BadRow

MAX_LINE = 1 << 26
"""Bytes of the longest line that is read: a million classes fit."""

_MAX_CELL_LINES = 64  # that one quoted cell may go over
_BOM = b"\xef\xbb\xbf"
_GZIP = b"\x1f\x8b"
_CELL = r'("[^"]*(?:""[^"]*)*"|[^",]*)'
_TWO_CELLS = re.compile(f"{_CELL},{_CELL}")
_HEADER = ("videoid", "labelconfidencepairs")
_SEGMENT_HEADERS = (("class", "segments"), ("class id", "segment ids"))


class Row(NamedTuple):
    """A row as it stands in a file: where, which video, and two lists that belong together."""

    number: int
    video_id: Any
    labels: list[Any]
    scores: list[Any]


def open_text(path: Path) -> BinaryIO:
    """A file of text for reading bytes, decompressed where it begins like gzip, whatever its name.

    Raises:
        UsageError: it is not there, or may not be read.
    """
    try:
        file = path.open("rb")
    except OSError as error:
        raise cannot_open(str(path), error) from error
    if file.peek(2)[:2] != _GZIP:
        return file
    file.close()
    return cast(BinaryIO, gzip.open(path, "rb"))


def is_gzip(path: Path) -> bool:
    """Does a file begin like gzip?"""
    with path.open("rb") as file:
        return file.read(2) == _GZIP


def head_of(path: Path, size: int) -> bytes:
    """The first bytes of a file, decompressed where it begins like gzip."""
    with open_text(path) as file, _Reading(path, "its beginning"):
        return file.read(size)


class _Reading:
    """Turns errors of reading into ours; `place` is where."""

    def __init__(self, path: Path, place: str) -> None:
        self.path, self.place = path, place

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, EOFError | zlib.error | gzip.BadGzipFile):
            raise DataError(
                f"{self.path}, {self.place}: the gzip data is cut short or damaged ({error}). Fetch it again."
            ) from error
        if isinstance(error, OSError):
            raise DataError(f"{self.path}, {self.place}: cannot be read ({why(error)}).") from error


def lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a text file with their numbers, without a BOM and without the line feed that ends each."""
    with open_text(path) as file:
        number = 0
        while True:
            number += 1
            with _Reading(path, f"line {number}"):
                raw = file.readline(MAX_LINE)
            if not raw:
                return
            if len(raw) >= MAX_LINE:
                raise DataError(
                    f"{path}, line {number}: longer than {MAX_LINE >> 20} MiB, wanted one video a line."
                )
            if number == 1:
                raw = raw.removeprefix(_BOM)
            try:
                line = raw.removesuffix(b"\n").decode()
            except UnicodeDecodeError as error:
                raise DataError(
                    f"{path}, line {number}: not UTF-8 text ({error.reason} at byte {error.start} of it)."
                ) from None
            yield number, line


# JSON Lines


def json_rows(path: Path) -> Iterator[Row]:
    """Rows of JSON Lines: ours, or what gcloud wrote for the YouTube-8M starter code; also mixed."""
    for number, line in lines(path):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(
                f"{path}, line {number}: no JSON ({_json_fault(error)}); wanted one object a line. A cut "
                "file ends like that."
            ) from None
        try:
            yield Row(number, *_json_row(row))
        except BadRow as error:
            raise DataError(f"{path}, line {number}: {error}") from None


def _json_fault(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at character {error.pos}"
    return "nested too deep" if isinstance(error, RecursionError) else "a number of thousands of digits"


def _json_row(row: Any) -> tuple[Any, list[Any], list[Any]]:
    if isinstance(row, dict) and {"video_id", "labels", "scores"} <= row.keys():
        video_id, labels, scores = row["video_id"], row["labels"], row["scores"]
    elif isinstance(row, dict) and {"video_id", "class_indexes", "predictions"} <= row.keys():
        video_id, labels, scores = (_flat(row[key]) for key in ("video_id", "class_indexes", "predictions"))
        if isinstance(video_id, list) and len(video_id) == 1:
            video_id = video_id[0]
    else:
        found = f"keys {', '.join(map(repr, list(row)[:8]))}" if isinstance(row, dict) else "no object"
        raise BadRow(
            f"{found}; wanted video_id, labels and scores (ours) or video_id, class_indexes and predictions "
            "(of the YouTube-8M starter code)."
        )
    if not isinstance(labels, list) or not isinstance(scores, list):
        raise BadRow(f"video {str(video_id)[:60]}: classes or scores that are no list.")
    return video_id, labels, scores


def _flat(value: Any) -> Any:
    """Without the level of nesting that a batch of one video leaves."""
    return value[0] if isinstance(value, list) and len(value) == 1 and isinstance(value[0], list) else value


# Kaggle


def is_segments_header(cells: list[str]) -> bool:
    """Class,Segments of 2019, or as the starter code's README has it, in any letter case."""
    return tuple(cell.strip().lower() for cell in cells) in _SEGMENT_HEADERS


def is_kaggle_header(cells: list[str]) -> bool:
    """VideoId,LabelConfidencePairs of 2018, in any letter case."""
    return tuple(cell.strip().lower() for cell in cells) == _HEADER


def kaggle_rows(path: Path) -> Iterator[Row]:
    """Rows `id,label score label score ...`, cells quoted or not, with a header or without."""
    first = True
    for number, cells in csv_rows(path):
        if not (first and is_kaggle_header(cells)):
            try:
                yield Row(number, cells[0], *_pairs(cells[1]))
            except BadRow as error:
                raise DataError(f"{path}, line {number}: video {cells[0]}: {error}") from None
        first = False


def csv_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """The two cells of each row of a CSV, and the line it begins on; cells of any length."""
    pending, begun = "", 0
    for number, line in lines(path):
        if pending:
            line = f"{pending}\n{line}"
        elif not line.strip():
            continue
        else:
            begun = number
        may_go_on = number - begun < _MAX_CELL_LINES and len(line) < MAX_LINE
        if line.count('"') % 2 and may_go_on:  # a quoted cell does, in the next line
            pending = line
            continue
        yield begun, two_cells(line.removesuffix("\r"), f"{path}, line {begun}")
        pending = ""
    if pending:
        raise DataError(f"{path}, line {begun}: a quotation mark is not closed. A cut file ends like that.")


def two_cells(line: str, where: str) -> list[str]:
    """The two cells of a row. Raises DataError, with `where`."""
    if '"' not in line:
        cells = line.split(",")
        if len(cells) == 2:
            return cells
        raise DataError(f"{where}: {len(cells)} columns, wanted two: VideoId,LabelConfidencePairs.")
    match = _TWO_CELLS.fullmatch(line)
    if match is None:
        raise DataError(
            f"{where}: no row of two columns, quoted or not; wanted VideoId,LabelConfidencePairs."
        )
    return [cell[1:-1].replace('""', '"') if cell[:1] == '"' else cell for cell in match.groups()]


def _pairs(text: str) -> tuple[list[int], list[float]]:
    words = text.split()
    if len(words) % 2:
        raise BadRow(
            f"{len(words)} numbers, wanted pairs `label score label score ...`. A cut file ends like that."
        )
    try:
        if not text.isascii() or "_" in text:  # which Python would read as numbers
            raise ValueError
        return list(map(int, words[::2])), list(map(float, words[1::2]))
    except ValueError:
        place = next(place for place, word in enumerate(words) if not _is_number(word, whole=place % 2 == 0))
        kind = "score {!r}, wanted a number" if place % 2 else "class {!r}, wanted a whole number"
        raise BadRow(f"pair {place // 2 + 1}: {kind.format(words[place][:40])}.") from None


def _is_number(word: str, *, whole: bool) -> bool:
    try:
        int(word) if whole else float(word)
    except ValueError:
        return False
    return word.isascii() and "_" not in word
