"""How a run goes on as if it had never stopped: what its checkpoints keep for that, and what is checked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nextvlad import checkpoint, distributed, optim
from nextvlad.checkpoint import TrainingState
from nextvlad.config_json import shortened, to_json
from nextvlad.data.device_batches import DeviceBatches
from nextvlad.errors import CheckpointError, ConfigError, UsageError
from nextvlad.progress import say
from nextvlad.run_config import TrainConfig
from nextvlad.train_step import Learner


def place_to_resume(out: Path, *, resume: bool, resume_from: Path | None) -> Path | None:
    """The checkpoint to go on from; None for a new run."""
    if resume_from is not None:
        place = checkpoint.resolve(resume_from).resolve()
        if (out / "last").exists() and not place.is_relative_to(out.resolve()):
            raise UsageError(
                f"{out}: holds another run than that of {resume_from}; going on would overwrite it. Choose "
                "another --out."
            )
        return place
    if resume:
        if not (out / "last").exists():
            raise UsageError(f"{out}: nothing to resume from (no `last` in it). Start without --resume.")
        return (out / "last").resolve()
    if (out / "last").exists():
        raise UsageError(f"{out}: holds a run already. Go on with it (--resume), or choose another --out.")
    return None


def check_same_run(folder: Path, config: TrainConfig) -> None:
    """A resumed run keeps its model; other changes are the user's will, and are told."""
    before = checkpoint.read_train_config(folder)
    if before is None:
        return
    old, new = to_json(before), to_json(config)
    if old["model"] != new["model"]:
        changed = ", ".join(
            f"{key}: {old['model'].get(key)!r} -> {new['model'].get(key)!r}"
            for key in new["model"]
            if old["model"].get(key) != new["model"].get(key)
        )
        raise ConfigError(
            f"{folder}: the model was another one when this run began ({changed}); --resume needs the same."
        )
    for group in ("data", "optim"):
        for key, value in new[group].items():
            before_value = old[group].get(key)
            if before_value != value and distributed.is_main():
                change = f"{shortened(before_value)} -> {shortened(value)}"
                say(f"Changed since the checkpoint: {group}.{key} {change}")


def own_position(folder: Path | None, state: TrainingState) -> dict[str, Any] | None:
    """This rank's place in the data; ConfigError if the run had another number of processes."""
    if folder is None:
        return None
    positions = state.values.get("positions")
    if not isinstance(positions, list):
        raise CheckpointError(f"{folder / 'training.json'}: no place in the data; the checkpoint is damaged.")
    if len(positions) != distributed.world_size():
        raise ConfigError(
            f"{folder}: the run had {len(positions)} process(es) and now has {distributed.world_size()}; the "
            "order of the videos depends on it. Give the same number, or start without --resume."
        )
    position: dict[str, Any] = positions[distributed.rank()]
    return position


def gather_state(learner: Learner, batches: DeviceBatches, counters: dict[str, Any]) -> TrainingState | None:
    """What a checkpoint of the run keeps beside the model, of all ranks; None but on the first.

    Args:
        learner: for its optimiser, its loss scaling and its random numbers.
        batches: for the place in the data.
        counters: other plain JSON values.
    """
    states = distributed.gather_objects(
        (
            batches.position(),
            torch.get_rng_state(),
            learner.random.get_state(),
            _cuda_random_state(learner.device),
        )
    )
    if states is None:
        return None
    tensors = optim.optimizer_tensors(learner.optimizer, learner.model)
    for index, (_, cpu, mixup, cuda) in enumerate(states):
        tensors |= {f"random.cpu.{index}": cpu, f"random.mixup.{index}": mixup}
        if cuda is not None:
            tensors[f"random.cuda.{index}"] = cuda
    own = {
        "scaler": learner.scaler.state_dict(),
        "positions": [position for position, *_ in states],
    }
    return TrainingState(values=counters | own, tensors=tensors)


def restore(learner: Learner, state: TrainingState, *, step: int, where: Path) -> None:
    """Puts this rank's part of `gather_state` back, but for the place in the data.

    Args:
        learner: new, with the weights of the checkpoint.
        state: of the checkpoint.
        step: the last that was taken.
        where: the checkpoint.

    Raises:
        CheckpointError: it does not fit.
    """
    index = distributed.rank()
    try:
        optim.load_optimizer_tensors(learner.optimizer, learner.model, state.tensors, step=step)
        torch.set_rng_state(state.tensors[f"random.cpu.{index}"])
        learner.random.set_state(state.tensors[f"random.mixup.{index}"])
        if f"random.cuda.{index}" in state.tensors and learner.device.type == "cuda":
            torch.cuda.set_rng_state(state.tensors[f"random.cuda.{index}"], learner.device)
        if scaler := state.values["scaler"]:  # empty from where there was none
            learner.scaler.load_state_dict(scaler)
    except (KeyError, RuntimeError) as error:
        raise CheckpointError(f"{where}: its training state does not fit this model ({error}).") from error


def _cuda_random_state(device: torch.device) -> Tensor | None:
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else None
