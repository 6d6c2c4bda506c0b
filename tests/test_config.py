from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nextvlad.config import MeanPoolConfig, MixtureConfig, NeXtVLADConfig, StreamConfig
from nextvlad.config_json import model_config_from_json, read_json, to_json, train_config_from_json
from nextvlad.errors import ConfigError, UsageError
from nextvlad.recipes import RECIPES, find_recipe
from nextvlad.run_config import TrainConfig


@pytest.mark.parametrize("name", list(RECIPES))
def test_recipes_survive_json(name: str) -> None:
    config = RECIPES[name].config
    assert train_config_from_json(json.loads(json.dumps(to_json(config))), where="test") == config
    assert model_config_from_json(to_json(config.model), where="test") == config.model


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"modle": {}}, "unknown key modle"),
        ({"optim": {"learning_rate": 1}}, "unknown key optim.learning_rate"),
        ({"model": {"kind": "nextvlad", "clusterz": 3}}, "clusterz"),
        ({"model": {"kind": "nextvlad", "streams": [{"name": "a", "size": 3, "x": 1}]}}, "streams.0.x"),
        ({"model": {"kind": "lstm"}}, "nextvlad"),
        ({"optim": {"lr": -1}}, "optim.lr: got -1.0, wanted above 0"),
        ({"optim": {"lr": "fast"}}, "optim.lr"),
        ({"epochs": 0}, "epochs: got 0, wanted 1 or more"),
        ({"seed": 2**70}, "seed: got"),
        ({"threads": 10**9}, "threads: got 1000000000, wanted 1024 at most"),
        (7, "dictionary"),
    ],
)
def test_wrong_files_are_refused_by_name(values: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=r"run\.json") as caught:
        train_config_from_json(values, where="run.json")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        (NeXtVLADConfig, {"dropout": 1.0}, "dropout: got 1.0"),
        (NeXtVLADConfig, {"clusters": 10**30}, f"clusters: got {10**30}, wanted 1048576 at most"),
        (MixtureConfig, {"mixing_frames": 10**30}, f"mixing_frames: got {10**30}, wanted 1048576 at most"),
        (NeXtVLADConfig, {"num_classes": 10**30}, f"num_classes: got {10**30}, wanted less than 2"),
        (NeXtVLADConfig, {"hidden_size": 10}, "hidden_size: got 10, wanted a multiple of gating_reduction"),
        (
            NeXtVLADConfig,
            {"streams": (StreamConfig(name="a", size=5),)},
            "groups of stream a: got 8, wanted a divisor",
        ),
        (MeanPoolConfig, {"streams": (StreamConfig(name="a", size=5),) * 2}, "each name once"),
        (StreamConfig, {"name": "a.b", "size": 5}, "stream name"),
        (StreamConfig, {"name": "a", "size": 0}, "size of stream a"),
        (TrainConfig, {"save_every_minutes": 0}, "save_every_minutes"),
    ],
)
def test_wrong_values_are_refused(kind: Any, values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        kind(**values)


def test_streams_as_text() -> None:
    for text in ("rgb:1024", "audio:128:64:4"):
        assert str(StreamConfig.parse(text)) == text
    assert StreamConfig.parse("audio:128:64:") == StreamConfig(name="audio", size=128, clusters=64)
    for text in ("rgb", "rgb:x", "rgb:1:2", "rgb:1:2:3:4", ":3"):
        with pytest.raises(ConfigError):
            StreamConfig.parse(text)


def test_clusters_and_groups_of_a_stream() -> None:
    config = NeXtVLADConfig(
        streams=(StreamConfig.parse("rgb:16"), StreamConfig.parse("audio:8:3:2")), clusters=9
    )
    assert [config.clusters_of(s) for s in config.streams] == [9, 3]
    assert [config.groups_of(s) for s in config.streams] == [8, 2]


def test_find_recipe(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(to_json(RECIPES["small"].config)))
    assert find_recipe(str(path)) == RECIPES["small"].config
    with pytest.raises(UsageError, match="no such recipe; wanted one of yt8m_paper"):
        find_recipe("yt9m")
    path.write_text("{")
    with pytest.raises(ConfigError, match="not valid JSON"):
        find_recipe(str(path))
    with pytest.raises(ConfigError, match="cannot be read"):
        read_json(tmp_path / "nothing.json")


def test_json_nested_too_deep_is_refused(tmp_path: Path) -> None:
    (tmp_path / "deep.json").write_text("[" * 100_000)
    with pytest.raises(ConfigError, match=r"deep\.json: not valid JSON"):
        read_json(tmp_path / "deep.json")
