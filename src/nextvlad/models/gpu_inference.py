"""Inference of one branch on a GPU: large chunks, fused steps, and the host never waits for the device.

Where videos begin stays on the device: each chunk takes all offsets, cut to its own frames, and the videos
that have none in it add zeros. So a batch is queued as a whole, and a CUDA graph could hold it. Without
the kernels of `nextvlad.models.kernels` the plain steps do the same, and wait.

Letters: B videos, N frames, n frames of a chunk, E expanded, G groups, K clusters, S = E / G.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from nextvlad.data.batch import Frames
from nextvlad.models import kernels, weighing

_FRAMES = 1 << 17  # of a chunk; at the paper's sizes about 1.5 GB lie between bytes and sums
ALIGNMENT = 16
"""Values that a row should have a multiple of, so that kernels read 16 bytes at a time."""


def aggregate(
    frames: Frames,
    transform: Callable[[Tensor], tuple[Tensor, Tensor]],
    groups: int,
    clusters: int,
) -> tuple[Tensor, Tensor]:
    """Packed frames of B videos -> weighted sums of frames [B, K, S] and of weights [B, K], float32.

    Args:
        frames: on the device.
        transform: some frames [n, D] -> expanded [n, E], and assignments, attentions and perhaps more in one,
            [n, G K + G or more], ready for softmax and sigmoid.
        groups: G.
        clusters: K.
    """
    values, offsets = frames.values, frames.offsets
    steps = kernels if kernels.available(values.device) else weighing
    width = groups * clusters
    one = torch.ones(width, device=values.device)
    zero = torch.zeros(width, device=values.device)
    result: tuple[Tensor, Tensor] | None = None
    for start in range(0, max(len(values), 1), _FRAMES):
        e, y = transform(values[start : start + _FRAMES])
        a = steps.weigh(y[:, :width], one, zero, y[:, width : width + groups])  # [n, G, K]
        own_offsets = offsets.clamp(start, start + len(e)) - start
        sums, mass = steps.weighted_sums(a, e, own_offsets)
        result = (sums, mass) if result is None else (result[0].add_(sums), result[1].add_(mass))
    assert result is not None
    return result
