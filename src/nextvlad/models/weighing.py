"""What NeXtVLAD does with the assignments of frames to clusters, and its gradient, one step a function.

These are the plain forms; `nextvlad.models.kernels` has the same in one pass each on CUDA. Letters: n frames,
G groups, K clusters, F = G K. All compute in float32 whatever the dtype of `z` (in float64 if it is float64).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from nextvlad.models.layers import segment_inner, segment_products, segment_sum

_ROWS_CPU = 512  # of moments at a time, so that they are still in the cache the second time
_ROWS_GPU = 1 << 16


class WeighGradients(NamedTuple):
    """What `weigh_backward` gives."""

    y: Tensor
    """[n, F] in the dtype of `z`: the gradient with respect to y = z scale + shift."""
    attention: Tensor
    """[n, G] float32: with respect to the attention before its sigmoid."""
    sum_y: Tensor
    """[F] float32: the gradients y, summed over frames: the gradient with respect to `shift`."""
    sum_y_z: Tensor
    """[F] float32: the gradients y times (z - mean), summed over frames: with mean 0 that of `scale`."""


def moments(z: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance over frames: [n, F] -> [F], [F] float32.

    By chunks, each around its own mean, then put together (Chan, Golub and LeVeque 1979), so that a mean far
    from zero costs no precision. Without frames both are 0.
    """
    mean, squares = z.new_zeros(2, z.shape[1], dtype=torch.float64)
    rows = _ROWS_CPU if z.device.type == "cpu" else _ROWS_GPU
    for before in range(0, len(z), rows):
        part = _wide(z[before : before + rows])
        own_mean = part.mean(0)
        own_squares = (part - own_mean).square_().sum(0)
        difference = own_mean - mean
        share = len(part) / (before + len(part))
        mean += difference * share
        squares += own_squares + difference.square() * (before * share)
    kept = torch.float64 if z.dtype == torch.float64 else torch.float32
    return mean.to(kept), (squares / max(len(z), 1)).to(kept)


def weigh(z: Tensor, scale: Tensor, shift: Tensor, attention: Tensor) -> Tensor:
    """Weight of each frame, group and cluster: softmax over clusters, times the sigmoid of attention.

    Args:
        z: [n, F] assignments before their batch norm, float32 or half precision.
        scale: [F] float32.
        shift: [F] float32; the softmax is that of z scale + shift.
        attention: [n, G] before the sigmoid.

    Returns:
        [n, G, K] in the dtype of `z`.
    """
    weights, importance = _softmax_and_sigmoid(z, scale, shift, attention)
    return weights.mul_(importance[..., None]).to(z.dtype)


def weigh_backward(
    grad_a: Tensor,
    z: Tensor,
    scale: Tensor,
    shift: Tensor,
    attention: Tensor,
    mean: Tensor | None = None,
    *,
    into: Tensor | None = None,
) -> WeighGradients:
    """Gradients of `weigh`.

    Args:
        grad_a: [n, G, K], with respect to its result, in any floating dtype.
        z: as given to `weigh`, and so are `scale`, `shift` and `attention`.
        scale: [F].
        shift: [F].
        attention: [n, G].
        mean: [F] float32, taken from `z` in `sum_y_z`, as a batch norm wants it; None: zeros.
        into: [n, F] contiguous, in the dtype of `z`, for the gradient y; None: a new one.
    """
    weights, importance = _softmax_and_sigmoid(z, scale, shift, attention)  # [n, G, K], [n, G]
    grad_a = _wide(grad_a)
    inner = (grad_a * weights).sum(2)  # [n, G]
    grad_y = (grad_a - inner[..., None]).mul_(weights).mul_(importance[..., None]).flatten(1)  # [n, F]
    grad_attention = inner * importance * (1.0 - importance)
    centred = _wide(z) if mean is None else z - mean
    kept = grad_y.to(z.dtype) if into is None else into.copy_(grad_y)
    return WeighGradients(kept, grad_attention, grad_y.sum(0), (grad_y * centred).sum(0))


def blend(
    x: Tensor, a: Tensor, c: Tensor, y: Tensor | None = None, b: Tensor | None = None, *, dtype: torch.dtype
) -> Tensor:
    """Sum x a + y b + c, computed in float32 and rounded once: bytes to floats, gradients of batch norms.

    Args:
        x: [n, F] of any real dtype.
        a: [F] float32, and so are `b` and `c`.
        c: [F].
        y: [n, F]; None: without y b.
        b: [F].
        dtype: of the result [n, F].
    """
    found = torch.addcmul(c, _wide(x), a)
    if y is not None and b is not None:
        found.addcmul_(_wide(y), b)
    return found.to(dtype)


def weighted_sums(a: Tensor, e: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
    """Sums over the frames and groups of each video.

    Args:
        a: [n, G, K] weights.
        e: [n, G S] expanded frames.
        offsets: [B + 1] int64 from 0 to n, where the frames of each video begin.

    Returns:
        Weighted sums of frames [B, K, S] and sums of weights [B, K], both float32; zeros without frames.
    """
    left, right = parts(a, e)
    sums = segment_products(left, right, offsets * a.shape[1]).float()
    return sums, segment_sum(a.sum(1, dtype=torch.float32), offsets)


def weighted_sums_backward(
    grad_sums: Tensor,
    grad_mass: Tensor,
    a: Tensor,
    e: Tensor,
    offsets: Tensor,
    *,
    into: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Gradients of `weighted_sums` with respect to `a` and `e`, in the dtype of `e`.

    Args:
        grad_sums: [B, K, S].
        grad_mass: [B, K].
        a: as given to `weighted_sums`, and so are `e` and `offsets`.
        e: [n, G S].
        offsets: [B + 1].
        into: [n, G S] contiguous, in the dtype of `e`, for its gradient; None: a new one.
    """
    bounds = offsets * a.shape[1]
    left, right = parts(a.to(e.dtype).contiguous(), e.contiguous())
    grad_sums = grad_sums.to(e.dtype)
    grad_left = torch.empty_like(left)
    grad_right = torch.empty_like(right) if into is None else into.view(right.shape)
    segment_inner(right, grad_sums.mT, bounds, grad_left)
    segment_inner(left, grad_sums, bounds, grad_right)
    grad_left += grad_mass[torch.repeat_interleave(bounds.diff())].to(e.dtype)
    return grad_left.view(a.shape), grad_right.view(e.shape)


def parts(a: Tensor, e: Tensor) -> tuple[Tensor, Tensor]:
    """Weights [n, G, K] and expanded frames [n, G S] as rows of a frame and group: [n G, K] and [n G, S]."""
    num_frames, groups, _ = a.shape
    return a.flatten(0, 1), e.reshape(num_frames * groups, e.shape[1] // groups)


def _softmax_and_sigmoid(z: Tensor, scale: Tensor, shift: Tensor, attention: Tensor) -> tuple[Tensor, Tensor]:
    """Assignment [n, G, K] and importance [n, G] of frames."""
    y = torch.addcmul(shift, _wide(z), scale)  # [n, F]
    groups = attention.shape[1]
    weights = torch.softmax(y.view(len(y), groups, y.shape[1] // groups), 2)
    return weights, torch.sigmoid(_wide(attention))


def _wide(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()
