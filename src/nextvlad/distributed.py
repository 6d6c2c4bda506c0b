"""One process or several: who am I, and sums across us.

`torchrun` sets RANK, WORLD_SIZE and LOCAL_RANK; without them everything here is a no-op, so the rest
of the package is written once. Collectives run over gloo on CPU and NCCL on GPU.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from nextvlad.errors import UsageError
from nextvlad.torchrun import read_number

_PATIENCE = timedelta(hours=1)
"""Ranks wait for one that counts the videos of a large data set, or ranks the scores of one. A rank
that is gone needs no timeout: torchrun ends the others."""


def num_started() -> int:
    """How many processes torchrun started, also before they have joined in a group; 1 without it."""
    return read_number("WORLD_SIZE", 1)


def refuse_torchrun(what: str, instead: str = "") -> None:
    """For what one process does alone: several would do the same work and write the same files.

    Args:
        what: as the message begins: "report runs".
        instead: as it ends: ", on a share of the data each".

    Raises:
        UsageError: torchrun started several.
    """
    if num_started() > 1:
        raise UsageError(f"{what} in one process; start it without torchrun{instead}.")


def is_distributed() -> bool:
    """True inside an initialised group of more than one process."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def rank() -> int:
    """This process, 0 .. world_size - 1."""
    return dist.get_rank() if is_distributed() else 0


def world_size() -> int:
    """How many processes work together."""
    return dist.get_world_size() if is_distributed() else 1


def is_main() -> bool:
    """True in the one process that prints and writes."""
    return rank() == 0


def pick_device(name: str) -> torch.device:
    """`auto`, or a torch device name; under torchrun `auto` and `cuda` mean this rank's own GPU.

    Raises:
        UsageError: no such device here.
    """
    local = read_number("LOCAL_RANK", 0)
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(f"cuda:{local}" if name == "cuda" else name)
        if device.type not in ("cpu", "cuda"):  # others lack the float64 that folding needs
            raise RuntimeError("CPUs and CUDA alone are supported")
        torch.zeros(1, device=device).tolist()  # fails for one that torch knows but that is not here
    except (RuntimeError, AssertionError) as error:
        raise UsageError(
            f"device {name!r}: not to be had here ({str(error).splitlines()[0]}). Wanted auto, cpu, cuda, "
            "cuda:1, ..."
        ) from error
    return device


@contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """Joins the group that torchrun describes in the environment, and leaves it at the end.

    `device` becomes the current GPU in any case: what names no device, such as pinning, goes by that.

    Raises:
        UsageError: the environment does not describe a group.
    """
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if num_started() <= 1 or dist.is_initialized():
        yield
        return
    _join("nccl" if device.type == "cuda" else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def _join(backend: str) -> None:
    size, own = num_started(), read_number("RANK", 0)
    if own >= size:  # else all would wait for one that never comes
        raise UsageError(
            f"the environment says RANK={own} and WORLD_SIZE={size}, wanted a rank of 0..{size - 1}; start "
            "with torchrun, or unset WORLD_SIZE."
        )
    try:
        dist.init_process_group(backend, timeout=_PATIENCE)
    except ValueError as error:  # RANK, MASTER_ADDR or MASTER_PORT is missing, or is none
        raise UsageError(
            f"the environment says WORLD_SIZE={size}, and does not say where the others are ({error}); start "
            "with torchrun, or unset WORLD_SIZE."
        ) from error


def data_parallel(module: nn.Module) -> nn.Module:
    """The module with its gradients averaged over ranks; as it is, when alone.

    Its buffers are not sent round at each step: statistics over all ranks are the same on every one.
    """
    if not is_distributed():
        return module
    # The newer name, where torch knows it; the older one warns there.
    names = inspect.signature(DistributedDataParallel).parameters
    name = "forward_sync_buffers" if "forward_sync_buffers" in names else "broadcast_buffers"
    options: Any = {name: False}
    return DistributedDataParallel(module, **options)


def sum_over_ranks(values: Tensor) -> Tensor:
    """The sum of one tensor over all ranks, in place; no gradient."""
    if is_distributed():
        dist.all_reduce(values)
    return values


class _DifferentiableSum(torch.autograd.Function):
    """Sum over ranks whose gradient is the sum of the ranks' gradients."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        total = values.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone()
        dist.all_reduce(total)
        return total


def gather_with_gradient(values: Tensor) -> Tensor:
    """[...] on each rank -> [world_size, ...], differentiable on every rank.

    Each rank adds its own row into zeros: for the few numbers of batch-norm statistics that is as
    good as an all-gather, and its gradient works over gloo as over NCCL.
    """
    mine = torch.zeros(world_size(), *values.shape, dtype=values.dtype, device=values.device)
    mine = mine.index_put((torch.tensor([rank()], device=values.device),), values.unsqueeze(0))
    result: Tensor = _DifferentiableSum.apply(mine)  # type: ignore[no-untyped-call]
    return result


def gather_objects(value: Any) -> list[Any] | None:
    """Every rank's value on rank 0, None elsewhere. For states of a few megabytes, at the end."""
    if not is_distributed():
        return [value]
    gathered: list[Any] | None = [None] * world_size() if is_main() else None
    dist.gather_object(value, gathered)
    return gathered


def share_object(value: Any) -> Any:
    """Rank 0's value on every rank."""
    if not is_distributed():
        return value
    box = [value]
    dist.broadcast_object_list(box)
    return box[0]


def collective_device() -> torch.device:
    """Where a tensor must be for this group's collectives."""
    return torch.device("cuda" if is_distributed() and dist.get_backend() == "nccl" else "cpu")


def any_rank(flag: bool, device: torch.device) -> bool:
    """True on every rank if it is true on one."""
    if not is_distributed():
        return flag
    return bool(sum_over_ranks(torch.tensor(float(flag), device=device)).item())
