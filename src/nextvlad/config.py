"""Every setting of a model, as frozen dataclasses. Those of a run are in `nextvlad.run_config`.

The same classes are the command line (`nextvlad train RECIPE --model.clusters 64`), the Python API, and
`config.json` in a checkpoint folder. Letters as in the model: D input size, E = expansion x D, G groups,
K clusters, H hidden size, C classes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Literal

from pydantic import ConfigDict as _PydanticConfig

from nextvlad.errors import ConfigError

_LARGEST = 1 << 20  # size of a layer, so that no product of a few exceeds what torch counts with
_STREAM_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def require(condition: bool, name: str, value: object, wanted: str) -> None:
    """A ConfigError that names the setting, unless the condition holds."""
    if not condition:
        raise ConfigError(f"{name}: got {value!r}, wanted {wanted}.")


@dataclass(frozen=True, kw_only=True)
class StreamConfig:
    """One stream of frame features. On the command line: NAME:SIZE or NAME:SIZE:CLUSTERS:GROUPS."""

    __pydantic_config__ = _PydanticConfig(extra="forbid")

    name: str
    """Name of the feature list in the records: rgb, audio, audio_embedding, ..."""
    size: int
    """D, values a frame."""
    clusters: int | None = None
    """K of this stream; None: the model's."""
    groups: int | None = None
    """G of this stream; None: the model's."""

    def __post_init__(self) -> None:
        require(
            bool(_STREAM_NAME.fullmatch(self.name)),
            "stream name",
            self.name,
            "a letter or _ and then letters, digits or _",
        )
        for what in ("size", "clusters", "groups"):
            value = getattr(self, what)
            if value is not None:
                _require_size(f"{what} of stream {self.name}", value)

    def __str__(self) -> str:
        """As the command line spells it."""
        if self.clusters is None and self.groups is None:
            return f"{self.name}:{self.size}"
        return f"{self.name}:{self.size}:{self.clusters or ''}:{self.groups or ''}"

    @classmethod
    def parse(cls, text: str) -> StreamConfig:
        """`rgb:1024` or `audio:128:64:4` (an empty part means the model's own value).

        >>> StreamConfig.parse("audio:128:64:4").groups
        4
        """
        parts = text.split(":")
        try:
            name, size = parts[0], int(parts[1])
            clusters, groups = (int(part) if part else None for part in (parts[2:] or ["", ""]))
        except (ValueError, IndexError):
            raise ConfigError(
                f"stream {text!r}: wanted NAME:SIZE or NAME:SIZE:CLUSTERS:GROUPS, as in rgb:1024."
            ) from None
        return cls(name=name, size=size, clusters=clusters, groups=groups)


@dataclass(frozen=True, kw_only=True)
class _NeXtVLADSettings:
    """What a single NeXtVLAD and each member of a mixture are made of."""

    kind: str = ""
    """Tells model configurations apart in files."""
    streams: tuple[StreamConfig, ...] = ()
    """The feature streams, in the order their descriptors are concatenated. Empty: taken from the
    first records of the training data."""
    num_classes: int = 0
    """C. 0: taken from the vocabulary, else the largest label of the training data plus one."""
    clusters: int = 128
    """K, clusters a stream."""
    groups: int = 8
    """G, groups a stream; must divide expansion x size of each stream."""
    expansion: int = 2
    """E / D."""
    hidden_size: int = 2048
    """H, width of the hidden layer."""
    gating_reduction: int = 8
    """H is squeezed to H / gating_reduction inside the context gate."""
    dropout: float = 0.5
    """Share of descriptor values dropped before the hidden layer, in [0, 1)."""
    dropout_scaling: Literal["training", "evaluation"] = "training"
    """Where dropout is compensated. "training": kept values are divided by 1 - dropout while
    training (inverted dropout, the author's). "evaluation": all values are multiplied by
    1 - dropout in evaluation (Paddle v1.5.1)."""
    batch_norm_epsilon: float = 1e-3
    """Added to variances. Author 1e-3, Paddle 1e-5."""
    batch_norm_weight: float = 0.001
    """Weight of the newest batch in the running statistics. Author 0.001, Paddle 0.1."""
    unbiased_gate_variance: bool = True
    """Running variance of the gates' batch norms: unbiased (author) or biased (Paddle)."""

    def __post_init__(self) -> None:
        _check_streams(self.streams)
        _require_num_classes(self.num_classes)
        for name in ("clusters", "groups", "expansion", "hidden_size", "gating_reduction"):
            _require_size(name, getattr(self, name))
        require(0.0 <= self.dropout < 1.0, "dropout", self.dropout, "0 or more and below 1")
        require(self.batch_norm_epsilon > 0, "batch_norm_epsilon", self.batch_norm_epsilon, "above 0")
        require(
            0.0 < self.batch_norm_weight <= 1.0,
            "batch_norm_weight",
            self.batch_norm_weight,
            "above 0 and at most 1",
        )
        require(
            self.hidden_size % self.gating_reduction == 0,
            "hidden_size",
            self.hidden_size,
            f"a multiple of gating_reduction ({self.gating_reduction})",
        )
        for stream in self.streams:
            expanded, groups = stream.size * self.expansion, self.groups_of(stream)
            require(
                expanded % groups == 0,
                f"groups of stream {stream.name}",
                groups,
                f"a divisor of expansion x size = {expanded}",
            )

    def clusters_of(self, stream: StreamConfig) -> int:
        """K of one stream."""
        return self.clusters if stream.clusters is None else stream.clusters

    def groups_of(self, stream: StreamConfig) -> int:
        """G of one stream."""
        return self.groups if stream.groups is None else stream.groups


@dataclass(frozen=True, kw_only=True)
class NeXtVLADConfig(_NeXtVLADSettings):
    """NeXtVLAD (arXiv 1811.05014). The defaults are the author's published single model."""

    __pydantic_config__ = _PydanticConfig(extra="forbid")

    kind: Literal["nextvlad"] = "nextvlad"
    """Tells model configurations apart in files."""


@dataclass(frozen=True, kw_only=True)
class MixtureConfig(_NeXtVLADSettings):
    """Several NeXtVLADs side by side, mixed video by video; the paper's best with three.

    The settings of a NeXtVLAD are those of each member.
    """

    __pydantic_config__ = _PydanticConfig(extra="forbid")

    kind: Literal["nextvlad_mixture"] = "nextvlad_mixture"
    """Tells model configurations apart in files."""
    num_members: int = 3
    """NeXtVLADs in the mixture."""
    distillation_weight: float = 9.0
    """Weight of the distillation, which draws every member towards the mixture; 0: none."""
    temperature: float = 3.0
    """Of the distillation: logits are divided by it. 0: no distillation."""
    mixing_frames: int | None = None
    """What weighs the members looks at the mean frame of the video: over its own frames (None), or
    padded with zeros to so many first, as the author's code does (300)."""
    pooled: bool = False
    """Beside its descriptor each member is given mean and standard deviation of the frames of each
    stream, normalised over the batch. Not of the paper: for few videos, and cameras that stand still."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(1 <= self.num_members <= 64, "num_members", self.num_members, "1 to 64")
        for name in ("distillation_weight", "temperature"):
            value = getattr(self, name)
            require(math.isfinite(value) and value >= 0, name, value, "0 or more")
        if self.mixing_frames is not None:
            _require_size("mixing_frames", self.mixing_frames)

    def member(self) -> NeXtVLADConfig:
        """The configuration of one member."""
        shared = {field.name: getattr(self, field.name) for field in fields(_NeXtVLADSettings)}
        return NeXtVLADConfig(**shared | {"kind": "nextvlad"})


@dataclass(frozen=True, kw_only=True)
class MeanPoolConfig:
    """The baseline: mean over frames of each stream, concatenated, one logistic layer."""

    __pydantic_config__ = _PydanticConfig(extra="forbid")

    kind: Literal["mean_pool"] = "mean_pool"
    """Tells model configurations apart in files."""
    streams: tuple[StreamConfig, ...] = ()
    """The feature streams. Empty: taken from the first records of the training data."""
    num_classes: int = 0
    """C. 0: taken from the vocabulary, else the largest label of the training data plus one."""

    def __post_init__(self) -> None:
        _check_streams(self.streams)
        _require_num_classes(self.num_classes)


@dataclass(frozen=True, kw_only=True)
class MoEConfig:
    """Mean over frames of each stream, concatenated, then a mixture of logistic experts for each class.

    The strongest model of YouTube-8M's starter code on video-level features.
    """

    __pydantic_config__ = _PydanticConfig(extra="forbid")

    kind: Literal["moe"] = "moe"
    """Tells model configurations apart in files."""
    streams: tuple[StreamConfig, ...] = ()
    """The feature streams. Empty: taken from the first records of the training data."""
    num_classes: int = 0
    """C. 0: taken from the vocabulary, else the largest label of the training data plus one."""
    num_experts: int = 2
    """Experts a class, beside the one that always says no."""

    def __post_init__(self) -> None:
        _check_streams(self.streams)
        _require_num_classes(self.num_classes)
        require(1 <= self.num_experts <= 1024, "num_experts", self.num_experts, "1 to 1024")


ModelConfig = NeXtVLADConfig | MixtureConfig | MeanPoolConfig | MoEConfig

Precision = Literal["fp32", "bf16", "fp16", "int8"]
"""Of the products in inference. int8: bytes times weights rounded to eight bits, the rest bf16 or fp32."""


def with_streams(model: ModelConfig, streams: tuple[StreamConfig, ...], num_classes: int) -> ModelConfig:
    """The model configuration with what the data decides filled in."""
    change: Callable[..., ModelConfig] = replace
    return change(model, streams=model.streams or streams, num_classes=model.num_classes or num_classes)


def _require_size(name: str, value: int) -> None:
    """A size that layers are made of, or what they divide by."""
    require(value >= 1, name, value, "1 or more")
    require(value <= _LARGEST, name, value, f"{_LARGEST} at most")


def _require_num_classes(value: int) -> None:
    require(value >= 0, "num_classes", value, "0 or more")
    require(value < 1 << 31, "num_classes", value, "less than 2^31")


def _check_streams(streams: tuple[StreamConfig, ...]) -> None:
    names = [stream.name for stream in streams]
    require(len(set(names)) == len(names), "streams", names, "each name once")
