"""Scoring a model on labelled videos: Hit@1, PERR, GAP, mAP, loss."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional

from nextvlad import distributed
from nextvlad.data.batch import FrameBatch
from nextvlad.data.device_batches import DeviceBatches
from nextvlad.data.loader import FrameLoader
from nextvlad.data.segments import Segments
from nextvlad.errors import DataError
from nextvlad.files import write_json
from nextvlad.inference import check_finite, open_checkpoint, settle_top_k, tell_damage
from nextvlad.metrics import MetricAccumulator, SegmentAccumulator
from nextvlad.metrics.segments import SEGMENTS_A_CLASS
from nextvlad.models import InferenceModel
from nextvlad.progress import ProgressBar, counted
from nextvlad.run_config import InferenceOptions
from nextvlad.split_batches import Halver

_ROWS = {
    "segment_map": (
        f"MAP@{SEGMENTS_A_CLASS:,}",
        "average precision a label, among rated videos",
    ),
    "gap": ("GAP@{k}", "precision over all videos' {k} best labels pooled"),
    "hit_at_one": ("Hit@1", "videos whose best label is right"),
    "perr": ("PERR", "precision among the n best labels of a video with n"),
    "map": ("mAP", "average precision a label, mean over labels"),
    "top1": ("top-1", "for single-label data"),
    "top5": ("top-5", "for single-label data"),
    "loss": ("loss", "cross-entropy summed over labels, mean over videos"),
}


@torch.inference_mode()
def score(
    model: InferenceModel,
    loader: FrameLoader,
    *,
    top_k: int = 20,
    with_map: bool = True,
    num_videos: int | None = None,
    segments: bool = False,
    show: bool = True,
    batch_option: str = "--batch-size",
) -> dict[str, float | int | None]:
    """The metrics of one pass over `loader`, over all ranks together.

    Every rank reads its own share and sends its state once, at the end, so that shares of different
    length cannot block each other.

    Args:
        model: put into inference.
        loader: one epoch, unshuffled.
        top_k: for GAP.
        with_map: also the untruncated mAP, which keeps every score (4 bytes a video and class).
        num_videos: for the progress bar.
        segments: the batches are rated segments, and only their rated classes count.
        show: draw the progress bar.
        batch_option: what makes batches smaller, for the line that tells of one too large for the memory.

    Returns:
        On rank 0 (and everywhere, when alone): num_videos, gap, hit_at_one, perr, map, loss, top1, top5; with
        `segments` also segment_map, num_segments, num_ratings.
        On other ranks: the same, sent by rank 0.
    """
    num_classes = model.config.num_classes
    kept = min(top_k, num_classes)
    metrics: MetricAccumulator | SegmentAccumulator = (
        SegmentAccumulator(num_classes, top_k=kept)
        if segments
        else MetricAccumulator(num_classes, top_k=kept, with_map=with_map)
    )
    unit = "segments" if segments else "videos"
    with ProgressBar("Evaluating", total=num_videos, unit=unit, show=show and distributed.is_main()) as bar:
        for batch, probabilities, losses in answers(model, loader, batch_option=batch_option):
            labels = batch.labels.numpy()
            if isinstance(metrics, SegmentAccumulator):
                metrics.update(probabilities, labels, batch.rated, losses=losses)
            else:
                metrics.update(probabilities, labels, losses=losses)
            bar.advance(batch.num_videos)
    _merge_on_main(metrics)
    result: dict[str, float | int | None] = distributed.share_object(
        metrics.compute() if distributed.is_main() else None
    )
    return result


def answers(
    model: InferenceModel, loader: FrameLoader, *, batch_option: str = "--batch-size"
) -> Iterator[tuple[FrameBatch, NDArray[np.float32], NDArray[np.float64]]]:
    """Each batch with its probabilities [B, C] and the loss of each video [B]; in `torch.inference_mode`.

    A batch that is too large for the memory is done in halves; `batch_option` is named in the line on it.

    Raises:
        DataError: the model's output is not finite.
    """
    halver = Halver(batch_option)
    for batch, on_device in DeviceBatches(loader, model.device):
        parts = halver.run(lambda part: _answer(model, part), on_device)
        probabilities, losses = (torch.cat(of_parts).numpy() for of_parts in zip(*parts, strict=True))
        yield batch, probabilities, losses
    halver.tell_total()


def _answer(model: InferenceModel, batch: FrameBatch) -> tuple[Tensor, Tensor]:
    """Probabilities [B, C] float32 and the loss of each video [B] float64, on the CPU."""
    logits = model(batch)
    check_finite(logits, batch.video_ids)
    rated = None if batch.rated is None else batch.rated.float()
    losses = functional.binary_cross_entropy_with_logits(
        logits, batch.labels.float(), rated, reduction="none"
    ).sum(1, dtype=torch.float64)
    return torch.sigmoid(logits).cpu(), losses.cpu()


def _merge_on_main(metrics: MetricAccumulator | SegmentAccumulator) -> None:
    """Brings every rank's state to rank 0, piece by piece, so that no message is large."""
    if not distributed.is_distributed():
        return
    pieces = None if distributed.is_main() else metrics.pieces()
    while True:
        mine = next(pieces, None) if pieces else None
        received = distributed.gather_objects(mine)
        for piece in received or []:
            if piece is not None:
                metrics.add_piece(piece)
        if not distributed.any_rank(mine is not None, distributed.collective_device()):
            return


def evaluate(
    checkpoint_folder: Path,
    data: Sequence[str],
    options: InferenceOptions | None = None,
    *,
    json_file: Path | None = None,
    top_k: int | None = None,
    with_map: bool = True,
    segments: bool = False,
) -> dict[str, float | int | None]:
    """`nextvlad evaluate`: prints the table, writes the JSON file, returns the metrics.

    Args:
        checkpoint_folder: a run or one of its checkpoints.
        data: files, folders, globs or .list files, with labels.
        options: how to read and compute; None: the defaults.
        json_file: where the metrics go as well.
        top_k: classes kept a video for GAP, in 1..C; None: 20, or all where there are fewer.
        with_map: also the untruncated mAP.
        segments: score each rated segment of the videos, on the classes it was rated for.

    Returns:
        As `score`; on every rank.

    Raises:
        NextvladError: as its message says.
    """
    options = options or InferenceOptions()
    with distributed.process_group(distributed.pick_device(options.device)):
        which: Segments | None = "rated" if segments else None
        opened = open_checkpoint(checkpoint_folder, data, options, with_labels=True, segments=which)
        kept = settle_top_k(top_k, opened.model.config.num_classes)
        with opened.loader:
            result = score(
                opened.model,
                opened.loader,
                top_k=kept,
                with_map=with_map,
                num_videos=opened.total,
                segments=segments,
            )
        tell_damage(opened.loader.damage)
        if distributed.is_main():
            check_scored(result, data)
            print_table(result, kept)
            if json_file is not None:
                write_json(json_file, result)
    return result


def check_scored(result: dict[str, float | int | None], data: Sequence[str]) -> None:
    """Raises DataError for a data set from which no score follows: no videos, or none with a label."""
    if "num_segments" in result and result["segment_map"] is None:
        count = result["num_segments"]
        found = (
            f"none of its {count:,} rated segments is rated positive" if count else "no rated segments in it"
        )
        raise DataError(
            f"{' '.join(data)}: {found}; wanted videos with segment_labels and segment_scores, as "
            "YouTube-8M's of 2019. For whole videos leave out --segments (--data.segments)."
        )
    if not result["num_videos"]:
        raise DataError(f"{' '.join(data)}: no videos in it; wanted labelled videos to score.")
    if result["gap"] is None:  # as only where nothing is positive
        raise DataError(
            f"{' '.join(data)}: none of the {result['num_videos']:,} videos has a label; wanted labelled "
            "videos to score. For a test split without labels there is `nextvlad predict`."
        )


def print_table(result: dict[str, float | int | None], top_k: int) -> None:
    """The metrics for people, on standard output."""
    segments = "num_segments" in result
    if segments:
        title = f"{result['num_segments']:,} segments, {result['num_ratings']:,} ratings"
    else:
        title = counted(int(result["num_videos"] or 0), "video")
    table = Table(title=title, title_justify="left")
    table.add_column("metric")
    table.add_column("value", justify="right")
    table.add_column("what it is", style="dim")
    for key, (name, meaning) in _ROWS.items():
        if key not in result:
            continue
        value = result[key]
        text = "-" if value is None else f"{value:.4f}"
        meaning = meaning.replace("video", "segment") if segments else meaning
        table.add_row(name.format(k=top_k), text, meaning.format(k=top_k))
    Console().print(table)
