"""NeXtVLAD's steps between its matrix products, one pass over memory each, on CUDA with Triton.

On a GPU these steps are bound by memory: batch norm, softmax, sigmoid and multiplication one after another
read and write [n, G K] a dozen times, fused they read it once. Sums over the frames of a video go straight
from packed rows, without padded copies and without asking the host how long the videos are.
`nextvlad.models.weighing` says what each computes, in plain steps, to be used where `available` is False.

Letters: n frames, G groups, K clusters, F = G K, B videos, S = E / G values of a group.
"""

from __future__ import annotations

import contextlib
import functools
import warnings
from contextlib import AbstractContextManager
from functools import partial
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from nextvlad.models import weighing
from nextvlad.models.weighing import WeighGradients

_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
_MOST_CLUSTERS = 4096  # a softmax is of one tile
_ELEMENTS = 4096  # of a tile of assignments
_PROGRAMS = 2048  # enough to fill a GPU, few enough that adding up their sums costs nothing
_TILE = 128  # most rows or columns of a tile of a matrix product; more would not fit in the registers
_SLOTS = 8  # programs at most that share the rows of one video


def available(device: torch.device) -> bool:
    """Whether the kernels can be used: on CUDA, with Triton, and they compute what the plain steps do.

    The first call for a device compiles them and compares small results; a failure is told once, as a
    RuntimeWarning, and the plain steps are used.
    """
    if device.type != "cuda":
        return False
    return _works(torch.cuda.current_device() if device.index is None else device.index)


@functools.cache
def _works(index: int) -> bool:
    if _kernels().triton is None:  # as with torch for CPUs, or on a Mac
        return False
    try:
        with torch.inference_mode(False), torch.autocast("cuda", enabled=False):  # whoever asks first
            fault = find_fault(torch.device("cuda", index))
    except Exception as error:  # whatever compiler and driver come up with: slower is better than not at all
        fault = f"{type(error).__name__}: {error}"
    if fault is not None:
        warnings.warn(
            f"the fused kernels are not used on cuda:{index} ({fault}); the plain ones are slower.",
            RuntimeWarning,
            stacklevel=2,
        )
    return fault is None


def moments(z: Tensor) -> tuple[Tensor, Tensor]:
    """As `weighing.moments`."""
    num_rows, num_columns = z.shape
    if num_rows == 0 or z.dtype not in _DTYPES:
        return weighing.moments(z)
    z = _rows(z)
    columns = min(128, _power_of_two(num_columns))
    tiles = -(-num_columns // columns)
    rows_a_split = max(256, -(-num_rows * tiles // _PROGRAMS))
    splits = -(-num_rows // rows_a_split)
    means, squares = z.new_empty(2, splits, num_columns, dtype=torch.float32)
    mean, var = z.new_empty(2, num_columns, dtype=torch.float32)
    with _on(z.device):
        _kernels().partial_moments[tiles, splits](
            *(z, means, squares, num_rows, num_columns, z.stride(0), rows_a_split), ROWS=32, COLUMNS=columns
        )
        _kernels().join_moments[(tiles,)](
            *(means, squares, mean, var, num_rows, num_columns, rows_a_split, splits), COLUMNS=columns
        )
    return mean, var


def weigh(z: Tensor, scale: Tensor, shift: Tensor, attention: Tensor) -> Tensor:
    """As `weighing.weigh`; the rows of `z` and of `attention` may be parts of longer ones."""
    num_frames, groups, clusters = _sizes(z, attention)
    if not _fits(z, attention, clusters):
        return weighing.weigh(z, scale, shift, attention)
    z, attention = _rows(z), _rows(attention)
    out = torch.empty(num_frames, groups, clusters, dtype=z.dtype, device=z.device)
    tile = _power_of_two(clusters)
    rows = max(1, _ELEMENTS // tile)
    with _on(z.device):
        _kernels().weigh[-(-num_frames // rows), groups](
            *(z, _factor(scale), _factor(shift), attention, out, num_frames),
            *(z.stride(0), attention.stride(0), groups, clusters),
            ROWS=rows,
            CLUSTERS=tile,
        )
    return out


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
    """As `weighing.weigh_backward`."""
    num_frames, groups, clusters = _sizes(z, attention)
    if not _fits(z, attention, clusters) or grad_a.dtype not in _DTYPES:
        return weighing.weigh_backward(grad_a, z, scale, shift, attention, mean, into=into)
    z, attention, grad_a = _rows(z), _rows(attention), grad_a.contiguous()
    tile = _power_of_two(clusters)
    rows = max(1, _ELEMENTS // 2 // tile)
    frames_a_split = rows * max(1, -(-num_frames * groups // (_PROGRAMS * rows)))
    splits = -(-num_frames // frames_a_split)
    grad_y = z.new_empty(z.shape) if into is None else into
    grad_attention = z.new_empty(num_frames, groups, dtype=torch.float32)
    sums = z.new_empty(2, splits, groups * clusters, dtype=torch.float32)
    centre = torch.zeros_like(scale) if mean is None else mean
    with _on(z.device):
        _kernels().weigh_backward[groups, splits](
            *(grad_a, z, _factor(scale), _factor(shift), attention, _factor(centre)),
            *(grad_y, grad_attention, sums[0], sums[1], num_frames, frames_a_split),
            *(z.stride(0), attention.stride(0), groups, clusters),
            ROWS=rows,
            CLUSTERS=tile,
        )
    return WeighGradients(grad_y, grad_attention, *sums.sum(1))


def blend(
    x: Tensor, a: Tensor, c: Tensor, y: Tensor | None = None, b: Tensor | None = None, *, dtype: torch.dtype
) -> Tensor:
    """As `weighing.blend`."""
    fits = x.dtype in (*_DTYPES, torch.uint8) and dtype in _DTYPES and (y is None or y.dtype in _DTYPES)
    if len(x) == 0 or not fits:
        return weighing.blend(x, a, c, y, b, dtype=dtype)
    x, a = _rows(x), _factor(a)
    has_y = y is not None and b is not None
    y, b = (_rows(y), _factor(b)) if y is not None and b is not None else (x, a)
    out = torch.empty(x.shape, dtype=dtype, device=x.device)
    columns = min(256, _power_of_two(x.shape[1]))
    rows = _ELEMENTS // columns
    with _on(x.device):
        _kernels().blend[-(-len(x) // rows), -(-x.shape[1] // columns)](
            *(x, y, a, b, _factor(c), out, *x.shape, x.stride(0), y.stride(0)),
            HAS_Y=has_y,
            ROWS=rows,
            COLUMNS=columns,
        )
    return out


def weighted_sums(a: Tensor, e: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
    """As `weighing.weighted_sums`, but frames behind the last offset are allowed, and count nowhere."""
    if e.dtype not in _DTYPES or len(a) == 0:
        return weighing.weighted_sums(a, e, offsets)
    left, right = weighing.parts(a.to(e.dtype).contiguous(), e.contiguous())
    clusters, size = left.shape[1], right.shape[1]
    sums = e.new_empty(len(offsets) - 1, clusters, size, dtype=torch.float32)
    mass = e.new_empty(len(offsets) - 1, clusters, dtype=torch.float32)
    p, q = _tile(clusters, e.dtype), _tile(size, e.dtype)
    with _on(e.device):
        _kernels().weighted_sums[len(mass), -(-clusters // p), -(-size // q)](
            *(left, right, offsets * a.shape[1], sums, mass, clusters, size, clusters, size),
            ROWS=64 if e.element_size() == 2 else 32,
            P=p,
            Q=q,
            num_warps=8 if p * q == _TILE * _TILE else 4,
        )
    return sums, mass


def weighted_sums_backward(
    grad_sums: Tensor,
    grad_mass: Tensor,
    a: Tensor,
    e: Tensor,
    offsets: Tensor,
    *,
    into: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """As `weighing.weighted_sums_backward`; `offsets` stays on the device."""
    if e.dtype not in _DTYPES or len(a) == 0:
        return weighing.weighted_sums_backward(grad_sums, grad_mass, a, e, offsets, into=into)
    left, right = weighing.parts(a.to(e.dtype).contiguous(), e.contiguous())
    matrices, bounds = grad_sums.to(e.dtype).contiguous(), offsets * a.shape[1]
    grad_left = torch.empty_like(left)
    grad_right = torch.empty_like(right) if into is None else into.view(right.shape)
    _multiply_rows(right, matrices.mT, grad_mass.float().contiguous(), bounds, grad_left)
    _multiply_rows(left, matrices, None, bounds, grad_right)
    return grad_left.view(a.shape), grad_right.view(e.shape)


def _multiply_rows(x: Tensor, matrices: Tensor, extra: Tensor | None, bounds: Tensor, out: Tensor) -> None:
    """Out [N, Q] = x [N, P] times its segment's matrix of [B, P, Q], plus its segment's row of [B, Q]."""
    inner, width = x.shape[1], out.shape[1]
    half = x.element_size() == 2
    p, q = min(64 if half else 32, _tile(inner, x.dtype)), _tile(width, x.dtype)
    rows = _TILE if half else _TILE // 2
    slots = min(_SLOTS, -(-len(x) // (len(matrices) * rows)))
    with _on(x.device):
        _kernels().segment_rows[len(matrices), slots, -(-width // q)](
            *(x, matrices, matrices if extra is None else extra, bounds, out),
            *(inner, width, x.stride(0), *matrices.stride()),
            HAS_EXTRA=extra is not None,
            ROWS=rows,
            P=p,
            Q=q,
            num_warps=8 if q == _TILE else 4,
        )


def find_fault(device: torch.device, half: torch.dtype = torch.bfloat16) -> str | None:
    """What the kernels compute wrongly on small made-up numbers on this device, None if nothing."""
    numbers = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=numbers).to(device)

    num_frames, groups, clusters, size = 90, 2, 130, 140  # tiles as large as there are, and not filled
    scale, shift, attention = draw(groups * clusters), draw(groups * clusters), draw(num_frames, groups)
    offsets = torch.tensor([0, 7, 7, 60, num_frames], device=device)
    grad_sums, grad_mass = draw(4, clusters, size), draw(4, clusters)
    for dtype, tolerance in ((torch.float32, 1e-4), (half, 2e-2)):
        z, a, e = (draw(num_frames, groups * width).to(dtype) for width in (clusters, clusters, size))
        a = a.view(num_frames, groups, clusters)
        for fused, plain, arguments in (
            (moments, weighing.moments, (z,)),
            (weigh, weighing.weigh, (z, scale, shift, attention)),
            (weigh_backward, weighing.weigh_backward, (a, z, scale, shift, attention, shift)),
            (partial(blend, dtype=dtype), partial(weighing.blend, dtype=dtype), (z, scale, shift, z, shift)),
            (weighted_sums, weighing.weighted_sums, (a, e, offsets)),
            (weighted_sums_backward, weighing.weighted_sums_backward, (grad_sums, grad_mass, a, e, offsets)),
        ):
            found, wanted = _tuple(fused(*arguments)), _tuple(plain(*arguments))
            for mine, theirs in zip(found, wanted, strict=True):
                difference = (mine.double() - theirs.double()).norm() / theirs.double().norm()
                if not float(difference) < tolerance:
                    return f"{fused} in {dtype} differs by {float(difference):.1e}"
    return None


def _tuple(found: Any) -> tuple[Tensor, ...]:
    return (found,) if isinstance(found, Tensor) else tuple(found)


def _kernels() -> ModuleType:
    from nextvlad.models import triton_kernels  # loads Triton, which only a GPU needs

    return triton_kernels


def _on(device: torch.device) -> AbstractContextManager[object]:
    """Triton starts kernels on the current device."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


def _sizes(z: Tensor, attention: Tensor) -> tuple[int, int, int]:
    """n, G and K."""
    return z.shape[0], attention.shape[1], z.shape[1] // attention.shape[1]


def _fits(z: Tensor, attention: Tensor, clusters: int) -> bool:
    dtypes = z.dtype in _DTYPES and attention.dtype in _DTYPES
    return dtypes and len(z) > 0 and clusters <= _MOST_CLUSTERS


def _rows(x: Tensor) -> Tensor:
    """With the values of a row side by side; rows may be apart."""
    return x if x.stride(1) == 1 else x.contiguous()


def _factor(x: Tensor) -> Tensor:
    return x.float().contiguous()


def _power_of_two(size: int) -> int:
    return 1 << (size - 1).bit_length()


def _tile(size: int, dtype: torch.dtype) -> int:
    """Columns of a tile of a matrix product: 16 at least, for the tensor cores."""
    most = _TILE // 2 if dtype == torch.float32 else _TILE
    return min(most, max(16, _power_of_two(size)))
