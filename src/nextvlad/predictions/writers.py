"""Predictions into a file, as a stream: JSON Lines, Kaggle CSV, Parquet, Paddle pickle, by suffix.

Rows are written to OUT.partial beside the final name, which is renamed when the last row is on disk.
If what makes the rows fails half way the partial file stays and the message says how many rows it holds.
"""

from __future__ import annotations

import json
import os
import pickle
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import numpy as np

from nextvlad.data.vocabulary import Vocabulary
from nextvlad.errors import OutputError, UsageError
from nextvlad.files import why
from nextvlad.predictions.row import Prediction
from nextvlad.progress import say


class Writer(ABC):
    """Writes predictions one by one to an open binary file."""

    def __init__(self, file: IO[bytes], vocabulary: Vocabulary | None) -> None:
        self.file, self.vocabulary = file, vocabulary

    @abstractmethod
    def write(self, prediction: Prediction) -> None:
        """Adds one row."""

    def finish(self) -> None:  # noqa: B027 - most formats have no tail
        """Adds what the format wants at its end."""

    def abandon(self) -> None:  # noqa: B027 - most formats hold nothing open
        """Lets go of a file that cannot be written any more."""


class JsonLinesWriter(Writer):
    """{"video_id", "labels", "names" where known, "scores"}, a line a video."""

    def write(self, prediction: Prediction) -> None:
        """Adds one line."""
        row: dict[str, Any] = {"video_id": prediction.video_id, "labels": prediction.labels}
        if self.vocabulary is not None:
            row["names"] = [self.vocabulary.names[label] for label in prediction.labels]
        row["scores"] = _short_scores(prediction.scores)
        self.file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")


class KaggleWriter(Writer):
    """Kaggle 2018: VideoId,LabelConfidencePairs; a row is `id,label score label score ...`."""

    def __init__(self, file: IO[bytes], vocabulary: Vocabulary | None) -> None:
        super().__init__(file, vocabulary)
        self.file.write(b"VideoId,LabelConfidencePairs\n")

    def write(self, prediction: Prediction) -> None:
        """Adds one row; an id is quoted where it must be."""
        video_id = prediction.video_id
        if any(mark in video_id for mark in ',"\r\n'):
            video_id = '"' + video_id.replace('"', '""') + '"'
        pairs = " ".join(
            f"{label} {score:.6f}" for label, score in zip(prediction.labels, prediction.scores, strict=True)
        )
        self.file.write(f"{video_id},{pairs}\n".encode())


class PaddleWriter(Writer):
    """Paddle v1.5.1's result: one pickled list of (video_id, [scores], [classes]), best first.

    A pickle of a list is a program that appends to it, so it can be written a row at a time: each row
    is pickled by itself and stripped of its frame. Protocol 2, for Python 2 readers, whose `unicode` ids
    equal the `str` ids that the original has there.
    """

    def __init__(self, file: IO[bytes], vocabulary: Vocabulary | None) -> None:
        super().__init__(file, vocabulary)
        self.file.write(pickle.PROTO + b"\x02" + pickle.EMPTY_LIST)

    def write(self, prediction: Prediction) -> None:
        """Appends one tuple."""
        row = pickle.dumps((prediction.video_id, prediction.scores, prediction.labels), protocol=2)
        self.file.write(row[2:-1] + pickle.APPEND)  # without the protocol before and the stop behind

    def finish(self) -> None:
        """Ends the pickle."""
        self.file.write(pickle.STOP)


class ParquetWriter(Writer):
    """Columns video_id, labels (list of int32), names where known, scores (list of float32)."""

    _ROWS_A_GROUP = 8192

    def __init__(self, file: IO[bytes], vocabulary: Vocabulary | None) -> None:
        super().__init__(file, vocabulary)
        try:
            import pyarrow
            import pyarrow.parquet
        except ImportError as error:
            raise UsageError("a .parquet file needs pyarrow: pip install 'nextvlad[parquet]'.") from error
        fields = [("video_id", pyarrow.string()), ("labels", pyarrow.list_(pyarrow.int32()))]
        if vocabulary is not None:
            fields.append(("names", pyarrow.list_(pyarrow.string())))
        self._schema = pyarrow.schema([*fields, ("scores", pyarrow.list_(pyarrow.float32()))])
        self._table = pyarrow.Table
        self._parquet = pyarrow.parquet.ParquetWriter(file, self._schema)
        self._rows: list[dict[str, Any]] = []

    def write(self, prediction: Prediction) -> None:
        """Adds one row; rows reach the disk a group at a time."""
        row: dict[str, Any] = {
            "video_id": prediction.video_id,
            "labels": prediction.labels,
            "scores": prediction.scores,
        }
        if self.vocabulary is not None:
            row["names"] = [self.vocabulary.names[label] for label in prediction.labels]
        self._rows.append(row)
        if len(self._rows) >= self._ROWS_A_GROUP:
            self._flush()

    def _flush(self) -> None:
        self._parquet.write_table(self._table.from_pylist(self._rows, schema=self._schema))
        self._rows = []

    def finish(self) -> None:
        """Writes the last group and the footer."""
        self._flush()
        self._parquet.close()

    def abandon(self) -> None:
        """Keeps pyarrow from writing the footer when it is collected."""
        self._rows = []
        self._parquet.is_open = False


def writer_for(path: Path) -> type[Writer]:
    """The writer that a file's suffix asks for.

    Raises:
        UsageError: any other suffix, or a folder of that name.
    """
    if path.is_dir():
        raise UsageError(f"{path}: is a folder; wanted the name of a file for the predictions.")
    match path.suffix:
        case ".jsonl":
            return JsonLinesWriter
        case ".csv":
            return KaggleWriter
        case ".parquet":
            return ParquetWriter
        case ".pkl":
            return PaddleWriter
    raise UsageError(
        f"{path}: suffix {path.suffix or '(none)'!r}; wanted .jsonl, .csv (Kaggle 2018), .parquet or .pkl "
        "(Paddle)."
    )


def write_predictions(
    path: Path,
    predictions: Iterator[Prediction],
    vocabulary: Vocabulary | None,
    *,
    keep_partial: bool = True,
) -> int:
    """Streams predictions into `path`, which appears only when whole; returns the number of rows.

    Raises:
        UsageError: an unknown suffix.
        OutputError: the file cannot be written; nothing is kept, since the space may be needed.
        Exception: whatever the predictions raise; with `keep_partial` the rows before it stay, as a whole
            file of its format, in `path`.partial.
    """
    kind = writer_for(path)
    partial = path.with_name(path.name + ".partial")
    count = 0
    with _writing(path, count):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = partial.open("wb")
    writer: Writer | None = None
    try:
        with _writing(path, count):
            writer = kind(file, vocabulary)
        for prediction in predictions:  # an OSError in here is none of the output's
            with _writing(path, count):
                writer.write(prediction)
            count += 1
        with _writing(path, count):
            _close(writer, file)
            partial.replace(path)
    except OutputError:
        _drop(writer, file, partial)
        raise
    except BaseException:
        if writer is None or not count or not keep_partial:
            _drop(writer, file, partial)
            raise
        with _writing(path, count):
            _close(writer, file)
        say(f"{count:,} finished video{'s are' if count > 1 else ' is'} kept in {partial}")
        raise
    return count


@contextmanager
def _writing(path: Path, count: int) -> Iterator[None]:
    """Turns the disk's errors into ours."""
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"{path}: cannot be written ({why(error)}) after {count:,} videos. Free some space or choose "
            "another --out."
        ) from error


def _close(writer: Writer, file: IO[bytes]) -> None:
    """Brings the last byte to the disk."""
    writer.finish()
    file.flush()
    os.fsync(file.fileno())
    file.close()


def _drop(writer: Writer | None, file: IO[bytes], partial: Path) -> None:
    if writer is not None:
        writer.abandon()
    with suppress(OSError):
        file.close()
    with suppress(OSError):
        partial.unlink()


def _short_scores(scores: list[float]) -> list[float]:
    """The scores in the fewest digits, seven at least, that give the same 32-bit floats."""
    exact = np.array(scores, np.float32)
    values = exact.tolist()
    short = [float(f"{value:.7g}") for value in values]
    for digits in (8, 9):  # nine always do
        for place in np.flatnonzero(np.array(short, np.float32) != exact).tolist():
            short[place] = float(f"{values[place]:.{digits}g}")
    return short
