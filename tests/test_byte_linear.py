"""Exact products of small integers, against float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from nextvlad.models import byte_linear
from nextvlad.models.byte_linear import ByteLinear, UnitLinear, cut, has_integer_products

SHAPE = (40, 96)  # F, D


def weights(seed: int = 0) -> tuple[Tensor, Tensor]:
    numbers = torch.Generator().manual_seed(seed)
    weight = torch.randn(SHAPE, dtype=torch.float64, generator=numbers) * 0.05
    weight[3] = 0.0
    weight[5] *= 1e-6
    return weight, torch.randn(SHAPE[0], dtype=torch.float64, generator=numbers)


def all_bytes(rows: int) -> Tensor:
    numbers = torch.Generator().manual_seed(1)
    values = torch.randint(0, 256, (rows, SHAPE[1]), dtype=torch.uint8, generator=numbers)
    values[0], values[-1] = 0, 255
    return values


@pytest.mark.parametrize("num_slices", [1, 2, 3])
def test_slices_add_up_to_the_weights(num_slices: int) -> None:
    weight, _ = weights()
    total = torch.zeros_like(weight)
    for integers, scale in cut(weight, num_slices):
        assert integers.dtype == torch.int8
        total += integers.double() * scale.double()[:, None]
    largest = weight.abs().amax(1, keepdim=True)
    assert ((total - weight).abs() <= largest / (127 * 254 ** (num_slices - 1)) * 0.51).all()


@pytest.mark.parametrize("integer", [True, False])
@pytest.mark.parametrize("rows", [1, 3, 130])
@pytest.mark.parametrize(
    ("dtype", "num_slices", "tolerance"),
    [(torch.float32, 3, 3e-6), (torch.bfloat16, 0, 0.02), (torch.bfloat16, 1, 0.02)],
)
def test_bytes_times_weights(
    monkeypatch: pytest.MonkeyPatch,
    integer: bool,
    rows: int,
    dtype: torch.dtype,
    num_slices: int,
    tolerance: float,
) -> None:
    """Relative to the largest sum that a row of weights can make."""
    if integer and not has_integer_products():
        pytest.skip("this CPU has no AMX")
    monkeypatch.setattr(byte_linear, "has_integer_products", lambda: integer)
    weight, bias = weights()
    layer = ByteLinear(weight, bias, dtype=dtype, num_slices=num_slices)
    values = all_bytes(rows)
    found = layer(layer.ready(values))
    wanted = (values.double() - 128) @ weight.T + bias
    assert found.dtype == dtype
    scale = 128 * weight.abs().amax(1) * SHAPE[1] ** 0.5 + bias.abs()
    assert ((found.double() - wanted).abs() / scale).max() < tolerance


@pytest.mark.parametrize(("full", "tolerance"), [(True, 1e-6), (False, 0.02)])
def test_numbers_of_at_most_one(full: bool, tolerance: float) -> None:
    if not has_integer_products():
        pytest.skip("this CPU has no AMX")
    weight, bias = weights(2)
    layer = UnitLinear(weight.float(), bias, full=full)
    x = torch.rand(9, SHAPE[1], generator=torch.Generator().manual_seed(3)) * 2 - 1
    x[0], x[1], x[2] = 1.0, -1.0, 0.0
    wanted = x.double() @ weight.T + bias
    found = layer(x)
    scale = weight.abs().amax(1) * SHAPE[1] ** 0.5 + bias.abs()
    assert ((found.double() - wanted).abs() / scale).max() < tolerance
    # A row's result does not depend on the rows beside it, but for the order in which a sum is rounded.
    torch.testing.assert_close(torch.cat([layer(row[None]) for row in x]), found, rtol=0, atol=1e-6)


def test_nothing_in_nothing_out() -> None:
    weight, bias = weights()
    layer = ByteLinear(weight, bias, dtype=torch.float32, num_slices=3)
    assert layer(layer.ready(torch.empty(0, SHAPE[1], dtype=torch.uint8))).shape == (0, SHAPE[0])
