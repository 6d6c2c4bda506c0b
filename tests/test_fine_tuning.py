from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from nextvlad import checkpoint
from nextvlad.config import StreamConfig
from nextvlad.data.vocabulary import Vocabulary
from nextvlad.errors import CheckpointError
from nextvlad.fine_tuning import initialise
from nextvlad.models import build_model
from test_checkpoint import CONFIG, NAMES, saved


def test_matches_classes_by_name(tmp_path: Path) -> None:
    folder = saved(tmp_path / "c")
    theirs = checkpoint.load(folder)
    names = Vocabulary(("owl", "fox", "cat", "elk"))
    model = build_model(replace(CONFIG, num_classes=4))
    before = model.classifier.weight.detach().clone()
    report = initialise(model, folder, names)
    assert report.classes_matched == 2
    assert not report.fresh
    assert not report.skipped
    torch.testing.assert_close(model.classifier.weight[0], theirs.classifier.weight[2])
    torch.testing.assert_close(model.classifier.weight[2], theirs.classifier.weight[0])
    torch.testing.assert_close(model.classifier.weight[1], before[1])
    torch.testing.assert_close(model.hidden.weight, theirs.hidden.weight)  # type: ignore[union-attr]


def test_where_names_repeat(tmp_path: Path) -> None:
    twins = Vocabulary(("cat", "cat", "owl"))
    folder = saved(tmp_path / "c", vocabulary=twins)
    theirs = checkpoint.load(folder)
    same = build_model(CONFIG)
    assert initialise(same, folder, twins).classes_matched == 3
    torch.testing.assert_close(same.classifier.weight, theirs.classifier.weight)
    other = build_model(CONFIG)
    assert initialise(other, folder, Vocabulary(("owl", "cat", "dog"))).classes_matched == 1
    torch.testing.assert_close(other.classifier.weight[0], theirs.classifier.weight[2])


def test_without_names(tmp_path: Path) -> None:
    folder = saved(tmp_path / "c", vocabulary=None)
    same = initialise(build_model(CONFIG), folder, NAMES)
    assert (same.classes_matched, same.fresh) == (3, [])
    other = initialise(build_model(replace(CONFIG, num_classes=4)), folder, None)
    assert other.fresh == ["classifier.weight", "classifier.bias"]
    assert other.skipped == ["classifier.bias", "classifier.weight"]


def test_from_another_architecture(tmp_path: Path) -> None:
    folder = saved(tmp_path / "c")
    wide = replace(CONFIG, hidden_size=16, streams=(StreamConfig(name="audio", size=4),), num_classes=7)
    with pytest.raises(CheckpointError, match="none of its tensors fits"):
        initialise(build_model(wide), folder, None)


def test_from_weights_that_are_not_as_their_configuration_says(tmp_path: Path) -> None:
    folder = saved(tmp_path / "c", vocabulary=None)
    tensors = load_file(folder / "model.safetensors")
    tensors["classifier.weight"] = tensors["classifier.weight"].repeat(2, 1)[:5].contiguous()
    tensors["classifier.bias"] = torch.tensor(1.0)
    save_file(tensors, folder / "model.safetensors")
    report = initialise(build_model(CONFIG), folder, None)
    assert report.fresh == ["classifier.weight", "classifier.bias"]
