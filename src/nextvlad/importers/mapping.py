"""Variables of the originals, by name, -> our configuration and our tensors.

Every size follows from the shapes. Both originals multiply row vectors by [in, out] matrices, torch's
Linear holds [out, in]; the author keeps centres as [1, E/G, K], Paddle and we as [K, E/G].
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nextvlad.config import NeXtVLADConfig, StreamConfig
from nextvlad.errors import CheckpointError

Arrays = Mapping[str, NDArray[np.generic]]


@dataclass(frozen=True)
class Imported:
    """What an original's checkpoint becomes.

    Attributes:
        config: the whole model configuration.
        tensors: our state dict but for the preprocessing, float32.
        used: names of the original's variables that went into it.
    """

    config: NeXtVLADConfig
    tensors: dict[str, NDArray[np.float32]]
    used: frozenset[str]


class _Source:
    """The original's variables; remembers which were asked for."""

    def __init__(self, arrays: Arrays, where: str) -> None:
        self.arrays, self.where = arrays, where
        self.used: set[str] = set()

    def take(self, name: str, *, dims: int) -> NDArray[np.float32]:
        if name not in self.arrays:
            raise CheckpointError(
                f"{self.where}: variable {name} is missing; is this a NeXtVLAD checkpoint? "
                f"Found {', '.join(sorted(self.arrays)[:8])} ..."
            )
        array = self.arrays[name]
        if array.ndim != dims or array.dtype.kind != "f":
            raise CheckpointError(
                f"{self.where}: variable {name} is {array.dtype} {list(array.shape)}; "
                f"wanted floats of {dims} dimension(s)."
            )
        self.used.add(name)
        return np.ascontiguousarray(array, dtype=np.float32)


_BATCH_NORM_TENSORFLOW = {
    "weight": "gamma",
    "bias": "beta",
    "running_mean": "moving_mean",
    "running_var": "moving_variance",
}
_BATCH_NORM_PADDLE = {"weight": "w_0", "bias": "b_0", "running_mean": "w_1", "running_var": "w_2"}


def from_tensorflow(arrays: Arrays, *, where: str, scope: str = "tower") -> Imported:
    """The author's single model; optimiser slots must be filtered out before.

    Args:
        arrays: variable name -> array, as `read_tensorflow` gives them.
        where: the file, for messages.
        scope: the variables' outermost scope.

    Raises:
        CheckpointError: a variable is missing or its shape does not fit, by name.
    """
    source = _Source(arrays, where)
    tensors: dict[str, NDArray[np.float32]] = {}
    for ours, theirs in (("rgb", f"{scope}/video_VLAD"), ("audio", f"{scope}/audio_VLAD")):
        tensors |= {
            f"branches.{ours}.expansion.weight": source.take(f"{theirs}/fully_connected/weights", dims=2).T,
            f"branches.{ours}.expansion.bias": source.take(f"{theirs}/fully_connected/biases", dims=1),
            f"branches.{ours}.attention.weight": source.take(f"{theirs}/fully_connected_1/weights", dims=2).T,
            f"branches.{ours}.attention.bias": source.take(f"{theirs}/fully_connected_1/biases", dims=1),
            f"branches.{ours}.assignment.weight": source.take(f"{theirs}/cluster_weights", dims=2).T,
            f"branches.{ours}.centers": source.take(f"{theirs}/cluster_weights2", dims=3)[0].T,
        }
        for mine, norm in (("assignment_norm", "cluster_bn"), ("descriptor_norm", "vlad_bn")):
            for key, name in _BATCH_NORM_TENSORFLOW.items():
                tensors[f"branches.{ours}.{mine}.{key}"] = source.take(f"{theirs}/{norm}/{name}", dims=1)
    tensors |= {
        "hidden.weight": source.take(f"{scope}/hidden1_weights", dims=2).T,
        "gate.reduce.weight": source.take(f"{scope}/gating_weights_1", dims=2).T,
        "gate.expand.weight": source.take(f"{scope}/gating_weights_2", dims=2).T,
        "classifier.weight": source.take(f"{scope}/fully_connected/weights", dims=2).T,
        "classifier.bias": source.take(f"{scope}/fully_connected/biases", dims=1),
    }
    for mine, norm in (("hidden_norm", "hidden1_bn"), ("gate.norm", "gating_bn")):
        for key, name in _BATCH_NORM_TENSORFLOW.items():
            tensors[f"{mine}.{key}"] = source.take(f"{scope}/{norm}/{name}", dims=1)
    config = _config_of(tensors, where)
    return Imported(config, tensors, frozenset(source.used))


def from_paddle(arrays: Arrays, *, where: str) -> Imported:
    """Paddle v1.5.1's model, its `eigen_param` aside (that is preprocessing).

    Raises:
        CheckpointError: a variable is missing or its shape does not fit, by name.
    """
    source = _Source(arrays, where)
    tensors: dict[str, NDArray[np.float32]] = {}
    norms = iter(range(6))
    for ours, theirs in (("rgb", "video"), ("audio", "audio")):
        tensors |= {
            f"branches.{ours}.expansion.weight": source.take(f"{theirs}_fc_expansion_w", dims=2).T,
            f"branches.{ours}.expansion.bias": source.take(f"{theirs}_fc_expansion_b", dims=1),
            f"branches.{ours}.attention.weight": source.take(f"{theirs}_fc_group_attention_w", dims=2).T,
            f"branches.{ours}.attention.bias": source.take(f"{theirs}_fc_group_attention_b", dims=1),
            f"branches.{ours}.assignment.weight": source.take(f"{theirs}_cluster_weights", dims=2).T,
            f"branches.{ours}.centers": source.take(f"{theirs}_cluster_weights2", dims=2),
        }
        for mine in ("assignment_norm", "descriptor_norm"):
            number = next(norms)
            for key, name in _BATCH_NORM_PADDLE.items():
                tensors[f"branches.{ours}.{mine}.{key}"] = source.take(f"batch_norm_{number}.{name}", dims=1)
    tensors |= {
        "hidden.weight": source.take("hidden1_fc_weights", dims=2).T,
        "gate.reduce.weight": source.take("gating_fc1_weights", dims=2).T,
        "gate.expand.weight": source.take("gating_fc2_weights", dims=2).T,
        "classifier.weight": source.take("logits_clf_weights", dims=2).T,
        "classifier.bias": source.take("logits_clf_bias", dims=1),
    }
    for mine in ("hidden_norm", "gate.norm"):
        number = next(norms)
        for key, name in _BATCH_NORM_PADDLE.items():
            tensors[f"{mine}.{key}"] = source.take(f"batch_norm_{number}.{name}", dims=1)
    config = _config_of(
        tensors,
        where,
        batch_norm_epsilon=1e-5,
        batch_norm_weight=0.1,
        dropout_scaling="evaluation",
        unbiased_gate_variance=False,
    )
    return Imported(config, tensors, frozenset(source.used))


def _config_of(tensors: Mapping[str, NDArray[np.float32]], where: str, **variant: object) -> NeXtVLADConfig:
    streams = []
    for name in ("rgb", "audio"):
        expanded, size = tensors[f"branches.{name}.expansion.weight"].shape
        clusters = tensors[f"branches.{name}.centers"].shape[0]
        groups = tensors[f"branches.{name}.attention.weight"].shape[0]
        streams.append(StreamConfig(name=name, size=size, clusters=clusters, groups=groups))
        if expanded % size or tensors[f"branches.{name}.assignment.weight"].shape[0] != groups * clusters:
            raise CheckpointError(f"{where}: the shapes of the {name} branch do not fit each other.")
    expansion = tensors["branches.rgb.expansion.weight"].shape[0] // streams[0].size
    hidden = tensors["hidden.weight"].shape[0]
    return NeXtVLADConfig(
        streams=tuple(streams),
        num_classes=tensors["classifier.weight"].shape[0],
        clusters=streams[0].clusters or 1,
        groups=streams[0].groups or 1,
        expansion=expansion,
        hidden_size=hidden,
        gating_reduction=hidden // tensors["gate.reduce.weight"].shape[0],
        **variant,  # type: ignore[arg-type]
    )
