"""The folder of a run: its settings, its checkpoints, and the links `last` and `best` to two of them.

    config.json            how it was trained, settled
    metrics.jsonl          a line every so many steps, see `nextvlad.run_log`
    checkpoints/           step-00000150, ...
    last, best             links into checkpoints/

A link is replaced in one step, once the checkpoint is whole: a save that is killed at any moment leaves the
previous one as it was.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from nextvlad import checkpoint
from nextvlad.config_json import to_json
from nextvlad.data.vocabulary import Vocabulary
from nextvlad.errors import OutputError
from nextvlad.files import write_json
from nextvlad.models import Model
from nextvlad.provenance import Provenance
from nextvlad.run_config import TrainConfig

_OURS = re.compile(r"step-\d+(-\d+)?|\.step-.*\.incomplete-\d+")


def begin(run: Path, config: TrainConfig) -> None:
    """Makes the folder, if it is not there, and writes down the settings.

    Raises:
        OutputError: it cannot be made or written.
    """
    try:
        (run / "checkpoints").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"{run}: cannot be made ({error.strerror or error}); choose another --out."
        ) from error
    write_json(run / "config.json", to_json(config))


def add_checkpoint(
    run: Path,
    step: int,
    model: Model,
    *,
    best: bool,
    vocabulary: Vocabulary | None,
    provenance: Provenance | None,
    config: TrainConfig,
    state: checkpoint.TrainingState,
) -> None:
    """Saves a checkpoint of the run; `last` (and `best`) lead to it afterwards, and others are removed.

    Raises:
        OutputError: as `nextvlad.checkpoint.save` and `point`; earlier checkpoints are untouched.
    """
    folder = run / "checkpoints" / f"step-{step:08d}"
    attempt = 1
    while folder.exists():
        attempt += 1
        folder = folder.with_name(f"step-{step:08d}-{attempt}")
    checkpoint.save(folder, model, vocabulary=vocabulary, provenance=provenance, config=config, state=state)
    if best:
        point(run / "best", folder)
    point(run / "last", folder)
    remove_unlinked(run)


def point(link: Path, target: Path) -> None:
    """Makes `link` lead to `target` (its neighbour or below), in one step.

    Raises:
        OutputError: no link can be made there, or something that is no link is in the way.
    """
    temporary = link.with_name(f".{link.name}.new")
    try:
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(os.path.relpath(target, link.parent), target_is_directory=True)
        temporary.replace(link)
    except OSError as error:
        raise OutputError(
            f"{link}: cannot be made a link to {target} ({error.strerror or error}). The checkpoint is "
            "whole; remove what is in the way, or choose a file system that has links."
        ) from error


def remove_unlinked(run: Path) -> None:
    """Deletes the run's checkpoints that neither `last` nor `best` leads to, and what a killed save left.

    What else somebody keeps in that folder stays.
    """
    kept = {(run / name).resolve() for name in ("last", "best")}
    for folder in (run / "checkpoints").iterdir():
        if _OURS.fullmatch(folder.name) and folder.resolve() not in kept:
            shutil.rmtree(folder, ignore_errors=True)
