"""What every model can do, so that training, evaluation and checkpoints need not know which one it is.

Letters: B videos, C classes.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from nextvlad.config import ModelConfig, Precision
from nextvlad.data.batch import FrameBatch, Frames
from nextvlad.data.vocabulary import Vocabulary
from nextvlad.errors import UsageError
from nextvlad.models.cpu import dtype_of, settle
from nextvlad.models.graphs import Graphs
from nextvlad.models.inputs import Mixup, Preprocessing
from nextvlad.provenance import Provenance

Sums = dict[str, Tensor]
"""What a model keeps of the frames it has seen, by name: tensors of B rows that add up over frames."""


class Aggregator:
    """Frames -> sums -> logits. Sums add up, so a video may come in pieces of any length, and memory stays.

    >>> state = model.begin()                         # doctest: +SKIP
    >>> for second in live_stream:                    # doctest: +SKIP
    ...     model.update(state, {"rgb": second[None]})
    ...     print(model.predict(state))
    """

    config: ModelConfig

    @abstractmethod
    def aggregate(self, batch: FrameBatch) -> Sums:
        """The sums of B videos. In evaluation a video's do not depend on the others."""

    @abstractmethod
    def conclude(self, sums: Sums) -> Tensor:
        """Such sums -> logits [B, C] float32."""

    @torch.no_grad()
    def begin(self) -> Sums:
        """The sums of one video without frames yet, to be fed by `update`."""
        self.check_evaluating()
        return self.aggregate(self.one_video({}))

    @torch.no_grad()
    def update(self, state: Sums, frames: Mapping[str, Any]) -> None:
        """Adds frames of the video to `state`.

        Args:
            state: what `begin` gave.
            frames: name of a stream -> [n, D] array or tensor, bytes (uint8) or floats as in the records, n
                of any size; streams that are left out have no new frames.

        Raises:
            UsageError: a stream that the model does not have, or frames of another size or kind; the model is
                in training mode.
        """
        self.check_evaluating()
        for name, sums in self.aggregate(self.one_video(frames)).items():
            state[name] = state[name] + sums  # a new one, so that a copy of the dictionary stays as it is

    @torch.no_grad()
    def predict(self, state: Sums) -> Tensor:
        """[C] float32, the probability of each class given the frames so far; the state stays as it is."""
        self.check_evaluating()
        return torch.sigmoid(self.conclude(state))[0]

    def check_evaluating(self) -> None:
        """UsageError in training mode."""
        if getattr(self, "training", False):
            raise UsageError("a video can be fed in pieces in evaluation only; call model.eval() first.")

    def one_video(self, frames: Mapping[str, Any]) -> FrameBatch:
        """A batch of one video of these frames on the model's device; as `update` takes and refuses them."""
        sizes = {stream.name: stream.size for stream in self.config.streams}
        unknown = sorted(set(frames) - set(sizes))
        if unknown:
            raise UsageError(f"stream {unknown[0]}: the model has {', '.join(sizes)}.")
        device = self.device
        streams = {}
        for name, size in sizes.items():
            values = _tensor(frames[name]) if name in frames else torch.empty(0, size)
            if values.dtype != torch.uint8 and not values.is_floating_point():
                raise UsageError(f"stream {name}: got {values.dtype}, wanted bytes (torch.uint8) or floats.")
            if values.ndim != 2 or values.shape[1] != size:
                raise UsageError(f"stream {name}: got shape {list(values.shape)}, wanted [frames, {size}].")
            offsets = torch.tensor([0, len(values)], device=device)
            streams[name] = Frames(values.to(device), offsets)
        labels = torch.zeros(1, self.config.num_classes, dtype=torch.bool, device=device)
        return FrameBatch([""], labels, streams)

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where the weights are, and batches must be."""


class InferenceModel(Aggregator):
    """A model put into inference (`nextvlad.models.for_inference`): faster, with weights that stay.

    Called as the model is: batch -> logits [B, C] float32.
    """

    vocabulary: Vocabulary | None
    provenance: Provenance | None
    precision: Precision
    """What it computes in, which may not be what was asked for (`nextvlad.models.cpu.settle`)."""
    graphs: Graphs | None = None
    """CUDA graphs for shapes of batches that come often; None, as on a CPU: always kernel by kernel."""

    def __init__(self, model: VideoModel, precision: Precision) -> None:
        self.config, self.vocabulary, self.provenance = model.config, model.vocabulary, model.provenance
        self._device = model.device
        self.precision = settle(precision, model.device)
        self.dtype = dtype_of(self.precision, model.device)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self._device

    @torch.no_grad()
    def __call__(self, batch: FrameBatch) -> Tensor:
        """Logits [B, C] float32."""
        if self.graphs is not None:
            return self.graphs(self._answer, batch)
        return self._answer(batch)

    def _answer(self, batch: FrameBatch) -> Tensor:
        return self.conclude(self.aggregate(batch))


class VideoModel(nn.Module, Aggregator):
    """Videos of a batch -> logits [B, C] float32, by `model(batch)`; probabilities are their sigmoid."""

    vocabulary: Vocabulary | None = None
    """Class names, where known; set when a checkpoint is loaded."""
    provenance: Provenance | None = None
    """How the features were made that it was trained on, where known; set when a checkpoint is loaded."""

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

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


def _tensor(values: Any) -> Tensor:
    """Of an array or tensor; a copy of what must not be written, as records hold it and torch warns of."""
    if isinstance(values, np.ndarray) and not values.flags.writeable:
        values = values.copy()
    return torch.as_tensor(values)


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
