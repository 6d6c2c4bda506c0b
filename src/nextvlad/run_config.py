"""Every setting of a training run and of inference, as frozen dataclasses. Of a model: `nextvlad.config`.

The same classes are the command line (`nextvlad train RECIPE --optim.lr 1e-4`), the Python API, and
`config.json` in a checkpoint folder.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import ConfigDict as _PydanticConfig
from pydantic import Field

from nextvlad.config import ModelConfig, NeXtVLADConfig, Precision, require

BatchSize = int | Literal["auto"]
"""Videos at a time; auto finds what fits (`nextvlad.batch_size`)."""
DEFAULT_BATCH_SIZE = 160
"""Of training."""


def _require_batch_size(name: str, value: BatchSize) -> None:
    require(value == "auto" or (isinstance(value, int) and value >= 1), name, value, "1 or more, or auto")


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
            require(getattr(self, name) >= 1, f"data.{name}", getattr(self, name), "1 or more")
        require(0 <= self.workers <= 1024, "data.workers", self.workers, "0 to 1024")
        require(
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
            require(math.isfinite(value), f"optim.{name}", value, "a finite number")
        require(self.lr > 0, "optim.lr", self.lr, "above 0")
        require(0 < self.decay_factor <= 1, "optim.decay_factor", self.decay_factor, "above 0, at most 1")
        require(self.decay_examples >= 1, "optim.decay_examples", self.decay_examples, "1 or more")
        require(0 <= self.warmup < 1, "optim.warmup", self.warmup, "0 or more and below 1")
        for name in ("l2", "weight_decay", "mixup"):
            require(getattr(self, name) >= 0, f"optim.{name}", getattr(self, name), "0 or more")
        require(self.clip_norm > 0, "optim.clip_norm", self.clip_norm, "above 0")
        for name in ("beta1", "beta2"):
            require(
                0 <= getattr(self, name) < 1, f"optim.{name}", getattr(self, name), "0 or more and below 1"
            )
        require(self.epsilon > 0, "optim.epsilon", self.epsilon, "above 0")


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
        require(self.epochs >= 1, "epochs", self.epochs, "1 or more")
        require(0 <= self.seed < 2**48, "seed", self.seed, "0 or more and below 2^48")
        require(self.threads is None or self.threads <= 1024, "threads", self.threads, "1024 at most")
        for name in ("steps", "threads", "eval_every"):
            value = getattr(self, name)
            require(value is None or value >= 1, name, value, "1 or more")
        require(self.log_every >= 1, "log_every", self.log_every, "1 or more")
        require(self.save_every_minutes > 0, "save_every_minutes", self.save_every_minutes, "above 0")
        require(
            self.data.segments or self.best_by != "segment_map",
            "best_by",
            self.best_by,
            "another metric without data.segments",
        )


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
