"""Every setting of a model and of a training run, as frozen dataclasses, and their JSON.

The same classes are the command line (`nextvlad train RECIPE --optim.lr 1e-4`), the Python API, and
`config.json` in a checkpoint folder. A file with an unknown key or a value of the wrong type is
refused with the key's name. Letters as in the model: D input size, E = expansion x D, G groups,
K clusters, H hidden size, C classes.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict as _PydanticConfig
from pydantic import Field, TypeAdapter, ValidationError

from nextvlad.errors import ConfigError

_LARGEST = 1 << 20  # size of a layer, so that no product of a few exceeds what torch counts with
_STREAM_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def _require(condition: bool, name: str, value: object, wanted: str) -> None:
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
        _require(
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
        _require(0.0 <= self.dropout < 1.0, "dropout", self.dropout, "0 or more and below 1")
        _require(self.batch_norm_epsilon > 0, "batch_norm_epsilon", self.batch_norm_epsilon, "above 0")
        _require(
            0.0 < self.batch_norm_weight <= 1.0,
            "batch_norm_weight",
            self.batch_norm_weight,
            "above 0 and at most 1",
        )
        _require(
            self.hidden_size % self.gating_reduction == 0,
            "hidden_size",
            self.hidden_size,
            f"a multiple of gating_reduction ({self.gating_reduction})",
        )
        for stream in self.streams:
            expanded, groups = stream.size * self.expansion, self.groups_of(stream)
            _require(
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
        _require(1 <= self.num_members <= 64, "num_members", self.num_members, "1 to 64")
        for name in ("distillation_weight", "temperature"):
            value = getattr(self, name)
            _require(math.isfinite(value) and value >= 0, name, value, "0 or more")
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
        _require(1 <= self.num_experts <= 1024, "num_experts", self.num_experts, "1 to 1024")


ModelConfig = NeXtVLADConfig | MixtureConfig | MeanPoolConfig | MoEConfig


def _require_size(name: str, value: int) -> None:
    """A size that layers are made of, or what they divide by."""
    _require(value >= 1, name, value, "1 or more")
    _require(value <= _LARGEST, name, value, f"{_LARGEST} at most")


def _require_num_classes(value: int) -> None:
    _require(value >= 0, "num_classes", value, "0 or more")
    _require(value < 1 << 31, "num_classes", value, "less than 2^31")


def _check_streams(streams: tuple[StreamConfig, ...]) -> None:
    names = [stream.name for stream in streams]
    _require(len(set(names)) == len(names), "streams", names, "each name once")


BatchSize = int | Literal["auto"]
"""Videos at a time; auto finds what fits (`nextvlad.batch_size`)."""
DEFAULT_BATCH_SIZE = 160
"""Of training."""


def _require_batch_size(name: str, value: BatchSize) -> None:
    _require(value == "auto" or (isinstance(value, int) and value >= 1), name, value, "1 or more, or auto")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where the data is and how it is read."""

    __pydantic_config__ = _PydanticConfig(extra="forbid")

    train: tuple[str, ...] = ()
    """Training data: files, directories, globs (quoted), or .list files with one path a line."""
    valid: tuple[str, ...] = ()
    """Validation data, likewise. Empty: no evaluation while training, and no best checkpoint."""
    vocabulary: str | None = None
    """CSV with the class names, kept with the checkpoint."""
    eigenvalues: str | None = None
    """.npy with the eigenvalues of YouTube-8M's PCA, to undo its whitening of the rgb stream as
    the originals do."""
    batch_size: BatchSize = DEFAULT_BATCH_SIZE
    """Videos a training step, over all processes together. auto: as many as the recipe says, or half, a
    quarter, ... of them where memory does not do; for one process."""
    eval_batch_size: int = 256
    """Videos a batch in evaluation; changes speed and memory, never a result."""
    max_frames: int = 300
    """Only the first max_frames frames of a stream are used."""
    shuffle_buffer: int = 4096
    """Videos held to shuffle from, a process of training; 1 keeps the order of the files."""
    workers: int = 1
    """Reader processes beside each process of training; 0 reads in the training process itself.
    Part of what fixes the order of the videos."""
    skip_damaged: bool = False
    """Skip damaged records, and list them at the end, instead of stopping at the first."""
    num_train_examples: int | None = None
    """Videos (segments) in the training data, if known; None counts them first."""
    segments: bool = False
    """Learn from rated five-second segments, YouTube-8M 2019's, and not from whole videos: in training and
    validation each is a video of its own, and only the classes it was rated for count."""
    trust_features: bool = False
    """Use features that were made in another way than those of the checkpoint or of the other data, or in a
    way that is not known (see provenance.json), since you know that they match."""

    def __post_init__(self) -> None:
        _require_batch_size("data.batch_size", self.batch_size)
        for name in ("eval_batch_size", "max_frames", "shuffle_buffer"):
            _require(getattr(self, name) >= 1, f"data.{name}", getattr(self, name), "1 or more")
        _require(0 <= self.workers <= 1024, "data.workers", self.workers, "0 to 1024")
        _require(
            self.num_train_examples is None or self.num_train_examples >= 1,
            "data.num_train_examples",
            self.num_train_examples,
            "1 or more",
        )


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """Adam and its schedule. The defaults are those of the paper and of Paddle v1.5.1."""

    __pydantic_config__ = _PydanticConfig(extra="forbid")

    lr: float = 2e-4
    """Learning rate at the start (at its peak, with warm-up)."""
    schedule: Literal["staircase", "cosine", "constant"] = "staircase"
    """"staircase": times decay_factor every decay_examples. "cosine": down to 0 at the end."""
    decay_factor: float = 0.8
    """For the staircase."""
    decay_examples: int = 2_000_000
    """For the staircase: videos seen between two steps down."""
    warmup: float = 0.0
    """Share of the training, in [0, 1), over which the rate climbs linearly from 0."""
    l2: float = 1e-5
    """Adds l2 x sum(w^2) / 2 over the classifiers' weights and biases to the loss."""
    weight_decay: float = 0.0
    """Decoupled weight decay (AdamW) on every weight matrix."""
    clip: Literal["global", "per_variable", "none"] = "global"
    """Gradient clipping: one norm over all parameters, or one each (the author's)."""
    clip_norm: float = 1.0
    """The largest norm let through."""
    beta1: float = 0.9
    """Adam's."""
    beta2: float = 0.999
    """Adam's."""
    epsilon: float = 1e-8
    """Adam's, outside the bias correction as in TensorFlow 1 and Paddle."""
    mixup: float = 0.0
    """Alpha of the beta distribution that mixes pairs of videos (NeXtVLAD: frame by frame; mean pool:
    the means) and their labels; 0 mixes nothing."""

    def __post_init__(self) -> None:
        for name in ("lr", "l2", "weight_decay", "clip_norm", "epsilon", "mixup"):
            value = getattr(self, name)
            _require(math.isfinite(value), f"optim.{name}", value, "a finite number")
        _require(self.lr > 0, "optim.lr", self.lr, "above 0")
        _require(0 < self.decay_factor <= 1, "optim.decay_factor", self.decay_factor, "above 0, at most 1")
        _require(self.decay_examples >= 1, "optim.decay_examples", self.decay_examples, "1 or more")
        _require(0 <= self.warmup < 1, "optim.warmup", self.warmup, "0 or more and below 1")
        for name in ("l2", "weight_decay", "mixup"):
            _require(getattr(self, name) >= 0, f"optim.{name}", getattr(self, name), "0 or more")
        _require(self.clip_norm > 0, "optim.clip_norm", self.clip_norm, "above 0")
        for name in ("beta1", "beta2"):
            _require(
                0 <= getattr(self, name) < 1, f"optim.{name}", getattr(self, name), "0 or more and below 1"
            )
        _require(self.epsilon > 0, "optim.epsilon", self.epsilon, "above 0")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training run, whole."""

    __pydantic_config__ = _PydanticConfig(extra="forbid")

    model: Annotated[ModelConfig, Field(discriminator="kind")] = field(default_factory=NeXtVLADConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    epochs: int = 5
    """Passes over the training data."""
    steps: int | None = None
    """Stop after so many steps even if the epochs are not over."""
    seed: int = 0
    """Fixes initial weights, order of the videos, dropout and mixup."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Of the matrix products; parameters, statistics and the optimiser stay fp32."""
    device: str = "auto"
    """auto (a GPU if there is one), cpu, cuda, cuda:1, ..."""
    threads: int | None = None
    """CPU threads for the arithmetic; None leaves torch's choice. Bit-identical results need the
    same number."""
    eval_every: int | None = None
    """Evaluate every so many steps; None: after each epoch."""
    log_every: int = 50
    """Steps between two lines of metrics.jsonl."""
    save_every_minutes: float = 10.0
    """Save the last checkpoint at least so often; it is also saved after each evaluation."""
    best_by: Literal["gap", "hit_at_one", "perr", "map", "loss", "top1", "segment_map"] | None = None
    """The validation metric that decides which checkpoint is the best; None: gap, or segment_map with
    data.segments."""
    tensorboard: bool = False
    """Write TensorBoard events to OUT/tensorboard (pip install 'nextvlad[board]')."""

    def __post_init__(self) -> None:
        _require(self.epochs >= 1, "epochs", self.epochs, "1 or more")
        _require(0 <= self.seed < 2**48, "seed", self.seed, "0 or more and below 2^48")
        _require(self.threads is None or self.threads <= 1024, "threads", self.threads, "1024 at most")
        for name in ("steps", "threads", "eval_every"):
            value = getattr(self, name)
            _require(value is None or value >= 1, name, value, "1 or more")
        _require(self.log_every >= 1, "log_every", self.log_every, "1 or more")
        _require(self.save_every_minutes > 0, "save_every_minutes", self.save_every_minutes, "above 0")
        _require(
            self.data.segments or self.best_by != "segment_map",
            "best_by",
            self.best_by,
            "another metric without data.segments",
        )


Precision = Literal["fp32", "bf16", "fp16", "int8"]
"""Of the products in inference. int8: bytes times weights rounded to eight bits, the rest bf16 or fp32."""


@dataclass(frozen=True, kw_only=True)
class InferenceOptions:
    """How `evaluate` and `predict` read the data and compute; nothing here is kept with a result."""

    batch_size: BatchSize = 256
    """Videos at a time; changes no result beyond the last bit of a score. auto: the fastest that fits."""
    max_frames: int | None = None
    """Frames used of each stream; as in training if not given."""
    workers: int = 1
    """Reader processes beside this one."""
    device: str = "auto"
    """auto (a GPU if there is one), cpu, cuda, cuda:1, ..."""
    precision: Precision = "fp32"
    """Of the matrix products; int8 is for CPUs."""
    skip_damaged: bool = False
    """Skip damaged records and list them, instead of stopping."""
    trust_features: bool = False
    """Use features that were made in another way than those of the training, or in a way not known."""


def to_json(config: ModelConfig | TrainConfig) -> dict[str, Any]:
    """A configuration as plain JSON values."""
    plain: dict[str, Any] = json.loads(json.dumps(asdict(config)))
    return plain


def model_config_from_json(values: object, *, where: str) -> ModelConfig:
    """The reverse of `to_json` for a model.

    Raises:
        ConfigError: names `where`, the key, and what is wrong with it.
    """
    model: ModelConfig = _validate(
        TypeAdapter(Annotated[ModelConfig, Field(discriminator="kind")]), values, where
    )
    return model


def train_config_from_json(values: object, *, where: str) -> TrainConfig:
    """The reverse of `to_json` for a training run; raises ConfigError likewise."""
    config: TrainConfig = _validate(TypeAdapter(TrainConfig), values, where)
    return config


def read_json(path: Path) -> object:
    """The content of a JSON file, or a ConfigError that names it."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror or error}).") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not valid JSON ({error}).") from error


def validate(kind: Any, values: object, where: str) -> Any:
    """JSON values as a dataclass of this kind; a ConfigError names `where`, the key, and what is wrong."""
    return _validate(TypeAdapter(kind), values, where)


def _validate(adapter: TypeAdapter[Any], values: object, where: str) -> Any:
    try:
        return adapter.validate_python(_tuples(values), strict=False)
    except ConfigError as error:  # raised by a __post_init__
        raise ConfigError(f"{where}: {error}") from error
    except ValidationError as error:
        problems = "; ".join(_describe(item) for item in error.errors(include_url=False))
        raise ConfigError(f"{where}: {problems}.") from error


def _describe(item: Any) -> str:
    key = ".".join(str(part) for part in item["loc"])
    if item["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        return f"unknown key {key}; remove it or check its spelling"
    return f"{key}: {item['msg']} (got {item['input']!r})" if key else f"{item['msg']}"


def _tuples(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_tuples(item) for item in value)
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    return value


def with_streams(model: ModelConfig, streams: tuple[StreamConfig, ...], num_classes: int) -> ModelConfig:
    """The model configuration with what the data decides filled in."""
    change: Callable[..., ModelConfig] = replace
    return change(model, streams=model.streams or streams, num_classes=model.num_classes or num_classes)
