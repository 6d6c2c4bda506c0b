"""Prediction files of any system, read as a stream: the format is found by content, not by name.

| format | begins with | from |
|---|---|---|
| JSON Lines | `{` | `nextvlad predict`, or gcloud for the YouTube-8M starter code |
| CSV | anything with a comma | Kaggle 2018, `VideoId,LabelConfidencePairs` |
| Parquet | `PAR1` | `nextvlad predict` |
| pickle | an opcode that starts a list | PaddleVideo's infer.py, `nextvlad predict` |

Each row is checked and sorted as it comes. Memory: one row, or a few thousand for Parquet, and 8 bytes a
row to find videos that come twice.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np

from nextvlad.errors import DataError, UsageError
from nextvlad.predictions.binary_rows import parquet_rows, pickle_rows
from nextvlad.predictions.row import BadRow, Prediction, ranked
from nextvlad.predictions.text_rows import (
    Row,
    head_of,
    is_gzip,
    is_kaggle_header,
    is_segments_header,
    json_rows,
    kaggle_rows,
)

Format = Literal["json", "kaggle", "parquet", "pickle", "segments"]

_ROWS = {"json": json_rows, "kaggle": kaggle_rows, "parquet": parquet_rows, "pickle": pickle_rows}
_UNIT = {"json": "line", "kaggle": "line", "parquet": "row", "pickle": "row"}
_HEAD_BYTES = 1 << 12
_PICKLES = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05", b"(l", b"]q", b"](", b"].")
_KNOWN = {
    (b"PK\x03\x04",): "a zip archive; unpack it first",
    (b"\xff\xfe", b"\xfe\xff"): "UTF-16 text; save it as UTF-8",
    (b"<!doc", b"<!DOC", b"<html", b"<?xml"): "a web page, perhaps a server's error message",
    (b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd"): "compressed, and not by gzip; unpack it first",
    (b"[",): "one JSON array; wanted JSON Lines, one object a line without commas between",
}
_WANTED = "wanted JSON Lines, a Kaggle CSV, Parquet, or the pickle of PaddleVideo"


def detect(path: Path) -> Format:
    """The format of a prediction file; "segments" for Kaggle 2019's `Class,Segments`.

    Raises:
        UsageError: no such file, or no regular file.
        DataError: it is none of these.
    """
    if path.exists() and not path.is_file():
        raise UsageError(f"{path}: is no regular file; {_WANTED}.")
    head = head_of(path, _HEAD_BYTES)
    if head.startswith((b"PAR1", *_PICKLES)):
        kind: Format = "parquet" if head.startswith(b"PAR1") else "pickle"
        if is_gzip(path):
            raise DataError(f"{path}: a {kind} file inside gzip; unpack it first.")
        return kind
    for starts, what in _KNOWN.items():
        if head.startswith(starts):
            raise DataError(f"{path}: {what}. {_WANTED[0].upper()}{_WANTED[1:]}.")
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if not text:
        if head:
            raise DataError(f"{path}: nothing but blank lines; {_WANTED}.")
        return "json" if path.suffix == ".jsonl" else "kaggle"
    if text.startswith(b"{"):
        return "json"
    return _csv_format(path, text.split(b"\n", 1)[0])


def _csv_format(path: Path, line: bytes) -> Format:
    cells = [cell.strip().strip('"') for cell in line.decode("utf-8", "replace").split(",", 1)]
    if len(cells) == 2:
        second = cells[1].split()
        if is_segments_header(cells):
            return "segments"
        if cells[0].isdecimal() and second and ":" in second[0]:
            return "segments"
        looks_quoted = line.lstrip()[:1] == b'"'  # an id may hold a comma, or go on in the next line
        if is_kaggle_header(cells) or looks_quoted or not second or second[0].isdecimal():
            return "kaggle"
    raise DataError(f"{path}: begins with {line[:40]!r}; {_WANTED}.")


def read_predictions(path: Path) -> Iterator[Prediction]:
    """The rows of a prediction file of any format, each sorted: best first, of equal scores the lower class.

    That a video comes twice is found at the end of the file, so what is made of the rows is good only once
    the last one was read.

    Raises:
        UsageError: no such file, or no regular file.
        DataError: the file, its line or row, what is there and what was wanted: a damaged file, a score
            that is negative or not finite, a class twice in a row, a video twice.
    """
    kind = detect(path)
    if kind == "segments":
        raise DataError(
            f"{path}: a file of segments (Kaggle 2019, `Class,Segments`), which holds no scores; wanted one "
            "of videos."
        )
    rows, unit = _ROWS[kind], _UNIT[kind]
    hashes = array("q")
    for row in rows(path):
        try:
            prediction = ranked(row.video_id, row.labels, row.scores)
        except BadRow as error:
            raise DataError(f"{path}, {unit} {row.number}: {error}") from None
        hashes.append(hash(prediction.video_id))
        yield prediction
    repeated = _repeated(hashes)
    if repeated:
        _refuse_repeated(path, rows(path), unit, repeated)


def _repeated(hashes: array[int]) -> set[int]:
    """The hashes that occur more than once."""
    ordered = np.sort(np.frombuffer(hashes, np.int64)) if hashes else np.empty(0, np.int64)
    return set(ordered[1:][ordered[1:] == ordered[:-1]].tolist())


def _refuse_repeated(path: Path, rows: Iterator[Row], unit: str, repeated: set[int]) -> None:
    """Names the first video that comes twice; nothing if two ids only share their hash."""
    seen: dict[str, int] = {}
    for row in rows:
        if hash(row.video_id) not in repeated:
            continue
        if row.video_id in seen:
            raise DataError(
                f"{path}, {unit} {row.number}: video {row.video_id} a second time (first in {unit} "
                f"{seen[row.video_id]}); wanted each video once."
            )
        seen[row.video_id] = row.number
