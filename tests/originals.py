"""The originals' golden checkpoints and batches, as our models and batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from nextvlad import checkpoint
from nextvlad.config import NeXtVLADConfig
from nextvlad.data.batch import FrameBatch, Frames
from nextvlad.fine_tuning import initialise
from nextvlad.import_checkpoint import import_checkpoint
from nextvlad.importers.mapping import Imported, from_paddle, from_tensorflow
from nextvlad.importers.paddle_files import read_paddle
from nextvlad.importers.tensorflow_files import is_optimizer_state, read_tensorflow
from nextvlad.models.nextvlad import NeXtVLAD


def build(imported: Imported, **changes: Any) -> NeXtVLAD:
    config: NeXtVLADConfig = replace(imported.config, **changes)
    model = NeXtVLAD(config)
    tensors = {name: torch.from_numpy(np.array(value)) for name, value in imported.tensors.items()}
    left = model.load_state_dict(tensors, strict=False)
    assert not left.unexpected_keys
    assert all(".preprocess." in name for name in left.missing_keys)
    return model


def author_model(golden: Path, eigenvalues: Path, **changes: Any) -> NeXtVLAD:
    arrays = read_tensorflow(golden / "tensorflow" / "checkpoint")
    arrays = {name: value for name, value in arrays.items() if not is_optimizer_state(name)}
    model = build(from_tensorflow(arrays, where="golden"), **changes)
    values = np.load(eigenvalues).ravel()[:1024].astype(np.float64)
    model.branches["rgb"].preprocess.undo_whitening(np.sqrt(values) + 1e-4)
    return model


def paddle_model(golden: Path, **changes: Any) -> NeXtVLAD:
    tensors = read_paddle(golden / "paddle" / "v1.5_train_dir").tensors
    model = build(from_paddle(tensors, where="golden"), **changes)
    model.branches["rgb"].preprocess.undo_whitening(tensors["eigen_param"])
    return model


def fine_tuned_from(source: Path, folder: Path, eigenvalues: Path | None = None, **changes: Any) -> NeXtVLAD:
    """An original's checkpoint, imported, and a fresh model started from it as `train --init` does."""
    import_checkpoint(source, folder / "imported", eigenvalues=eigenvalues)
    config = checkpoint.read_config(folder / "imported")
    assert isinstance(config, NeXtVLADConfig)
    model = NeXtVLAD(replace(config, **changes))
    report = initialise(model, folder / "imported", None)
    assert not report.fresh
    assert not report.skipped
    return model


def pack(videos: Sequence[dict[str, NDArray[np.uint8]]], labels: NDArray[np.bool_]) -> FrameBatch:
    """Videos as stream -> [T, D] uint8, labels [B, C] -> a batch."""
    streams = {}
    for name in ("rgb", "audio"):
        parts = [video[name] for video in videos]
        offsets = np.concatenate([[0], np.cumsum([len(part) for part in parts])])
        streams[name] = Frames(torch.from_numpy(np.concatenate(parts)), torch.from_numpy(offsets))
    return FrameBatch([f"v{i}" for i in range(len(videos))], torch.from_numpy(labels), streams)


def author_batch(golden: Path) -> FrameBatch:
    z = np.load(golden / "tensorflow" / "forward.npz")
    videos = [
        {"rgb": frames[:count, :1024], "audio": frames[:count, 1024:]}
        for frames, count in zip(z["frames_uint8"], z["num_frames"], strict=True)
    ]
    return pack(videos, z["labels"])


def paddle_batch(golden: Path, ids: Sequence[int] = range(12)) -> FrameBatch:
    z = np.load(golden / "paddle" / "forward.npz")
    videos = [{"rgb": z[f"rgb_{i}"], "audio": z[f"audio_{i}"]} for i in ids]
    return pack(videos, z["labels"][list(ids)] > 0)
