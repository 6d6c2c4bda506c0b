"""Fine-tuning: a model begins with the weights of another checkpoint, as far as they fit."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from nextvlad.checkpoint import read_config, read_tensors, read_vocabulary
from nextvlad.data.vocabulary import Vocabulary
from nextvlad.errors import CheckpointError
from nextvlad.models import Model


@dataclass(frozen=True)
class InitReport:
    """What `initialise` did, by parameter name; every name is in exactly one list."""

    loaded: list[str]
    fresh: list[str]
    skipped: list[str]
    classes_matched: int


def initialise(model: Model, folder: Path, vocabulary: Vocabulary | None) -> InitReport:
    """Starts a model from another checkpoint's weights, for fine-tuning.

    Tensors of the same name and shape are copied. Rows of the model's `class_layers` are matched by class
    name where both vocabularies are known, copied whole where both have the same number of classes and at
    most one vocabulary is known, and left fresh otherwise.

    Raises:
        CheckpointError: not one tensor fits.
    """
    source = read_tensors(folder / "model.safetensors")
    num_theirs, num_mine = read_config(folder).num_classes, model.config.num_classes
    pairs = _matching_rows(read_vocabulary(folder, num_theirs), vocabulary, num_theirs, num_mine)
    by_class = {f"{layer}.{part}" for layer in model.class_layers() for part in ("weight", "bias")}
    loaded: list[str] = []
    matched = 0
    own = model.state_dict()
    for name, tensor in own.items():
        if name not in source:
            continue
        if name in by_class:
            to, of = _rows_of_classes(tensor, num_mine), _rows_of_classes(source[name], num_theirs)
            if pairs and of is not None and to is not None and of.shape[1:] == to.shape[1:]:
                mine, theirs = (torch.tensor(side) for side in zip(*pairs, strict=True))
                to[mine] = of[theirs].to(to)
                matched = len(pairs)
                loaded.append(name)
        elif source[name].shape == tensor.shape:
            tensor.copy_(source[name])
            loaded.append(name)
    if not loaded:
        raise CheckpointError(f"{folder}: none of its tensors fits this model; is it another architecture?")
    return InitReport(
        loaded=loaded,
        fresh=[name for name in own if name not in loaded],
        skipped=[name for name in source if name not in loaded],
        classes_matched=matched,
    )


def _rows_of_classes(tensor: Tensor, num_classes: int) -> Tensor | None:
    """[C k, ...] -> [C, k, ...], a view; None where the rows are of another number of classes."""
    if tensor.dim() == 0 or num_classes < 1 or tensor.shape[0] % num_classes:
        return None
    return tensor.view(num_classes, tensor.shape[0] // num_classes, *tensor.shape[1:])


def _matching_rows(
    theirs: Vocabulary | None, mine: Vocabulary | None, num_theirs: int, num_mine: int
) -> list[tuple[int, int]]:
    """Pairs (my class, their class) that mean the same."""
    if theirs is None or mine is None:
        return [(index, index) for index in range(num_mine)] if num_mine == num_theirs else []
    if theirs == mine:  # also where names repeat
        return [(index, index) for index in range(num_mine)]
    where = theirs.index_of()
    return [(index, where[name]) for name, index in mine.index_of().items() if name in where]
