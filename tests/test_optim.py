from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from nextvlad import optim
from nextvlad.run_config import OptimConfig


def rate(config: OptimConfig, seen: int, total: int = 1000, step: int = 10) -> float:
    return optim.learning_rate(config, examples_seen=seen, step_examples=step, total_examples=total)


def test_staircase_falls_on_examples_seen() -> None:
    config = OptimConfig(lr=1.0, decay_factor=0.5, decay_examples=100)
    assert [rate(config, seen) for seen in (0, 99, 100, 199, 200)] == [1.0, 1.0, 0.5, 0.5, 0.25]


def test_cosine_with_warmup() -> None:
    config = OptimConfig(lr=1.0, schedule="cosine", warmup=0.1)
    assert rate(config, 0) == pytest.approx(0.1)
    assert rate(config, 90) == pytest.approx(1.0)
    assert rate(config, 550) == pytest.approx(0.5)
    assert rate(config, 1000) == pytest.approx(0.0, abs=1e-12)
    assert rate(config, 1200) == pytest.approx(0.0, abs=1e-12)


@given(
    seen=st.integers(0, 10**7),
    schedule=st.sampled_from(["staircase", "cosine", "constant"]),
    warmup=st.floats(0, 0.9),
)
def test_rate_stays_between_zero_and_lr(seen: int, schedule: str, warmup: float) -> None:
    config = OptimConfig(lr=3e-4, schedule=schedule, warmup=warmup)  # type: ignore[arg-type]
    assert 0 <= rate(config, seen, total=10**7) <= 3e-4


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_adam_is_tensorflows(weight_decay: float) -> None:
    """Against TensorFlow 1's formula in NumPy float64, epsilon large enough to matter."""
    torch.manual_seed(0)
    layer = nn.Linear(3, 2).double()
    config = OptimConfig(lr=0.01, epsilon=1e-2, weight_decay=weight_decay)
    adam = optim.make_optimizer(layer, config)
    w = layer.weight.detach().numpy().copy()
    m = v = np.zeros_like(w)
    for step in range(1, 6):
        gradient = torch.randn(2, 3, dtype=torch.float64)
        layer.weight.grad, layer.bias.grad = gradient.clone(), torch.zeros(2, dtype=torch.float64)
        optim.prepare_step(adam, config, step=step, lr=config.lr)
        adam.step()
        g = gradient.numpy()
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        corrected = config.lr * math.sqrt(1 - 0.999**step) / (1 - 0.9**step)
        w = w * (1 - config.lr * weight_decay) - corrected * m / (np.sqrt(v) + config.epsilon)
    np.testing.assert_allclose(layer.weight.detach().numpy(), w, rtol=1e-9)


def test_l2_is_the_gradient_of_half_the_square() -> None:
    layer = nn.Linear(4, 3)
    optim.add_l2_gradient([layer], 0.1)  # no gradients yet: nothing to add to
    loss = 0.1 * sum(p.square().sum() for p in layer.parameters()) / 2
    expected = torch.autograd.grad(loss, list(layer.parameters()))
    for parameter in layer.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optim.add_l2_gradient([layer], 0.1)
    torch.testing.assert_close([p.grad for p in layer.parameters()], list(expected))


def clipped(clip: str) -> tuple[list[torch.Tensor], float]:
    parameters = [nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1))]
    parameters[0].grad, parameters[1].grad = torch.tensor([3.0, 4.0]), torch.tensor([0.5])
    norm = optim.clip_gradients(parameters, OptimConfig(clip=clip))  # type: ignore[arg-type]
    return [p.grad for p in parameters if p.grad is not None], float(norm)


def test_clipping() -> None:
    total = math.sqrt(25.25)
    torch.testing.assert_close(clipped("none")[0], [torch.tensor([3.0, 4.0]), torch.tensor([0.5])])
    torch.testing.assert_close(clipped("per_variable")[0], [torch.tensor([0.6, 0.8]), torch.tensor([0.5])])
    torch.testing.assert_close(
        clipped("global")[0], [torch.tensor([3.0, 4.0]) / total, torch.tensor([0.5]) / total]
    )
    assert clipped("global")[1] == pytest.approx(total)
