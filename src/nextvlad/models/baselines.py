"""Models of the mean frame: logistic regression, the baseline every result is held against, and its experts.

Letters: B videos, N frames of all videos, D input size of a stream, C classes, M experts a class.
"""

from __future__ import annotations

import copy
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from nextvlad.config import MeanPoolConfig, MoEConfig, Precision, StreamConfig
from nextvlad.data.batch import FrameBatch
from nextvlad.models.base import InferenceModel, Sums, VideoModel
from nextvlad.models.inputs import Mixup, Preprocessing
from nextvlad.models.layers import sum_of_frames


class MeanPoolBranch(nn.Module):
    """One stream; holds its preprocessing."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.preprocess = Preprocessing(size)

    def forward(self, values: Tensor, offsets: Tensor) -> Tensor:
        """Sums of the frames of each video: [N, D], [B+1] -> [B, D]."""
        return sum_of_frames(self.preprocess, values, offsets)


class _Pooled(VideoModel):
    """A model of the concatenated means; `classify` is its own."""

    def __init__(self, streams: tuple[StreamConfig, ...]) -> None:
        super().__init__()
        self.branches = nn.ModuleDict({stream.name: MeanPoolBranch(stream.size) for stream in streams})

    def preprocessing(self, stream: str) -> Preprocessing:
        """What is done to a stream's values before anything else; KeyError for an unknown stream."""
        return cast(MeanPoolBranch, self.branches[stream]).preprocess

    def aggregate(self, batch: FrameBatch) -> Sums:
        """Of each stream the sum of its frames [B, D] and their `count` [B, 1]."""
        found = {}
        for name, branch in self.branches.items():
            frames = batch.streams[name]
            found[f"{name}.sum"] = branch(frames.values, frames.offsets)
            found[f"{name}.count"] = frames.offsets.diff()[:, None]
        return found

    def describe(self, sums: Sums) -> Tensor:
        """The concatenated means, [B, sum of D] float32; a video without frames gets zeros."""
        parts = [sums[f"{name}.sum"] / sums[f"{name}.count"].clamp(min=1) for name in self.branches]
        return torch.cat(parts, dim=1)

    def conclude(self, sums: Sums) -> Tensor:
        """Logits [B, C] float32."""
        return self.classify(self.describe(sums))

    def classify(self, descriptors: Tensor) -> Tensor:
        """[B, sum of D] -> logits [B, C] float32."""
        raise NotImplementedError

    def forward(self, batch: FrameBatch, mixup: Mixup | None = None) -> Tensor:
        """Logits [B, C] float32."""
        descriptors = self.describe(self.aggregate(batch))
        if mixup is not None:
            descriptors = torch.lerp(descriptors[mixup.partner], descriptors, mixup.weight)
        return self.classify(descriptors)


class AsItIs(InferenceModel):
    """One of these models in inference: they are matrix products after a mean, with nothing to fold."""

    def __init__(self, model: VideoModel, precision: Precision) -> None:
        super().__init__(model, "bf16" if precision == "int8" else precision)
        self._model = copy.deepcopy(model).requires_grad_(False)

    @torch.no_grad()
    def aggregate(self, batch: FrameBatch) -> Sums:
        """As the model's own."""
        return self._model.aggregate(batch)

    @torch.no_grad()
    def conclude(self, sums: Sums) -> Tensor:
        """Logits [B, C] float32."""
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            return self._model.conclude(sums)


class MeanPool(_Pooled):
    """Logistic regression on the concatenated means (the starter code's logistic models).

    On video-level files, one frame of floats a stream, it is their LogisticModel, on frame-level files
    their FrameLevelLogisticModel.
    """

    config: MeanPoolConfig

    def __init__(self, config: MeanPoolConfig) -> None:
        super().__init__(config.streams)
        self.config = config
        self.classifier = nn.Linear(sum(stream.size for stream in config.streams), config.num_classes)
        nn.init.xavier_uniform_(self.classifier.weight)
        nn.init.zeros_(self.classifier.bias)

    def class_layers(self) -> dict[str, nn.Linear]:
        """The logistic layer."""
        return {"classifier": self.classifier}

    def classify(self, descriptors: Tensor) -> Tensor:
        """[B, sum of D] -> logits [B, C] float32."""
        logits: Tensor = self.classifier(descriptors).float()
        return logits


class MixtureOfExperts(_Pooled):
    """M logistic experts a class and one that always says no, weighted by a softmax gate of that class.

    The starter code's MoeModel: p = sum over m of g[m] sigmoid(e[m]), where the gates g are a softmax
    over M + 1. Here with logits, computed without leaving log space, so that neither a p near 0 nor one
    near 1 is lost; the starter code clips there. Rows of `gates` and `experts` go class by class.
    """

    config: MoEConfig

    def __init__(self, config: MoEConfig) -> None:
        super().__init__(config.streams)
        self.config = config
        size = sum(stream.size for stream in config.streams)
        self.gates = nn.Linear(size, config.num_classes * (config.num_experts + 1), bias=False)
        self.experts = nn.Linear(size, config.num_classes * config.num_experts)
        nn.init.xavier_uniform_(self.gates.weight)
        nn.init.xavier_uniform_(self.experts.weight)
        nn.init.zeros_(self.experts.bias)

    def class_layers(self) -> dict[str, nn.Linear]:
        """Gates, C x (M + 1) rows, and experts, C x M rows."""
        return {"gates": self.gates, "experts": self.experts}

    def classify(self, descriptors: Tensor) -> Tensor:
        """[B, sum of D] -> logits [B, C] float32, log p - log(1 - p)."""
        classes = (self.config.num_classes, -1)
        gates = self.gates(descriptors).float().unflatten(1, classes)  # [B, C, M + 1]
        experts = self.experts(descriptors).float().unflatten(1, classes)  # [B, C, M]
        # The softmax's denominator is the same in p and 1 - p, so it cancels in the logit.
        yes = gates[..., :-1] + functional.logsigmoid(experts)  # [B, C, M]
        no = gates[..., :-1] + functional.logsigmoid(-experts)  # [B, C, M]
        no = torch.cat([no, gates[..., -1:]], dim=2)  # [B, C, M + 1]
        logits: Tensor = yes.logsumexp(2) - no.logsumexp(2)  # [B, C]
        return logits
