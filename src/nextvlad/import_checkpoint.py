"""`nextvlad import`: a trained model of Paddle v1.5.1 or of the author's TensorFlow code becomes ours.

Every size follows from the shapes of the tensors, and what the originals do to their input comes along.
Nothing is written unless every variable of the source has been used or is known to be none of the
model's. Of the author's code both the single model and the mixture are read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from nextvlad import checkpoint
from nextvlad.config import MixtureConfig
from nextvlad.data.vocabulary import Vocabulary
from nextvlad.errors import CheckpointError, UsageError
from nextvlad.importers.mapping import Imported, from_paddle, from_tensorflow
from nextvlad.importers.paddle_files import read_paddle
from nextvlad.importers.tensorflow_files import (
    is_optimizer_state,
    is_tensorflow_checkpoint,
    read_tensorflow,
)
from nextvlad.models.inputs import MOST_FACTOR, Preprocessing, read_whitening_factors
from nextvlad.models.mixture import Mixture
from nextvlad.models.nextvlad import NeXtVLAD
from nextvlad.progress import say

_EIGEN = "eigen_param"  # Paddle's factors of reverse whitening, kept among its parameters
_STEP = "global_step"  # TensorFlow's counter of steps


@dataclass(frozen=True)
class _Found:
    """What the source holds: format, model, input factors of rgb, shapes, what was left out and why."""

    kind: str
    imported: Imported
    factors: NDArray[np.float64] | None
    shapes: Mapping[str, tuple[int, ...]]
    ignored: Mapping[str, str]


def import_checkpoint(
    source: Path, out: Path, *, eigenvalues: Path | None = None, vocabulary: Path | None = None
) -> NeXtVLAD | Mixture:
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
    model = _model_of(found.imported, source)
    factors = found.factors
    if eigenvalues is not None:
        factors = read_whitening_factors(eigenvalues, config.streams[0].size)
    if factors is not None:
        model.preprocessing("rgb").undo_whitening(factors)
    model.vocabulary = names
    checkpoint.save(out, model, vocabulary=names)
    _report(source, out, found, eigenvalues)
    return model.eval()


def _model_of(imported: Imported, source: Path) -> NeXtVLAD | Mixture:
    """The model with the imported tensors in it.

    Raises:
        CheckpointError: a shape contradicts the configuration that others led to, by the original's name.
    """
    config = imported.config
    with torch.device("meta"):  # no memory is taken before all shapes are known to fit
        model = Mixture(config) if isinstance(config, MixtureConfig) else NeXtVLAD(config)
    wanted = {name: tensor.shape for name, tensor in model.state_dict().items()}
    wrong = [
        f"{pair.theirs} has shape {pair.shape_there(found)}, wanted {pair.shape_there(wanted[pair.ours])}"
        for pair in imported.pairs
        if (found := imported.tensors[pair.ours].shape) != wanted[pair.ours]
    ]
    if wrong:
        more = f" (and {len(wrong) - 4} more)" if len(wrong) > 4 else ""
        raise CheckpointError(f"{source}: shapes that do not fit each other: {'; '.join(wrong[:4])}{more}.")
    model.to_empty(device="cpu")
    for stream in config.streams:
        model.preprocessing(stream.name).load_state_dict(Preprocessing(stream.size).state_dict())
    tensors = {name: torch.from_numpy(array) for name, array in imported.tensors.items()}
    model.load_state_dict(model.state_dict() | tensors)
    return model


def _read(source: Path) -> _Found:
    return _read_tensorflow(source) if is_tensorflow_checkpoint(source) else _read_paddle(source)


def _read_tensorflow(source: Path) -> _Found:
    ignored: dict[str, str] = {}

    def keep(name: str) -> bool:
        if name == _STEP:
            ignored[name] = "counter of steps"
        elif is_optimizer_state(name):
            ignored[name] = "optimizer state"
        return name not in ignored

    arrays = read_tensorflow(source, keep=keep)
    imported = from_tensorflow(arrays, where=str(source))
    _refuse_leftovers(source, arrays.keys() - imported.used)
    shapes = {name: array.shape for name, array in arrays.items()}
    return _Found("TensorFlow (the author's)", imported, None, shapes, ignored)


def _read_paddle(source: Path) -> _Found:
    paddle = read_paddle(source)
    arrays = dict(paddle.tensors)
    shapes = {name: array.shape for name, array in arrays.items()}
    eigen = arrays.pop(_EIGEN, None)
    imported = from_paddle(arrays, where=str(source))
    _refuse_leftovers(source, arrays.keys() - imported.used)
    factors = None
    if eigen is not None:
        size = imported.config.streams[0].size
        if eigen.shape != (size,) or eigen.dtype.kind != "f":
            raise CheckpointError(
                f"{source}: {_EIGEN} is {eigen.dtype} {list(eigen.shape)}, wanted floats [{size}]."
            )
        factors = eigen.astype(np.float64)
        if not ((factors > 0) & (factors < MOST_FACTOR)).all():
            raise CheckpointError(
                f"{source}: {_EIGEN} holds {factors.min():g} to {factors.max():g}, wanted finite numbers "
                "above 0. The file is damaged; copy it again."
            )
    return _Found(f"Paddle ({paddle.kind})", imported, factors, shapes, paddle.ignored)


def _refuse_leftovers(source: Path, names: set[str]) -> None:
    if names:
        shown = ", ".join(sorted(names)[:8])
        raise CheckpointError(
            f"{source}: {len(names)} variable{'s' if len(names) > 1 else ''} of no NeXtVLAD: {shown}"
            f"{' ...' if len(names) > 8 else ''}. Is it another model?"
        )


def _report(source: Path, out: Path, found: _Found, eigenvalues: Path | None) -> None:
    """What was found, where it went and what was left out; the table on standard output, the rest beside."""
    rows = [(pair.theirs, pair.ours) for pair in found.imported.pairs]
    ignored = dict(found.ignored)
    if found.factors is not None:
        if eigenvalues is None:
            rows.append((_EIGEN, "preprocessing of rgb"))
        else:
            ignored[_EIGEN] = f"{eigenvalues} given instead"
    texts = [(name, "x".join(map(str, found.shapes[name])), to) for name, to in rows]
    widths = [max(len(text[column]) for text in texts) for column in range(2)]
    print(f"{source}: {found.kind}\n\n{'variable':{widths[0]}}  {'shape':>{widths[1]}}  becomes")
    for name, shape, to in texts:
        print(f"{name:{widths[0]}}  {shape:>{widths[1]}}  {to}")
    for reason in sorted(set(ignored.values())):
        names = sorted(name for name, why in ignored.items() if why == reason)
        shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        print(f"ignored, {reason}: {shown}")
    config = found.imported.config
    kind = f"mixture of {config.num_members}; " if isinstance(config, MixtureConfig) else ""
    say(
        f"{len(rows)} variables mapped, {len(ignored)} ignored. {kind[:1].upper()}{kind[1:]}"
        f"Streams {' '.join(map(str, config.streams))}; {config.num_classes} classes; "
        f"hidden {config.hidden_size}, gate 1/{config.gating_reduction}."
    )
    if found.factors is None and eigenvalues is None:
        say(
            "Note: the checkpoint holds no eigenvalues. If it was trained on reverse-whitened rgb, as the "
            "author's was, import it again with --eigenvalues eigenvals.npy, or its predictions are wrong."
        )
    say(f"Checkpoint: {out}")
