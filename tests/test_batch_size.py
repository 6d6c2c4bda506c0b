"""`--batch-size auto`: what it comes to with so much memory, and that trying leaves no trace."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from makers import SIZES, make_data
from nextvlad import batch_size, checkpoint, distributed, start, train
from nextvlad.cli import main
from nextvlad.config import NeXtVLADConfig, StreamConfig
from nextvlad.config_json import to_json, train_config_from_json
from nextvlad.data.batch import FrameBatch
from nextvlad.errors import ConfigError
from nextvlad.evaluate import evaluate
from nextvlad.run_config import DataConfig, InferenceOptions, OptimConfig, TrainConfig

MB = 1_000_000
CPU = torch.device("cpu")
STREAMS = tuple(StreamConfig(name=name, size=size) for name, size in SIZES.items())


class Machine:
    """Stands in for memory and clock: each video takes `video` bytes and so many seconds."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, free: int, video: int = 10 * MB) -> None:
        self.peak, self.video, self.tried = 500 * MB, video, list[int]()
        self.seconds: Callable[[int], float] = lambda size: size / 1000
        self.limit = 1 << 60
        monkeypatch.setattr(batch_size, "available_memory", lambda: free)
        monkeypatch.setattr(batch_size, "peak_memory", lambda: self.peak)
        monkeypatch.setattr(batch_size, "_time", self.time)

    def time(self, work: Any, batch: FrameBatch, *, repeat: bool = True) -> float | None:
        size = batch.num_videos
        self.tried.append(size)
        if size > self.limit:
            return None
        # 450 MB are in use beside the batch, and 500 were at some time before.
        self.peak = max(self.peak, 450 * MB + size * self.video)
        return self.seconds(size)


def small(size: int) -> FrameBatch:
    return batch_size.made_up_batch(STREAMS, 5, size, 2)


def for_training(wanted: int, device: torch.device = CPU, *, reserve: int = 0) -> batch_size.Chosen:
    return batch_size.for_training(print, small, device, wanted=wanted, reserve_bytes=reserve)


def test_made_up_videos_are_as_asked_for() -> None:
    batch = batch_size.made_up_batch(STREAMS, 5, 7, 3)
    assert batch.num_videos == 7
    assert batch.streams["rgb"].values.shape == (21, SIZES["rgb"])
    assert batch.streams["audio"].offsets.tolist() == [0, 3, 6, 9, 12, 15, 18, 21]
    assert batch.labels.sum(1).tolist() == [1] * 7
    assert torch.equal(
        batch.streams["rgb"].values, batch_size.made_up_batch(STREAMS, 5, 7, 3).streams["rgb"].values
    )


def test_training_takes_the_recipes_batch_where_it_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch, free=10_000 * MB)
    chosen = for_training(160)
    assert chosen.batch_size == 160
    assert chosen.reason.startswith("the recipe's; about 10.0 MB a video")
    assert max(machine.tried) <= 16  # a few videos show what one takes


@pytest.mark.parametrize(
    ("free", "reserve", "wanted", "size"),
    [(1100, 0, 160, 80), (1000, 500, 160, 20), (550, 0, 160, 40), (1990, 0, 160, 80), (1, 0, 16, 8)],
)
def test_training_takes_a_half_or_a_quarter_where_it_does_not(
    monkeypatch: pytest.MonkeyPatch, free: int, reserve: int, wanted: int, size: int
) -> None:
    machine = Machine(monkeypatch, free=free * MB)
    chosen = for_training(wanted, reserve=reserve * MB)
    assert chosen.batch_size == size
    assert f"instead of the recipe's {wanted}" in chosen.reason
    assert max(machine.tried) <= 16  # the first tries are small ones, whatever memory there is


def test_training_of_small_videos_is_not_measured_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    Machine(monkeypatch, free=10_000 * MB, video=1000)
    assert for_training(160).batch_size == 160


def test_running_out_in_a_try(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch, free=10_000 * MB, video=1000)
    machine.limit = 50
    chosen = for_training(160)
    assert chosen.batch_size == 20  # 64 was too much, and 160's halves are 80, 40, 20
    assert "memory did not do for 64" in chosen.reason


def test_a_gpu_is_tried_from_the_recipes_batch_down(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch, free=10_000 * MB)
    machine.limit = 50
    monkeypatch.setattr(torch, "empty", lambda *shape, **how: None)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    assert for_training(160, torch.device("cuda")).batch_size == 40
    assert machine.tried == [160, 80, 40]


def for_inference(device: torch.device = CPU) -> batch_size.Chosen:
    return batch_size.for_inference(print, small, device, workers=1)


def test_inference_stops_where_larger_is_no_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch, free=100_000 * MB)
    machine.seconds = lambda size: 0.01 + size / 10_000  # a fixed cost, which 256 make small
    chosen = for_inference()
    assert chosen.batch_size == 2048
    assert machine.tried == [16, 32, 64, 128, 256, 512, 1024, 2048, 4096]
    machine.tried.clear()
    machine.seconds = lambda size: size**0.7 / 50
    assert for_inference().batch_size == 128
    assert machine.tried == [16, 32, 64, 128]  # beyond half a second there is nothing to gain
    machine.seconds = lambda size: size / 1000 * (1 + size / 100)
    assert for_inference() == batch_size.Chosen(16, "862 videos/s in a try; 64 were no faster")


def test_inference_stops_before_memory_does(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch, free=1000 * MB)
    machine.seconds = lambda size: 0.01 + size / 100_000
    assert for_inference().batch_size == 64
    assert machine.tried == [16, 32, 64]


def test_inference_backs_off_where_a_gpu_runs_out(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch, free=10_000 * MB)
    machine.seconds = lambda size: 0.01 + size / 100_000
    machine.limit = 100
    chosen = for_inference(torch.device("cuda"))
    assert (chosen.batch_size, machine.tried) == (64, [16, 32, 64, 128])
    assert chosen.reason.endswith("memory did not do for 128")
    machine.limit = 10
    assert for_inference(torch.device("cuda")).batch_size == 1


def test_a_try_that_runs_out_of_memory_is_no_error() -> None:
    def fail(batch: FrameBatch) -> None:
        raise MemoryError

    assert batch_size._time(fail, small(1)) is None
    with pytest.raises(ZeroDivisionError):
        batch_size._time(lambda _: 1 / 0, small(1))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_data(tmp_path_factory.mktemp("data"), "train", num_videos=60, num_shards=2)


def test_the_longest_of_the_first_videos(data: str) -> None:
    assert batch_size.longest_video([data], STREAMS, 300) == 7
    assert batch_size.longest_video([data], STREAMS, 3) == 3


def config(data: str, size: Any, **changes: Any) -> TrainConfig:
    base = TrainConfig(
        model=NeXtVLADConfig(clusters=4, groups=2, hidden_size=16, gating_reduction=4),
        data=DataConfig(train=(data,), batch_size=size, workers=0),
        optim=OptimConfig(mixup=0.3),
        epochs=2,
        threads=1,
    )
    return replace(base, **changes)


def test_trying_leaves_no_trace_and_the_run_goes_on_as_it_began(
    data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    train.train(config(data, 20), tmp_path / "given")
    train.train(config(data, "auto", steps=3), tmp_path / "auto", largest_batch=20)
    assert "Batch size 20, videos of 7 frames: the recipe's; about " in capfd.readouterr().err
    for name in ("config.json", "last/config.json"):
        values = json.loads((tmp_path / "auto" / name).read_text())
        assert values.get("training", values)["data"]["batch_size"] == 20

    monkeypatch.setattr(start.batch_size, "for_training", None)  # is not asked again
    train.train(config(data, "auto"), tmp_path / "auto", resume=True, largest_batch=40)
    assert "Changed since" not in capfd.readouterr().err
    given, auto = (checkpoint.load(tmp_path / name / "last").state_dict() for name in ("given", "auto"))
    for name, tensor in given.items():
        assert torch.equal(tensor, auto[name]), name


def test_several_processes_need_a_number(data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "is_distributed", lambda: True)
    with pytest.raises(ConfigError, match="auto is for one process"):
        start.find_train_batch_size(config(data, "auto"), print, None, None, 1)  # type: ignore[arg-type]


def test_from_the_command_line(data: str, tmp_path: Path, capfd: Any) -> None:
    def call(*arguments: object) -> tuple[int, str]:
        with pytest.raises(SystemExit) as left:
            main([str(argument) for argument in arguments])
        return int(left.value.code or 0), "".join(capfd.readouterr())

    plain = ["train", "small", "--data.train", data, "--data.workers", 0, "--threads", 1, "--steps", 1]
    status, text = call(*plain, "--out", tmp_path / "run", "--batch-size", "auto")
    assert status == 0, text
    assert "Batch size 16, videos of 7 frames: the recipe's" in text
    assert call(*plain, "--out", tmp_path / "other", "--batch-size", 0)[0] == 2
    assert call(*plain, "--out", tmp_path / "other", "--data.batch-size", "most")[0] == 2
    status, text = call("evaluate", tmp_path / "run", data, "--workers", 0, "--batch-size", "auto")
    assert status == 0, text
    assert "videos/s in a try" in text


def test_scores_are_those_of_any_batch_size(data: str, tmp_path: Path) -> None:
    train.train(config(data, 20), tmp_path / "run")
    auto, given = (
        evaluate(tmp_path / "run", [data], InferenceOptions(batch_size=size, workers=0))
        for size in ("auto", 7)
    )
    assert auto == pytest.approx(given, rel=1e-6)


@pytest.mark.parametrize("size", ["Auto", 0, -1, None, 1.5])
def test_files_hold_a_number_or_auto(size: Any) -> None:
    values = to_json(TrainConfig())
    for good in ("auto", 7):
        values["data"]["batch_size"] = good
        assert train_config_from_json(values, where="x").data.batch_size == good
    values["data"]["batch_size"] = size
    with pytest.raises(ConfigError, match="batch_size"):
        train_config_from_json(values, where="x")
