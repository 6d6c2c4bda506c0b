from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nextvlad.models import layers
from nextvlad.models.layers import (
    BatchNorm,
    Dropout,
    LargeLinear,
    segment_products,
    segment_sum,
    sum_of_frames,
)


def test_batch_norm_keeps_the_originals_running_statistics() -> None:
    x = torch.randn(50, 4) * 3 + 1
    norm = BatchNorm(4, epsilon=1e-3, weight_of_new=0.1)
    y = norm(x)
    torch.testing.assert_close(
        y, (x - x.mean(0)) / (x.var(0, correction=0) + 1e-3).sqrt(), rtol=1e-5, atol=1e-5
    )
    torch.testing.assert_close(norm.running_mean, 0.1 * x.mean(0))
    torch.testing.assert_close(norm.running_var, 0.9 + 0.1 * x.var(0, correction=0))
    unbiased = BatchNorm(4, epsilon=1e-3, weight_of_new=0.1, unbiased=True)
    unbiased(x)
    torch.testing.assert_close(unbiased.running_var, 0.9 + 0.1 * x.var(0))


@pytest.mark.parametrize("rows", [0, 1])
def test_batch_norm_of_hardly_any_rows(rows: int) -> None:
    norm = BatchNorm(3, epsilon=1e-3, weight_of_new=0.5)
    x = torch.randn(rows, 3, requires_grad=True)
    y = norm(x)
    y.sum().backward()
    assert y.shape == (rows, 3)
    assert x.grad is not None
    assert x.grad.isfinite().all()
    assert norm.running_var.isfinite().all()


def test_dropout_compensates_where_it_says() -> None:
    x = torch.ones(20_000)
    inverted, paddle = Dropout(0.25, scale_in_training=True), Dropout(0.25, scale_in_training=False)
    assert inverted(x).unique().tolist() == pytest.approx([0.0, 1 / 0.75])
    assert set(paddle(x).unique().tolist()) == {0.0, 1.0}
    assert float(paddle(x).mean()) == pytest.approx(0.75, abs=0.02)
    assert torch.equal(inverted.eval()(x), x)
    assert torch.equal(paddle.eval()(x), x * 0.75)


@given(lengths=st.lists(st.integers(0, 5), min_size=1, max_size=6))
@settings(deadline=None, max_examples=40)
def test_segment_products_and_sums(lengths: list[int]) -> None:
    numbers = np.random.default_rng(len(lengths))
    total = sum(lengths)
    left = torch.tensor(numbers.normal(size=(total, 3)), requires_grad=True)
    right = torch.tensor(numbers.normal(size=(total, 2)), requires_grad=True)
    offsets = torch.tensor([0, *np.cumsum(lengths)])
    found = segment_products(left, right, offsets)
    expected = torch.stack(
        [
            torch.einsum("np,nq->pq", left[start:end], right[start:end])
            for start, end in pairwise(offsets.tolist())
        ]
    )
    torch.testing.assert_close(found, expected)
    weights = torch.tensor(numbers.normal(size=tuple(found.shape)))
    got = torch.autograd.grad((found * weights).sum(), (left, right))
    wanted = torch.autograd.grad((expected * weights).sum(), (left, right))
    torch.testing.assert_close(got, wanted)
    torch.testing.assert_close(
        segment_sum(left, offsets), torch.stack([left[s:e].sum(0) for s, e in pairwise(offsets.tolist())])
    )


def test_sum_of_frames_takes_some_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "_ROWS_OF_FRAMES_CPU", 4)
    seen: list[int] = []

    def prepare(rows: torch.Tensor) -> torch.Tensor:
        seen.append(len(rows))
        return rows.float().square()

    values = torch.randint(0, 256, (11, 3), dtype=torch.uint8)
    offsets = torch.tensor([0, 0, 6, 7, 11, 11])
    found = sum_of_frames(prepare, values, offsets)
    assert torch.equal(found, segment_sum(values.float().square(), offsets))
    assert seen == [4, 4, 3]
    assert sum_of_frames(prepare, values[:0], torch.tensor([0, 0])).tolist() == [[0.0, 0.0, 0.0]]


class TestLargeLinear:
    """Against torch's own layer under autocast, and its weights' changes, however they come."""

    def layers(self) -> tuple[LargeLinear, torch.nn.Linear]:
        torch.manual_seed(0)
        ours, plain = LargeLinear(20, 150), torch.nn.Linear(20, 150)
        plain.load_state_dict(ours.state_dict())
        return ours, plain

    def results(self, layer: torch.nn.Linear, x: torch.Tensor) -> list[torch.Tensor]:
        x = x.clone().requires_grad_()
        layer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            y = layer(x)
        y.float().square().sum().backward()
        return [y.detach().float(), x.grad, layer.weight.grad.clone(), layer.bias.grad.clone()]

    def assert_alike(self, ours: torch.nn.Linear, plain: torch.nn.Linear) -> None:
        x = torch.randn(7, 20)
        for a, b in zip(self.results(ours, x), self.results(plain, x), strict=True):
            assert a.dtype == b.dtype == torch.float32
            torch.testing.assert_close(a, b, rtol=0.02, atol=0.02 * float(b.abs().max()))

    def test_is_torchs_layer_without_autocast(self) -> None:
        ours, plain = self.layers()
        x = torch.randn(7, 20)
        assert bool((ours(x) == plain(x)).all())
        assert sorted(ours.state_dict()) == ["bias", "weight"]

    def test_half_precision(self) -> None:
        self.assert_alike(*self.layers())

    def test_trained_after_inference_mode(self) -> None:
        ours, plain = self.layers()
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            ours(torch.randn(7, 20))
        self.assert_alike(ours, plain)

    @pytest.mark.parametrize("how", ["adam", "load", "copy", "twice"])
    def test_changed_weights_are_noticed(self, how: str) -> None:
        ours, plain = self.layers()
        self.assert_alike(ours, plain)
        new = {name: torch.randn_like(tensor) for name, tensor in plain.state_dict().items()}
        for layer in (ours, plain):
            if how == "load":
                layer.load_state_dict(new)
            elif how == "copy":
                with torch.no_grad():
                    layer.weight.copy_(new["weight"])
            else:
                adam = torch.optim.AdamW(layer.parameters(), lr=1.0, fused=True)
                for _ in range(2 if how == "twice" else 1):
                    self.results(layer, torch.ones(3, 20))
                    adam.step()
        self.assert_alike(ours, plain)
