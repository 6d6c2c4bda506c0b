from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from nextvlad import checkpoint, run_folder
from nextvlad.checkpoint import TrainingState
from nextvlad.config import ModelConfig, NeXtVLADConfig, StreamConfig
from nextvlad.data.vocabulary import Vocabulary
from nextvlad.errors import CheckpointError, ConfigError, OutputError
from nextvlad.models import build_model
from nextvlad.run_config import TrainConfig

CONFIG = NeXtVLADConfig(
    streams=(StreamConfig(name="rgb", size=8),), num_classes=3, clusters=2, groups=2, hidden_size=8
)
NAMES = Vocabulary(("cat", "dog", "owl"))


def saved(folder: Path, config: ModelConfig = CONFIG, vocabulary: Vocabulary | None = NAMES) -> Path:
    torch.manual_seed(0)
    state = TrainingState(values={"step": 3}, tensors={"moment": torch.ones(2)})
    training = TrainConfig(model=config)
    checkpoint.save(folder, build_model(config), vocabulary=vocabulary, config=training, state=state)
    return folder


def test_round_trip(tmp_path: Path) -> None:
    folder = saved(tmp_path / "run" / "one")
    model = checkpoint.load(folder)
    torch.manual_seed(0)
    fresh = build_model(CONFIG).state_dict()
    assert not model.training
    assert model.config == CONFIG
    assert model.vocabulary == NAMES
    assert all(torch.equal(value, fresh[name]) for name, value in model.state_dict().items())
    state = checkpoint.read_training_state(folder)
    assert state.values == {"step": 3}
    assert torch.equal(state.tensors["moment"], torch.ones(2))
    assert checkpoint.read_train_config(folder) == TrainConfig(model=CONFIG)
    assert [path.name for path in folder.parent.iterdir()] == ["one"]


def test_not_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such folder"):
        checkpoint.load(tmp_path / "nothing")
    (tmp_path / "holiday.jpg").touch()
    with pytest.raises(CheckpointError, match=r"not a checkpoint \(found holiday.jpg\)"):
        checkpoint.load(tmp_path)
    with pytest.raises(CheckpointError, match=r"not a checkpoint.*`nextvlad import` makes one"):
        checkpoint.load(tmp_path / "holiday.jpg")


def test_damage_is_named(tmp_path: Path) -> None:
    def broken(name: str) -> Path:
        shutil.rmtree(tmp_path / "c", ignore_errors=True)
        return saved(tmp_path / "c") / name

    weights = broken("model.safetensors")
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match=r"model\.safetensors: cannot be read"):
        checkpoint.load(tmp_path / "c")

    broken("config.json").unlink()
    with pytest.raises(CheckpointError, match=r"config\.json: missing"):
        checkpoint.load(tmp_path / "c")

    path = broken("config.json")
    header = json.loads(path.read_text())
    for change, message in (
        ({"format": "other"}, "not a nextvlad-checkpoint"),
        ({"version": 2}, "version 2; this nextvlad reads version 1"),
    ):
        path.write_text(json.dumps(header | change))
        with pytest.raises(CheckpointError, match=message):
            checkpoint.load(tmp_path / "c")
    header["model"]["hidden"] = 3
    path.write_text(json.dumps(header))
    with pytest.raises(ConfigError, match=r"unknown key .*hidden"):
        checkpoint.load(tmp_path / "c")

    weights = broken("model.safetensors")
    tensors = load_file(weights)
    tensors["stray"] = tensors.pop("hidden.weight")
    tensors["classifier.bias"] = torch.zeros(9)
    save_file(tensors, weights)
    with pytest.raises(CheckpointError, match="does not fit") as caught:
        checkpoint.load(tmp_path / "c")
    assert "hidden.weight is missing" in str(caught.value)
    assert "stray is not part" in str(caught.value)
    assert "classifier.bias has shape (9,), wanted (3,)" in str(caught.value)

    broken("training.json").unlink()
    with pytest.raises(CheckpointError, match="no training state"):
        checkpoint.read_training_state(tmp_path / "c")

    broken("vocabulary.csv").write_text("index,name\n0,cat\n")
    with pytest.raises(ConfigError):
        checkpoint.load(tmp_path / "c")


def test_a_failed_save_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = saved(tmp_path / "first")

    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "_flush_to_disk", full)
    with pytest.raises(OutputError, match="No space left on device"):
        saved(tmp_path / "second")
    assert [path.name for path in tmp_path.iterdir()] == ["first"]
    assert checkpoint.load(first).config == CONFIG
    with pytest.raises(OutputError, match="exists already"):
        saved(first)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_disk_full_in_earnest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write_to_full_disk(path: Path, value: object) -> None:
        with open("/dev/full", "w") as file:
            json.dump(value, file)

    monkeypatch.setattr(checkpoint, "_write_json", write_to_full_disk)
    with pytest.raises(OutputError, match="could not be written"):
        saved(tmp_path / "c")
    assert not list(tmp_path.iterdir())


def test_weights_of_another_type_are_refused(tmp_path: Path) -> None:
    weights = saved(tmp_path / "c") / "model.safetensors"
    tensors = load_file(weights)
    tensors["hidden.weight"] = tensors["hidden.weight"].half()
    save_file(tensors, weights)
    with pytest.raises(CheckpointError, match=r"hidden\.weight holds torch\.float16, wanted torch\.float32"):
        checkpoint.load(tmp_path / "c")


def test_thresholds_are_kept_with_the_checkpoint_alone(tmp_path: Path) -> None:
    run = tmp_path / "run"
    first = saved(run / "checkpoints" / "step-1")
    assert checkpoint.read_thresholds(first, 3) is None
    values = [0.0, float(torch.tensor(0.1, dtype=torch.float32)), 1.0]
    for kept in ([0.5, 0.5, 0.5], values):  # the later ones replace the earlier
        path = checkpoint.save_thresholds(first, kept, {"data": ["a*"]})
    assert json.loads(path.read_text())["chosen"] == {"data": ["a*"]}
    read = checkpoint.read_thresholds(first, 3)
    assert read is not None
    assert read.dtype == torch.float32
    assert read.tolist() == values  # to the bit
    assert sorted(item.name for item in first.iterdir() if "thresholds" in item.name) == ["thresholds.json"]
    run_folder.point(run / "best", first)
    assert checkpoint.resolve(run) == run / "best"
    assert checkpoint.read_thresholds(run / "best", 3) is not None
    assert checkpoint.read_thresholds(saved(run / "checkpoints" / "step-2"), 3) is None


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("{", "not valid JSON"),
        ("[]", "not a nextvlad-thresholds file"),
        ('{"format": "other"}', "not a nextvlad-thresholds file"),
        ('{"version": 9}', "version 9; this nextvlad reads version 1"),
        ('{"thresholds": null}', "no list of thresholds, wanted 3, one a class"),
        ('{"thresholds": [0.5, 0.5]}', "2 thresholds, wanted 3, one a class"),
        ('{"thresholds": [0.5, NaN, 0.5]}', r"threshold 1 is nan, wanted a number in \[0, 1\]"),
        ('{"thresholds": [0.5, 0.5, 1.5]}', r"threshold 2 is 1\.5, wanted"),
        ('{"thresholds": ["0.5", 0.5, 0.5]}', "threshold 0 is '0.5', wanted"),
        ('{"thresholds": [true, 0.5, 0.5]}', "threshold 0 is True, wanted"),
    ],
)
def test_damaged_thresholds_are_refused(tmp_path: Path, content: str, complaint: str) -> None:
    folder = saved(tmp_path / "one")
    if content.startswith('{"') and "other" not in content:
        content = json.dumps({"format": "nextvlad-thresholds", "version": 1} | json.loads(content))
    (folder / "thresholds.json").write_text(content)
    with pytest.raises(CheckpointError, match=rf"thresholds\.json: {complaint}"):
        checkpoint.read_thresholds(folder, 3)


def test_thresholds_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"thresholds\.json: cannot be written"):
        checkpoint.save_thresholds(tmp_path / "file", [0.5], {})
