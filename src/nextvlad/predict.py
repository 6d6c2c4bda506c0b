"""The best labels of each video, from a checkpoint into a file of any format of `nextvlad.predictions`."""

from __future__ import annotations

import os
from collections.abc import Generator, Sequence
from contextlib import closing
from pathlib import Path

import torch

from nextvlad.config import InferenceOptions
from nextvlad.data.batch import FrameBatch
from nextvlad.data.vocabulary import Vocabulary
from nextvlad.errors import DataError, UsageError
from nextvlad.inference import autocast, check_finite, open_checkpoint, settle_top_k, tell_damage
from nextvlad.models import Model
from nextvlad.predictions import Prediction, write_predictions, writer_for
from nextvlad.progress import ProgressBar, say


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
