"""Linear layers for inference, where weights do not change any more: exact products of small integers.

On a CPU with tile instructions for bytes (AMX) these are the fastest way to full precision. Each row of
weights is cut into slices of eight bits, w = s1 q1 + s2 q2 + s3 q3 with integers q of at most 127; every
slice is multiplied by the bytes without rounding, and the three results are added in float32. Three slices
are closer to the true product than a float32 multiplication is, at four times its speed; one slice is int8
inference. Inputs that are not bytes already are cut into slices too.

Other CPUs have products of bytes too, at about twice the speed of float32: enough for one slice, not for
three. The oldest of them (AVX2 alone) add two neighbouring products in 16 bits, which 255 x 127 x 2 does not
fit; there the integers are of at most 64, and int8 inference has seven bits.

Elsewhere the bytes become floats, less 128, which bfloat16 still holds exactly.
"""

from __future__ import annotations

import functools
import sys
from typing import Any, NamedTuple

import torch
from torch import Tensor

_MIDDLE = 128  # taken from every byte, so that large numbers do not cancel in the sums
_LARGEST = 127  # of a slice
_LARGEST_PAIRWISE = 64  # where two products with bytes, of one sign, have to fit 16 bits
_ROWS_AT_A_TIME = 16  # cut into slices in the cache
_INPUTS_AT_A_TIME = 4
_NUM_ROWS = 1024  # a hint for the layout of the prepared weights; any number of rows works


class ByteLinear:
    """q -> (q - 128) W^T + b for bytes q.

    Args:
        weight: [F, D] float64.
        bias: [F] float64.
        dtype: of the result, and of the arithmetic where there are no integer products.
        num_slices: of eight bits each, for the integer products; 0: none.

    Attributes:
        num_slices: as asked, or 0 where this machine has no integer products that pay.
    """

    def __init__(self, weight: Tensor, bias: Tensor, *, dtype: torch.dtype, num_slices: int) -> None:
        self.dtype = dtype
        products = integer_products() if weight.device.type == "cpu" else None
        pays = products is not None and (products.tiles or num_slices == 1)
        self.num_slices = num_slices if pays else 0
        if products is not None and self.num_slices:
            self._bias = bias.float()
            self._zeros = torch.zeros(len(weight), dtype=torch.long)
            slices = cut(weight, self.num_slices, products.largest)
            self._slices = [(_prepare(q), scale) for q, scale in slices]
        else:
            self._weight, self._bias = weight.to(dtype), bias.to(dtype)

    def ready(self, values: Tensor) -> Tensor:
        """[N, D] uint8 as `__call__` wants it: one conversion serves all layers of equal settings."""
        if self.num_slices:
            return values.contiguous()
        # The same bits with the first one turned over are q - 128 as a signed byte.
        return (values ^ _MIDDLE).view(torch.int8).to(self.dtype)

    def __call__(self, ready: Tensor) -> Tensor:
        """What `ready` gave -> [N, F] `dtype`."""
        if not self.num_slices:
            return torch.addmm(self._bias, ready, self._weight.T)
        if len(ready) == 0:
            return self._bias.new_empty(0, len(self._bias), dtype=self.dtype)
        if self.num_slices == 1:
            prepared, scale = self._slices[0]
            return _multiply(ready, prepared, scale, self._zeros, self._bias, None, dtype=self.dtype)
        result: Tensor | None = None
        for number in reversed(range(self.num_slices)):  # the small contributions first
            prepared, scale = self._slices[number]
            bias = self._bias if number == 0 else None
            result = _multiply(ready, prepared, scale, self._zeros, bias, result)
        assert result is not None
        return result.to(self.dtype)


class UnitLinear:
    """x -> x W^T + b for numbers of at most 1 in size, by integer products.

    Args:
        weight: [F, D] float32 or float64.
        bias: [F], likewise.
        full: keep full precision, by the six products of three slices each that matter; else the two of one
            slice of weights.
        largest: of the integers that weights become, as `integer_products` says.
    """

    def __init__(self, weight: Tensor, bias: Tensor, *, full: bool, largest: int = _LARGEST) -> None:
        self._bias = bias.float()
        self._zeros = torch.zeros(len(weight), dtype=torch.long)
        self._slices = [(_prepare(q), scale) for q, scale in cut(weight, 3 if full else 1, largest)]
        # (slice of x, slice of W), the smallest contributions first
        self._pairs = [(2, 0), (1, 1), (0, 2), (1, 0), (0, 1), (0, 0)] if full else [(1, 0), (0, 0)]

    def __call__(self, x: Tensor) -> Tensor:
        """[N, D] float32 in [-1, 1] -> [N, F] float32; a row with a NaN in it gives NaN, as elsewhere."""
        if len(x) == 0:
            return self._bias.new_empty(0, len(self._bias))
        parts = _cut_inputs(x, 1 + max(part for part, _ in self._pairs))
        result: Tensor | None = None
        for part, number in self._pairs:
            prepared, scale = self._slices[number]
            bias = self._bias if (part, number) == (0, 0) else None
            unit = 1.0 / (_LARGEST * (2 * _LARGEST) ** part)
            result = _multiply(parts[part], prepared, scale, self._zeros, bias, result, unit=unit)
        assert result is not None
        # Cut into slices a NaN is a number like any other; this gives it back.
        return result.add_(x.sum(1, keepdim=True) * 0.0)


def cut(weight: Tensor, num_slices: int, largest: int = _LARGEST) -> list[tuple[Tensor, Tensor]]:
    """Slices of a weight matrix: [F, D] -> (integers [F, D] int8, scale of each row [F] float32), ...

    Integers are of at most `largest` = L. Their sum differs from the weights by at most
    max |row| / (L (2 L)^(num_slices - 1)) / 2, beside the rounding of the weights' own type.
    """
    shape = weight.shape
    slices = [
        (torch.empty(shape, dtype=torch.int8), torch.empty(shape[0], dtype=torch.float32))
        for _ in range(num_slices)
    ]
    for first in range(0, len(weight), _ROWS_AT_A_TIME):
        rows = slice(first, first + _ROWS_AT_A_TIME)
        rest = weight[rows].clone()
        most = rest.abs().amax(1, keepdim=True)
        for integers, scales in slices:
            scale = (most / largest).float().to(rest.dtype).clamp_(min=1e-30)
            whole = torch.round(rest / scale).clamp_(-largest, largest)
            rest.addcmul_(whole, scale, value=-1.0)
            integers[rows], scales[rows] = whole, scale[:, 0]
            most = scale / 2  # what rounding leaves
    return slices


def _cut_inputs(x: Tensor, num_slices: int) -> list[Tensor]:
    """Slices of inputs in [-1, 1]: [N, D] uint8, 128 for 0; each in units of a 254th of the one before."""
    parts = [torch.empty(x.shape, dtype=torch.uint8) for _ in range(num_slices)]
    for first in range(0, len(x), _INPUTS_AT_A_TIME):
        rows = slice(first, first + _INPUTS_AT_A_TIME)
        rest = x[rows] * _LARGEST
        for part in parts:
            whole = torch.round(rest)
            part[rows] = whole + _MIDDLE
            rest.sub_(whole).mul_(2 * _LARGEST)
    return parts


class Products(NamedTuple):
    """Products of bytes and integers on this CPU.

    Attributes:
        largest: of the integers, so that nothing is lost in the sums: 127 or 64.
        tiles: so much faster than float32 that three of them pay in place of one of those.
    """

    largest: int
    tiles: bool


@functools.cache
def integer_products() -> Products | None:
    """Which this CPU has, and this torch can be asked for; None: none that pay.

    The operator is one that torch's own compiler calls, not part of the documented interface; so it is
    tried, and its results compared, those that sum up to the most among them.
    """
    if sys.platform != "linux" or not _cpu_says("_is_avx2_supported"):
        return None
    if _cpu_says("_is_amx_tile_supported") and _is_exact(_LARGEST):
        return Products(_LARGEST, tiles=True)
    # Never 127 on a promise alone: without VNNI large sums come out wrong, and small ones right.
    largest = next((size for size in (_LARGEST, _LARGEST_PAIRWISE) if _is_exact(size)), None)
    return None if largest is None else Products(largest, tiles=False)


def has_integer_products() -> bool:
    """Whether full precision is made of integer products here."""
    products = integer_products()
    return products is not None and products.tiles


def _cpu_says(question: str) -> bool:
    """A question to torch about this CPU; no where torch does not know it."""
    ask = getattr(torch.cpu, question, None)
    return bool(ask and ask())


def _is_exact(largest: int) -> bool:
    """Whether products with integers of at most this size are right to the last bit."""
    numbers = torch.Generator().manual_seed(0)
    values = torch.randint(0, 256, (5, 64), dtype=torch.uint8, generator=numbers)
    weight = torch.randint(-largest, largest + 1, (48, 64), dtype=torch.int8, generator=numbers)
    values[0], weight[0], weight[1] = 255, largest, -largest  # the largest sums there are
    scale, zeros, bias = torch.ones(48), torch.zeros(48, dtype=torch.long), torch.arange(48.0)
    wanted = (values.float() - _MIDDLE) @ weight.float().T + bias
    try:
        prepared = _prepare(weight)
        once = _multiply(values, prepared, scale, zeros, bias, None)
        twice = _multiply(values, prepared, scale, zeros, bias, once.clone())
    except (AttributeError, RuntimeError, TypeError):
        return False
    return bool((once == wanted).all() and (twice == 2 * wanted).all())


def _prepare(integers: Tensor) -> Any:
    """[F, D] int8 in the layout that the product wants."""
    return torch.ops.onednn.qlinear_prepack(integers.contiguous(), [_NUM_ROWS, integers.shape[1]])


def _multiply(
    values: Tensor,
    prepared: Any,
    scale: Tensor,
    zeros: Tensor,
    bias: Tensor | None,
    before: Tensor | None,
    *,
    unit: float = 1.0,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """(values - 128) W^T x unit x scale + bias + before, in the memory of `before`, which is float32."""
    operator = torch.ops.onednn.qlinear_pointwise
    start = (values, unit, _MIDDLE, prepared, scale, zeros)
    no_scaling = (1.0, 0, dtype)
    result: Tensor
    if before is None:
        result = operator(*start, bias, *no_scaling, "none", [], "")
    else:
        result = operator.binary(*start, before, bias, *no_scaling, 1.0, 0, "sum", 1.0, "none", [], "")
    return result
