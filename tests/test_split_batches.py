"""Batches that are too large for the memory: their halves give what is wanted, and nothing is lost."""

from __future__ import annotations

import errno
import gc
import json
import os
import subprocess
import sys
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from makers import SIZES, free_port, make_data, make_record
from nextvlad import checkpoint, optim
from nextvlad.cli import main
from nextvlad.config import NeXtVLADConfig, StreamConfig
from nextvlad.config_json import to_json
from nextvlad.data.batch import FrameBatch, collate
from nextvlad.data.loader import FrameLoader
from nextvlad.errors import DataError, is_out_of_memory
from nextvlad.evaluate import evaluate
from nextvlad.models import build_model
from nextvlad.models.baselines import AsItIs
from nextvlad.models.folded import FoldedNeXtVLAD
from nextvlad.models.nextvlad import NeXtVLAD
from nextvlad.run_config import DataConfig, InferenceOptions, OptimConfig, TrainConfig
from nextvlad.split_batches import Halver
from nextvlad.train import train

STREAMS = tuple(StreamConfig(name=name, size=size) for name, size in SIZES.items())
NO_MEMORY = (
    "[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate memory: you tried"
)


def batch_of(num_videos: int) -> FrameBatch:
    return collate([make_record(number, 5) for number in range(num_videos)], streams=STREAMS, num_classes=5)


def names_up_to(most: int) -> Callable[[FrameBatch], list[str]]:
    """Work that memory does for up to so many videos."""

    def work(batch: FrameBatch) -> list[str]:
        if batch.num_videos > most:
            raise RuntimeError(NO_MEMORY)
        return batch.video_ids

    return work


@pytest.mark.parametrize(
    ("error", "is_one"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"), True),
        (RuntimeError(NO_MEMORY), True),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), True),
        (OSError(errno.ENOSPC, "No space left on device"), False),
        (RuntimeError("shape mismatch"), False),
        (ValueError("DefaultCPUAllocator: can't allocate memory"), False),
    ],
)
def test_what_counts_as_out_of_memory(error: Exception, is_one: bool) -> None:
    assert is_out_of_memory(error) == is_one


def test_what_the_allocator_really_raises_counts() -> None:
    with pytest.raises((RuntimeError, MemoryError)) as caught:
        torch.empty(1 << 59, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)


@pytest.mark.parametrize(("num_videos", "most", "parts"), [(7, 7, 1), (7, 4, 2), (2, 1, 2)])
def test_every_video_comes_once_in_order(num_videos: int, most: int, parts: int) -> None:
    batch = batch_of(num_videos)
    halver = Halver("--batch-size")
    found = halver.run(names_up_to(most), batch)
    assert len(found) == parts
    assert [name for part in found for name in part] == batch.video_ids
    assert halver.num_split == parts - 1


@pytest.mark.parametrize(
    ("num_videos", "most", "message"),
    [
        (8, 3, r"step 9: out of memory on 4 videos of 1\d frames too, the half of a batch. Use a smaller "
               r"--batch-size"),
        (1, 0, r"step 9: out of memory on 1 video of \d frames, which is all of the batch."),
    ],
)  # fmt: skip
def test_a_half_is_not_split_again(num_videos: int, most: int, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Halver("--batch-size").run(names_up_to(most), batch_of(num_videos), where="step 9: ")


def test_other_errors_pass() -> None:
    def fail(batch: FrameBatch) -> None:
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        Halver("--batch-size").run(fail, batch_of(4))


def test_the_failed_attempt_is_gone_before_the_next() -> None:
    """Also where its tensors hold each other in a circle, as a graph with a hook may."""
    made: list[weakref.ref[Tensor]] = []

    def work(batch: FrameBatch) -> None:
        assert all(tensor() is None for tensor in made)
        tensor = torch.zeros(batch.num_videos)
        tensor.itself = tensor  # type: ignore[attr-defined]
        made.append(weakref.ref(tensor))
        if batch.num_videos > 2:
            raise MemoryError

    gc.disable()
    try:
        Halver("--batch-size").run(work, batch_of(4))
    finally:
        gc.enable()
    assert len(made) == 3


def test_few_lines_and_a_total(capfd: Any) -> None:
    halver = Halver("--batch-size", consequence=" So it is.")
    for _ in range(5):
        halver.run(names_up_to(3), batch_of(6))
    assert (halver.num_recent(), halver.num_recent()) == (5, 0)
    halver.tell_total()
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 4
    assert lines[0].startswith("Out of memory on 6 videos of ")
    assert lines[0].endswith(": done in two halves. So it is. A smaller --batch-size avoids it.")
    assert lines[-1].startswith("5 batches were split in halves for want of memory.")


# Training.


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("data")
    return {
        "train": make_data(folder, "train", num_videos=64, num_shards=2),
        "valid": make_data(folder, "valid", num_videos=31, first=1000),
    }


def config(paths: dict[str, str], **changes: Any) -> TrainConfig:
    base = TrainConfig(
        model=NeXtVLADConfig(
            streams=STREAMS,
            num_classes=5,
            clusters=4,
            groups=2,
            hidden_size=16,
            gating_reduction=4,
            batch_norm_weight=0.1,
        ),
        data=DataConfig(train=(paths["train"],), batch_size=16, shuffle_buffer=20, workers=0),
        optim=OptimConfig(lr=5e-3, mixup=0.3),
        epochs=1,
        log_every=1,
        threads=1,
    )
    return replace(base, **changes)


def memory_for(most: int, monkeypatch: pytest.MonkeyPatch, *, fails: str) -> None:
    """From now on passes of training on more videos fail: before anything, after forward, or in backward."""
    loss_of = NeXtVLAD.loss

    def fail(*nothing: Any) -> None:
        raise RuntimeError(NO_MEMORY)

    def loss(self: NeXtVLAD, batch: FrameBatch, labels: Tensor, *, mixup: Any = None) -> Tensor:
        too_large = batch.num_videos > most
        if too_large and fails == "before":
            fail()
        result = loss_of(self, batch, labels, mixup=mixup)
        if too_large and fails == "after":
            fail()
        if too_large and fails == "backward":
            # Reached when the layers behind have their gradients already.
            hooks = [
                self.branches["rgb"].expansion.weight.register_hook(lambda _: [hooks[0].remove(), fail()])
            ]
        return result

    monkeypatch.setattr(NeXtVLAD, "loss", loss)


def rows(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_a_split_step_is_the_sum_of_its_halves(
    data: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = config(data, optim=OptimConfig(lr=5e-3), steps=1)
    base = replace(base, model=replace(base.model, dropout=0.0))
    model, (batch, *_) = first_weights_and_batches(base)
    optimizer = optim.make_optimizer(model, base.optim)
    for half in batch.split(2):
        (model.loss(half, half.labels.float()) / 16).backward()  # type: ignore[no-untyped-call]
    optim.prepare_step(optimizer, base.optim, step=1, lr=base.optim.lr)
    optim.add_l2_gradient(model.class_layers().values(), base.optim.l2)
    optim.clip_gradients(model.parameters(), base.optim)
    optimizer.step()

    memory_for(8, monkeypatch, fails="after")
    train(base, tmp_path / "run")
    trained = checkpoint.load(tmp_path / "run").state_dict()
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(trained[name], tensor, rtol=1e-5, atol=1e-7, msg=name)
    (row,) = rows(tmp_path / "run")
    assert (row["step"], row["examples"], row["split_batches"]) == (1, 16, 1)


def first_weights_and_batches(base: TrainConfig) -> tuple[NeXtVLAD, list[FrameBatch]]:
    """What a run of this configuration begins with."""
    torch.manual_seed(base.seed)
    model = build_model(base.model)
    assert isinstance(model, NeXtVLAD)
    loader = FrameLoader(
        base.data.train,
        streams=STREAMS,
        num_classes=5,
        batch_size=16,
        shuffle=True,
        shuffle_buffer=base.data.shuffle_buffer,
        seed=base.seed,
    )
    return model, list(loader)


def test_where_memory_ran_out_changes_nothing(data: dict[str, str], tmp_path: Path) -> None:
    """Running statistics, dropout, mixup and gradients start anew: the same bits however far it came."""
    trained = {}
    for fails in ("before", "after", "backward"):
        with pytest.MonkeyPatch.context() as monkeypatch:
            memory_for(8, monkeypatch, fails=fails)
            train(config(data, steps=2), tmp_path / fails)
        trained[fails] = checkpoint.load(tmp_path / fails).state_dict()
        assert [row["split_batches"] for row in rows(tmp_path / fails)] == [1, 1]
    for name, tensor in trained["before"].items():
        assert torch.equal(tensor, trained["after"][name]), name
        assert torch.equal(tensor, trained["backward"][name]), name


def test_training_ends_where_halves_do_not_do(
    data: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory_for(7, monkeypatch, fails="backward")
    with pytest.raises(DataError, match=r"step 1: out of memory on 8 videos .* smaller --data.batch-size"):
        train(config(data), tmp_path / "run")


TWO_PROCESSES = """
import json, os, sys
from pathlib import Path
from nextvlad import cli, commands
from nextvlad.config_json import train_config_from_json
from nextvlad.models.nextvlad import NeXtVLAD
from nextvlad.train import train
aggregate = NeXtVLAD.aggregate
calls = 0
def fail(self, *given):
    global calls
    calls += 1
    if os.environ["RANK"] == "1" and calls == 2:
        raise MemoryError
    return aggregate(self, *given)
NeXtVLAD.aggregate = fail
def run(arguments):
    train(train_config_from_json(json.loads(arguments[0]), where="test"), Path(arguments[1]))
    return 0
commands.VERBS["train"] = run
cli.main(["train", *sys.argv[1:]])
"""


def test_one_of_several_processes_out_of_memory_ends_them_all(data: dict[str, str], tmp_path: Path) -> None:
    environment = dict(
        os.environ, MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free_port()), WORLD_SIZE="2", OMP_NUM_THREADS="1"
    )
    arguments = [
        sys.executable,
        "-c",
        TWO_PROCESSES,
        json.dumps(to_json(config(data))),
        str(tmp_path / "run"),
    ]
    processes = [
        subprocess.Popen(
            arguments,
            env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        _, errors = processes[1].communicate(timeout=150)
        assert processes[1].returncode == 1
        assert "nextvlad: step 2: out of memory on 8 videos" in errors
        assert "With several processes one of them cannot split its batch" in errors
        processes[0].communicate(timeout=150)  # gloo tells it that its peer is gone
        assert processes[0].returncode != 0
    finally:
        for process in processes:
            process.kill()
            process.communicate()


LITTLE_MEMORY = """
import resource, sys
from pathlib import Path
import nextvlad.train_step as training
from nextvlad.cli import main
remember = training.remember
at_start = []
def kilobytes(name):
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name)]
    return int(line.split()[1])
def with_less_memory(*given):
    # Called when a step begins. The first shows what a step takes; the second gets three quarters of it.
    at_start.append(kilobytes("VmSize:"))
    if len(at_start) == 2:
        limit = at_start[1] + (kilobytes("VmPeak:") - at_start[0]) * 3 // 4
        resource.setrlimit(resource.RLIMIT_AS, (limit * 1024, resource.RLIM_INFINITY))
    return remember(*given)
training.remember = with_less_memory
main(sys.argv[1:])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the address space is limited on Linux alone")
def test_real_memory_runs_out(tmp_path: Path) -> None:
    """Three quarters of what the step before took, about 250 MB."""
    data = make_data(tmp_path, "long", num_videos=192, num_shards=1, make=long_record)
    command = ["train", "small", "--data.train", data, "--out", tmp_path / "run", "--data.batch-size", 96,
               "--data.workers", 0, "--data.shuffle-buffer", 1, "--threads", 1, "--steps", 2,
               "--log-every", 1, "--model.clusters", 64, "--model.groups", 8]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", LITTLE_MEMORY, *map(str, command)],
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "MALLOC_ARENA_MAX": "1",
            "MALLOC_MMAP_THRESHOLD_": "131072",
        },
    )
    assert done.returncode == 0, done.stderr
    assert "Step 2: out of memory on 96 videos of 24,000 frames: done in two halves." in done.stderr
    assert [(row["step"], row["split_batches"]) for row in rows(tmp_path / "run")] == [(1, 0), (2, 1)]


def long_record(number: int, num_classes: int) -> Any:
    record = make_record(number, num_classes, {"rgb": 32})
    frames = record.streams["rgb"]
    record.streams["rgb"] = frames[torch.arange(250).numpy() % len(frames)]
    return record


# Evaluation and prediction.


@pytest.fixture(scope="module")
def run(data: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    train(config(data, data=replace(config(data).data, valid=(data["valid"],))), folder)
    return folder


@pytest.fixture
def memory_for_8(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in (FoldedNeXtVLAD, AsItIs):
        aggregate = kind.aggregate

        def with_little(self: Any, batch: FrameBatch, aggregate: Any = aggregate) -> Any:
            if batch.num_videos > 8:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return aggregate(self, batch)

        monkeypatch.setattr(kind, "aggregate", with_little)


def test_scores_from_halves_are_the_same(
    data: dict[str, str], run: Path, memory_for_8: None, capfd: Any
) -> None:
    whole = evaluate(run, [data["valid"]], InferenceOptions(batch_size=8, workers=0))
    assert "Out of memory" not in capfd.readouterr().err
    halves = evaluate(run, [data["valid"]], InferenceOptions(batch_size=16, workers=0))
    assert halves == pytest.approx(whole, rel=1e-6)
    assert capfd.readouterr().err.count("Out of memory on 1") == 2


@pytest.mark.parametrize("more", [[], ["--segments"]], ids=["videos", "lists of segments"])
def test_predictions_from_halves_are_the_same(
    data: dict[str, str], run: Path, tmp_path: Path, more: list[str], memory_for_8: None, capfd: Any
) -> None:
    for name, batch_size in (("whole", 8), ("halves", 16), ("quarters", 32)):
        arguments = ["predict", run, data["valid"], "--out", tmp_path / f"{name}.csv", "--workers", 0,
                     "--batch-size", batch_size, *more]  # fmt: skip
        with pytest.raises(SystemExit) as left:
            main(list(map(str, arguments)))
        text = capfd.readouterr().err
        assert left.value.code == (name == "quarters"), text
        assert ("Out of memory on 16 videos" in text) == (name == "halves")
        assert "Traceback" not in text
    assert "the half of a batch. Use a smaller --batch-size" in text
    whole, halves = (_words_and_numbers(tmp_path / f"{name}.csv") for name in ("whole", "halves"))
    assert halves[0] == whole[0]
    assert halves[1] == pytest.approx(whole[1], abs=1.5e-6)  # the last digit written may differ


def _words_and_numbers(path: Path) -> tuple[list[str], list[float]]:
    words = path.read_text().replace(",", " ").split()
    scores = [float(word) for word in words if "." in word]
    return [word for word in words if "." not in word], scores


def test_validation_while_training_too(
    data: dict[str, str], tmp_path: Path, memory_for_8: None, capfd: Any
) -> None:
    settings = replace(config(data).data, valid=(data["valid"],), eval_batch_size=16)
    assert train(config(data, data=settings), tmp_path / "run")["num_videos"] == 31
    assert "A smaller --data.eval-batch-size avoids it." in capfd.readouterr().err
