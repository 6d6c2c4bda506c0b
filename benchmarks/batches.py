"""Batches of random frames, of YouTube-8M's shape."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from nextvlad.config import StreamConfig
from nextvlad.data.batch import FrameBatch, Frames


def made_up_batch(
    streams: tuple[StreamConfig, ...],
    num_videos: int,
    seed: int = 0,
    *,
    shortest: int = 120,
    longest: int = 300,
) -> FrameBatch:
    """Random frames, `shortest` to `longest` a video."""
    numbers = torch.Generator().manual_seed(seed)
    lengths = torch.randint(shortest, longest + 1, (num_videos,), generator=numbers)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    frames = {
        stream.name: Frames(
            torch.randint(0, 256, (int(offsets[-1]), stream.size), dtype=torch.uint8, generator=numbers),
            offsets,
        )
        for stream in streams
    }
    ids = [f"v{number:04d}" for number in range(num_videos)]
    return FrameBatch(ids, torch.zeros(num_videos, 1, dtype=torch.bool), frames)


def in_turn(work: Callable[[FrameBatch], object], batches: Sequence[FrameBatch]) -> Callable[[], float]:
    """Does the work on another batch at each call; returns how many videos that had."""
    coming = iter(batches)

    def once() -> float:
        batch = next(coming)
        work(batch)
        return batch.num_videos

    return once
