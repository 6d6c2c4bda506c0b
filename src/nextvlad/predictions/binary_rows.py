"""Rows of prediction files that are not text: Parquet, and the pickles of PaddleVideo.

Each function yields (row, video id, class indices, scores) as they stand in the file. Rows count from 0.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from nextvlad.data import safe_pickle
from nextvlad.errors import DataError, UsageError
from nextvlad.predictions.row import BadRow
from nextvlad.predictions.text_rows import Row

_ROWS_A_BATCH = 1024
_COLUMNS = ["video_id", "labels", "scores"]


def pickle_rows(path: Path) -> Iterator[Row]:
    """Rows of a pickled list of (video id, scores, classes), which v1.5 wrote, or with the two swapped.

    Later releases of PaddleVideo put the classes first. The classes are the list of whole numbers.
    Nothing in the file is run: see `nextvlad.data.safe_pickle`.
    """
    for item in safe_pickle.stream(path):
        try:
            yield Row(item.number, *_pickled(item.value))
        except BadRow as error:
            raise DataError(f"{path}, row {item.number} (byte {item.offset}): {error}") from None


def _pickled(value: Any) -> tuple[Any, list[Any], list[Any]]:
    if not isinstance(value, tuple | list) or len(value) != 3:
        found = f"a {type(value).__name__}" + (f" of {len(value)}" if hasattr(value, "__len__") else "")
        raise BadRow(f"{found}, wanted (video id, scores, classes) as PaddleVideo's infer.py writes it.")
    video_id = safe_pickle.as_text(value[0])
    first, second = (_plain_list(part, video_id) for part in value[1:])
    whole = [bool(part) and set(map(type, part)) == {int} for part in (first, second)]
    if first and whole[0] == whole[1]:
        raise BadRow(
            f"video {video_id}: two lists of {'whole numbers' if whole[0] else 'scores'}; wanted scores "
            "with decimals in one, and classes, which are whole numbers, in the other."
        )
    return (video_id, first, second) if whole[0] else (video_id, second, first)


def _plain_list(part: Any, video_id: str | None) -> list[Any]:
    if isinstance(part, np.ndarray) and part.ndim == 1:
        return list(part.tolist())
    if not isinstance(part, list | tuple):
        raise BadRow(
            f"video {video_id}: a {type(part).__name__}, wanted a list of scores and one of classes."
        )
    return list(part)


def parquet_rows(path: Path) -> Iterator[Row]:
    """Rows of a Parquet file with the columns video_id, labels and scores, in any order, among others."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise UsageError("a .parquet file needs pyarrow: pip install 'nextvlad[parquet]'.") from error
    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path, pre_buffer=False) as file:
            _check_columns(path, file.schema_arrow, pyarrow.types)
            for batch in file.iter_batches(_ROWS_A_BATCH, columns=_COLUMNS):
                for row in _rows_of(batch):
                    yield Row(number, *row)
                    number += 1
    except BadRow as error:
        raise DataError(f"{path}, row {number} or one of the next {_ROWS_A_BATCH}: {error}") from None
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(
            f"{path}, row {number} or after it: not readable as Parquet ({text}). It is damaged or cut "
            "short; write it again."
        ) from error


def _check_columns(path: Path, schema: Any, types: Any) -> None:
    missing = [name for name in _COLUMNS if schema.names.count(name) != 1]
    if missing:
        raise DataError(
            f"{path}: no column {', '.join(missing)} (or two) among {', '.join(schema.names[:12])}; wanted "
            f"{', '.join(_COLUMNS)}."
        )

    def is_list_of(kind: Any, *tests: Any) -> bool:
        is_list = types.is_list(kind) or types.is_large_list(kind)
        return is_list and any(test(kind.value_type) for test in tests)

    video_id, labels, scores = (schema.field(name).type for name in _COLUMNS)
    wanted = {
        "video_id": ((types.is_string(video_id) or types.is_large_string(video_id)), video_id, "text"),
        "labels": (is_list_of(labels, types.is_integer), labels, "lists of whole numbers"),
        "scores": (is_list_of(scores, types.is_floating, types.is_integer), scores, "lists of numbers"),
    }
    for name, (fits, kind, words) in wanted.items():
        if not fits:
            raise DataError(f"{path}: column {name} is {kind}, wanted {words}.")


def _rows_of(batch: Any) -> Iterator[tuple[Any, list[Any], list[Any]]]:
    columns = [batch.column(name) for name in _COLUMNS]
    flat = [column.flatten() for column in columns[1:]]
    if any(part.null_count for part in (*columns, *flat)):
        raise BadRow("a value is missing (null); wanted an id, classes and scores for each video.")
    ids = columns[0].to_pylist()
    labels, scores = (
        (_bounds(column), _numbers(values)) for column, values in zip(columns[1:], flat, strict=True)
    )
    for place, video_id in enumerate(ids):
        low, high = labels[0][place : place + 2]
        first, last = scores[0][place : place + 2]
        yield video_id, labels[1][low:high], scores[1][first:last]


def _bounds(column: Any) -> list[int]:
    """Where each list begins in the flattened values, and where the last ends."""
    ends = np.concatenate([[0], np.cumsum(column.value_lengths().to_numpy(zero_copy_only=False))])
    return [int(end) for end in ends]


def _numbers(values: Any) -> list[Any]:
    return list(values.to_numpy(zero_copy_only=False).tolist())
