"""Training, evaluation and prediction on five-second segments, whole."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from makers import make_data, make_rated_data, make_rated_record, nextvlad
from nextvlad import checkpoint, metrics
from nextvlad.config import MeanPoolConfig, NeXtVLADConfig, StreamConfig
from nextvlad.config_json import read_json
from nextvlad.data.batch import collate
from nextvlad.data.segments import all_segments, rated_segments
from nextvlad.data.sources import read
from nextvlad.data.tfrecord import RecordWriter
from nextvlad.data.video_record import serialize_video_record
from nextvlad.errors import ConfigError, DataError, RecordError, TrainingError, UsageError
from nextvlad.evaluate import evaluate
from nextvlad.models import build_model
from nextvlad.predict import predict, read_classes
from nextvlad.predictions import read_predictions
from nextvlad.predictions.segment_files import read_segment_lists, score_segment_file
from nextvlad.recipes import RECIPES
from nextvlad.run_config import DataConfig, InferenceOptions, OptimConfig, TrainConfig
from nextvlad.start import settle
from nextvlad.train import train
from test_train import run_two_processes

CLASSES = 5
STREAMS = (StreamConfig(name="rgb", size=12), StreamConfig(name="audio", size=6))
HERE = InferenceOptions(workers=0)


def untrained(seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return build_model(
        NeXtVLADConfig(
            streams=STREAMS, num_classes=CLASSES, clusters=4, groups=2, hidden_size=16, gating_reduction=4
        )
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """model/: an untrained model; rated-*: 31 videos of four segments, two of them rated for two classes."""
    folder = tmp_path_factory.mktemp("segments")
    checkpoint.save(folder / "model", untrained())
    make_rated_data(folder, "rated", num_videos=31, num_shards=3)
    return folder


@pytest.fixture(scope="module")
def scored(folder: Path) -> dict[str, Any]:
    """Ids, probabilities, labels and ratings of the rated segments, the long way."""
    model = checkpoint.load(folder / "model")
    records = [part for record in read(str(folder / "rated-*")) for part in rated_segments(record)]
    batch = collate(records, streams=STREAMS, num_classes=CLASSES)
    assert batch.rated is not None
    with torch.inference_mode():
        probabilities = torch.sigmoid(model(batch)).numpy()
    return {
        "ids": batch.video_ids,
        "probabilities": probabilities,
        "labels": batch.labels.numpy(),
        "rated": batch.rated.numpy(),
    }


def run(folder: Path, options: InferenceOptions = HERE, **more: Any) -> dict[str, Any]:
    return evaluate(folder / "model", [str(folder / "rated-*")], options, segments=True, **more)


# evaluate


def test_evaluation_counts_what_was_rated(folder: Path, scored: dict[str, Any]) -> None:
    probabilities, labels, rated = scored["probabilities"], scored["labels"], scored["rated"]
    result = run(folder)
    assert result["num_segments"] == result["num_videos"] == 62
    assert result["num_ratings"] == 124
    masked = probabilities * rated
    expected = {
        "segment_map": metrics.segment_map(probabilities, labels, rated),
        "map": metrics.mean_average_precision(masked, labels),
        "gap": metrics.gap(masked, labels, top_k=5),
        "hit_at_one": metrics.hit_at_one(masked, labels),
        "perr": metrics.perr(masked, labels),
    }
    for key, value in expected.items():
        assert result[key] == pytest.approx(float(value), abs=1e-6), key
    wrong = np.where(labels, -np.log(probabilities), -np.log1p(-probabilities))
    assert result["loss"] == pytest.approx((wrong * rated).sum(1).mean(), rel=1e-5)


@pytest.mark.parametrize(("batch_size", "workers"), [(1, 0), (7, 2)])
def test_batches_and_workers_change_nothing(folder: Path, batch_size: int, workers: int) -> None:
    result, reference = run(folder, InferenceOptions(batch_size=batch_size, workers=workers)), run(folder)
    for key, value in reference.items():
        assert result[key] == pytest.approx(value, abs=1e-6), key


def test_the_table_speaks_of_segments(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = run(folder)
    text = capsys.readouterr().out
    assert "62 segments, 124 ratings" in text
    assert f"{result['segment_map']:.4f}" in text
    assert "MAP@100,000" in text
    assert "video" not in text


def test_what_cannot_be_evaluated(folder: Path, tmp_path: Path) -> None:
    whole = make_data(tmp_path, "whole", num_videos=3, num_classes=CLASSES)
    with pytest.raises(DataError, match=r"no rated segments in it; wanted videos with segment_labels"):
        evaluate(folder / "model", [whole], HERE, segments=True)
    record = make_rated_record(0, CLASSES)
    record.context["segment_scores"] = [0.0] * 4

    with RecordWriter(tmp_path / "negative.tfrecord") as writer:
        writer.write(serialize_video_record(record))
    with pytest.raises(DataError, match=r"none of its 2 rated segments is rated positive"):
        evaluate(folder / "model", [str(tmp_path / "negative.tfrecord")], HERE, segments=True)


# predict


def lists_of(path: Path) -> dict[int, list[str]]:
    return {row.label: row.segments for row in read_segment_lists(path)}


@pytest.fixture(scope="module")
def ranking(folder: Path) -> dict[int, list[str]]:
    """Every five seconds of every video, best first, class by class, the long way."""
    model = checkpoint.load(folder / "model")
    records = [part for record in read(str(folder / "rated-*")) for part in all_segments(record)]
    with torch.inference_mode():
        logits = model(collate(records, streams=STREAMS, num_classes=CLASSES)).numpy()
    return {
        label: [records[index].video_id for index in np.argsort(-logits[:, label])]
        for label in range(CLASSES)
    }


@pytest.mark.parametrize(
    ("batch_size", "workers", "most"), [(256, 0, None), (3, 2, 17), (50, 4, None), (7, 0, 17)]
)
def test_lists_of_the_best_segments(
    folder: Path,
    tmp_path: Path,
    ranking: dict[int, list[str]],
    batch_size: int,
    workers: int,
    most: int | None,
) -> None:
    options = InferenceOptions(batch_size=batch_size, workers=workers)
    out = tmp_path / "segments.csv"
    count = predict(
        folder / "model", [str(folder / "rated-*")], options, out=out, segments=True, max_segments=most
    )
    assert count == 31 * 4
    found = lists_of(out)
    assert list(found) == list(range(CLASSES))
    assert found == {label: segments[:most] for label, segments in ranking.items()}


def test_only_the_classes_asked_for(folder: Path, tmp_path: Path, ranking: dict[int, list[str]]) -> None:
    (tmp_path / "classes.csv").write_text("Index\n3\n1\n")
    out = tmp_path / "segments.csv"
    data = [str(folder / "rated-*")]
    predict(folder / "model", data, HERE, out=out, segments=True, classes=tmp_path / "classes.csv")
    assert list(lists_of(out).items()) == [(1, ranking[1]), (3, ranking[3])]
    with out.open(encoding="utf-8") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["Class", "Segments"]
    assert [len(row) for row in rows] == [2, 2, 2]


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet", ".pkl"])
def test_segments_as_ordinary_rows(folder: Path, tmp_path: Path, suffix: str) -> None:
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    out = tmp_path / f"segments{suffix}"
    predict(folder / "model", [str(folder / "rated-*")], HERE, out=out, segments=True, top_k=2)
    rows = list(read_predictions(out))
    assert len(rows) == 31 * 4
    assert {row.video_id for row in rows} >= {"v0000:0", "v0000:5", "v0000:10", "v0000:15"}
    assert all(len(row.labels) == 2 for row in rows)


def test_a_predicted_file_scores_as_the_model(folder: Path, tmp_path: Path, scored: dict[str, Any]) -> None:
    """All segments are listed, those without rating too; K cuts none off."""
    out = tmp_path / "segments.csv"
    predict(folder / "model", [str(folder / "rated-*")], HERE, out=out, segments=True)
    result = score_segment_file(out, str(folder / "rated-*"))
    assert result["segment_map"] == pytest.approx(run(folder)["segment_map"], abs=1e-9)
    assert result["num_listed"] == 31 * 4 * CLASSES
    assert result["num_unrated"] == 31 * 4 * CLASSES - 124


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"classes": Path("c")}, "--classes and --max-segments go with --segments and an --out that ends in"),
        ({"max_segments": 5}, "--classes and --max-segments go with"),
        ({"segments": True, "max_segments": 5, "out": "x.jsonl"}, "--classes and --max-segments go with"),
        (
            {"segments": True, "top_k": 5},
            r"--top-k: a Class,Segments file holds the best segments of a class",
        ),
        ({"segments": True, "max_segments": 0}, "--max-segments: got 0, wanted 1 or more"),
    ],
)
def test_options_that_do_not_fit(folder: Path, tmp_path: Path, more: dict[str, Any], message: str) -> None:
    out = tmp_path / more.pop("out", "x.csv")
    with pytest.raises(UsageError, match=message):
        predict(folder / "model", [str(folder / "rated-*")], HERE, out=out, **more)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Index\n1\nx\n", r"line 3: 'x', wanted a class index from 0 to 4"),
        ("5\n", r"line 1: '5', wanted a class index from 0 to 4"),
        ("1\n2\n1\n", r"line 3: class 1 a second time, after line 1"),
        ("1\nIndex\n", r"line 2: 'Index', wanted"),
        ("Index\n", r"no classes in it; wanted class indices, one a line"),
    ],
)
def test_files_of_classes(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "classes.csv"
    path.write_text(text)
    with pytest.raises(UsageError, match=message):
        read_classes(path, 5)
    path.write_text("\ufeff\r\nIndex,Name\r\n4,cat\r\n\r\n 0 ,dog\r\n")
    assert read_classes(path, 5).tolist() == [0, 4]
    assert read_classes(None, 3).tolist() == [0, 1, 2]


# train


def settings(folder: Path, **more: Any) -> TrainConfig:
    return TrainConfig(
        model=MeanPoolConfig(),
        data=DataConfig(
            train=(str(folder / "rated-*"),),
            valid=(str(folder / "rated-*"),),
            segments=True,
            batch_size=8,
            workers=0,
            shuffle_buffer=15,
        ),
        optim=OptimConfig(lr=0.05, schedule="cosine", l2=0.0, clip="none"),
        epochs=6,
        **more,
    )


def test_training_on_segments(folder: Path, tmp_path: Path) -> None:
    result = train(settings(folder), tmp_path / "run")
    assert result["segment_map"] > 0.9
    saved: Any = read_json(tmp_path / "run" / "config.json")
    assert saved["best_by"] == "segment_map"
    assert saved["model"]["num_classes"] == CLASSES
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["num_segments"] == 62
    assert rows[-1]["examples"] == 62 * 6
    assert len([row for row in rows if row["kind"] == "valid"]) == 6
    again = evaluate(tmp_path / "run", [str(folder / "rated-*")], HERE, segments=True)
    best = max(row["segment_map"] for row in rows if row["kind"] == "valid")
    assert again["segment_map"] == pytest.approx(best, abs=1e-6)


def test_stopping_and_going_on(folder: Path, tmp_path: Path) -> None:
    """In the middle of a video's segments, bit for bit."""
    config = settings(folder)
    config = replace(config, optim=replace(config.optim, schedule="constant"))
    train(config, tmp_path / "whole")
    train(replace(config, steps=9), tmp_path / "parts")
    state: Any = read_json(tmp_path / "parts" / "last" / "training.json")
    assert state["positions"][0]["readers"][0]["part"] == 1
    train(config, tmp_path / "parts", resume=True)
    whole, parts = (checkpoint.load(tmp_path / name / "last").state_dict() for name in ("whole", "parts"))
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_two_processes(folder: Path, tmp_path: Path) -> None:
    """Unequal shares of the segments, and a batch that is empty on one side: every segment counts."""
    config = settings(folder)
    run_two_processes(replace(config, epochs=3, data=replace(config.data, batch_size=20)), tmp_path / "run")
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["examples"] == 62 * 3
    assert rows[-1]["num_segments"] == 62
    assert rows[-1]["segment_map"] > 0.9


def test_what_training_refuses_early(folder: Path, tmp_path: Path) -> None:
    whole = make_data(tmp_path, "whole", num_videos=3, num_classes=CLASSES)
    config = settings(folder)
    for purpose, data in (
        ("training", replace(config.data, train=(whole,))),
        ("validation", replace(config.data, valid=(whole,))),
    ):
        with pytest.raises(TrainingError, match=rf"no rated segments in its 3 videos; wanted {purpose} data"):
            train(replace(config, data=data), tmp_path / "run")
    with pytest.raises(TrainingError, match="no labels in the first 31 videos"):
        train(replace(config, data=replace(config.data, segments=False)), tmp_path / "run")
    with pytest.raises(ConfigError, match="best_by: got 'segment_map', wanted another metric without data"):
        TrainConfig(best_by="segment_map")


def test_what_decides(folder: Path) -> None:
    config = settings(folder)
    assert settle(config, init=None)[0].best_by == "segment_map"
    assert settle(replace(config, best_by="loss"), init=None)[0].best_by == "loss"


def test_damaged_ratings_are_skipped_or_told(folder: Path, tmp_path: Path) -> None:

    with RecordWriter(tmp_path / "bad.tfrecord") as writer:
        for number in range(8):
            record = make_rated_record(number, CLASSES)
            if number == 5:
                record.context["segment_scores"] = []
            writer.write(serialize_video_record(record))
    config = settings(folder)
    data = replace(config.data, train=(str(tmp_path / "bad.tfrecord"),))
    with pytest.raises(
        RecordError, match=r"bad\.tfrecord, byte \d+, record 5 \(video v0005\): lists of diff"
    ):
        train(replace(config, data=data), tmp_path / "run")
    train(replace(config, data=replace(data, skip_damaged=True), epochs=1), tmp_path / "run")
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["examples"] == 14


def test_the_recipe_fine_tunes_a_model_of_whole_videos(folder: Path, tmp_path: Path) -> None:
    config = RECIPES["yt8m_segments"].config
    data = replace(config.data, train=(str(folder / "rated-*"),), batch_size=8, workers=0, shuffle_buffer=16)
    model = replace(config.model, streams=(), num_classes=0)
    config, _ = settle(replace(config, data=data, model=model), init=folder / "model")
    assert isinstance(config.model, NeXtVLADConfig)
    assert (config.model.hidden_size, config.model.dropout) == (16, 0.75)
    train(replace(config, steps=2), tmp_path / "run", init=folder / "model")
    assert checkpoint.load(tmp_path / "run").config.num_classes == CLASSES


def test_the_command_line_from_training_to_a_score(tmp_path: Path) -> None:
    """Something is learnt: chance is 0.5, as half of the ratings are positive."""
    learn = make_rated_data(tmp_path, "learn", num_videos=60)
    test = make_rated_data(tmp_path, "test", num_videos=25, first=1000)
    run_folder, out, scores = tmp_path / "run", tmp_path / "segments.csv", tmp_path / "scores.json"
    done = nextvlad(
        "train", "small", "--data.segments", "--data.train", learn, "--data.valid", test, "--out", run_folder,
        "--epochs", 6, "--model.hidden-size", 32, "--model.clusters", 8, "--threads", 1, "--data.workers", 0,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "120 training segments" in done.stderr
    assert "segment MAP" in done.stderr
    done = nextvlad("evaluate", run_folder, test, "--segments", "--workers", 0, "--json", scores)
    assert done.returncode == 0, done.stderr
    result = json.loads(scores.read_text())
    assert result["num_segments"] == 50
    assert result["segment_map"] > 0.85
    done = nextvlad("predict", run_folder, test, "--segments", "--workers", 0, "--out", out)
    assert done.returncode == 0, done.stderr
    assert "100 segments, 5 classes" in done.stderr
    done = nextvlad("evaluate", "--predictions", out, "--data", test, "--json", scores)
    assert done.returncode == 0, done.stderr
    assert json.loads(scores.read_text())["segment_map"] == pytest.approx(result["segment_map"], abs=1e-6)
