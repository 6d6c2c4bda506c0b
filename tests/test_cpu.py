"""Which precision inference takes on which CPU."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from nextvlad.config import Precision
from nextvlad.models import cpu
from nextvlad.models.byte_linear import Products

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Iterator[set[str]]:
    """The questions that this made-up x86 CPU answers with yes."""
    found: set[str] = set()
    for names in cpu._ON_X86.values():
        for name in names:
            monkeypatch.setattr(torch.cpu, name, lambda name=name: name in found, raising=False)
    monkeypatch.setattr(cpu.platform, "machine", lambda: "x86_64")
    cpu.multiplies.cache_clear()
    yield found
    cpu.multiplies.cache_clear()


@pytest.mark.parametrize(
    ("yes", "wanted"),
    [
        (set(), {"fp32": "fp32", "bf16": "fp32", "fp16": "fp32"}),
        ({"_is_avx512_bf16_supported"}, {"fp32": "fp32", "bf16": "bf16", "fp16": "fp32"}),
        ({"_is_amx_tile_supported"}, {"fp32": "fp32", "bf16": "bf16", "fp16": "fp32"}),
        ({"_is_amx_tile_supported", "_is_amx_fp16_supported"}, {"bf16": "bf16", "fp16": "fp16"}),
    ],
)
def test_half_precision_where_the_cpu_has_it(
    answers: set[str], yes: set[str], wanted: dict[Precision, Precision]
) -> None:
    answers |= yes
    for asked, taken in wanted.items():
        assert cpu.settle(asked, CPU) == taken
        assert cpu.settle(asked, GPU) == asked


@pytest.mark.parametrize("products", [Products(64, tiles=False), None])
def test_bytes_where_the_cpu_multiplies_them(
    answers: set[str], monkeypatch: pytest.MonkeyPatch, products: Products | None
) -> None:
    monkeypatch.setattr(cpu, "integer_products", lambda: products)
    assert cpu.settle("int8", CPU) == ("int8" if products else "fp32")
    assert cpu.dtype_of("int8", CPU) == torch.float32
    answers.add("_is_amx_tile_supported")
    cpu.multiplies.cache_clear()
    assert cpu.settle("int8", CPU) == ("int8" if products else "bf16")
    assert cpu.dtype_of("int8", CPU) == torch.bfloat16
    assert cpu.settle("int8", GPU) == "bf16"
    assert cpu.dtype_of("int8", GPU) == torch.bfloat16


def test_other_machines_ask_onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown() -> bool:
        raise RuntimeError("not built with oneDNN")

    monkeypatch.setattr(cpu.platform, "machine", lambda: "aarch64")
    for answer, wanted in ((lambda: True, True), (lambda: False, False), (unknown, False)):
        monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", answer, raising=False)
        cpu.multiplies.cache_clear()
        assert cpu.multiplies(torch.bfloat16) is wanted
    cpu.multiplies.cache_clear()
