"""`nextvlad import`: a trained model of Paddle v1.5.1 or of the author's TensorFlow code becomes ours.

Every size follows from the shapes of the tensors, and what the originals do to their input comes along.
Nothing is written unless every variable of the source has been used or is known to be none of the
model's. The author's three-branch mixture is not read yet.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from nextvlad import checkpoint
from nextvlad.data.vocabulary import Vocabulary
from nextvlad.errors import CheckpointError, UsageError
from nextvlad.importers.mapping import Imported, from_paddle, from_tensorflow
from nextvlad.importers.paddle_files import read_paddle
from nextvlad.importers.tensorflow_files import (
    is_optimizer_state,
    is_tensorflow_checkpoint,
    read_tensorflow,
)
from nextvlad.models.inputs import read_whitening_factors
from nextvlad.models.nextvlad import NeXtVLAD
from nextvlad.progress import say

_EIGEN = "eigen_param"  # Paddle's factors of reverse whitening, kept among its parameters
_STEP = "global_step"  # TensorFlow's counter of steps


@dataclass(frozen=True)
class _Found:
    """What the source holds: its format, the model in it, the input factors of rgb, what was left out."""

    kind: str
    imported: Imported
    factors: NDArray[np.float64] | None
    ignored: Mapping[str, str]


def import_checkpoint(
    source: Path, out: Path, *, eigenvalues: Path | None = None, vocabulary: Path | None = None
) -> NeXtVLAD:
    """Reads `source`, whatever its format, and writes the checkpoint folder `out`.

    Args:
        source: a Paddle checkpoint (v1.5 folder, v1.6 stream, v1.7+ pickle, or a tar of one) or a
            TensorFlow checkpoint (folder or prefix).
        out: a new folder.
        eigenvalues: .npy of the eigenvalues of YouTube-8M's PCA; for TensorFlow checkpoints, which do
            not hold them, and for Paddle's where theirs should be replaced.
        vocabulary: CSV with the class names, kept with the checkpoint.

    Returns:
        The model, in evaluation mode.

    Raises:
        UsageError: nothing at `source`, `out` exists, or the eigenvalues do not fit.
        CheckpointError: not such a checkpoint, damaged, or with variables missing, left over or of the
            wrong shape, by name. Nothing is written then.
    """
    if out.exists():
        raise UsageError(f"{out}: exists already; wanted a new folder for the checkpoint.")
    names = Vocabulary.load(vocabulary) if vocabulary else None
    found = _read(source)
    config = found.imported.config
    if names is not None:
        names.check_size(config.num_classes, str(vocabulary))
    model = NeXtVLAD(config)
    tensors = {name: torch.from_numpy(np.array(value)) for name, value in found.imported.tensors.items()}
    own = model.state_dict()
    wrong = [
        f"{name} {list(tensor.shape)}, wanted {list(own[name].shape)}"
        for name, tensor in tensors.items()
        if tensor.shape != own[name].shape
    ]
    if wrong:
        raise CheckpointError(f"{source}: shapes that do not fit each other: {'; '.join(wrong[:5])}.")
    model.load_state_dict(tensors, strict=False)
    if eigenvalues is not None:
        model.preprocessing("rgb").undo_whitening(read_whitening_factors(eigenvalues, config.streams[0].size))
    elif found.factors is not None:
        model.preprocessing("rgb").undo_whitening(found.factors)
    model.vocabulary = names
    checkpoint.save(out, model, vocabulary=names)
    _report(source, out, found, model, whitened=eigenvalues is not None or found.factors is not None)
    return model.eval()


def _read(source: Path) -> _Found:
    if is_tensorflow_checkpoint(source):
        arrays = read_tensorflow(source, keep=lambda name: not is_optimizer_state(name))
        ignored = {_STEP: "counter of steps"} if arrays.pop(_STEP, None) is not None else {}
        imported = from_tensorflow(arrays, where=str(source))
        _refuse_leftovers(source, arrays.keys() - imported.used)
        return _Found("TensorFlow (the author's)", imported, None, ignored)
    paddle = read_paddle(source)
    arrays = dict(paddle.tensors)
    eigen = arrays.pop(_EIGEN, None)
    imported = from_paddle(arrays, where=str(source))
    _refuse_leftovers(source, arrays.keys() - imported.used)
    factors = None
    if eigen is not None:
        size = imported.config.streams[0].size
        if eigen.shape != (size,):
            raise CheckpointError(f"{source}: {_EIGEN} has shape {list(eigen.shape)}, wanted [{size}].")
        factors = eigen.astype(np.float64)
    return _Found(f"Paddle ({paddle.kind})", imported, factors, paddle.ignored)


def _refuse_leftovers(source: Path, names: set[str]) -> None:
    if names:
        shown = ", ".join(sorted(names)[:8])
        raise CheckpointError(
            f"{source}: {len(names)} variables belong to no part of a single NeXtVLAD model: {shown}"
            f"{' ...' if len(names) > 8 else ''}. Is it a mixture, or another model?"
        )


def _report(source: Path, out: Path, found: _Found, model: NeXtVLAD, *, whitened: bool) -> None:
    table = Table(title=f"{source}: {found.kind}", title_justify="left")
    table.add_column("tensor")
    table.add_column("shape", justify="right")
    for name, tensor in found.imported.tensors.items():
        table.add_row(name, " x ".join(map(str, tensor.shape)))
    console = Console()
    console.print(table)
    config = replace(model.config, streams=())
    streams = " ".join(str(stream) for stream in model.config.streams)
    say(
        f"{len(found.imported.used)} variables mapped, {len(found.ignored)} ignored (optimiser, schedule). "
        f"Streams {streams}; {config.num_classes} classes; hidden {config.hidden_size}."
    )
    if not whitened:
        say(
            "Note: the checkpoint holds no eigenvalues. If it was trained on reverse-whitened rgb, as the "
            "author's was, import it again with --eigenvalues eigenvals.npy, or its predictions are wrong."
        )
    say(f"Checkpoint: {out}")
