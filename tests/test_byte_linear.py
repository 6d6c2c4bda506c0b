"""Exact products of small integers, against float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from nextvlad.models import byte_linear
from nextvlad.models.byte_linear import ByteLinear, Products, UnitLinear, cut, integer_products

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


def force(monkeypatch: pytest.MonkeyPatch, products: Products | None) -> None:
    """As on a CPU with these products; skips where this one cannot do them."""
    if products is not None:
        here = integer_products()
        if here is None or here.largest < products.largest:
            pytest.skip("this CPU has no such products of bytes")
    monkeypatch.setattr(byte_linear, "integer_products", lambda: products)


TILES, PAIRWISE = Products(127, tiles=True), Products(64, tiles=False)


@pytest.mark.parametrize("most", [127, 64])
@pytest.mark.parametrize("num_slices", [1, 2, 3])
def test_slices_add_up_to_the_weights(num_slices: int, most: int) -> None:
    weight, _ = weights()
    total = torch.zeros_like(weight)
    for integers, scale in cut(weight, num_slices, most):
        assert integers.dtype == torch.int8
        assert integers.abs().max() <= most
        total += integers.double() * scale.double()[:, None]
    largest = weight.abs().amax(1, keepdim=True)
    assert ((total - weight).abs() <= largest / (most * (2 * most) ** (num_slices - 1)) * 0.51).all()


@pytest.mark.parametrize("products", [TILES, PAIRWISE, None])
@pytest.mark.parametrize("rows", [1, 3, 130])
@pytest.mark.parametrize(
    ("dtype", "num_slices", "tolerance"),
    [
        (torch.float32, 3, 3e-6),
        (torch.float32, 1, 0.02),
        (torch.bfloat16, 0, 0.02),
        (torch.bfloat16, 1, 0.02),
    ],
)
def test_bytes_times_weights(
    monkeypatch: pytest.MonkeyPatch,
    products: Products | None,
    rows: int,
    dtype: torch.dtype,
    num_slices: int,
    tolerance: float,
) -> None:
    """Relative to the largest sum that a row of weights can make."""
    force(monkeypatch, products)
    weight, bias = weights()
    layer = ByteLinear(weight, bias, dtype=dtype, num_slices=num_slices)
    assert layer.num_slices == (num_slices if products and (products.tiles or num_slices == 1) else 0)
    values = all_bytes(rows)
    found = layer(layer.ready(values))
    wanted = (values.double() - 128) @ weight.T + bias
    assert found.dtype == dtype
    scale = 128 * weight.abs().amax(1) * SHAPE[1] ** 0.5 + bias.abs()
    assert ((found.double() - wanted).abs() / scale).max() < tolerance


@pytest.mark.parametrize(
    ("products", "full", "tolerance"), [(TILES, True, 1e-6), (TILES, False, 0.02), (PAIRWISE, False, 0.03)]
)
def test_numbers_of_at_most_one(
    monkeypatch: pytest.MonkeyPatch, products: Products, full: bool, tolerance: float
) -> None:
    force(monkeypatch, products)
    weight, bias = weights(2)
    layer = UnitLinear(weight.float(), bias, full=full, largest=products.largest)
    x = torch.rand(9, SHAPE[1], generator=torch.Generator().manual_seed(3)) * 2 - 1
    x[0], x[1], x[2] = 1.0, -1.0, 0.0
    wanted = x.double() @ weight.T + bias
    found = layer(x)
    scale = weight.abs().amax(1) * SHAPE[1] ** 0.5 + bias.abs()
    assert ((found.double() - wanted).abs() / scale).max() < tolerance
    # A row's result does not depend on the rows beside it, but for the order in which a sum is rounded.
    torch.testing.assert_close(torch.cat([layer(row[None]) for row in x]), found, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("products", "full"), [(TILES, True), (PAIRWISE, False)])
def test_no_numbers_from_what_is_none(
    monkeypatch: pytest.MonkeyPatch, products: Products, full: bool
) -> None:
    force(monkeypatch, products)
    weight, bias = weights(2)
    layer = UnitLinear(weight.float(), bias, full=full, largest=products.largest)
    x = torch.full((3, SHAPE[1]), 0.5)
    x[1, 4] = float("nan")
    assert layer(x).isfinite().all(1).tolist() == [True, False, True]


def test_nothing_in_nothing_out() -> None:
    weight, bias = weights()
    layer = ByteLinear(weight, bias, dtype=torch.float32, num_slices=3)
    assert layer(layer.ready(torch.empty(0, SHAPE[1], dtype=torch.uint8))).shape == (0, SHAPE[0])


@pytest.mark.parametrize(("breaks_at", "wanted"), [(200, Products(127, False)), (100, PAIRWISE), (50, None)])
def test_only_exact_products_are_taken(
    monkeypatch: pytest.MonkeyPatch, breaks_at: int, wanted: Products | None
) -> None:
    """On a made-up CPU that cuts sums off where weights are of `breaks_at` or more, as AVX2 does."""

    def multiply(
        values: Tensor, weight: Tensor, scale: Tensor, zeros: Tensor, bias: Tensor, before: Tensor | None
    ) -> Tensor:
        right = (values.float() - 128) @ weight.float().T + bias + (0 if before is None else before)
        return right if int(weight.abs().max()) < breaks_at else right.clamp(max=right.max() - 1)

    monkeypatch.setattr(byte_linear, "_cpu_says", lambda question: question == "_is_avx2_supported")
    monkeypatch.setattr(byte_linear, "_prepare", lambda integers: integers)
    monkeypatch.setattr(byte_linear, "_multiply", multiply)
    monkeypatch.setattr(byte_linear.sys, "platform", "linux")
    assert integer_products.__wrapped__() == wanted


def test_none_where_torch_lacks_the_operator(monkeypatch: pytest.MonkeyPatch) -> None:
    def lacks(integers: Tensor) -> Tensor:
        raise AttributeError("qlinear_prepack")

    monkeypatch.setattr(byte_linear, "_prepare", lacks)
    assert integer_products.__wrapped__() is None
