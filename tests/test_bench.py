from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from makers import SIZES, make_data, nextvlad
from nextvlad import bench as bench_module
from nextvlad import bench_report, checkpoint
from nextvlad.bench import bench
from nextvlad.bench_report import Stage, limits
from nextvlad.config import NeXtVLADConfig, StreamConfig
from nextvlad.config_json import to_json
from nextvlad.data.sources import read
from nextvlad.errors import DataError, UsageError
from nextvlad.models import build_model, cpu
from nextvlad.models.byte_linear import Products
from nextvlad.run_config import TrainConfig

STREAMS = tuple(StreamConfig(name=name, size=size) for name, size in SIZES.items())
MODEL = NeXtVLADConfig(
    streams=STREAMS, num_classes=5, clusters=4, groups=2, hidden_size=8, gating_reduction=4
)
FACTS = {"workers": 1, "threads": 2, "cores": 2, "device": "cpu", "precision": "fp32", "batch_size": 80}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_data(tmp_path_factory.mktemp("data"), "train", num_videos=20)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A small model as a config file."""
    path = tmp_path_factory.mktemp("recipe") / "config.json"
    config = TrainConfig(model=MODEL, threads=1)
    config = replace(config, data=replace(config.data, batch_size=10, shuffle_buffer=8))
    path.write_text(json.dumps(to_json(config)))
    return str(path)


def most_frames(data: str) -> int:
    """Of the stream that has most."""
    return max(sum(len(record.streams[name]) for record in read([data])) for name in SIZES)


@pytest.mark.parametrize("what", ["read", "infer", "train"])
def test_every_stage_is_measured(what: Any, data: str, recipe: str, tmp_path: Path, capfd: Any) -> None:
    before = torch.get_num_threads()
    found = bench(
        what, [data], recipe=recipe, workers=1, seconds=0.02, rounds=2, json_file=tmp_path / "found.json"
    )
    assert torch.get_num_threads() == before
    names = [stage["name"] for stage in found["stages"]]
    assert (
        names
        == {
            "read": ["reading, in this process", "reading, 1 reader process"],
            "infer": ["reading, 1 reader process", "inference, from memory", "both: reading and inference"],
            "train": [
                "reading, 1 reader process",
                "training steps, from memory",
                "both: reading and training",
            ],
        }[what]
    )
    frames = most_frames(data) / 20
    for stage in found["stages"]:
        low, high = stage["videos_quartiles"]
        assert 0 < low <= stage["videos"] <= high
        if what != "train":  # whose batches are not whole passes
            assert stage["frames"] / stage["videos"] == pytest.approx(frames, rel=0.3)
        assert 0 < stage["megabytes"] * 1e6 <= stage["frames"] * sum(SIZES.values())
    assert found["facts"]["batch_size"] == (10 if what == "train" else 256)
    assert json.loads((tmp_path / "found.json").read_text()) == json.loads(json.dumps(found))
    out = capfd.readouterr().out
    assert all(line in out for line in found["verdict"])


def test_reading_counts_what_there_is(data: str) -> None:
    """One video has so many frames and bytes; a rate is all of them over the time."""
    records = list(read([data]))
    frames = most_frames(data)
    size = sum(part.nbytes for record in records for part in record.streams.values())
    (stage,) = bench("read", [data], workers=0, batch_size=20, seconds=0.0, rounds=1)["stages"]
    assert stage["frames"] / stage["videos"] == pytest.approx(frames / 20)
    assert stage["megabytes"] * 1e6 / stage["videos"] == pytest.approx(size / 20)


def test_training_trains_and_writes_nothing(
    data: str, recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: list[Any] = []

    class Spy(bench_module.Run):
        def __init__(self, *given: Any, **more: Any) -> None:
            super().__init__(*given, **more)
            runs.append((self, self.model.state_dict()["hidden.weight"].clone()))

    monkeypatch.setattr(bench_module, "Run", Spy)
    monkeypatch.chdir(tmp_path)
    bench("train", [data], recipe=recipe, batch_size=5, workers=0, seconds=0.0, rounds=2)
    ((run, before),) = runs
    assert run.step == 6  # a step a round, and before, for steps alone and for both
    assert run.batch_size == 5
    assert not torch.equal(run.model.state_dict()["hidden.weight"], before)
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_and_a_recipe_of_other_streams(data: str, tmp_path: Path, capfd: Any) -> None:
    checkpoint.save(tmp_path / "model", build_model(MODEL))
    found = bench("infer", [data], model=tmp_path / "model", workers=0, seconds=0.0, rounds=1)
    assert found["facts"]["parameters"] == sum(p.numel() for p in build_model(MODEL).parameters())
    found = bench("infer", [data], recipe="small", workers=0, seconds=0.0, rounds=1, precision="bf16")
    taken = cpu.settle("bf16", torch.device("cpu"))
    assert found["facts"]["precision"] == taken
    assert ("Computing in fp32: this CPU has no" in capfd.readouterr().err) == (taken == "fp32")
    bench("infer", [data], recipe="audioset_mean_pool", workers=0, seconds=0.0, rounds=1)
    assert "with the streams of the data: rgb:12 audio:6." in capfd.readouterr().err


@pytest.mark.parametrize(
    ("what", "more", "message"),
    [
        ("train", {"model": Path("x")}, "--checkpoint is for `bench infer`"),
        ("infer", {"model": Path("x"), "recipe": "small"}, "wanted one of them"),
        ("train", {"precision": "int8"}, "int8 is for inference"),
        ("infer", {"recipe": "smal"}, "smal: no such recipe"),
        ("read", {"workers": -1}, "--workers: got -1, wanted 0 or more"),
        ("read", {"batch_size": 0}, "--batch-size: got 0, wanted 1 or more"),
        ("read", {"seconds": -1.0}, "--seconds: got -1.0"),
        ("read", {"seconds": float("nan")}, "--seconds: got nan"),
    ],
)
def test_calls_that_are_refused(data: str, what: Any, more: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        bench(what, [data], **more)


def test_one_process_alone(data: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several, each by its own clock, would wait for each other for ever."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match=r"bench runs in one process; start it without torchrun\.$"):
        bench("train", [data])


def stages(reading: float, computing: float, both: float) -> list[Stage]:
    return [
        Stage(name, videos, 0.0, 0.0, (0.0, 0.0), 1)
        for name, videos in (("reading", reading), ("inference", computing), ("both", both))
    ]


def test_data_without_videos_is_refused_and_not_read_for_ever(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "model", build_model(MODEL))
    (tmp_path / "empty.tfrecord").write_bytes(b"")
    with pytest.raises(DataError, match="no record has frames"):
        bench("infer", [str(tmp_path / "empty.tfrecord")], model=tmp_path / "model", seconds=0.02)


def test_what_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_report, "multiplies", lambda half: True)
    first, second, third = limits("infer", stages(900, 100, 80), FACTS)
    assert first == "The slower stage is inference: 100 videos/s. Both together reach 80% of it."
    assert "Computing limits" in second
    assert "--precision bf16" in second
    assert "--threads" not in second
    assert "share 2 processors (2 threads and 1 reader processes)" in third
    assert len(limits("infer", stages(900, 100, 95), FACTS)) == 2
    monkeypatch.setattr(bench_report, "multiplies", lambda half: False)
    monkeypatch.setattr(bench_report, "integer_products", lambda: Products(64, tiles=False))
    for what, better in (("infer", "--precision int8"), ("train", "a GPU")):
        second = limits(what, stages(900, 100, 95), FACTS)[1]
        assert better in second
        assert "bf16" not in second
    _, second = limits("infer", stages(100, 900, 95), FACTS)
    assert second == "Reading limits. More reader processes: --workers 2."
    _, second = limits("infer", stages(100, 900, 95), FACTS | {"workers": 2})
    assert "a process for every processor" in second
    more = {"device": "NVIDIA", "precision": "bf16", "batch_size": 32}
    _, second = limits("train", stages(900, 100, 50), FACTS | more)
    assert (
        second
        == "Computing limits. What may help: a larger --batch-size (another training), more GPUs (torchrun)."
    )


def test_what_limits_reading() -> None:
    one, many = stages(100, 190, 0)[:2]
    facts = {"workers": 2, "cores": 4, "compiled": True}
    assert limits("read", [one, many], facts)[0].endswith("There are 4 processors: try --workers 4.")
    assert "There is a process for every processor." in limits("read", [one, many], facts | {"cores": 2})[0]
    slow = replace(many, videos=90.0)
    assert "more processes will not help" in limits("read", [one, slow], facts)[0]
    slower = limits("read", [one, replace(many, videos=50.0)], facts)[0]
    assert "0.50 times as fast" in slower
    assert slower.endswith("one reader process is enough.")
    assert "C compiler" in limits("read", [one, slow], facts | {"compiled": False})[1]
    assert limits("read", [one], facts) == ["More reader processes may read more: --workers 2."]


def test_the_table_says_yes_or_no(capsys: pytest.CaptureFixture[str]) -> None:
    for compiled, said in ((True, "compiled yes"), (False, "compiled no")):
        bench_report.print_report(stages(1, 1, 1), {"workers": 1, "compiled": compiled}, [])
        assert f"workers 1  {said}" in capsys.readouterr().out


def test_from_the_command_line(data: str, recipe: str, tmp_path: Path) -> None:
    done = nextvlad("bench", "infer", data, "--recipe", recipe, "--seconds", 0.05, "--threads", 1,
                    "--json", tmp_path / "found.json")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "inference, from memory" in done.stdout
    assert json.loads((tmp_path / "found.json").read_text())["stages"][0]["rounds"] == 5
    assert nextvlad("bench", "write", data).returncode == 2
