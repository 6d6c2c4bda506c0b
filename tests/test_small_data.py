"""benchmarks/small_data.py tells easy classes apart; benchmarks/street_clips.py labels what it cuts."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from nextvlad.data.tfrecord import RecordWriter
from nextvlad.data.video_record import VideoRecord, serialize_video_record

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"


def load(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module(name)


def test_easy_classes_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some videos have no sound; the groups stay together."""
    pytest.importorskip("sklearn")
    numbers = np.random.default_rng(0)
    with RecordWriter(tmp_path / "all.tfrecord") as writer:
        for number in range(80):
            rgb = numbers.integers(0, 100, (4, 16)) + 150 * (number % 2)
            streams = {"rgb": rgb.astype(np.uint8)}
            if number % 5:
                streams["audio"] = numbers.integers(0, 256, (4, 4)).astype(np.uint8)
            labels = np.array([3 + number % 2], np.int64)
            writer.write(
                serialize_video_record(VideoRecord(f"camera{number // 8}_{number}", labels, streams))
            )
    small_data = load("small_data", monkeypatch)
    problem = small_data.features_problem([str(tmp_path / "all.tfrecord")], "^camera[0-9]+")
    assert sorted(set(problem.classes)) == [0, 1]
    assert len(set(problem.groups)) == 10
    assert small_data.pooled(problem.records).shape == (80, 2 * 16 + 2 * 4)
    options = ["--features", str(tmp_path / "all.tfrecord"), "--group", "^camera[0-9]+", "--folds", "1"]
    monkeypatch.setattr(sys, "argv", ["small_data.py", *options, "--out", str(tmp_path / "out")])
    small_data.main()
    (kept,) = (tmp_path / "out").glob("small_data_*.jsonl")
    record = json.loads(kept.read_text(encoding="utf-8"))
    assert list(record["mean"]) == ["own", "pooled", "pooled, tuned"]
    assert all(0.8 < score <= 1.0 for score in record["mean"].values()), record["mean"]
    (result,) = record["results"]
    assert result["videos"] == 80
    assert {method: [score] for method, score in record["mean"].items()} == result["accuracy"]
    table = load("table", monkeypatch)  # no times, and no harm
    assert table.speed_table(table.read_results(tmp_path / "out")) == "Nothing has been measured yet."


def test_street_clips_are_busy_where_something_moves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    av = pytest.importorskip("av")
    film = np.full((100, 192, 256, 3), 90, np.uint8)
    for index in range(50, 90):  # through the second tile, in its second clip
        film[index, 10:40, 70 + index // 2 : 90 + index // 2] = 250
    with av.open(str(tmp_path / "film.mkv"), "w") as container:
        stream = container.add_stream("ffv1", rate=10)
        stream.width, stream.height, stream.pix_fmt = 256, 192, "bgr0"
        for picture in film:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    monkeypatch.setattr(sys, "argv", ["street_clips.py", str(tmp_path / "film.mkv"), str(tmp_path / "clips")])
    load("street_clips", monkeypatch).main()
    rows = (tmp_path / "clips" / "labels.csv").read_text(encoding="utf-8").splitlines()
    assert rows[0] == "path,labels,camera"
    assert len(rows) == 1 + 24
    busy = [row for row in rows if ",busy," in row]
    assert busy == ["camera01_001.mp4,busy,camera01", "camera02_001.mp4,busy,camera02"]
    assert "24 clips, 2 of them busy" in capsys.readouterr().out
    with av.open(str(tmp_path / "clips" / "camera01_001.mp4")) as container:
        pictures = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert np.stack(pictures).shape == (50, 64, 64, 3)
    assert np.abs(pictures[10][20:30, 40:45].astype(int) - 250).max() < 20
