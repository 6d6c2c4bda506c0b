"""What every model can do, so that training, evaluation and checkpoints need not know which one it is.

Letters: B videos, C classes.
"""

from __future__ import annotations

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
        targets, rated = targets_of(batch, labels, mixup)
        return cross_entropy(self(batch, mixup), targets, rated)


class TrainingLoss(nn.Module):
    """A model's `loss` as a module, which is what DistributedDataParallel can wrap."""

    def __init__(self, model: VideoModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: FrameBatch, labels: Tensor, mixup: Mixup | None) -> Tensor:
        """As `VideoModel.loss`."""
        return self.model.loss(batch, labels, mixup=mixup)


def targets_of(batch: FrameBatch, labels: Tensor, mixup: Mixup | None) -> tuple[Tensor, Tensor | None]:
    """Labels [B, C] as mixed, and which of them count, [B, C] bool or None for all.

    Of two mixed videos both must be rated for a class, or the mixed label would be a guess.
    """
    rated = batch.rated
    if mixup is not None:
        labels = labels[mixup.partner].lerp(labels, mixup.weight)
        rated = None if rated is None else rated & rated[mixup.partner]
    return labels, rated


def cross_entropy(logits: Tensor, targets: Tensor, rated: Tensor | None) -> Tensor:
    """Binary cross-entropy [B, C] summed over videos and (rated) classes."""
    weight = None if rated is None else rated.to(logits.dtype)
    return functional.binary_cross_entropy_with_logits(logits, targets, weight, reduction="sum")
