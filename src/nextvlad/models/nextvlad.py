"""NeXtVLAD, whole: frames of each stream -> one descriptor -> class logits (arXiv 1811.05014).

Letters: B videos, N frames of all videos of a batch one after another, D input size of a stream,
E = expansion x D, G groups, K clusters, H hidden, V size of all descriptors together, C classes.

Only real frames take part, in training and in evaluation: there is no padding to leak. (The author's
TensorFlow code lets padded frames into the batch statistics of the assignment; Paddle v1.5.1 does
not, nor do we.) In evaluation a video's result depends on nothing but its own frames, in any order.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from nextvlad.config import NeXtVLADConfig, StreamConfig
from nextvlad.data.batch import FrameBatch, Frames
from nextvlad.models.base import Sums, VideoModel
from nextvlad.models.branch_sums import Weights, branch_sums
from nextvlad.models.inputs import Mixup, Preprocessing, mix_frames
from nextvlad.models.layers import (
    BatchNorm,
    ContextGate,
    Dropout,
    LargeLinear,
    he_normal_,
    segment_products,
    segment_sum,
)


class Branch(nn.Module):
    """One stream: [N, D] frames -> [B, K E/G] descriptor (paper equations 2 to 6)."""

    def __init__(self, config: NeXtVLADConfig, stream: StreamConfig, *, prepared: bool = False) -> None:
        super().__init__()
        self.groups, self.clusters = config.groups_of(stream), config.clusters_of(stream)
        expanded = config.expansion * stream.size
        self.group_size = expanded // self.groups
        self.preprocess = nn.Identity() if prepared else Preprocessing(stream.size)
        self.expansion = nn.Linear(stream.size, expanded)
        self.attention = nn.Linear(expanded, self.groups)
        self.assignment = nn.Linear(expanded, self.groups * self.clusters, bias=False)
        self.assignment_norm = _batch_norm(config, self.groups * self.clusters)
        self.centers = nn.Parameter(torch.empty(self.clusters, self.group_size))
        self.descriptor_norm = _batch_norm(config, self.clusters * self.group_size)
        self._initialise()

    def _initialise(self) -> None:
        # As the originals: every weight He-normal by its fan-in, every bias zero.
        expanded = self.expansion.out_features
        he_normal_(self.expansion.weight, self.expansion.in_features)
        he_normal_(self.attention.weight, expanded)
        he_normal_(self.assignment.weight, expanded)
        he_normal_(self.centers, self.group_size)
        nn.init.zeros_(self.expansion.bias)
        nn.init.zeros_(self.attention.bias)

    def aggregate(self, frames: Frames, mixup: Mixup | None = None) -> tuple[Tensor, Tensor]:
        """Packed frames of B videos -> sums of weighted frames [B, K, E/G] and of weights [B, K], float32."""
        values, offsets = frames.values, frames.offsets
        if mixup is not None:
            values = mix_frames(self.preprocess(values), offsets, mixup)  # [N, D]
        if self.assignment_norm.training and not values.requires_grad:
            return self._aggregate_in_training(values, offsets)
        return self.aggregate_plainly(values, offsets)

    def aggregate_plainly(self, values: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
        """The same, as the paper writes it: [N, D] frames of B videos -> [B, K, E/G] and [B, K], float32."""
        e = self.expansion(self.preprocess(values))  # [N, E]
        alpha = torch.sigmoid(self.attention(e).float())  # [N, G]
        z = self.assignment_norm(self.assignment(e))  # [N, G K]
        a = torch.softmax(z.unflatten(1, (self.groups, self.clusters)), dim=2)  # [N, G, K]
        a = a * alpha[..., None]  # [N, G, K]

        weights = a.flatten(0, 1)  # [N G, K]
        parts = e.unflatten(1, (self.groups, self.group_size)).flatten(0, 1)  # [N G, E/G]
        sums = segment_products(weights, parts, offsets * self.groups).float()  # [B, K, E/G]
        return sums, segment_sum(a.sum(1), offsets)

    def _aggregate_in_training(self, values: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
        """The same in fewer steps, with this batch's statistics, which it remembers (`branch_sums`)."""
        norm = self.assignment_norm
        device = values.device.type
        found = branch_sums(
            values,
            offsets,
            self.preprocess,
            self.weights(),
            epsilon=norm.epsilon,
            dtype=torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else torch.float32,
        )
        norm.remember(found.mean, found.var, found.num_frames)
        return found.sums, found.mass

    def weights(self) -> Weights:
        """What `branch_sums` wants."""
        return Weights(
            expand=self.expansion.weight,
            expand_bias=self.expansion.bias,
            assign=self.assignment.weight,
            attend=self.attention.weight,
            attend_bias=self.attention.bias,
            norm=self.assignment_norm.weight,
            norm_bias=self.assignment_norm.bias,
        )

    def describe(self, sums: Tensor, mass: Tensor) -> Tensor:
        """Such sums -> descriptors [B, E/G K] float32; no frames give zeros before the last norm."""
        v = sums - mass[..., None] * self.centers  # [B, K, E/G]
        v = functional.normalize(v, dim=2, eps=1e-6)  # [B, K, E/G]
        descriptors: Tensor = self.descriptor_norm(v.transpose(1, 2).flatten(1))  # [B, E/G K]
        return descriptors


class NeXtVLAD(VideoModel):
    """The published single model; `config` holds the author's variant or Paddle's.

    As a member of a mixture it gets its frames `prepared`: as floats, and mixed; and beside its descriptors
    `num_pooled` values that the mixture knows of each video.
    """

    config: NeXtVLADConfig

    def __init__(self, config: NeXtVLADConfig, *, prepared: bool = False, num_pooled: int = 0) -> None:
        super().__init__()
        self.config = config
        self.num_pooled = num_pooled
        self.branches = nn.ModuleDict(
            {stream.name: Branch(config, stream, prepared=prepared) for stream in config.streams}
        )
        size = sum(b.clusters * b.group_size for b in self.branches.values() if isinstance(b, Branch))
        self.dropout = Dropout(config.dropout, scale_in_training=config.dropout_scaling == "training")
        self.hidden = LargeLinear(size + num_pooled, config.hidden_size, bias=False)
        self.hidden_norm = _batch_norm(config, config.hidden_size)
        squeezed = config.hidden_size // config.gating_reduction
        self.gate = ContextGate(
            config.hidden_size,
            config.gating_reduction,
            _batch_norm(config, squeezed, unbiased=config.unbiased_gate_variance),
        )
        self.classifier = LargeLinear(config.hidden_size, config.num_classes)
        for linear in (self.hidden, self.gate.reduce, self.gate.expand, self.classifier):
            he_normal_(linear.weight, linear.in_features)
        nn.init.zeros_(self.classifier.bias)

    def preprocessing(self, stream: str) -> Preprocessing:
        """What is done to a stream's values before anything else; KeyError for an unknown stream."""
        return cast(Preprocessing, cast(Branch, self.branches[stream]).preprocess)

    def class_layers(self) -> dict[str, nn.Linear]:
        """The logistic layer."""
        return {"classifier": self.classifier}

    def aggregate(self, batch: FrameBatch, mixup: Mixup | None = None) -> Sums:
        """Of each stream its `sums` [B, K, E/G] and `mass` [B, K] (see `Branch`)."""
        found: Sums = {}
        for name, branch in self.branches.items():
            sums, mass = cast(Branch, branch).aggregate(batch.streams[name], mixup)
            found |= {f"{name}.sums": sums, f"{name}.mass": mass}
        return found

    def describe(self, sums: Sums) -> Tensor:
        """The concatenated descriptors, [B, V] float32."""
        parts = [
            cast(Branch, branch).describe(sums[f"{name}.sums"], sums[f"{name}.mass"])
            for name, branch in self.branches.items()
        ]
        return torch.cat(parts, dim=1)

    def conclude(self, sums: Sums, pooled: Tensor | None = None) -> Tensor:
        """Logits [B, C] float32; `pooled` [B, num_pooled] for a member that wants it."""
        descriptors = self.describe(sums)
        return self.classify(descriptors if pooled is None else torch.cat([descriptors, pooled], dim=1))

    def classify(self, descriptors: Tensor) -> Tensor:
        """[B, V] -> logits [B, C] float32."""
        h = self.hidden_norm(self.hidden(self.dropout(descriptors)))  # [B, H], no ReLU: as published
        logits: Tensor = self.classifier(self.gate(h)).float()  # [B, C]
        return logits

    def forward(self, batch: FrameBatch, mixup: Mixup | None = None) -> Tensor:
        """Logits [B, C] float32; probabilities are their sigmoid.

        Args:
            batch: B videos; every stream of the configuration, each video with 0 or more frames in it.
            mixup: mixes pairs of videos, in training only.
        """
        return self.conclude(self.aggregate(batch, mixup))


def _batch_norm(config: NeXtVLADConfig, size: int, *, unbiased: bool = False) -> BatchNorm:
    return BatchNorm(
        size, epsilon=config.batch_norm_epsilon, weight_of_new=config.batch_norm_weight, unbiased=unbiased
    )
