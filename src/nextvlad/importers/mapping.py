"""Variables of the originals, by name, -> our configuration and our tensors.

Every size follows from the shapes. Both originals multiply row vectors by [in, out] matrices, torch's
Linear holds [out, in]; the author keeps centres as [1, E/G, K], Paddle and we as [K, E/G].
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nextvlad.config import MixtureConfig, NeXtVLADConfig, StreamConfig
from nextvlad.errors import CheckpointError, ConfigError

Arrays = Mapping[str, NDArray[np.generic]]
Layout = Literal["matrix", "vector", "centers", "[1] centers"]
_System = Literal["author", "paddle"]

_DIMS: dict[Layout, int] = {"matrix": 2, "vector": 1, "centers": 2, "[1] centers": 3}
_STREAMS = ("rgb", "audio")
_AUTHORS_FRAMES = 300  # to which his code pads every video, in the mixing weights too

# Ours; how it lies there; in the author's code; in Paddle's. A star is the stream. A name for each of the
# two streams where Paddle counts through. A norm is four variables.
_TABLE = (
    ("branches.*.expansion.weight", "matrix", "*/fully_connected/weights", "*_fc_expansion_w"),
    ("branches.*.expansion.bias", "vector", "*/fully_connected/biases", "*_fc_expansion_b"),
    ("branches.*.attention.weight", "matrix", "*/fully_connected_1/weights", "*_fc_group_attention_w"),
    ("branches.*.attention.bias", "vector", "*/fully_connected_1/biases", "*_fc_group_attention_b"),
    ("branches.*.assignment.weight", "matrix", "*/cluster_weights", "*_cluster_weights"),
    ("branches.*.assignment_norm", "norm", "*/cluster_bn", "batch_norm_0 batch_norm_2"),
    ("branches.*.centers", "centers", "*/cluster_weights2", "*_cluster_weights2"),
    ("branches.*.descriptor_norm", "norm", "*/vlad_bn", "batch_norm_1 batch_norm_3"),
    ("hidden.weight", "matrix", "hidden1_weights", "hidden1_fc_weights"),
    ("hidden_norm", "norm", "hidden1_bn", "batch_norm_4"),
    ("gate.reduce.weight", "matrix", "gating_weights_1", "gating_fc1_weights"),
    ("gate.norm", "norm", "gating_bn", "batch_norm_5"),
    ("gate.expand.weight", "matrix", "gating_weights_2", "gating_fc2_weights"),
    ("classifier.weight", "matrix", "fully_connected/weights", "logits_clf_weights"),
    ("classifier.bias", "vector", "fully_connected/biases", "logits_clf_bias"),
)
_NORM = {
    "weight": ("/gamma", ".w_0"),
    "bias": ("/beta", ".b_0"),
    "running_mean": ("/moving_mean", ".w_1"),
    "running_var": ("/moving_variance", ".w_2"),
}
_PADDLE: dict[str, Any] = {
    "batch_norm_epsilon": 1e-5,
    "batch_norm_weight": 0.1,
    "dropout_scaling": "evaluation",
    "unbiased_gate_variance": False,
}


class Pair(NamedTuple):
    """One variable: our name, the original's, and how the original lays it out."""

    ours: str
    theirs: str
    layout: Layout

    def shape_there(self, shape: Sequence[int]) -> list[int]:
        """Our shape of the variable as the original has it."""
        match self.layout:
            case "matrix":
                return [*reversed(shape)]
            case "[1] centers":
                return [1, *reversed(shape)]
        return [*shape]


@dataclass(frozen=True)
class Imported:
    """What an original's checkpoint becomes.

    Attributes:
        config: the whole model configuration.
        tensors: our state dict but for the preprocessing, float32. Only the shapes that the configuration
            was taken from are sure to fit it.
        pairs: where each of them comes from.
    """

    config: NeXtVLADConfig | MixtureConfig
    tensors: dict[str, NDArray[np.float32]]
    pairs: tuple[Pair, ...]

    @property
    def used(self) -> frozenset[str]:
        """Names of the original's variables that went into it."""
        return frozenset(pair.theirs for pair in self.pairs)


def from_tensorflow(arrays: Arrays, *, where: str) -> Imported:
    """The author's single model, or his mixture; optimiser slots must be filtered out before.

    Which one it is shows in the names. Neither the weight of the distillation nor its temperature is in a
    checkpoint: they get the paper's values, which only matter for training it further.

    Args:
        arrays: variable name -> array, as `read_tensorflow` gives them.
        where: the file, for messages.

    Raises:
        CheckpointError: a variable is missing or its shape does not fit, by name.
    """
    if not any(re.search(r"(^|/)(branch_\d+/|mix_weights/)", name) for name in arrays):
        scope = _scope_of(arrays, "hidden1_weights")
        return _import_single(arrays, list(_pairs("author", scope, ("video_VLAD", "audio_VLAD"))), where)
    scope = _scope_of(arrays, "mix_weights/weights")
    count = len(
        {found[1] for name in arrays if (found := re.match(rf"{re.escape(scope)}branch_(\d+)/", name))}
    )
    pairs = [
        Pair("mixing.weight", f"{scope}mix_weights/weights", "matrix"),
        Pair("mixing.bias", f"{scope}mix_weights/biases", "vector"),
        *_norm("author", "mixing_norm", f"{scope}mix_weights_bn"),
    ]
    for m in range(max(count, 1)):
        member = _pairs("author", f"{scope}branch_{m}/", ("video_vlad", "audio_vlad"))
        pairs += [pair._replace(ours=f"members.{m}.{pair.ours}") for pair in member]
    tensors = {pair.ours: _take(arrays, pair, where) for pair in pairs}
    return Imported(_mixture_config(tensors, where), tensors, tuple(pairs))


def from_paddle(arrays: Arrays, *, where: str) -> Imported:
    """Paddle v1.5.1's model, its `eigen_param` aside (that is preprocessing).

    Raises:
        CheckpointError: a variable is missing or its shape does not fit, by name.
    """
    return _import_single(arrays, list(_pairs("paddle", "", ("video", "audio"))), where, **_PADDLE)


def _import_single(arrays: Arrays, pairs: list[Pair], where: str, **variant: Any) -> Imported:
    tensors = {pair.ours: _take(arrays, pair, where) for pair in pairs}
    return Imported(_config_of(tensors, where, **variant), tensors, tuple(pairs))


# Names


def _scope_of(arrays: Arrays, leaf: str) -> str:
    """The scope that all variables lie in, "tower/" in the author's own checkpoints."""
    return next((name.removesuffix(leaf) for name in arrays if f"/{name}".endswith(f"/{leaf}")), "tower/")


def _pairs(system: _System, scope: str, streams: tuple[str, str]) -> Iterator[Pair]:
    """The table for one model, written out: the two streams, then the rest."""
    for index, (ours, theirs) in enumerate(zip(_STREAMS, streams, strict=True)):
        for row in _TABLE:
            if "*" in row[0]:
                for pair in _row_pairs(system, row, index):
                    yield Pair(
                        pair.ours.replace("*", ours), scope + pair.theirs.replace("*", theirs), pair.layout
                    )
    for row in _TABLE:
        if "*" not in row[0]:
            for pair in _row_pairs(system, row, 0):
                yield pair._replace(theirs=scope + pair.theirs)


def _row_pairs(system: _System, row: tuple[str, str, str, str], index: int) -> list[Pair]:
    """One row of the table; `index` chooses where a stream has a name of its own."""
    ours, layout, *names = row
    choices = names[system == "paddle"].split(" ")
    theirs = choices[index % len(choices)]
    match layout:
        case "norm":
            return _norm(system, ours, theirs)
        case "centers":
            return [Pair(ours, theirs, "centers" if system == "paddle" else "[1] centers")]
        case "matrix":
            return [Pair(ours, theirs, "matrix")]
    return [Pair(ours, theirs, "vector")]


def _norm(system: _System, ours: str, theirs: str) -> list[Pair]:
    return [
        Pair(f"{ours}.{part}", theirs + names[system == "paddle"], "vector") for part, names in _NORM.items()
    ]


# Arrays


def _take(arrays: Arrays, pair: Pair, where: str) -> NDArray[np.float32]:
    """A variable of the original, laid out as ours."""
    name, layout = pair.theirs, pair.layout
    if name not in arrays:
        found = ", ".join(sorted(arrays)[:8]) or "nothing"
        raise CheckpointError(
            f"{where}: variable {name} is missing; is this a NeXtVLAD checkpoint? Found {found}"
            f"{' ...' if len(arrays) > 8 else ''}"
        )
    array = arrays[name]
    if array.ndim != _DIMS[layout] or array.dtype.kind != "f" or 0 in array.shape:
        raise CheckpointError(
            f"{where}: variable {name} is {array.dtype} {list(array.shape)}; "
            f"wanted floats of {_DIMS[layout]} dimension(s)."
        )
    with np.errstate(over="ignore"):  # of 64 bits, beyond what 32 can hold
        values = array.astype(np.float32)
    if not np.isfinite(values).all():
        raise CheckpointError(
            f"{where}: variable {name} holds values that are not finite: this training had diverged."
        )
    if pair.ours.endswith(".running_var") and values.min() < 0:
        raise CheckpointError(
            f"{where}: variable {name} holds {values.min():g}, wanted 0 or more, as it is a variance. The "
            "file is damaged."
        )
    if layout == "[1] centers":
        if values.shape[0] != 1:
            raise CheckpointError(
                f"{where}: variable {name} has shape {list(values.shape)}, wanted [1, E/G, K]."
            )
        values = values[0]
    return np.ascontiguousarray(values.T if layout in ("matrix", "[1] centers") else values)


def _config_of(tensors: Mapping[str, NDArray[np.float32]], where: str, **variant: Any) -> NeXtVLADConfig:
    """Every size from one of the shapes that hold it; whether the others agree is not looked at here."""
    streams = []
    for name in _STREAMS:
        size = tensors[f"branches.{name}.expansion.weight"].shape[1]
        clusters = tensors[f"branches.{name}.centers"].shape[0]
        groups = tensors[f"branches.{name}.attention.weight"].shape[0]
        streams.append(StreamConfig(name=name, size=size, clusters=clusters, groups=groups))
    hidden = tensors["hidden.weight"].shape[0]
    try:
        return NeXtVLADConfig(
            streams=tuple(streams),
            num_classes=tensors["classifier.weight"].shape[0],
            clusters=streams[0].clusters or 1,
            groups=streams[0].groups or 1,
            expansion=max(tensors["branches.rgb.expansion.weight"].shape[0] // streams[0].size, 1),
            hidden_size=hidden,
            gating_reduction=max(hidden // tensors["gate.reduce.weight"].shape[0], 1),
            **variant,
        )
    except ConfigError as error:
        raise CheckpointError(f"{where}: its shapes are those of no NeXtVLAD: {error}") from None


def _mixture_config(tensors: Mapping[str, NDArray[np.float32]], where: str) -> MixtureConfig:
    first = "members.0."
    member = _config_of(
        {name.removeprefix(first): tensor for name, tensor in tensors.items() if name.startswith(first)},
        where,
    )
    shared = {field.name: getattr(member, field.name) for field in fields(member) if field.name != "kind"}
    num_members = len({name.split(".")[1] for name in tensors if name.startswith("members.")})
    try:
        return MixtureConfig(**shared, num_members=num_members, mixing_frames=_AUTHORS_FRAMES)
    except ConfigError as error:
        raise CheckpointError(f"{where}: no mixture of ours: {error}") from None
