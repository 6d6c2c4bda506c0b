"""The variables of PaddleVideo's NeXtVLAD: names, shapes, and what else lies beside them in a checkpoint."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from numpy.typing import NDArray

# The shape of each variable, in sizes named as in the model: D input, E expanded, G groups, K clusters,
# H hidden, R squeezed hidden, C classes, with the stream's first letter where it has its own.
SHAPES: dict[str, tuple[str, ...]] = {
    **{
        f"{stream}_{name}": tuple(size + stream[0] for size in sizes)
        for stream in ("video", "audio")
        for name, sizes in {
            "fc_expansion_w": ("D", "E"),
            "fc_expansion_b": ("E",),
            "fc_group_attention_w": ("E", "G"),
            "fc_group_attention_b": ("G",),
            "cluster_weights": ("E", "GK"),
            "cluster_weights2": ("K", "E/G"),
        }.items()
    },
    **{
        f"batch_norm_{index}.{part}": (size,)
        for index, size in enumerate(("GKv", "KE/Gv", "GKa", "KE/Ga", "H", "R"))
        for part in ("b_0", "w_0", "w_1", "w_2")
    },
    "eigen_param": ("Dv",),
    "hidden1_fc_weights": ("KE/G", "H"),
    "gating_fc1_weights": ("H", "R"),
    "gating_fc2_weights": ("R", "H"),
    "logits_clf_weights": ("H", "C"),
    "logits_clf_bias": ("C",),
}
_STATISTICS = re.compile(r"batch_norm_\d\.w_[12]|eigen_param")  # what no optimizer trains
_ADAM_PARTS = ("beta1_pow_acc_0", "beta2_pow_acc_0", "moment1_0", "moment2_0")
_IGNORED = (
    (re.compile(r".+_((beta[12]_pow_acc|moment([12]|2_max)?|velocity)_\d+)"), "optimizer state"),
    (re.compile(r"@LR_DECAY_COUNTER@|learning_rate(_\d+)?|LR_Scheduler"), "learning-rate schedule"),
    (re.compile(r".+\.tmp_\d+"), "an intermediate result"),
    (re.compile(r"train_label"), "labels of the last batch"),
    (re.compile(r"StructuredToParameterName@@"), "Paddle's second names"),
    (re.compile(r"__model__|.+\.(pdopt|pdmodel|pdiparams\.info)"), "no parameters"),
    (re.compile(r"\..*"), "a hidden file"),
)  # fmt: skip


def why_ignored(name: str) -> str | None:
    """Why a variable or file is no parameter; None for one that may be."""
    return next((reason for pattern, reason in _IGNORED if pattern.fullmatch(name)), None)


def known_lists() -> Iterator[list[str]]:
    """The sorted names a stream may hold: with and without the eigenvalues, and with training state.

    Parameters alone come from `save_params`; `save_persistables` adds Adam's state and the learning rate.
    """
    schedule = ["@LR_DECAY_COUNTER@", "learning_rate"]
    for left_out in ((), ("eigen_param",)):
        parameters = [name for name in SHAPES if name not in left_out]
        trained = [name for name in parameters if not _STATISTICS.fullmatch(name)]
        adam = [f"{name}_{part}" for name in trained for part in _ADAM_PARTS]
        yield sorted(parameters)
        yield sorted(parameters + schedule[1:])
        yield sorted(parameters + schedule)
        yield sorted(parameters + adam)
        yield sorted(parameters + adam + schedule[1:])
        yield sorted(parameters + adam + schedule)


def first_misfit(tensors: Mapping[str, NDArray[Any]]) -> tuple[str, str] | None:
    """The first variable whose shape contradicts the others, and how; None where all fit.

    Every named size must be the same wherever it occurs, K x G must be GK, and so on.
    Adam's moments have their variable's shape, everything else of the training state is one number.
    """
    sizes: dict[str, tuple[int, str]] = {}
    for name, wanted in SHAPES.items():
        if name not in tensors:
            continue
        shape = tensors[name].shape
        if len(shape) != len(wanted):
            return name, f"has shape {list(shape)}, wanted {len(wanted)} sizes"
        if tensors[name].dtype.kind != "f":
            return name, f"is of type {tensors[name].dtype}, wanted floats"
        for size, letter in zip(shape, wanted, strict=True):
            known, source = sizes.setdefault(letter, (size, name))
            if known != size:
                return name, f"has shape {list(shape)}, but {source} has {list(tensors[source].shape)}"
    return _wrong_product({letter: size for letter, (size, _) in sizes.items()}) or _wrong_state(tensors)


def _wrong_product(sizes: Mapping[str, int]) -> tuple[str, str] | None:
    """The same for sizes that are products of others."""
    for letter, stream in (("v", "video"), ("a", "audio")):
        expanded, groups, clusters = (sizes[size + letter] for size in "EGK")
        if sizes["GK" + letter] != groups * clusters:
            return (
                f"{stream}_cluster_weights",
                f"has {sizes['GK' + letter]} columns, not {groups} x {clusters}",
            )
        if sizes["E/G" + letter] * groups != expanded:
            return (
                f"{stream}_cluster_weights2",
                f"has {sizes['E/G' + letter]} columns, not {expanded} / {groups}",
            )
        if sizes["KE/G" + letter] * groups != clusters * expanded:
            index = 1 if letter == "v" else 3
            return (
                f"batch_norm_{index}.w_0",
                f"has {sizes['KE/G' + letter]} values, not {clusters} x {expanded} / {groups}",
            )
    if sizes["KE/G"] != sizes["KE/Gv"] + sizes["KE/Ga"]:
        return "hidden1_fc_weights", f"has {sizes['KE/G']} rows, not {sizes['KE/Gv']} + {sizes['KE/Ga']}"
    return None


def _wrong_state(tensors: Mapping[str, NDArray[Any]]) -> tuple[str, str] | None:
    """The same for the optimizer's state and the learning rate."""
    for name, array in tensors.items():
        if name in SHAPES:
            continue
        parameter, _, _ = name.rpartition("_moment")
        wanted = tensors[parameter].shape if parameter in tensors else (1,)
        if array.shape != wanted:
            return name, f"has shape {list(array.shape)}, wanted {list(wanted)}"
    return None
