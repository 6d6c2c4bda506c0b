from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from makers import free_port, make_data
from nextvlad import checkpoint, metrics
from nextvlad.config import NeXtVLADConfig, StreamConfig
from nextvlad.data.batch import collate
from nextvlad.data.sources import read
from nextvlad.data.tfrecord import RecordWriter
from nextvlad.data.video_record import VideoRecord, serialize_video_record
from nextvlad.errors import DataError, OutputError, UsageError
from nextvlad.evaluate import evaluate
from nextvlad.models import build_model
from nextvlad.run_config import InferenceOptions
from originals import paddle_batch, paddle_model

CLASSES = 24
HERE = InferenceOptions(workers=0)
KEYS = {"num_videos", "gap", "hit_at_one", "perr", "map", "loss", "top1", "top5"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """model/: an untrained model of 24 classes; test-*.tfrecord: 41 videos in three shards."""
    folder = tmp_path_factory.mktemp("evaluate")
    streams = (StreamConfig(name="rgb", size=12), StreamConfig(name="audio", size=6))
    torch.manual_seed(0)
    model = build_model(NeXtVLADConfig(streams=streams, num_classes=CLASSES, clusters=4, groups=2,
                                       hidden_size=16, gating_reduction=4))  # fmt: skip
    torch.nn.init.normal_(model.classifier.weight)
    checkpoint.save(folder / "model", model)
    make_data(folder, "test", num_videos=41, num_shards=3, num_classes=CLASSES)
    return folder


@pytest.fixture(scope="module")
def scored(folder: Path) -> tuple[Any, Any]:
    """Probabilities and labels of the 41 videos, the long way."""
    model = checkpoint.load(folder / "model")
    records = list(read(str(folder / "test-*")))
    batch = collate(records, streams=model.config.streams, num_classes=CLASSES)
    with torch.inference_mode():
        return torch.sigmoid(model(batch).double()).numpy(), batch.labels.numpy()


def run(folder: Path, options: InferenceOptions = HERE, **more: Any) -> dict[str, Any]:
    return evaluate(folder / "model", [str(folder / "test-*")], options, **more)


def test_equals_the_metrics_of_the_predictions(folder: Path, scored: tuple[Any, Any]) -> None:
    probabilities, labels = scored
    result = run(folder)
    assert result.keys() >= KEYS
    assert result["num_videos"] == 41
    assert result["gap"] == pytest.approx(metrics.gap(probabilities, labels), abs=1e-6)
    assert result["hit_at_one"] == pytest.approx(metrics.hit_at_one(probabilities, labels), abs=1e-6)
    assert result["perr"] == pytest.approx(metrics.perr(probabilities, labels), abs=1e-6)
    assert result["map"] == pytest.approx(metrics.mean_average_precision(probabilities, labels), abs=1e-6)
    wrong = np.where(labels, -np.log(probabilities), -np.log1p(-probabilities))
    assert result["loss"] == pytest.approx(wrong.sum(1).mean(), rel=1e-5)
    best = np.argsort(-probabilities, axis=1)
    hits = np.take_along_axis(labels, best, axis=1)
    assert result["top1"] == pytest.approx(hits[:, 0].mean())
    assert result["top5"] == pytest.approx(hits[:, :5].any(1).mean())


@pytest.mark.parametrize(("batch_size", "workers"), [(1, 0), (7, 0), (7, 2), (256, 2)])
def test_batches_and_workers_change_nothing(folder: Path, batch_size: int, workers: int) -> None:
    result, reference = run(folder, InferenceOptions(batch_size=batch_size, workers=workers)), run(folder)
    assert result.keys() == reference.keys()
    for key, value in reference.items():
        assert result[key] == pytest.approx(value, abs=1e-6), key


def test_top_k(folder: Path, scored: tuple[Any, Any], capsys: pytest.CaptureFixture[str]) -> None:
    result = run(folder, top_k=3)
    assert result["gap"] == pytest.approx(metrics.gap(*scored, top_k=3), abs=1e-6)
    assert result["gap"] != pytest.approx(run(folder)["gap"], abs=1e-6)
    text = capsys.readouterr().out
    assert "GAP@3" in text
    assert "GAP@20" in text
    for top_k in (0, 25):
        with pytest.raises(UsageError, match=rf"--top-k: got {top_k}, wanted 1 to 24"):
            run(folder, top_k=top_k)


def test_without_map(folder: Path) -> None:
    assert run(folder, with_map=False) == run(folder) | {"map": None}


def test_the_file_and_the_table_say_what_is_returned(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "deep" / "scores.json"
    result = run(folder, json_file=path)
    assert json.loads(path.read_text()) == result
    assert [file.name for file in path.parent.iterdir()] == ["scores.json"]
    text = capsys.readouterr().out
    assert "41 videos" in text
    for name, key in (("GAP@20", "gap"), ("Hit@1", "hit_at_one"), ("PERR", "perr"), ("mAP", "map")):
        assert re.search(rf"{name}\W+{result[key]:.4f}", text), key


def test_what_cannot_be_scored(folder: Path, tmp_path: Path) -> None:
    unlabelled = make_data(tmp_path, "none", num_videos=5, num_classes=CLASSES, labelled=False)
    with pytest.raises(DataError, match=r"none of the 5 videos has a label.*nextvlad predict"):
        evaluate(folder / "model", [unlabelled], HERE)
    (tmp_path / "empty.tfrecord").touch()
    with pytest.raises(DataError, match=r"empty.tfrecord: no videos in it"):
        evaluate(folder / "model", [str(tmp_path / "empty.tfrecord")], HERE)
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="a file is where a folder should be"):
        run(folder, json_file=tmp_path / "file" / "x.json")
    model = checkpoint.load(folder / "model")
    model.classifier.bias.data[3] = float("inf")
    checkpoint.save(tmp_path / "broken", model)
    with pytest.raises(DataError, match=r"not finite for v0000.*\.\.\.; its weights"):
        evaluate(tmp_path / "broken", [str(folder / "test-*")], HERE)


def test_paddles_model_on_paddles_videos(golden: Path, tmp_path: Path) -> None:
    """From records to metrics, against what PaddleVideo v1.5.1 printed for the same 12 videos."""
    batch = paddle_batch(golden)
    with RecordWriter(tmp_path / "videos.tfrecord") as writer:
        for index, video_id in enumerate(batch.video_ids):
            one = batch[index : index + 1]
            streams = {name: frames.values.numpy() for name, frames in one.streams.items()}
            labels = np.flatnonzero(one.labels[0].numpy())
            writer.write(serialize_video_record(VideoRecord(video_id, labels, streams, {})))
    checkpoint.save(tmp_path / "model", paddle_model(golden).eval())
    result = evaluate(tmp_path / "model", [str(tmp_path / "videos.tfrecord")], replace(HERE, batch_size=4))
    text = (golden / "paddle" / "eval_bs4_expected.txt").read_text()
    expected = {key: float(value) for key, value in re.findall(r"(\w+) ?: ?([\d.]+)", text) if key != "py"}
    assert result["num_videos"] == 12
    assert result["hit_at_one"] == pytest.approx(expected["avg_hit_at_one"], abs=1e-6)
    assert result["perr"] == pytest.approx(expected["avg_perr"], abs=1e-6)
    assert result["gap"] == pytest.approx(expected["gap"], abs=1e-5)
    assert result["loss"] == pytest.approx(expected["avg_loss"], rel=1e-5)


def test_two_processes_give_one_processs_numbers(folder: Path, tmp_path: Path) -> None:
    """As torchrun starts them; three shards for two ranks, so that their shares differ."""
    environment = dict(
        os.environ, WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free_port()), OMP_NUM_THREADS="1"
    )
    command = [sys.executable, "-W", "error", "-m", "nextvlad", "evaluate", str(folder / "model"),
               str(folder / "test-*"), "--workers", "0", "--batch-size", "4"]  # fmt: skip
    processes = [
        subprocess.Popen(
            [*command, "--json", str(tmp_path / "scores.json")],
            env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    outputs = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert "GAP@20" in outputs[0][0]
    assert outputs[1][0] == ""
    result = json.loads((tmp_path / "scores.json").read_text())
    reference = run(folder)
    assert result.keys() == reference.keys()
    for key, value in reference.items():
        assert result[key] == pytest.approx(value, abs=1e-6), key
