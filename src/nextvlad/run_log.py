"""What a run tells: its settings when it begins, metrics.jsonl as it goes, TensorBoard events on request."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import torch

from nextvlad import distributed
from nextvlad.config import Precision
from nextvlad.config_json import shortened, to_json
from nextvlad.errors import OutputError, UsageError
from nextvlad.inference import without_instructions
from nextvlad.models import Model, count_parameters
from nextvlad.progress import counted, say
from nextvlad.run_config import TrainConfig


def describe_run(
    config: TrainConfig, model: Model, *, num_examples: int, unit: str, precision: Precision, begins: bool
) -> None:
    """What the terminal shows first.

    Args:
        config: settled.
        model: on its device.
        num_examples: of the training data, counted in `unit`: "videos", "segments".
        unit: as a plural.
        precision: that is computed in.
        begins: the run does, rather than go on.
    """
    values = to_json(config)
    groups = [(key, values.pop(key)) for key in ("model", "data", "optim")]
    for title, group in [*groups, ("run", values)]:
        if title == "model":
            group["streams"] = " ".join(str(stream) for stream in config.model.streams)
        say(f"{title:6s} " + "  ".join(f"{key}={shortened(value)}" for key, value in group.items()))
    say(
        f"{count_parameters(model):,} parameters; {num_examples:,} training {unit}; "
        f"{model.device}, {counted(torch.get_num_threads(), 'thread')}, "
        f"{distributed.world_size()} process{'' if distributed.world_size() == 1 else 'es'}"
    )
    if precision != config.precision:
        say(without_instructions(precision, config.precision, model.device))
    rgb_raw = any(
        stream.name == "rgb" and stream.size == 1024 and model.preprocessing("rgb").is_plain
        for stream in config.model.streams
    )
    if rgb_raw and begins:
        say(
            "Note: rgb is used as stored. The originals undo YouTube-8M's PCA whitening first; to do "
            "the same, pass --data.eigenvalues eigenvals.npy (from YouTube-8M's yt8m_pca archive)."
        )


@contextmanager
def open_log(path: Path, step: int) -> Iterator[IO[bytes] | None]:
    """metrics.jsonl, cut back to what was known at `step`; unbuffered, so that a full disk is met once."""
    if not distributed.is_main():
        yield None
        return
    aside = path.with_name(f".{path.name}.incomplete")
    try:
        lines = path.read_bytes().splitlines(keepends=True) if step and path.exists() else []
        aside.write_bytes(b"".join(line for line in lines if _is_row_up_to(line, step)))
        aside.replace(path)
        log = path.open("ab", buffering=0)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror or error}).") from error
    with log:
        yield log


def _is_row_up_to(line: bytes, step: int) -> bool:
    """Whether a line of metrics.jsonl is a whole row of `step` or before; a kill may have cut the last."""
    try:
        return bool(json.loads(line)["step"] <= step) and line.endswith(b"\n")
    except (ValueError, TypeError, KeyError):
        return False


@contextmanager
def tensorboard(config: TrainConfig, out: Path) -> Iterator[Any]:
    """A TensorBoard writer, where one was asked for."""
    if not config.tensorboard or not distributed.is_main():
        yield None
        return
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise UsageError("--tensorboard needs tensorboard: pip install 'nextvlad[board]'.") from error
    writer = SummaryWriter(str(out / "tensorboard"))
    try:
        yield writer
    finally:
        writer.close()


def log_row(log: IO[bytes] | None, board: Any, row: dict[str, Any]) -> None:
    """One row into metrics.jsonl, and its numbers to TensorBoard."""
    if log is not None:
        try:
            log.write(json.dumps(row).encode() + b"\n")
        except OSError as error:
            raise OutputError(
                f"{log.name}: cannot be written ({error.strerror or error}). Free some space, then --resume."
            ) from error
    if board is not None:
        for key, value in row.items():
            if isinstance(value, float):
                board.add_scalar(f"{row['kind']}/{key}", value, row["step"])
