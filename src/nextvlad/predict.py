"""Predictions into a file, as a stream: JSON Lines, Kaggle CSV, Parquet, Paddle pickle, by suffix.

Rows are written to OUT.partial beside the final name, which is renamed when the last row is on disk.
If the data fails half way the partial file stays and the message says how many rows it holds.
"""

from __future__ import annotations

import csv
import json
import pickle
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch

from nextvlad import checkpoint, distributed
from nextvlad.data.batch import FrameBatch
from nextvlad.data.loader import FrameLoader, count_examples
from nextvlad.data.vocabulary import Vocabulary
from nextvlad.errors import NextvladError, OutputError, UsageError
from nextvlad.evaluate import autocast, tell_damage, trained_max_frames
from nextvlad.models import Model
from nextvlad.progress import ProgressBar, console, say


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
    """The `top_k` best classes of each video of a batch that is on the model's device."""
    device = model.classifier.weight.device
    with autocast(device, precision):
        probabilities = torch.sigmoid(model(batch).float())  # [B, C]
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
    *,
    out: Path,
    top_k: int = 20,
    vocabulary: Path | None = None,
    batch_size: int = 256,
    max_frames: int | None = None,
    workers: int = 1,
    device: str = "auto",
    precision: str = "fp32",
    skip_damaged: bool = False,
) -> int:
    """`nextvlad predict`: writes `out` and returns the number of videos in it."""
    where = distributed.pick_device(device)
    place = checkpoint.resolve(checkpoint_folder)
    model = checkpoint.load(place, device=where)
    names = model.vocabulary
    if vocabulary is not None:
        names = Vocabulary.load(vocabulary)
        names.check_size(model.config.num_classes)
    if not 1 <= top_k <= model.config.num_classes:
        raise UsageError(
            f"--top-k: got {top_k}, wanted 1 to {model.config.num_classes}, the number of classes."
        )
    loader = FrameLoader(
        data,
        streams=model.config.streams,
        num_classes=model.config.num_classes,
        batch_size=batch_size,
        max_frames=trained_max_frames(place) if max_frames is None else max_frames,
        workers=workers,
        pin_memory=where.type == "cuda",
        skip_damaged=skip_damaged,
    )
    total = count_examples(data, skip_damaged=skip_damaged) if console.is_terminal else None

    def predictions() -> Iterator[Prediction]:
        with loader, ProgressBar("Predicting", total=total, unit="videos") as bar:
            for batch in loader:
                yield from predict_batch(
                    model, batch.to(where, non_blocking=True), top_k=top_k, precision=precision
                )
                bar.advance(batch.num_videos)

    count = write_predictions(out, predictions(), names)
    tell_damage(loader.damage)
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
        self._rows = csv.writer(self, lineterminator="\n")  # type: ignore[arg-type]
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
    is pickled by itself and stripped of its frame. Protocol 2, for Python 2 readers.
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


def writer_for(path: Path) -> type[Writer]:
    """The writer that a file's suffix asks for; UsageError for any other suffix."""
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
        f"{path}: suffix {path.suffix or '(none)'!r}; wanted .jsonl, .csv (Kaggle 2018), .parquet or .pkl (Paddle)."
    )


def write_predictions(path: Path, predictions: Iterator[Prediction], vocabulary: Vocabulary | None) -> int:
    """Streams predictions into `path`, which appears only when whole; returns the number of rows.

    Raises:
        UsageError: an unknown suffix.
        OutputError: the file cannot be written.
        NextvladError: what the predictions raise; the rows before it stay in `path`.partial.
    """
    kind = writer_for(path)
    partial = path.with_name(path.name + ".partial")
    count = 0
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            writer = kind(file, vocabulary)
            try:
                for prediction in predictions:
                    writer.write(prediction)
                    count += 1
            finally:
                writer.finish()
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise OutputError(
            f"{path}: cannot be written ({error.strerror or error}) after {count:,} videos."
        ) from error
    except (NextvladError, KeyboardInterrupt):
        if count:
            say(f"{count:,} finished videos are kept in {partial}")
        else:
            partial.unlink(missing_ok=True)
        raise
    return count


def _rounded(score: float) -> float:
    """Seven significant digits: what a float32 holds, without the noise of its decimal expansion."""
    return float(f"{score:.7g}")
