"""What evaluation and prediction share: a checkpoint's model, the data read as in its training, checks."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from nextvlad import batch_size, checkpoint, distributed
from nextvlad.data.loader import FrameLoader, count_examples
from nextvlad.data.origins import check_origins
from nextvlad.data.segments import Segments
from nextvlad.data.window import SKIP
from nextvlad.errors import DataError, RecordError, UsageError
from nextvlad.metrics.ranking import DEFAULT_TOP_K
from nextvlad.models import InferenceModel, for_inference
from nextvlad.progress import console, say
from nextvlad.provenance import Expected
from nextvlad.run_config import InferenceOptions


@dataclass(frozen=True)
class Opened:
    """A model, and the data for it.

    Attributes:
        model: put into inference; with `model.vocabulary`, the class names or None.
        loader: one epoch in the order of the files; this rank's share of it.
        total: videos in the data; None where nobody sees a progress bar.
    """

    model: InferenceModel
    loader: FrameLoader
    total: int | None


def open_checkpoint(
    folder: Path,
    data: Sequence[str],
    options: InferenceOptions,
    *,
    with_labels: bool,
    segments: Segments | None = None,
) -> Opened:
    """Loads the checkpoint of `folder` and opens `data` for it.

    Args:
        folder: a run or one of its checkpoints.
        data: files, folders, globs or .list files.
        options: how to read and compute.
        with_labels: whether labels are wanted; without, those of other classes do not matter.
        segments: None: whole videos; else the parts of each (see `FrameLoader`).

    Raises:
        NextvladError: no such checkpoint, data or device; features made in another way than the model's.
    """
    device = distributed.pick_device(options.device)
    place = checkpoint.resolve(folder)
    model = checkpoint.load(place, device=device)
    max_frames = _trained_max_frames(place) if options.max_frames is None else options.max_frames
    expected = None
    if not options.trust_features:
        names = tuple(stream.name for stream in model.config.streams)
        expected = Expected(model.provenance, names, f"the model in {folder}")
        check_origins(data, expected)
    fast = for_inference(model, options.precision)
    if fast.precision != options.precision and distributed.is_main():
        say(without_instructions(fast.precision, options.precision, device))
    size = options.batch_size
    if size == "auto":
        size = _find_batch_size(fast, data, 5 if segments else max_frames, options)
    loader = FrameLoader(
        data,
        streams=model.config.streams,
        num_classes=model.config.num_classes,
        batch_size=size,
        max_frames=max_frames,
        workers=options.workers,
        pin_memory=device.type == "cuda",
        rank=distributed.rank(),
        world_size=distributed.world_size(),
        skip_damaged=options.skip_damaged,
        with_labels=with_labels,
        segments=segments,
        expected=expected,
    )
    # Segments are not counted in headers; their bar goes without an end.
    countable = console.is_terminal and segments is None
    total = count_examples(data, skip_damaged=options.skip_damaged) if countable else None
    return Opened(fast, loader, total)


def _find_batch_size(
    model: InferenceModel, data: Sequence[str], max_frames: int, options: InferenceOptions
) -> int:
    """What `--batch-size auto` means here; says it."""
    streams, num_classes = model.config.streams, model.config.num_classes
    num_frames = batch_size.longest_video(data, streams, max_frames)
    chosen = batch_size.for_inference(
        lambda batch: torch.sigmoid(model(batch.to(model.device))).cpu(),
        lambda size: batch_size.made_up_batch(streams, num_classes, size, num_frames),
        model.device,
        workers=options.workers,
    )
    if distributed.is_main():
        say(f"Batch size {chosen.batch_size}, videos of {num_frames} frames: {chosen.reason}.")
    return chosen.batch_size


def _trained_max_frames(folder: Path) -> int:
    """How many frames of a stream the checkpoint was trained to see; 300 if it does not say."""
    config = checkpoint.read_train_config(folder)
    return config.data.max_frames if config else 300


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """Matrix products in `precision` ("fp32", "bf16", "fp16") on this device."""
    if precision == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, torch.bfloat16 if precision == "bf16" else torch.float16)


def without_instructions(taken: str, asked: str, device: torch.device) -> str:
    """What to say where a precision was asked for that is not to be had here, or would only be slower."""
    why = f"this CPU has no instructions for {asked}" if device.type == "cpu" else f"{asked} is for CPUs"
    return f"Computing in {taken}: {why}."


def check_finite(logits: Tensor, video_ids: Sequence[str]) -> None:
    """Raises DataError, with the ids, where a model's output [B, C] is not finite."""
    if bool(torch.isfinite(logits).all()):
        return
    bad = [name for name, row in zip(video_ids, logits, strict=True) if not row.isfinite().all()]
    raise DataError(
        f"the model's output is not finite for {', '.join(bad[:10])}{' ...' if len(bad) > 10 else ''}; its "
        "weights or these features are broken, or the precision is too low (try --precision fp32)."
    )


def settle_top_k(top_k: int | None, num_classes: int) -> int:
    """How many classes a video to keep: as asked; 20, or all where there are fewer, if not asked.

    Raises:
        UsageError: `top_k` is outside 1..num_classes.
    """
    if top_k is None:
        return min(DEFAULT_TOP_K, num_classes)
    if not 1 <= top_k <= num_classes:
        raise UsageError(f"--top-k: got {top_k}, wanted 1 to {num_classes}, the number of classes.")
    return top_k


def tell_damage(damage: Sequence[RecordError]) -> None:
    """Lists what was skipped, if anything."""
    if damage:
        say(f"Skipped {len(damage)} damaged record{'s' if len(damage) > 1 else ''}:")
        for error in damage[:20]:
            say(f"  {str(error).replace(SKIP, '')}")
        if len(damage) > 20:
            say(f"  ... and {len(damage) - 20} more; `nextvlad check` lists all.")
