"""The recipe `own`: few videos, any streams, clips without sound, one label each or several."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from makers import make_data, make_record
from nextvlad.config import MixtureConfig
from nextvlad.data.video_record import VideoRecord
from nextvlad.evaluate import evaluate
from nextvlad.recipes import RECIPES
from nextvlad.run_config import InferenceOptions
from nextvlad.train import train

SIZES = {"rgb": 24, "audio": 8}


def without_sound(number: int, num_classes: int, *, every: int) -> VideoRecord:
    """As `make_record`, with one label; `every` so many videos have no sound."""
    record = make_record(number, num_classes, SIZES)
    label = int(record.labels[0])
    numbers = np.random.default_rng(number)
    patterns = np.random.default_rng(5).integers(60, 196, (num_classes, SIZES["rgb"]))
    frames = np.clip(patterns[label] + numbers.integers(-60, 61, (6, SIZES["rgb"])), 0, 255).astype(np.uint8)
    sound = record.streams["audio"][: 0 if number % every == 0 else None]
    return VideoRecord(record.video_id, record.labels[:1], {"rgb": frames, "audio": sound}, {})


@pytest.mark.parametrize(("num_classes", "every"), [(2, 1), (4, 3)], ids=["all silent", "some silent"])
def test_few_videos_are_learnt(num_classes: int, every: int, tmp_path: Path) -> None:
    counts = {"train": 61, "valid": 12, "test": 40}  # 61: a batch of 1 would be left after an epoch
    first = 0
    data = {}
    for split, count in counts.items():
        data[split] = make_data(
            tmp_path / "data",
            split,
            num_videos=count,
            num_classes=num_classes,
            first=first,
            make=without_sound,
            every=every,
        )
        first += count
    recipe = RECIPES["own"].config
    files = replace(recipe.data, train=(data["train"],), valid=(data["valid"],), workers=0)
    train(replace(recipe, data=files, threads=1), tmp_path / "run")
    assert (tmp_path / "run" / "best").exists()
    result = evaluate(tmp_path / "run", [data["test"]], InferenceOptions(workers=0))
    assert result["top1"] is not None
    assert result["top1"] > 0.9


def test_the_recipe_takes_streams_and_classes_from_the_data() -> None:
    model = RECIPES["own"].config.model
    assert isinstance(model, MixtureConfig)
    assert model.streams == ()
    assert model.num_classes == 0
