"""What every model can do, so that training, evaluation and checkpoints need not know which one it is.

Letters: B videos, C classes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from nextvlad.data.batch import FrameBatch
from nextvlad.data.vocabulary import Vocabulary
from nextvlad.models.inputs import Mixup, Preprocessing


class VideoModel(nn.Module):
    """Videos of a batch -> logits [B, C] float32, by `model(batch)`; probabilities are their sigmoid."""

    vocabulary: Vocabulary | None = None
    """Class names, where known; set when a checkpoint is loaded."""

    def preprocessing(self, stream: str) -> Preprocessing:
        """What is done to a stream's values before anything else; KeyError for an unknown stream."""
        raise NotImplementedError

    def class_layers(self) -> dict[str, nn.Linear]:
        """The layers whose rows belong to classes, by name in the model: k rows a class, class by class.

        They are what `optim.l2` draws to zero, and what fine-tuning matches by class names.
        """
        raise NotImplementedError

    def loss(self, batch: FrameBatch, labels: Tensor, *, mixup: Mixup | None = None) -> Tensor:
        """What training makes small, summed over the videos: a scalar, float32.

        Here binary cross-entropy with logits, summed over classes, where `batch.rated` is known over the
        rated classes alone. A model may add terms of its own.

        Args:
            batch: B videos.
            labels: [B, C] float32, 1 for a class the video has; not yet mixed.
            mixup: mixes pairs of videos and their labels.
        """
        targets, importance = targets_of(batch, labels, mixup)
        return cross_entropy(self(batch, mixup), targets, importance)


class TrainingLoss(nn.Module):
    """A model's `loss` as a module, which is what DistributedDataParallel can wrap."""

    def __init__(self, model: VideoModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: FrameBatch, labels: Tensor, mixup: Mixup | None) -> Tensor:
        """As `VideoModel.loss`."""
        return self.model.loss(batch, labels, mixup=mixup)


def targets_of(batch: FrameBatch, labels: Tensor, mixup: Mixup | None) -> tuple[Tensor, Tensor | None]:
    """Labels [B, C] as mixed, and how much each counts, [B, C] in [0, 1], or None for all alike.

    The cross-entropy against a mixed label is the mix of those against the two labels. Where a class is rated
    in one of the two videos only, that one's share is left, with its own label.
    """
    rated = None if batch.rated is None else batch.rated.to(labels.dtype)
    if rated is not None:
        labels = labels * rated
    if mixup is None:
        return labels, rated
    labels = labels[mixup.partner].lerp(labels, mixup.weight)
    if rated is None:
        return labels, None
    importance = rated[mixup.partner].lerp(rated, mixup.weight)
    return torch.where(importance > 0, labels / importance, 0.0), importance


def cross_entropy(logits: Tensor, targets: Tensor, importance: Tensor | None) -> Tensor:
    """Binary cross-entropy [B, C], times the importance if it varies, summed over videos and classes."""
    return functional.binary_cross_entropy_with_logits(logits, targets, importance, reduction="sum")
