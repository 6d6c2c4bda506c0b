"""Which precisions a CPU computes in by itself; in others it would first convert every number.

Letters as in `nextvlad.models.byte_linear`, whose products these are about.
"""

from __future__ import annotations

import functools
import platform
from collections.abc import Callable

import torch

from nextvlad.config import Precision
from nextvlad.models.byte_linear import integer_products

_HALVES: dict[Precision, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16}
_ON_X86 = {
    torch.bfloat16: ("_is_amx_tile_supported", "_is_avx512_bf16_supported"),
    torch.float16: ("_is_amx_fp16_supported",),
}
_ELSEWHERE = {torch.bfloat16: "_is_mkldnn_bf16_supported", torch.float16: "_is_mkldnn_fp16_supported"}


def settle(precision: Precision, device: torch.device) -> Precision:
    """What this precision is computed in: the same, or on a CPU that is slower in it another.

    Without instructions for bfloat16 or float16 a product in them takes about seven times as long as one in
    float32, which is the more exact too. On a GPU int8 is bfloat16: its products of bytes are not used.
    """
    if device.type != "cpu":
        return "bf16" if precision == "int8" else precision
    if precision == "int8" and integer_products() is None:
        precision = "bf16"
    half = _HALVES.get(precision)
    return "fp32" if half is not None and not multiplies(half) else precision


def dtype_of(precision: Precision, device: torch.device) -> torch.dtype:
    """Of the floating-point numbers in inference of a `settle`d precision."""
    if precision == "int8":  # what is not bytes is in half precision, where that is fast
        return torch.bfloat16 if device.type != "cpu" or multiplies(torch.bfloat16) else torch.float32
    return _HALVES.get(precision, torch.float32)


@functools.cache
def multiplies(half: torch.dtype) -> bool:
    """Whether this CPU has instructions for products of this half precision, as far as torch can tell."""
    if platform.machine().lower() in ("x86_64", "amd64"):
        # torch's other question is answered yes by CPUs which convert.
        return any(_answer(getattr(torch.cpu, name, None)) for name in _ON_X86[half])
    return _answer(getattr(torch.ops.mkldnn, _ELSEWHERE[half], None))


def _answer(question: Callable[[], bool] | None) -> bool:
    """What torch says of this CPU; no where it does not know the question."""
    try:
        return bool(question and question())
    except RuntimeError:
        return False
