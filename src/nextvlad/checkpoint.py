"""A checkpoint is a folder: what a model is, its weights, its class names, and how to go on training.

    config.json            {"format", "version", "model": ..., "training": ... or null}
    model.safetensors      parameters, running statistics, preprocessing
    vocabulary.csv         class names, where known
    features.json          how the features were made that it was trained on, where known
    thresholds.json        from which score on each class is set, where `nextvlad report` was asked to choose
    training.json          counters and positions, only for resuming
    training.safetensors   optimiser moments and random states, only for resuming

A checkpoint is written beside its final name and renamed when every byte is on disk: a save that is
killed leaves no half of one. Those of a run are in `nextvlad.run_folder`.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from nextvlad.config import ModelConfig
from nextvlad.config_json import model_config_from_json, read_json, to_json, train_config_from_json
from nextvlad.data.vocabulary import Vocabulary
from nextvlad.errors import CheckpointError, ConfigError, DataError, OutputError
from nextvlad.files import write_json
from nextvlad.models import Model, build_model
from nextvlad.provenance import Provenance
from nextvlad.run_config import TrainConfig

FORMAT = "nextvlad-checkpoint"
VERSION = 1
THRESHOLDS_FORMAT = "nextvlad-thresholds"

_FEATURES = "features.json"


@dataclass(frozen=True, kw_only=True)
class TrainingState:
    """What resuming needs beside the model: plain JSON values, and tensors by name."""

    values: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)


def save(
    folder: Path,
    model: Model,
    *,
    vocabulary: Vocabulary | None = None,
    provenance: Provenance | None = None,
    config: TrainConfig | None = None,
    state: TrainingState | None = None,
) -> None:
    """Writes a whole checkpoint folder, or nothing.

    Raises:
        OutputError: the folder exists already, or the disk is full or not writable.
    """
    if folder.exists():
        raise OutputError(f"{folder}: exists already; wanted a new name for a checkpoint.")
    aside = folder.with_name(f".{folder.name}.incomplete-{os.getpid()}")
    try:
        aside.mkdir(parents=True)
        _write_json(
            aside / "config.json",
            {
                "format": FORMAT,
                "version": VERSION,
                "model": to_json(model.config),
                "training": to_json(config) if config else None,
            },
        )
        save_file(_plain(model.state_dict()), aside / "model.safetensors")
        if vocabulary is not None:
            vocabulary.save(aside / "vocabulary.csv")
        if provenance is not None:
            provenance.save(aside / _FEATURES)
        if state is not None:
            _write_json(aside / "training.json", state.values)
            save_file(_plain(state.tensors), aside / "training.safetensors")
        for path in aside.iterdir():
            _flush_to_disk(path)
        aside.rename(folder)
    except (OSError, SafetensorError) as error:
        raise OutputError(
            f"{folder}: the checkpoint could not be written ({error}). Free some space or choose another "
            "folder; earlier checkpoints are untouched."
        ) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def load(folder: str | os.PathLike[str], *, device: str | torch.device = "cpu") -> Model:
    """The model of a checkpoint folder (or of a run's best checkpoint), in evaluation mode.

    Args:
        folder: a checkpoint folder, or a run folder with `best` or `last` in it.
        device: where the weights go.

    Returns:
        The model; `model.config` is its configuration, `model.vocabulary` its class names or None,
        `model.provenance` how the features were made that it was trained on, or None.

    Raises:
        CheckpointError: the folder is not a checkpoint, incomplete, damaged, or its tensors do not fit.
    """
    place = resolve(Path(folder))
    config = read_config(place)
    with torch.device("meta"):
        model = build_model(config)
    tensors = read_tensors(place / "model.safetensors")
    _check_fit(place / "model.safetensors", model, tensors)
    # Copies, since the file may change. Not to_empty: torch imports sympy for it, half a second.
    copies = {name: tensor.to(device, copy=True) for name, tensor in tensors.items()}
    model.load_state_dict(copies, assign=True)
    model.vocabulary = read_vocabulary(place, config.num_classes)
    model.provenance = read_provenance(place)
    return model.eval()


def resolve(folder: Path) -> Path:
    """The checkpoint folder meant by `folder`: itself, or a run's `best`, else `last`."""
    for candidate in (folder, folder / "best", folder / "last"):
        if (candidate / "model.safetensors").is_file():
            return candidate
    if not folder.exists():
        raise CheckpointError(f"{folder}: no such folder; wanted a checkpoint folder or a run folder.")
    found = ", ".join(sorted(path.name for path in folder.iterdir())[:6]) if folder.is_dir() else "a file"
    raise CheckpointError(
        f"{folder}: not a checkpoint (found {found or 'an empty folder'}); wanted a folder with config.json "
        "and model.safetensors, or a run folder with best or last in it. `nextvlad import` makes one of a "
        "checkpoint of Paddle or TensorFlow."
    )


def read_config(folder: Path) -> ModelConfig:
    """The model configuration of a checkpoint folder."""
    return model_config_from_json(_read_header(folder)["model"], where=f"{folder / 'config.json'}: model")


def read_train_config(folder: Path) -> TrainConfig | None:
    """How the checkpoint was trained; None if it was not trained here."""
    values = _read_header(folder).get("training")
    if values is None:
        return None
    return train_config_from_json(values, where=f"{folder / 'config.json'}: training")


def read_vocabulary(folder: Path, num_classes: int) -> Vocabulary | None:
    """The class names kept with a checkpoint, if any."""
    path = folder / "vocabulary.csv"
    if not path.is_file():
        return None
    vocabulary = Vocabulary.load(path)
    vocabulary.check_size(num_classes)
    return vocabulary


def read_provenance(folder: Path) -> Provenance | None:
    """How the features were made that the checkpoint was trained on; None: that is not known.

    Raises:
        CheckpointError: features.json is damaged.
    """
    try:
        return Provenance.load(folder / _FEATURES)
    except DataError as error:
        raise CheckpointError(str(error)) from error


def save_thresholds(folder: Path, thresholds: Sequence[float], chosen: Mapping[str, Any]) -> Path:
    """Keeps a threshold a class with a checkpoint, in place of earlier ones; returns the file.

    Training on makes new checkpoints, which have none: thresholds belong to these weights.

    Args:
        folder: the checkpoint folder itself.
        thresholds: C numbers in [0, 1]; a class is set where its probability is not below.
        chosen: how and on what they were chosen, plain JSON values, for people.

    Raises:
        OutputError: the file cannot be written; what was there before is untouched.
    """
    path = folder / "thresholds.json"
    header = {"format": THRESHOLDS_FORMAT, "version": VERSION}
    write_json(path, header | {"chosen": dict(chosen), "thresholds": list(thresholds)})
    return path


def read_thresholds(folder: Path, num_classes: int) -> Tensor | None:
    """[C] float32 thresholds kept with a checkpoint by `save_thresholds`; None if it has none.

    Raises:
        CheckpointError: the file is damaged, or of another number of classes.
    """
    path = folder / "thresholds.json"
    if not path.is_file():
        return None
    again = "Remove it, or make it anew with `nextvlad report --save-thresholds`."
    try:
        found = read_json(path)
    except ConfigError as error:
        raise CheckpointError(f"{error} {again}") from error
    if not isinstance(found, dict) or found.get("format") != THRESHOLDS_FORMAT:
        raise CheckpointError(f"{path}: not a {THRESHOLDS_FORMAT} file. {again}")
    if found.get("version") != VERSION:
        raise CheckpointError(
            f"{path}: version {found.get('version')!r}; this nextvlad reads version {VERSION}. Update it."
        )
    values = found.get("thresholds")
    if not isinstance(values, list) or len(values) != num_classes:
        count = f"{len(values)} thresholds" if isinstance(values, list) else "no list of thresholds"
        raise CheckpointError(f"{path}: {count}, wanted {num_classes}, one a class. {again}")
    for index, value in enumerate(values):
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
            raise CheckpointError(
                f"{path}: threshold {index} is {value!r}, wanted a number in [0, 1]. {again}"
            )
    return torch.tensor(values, dtype=torch.float32)


def read_training_state(folder: Path) -> TrainingState:
    """What `save` kept for resuming; CheckpointError if the checkpoint has none."""
    if not (folder / "training.json").is_file() or not (folder / "training.safetensors").is_file():
        raise CheckpointError(
            f"{folder}: holds no training state, so training cannot resume from it. To start from its "
            "weights, use --init."
        )
    values = read_json(folder / "training.json")
    if not isinstance(values, dict):
        raise CheckpointError(f"{folder / 'training.json'}: not a JSON object; the checkpoint is damaged.")
    for name in ("step", "examples", "evaluated_at", "num_train_examples"):
        if name in values and not isinstance(values[name], int):
            raise CheckpointError(
                f"{folder / 'training.json'}: {name} is {values[name]!r}, wanted a whole number; the "
                "checkpoint is damaged."
            )
    return TrainingState(values=values, tensors=read_tensors(folder / "training.safetensors"))


def read_tensors(path: Path) -> dict[str, Tensor]:
    """A .safetensors file of a checkpoint; CheckpointError if it is damaged."""
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{path}: cannot be read ({error}); the checkpoint is damaged or incomplete."
        ) from error


def load_weights(model: Model, folder: Path) -> None:
    """Puts a checkpoint's weights into a model of the very same configuration."""
    path = folder / "model.safetensors"
    tensors = read_tensors(path)
    _check_fit(path, model, tensors)
    model.load_state_dict(tensors)


def _read_header(folder: Path) -> Mapping[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        raise CheckpointError(f"{path}: missing; the checkpoint is incomplete.")
    header = read_json(path)
    if not isinstance(header, dict) or header.get("format") != FORMAT or "model" not in header:
        raise CheckpointError(f"{path}: not a {FORMAT} (wanted the keys format, version and model).")
    if header.get("version") != VERSION:
        raise CheckpointError(
            f"{path}: version {header.get('version')!r}; this nextvlad reads version {VERSION}. Update it."
        )
    return header


def _check_fit(path: Path, model: Model, tensors: Mapping[str, Tensor]) -> None:
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    problems = [f"{name} is missing" for name in wanted if name not in tensors]
    problems += [f"{name} is not part of this model" for name in tensors if name not in wanted]
    problems += [
        f"{name} has shape {tuple(tensors[name].shape)}, wanted {shape}"
        for name, shape in wanted.items()
        if name in tensors and tuple(tensors[name].shape) != shape
    ]
    problems += [
        f"{name} holds {tensor.dtype}, wanted {torch.float32}"
        for name, tensor in tensors.items()
        if name in wanted and tensor.dtype != torch.float32
    ]
    if problems:
        more = f" (and {len(problems) - 5} more)" if len(problems) > 5 else ""
        raise CheckpointError(f"{path}: does not fit its configuration: {'; '.join(problems[:5])}{more}.")


def _plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def _flush_to_disk(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
