from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from makers import free_port, make_data, make_record, nextvlad
from nextvlad import checkpoint, optim
from nextvlad.config import NeXtVLADConfig
from nextvlad.config_json import to_json
from nextvlad.data.tfrecord import RecordWriter
from nextvlad.data.video_record import serialize_video_record
from nextvlad.errors import (
    CheckpointError,
    ConfigError,
    NextvladError,
    OutputError,
    TrainingError,
    UsageError,
)
from nextvlad.models import cpu
from nextvlad.run_config import DataConfig, OptimConfig, TrainConfig
from nextvlad.run_log import log_row
from nextvlad.train import train


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("data")
    return {
        "train": make_data(folder, "train", num_videos=90, num_shards=3),
        "valid": make_data(folder, "valid", num_videos=40, first=1000),
    }


def config(data: dict[str, str], **changes: Any) -> TrainConfig:
    base = TrainConfig(
        model=NeXtVLADConfig(clusters=4, groups=2, hidden_size=16, gating_reduction=4, batch_norm_weight=0.1),
        data=DataConfig(
            train=(data["train"],), valid=(data["valid"],), batch_size=16, shuffle_buffer=20, workers=0
        ),
        optim=OptimConfig(lr=5e-3, mixup=0.3, weight_decay=0.01),
        epochs=4,
        log_every=1,
        threads=1,
    )
    return replace(base, **changes)


def rows(run: Path, kind: str) -> list[dict[str, Any]]:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if row["kind"] == kind]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(checkpoint.resolve(folder) / "model.safetensors")


def assert_same(one: Path, other: Path) -> None:
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


def test_learns_and_keeps_what_it_says(data: dict[str, str], tmp_path: Path) -> None:
    result = train(config(data, epochs=12, optim=OptimConfig(lr=5e-3)), tmp_path / "run")
    assert result["hit_at_one"] > 0.9
    assert len(rows(tmp_path / "run", "valid")) == 12
    losses = [row["loss"] for row in rows(tmp_path / "run", "train")]
    assert losses[-1] < losses[0] / 2
    steps = [row["step"] for row in rows(tmp_path / "run", "train")]
    assert steps == list(range(1, 12 * 90 // 16 + 2))
    best = max(rows(tmp_path / "run", "valid"), key=lambda row: row["gap"])
    state = checkpoint.read_training_state(tmp_path / "run" / "best")
    assert state.values["step"] == best["step"]
    assert checkpoint.load(tmp_path / "run").config.num_classes == 5
    assert len(list((tmp_path / "run" / "checkpoints").iterdir())) <= 2


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("stop_at", [3, 11])
def test_resuming_is_bit_identical(data: dict[str, str], tmp_path: Path, workers: int, stop_at: int) -> None:
    whole = config(data, log_every=4)  # a stop falls between two rows
    whole = replace(whole, data=replace(whole.data, workers=workers))
    train(whole, tmp_path / "whole")
    train(replace(whole, steps=stop_at), tmp_path / "parts")
    with (tmp_path / "parts" / "metrics.jsonl").open("a") as log:
        log.write('{"kind": "train", "st')  # as a kill may leave it
    train(whole, tmp_path / "parts", resume=True)
    assert_same(tmp_path / "whole" / "last", tmp_path / "parts" / "last")
    one, other = (
        [*rows(tmp_path / run, "train"), *rows(tmp_path / run, "valid")] for run in ("whole", "parts")
    )
    for row in (*one, *other):
        row.pop("examples_per_second", None)
    assert one == [row for row in other if row["kind"] == "train" or row["step"] != stop_at]


def test_same_seed_same_bits_other_seed_other_bits(data: dict[str, str], tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        train(config(data, epochs=1, seed=seed), tmp_path / name)
    assert_same(tmp_path / "a" / "last", tmp_path / "b" / "last")
    assert not torch.equal(weights(tmp_path / "a")["hidden.weight"], weights(tmp_path / "c")["hidden.weight"])


@pytest.fixture
def half_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half precision also on a CPU that converts for it."""
    monkeypatch.setattr(cpu, "multiplies", lambda half: True)


@pytest.mark.usefixtures("half_precision")
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision(data: dict[str, str], tmp_path: Path, precision: Any) -> None:
    result = train(config(data, precision=precision, epochs=8, optim=OptimConfig(lr=5e-3)), tmp_path / "run")
    assert result["hit_at_one"] > 0.8
    assert weights(tmp_path / "run")["hidden.weight"].dtype == torch.float32


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_resuming_ends_the_same(data: dict[str, str], tmp_path: Path, signum: int) -> None:
    arguments = ["train", "small", "--data.train", data["train"], "--data.workers", "1", "--threads", "1",
                 "--epochs", "60", "--data.batch-size", "16", "--log-every", "1"]  # fmt: skip
    command = [sys.executable, "-m", "nextvlad", *arguments, "--out", str(tmp_path / "run")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    log = tmp_path / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 60
    while not (log.exists() and log.read_text().count("\n") > 5) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signum)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + signum, errors
    assert "--resume" in errors
    assert "Traceback" not in errors
    assert (tmp_path / "run" / "last" / "training.json").is_file()
    assert nextvlad(*arguments, "--out", tmp_path / "run", "--resume").returncode == 0
    assert nextvlad(*arguments, "--out", tmp_path / "whole").returncode == 0
    assert_same(tmp_path / "run", tmp_path / "whole")


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_cpu_that_would_convert_trains_in_float32(
    data: dict[str, str],
    tmp_path: Path,
    precision: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(cpu, "multiplies", lambda half: False)
    train(config(data, steps=3, precision=precision), tmp_path / "half")
    assert f"Computing in fp32: this CPU has no instructions for {precision}." in capsys.readouterr().err
    train(config(data, steps=3), tmp_path / "full")
    one, other = weights(tmp_path / "half"), weights(tmp_path / "full")
    assert all(torch.equal(one[name], other[name]) for name in other)
    monkeypatch.setattr(cpu, "multiplies", lambda half: True)  # moved to a machine that has it
    train(config(data, steps=6, precision=precision), tmp_path / "half", resume=True)


@pytest.mark.usefixtures("half_precision")
def test_resuming_with_loss_scaling_is_bit_identical(data: dict[str, str], tmp_path: Path) -> None:
    """Although the scaler skips the first steps, which Adam does not count."""
    whole = config(data, precision="fp16", epochs=3)
    train(replace(whole, steps=9), tmp_path / "parts")
    state = checkpoint.read_training_state(tmp_path / "parts" / "last")
    assert 0 < state.tensors["step.hidden.weight"] < 9
    train(whole, tmp_path / "parts", resume=True)
    train(whole, tmp_path / "whole")
    assert_same(tmp_path / "whole" / "last", tmp_path / "parts" / "last")


def test_a_fine_tuning_run_resumes_with_the_same_command(data: dict[str, str], tmp_path: Path) -> None:
    first = config(data, epochs=1, model=replace(config(data).model, hidden_size=32))
    train(first, tmp_path / "first")
    tuned = config(data, epochs=2)
    train(tuned, tmp_path / "whole", init=tmp_path / "first")
    train(replace(tuned, steps=4), tmp_path / "parts", init=tmp_path / "first")
    train(tuned, tmp_path / "parts", init=tmp_path / "first", resume=True)
    assert_same(tmp_path / "whole" / "last", tmp_path / "parts" / "last")


def test_resuming_into_another_folder(data: dict[str, str], tmp_path: Path) -> None:
    train(config(data, epochs=1), tmp_path / "run")
    train(config(data, epochs=2), tmp_path / "other", resume_from=tmp_path / "run")
    assert (tmp_path / "other" / "best").exists()
    with pytest.raises(UsageError, match="other: holds another run"):
        train(config(data, epochs=3), tmp_path / "other", resume_from=tmp_path / "run")


def test_saving_by_the_clock_and_once_a_step(data: dict[str, str], tmp_path: Path, monkeypatch: Any) -> None:
    saved: list[str] = []
    save = checkpoint.save

    def spy(folder: Path, *given: Any, **more: Any) -> None:
        saved.append(folder.name)
        save(folder, *given, **more)

    monkeypatch.setattr(checkpoint, "save", spy)
    train(config(data, epochs=1), tmp_path / "seldom")
    assert saved == ["step-00000006"]
    saved.clear()
    train(config(data, epochs=1, steps=3, save_every_minutes=1e-9), tmp_path / "often")
    assert saved == ["step-00000001", "step-00000002", "step-00000003", "step-00000003-2"]
    assert (tmp_path / "often" / "best").resolve().name == "step-00000003-2"


def test_a_non_finite_gradient_is_not_applied(data: dict[str, str], tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(optim, "clip_gradients", lambda *given: torch.tensor(float("nan")))
    with pytest.raises(TrainingError, match=r"step 1: the norm of the gradient is nan.*v0"):
        train(config(data), tmp_path / "run")
    assert not (tmp_path / "run" / "last").exists()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_a_full_disk_under_the_log() -> None:
    with open("/dev/full", "wb", buffering=0) as log, pytest.raises(OutputError, match="No space left"):
        log_row(log, None, {"kind": "train"})


def test_a_non_finite_loss_names_the_videos(data: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"step \d+: the loss is (nan|inf).*v0"):
        train(config(data, optim=OptimConfig(lr=1e30, clip="none")), tmp_path / "run")


def test_init_reports_and_starts_from_the_weights(data: dict[str, str], tmp_path: Path, capfd: Any) -> None:
    train(config(data, epochs=1), tmp_path / "first")
    small = OptimConfig(lr=1e-12)
    train(config(data, epochs=1, steps=1, optim=small), tmp_path / "second", init=tmp_path / "first")
    text = capfd.readouterr().err
    assert "5 of 5 classes matched" in text
    assert "0 fresh, 0 skipped" in text
    before, after = weights(tmp_path / "first" / "best"), weights(tmp_path / "second" / "last")
    torch.testing.assert_close(before["hidden.weight"], after["hidden.weight"])


def test_init_with_other_classes_says_how_to_keep_the_classifier(
    data: dict[str, str], tmp_path: Path, capfd: Any
) -> None:
    train(config(data, epochs=1, steps=1), tmp_path / "first")
    base = config(data, epochs=1, steps=1)
    other = replace(base, model=replace(base.model, num_classes=7))
    train(other, tmp_path / "second", init=tmp_path / "first")
    text = capfd.readouterr().err
    assert "0 of 7 classes matched" in text
    assert "the checkpoint has 5 classes, this model 7. To keep it: --model.num-classes 5." in text


def test_reverse_whitening_goes_with_the_checkpoint(tmp_path: Path) -> None:
    data = {name: make_data(tmp_path, name, num_videos=20) for name in ("train", "valid")}
    np.save(tmp_path / "eigenvalues.npy", np.linspace(2, 1, 16)[:, None])
    base = config(data, epochs=1)
    train(
        replace(base, data=replace(base.data, eigenvalues=str(tmp_path / "eigenvalues.npy"))),
        tmp_path / "run",
    )
    scale = checkpoint.load(tmp_path / "run").preprocessing("rgb").scale
    torch.testing.assert_close(scale[0], torch.tensor(4 / 255 * (2**0.5 + 1e-4)))
    np.save(tmp_path / "short.npy", np.ones(3))
    with pytest.raises(UsageError, match="3 values; wanted at least 12"):
        train(
            replace(base, data=replace(base.data, eigenvalues=str(tmp_path / "short.npy"))),
            tmp_path / "other",
        )


def test_bad_calls_have_their_message(data: dict[str, str], tmp_path: Path) -> None:
    def refused(kind: type[NextvladError], message: str, base: TrainConfig, **more: Any) -> None:
        with pytest.raises(kind, match=message):
            train(base, tmp_path / "new", **more)

    plain = config(data, epochs=1)
    refused(UsageError, "no training data", replace(plain, data=DataConfig()))
    refused(UsageError, "nowhere", replace(plain, data=DataConfig(train=("nowhere*",))))
    refused(UsageError, "nothing to resume", plain, resume=True)
    train(replace(plain, steps=1), tmp_path / "run")
    with pytest.raises(UsageError, match="holds a run already"):
        train(plain, tmp_path / "run")
    other = replace(plain.model, hidden_size=32)
    with pytest.raises(ConfigError, match="hidden_size: 16 -> 32"):
        train(replace(plain, model=other), tmp_path / "run", resume=True)

    (tmp_path / "names.csv").write_text("index,name\n0,a\n1,b\n")
    named = replace(plain.data, vocabulary=str(tmp_path / "names.csv"))
    refused(
        ConfigError,
        "2 classes, the model has 5",
        replace(plain, model=replace(plain.model, num_classes=5), data=named),
    )
    unlabelled = make_data(tmp_path, "test", num_videos=8, labelled=False)
    refused(
        TrainingError,
        "no labels in the first 8 videos",
        replace(plain, data=replace(plain.data, train=(unlabelled,))),
    )
    refused(
        TrainingError,
        "no labels in the first 8 videos; wanted labelled validation data",
        replace(plain, data=replace(plain.data, valid=(unlabelled,))),
    )
    (tmp_path / "notes.npy").touch()
    refused(
        UsageError,
        r"notes\.npy: cannot be read as a \.npy array",
        replace(plain, data=replace(plain.data, eigenvalues=str(tmp_path / "notes.npy"))),
    )
    state = tmp_path / "run" / "last" / "training.json"
    values = json.loads(state.read_text())
    state.write_text(json.dumps(values | {"positions": values["positions"] * 2}))
    with pytest.raises(ConfigError, match=r"had 2 process\(es\) and now has 1"):
        train(plain, tmp_path / "run", resume=True)
    for change, message in (({"step": "x"}, "step is 'x', wanted a whole number"),):
        state.write_text(json.dumps(values | change))
        with pytest.raises(CheckpointError, match=message):
            train(plain, tmp_path / "run", resume=True)
    state.write_text(json.dumps(values | {"positions": [values["positions"][0] | {"turn": "y"}]}))
    with pytest.raises(ConfigError, match="turn 'y': it is damaged"):
        train(plain, tmp_path / "run", resume=True)
    for device in ("meta", "mps"):
        refused(UsageError, f"device '{device}': .*CPUs and CUDA alone", replace(plain, device=device))


def test_streams_and_classes_come_from_the_data(data: dict[str, str], tmp_path: Path) -> None:
    train(config(data, epochs=1, steps=1), tmp_path / "run")
    model = checkpoint.load(tmp_path / "run").config
    assert {str(stream) for stream in model.streams} == {"rgb:12", "audio:6"}
    assert model.num_classes == 5


def test_a_label_that_would_make_a_billion_classes(tmp_path: Path) -> None:
    record = make_record(0, 5)
    record.labels[0] = 10**9
    with RecordWriter(tmp_path / "x.tfrecord") as writer:
        writer.write(serialize_video_record(record))
    data = {"train": str(tmp_path / "x.tfrecord"), "valid": str(tmp_path / "x.tfrecord")}
    with pytest.raises(TrainingError, match=r"x\.tfrecord: a label 1,000,000,000; as many classes as"):
        train(config(data), tmp_path / "run")


def test_tensorboard(data: dict[str, str], tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    train(config(data, epochs=1, tensorboard=True), tmp_path / "run")
    assert list((tmp_path / "run" / "tensorboard").glob("events*"))


TWO_PROCESSES = """
import json, sys
from pathlib import Path
from nextvlad.config_json import train_config_from_json
from nextvlad.train import train
values, out = json.loads(sys.argv[1]), Path(sys.argv[2])
train(train_config_from_json(values, where="test"), out)
"""


def run_two_processes(base: TrainConfig, out: Path) -> None:
    """One training by two gloo ranks."""
    environment = dict(
        os.environ, MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free_port()), WORLD_SIZE="2", OMP_NUM_THREADS="1"
    )
    arguments = [sys.executable, "-c", TWO_PROCESSES, json.dumps(to_json(base)), str(out)]
    processes = [
        subprocess.Popen(
            arguments,
            env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for process in processes:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
        assert "Warning" not in errors, errors


def test_two_processes_compute_what_one_does(tmp_path: Path) -> None:
    """Two gloo ranks, an uneven share of the data, batch norms over both: one process's numbers.

    Every step holds whole epochs (the shares of the ranks change places between epochs), so that the order
    of the videos cannot matter; in the last step one rank has twice the videos of the other.
    """
    data = {
        "train": make_data(tmp_path, "train", num_videos=30, num_shards=3),
        "valid": make_data(tmp_path, "valid", num_videos=21, num_shards=3, first=500),
    }
    base = config(data, epochs=3, optim=OptimConfig(lr=1e-3))
    base = replace(base, data=replace(base.data, batch_size=60), model=replace(base.model, dropout=0.0))
    train(base, tmp_path / "one")
    run_two_processes(base, tmp_path / "two")
    for one, two in zip(rows(tmp_path / "one", "train"), rows(tmp_path / "two", "train"), strict=True):
        assert two["examples"] == one["examples"]
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-4)
    for one, two in zip(rows(tmp_path / "one", "valid"), rows(tmp_path / "two", "valid"), strict=True):
        assert two["num_videos"] == one["num_videos"] == 21
        for key in ("gap", "hit_at_one", "perr", "map", "loss"):
            assert two[key] == pytest.approx(one[key], rel=1e-3), key
    first, second = weights(tmp_path / "one" / "last"), weights(tmp_path / "two" / "last")
    for name, tensor in first.items():
        torch.testing.assert_close(tensor, second[name], rtol=1e-3, atol=2e-4, msg=name)
