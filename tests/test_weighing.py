from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nextvlad.models import weighing
from nextvlad.models.weighing import moments, weigh, weigh_backward

GROUPS, CLUSTERS = 3, 5
FEATURES = GROUPS * CLUSTERS


def made(num_frames: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """z, scale, shift and attention."""
    numbers = torch.Generator().manual_seed(num_frames)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=numbers, dtype=torch.float64)

    z = draw(num_frames, FEATURES) * 2 + 1
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    return z.to(dtype), draw(FEATURES).to(wide), draw(FEATURES).to(wide), draw(num_frames, GROUPS).to(wide)


def written_out(z: Tensor, scale: Tensor, shift: Tensor, attention: Tensor) -> Tensor:
    y = (z * scale + shift).view(len(z), GROUPS, CLUSTERS)
    e = (y - y.max(2, keepdim=True).values).exp()
    return e / e.sum(2, keepdim=True) / (1 + (-attention[..., None]).exp())


@given(num_frames=st.integers(0, 40), rows=st.integers(1, 9), far=st.sampled_from([0.0, 100.0, -3e4]))
@settings(deadline=None, max_examples=40)
def test_moments(num_frames: int, rows: int, far: float) -> None:
    z = (made(num_frames)[0] + far).float()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(weighing, "_ROWS_CPU", rows)
        mean, var = moments(z)
    assert mean.dtype == var.dtype == torch.float32
    if num_frames == 0:
        assert not mean.any()
        assert not var.any()
        return
    wanted_var, wanted_mean = torch.var_mean(z.double(), 0, correction=0)
    torch.testing.assert_close(mean.double(), wanted_mean, rtol=1e-6, atol=1e-6)
    # the mean of a chunk is a float32
    torch.testing.assert_close(var.double(), wanted_var, rtol=1e-5, atol=1e-6 + 4e-7 * abs(far))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_moments_of_half_precision_are_those_of_its_values(dtype: torch.dtype) -> None:
    z = torch.randn(3000, FEATURES).to(dtype) + 8
    mean, var = moments(z)
    wanted_var, wanted_mean = torch.var_mean(z.double(), 0, correction=0)
    torch.testing.assert_close(mean.double(), wanted_mean, rtol=1e-6, atol=0)
    torch.testing.assert_close(var.double(), wanted_var, rtol=1e-5, atol=0)


@pytest.mark.parametrize("num_frames", [0, 1, 37])
def test_weights_and_their_gradients_against_autograd(num_frames: int) -> None:
    given = tuple(tensor.requires_grad_() for tensor in made(num_frames))
    a = weigh(*(tensor.detach() for tensor in given))
    wanted = written_out(*given) if num_frames else torch.empty(0, GROUPS, CLUSTERS, dtype=torch.float64)
    torch.testing.assert_close(a, wanted.detach())
    if num_frames == 0:
        found = weigh_backward(torch.empty_like(a), *(tensor.detach() for tensor in given))
        assert found.y.shape == (0, FEATURES)
        assert not found.sum_y.any()
        assert not found.sum_y_z.any()
        return
    grad_a = torch.randn(a.shape, dtype=torch.float64)
    found = weigh_backward(grad_a, *(tensor.detach() for tensor in given))
    z, scale, shift, attention = torch.autograd.grad((wanted * grad_a).sum(), given)
    torch.testing.assert_close(found.y * given[1].detach(), z)
    torch.testing.assert_close(found.attention, attention)
    torch.testing.assert_close(found.sum_y, shift)
    torch.testing.assert_close(found.sum_y_z, scale)


def test_blend() -> None:
    q = torch.tensor([[0, 255], [7, 128]], dtype=torch.uint8)
    a, b, c = torch.tensor([2.0, -1.0]), torch.tensor([0.5, 3.0]), torch.tensor([1.0, 0.0])
    assert weighing.blend(q, a, c, dtype=torch.float32).tolist() == [[1.0, -255.0], [15.0, -128.0]]
    y = torch.tensor([[2.0, 1.0], [0.0, -1.0]], dtype=torch.bfloat16)
    found = weighing.blend(q, a, c, y, b, dtype=torch.bfloat16)
    assert found.dtype == torch.bfloat16
    assert found.tolist() == [[2.0, -252.0], [15.0, -131.0]]


def test_the_sums_are_what_a_batch_norm_wants() -> None:
    z, weight, bias, attention = made(50)
    z.requires_grad_()
    mean, var = moments(z.detach())
    deviation = (var + 1e-3).sqrt()
    y = torch.nn.functional.batch_norm(z, None, None, weight, bias, True, 0.1, 1e-3)
    a = torch.softmax(y.view(-1, GROUPS, CLUSTERS), 2) * torch.sigmoid(attention)[..., None]
    grad_a = torch.randn(a.shape, dtype=torch.float64)
    (wanted,) = torch.autograd.grad((a * grad_a).sum(), z)
    scale = weight / deviation
    found = weigh_backward(grad_a, z.detach(), scale, bias - mean * scale, attention, mean)
    normalised = (z.detach() - mean) / deviation
    through_mean = found.sum_y / len(z)
    through_variance = normalised * (found.sum_y_z / deviation / len(z))
    torch.testing.assert_close(scale * (found.y - through_mean - through_variance), wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_half_precision_is_rounded_at_the_ends_only(dtype: torch.dtype) -> None:
    given: Any = made(64, dtype)
    wide = tuple(tensor.double() for tensor in given)
    a, wanted = weigh(*given), weigh(*wide)
    assert a.dtype == dtype
    unit = torch.finfo(dtype).eps
    torch.testing.assert_close(a.double(), wanted, rtol=unit + 1e-5, atol=1e-7)
    grad_a = torch.randn(a.shape).to(dtype)
    found, exact = weigh_backward(grad_a, *given), weigh_backward(grad_a.double(), *wide)
    assert found.y.dtype == dtype
    assert found.attention.dtype == found.sum_y.dtype == found.sum_y_z.dtype == torch.float32
    torch.testing.assert_close(found.y.double(), exact.y, rtol=unit + 1e-4, atol=1e-6)
    for name in ("attention", "sum_y", "sum_y_z"):
        torch.testing.assert_close(getattr(found, name).double(), getattr(exact, name), rtol=1e-4, atol=1e-5)
