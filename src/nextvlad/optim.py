"""Adam as the originals run it: schedule on examples seen, L2 on the classifier, clipping."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from nextvlad.run_config import OptimConfig

_STATE = ("step", "exp_avg", "exp_avg_sq")  # what fused Adam keeps of a parameter, on its device


def learning_rate(
    config: OptimConfig, *, examples_seen: int, step_examples: int, total_examples: int
) -> float:
    """The rate for the next step.

    Args:
        config: the schedule.
        examples_seen: videos before this step. The originals count the same way, so that the schedule
            does not depend on the number of GPUs.
        step_examples: videos of a full step.
        total_examples: videos of the whole training; only warm-up and the cosine look at it.

    >>> rate = learning_rate(OptimConfig(), examples_seen=4_000_000, step_examples=160, total_examples=1)
    >>> round(rate, 9)
    0.000128
    """
    warmup_examples = config.warmup * total_examples
    climb = min(1.0, (examples_seen + step_examples) / warmup_examples) if warmup_examples > 0 else 1.0
    if config.schedule == "staircase":
        return config.lr * climb * config.decay_factor ** (examples_seen // config.decay_examples)
    if config.schedule == "cosine":
        after = (examples_seen - warmup_examples) / max(total_examples - warmup_examples, 1.0)
        return config.lr * climb * 0.5 * (1.0 + math.cos(math.pi * min(max(after, 0.0), 1.0)))
    return config.lr * climb


def make_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """Adam over all parameters; decoupled weight decay, if any, on matrices only.

    Fused: one pass over a parameter and its moments, several times the speed of the default on CPU.
    """
    matrices = [p for p in model.parameters() if p.requires_grad and p.ndim >= 2]
    others = [p for p in model.parameters() if p.requires_grad and p.ndim < 2]
    return torch.optim.AdamW(
        [
            {"params": matrices, "weight_decay": config.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ],
        lr=config.lr,
        betas=(config.beta1, config.beta2),
        eps=config.epsilon,
        fused=True,
    )


def prepare_step(optimizer: torch.optim.Optimizer, config: OptimConfig, *, step: int, lr: float) -> None:
    """Sets rate and epsilon for step number `step`, counted from 1.

    TensorFlow 1 and Paddle add epsilon to sqrt(v) before the bias correction of v, torch after it;
    dividing epsilon by sqrt(1 - beta2^step) makes torch's step theirs, exactly.
    """
    for group in optimizer.param_groups:
        group["lr"] = lr
        group["eps"] = config.epsilon / math.sqrt(1.0 - config.beta2**step)


@torch.no_grad()
def add_l2_gradient(layers: Iterable[nn.Linear], l2: float) -> None:
    """Adds the gradient of l2 x sum(w^2) / 2 over the weights and biases of a model's `class_layers`."""
    for layer in layers:
        for parameter in layer.parameters():
            if l2 and parameter.grad is not None:
                parameter.grad.add_(parameter, alpha=l2)


@torch.no_grad()
def clip_gradients(parameters: Iterable[nn.Parameter], config: OptimConfig) -> Tensor:
    """Clips in place, as configured, and returns the global norm before clipping (a scalar tensor).

    "per_variable" scales each gradient to norm clip_norm at most, as the author's code does (the
    paper says nothing of it); "global" scales all of them together.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    norms = torch.stack(list(torch._foreach_norm(gradients)))
    total: Tensor = torch.linalg.vector_norm(norms)
    if config.clip == "global" and not bool(total <= config.clip_norm):  # also where it is NaN
        torch._foreach_mul_(gradients, config.clip_norm / total.clamp(min=config.clip_norm))
    elif config.clip == "per_variable":
        factors = config.clip_norm / norms.clamp(min=config.clip_norm)
        torch._foreach_mul_(gradients, list(factors.unbind()))
    return total


def optimizer_tensors(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """Adam's moments and step counts by parameter name, for a checkpoint."""
    tensors: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        for key in _STATE:
            if key in optimizer.state[parameter]:
                tensors[f"{key}.{name}"] = optimizer.state[parameter][key]
    return tensors


def load_optimizer_tensors(
    optimizer: torch.optim.Optimizer, model: nn.Module, tensors: dict[str, Tensor], *, step: int
) -> None:
    """The reverse of `optimizer_tensors`, after `step` steps; KeyError for a missing tensor.

    Adam's own count is kept beside `step`: with loss scaling it is smaller by the steps that were skipped.
    """
    for name, parameter in model.named_parameters():
        if step:
            optimizer.state[parameter] = {
                key: tensors[f"{key}.{name}"].to(parameter.device, copy=True) for key in _STATE
            }
