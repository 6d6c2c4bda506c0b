"""One branch in training, from frames to sums over time, with its gradient written out.

Letters: B videos, N frames of all of them one after another, n frames of a chunk, D input size of a stream,
E = expansion x D, G groups, K clusters, S = E / G, F = G K.

`nextvlad.models.nextvlad.Branch.aggregate_plainly` is the same in the paper's steps, and the reference. Left
to autograd, it keeps a dozen arrays as large as [N, E] or [N, F], and fetches each of them from memory often.
Here two are kept, the expanded frames and the assignments before their batch norm; what lies between
is made again in the backward pass, some hundred frames at a time, while they are in the cache.

Between frames and assignment everything is linear, so the two layers may be one, [F, D], multiplied out once
a step: see `folding_pays`. Autograd takes that product's gradient back to the two layers. The bias of the
expansion moves all assignments alike, so the batch norm takes it out again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from nextvlad import distributed
from nextvlad.models import kernels, weighing
from nextvlad.models.inputs import Preprocessing

_ROWS_CPU = 1024
_ROWS_GPU = 1 << 16
_FULL_ROWS = 128
"""oneDNN compiles a product of half precision for each new number of rows, so there should be few."""


class Weights(NamedTuple):
    """Of one branch; float32."""

    expand: Tensor
    """[E, D]"""
    expand_bias: Tensor
    """[E]"""
    assign: Tensor
    """[F, E]; [F, D] if folded"""
    attend: Tensor
    """[G, E]; [G, D] if folded"""
    attend_bias: Tensor
    """[G]"""
    norm: Tensor
    """[F], the factor of the assignment's batch norm"""
    norm_bias: Tensor
    """[F]"""

    def fold(self) -> Weights:
        """Assignment and attention as layers on frames, of what the expansion is part; differentiable.

        What its bias adds to the assignments is left out.
        """
        return self._replace(
            assign=self.assign @ self.expand,
            attend=self.attend @ self.expand,
            attend_bias=torch.addmv(self.attend_bias, self.attend, self.expand_bias),
        )


class BranchSums(NamedTuple):
    """What comes out; float32."""

    sums: Tensor
    """[B, K, S] weighted sums of expanded frames."""
    mass: Tensor
    """[B, K] sums of weights."""
    mean: Tensor
    """[F] of the assignments of all ranks' frames."""
    var: Tensor
    """[F] likewise, biased."""
    num_frames: float
    """Of all ranks."""


def folding_pays(num_frames: int, size: int, expanded: int) -> bool:
    """Whether expansion and assignment are cheaper as one layer, by their multiplications.

    With F = G K outputs, folding saves F (3 E - 2 D) a frame (once forward, twice back, but no gradient with
    respect to the frames) and costs 3 F E D a step. `benchmarks/training.py` measures both.

    >>> folding_pays(1500, 1024, 2048), folding_pays(1600, 1024, 2048)
    (False, True)
    """
    return num_frames * (3 * expanded - 2 * size) > 3 * expanded * size


def branch_sums(
    values: Tensor,
    offsets: Tensor,
    prepare: Callable[[Tensor], Tensor],
    weights: Weights,
    *,
    epsilon: float,
    dtype: torch.dtype,
    folded: bool | None = None,
) -> BranchSums:
    """Sums over time of one branch, normalised by this batch's statistics (all ranks' together).

    Args:
        values: [N, D] bytes or floats; no gradient goes back to them.
        offsets: [B + 1].
        prepare: makes float32 of some rows of `values`, with no gradient of its own.
        weights: of the branch, not folded.
        epsilon: of the batch norm.
        dtype: of products, and of what is kept for the backward pass.
        folded: whether assignment and attention are applied to frames, on all ranks alike; None: where that
            pays, and with several ranks always.
    """
    if folded is None:
        # Ranks have other numbers of frames, but must all do the same: what folding leaves out of the means,
        # and of the gradients of bias and assignment, is nothing only in the sum over all frames.
        folded = distributed.is_distributed() or folding_pays(
            len(values), weights.expand.shape[1], weights.expand.shape[0]
        )
    with torch.autocast(values.device.type, enabled=False):
        sums, mass, mean, var, count = _BranchSums.apply(  # type: ignore[no-untyped-call]
            values, offsets, prepare, folded, epsilon, dtype, *(weights.fold() if folded else weights)
        )
        if folded:
            mean = mean + weights.assign.detach() @ weights.expand_bias.detach()
    num_frames = float(count) if distributed.is_distributed() else float(len(values))  # no waiting if alone
    return BranchSums(sums, mass, mean, var, num_frames)


class _BranchSums(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        values: Tensor,
        offsets: Tensor,
        prepare: Callable[[Tensor], Tensor],
        folded: bool,
        epsilon: float,
        dtype: torch.dtype,
        *weights: Tensor,
    ) -> tuple[Tensor, ...]:
        w = Weights(*weights)
        expand, assign, attend = (matrix.to(dtype) for matrix in (w.expand, w.assign, w.attend))
        num_frames, (expanded, groups) = len(values), (len(w.expand), len(w.attend))
        clusters = len(w.assign) // groups
        e = values.new_empty(num_frames, expanded, dtype=dtype)  # [N, E]
        z = values.new_empty(num_frames, len(w.assign), dtype=dtype)  # [N, F]
        attention = values.new_empty(num_frames, groups, dtype=torch.float32)  # [N, G]
        for rows in _chunks(num_frames, values.device):
            x = _floats(prepare, values[rows], dtype)  # [n, D], perhaps with more rows behind
            own = rows.stop - rows.start
            direct = own == len(x)
            e_here = torch.addmm(w.expand_bias.to(dtype), x, expand.T, out=e[rows] if direct else None)
            source = x if folded else e_here
            z_here = torch.mm(source, assign.T, out=z[rows] if direct else None)
            if not direct:
                e[rows], z[rows] = e_here[:own], z_here[:own]
            attention[rows] = (source @ attend.T)[:own].float() + w.attend_bias
        steps = _steps(values.device)
        mean, var, count = _over_ranks(steps.moments(z), len(z))

        rstd = torch.rsqrt(var + epsilon)
        factor, shift = _factor_and_shift(w, mean, rstd)
        sums = e.new_zeros(len(offsets) - 1, clusters, expanded // groups, dtype=torch.float32)
        mass = e.new_zeros(len(offsets) - 1, clusters, dtype=torch.float32)
        pieces = _pieces(offsets, num_frames)
        for videos, rows in pieces:
            a = steps.weigh(z[rows], factor, shift, attention[rows])  # [n, G, K]
            own_offsets = offsets[videos.start : videos.stop + 1] - rows.start
            sums[videos], mass[videos] = steps.weighted_sums(a, e[rows], own_offsets)
        ctx.save_for_backward(values, offsets, e, z, attention, mean, rstd, count, *weights)
        ctx.pieces, ctx.folded, ctx.prepare = pieces, folded, prepare
        ctx.mark_non_differentiable(mean, var, count)
        return sums, mass, mean, var, count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        with torch.autocast(gradients[0].device.type, enabled=False):
            return _gradients(ctx, gradients[0], gradients[1])


def _gradients(ctx: Any, d_sums: Tensor, d_mass: Tensor) -> tuple[Tensor | None, ...]:
    """From those of the sums [B, K, S] and masses [B, K] to those of all that `forward` was given."""
    values, offsets, e, z, attention, mean, rstd, count, *weights = ctx.saved_tensors
    w, folded, dtype = Weights(*weights), ctx.folded, e.dtype
    factor, shift = _factor_and_shift(w, mean, rstd)
    steps = _steps(values.device)

    d_e = torch.empty_like(e)  # [N, E]
    d_y = torch.empty_like(z)  # [N, F]
    d_attention = torch.empty_like(attention)  # [N, G]
    sum_y, sum_y_z = torch.zeros_like(mean), torch.zeros_like(mean)  # [F], [F]
    for videos, rows in ctx.pieces:
        own_offsets = offsets[videos.start : videos.stop + 1] - rows.start
        a = steps.weigh(z[rows], factor, shift, attention[rows])  # [n, G, K]
        d_a, _ = steps.weighted_sums_backward(
            d_sums[videos], d_mass[videos], a, e[rows], own_offsets, into=d_e[rows]
        )
        found = steps.weigh_backward(d_a, z[rows], factor, shift, attention[rows], mean, into=d_y[rows])
        d_attention[rows] = found.attention
        sum_y += found.sum_y
        sum_y_z += found.sum_y_z

    # Batch norm: a frame's assignment also moves the mean and the variance, of all ranks' frames.
    over_ranks = distributed.sum_over_ranks(torch.stack([sum_y, sum_y_z])) / count.clamp(min=1.0)
    slope = -factor * rstd.square() * over_ranks[1]
    constant = -factor * over_ranks[0] - slope * mean
    d_expand = torch.zeros_like(w.expand)
    d_assign, d_attend = torch.zeros_like(w.assign), torch.zeros_like(w.attend)
    d_expand_bias = torch.zeros_like(w.expand_bias)
    assign, attend = w.assign.to(dtype), w.attend.to(dtype)
    for rows in _chunks(len(values), values.device):
        x = _floats(ctx.prepare, values[rows], dtype)  # [n, D]
        d_z = steps.blend(z[rows], slope, constant, d_y[rows], factor, dtype=dtype)  # [n, F]
        d_logit = d_attention[rows].to(dtype)  # [n, G]
        d_here = d_e[rows]  # [n, E]
        if not folded:
            d_here = d_here + d_z @ assign + d_logit @ attend
        source = x if folded else _filled(e[rows], len(x))
        _add_product(d_assign, d_z, source)
        _add_product(d_attend, d_logit, source)
        _add_product(d_expand, d_here, x)
        d_expand_bias += d_here.sum(0, dtype=torch.float32)
    found_gradients = Weights(
        expand=d_expand,
        expand_bias=d_expand_bias,
        assign=d_assign,
        attend=d_attend,
        attend_bias=d_attention.sum(0),
        norm=sum_y_z * rstd,
        norm_bias=sum_y,
    )
    return (*(None,) * 6, *found_gradients)


def _factor_and_shift(w: Weights, mean: Tensor, rstd: Tensor) -> tuple[Tensor, Tensor]:
    """Batch norm as z factor + shift."""
    factor = w.norm * rstd
    return factor, w.norm_bias - mean * factor


def _steps(device: torch.device) -> ModuleType:
    """The functions of `weighing`, fused where they can be."""
    return kernels if kernels.available(device) else weighing


def _over_ranks(moments: tuple[Tensor, Tensor], num_rows: int) -> tuple[Tensor, Tensor, Tensor]:
    """Mean [F], biased variance [F] and number of all ranks' rows, from those of this rank's."""
    mean, var = moments
    count = torch.full((), float(num_rows), device=mean.device)
    if not distributed.is_distributed():
        return mean, var, count
    of_ranks = mean.new_zeros(distributed.world_size(), 3, len(mean))
    of_ranks[distributed.rank()] = torch.stack([count.expand_as(mean), mean, var])
    counts, means, variances = distributed.sum_over_ranks(of_ranks).unbind(1)
    share = counts / counts.sum(0).clamp(min=1.0)
    mean = (share * means).sum(0)
    return mean, (share * (variances + (means - mean).square())).sum(0), counts[:, 0].sum()


def _chunks(num_frames: int, device: torch.device) -> Iterator[slice]:
    """Rows 0 to N in pieces."""
    size = _ROWS_CPU if device.type == "cpu" else _ROWS_GPU
    for start in range(0, num_frames, size):
        yield slice(start, min(start + size, num_frames))


def _pieces(offsets: Tensor, num_frames: int) -> list[tuple[slice, slice]]:
    """Neighbouring videos with about as many frames together as a chunk has, and these frames' rows.

    All at once where steps are fused: they need no memory beside, and the host need not ask for the offsets.
    """
    if kernels.available(offsets.device):
        return [(slice(0, len(offsets) - 1), slice(0, num_frames))]
    return list(
        _whole_videos(offsets.tolist(), _ROWS_CPU // 2 if offsets.device.type == "cpu" else _ROWS_GPU)
    )


def _whole_videos(bounds: list[int], size: int) -> Iterator[tuple[slice, slice]]:
    first = 0
    for video, (_, end) in enumerate(pairwise(bounds)):
        if end - bounds[first] >= size or video == len(bounds) - 2:
            if end > bounds[first]:
                yield slice(first, video + 1), slice(bounds[first], end)
            first = video + 1


def _floats(prepare: Callable[[Tensor], Tensor], values: Tensor, dtype: torch.dtype) -> Tensor:
    """[n, D] as they are multiplied, perhaps with zeros behind."""
    if isinstance(prepare, Preprocessing) and values.dtype == torch.uint8:
        x = _steps(values.device).blend(values, prepare.scale, prepare.offset, dtype=dtype)
    else:
        x = prepare(values)
    on_cpu_in_half = x.device.type == "cpu" and dtype != torch.float32
    return _filled(x.to(dtype), len(x) + (-len(x) % _FULL_ROWS if on_cpu_in_half else 0))


def _filled(x: Tensor, num_rows: int) -> Tensor:
    """Zeros behind the rows of [n, F], up to so many."""
    if num_rows <= len(x):
        return x
    return torch.cat([x, x.new_zeros(num_rows - len(x), x.shape[1])])


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Adds left^T right, [n, P]^T [n, Q], to a float32 [P, Q]; left is filled up with zeros if shorter."""
    left = _filled(left, len(right))
    if left.dtype == torch.float32:
        total.addmm_(left.T, right)
    else:
        total += torch.mm(left.T, right)
