"""One step of training: forward, backward, L2, clipping, Adam."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from nextvlad import distributed, optim
from nextvlad.data.batch import FrameBatch
from nextvlad.data.device_batches import DeviceBatch
from nextvlad.errors import TrainingError
from nextvlad.inference import autocast
from nextvlad.models import Model
from nextvlad.models.base import TrainingLoss
from nextvlad.models.cpu import settle
from nextvlad.models.inputs import Mixup
from nextvlad.run_config import TrainConfig
from nextvlad.split_batches import Halver, remember

_NO_HALVES = (
    "With several processes one of them cannot split its batch: the others would wait for its statistics "
    "of the whole. The last checkpoint is kept."
)


class Learner:
    """A model with what changes it: optimiser, loss scaling, random numbers of mixup.

    Args:
        model: on its device, with the weights to start from.
        config: of the training; settled.

    Attributes:
        precision: what products are computed in, see `nextvlad.models.cpu.settle`.
        optimizer, scaler, random: what a checkpoint keeps beside the model.
        halver: splits batches that are too large for the memory.
    """

    def __init__(self, model: Model, config: TrainConfig) -> None:
        self.model, self.device = model, model.device
        self._optim = config.optim
        self.precision = settle(config.precision, self.device)
        self.optimizer = optim.make_optimizer(model, config.optim)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")
        self.random = torch.Generator().manual_seed(config.seed * 1009 + 7 + distributed.rank())
        self.halver = Halver(
            "--data.batch-size",
            consequence=" Batch norms took the statistics of each half, the gradient is that of both.",
            refusal=_NO_HALVES if distributed.is_distributed() else None,
        )
        self._loss_of = distributed.data_parallel(TrainingLoss(model))

    def step(self, batch: DeviceBatch, num_videos: int, *, number: int, lr: float) -> float:
        """One update from a batch, which on all ranks has `num_videos`; returns their mean loss.

        Args:
            batch: of this rank; may be empty where there are several.
            num_videos: of all ranks.
            number: of the step, from 1 on.
            lr: of the step.

        Raises:
            TrainingError: the loss or the gradient is not finite. Nothing was updated.
            DataError: memory does not do for half of the batch.
        """
        self.model.train()
        loss = self._backward(batch, num_videos, number)
        optim.prepare_step(self.optimizer, self._optim, step=number, lr=lr)
        self.scaler.unscale_(self.optimizer)
        optim.add_l2_gradient(self.model.class_layers().values(), self._optim.l2)
        norm = optim.clip_gradients(self.model.parameters(), self._optim)
        # With loss scaling the scaler skips such a step, lowers its scale and goes on.
        if not self.scaler.is_enabled() and not bool(torch.isfinite(norm)):
            raise _not_finite(number, f"the norm of the gradient is {float(norm)}", batch.host)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return loss

    def _backward(self, batch: DeviceBatch, num_videos: int, number: int) -> float:
        """Gradients of the loss averaged over all ranks' `num_videos`; returns that loss."""
        self.optimizer.zero_grad(set_to_none=True)
        undo = remember(self.model, self.device, self.random)
        losses = self.halver.run(
            lambda part: self.add_gradients(part, num_videos),
            batch.here,
            undo=undo,
            where=f"step {number}: ",
        )
        value = float(distributed.sum_over_ranks(torch.stack(losses).sum()))
        if not np.isfinite(value):
            raise _not_finite(number, f"the loss is {value}", batch.host)
        return value

    def add_gradients(self, batch: FrameBatch, num_videos: int) -> Tensor:
        """Adds those of this rank's batch, or of a part; returns its share of the loss, float64.

        Args:
            batch: on the model's device, the model in training mode.
            num_videos: the loss is divided by.
        """
        mixup = self._draw_mixup(batch.num_videos)
        with autocast(self.device, self.precision):
            loss: Tensor = self._loss_of(batch, batch.labels.float(), mixup) / num_videos
        # DistributedDataParallel averages over ranks; ours is a sum over ranks.
        self.scaler.scale(loss * distributed.world_size()).backward()  # type: ignore[no-untyped-call]
        return loss.detach().double()

    def _draw_mixup(self, num_videos: int) -> Mixup | None:
        alpha = self._optim.mixup
        if alpha == 0 or num_videos < 2:
            return None
        seed = int(torch.randint(2**62, (), generator=self.random))
        numbers = np.random.default_rng(seed)
        weight = numbers.beta(alpha, alpha, size=(num_videos, 1)).astype(np.float32)
        partner = torch.from_numpy(numbers.permutation(num_videos))
        return Mixup(partner.to(self.device), torch.from_numpy(weight).to(self.device))


@contextmanager
def flushed_denormals() -> Iterator[None]:
    """Denormal moments of Adam cost a fifth of a step. The mode is the whole thread's, NumPy's too."""
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


def _not_finite(number: int, what: str, batch: FrameBatch) -> TrainingError:
    videos = ", ".join(batch.video_ids[:20]) + (" ..." if batch.num_videos > 20 else "")
    return TrainingError(
        f"step {number}: {what}. Videos of the batch: {videos}. Nothing was updated; the last "
        "checkpoint is kept. Check these videos, lower optim.lr, or use --precision fp32."
    )
