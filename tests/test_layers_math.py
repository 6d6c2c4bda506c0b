from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nextvlad.models.layers import BatchNorm, Dropout, segment_products, segment_sum


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
