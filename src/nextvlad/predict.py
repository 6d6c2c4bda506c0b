"""Predictions into a file, as a stream: JSON Lines, Kaggle CSV, Parquet, Paddle pickle, by suffix.

Rows are written to OUT.partial beside the final name, which is renamed when the last row is on disk.
If the data fails half way the partial file stays and the message says how many rows it holds.
"""

from __future__ import annotations

import csv
import json
import os
import pickle
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch

from nextvlad.config import InferenceOptions
from nextvlad.data.batch import FrameBatch
from nextvlad.data.vocabulary import Vocabulary
from nextvlad.errors import DataError, OutputError, UsageError
from nextvlad.files import why
from nextvlad.inference import autocast, check_finite, open_checkpoint, settle_top_k, tell_damage
from nextvlad.models import Model
from nextvlad.progress import ProgressBar, say


@dataclass(frozen=True, slots=True)
class Prediction:
    """The k best classes of one video, best first; equal scores keep the order of the classes.

    Attributes:
        video_id: as in the record.
        labels: k class indices.
        scores: k probabilities in [0, 1].
    """

    video_id: str
    labels: list[int]
    scores: list[float]


@torch.inference_mode()
def predict_batch(
    model: Model, batch: FrameBatch, *, top_k: int = 20, precision: str = "fp32"
) -> list[Prediction]:
    """The `top_k` best classes of each video of a batch that is on the model's device.

    Raises:
        DataError: the model's output is not finite.
    """
    device = next(model.parameters()).device
    with autocast(device, precision):
        logits = model(batch).float()  # [B, C]
    check_finite(logits, batch.video_ids)
    probabilities = torch.sigmoid(logits)
    # A stable sort of all classes, not topk: topk leaves the order of equal scores open.
    scores, labels = torch.sort(probabilities, dim=1, descending=True, stable=True)
    return [
        Prediction(video_id, classes, values)
        for video_id, classes, values in zip(
            batch.video_ids, labels[:, :top_k].tolist(), scores[:, :top_k].tolist(), strict=True
        )
    ]


def predict(
    checkpoint_folder: Path,
    data: Sequence[str],
    options: InferenceOptions | None = None,
    *,
    out: Path,
    top_k: int | None = None,
    vocabulary: Path | None = None,
) -> int:
    """`nextvlad predict`: writes `out` and returns the number of videos in it.

    Args:
        checkpoint_folder: a run or one of its checkpoints.
        data: files, folders, globs or .list files; labels are not needed.
        options: how to read and compute; None: the defaults.
        out: .jsonl, .csv, .parquet or .pkl.
        top_k: classes a video, in 1..C; None: 20, or all where there are fewer.
        vocabulary: class names; None: the checkpoint's own, if it has some.

    Raises:
        NextvladError: as its message says; finished rows stay in `out`.partial.
    """
    options = options or InferenceOptions()
    writer_for(out)  # a mistaken name is told at once
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError(
            "predict runs in one process; start it without torchrun, on a share of the data each."
        )
    opened = open_checkpoint(checkpoint_folder, data, options, with_labels=False)
    names = opened.model.vocabulary
    if vocabulary is not None:
        names = Vocabulary.load(vocabulary)
        names.check_size(opened.model.config.num_classes, where=str(vocabulary))
    kept = settle_top_k(top_k, opened.model.config.num_classes)

    def predictions() -> Generator[Prediction, None, None]:
        seen = 0
        with opened.loader, ProgressBar("Predicting", total=opened.total, unit="videos") as bar:
            for batch in opened.loader:
                on_device = batch.to(opened.device, non_blocking=True)
                yield from predict_batch(opened.model, on_device, top_k=kept, precision=options.precision)
                seen += batch.num_videos
                bar.advance(batch.num_videos)
        if opened.loader.damage and not seen:
            tell_damage(opened.loader.damage)
            raise DataError(f"{', '.join(map(str, data))}: every record was skipped; nothing to predict.")

    with closing(predictions()) as rows:
        count = write_predictions(out, rows, names)
    tell_damage(opened.loader.damage)
    say(f"{count:,} videos -> {out}")
    return count


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
        row["scores"] = [_rounded(score) for score in prediction.scores]
        self.file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")


class KaggleWriter(Writer):
    """Kaggle 2018: VideoId,LabelConfidencePairs; a row is `id,label score label score ...`."""

    def __init__(self, file: IO[bytes], vocabulary: Vocabulary | None) -> None:
        super().__init__(file, vocabulary)
        self._rows = csv.writer(self, lineterminator="\n")
        self._rows.writerow(["VideoId", "LabelConfidencePairs"])

    def write(self, prediction: Prediction | str) -> None:
        """Adds one row (given a prediction), or passes on text (given by the csv module)."""
        if isinstance(prediction, str):
            self.file.write(prediction.encode())
            return
        pairs = " ".join(
            f"{label} {score:.6f}" for label, score in zip(prediction.labels, prediction.scores, strict=True)
        )
        self._rows.writerow([prediction.video_id, pairs])


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


def write_predictions(path: Path, predictions: Iterator[Prediction], vocabulary: Vocabulary | None) -> int:
    """Streams predictions into `path`, which appears only when whole; returns the number of rows.

    Raises:
        UsageError: an unknown suffix.
        OutputError: the file cannot be written; nothing is kept, since the space may be needed.
        Exception: whatever the predictions raise; the rows before it stay, as a whole file of its format,
            in `path`.partial.
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
        if writer is None or not count:
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


def _rounded(score: float) -> float:
    """Seven significant digits: what a float32 holds, without the noise of its decimal expansion."""
    return float(f"{score:.7g}")
