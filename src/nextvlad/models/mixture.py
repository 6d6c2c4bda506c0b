"""The paper's best model: several NeXtVLADs side by side, mixed video by video, learning from the mixture.

Letters: B videos, N frames of all videos of a batch one after another, D input size of a stream,
M members, C classes, T temperature.

The members differ in their initial weights alone. Each video has weights of its own for them, from its
mean frame. While training, every member answers for its own errors, and is drawn towards the mixture, which
knows better, by a divergence between softened distributions over classes (distillation as you go).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from nextvlad.config import MixtureConfig
from nextvlad.data.batch import FrameBatch, Frames
from nextvlad.models.base import Sums, VideoModel, cross_entropy, targets_of
from nextvlad.models.inputs import QUANTISATION_SHIFT, QUANTISATION_STEP, Mixup, Preprocessing, mix_frames
from nextvlad.models.layers import BatchNorm, he_normal_, segment_sum
from nextvlad.models.nextvlad import NeXtVLAD

_ZERO = -QUANTISATION_SHIFT / QUANTISATION_STEP  # what would be stored for 0.0; between two bytes


class Mixture(VideoModel):
    """Logits are the members' logits, weighted by a softmax over members that the mean frame decides."""

    config: MixtureConfig

    def __init__(self, config: MixtureConfig) -> None:
        super().__init__()
        self.config = config
        sizes = {stream.name: stream.size for stream in config.streams}
        self.preprocess = nn.ModuleDict({name: Preprocessing(size) for name, size in sizes.items()})
        self.mixing_norm = BatchNorm(
            sum(sizes.values()),
            epsilon=config.batch_norm_epsilon,
            weight_of_new=config.batch_norm_weight,
            unbiased=config.unbiased_gate_variance,
        )
        self.mixing = nn.Linear(sum(sizes.values()), config.num_members)
        he_normal_(self.mixing.weight, self.mixing.in_features)
        nn.init.zeros_(self.mixing.bias)
        num_pooled = 2 * sum(sizes.values()) if config.pooled else 0
        self.pooled_norm = (
            BatchNorm(num_pooled, epsilon=config.batch_norm_epsilon, weight_of_new=config.batch_norm_weight)
            if config.pooled
            else None
        )
        if self.pooled_norm is not None:
            with torch.no_grad():
                self.pooled_norm.weight.copy_(_equal_shares(list(sizes.values())).repeat(2))
        member = config.member()
        self.members = nn.ModuleList(
            NeXtVLAD(member, prepared=True, num_pooled=num_pooled) for _ in range(config.num_members)
        )

    def preprocessing(self, stream: str) -> Preprocessing:
        """What is done to a stream's values before anything else; KeyError for an unknown stream."""
        return cast(Preprocessing, self.preprocess[stream])

    def class_layers(self) -> dict[str, nn.Linear]:
        """The members' logistic layers."""
        members = (cast(NeXtVLAD, member) for member in self.members)
        return {f"members.{m}.classifier": member.classifier for m, member in enumerate(members)}

    def forward(self, batch: FrameBatch, mixup: Mixup | None = None) -> Tensor:
        """Logits [B, C] float32; probabilities are their sigmoid.

        Args:
            batch: B videos; every stream of the configuration, each video with 0 or more frames in it.
            mixup: mixes pairs of videos, in training only.
        """
        weights, logits = self.answers(batch, mixup)
        return mix(weights, logits)

    def loss(self, batch: FrameBatch, labels: Tensor, *, mixup: Mixup | None = None) -> Tensor:
        """Cross-entropy of the mixture and of each member, plus the distillation, summed over videos.

        As the author's code, down to this: the gradient of the distillation also flows into the mixture.
        """
        targets, importance = targets_of(batch, labels, mixup)
        weights, logits = self.answers(batch, mixup)
        mixed = mix(weights, logits)
        loss = cross_entropy(mixed, targets, importance)
        for answer in logits.unbind(1):
            loss = loss + cross_entropy(answer, targets, importance)
        weight, temperature = self.config.distillation_weight, self.config.temperature
        if weight > 0 and temperature > 0:
            loss = loss + weight * distillation(mixed, logits, temperature)
        return loss

    def answers(self, batch: FrameBatch, mixup: Mixup | None = None) -> tuple[Tensor, Tensor]:
        """The members' weights [B, M], which sum to 1, and their logits [B, M, C], both float32."""
        return self.answers_of(self.aggregate(batch, mixup))

    def aggregate(self, batch: FrameBatch, mixup: Mixup | None = None) -> Sums:
        """Of each stream the sum of its frames [B, D] and their `count` [B, 1]; and the members' sums.

        With `pooled` also of each stream the sum of the squares of its frames [B, D].
        """
        prepared = self._prepare(batch, mixup)
        found = {}
        for name, frames in prepared.streams.items():
            found[f"{name}.sum"] = segment_sum(frames.values, frames.offsets)
            found[f"{name}.count"] = frames.offsets.diff()[:, None]
            if self.config.pooled:
                found[f"{name}.squares"] = segment_sum(frames.values.square(), frames.offsets)
        for number, member in enumerate(self.members):
            of_member = cast(NeXtVLAD, member).aggregate(prepared)
            found |= {f"{number}.{name}": sums for name, sums in of_member.items()}
        return found

    def answers_of(self, sums: Sums) -> tuple[Tensor, Tensor]:
        """The same from the sums."""
        weights, pooled = self.weigh(sums), self.pooled(sums)
        answers = []
        for number, member in enumerate(self.members):
            start = f"{number}."
            own = {name.removeprefix(start): part for name, part in sums.items() if name.startswith(start)}
            answers.append(cast(NeXtVLAD, member).conclude(own, pooled))
        return weights, torch.stack(answers, dim=1)  # [B, M], [B, M, C]

    def weigh(self, sums: Sums) -> Tensor:
        """The members' weights [B, M] from the sums of the frames."""
        means = torch.cat([self._mean(name, sums) for name in self.preprocess], dim=1)
        return torch.softmax(self.mixing(self.mixing_norm(means)).float(), dim=1)

    def pooled(self, sums: Sums) -> Tensor | None:
        """Means of all streams, then their standard deviations, normalised, [B, 2 x sum of D]; or None.

        To each variance comes the square of the quantiser's step, below which rounding is all there is. A
        video without frames has a mean of 0.
        """
        if self.pooled_norm is None:
            return None
        means, deviations = [], []
        for name in self.preprocess:
            count = sums[f"{name}.count"].clamp(min=1)  # [B, 1]
            means.append(sums[f"{name}.sum"] / count)
            variance = sums[f"{name}.squares"] / count - means[-1].square()  # below 0 by rounding alone
            deviations.append((variance.clamp(min=0) + QUANTISATION_STEP**2).sqrt())
        normalised: Tensor = self.pooled_norm(torch.cat([*means, *deviations], dim=1))
        return normalised

    def conclude(self, sums: Sums) -> Tensor:
        """Logits [B, C] float32."""
        return mix(*self.answers_of(sums))

    def _prepare(self, batch: FrameBatch, mixup: Mixup | None) -> FrameBatch:
        """The batch as floats, mixed: once for all members."""
        streams = {}
        for name, preprocess in self.preprocess.items():
            frames = batch.streams[name]
            x = preprocess(frames.values)  # [N, D]
            if mixup is not None:
                x = mix_frames(x, frames.offsets, mixup)
            streams[name] = Frames(x, frames.offsets)
        return FrameBatch(batch.video_ids, batch.labels, streams, batch.rated)

    def _mean(self, stream: str, sums: Sums) -> Tensor:
        """The mean frame of one stream, [B, D]; a video without frames gets zeros."""
        total, counts = sums[f"{stream}.sum"], sums[f"{stream}.count"]  # [B, D], [B, 1]
        if self.config.mixing_frames is None:
            return total / counts.clamp(min=1)
        missing = (self.config.mixing_frames - counts).clamp(min=0)  # [B, 1]
        preprocess = self.preprocessing(stream)
        zero = torch.addcmul(preprocess.offset, preprocess.scale, torch.full_like(preprocess.scale, _ZERO))
        return (total + missing * zero) / (counts + missing)


def mix(weights: Tensor, logits: Tensor) -> Tensor:
    """Weighted sum over members: [B, M], [B, M, C] -> [B, C]."""
    return (weights[..., None] * logits).sum(1)


def distillation(mixed: Tensor, logits: Tensor, temperature: float) -> Tensor:
    """KL(softmax(mixed / T) || softmax(member / T)) over classes, summed over members and videos.

    Not multiplied by T^2, as in the author's code.

    Args:
        mixed: [B, C] logits of the mixture, the teacher.
        logits: [B, M, C] of the members.
        temperature: T, above 0; the larger, the more the small probabilities count.
    """
    teacher = functional.log_softmax(mixed / temperature, dim=1)[:, None]  # [B, 1, C]
    students = functional.log_softmax(logits / temperature, dim=2)  # [B, M, C]
    return (teacher.exp() * (teacher - students)).sum()


def _equal_shares(sizes: Sequence[int]) -> Tensor:
    """[sum of D] gains for values of variance 1, after which each stream has the same part of all variance.

    So that 128 values of sound are not lost among 1,280 of pictures before training has begun.
    """
    return torch.cat([torch.full((size,), (sum(sizes) / len(sizes) / size) ** 0.5) for size in sizes])
