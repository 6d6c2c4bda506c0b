"""The best labels of each video, from a checkpoint into a file of any format of `nextvlad.predictions`."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nextvlad import distributed
from nextvlad.data.batch import FrameBatch
from nextvlad.data.device_batches import DeviceBatches
from nextvlad.data.segments import Segments
from nextvlad.data.vocabulary import Vocabulary
from nextvlad.errors import DataError, UsageError
from nextvlad.inference import (
    Opened,
    check_finite,
    open_checkpoint,
    settle_top_k,
    tell_damage,
)
from nextvlad.metrics.segments import SEGMENTS_A_CLASS
from nextvlad.models import InferenceModel, Model
from nextvlad.predictions import Prediction, write_predictions, writer_for
from nextvlad.predictions.best_segments import BestSegments
from nextvlad.predictions.segment_files import write_segment_lists
from nextvlad.predictions.text_rows import lines
from nextvlad.progress import ProgressBar, say
from nextvlad.run_config import InferenceOptions
from nextvlad.split_batches import Halver


@torch.inference_mode()
def predict_batch(model: Model | InferenceModel, batch: FrameBatch, *, top_k: int = 20) -> list[Prediction]:
    """The `top_k` best classes of each video of a batch that is on the model's device.

    The model is in evaluation mode, or put into inference (`nextvlad.for_inference`), which is faster.

    Raises:
        DataError: the model's output is not finite.
    """
    probabilities = torch.sigmoid(_logits(model, batch))
    # A stable sort of all classes, not topk: topk leaves the order of equal scores open.
    scores, labels = torch.sort(probabilities, dim=1, descending=True, stable=True)
    return [
        Prediction(video_id, classes, values)
        for video_id, classes, values in zip(
            batch.video_ids, labels[:, :top_k].tolist(), scores[:, :top_k].tolist(), strict=True
        )
    ]


def _logits(model: Model | InferenceModel, batch: FrameBatch) -> Tensor:
    """[B, C] float32, finite."""
    logits: Tensor = model(batch)
    check_finite(logits, batch.video_ids)
    return logits


def predict(
    checkpoint_folder: Path,
    data: Sequence[str],
    options: InferenceOptions | None = None,
    *,
    out: Path,
    top_k: int | None = None,
    vocabulary: Path | None = None,
    segments: bool = False,
    classes: Path | None = None,
    max_segments: int | None = None,
) -> int:
    """`nextvlad predict`: writes `out` and returns the number of videos in it.

    Args:
        checkpoint_folder: a run or one of its checkpoints.
        data: files, folders, globs or .list files; labels are not needed.
        options: how to read and compute; None: the defaults.
        out: .jsonl, .csv, .parquet or .pkl.
        top_k: classes a video, in 1..C; None: 20, or all where there are fewer.
        vocabulary: class names; None: the checkpoint's own, if it has some.
        segments: every five seconds of a video is a video of its own, with the id VIDEO:START; a .csv is then
            Kaggle's of 2019, `Class,Segments`: the best segments of each class.
        classes: for that .csv: a file with the class indices wanted, one a line; None: all.
        max_segments: for that .csv: segments a class; None: 100,000.

    Raises:
        NextvladError: as its message says; finished rows stay in `out`.partial, of a `Class,Segments` file
            nothing.
    """
    options = options or InferenceOptions()
    writer_for(out)  # a mistaken name is told at once
    lists = segments and out.suffix == ".csv"
    if not lists and (classes is not None or max_segments is not None):
        raise UsageError("--classes and --max-segments go with --segments and an --out that ends in .csv.")
    if lists and top_k is not None:
        raise UsageError(
            "--top-k: a Class,Segments file holds the best segments of a class (--max-segments), not the "
            "best classes of a segment. Leave it out, or write a .jsonl file."
        )
    if max_segments is not None and max_segments < 1:
        raise UsageError(f"--max-segments: got {max_segments}, wanted 1 or more.")
    distributed.refuse_torchrun("predict runs", ", on a share of the data each")
    which: Segments | None = "all" if segments else None
    opened = open_checkpoint(checkpoint_folder, data, options, with_labels=False, segments=which)
    if lists:
        wanted = read_classes(classes, opened.model.config.num_classes)
        best = BestSegments(wanted, max_segments=max_segments or SEGMENTS_A_CLASS)
        return _predict_lists(opened, best, wanted, data, out)
    unit = "segments" if segments else "videos"
    names = opened.model.vocabulary
    if vocabulary is not None:
        names = Vocabulary.load(vocabulary)
        names.check_size(opened.model.config.num_classes, where=str(vocabulary))
    kept = settle_top_k(top_k, opened.model.config.num_classes)

    def predictions() -> Generator[Prediction, None, None]:
        def work(part: FrameBatch) -> list[Prediction]:
            return predict_batch(opened.model, part, top_k=kept)

        seen, halver = 0, Halver("--batch-size")
        with opened.loader, ProgressBar("Predicting", total=opened.total, unit=unit) as bar:
            for batch, on_device in DeviceBatches(opened.loader, opened.model.device):
                for rows in halver.run(work, on_device):
                    yield from rows
                seen += batch.num_videos
                bar.advance(batch.num_videos)
        halver.tell_total()
        _check_seen(opened, seen, data)

    with closing(predictions()) as rows:
        count = write_predictions(out, rows, names)
    tell_damage(opened.loader.damage)
    say(f"{count:,} {unit} -> {out}")
    return count


def _check_seen(opened: Opened, seen: int, data: Sequence[str]) -> None:
    if opened.loader.damage and not seen:
        tell_damage(opened.loader.damage)
        raise DataError(f"{', '.join(map(str, data))}: every record was skipped; nothing to predict.")


@torch.inference_mode()
def _predict_lists(
    opened: Opened,
    best: BestSegments,
    classes: NDArray[np.int64],
    data: Sequence[str],
    out: Path,
) -> int:
    """The best segments of each class into a `Class,Segments` file; returns the number of segments seen."""
    columns = torch.from_numpy(classes).to(opened.model.device)

    def work(part: FrameBatch) -> NDArray[np.float32]:
        logits = _logits(opened.model, part)
        # Logits rank as probabilities do, which a sigmoid near 1 rounds to one and the same number.
        return logits[:, columns].cpu().numpy()

    halver = Halver("--batch-size")
    with opened.loader, ProgressBar("Predicting", total=None, unit="segments") as bar:
        for batch, on_device in DeviceBatches(opened.loader, opened.model.device):
            best.add(batch.video_ids, np.concatenate(halver.run(work, on_device)))
            bar.advance(batch.num_videos)
    halver.tell_total()
    _check_seen(opened, best.num_segments, data)
    count = write_segment_lists(out, best.lists())
    tell_damage(opened.loader.damage)
    if best.num_repeated:
        say(f"{best.num_repeated:,} places went to segments that came twice: the data holds a video twice.")
    say(f"{best.num_segments:,} segments, {count:,} classes -> {out}")
    return best.num_segments


def read_classes(path: Path | None, num_classes: int) -> NDArray[np.int64]:
    """The class indices in the first column of a file, ascending; all classes without a file.

    A first line `Index` (as in YouTube-8M's segment_label_ids.csv) and blank lines are skipped.

    Raises:
        UsageError: no such file, a line that is no class, a class twice, no class at all.
    """
    if path is None:
        return np.arange(num_classes)
    found: dict[int, int] = {}
    header = True
    for number, line in lines(path):
        cell = line.split(",", 1)[0].strip().strip('"')
        if not line.strip() or (header and cell.lower() == "index"):
            header = header and not line.strip()
            continue
        header = False
        where = f"{path}, line {number}"
        if not (cell.isascii() and cell.isdecimal() and len(cell) < 10 and int(cell) < num_classes):
            raise UsageError(f"{where}: {cell[:60]!r}, wanted a class index from 0 to {num_classes - 1}.")
        if int(cell) in found:
            raise UsageError(f"{where}: class {cell} a second time, after line {found[int(cell)]}.")
        found[int(cell)] = number
    if not found:
        raise UsageError(f"{path}: no classes in it; wanted class indices, one a line.")
    return np.array(sorted(found), np.int64)
