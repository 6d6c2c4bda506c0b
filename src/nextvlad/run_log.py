"""What a run writes down as it goes: metrics.jsonl, and TensorBoard events on request."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from nextvlad import distributed
from nextvlad.config import TrainConfig
from nextvlad.errors import OutputError, UsageError


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
