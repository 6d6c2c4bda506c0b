"""The parts NeXtVLAD is made of: batch norm as the originals keep it, context gate, sums over time.

Letters: B videos, N frames of all videos of a batch one after another, F features, H hidden,
K clusters, G groups.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from nextvlad import distributed

_ROWS_OF_FRAMES_CPU, _ROWS_OF_FRAMES_GPU = 1024, 1 << 17
_ROWS_OF_GRADIENT = 64  # a few MB in half precision: still in the cache when it becomes float32


class BatchNorm(nn.Module):
    """Batch norm over the rows of [N, F] (frames, or videos), with the originals' running statistics.

    Differs from torch's in three ways that the originals fix: `weight_of_new` may be as small as the
    author's 0.001, the running variance is the biased one unless `unbiased`, and across processes the
    statistics are those of all rows of all ranks together, each row counting once, so that N processes
    compute what one would. (The originals normalised on each GPU by itself.)
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(
        self, num_features: int, *, epsilon: float, weight_of_new: float, unbiased: bool = False
    ) -> None:
        super().__init__()
        self.epsilon = epsilon
        self.weight_of_new = weight_of_new
        self.unbiased = unbiased
        self.weight = nn.Parameter(torch.ones(num_features))
        self.bias = nn.Parameter(torch.zeros(num_features))
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features))

    def forward(self, x: Tensor) -> Tensor:
        """[N, F] float -> [N, F] float32; N may be 0."""
        x = x.float()
        if not self.training:
            scale = self.weight * torch.rsqrt(self.running_var + self.epsilon)
            return torch.addcmul(self.bias - self.running_mean * scale, x, scale)
        if distributed.is_distributed():
            return self._normalise_across_ranks(x)
        if x.shape[0] < 2:  # torch's own kernel has no variance for a single row
            return self._normalise(x, *self._local_moments(x), float(x.shape[0]))
        count = float(x.shape[0])
        mean, var = torch.zeros_like(self.running_mean), torch.ones_like(self.running_var)
        y = functional.batch_norm(x, mean, var, self.weight, self.bias, True, 1.0, self.epsilon)
        self.remember(mean, var * ((count - 1.0) / count), count)
        return y

    def _local_moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if x.shape[0] == 0:
            zero = x.sum(0)  # keeps the graph: every rank must take part in the backward collectives
            return zero, zero
        var, mean = torch.var_mean(x, 0, correction=0)
        return mean, var

    def _normalise_across_ranks(self, x: Tensor) -> Tensor:
        mean, var = self._local_moments(x)
        count = torch.full_like(mean, float(x.shape[0]))
        counts, means, variances = distributed.gather_with_gradient(torch.stack([count, mean, var])).unbind(1)
        total = counts.sum(0)
        share = counts / total.clamp(min=1.0)
        mean = (share * means).sum(0)
        var = (share * (variances + (means - mean).square())).sum(0)
        return self._normalise(x, mean, var, float(total[0].detach()))

    def _normalise(self, x: Tensor, mean: Tensor, var: Tensor, count: float) -> Tensor:
        self.remember(mean.detach(), var.detach(), count)
        return (x - mean) * (torch.rsqrt(var + self.epsilon) * self.weight) + self.bias

    @torch.no_grad()
    def remember(self, mean: Tensor, biased_var: Tensor, count: float) -> None:
        """Moves the running statistics towards those of all ranks' `count` rows, if there are any."""
        if count == 0:
            return
        var = biased_var * (count / (count - 1.0)) if self.unbiased and count > 1 else biased_var
        self.running_mean.lerp_(mean, self.weight_of_new)
        self.running_var.lerp_(var, self.weight_of_new)


class ContextGate(nn.Module):
    """Squeeze-and-excitation gate on [B, H]: each unit is scaled by a sigmoid of all units.

    H -> H/r, batch norm, ReLU, H/r -> H, sigmoid (paper section 3.3; no biases, as in the originals).
    """

    def __init__(self, hidden_size: int, reduction: int, norm: BatchNorm) -> None:
        super().__init__()
        self.reduce = nn.Linear(hidden_size, hidden_size // reduction, bias=False)
        self.norm = norm
        self.expand = nn.Linear(hidden_size // reduction, hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, H] -> [B, H]."""
        squeezed = functional.relu(self.norm(self.reduce(x)))  # [B, H/r]
        return x * torch.sigmoid(self.expand(squeezed).float())


class LargeLinear(nn.Linear):
    """A linear layer whose weights are many: [N, F] -> [N, F'].

    Under autocast it multiplies by a copy of its weights in half precision, made at each pass in the same
    memory. Autocast by itself takes new memory each time, for copy and gradient in half precision;
    here the gradient becomes float32 by parts.
    """

    _shadow: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """In the type of autocast, plus a float32 bias if there is one; else as torch's."""
        device = x.device.type
        if not torch.is_autocast_enabled(device):
            return super().forward(x)
        dtype = torch.get_autocast_dtype(device)
        with torch.autocast(device, enabled=False):
            product: Tensor = _HalfProduct.apply(  # type: ignore[no-untyped-call]
                x.to(dtype), self.weight, self._in_half(dtype)
            )
            return product if self.bias is None else product + self.bias

    @torch.no_grad()
    def _in_half(self, dtype: torch.dtype) -> Tensor:
        """The weights as they are now: fused Adam changes them without counting it as a change."""
        weight, shadow = self.weight, self._shadow
        # One made in inference mode cannot be written outside of it.
        if shadow is None or (shadow.dtype, shadow.device) != (dtype, weight.device) or shadow.is_inference():
            self._shadow = shadow = torch.empty_like(weight, dtype=dtype)
        return shadow.copy_(weight)


class _HalfProduct(torch.autograd.Function):
    """x W^T with x and the `shadow` of W in half precision, and a gradient of W in float32."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, shadow: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        ctx.shadow = shadow  # not saved: another pass with the same weights may write the same again
        return x @ shadow.T

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        (x,), shadow = ctx.saved_tensors, ctx.shadow
        d_weight = torch.empty(shadow.shape, dtype=torch.float32, device=shadow.device)
        rows = _ROWS_OF_GRADIENT if shadow.device.type == "cpu" else len(shadow)
        for first in range(0, len(shadow), rows):
            d_weight[first : first + rows] = gradient[:, first : first + rows].T @ x
        return gradient @ shadow, d_weight, None


class Dropout(nn.Module):
    """Dropout that compensates while training (inverted, the author) or in evaluation (Paddle v1.5.1)."""

    def __init__(self, probability: float, *, scale_in_training: bool) -> None:
        super().__init__()
        self.probability = probability
        self.scale_in_training = scale_in_training

    def forward(self, x: Tensor) -> Tensor:
        """Any shape."""
        if self.scale_in_training:
            return functional.dropout(x, self.probability, self.training)
        if self.training:
            return x * torch.empty_like(x).bernoulli_(1.0 - self.probability)
        return x * (1.0 - self.probability)


class _SegmentProducts(torch.autograd.Function):
    """`segment_outer` with its gradient."""

    @staticmethod
    def forward(ctx: Any, left: Tensor, right: Tensor, offsets: Tensor) -> Tensor:
        ctx.save_for_backward(left, right, offsets)
        return segment_outer(left, right, offsets)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        left, right, offsets = ctx.saved_tensors
        gradient = gradients[0].to(left.dtype)
        d_left, d_right = torch.empty_like(left), torch.empty_like(right)
        segment_inner(right, gradient.mT, offsets, d_left)
        segment_inner(left, gradient, offsets, d_right)
        return d_left, d_right, None


def segment_products(left: Tensor, right: Tensor, offsets: Tensor) -> Tensor:
    """Sums of outer products over each segment: [N, P], [N, Q], offsets [B+1] -> [B, P, Q].

    Row n of segment b contributes left[n] x right[n]; an empty segment gives zeros. Differentiable.
    """
    with torch.autocast(left.device.type, enabled=False):
        left, right = left.to(right.dtype).contiguous(), right.contiguous()
        result: Tensor = _SegmentProducts.apply(left, right, offsets)  # type: ignore[no-untyped-call]
        return result


def segment_outer(left: Tensor, right: Tensor, offsets: Tensor) -> Tensor:
    """`segment_products` without a gradient, of two tensors of one dtype.

    On CPU one product a segment, without padding or copies; elsewhere, where many small launches would cost
    more than padding, one batched product.
    """
    lengths = offsets.diff()
    if left.device.type == "cpu":
        out = left.new_zeros(len(lengths), left.shape[1], right.shape[1])
        for segments, rows in _alike(offsets.tolist()):
            count = segments.stop - segments.start
            torch.bmm(_stacked(left[rows], count).mT, _stacked(right[rows], count), out=out[segments])
        return out
    if len(left) == 0:
        return left.new_zeros(len(lengths), left.shape[1], right.shape[1])
    places, mask = _padded_rows(offsets, len(left))
    return torch.bmm((left[places] * mask[..., None].to(left.dtype)).mT, right[places])


def segment_inner(rows: Tensor, matrices: Tensor, offsets: Tensor, out: Tensor) -> None:
    """Each row times its segment's matrix: [N, P], [B, P, Q], offsets [B+1] -> out [N, Q], contiguous."""
    if rows.device.type == "cpu":
        for segments, own in _alike(offsets.tolist()):
            count = segments.stop - segments.start
            torch.bmm(_stacked(rows[own], count), matrices[segments], out=_stacked(out[own], count))
    elif len(rows):
        places, mask = _padded_rows(offsets, len(rows))
        out[places[mask]] = torch.bmm(rows[places], matrices)[mask]


def _alike(bounds: list[int]) -> Iterator[tuple[slice, slice]]:
    """Neighbouring segments of one length, for one batched product, and their rows; empty ones left out."""
    first = 0
    for segment in range(1, len(bounds)):
        length = bounds[segment] - bounds[segment - 1]
        last = segment == len(bounds) - 1
        if last or bounds[segment + 1] - bounds[segment] != length:
            if length:
                yield slice(first, segment), slice(bounds[first], bounds[segment])
            first = segment


def _stacked(x: Tensor, count: int) -> Tensor:
    """Rows [count T, F] of `count` segments -> [count, T, F], a view."""
    return x.view(count, len(x) // count, x.shape[1])


def _padded_rows(offsets: Tensor, num_rows: int) -> tuple[Tensor, Tensor]:
    """Row numbers [B, longest] of each segment, and where they are the segment's own: [B, longest] bool."""
    lengths = offsets.diff()
    positions = torch.arange(int(lengths.max()) if len(lengths) else 0, device=offsets.device)
    rows = (offsets[:-1, None] + positions).clamp(max=max(num_rows - 1, 0))
    return rows, positions < lengths[:, None]


def segment_sum(x: Tensor, offsets: Tensor) -> Tensor:
    """Sum of the rows of each segment: [N, F], offsets [B+1] -> [B, F]; an empty segment gives zeros."""
    segment = torch.repeat_interleave(offsets.diff())  # [N], the video each row belongs to
    return x.new_zeros(len(offsets) - 1, x.shape[1]).index_add(0, segment, x)


def sum_of_frames(prepare: Callable[[Tensor], Tensor], values: Tensor, offsets: Tensor) -> Tensor:
    """`segment_sum` of what `prepare` makes of the rows, some at a time: [N, D], offsets [B+1] -> [B, D].

    `prepare` is given rows of `values` and returns as many, float32; so [N, D] floats never are in memory.
    Rows behind the last offset count nowhere. On a GPU the host does not wait for the offsets.
    """
    rows = torch.arange(len(values), device=values.device)
    segment = torch.searchsorted(offsets[1:], rows, right=True)  # [N]; B behind the last offset
    sums = torch.zeros(len(offsets), values.shape[1], device=values.device)  # [B + 1, D]
    size = _ROWS_OF_FRAMES_CPU if values.device.type == "cpu" else _ROWS_OF_FRAMES_GPU
    for start in range(0, len(values), size):
        part = slice(start, start + size)
        sums.index_add_(0, segment[part], prepare(values[part]))
    return sums[:-1]


def he_normal_(weight: Tensor, fan_in: int) -> None:
    """Normal with deviation sqrt(2 / fan_in), values beyond two deviations drawn again (He et al. 2015).

    As slim's `variance_scaling_initializer`, which both originals use for every weight: the cut makes
    the deviation smaller, and it is corrected for (slim rounds the correction to 1.3 = 1 / 0.877^2).
    """
    deviation = math.sqrt(2.0 / fan_in) / 0.87962566103423978
    nn.init.trunc_normal_(weight, std=deviation, a=-2 * deviation, b=2 * deviation)
