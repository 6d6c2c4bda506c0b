"""The baseline every result is held against: mean over frames, one logistic layer.

Letters: B videos, N frames of all videos, D input size of a stream, C classes.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from nextvlad.config import MeanPoolConfig
from nextvlad.data.batch import FrameBatch
from nextvlad.data.vocabulary import Vocabulary
from nextvlad.models.layers import segment_sum
from nextvlad.models.nextvlad import Mixup, Preprocessing


class MeanPoolBranch(nn.Module):
    """The mean of one stream's frames; holds the stream's preprocessing."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.preprocess = Preprocessing(size)

    def forward(self, values: Tensor, offsets: Tensor) -> Tensor:
        """[N, D], [B+1] -> [B, D]; a video without frames gets zeros."""
        counts = offsets.diff().clamp(min=1)
        return segment_sum(self.preprocess(values), offsets) / counts[:, None]  # [B, D]


class MeanPool(nn.Module):
    """Logistic regression on the concatenated means (the starter code's frame-level logistic model)."""

    vocabulary: Vocabulary | None = None
    """Class names, where known; set when a checkpoint is loaded."""

    def __init__(self, config: MeanPoolConfig) -> None:
        super().__init__()
        self.config = config
        self.branches = nn.ModuleDict({stream.name: MeanPoolBranch(stream.size) for stream in config.streams})
        self.classifier = nn.Linear(sum(stream.size for stream in config.streams), config.num_classes)
        nn.init.xavier_uniform_(self.classifier.weight)
        nn.init.zeros_(self.classifier.bias)

    def preprocessing(self, stream: str) -> Preprocessing:
        """What is done to a stream's values before anything else; KeyError for an unknown stream."""
        return cast(MeanPoolBranch, self.branches[stream]).preprocess

    def describe(self, batch: FrameBatch) -> Tensor:
        """The concatenated means, [B, sum of D] float32."""
        parts = [
            branch(batch.streams[name].values, batch.streams[name].offsets)
            for name, branch in self.branches.items()
        ]
        return torch.cat(parts, dim=1)

    def classify(self, descriptors: Tensor) -> Tensor:
        """[B, sum of D] -> logits [B, C] float32."""
        logits: Tensor = self.classifier(descriptors).float()
        return logits

    def forward(self, batch: FrameBatch, mixup: Mixup | None = None) -> Tensor:
        """Logits [B, C] float32."""
        descriptors = self.describe(batch)
        if mixup is not None:
            descriptors = torch.lerp(descriptors[mixup.partner], descriptors, mixup.weight)
        return self.classify(descriptors)
