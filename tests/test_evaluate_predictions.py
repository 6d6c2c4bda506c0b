"""`nextvlad evaluate --predictions`: the numbers of the checkpoint that wrote the file, or by hand."""

from __future__ import annotations

import json
import os
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from makers import make_data, nextvlad
from nextvlad import checkpoint, metrics
from nextvlad.config import NeXtVLADConfig, StreamConfig
from nextvlad.data.tfrecord import RecordWriter
from nextvlad.data.video_record import VideoRecord, serialize_video_record
from nextvlad.errors import DataError, OutputError, RecordError, UsageError
from nextvlad.evaluate import evaluate
from nextvlad.evaluate_predictions import Labels, _batches, evaluate_predictions, read_labels, score_lists
from nextvlad.models import build_model
from nextvlad.predict import predict
from nextvlad.predictions import Prediction, read_predictions, write_predictions
from nextvlad.run_config import InferenceOptions
from originals import paddle_batch

CLASSES = 24
KEYS = {"num_videos", "gap", "hit_at_one", "perr", "map", "loss", "top1", "top5"}
HERE = InferenceOptions(workers=0)
SUFFIXES = [".jsonl", ".csv", ".parquet", ".pkl"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """model/: an untrained model of 24 classes; test-*.tfrecord: 41 videos in three shards."""
    folder = tmp_path_factory.mktemp("evaluate_predictions")
    streams = (StreamConfig(name="rgb", size=12), StreamConfig(name="audio", size=6))
    torch.manual_seed(0)
    model = build_model(NeXtVLADConfig(streams=streams, num_classes=CLASSES, clusters=4, groups=2,
                                       hidden_size=16, gating_reduction=4))  # fmt: skip
    torch.nn.init.normal_(model.classifier.weight)
    checkpoint.save(folder / "model", model)
    make_data(folder, "test", num_videos=41, num_shards=3, num_classes=CLASSES)
    return folder


def labelled(path: Path, labels: dict[str, list[int]]) -> str:
    with RecordWriter(path) as writer:
        for video_id, classes in labels.items():
            frames = {"rgb": np.zeros((1, 4), np.uint8)}
            record = VideoRecord(video_id, np.array(classes, np.int64), frames, {})
            writer.write(serialize_video_record(record))
    return str(path)


def listed(path: Path, rows: dict[str, dict[int, float]]) -> Path:
    write_predictions(
        path, (Prediction(name, list(scores), list(scores.values())) for name, scores in rows.items()), None
    )
    return path


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("top_k", [1, 3, 20])
def test_the_numbers_of_the_checkpoint(folder: Path, tmp_path: Path, suffix: str, top_k: int) -> None:
    """To the bit where the format keeps 32-bit floats; CSV rounds to six decimals, which makes ties."""
    data, out = [str(folder / "test-*")], tmp_path / f"out{suffix}"
    predict(folder / "model", data, HERE, out=out, top_k=20)
    wanted = evaluate(folder / "model", data, HERE, top_k=top_k)
    found = evaluate_predictions(out, data, top_k=top_k)
    assert found.keys() == wanted.keys() >= KEYS
    assert (found["map"], found["loss"]) == (None, None)
    for key in ("num_videos", "gap", "hit_at_one", "perr", "map_at_k", "top1", "top5"):
        assert found[key] == (pytest.approx(wanted[key], abs=2e-4) if suffix == ".csv" else wanted[key]), key


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet", ".pkl"])
def test_all_classes_listed_give_the_untruncated_map_too(folder: Path, tmp_path: Path, suffix: str) -> None:
    data, out = [str(folder / "test-*")], tmp_path / f"out{suffix}"
    predict(folder / "model", data, HERE, out=out, top_k=CLASSES)
    wanted = evaluate(folder / "model", data, HERE)
    assert evaluate_predictions(out, data) == wanted | {"loss": None}
    assert evaluate_predictions(out, data, with_map=False) == wanted | {"loss": None, "map": None}


def test_one_list_without_all_classes_and_there_is_no_map(folder: Path, tmp_path: Path) -> None:
    data, out = [str(folder / "test-*")], tmp_path / "out.jsonl"
    predict(folder / "model", data, HERE, out=out, top_k=CLASSES)
    rows = list(read_predictions(out))
    for other in (Prediction(rows[-1].video_id, rows[-1].labels[:-1], rows[-1].scores[:-1]), None):
        write_predictions(out, iter([*rows[:-1], *([other] if other else [])]), None)
        assert evaluate_predictions(out, data)["map"] is None


def test_the_order_of_the_rows_changes_nothing(folder: Path, tmp_path: Path) -> None:
    data, out = [str(folder / "test-*")], tmp_path / "out.jsonl"
    predict(folder / "model", data, HERE, out=out)
    wanted = evaluate_predictions(out, data)
    rows = list(read_predictions(out))
    write_predictions(tmp_path / "other.pkl", reversed(rows), None)
    assert evaluate_predictions(tmp_path / "other.pkl", data) == wanted


def test_paddles_result_on_paddles_videos(golden: Path, tmp_path: Path) -> None:
    """Against what PaddleVideo v1.5.1 printed for the same 12 videos; lists of 20 are all GAP@20 needs."""
    batch = paddle_batch(golden)
    names = [row.video_id for row in read_predictions(golden / "paddle" / "NEXTVLAD_infer_result.pkl")]
    labels = {
        name: np.flatnonzero(row.numpy()).tolist() for name, row in zip(names, batch.labels, strict=True)
    }
    data = labelled(tmp_path / "videos.tfrecord", labels)
    result = evaluate_predictions(golden / "paddle" / "NEXTVLAD_infer_result.pkl", [data])
    text = (golden / "paddle" / "eval_bs4_expected.txt").read_text()
    expected = {key: float(value) for key, value in re.findall(r"(\w+) ?: ?([\d.]+)", text) if key != "py"}
    assert result["num_videos"] == 12
    assert result["hit_at_one"] == pytest.approx(expected["avg_hit_at_one"], abs=1e-6)
    assert result["perr"] == pytest.approx(expected["avg_perr"], abs=1e-6)
    assert result["gap"] == pytest.approx(expected["gap"], abs=1e-5)


def test_what_lists_cannot_tell_is_told(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    data = labelled(tmp_path / "d.tfrecord", {"a": [1, 2, 3], "b": [4], "c": [5], "none": []})
    out = listed(tmp_path / "p.csv", {"a": {1: 0.9, 7: 0.5}, "b": {6: 0.8, 4: 0.7}, "x": {1: 1.0}})
    result = evaluate_predictions(out, [data], top_k=3)
    told = capfd.readouterr().err
    assert "2 videos of the data without a prediction: counted, all labels missed." in told
    assert f"1 video of {out} not in the data: left out." in told
    assert "2 videos with fewer than 3 labels listed" in told
    assert "1 video with more labels than listed: PERR counts the others as missed." in told
    assert result["num_videos"] == 4
    assert result["hit_at_one"] == 1 / 4
    assert result["perr"] == pytest.approx(1 / 3 / 4)
    assert result["gap"] == pytest.approx((1 / 1 + 2 / 3) / 5)  # 0.9 hit, 0.8 miss, 0.7 hit
    assert result["top5"] == 2 / 4


def test_what_lists_do_tell_is_not_told(folder: Path, tmp_path: Path, capfd: Any) -> None:
    data, out = [str(folder / "test-*")], tmp_path / "out.jsonl"
    predict(folder / "model", data, HERE, out=out)
    capfd.readouterr()
    evaluate_predictions(out, data)
    assert capfd.readouterr().err == ""


def test_few_classes(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Fewer than 20: all are kept, as for a checkpoint, and nobody is told that lists are short."""
    rng = np.random.default_rng(0)
    scores, truth = rng.random((30, 4)).astype(np.float32), rng.random((30, 4)) < 0.4
    data = labelled(tmp_path / "d", {f"v{i}": np.flatnonzero(row).tolist() for i, row in enumerate(truth)})
    out = listed(
        tmp_path / "p.pkl", {f"v{i}": dict(enumerate(map(float, row))) for i, row in enumerate(scores)}
    )
    result = evaluate_predictions(out, [data])
    assert result["gap"] == metrics.gap(scores, truth)
    assert result["map"] == metrics.mean_average_precision(scores, truth)
    assert result["perr"] == metrics.perr(scores, truth)
    assert result["top5"] is None
    assert "fewer than" not in capfd.readouterr().err


def test_a_first_row_that_only_looks_whole(tmp_path: Path) -> None:
    """Classes 0 to 2 could be all there are; the next row shows that they are not."""
    data = labelled(tmp_path / "d", {"a": [0], "b": [2], "c": [1]})
    long = {label: 0.9 - label / 100 for label in range(20)}
    out = listed(tmp_path / "p.pkl", {"a": {0: 0.5, 1: 0.4, 2: 0.3}, "b": long, "c": long})
    result = evaluate_predictions(out, [data])
    scores = np.zeros((3, 20), np.float32)
    scores[0, :3] = [0.5, 0.4, 0.3]
    scores[1:] = list(long.values())
    truth = np.zeros((3, 20), bool)
    truth[[0, 1, 2], [0, 2, 1]] = True
    assert result["gap"] == pytest.approx(metrics.gap(scores, truth), abs=1e-12)
    assert result["map"] is None


def test_paddles_data_and_several_files(tmp_path: Path) -> None:
    """DATA is whatever it is elsewhere: here a pickle of PaddleVideo and a TFRecord, in a .list file."""
    videos = [{"video": b"p", "label": [3], "nframes": 1, "feature": np.zeros((1, 4), np.uint8),
               "audio": np.zeros((1, 4), np.uint8)}]  # fmt: skip
    (tmp_path / "p.pkl").write_bytes(pickle.dumps(videos, 2))
    labelled(tmp_path / "t.tfrecord", {"t": [1]})
    (tmp_path / "all.list").write_text("p.pkl\nt.tfrecord\n")
    labels = read_labels([str(tmp_path / "all.list")])
    assert list(labels.number_of) == ["p", "t"]
    assert [labels.of(0).tolist(), labels.of(1).tolist()] == [[3], [1]]
    out = listed(tmp_path / "x.csv", {"t": {1: 0.9}, "p": {3: 0.8}})
    assert evaluate_predictions(out, [str(tmp_path / "all.list")])["gap"] == 1.0


def test_what_cannot_be_scored(folder: Path, tmp_path: Path) -> None:
    data = labelled(tmp_path / "d", {"a": [1]})
    good = listed(tmp_path / "good.csv", {"a": {1: 0.5}})
    with pytest.raises(DataError, match=r"none of its 1 videos is among the 1 of .*first is x, theirs a\)"):
        evaluate_predictions(listed(tmp_path / "p.csv", {"x": {1: 0.5}}), [data])
    with pytest.raises(DataError, match=r"first is a:5, theirs a\)\. These are segments: score them"):
        evaluate_predictions(listed(tmp_path / "p.csv", {"a:5": {1: 0.5}}), [data])
    with pytest.raises(DataError, match=r"p.csv: no predictions in it"):
        evaluate_predictions(listed(tmp_path / "p.csv", {}), [data])
    with pytest.raises(DataError, match=r"none of the 1 videos has a label"):
        evaluate_predictions(good, [labelled(tmp_path / "e", {"a": []})])
    (tmp_path / "empty").touch()
    with pytest.raises(DataError, match=r"empty: no videos in it"):
        evaluate_predictions(good, [str(tmp_path / "empty")])
    with pytest.raises(RecordError, match=r"e, byte \d+, record 0.*: video a a second time in the data"):
        evaluate_predictions(good, [data, labelled(tmp_path / "e", {"a": [2]})])
    with pytest.raises(RecordError, match=r"label 1048576, wanted 0 to 1048575"):
        evaluate_predictions(good, [labelled(tmp_path / "e", {"a": [1 << 20]})])
    with pytest.raises(UsageError, match=r"--top-k: got 0, wanted 1 or more"):
        evaluate_predictions(good, [data], top_k=0)
    with pytest.raises(UsageError, match=r"no such file"):
        evaluate_predictions(good, [str(tmp_path / "nowhere")])
    with pytest.raises(OutputError, match="a file is where a folder should be"):
        evaluate_predictions(good, [data], json_file=tmp_path / "empty" / "x.json")
    with pytest.raises(DataError, match=r"no rated segments in it"):
        evaluate_predictions(good, [data], segments=True)
    (tmp_path / "p.csv").write_text("a,1 0.5\na,2 0.5\n")
    with pytest.raises(DataError, match=r"line 2: video a a second time"):
        evaluate_predictions(tmp_path / "p.csv", [data])


def test_damaged_data(folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    data = folder / "test-0.tfrecord"
    (tmp_path / "cut.tfrecord").write_bytes(data.read_bytes()[:-9])
    predict(folder / "model", [str(data)], HERE, out=tmp_path / "p.csv")
    with pytest.raises(RecordError, match=r"cut.tfrecord, byte"):
        evaluate_predictions(tmp_path / "p.csv", [str(tmp_path / "cut.tfrecord")])
    result = evaluate_predictions(tmp_path / "p.csv", [str(tmp_path / "cut.tfrecord")], skip_damaged=True)
    assert result["num_videos"] == 13
    told = capfd.readouterr().err
    assert "Skipped 1 damaged record:" in told
    assert "1 video of" in told


def test_one_process_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match=r"scored in one process; start it without torchrun\.$"):
        evaluate_predictions(tmp_path / "x.csv", ["x"])


def test_a_file_of_segments(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Scored as such, whatever its name: of two rated segments the first is positive, and listed last."""
    context: Any = {
        "segment_start_times": [0, 5],
        "segment_end_times": [5, 10],
        "segment_labels": [3, 3],
        "segment_scores": [1.0, 0.0],
    }
    frames = {"rgb": np.zeros((12, 4), np.uint8)}
    with RecordWriter(tmp_path / "d.tfrecord") as writer:
        writer.write(serialize_video_record(VideoRecord("v1", np.array([3]), frames, context)))
    (tmp_path / "s.csv").write_text("Class,Segments\n3,v1:5 v1:0\n")
    data = [str(tmp_path / "d.tfrecord")]
    result = evaluate_predictions(tmp_path / "s.csv", data, json_file=tmp_path / "s.json")
    assert result["segment_map"] == 0.5
    assert json.loads((tmp_path / "s.json").read_text()) == result
    assert "0.5000" in capfd.readouterr().out
    assert evaluate_predictions(tmp_path / "s.csv", data, segments=True) == result
    with pytest.raises(UsageError, match=r"--top-k: .*s.csv is a file of segments"):
        evaluate_predictions(tmp_path / "s.csv", data, top_k=5)


# The command line


def test_the_command(folder: Path, tmp_path: Path) -> None:
    data = str(folder / "test-*")
    predict(folder / "model", [data], HERE, out=tmp_path / "p.jsonl")
    done = nextvlad(
        "evaluate", "--predictions", tmp_path / "p.jsonl", "--data", data, "--json", tmp_path / "j"
    )
    assert (done.returncode, done.stderr) == (0, "")
    wanted = evaluate(folder / "model", [data], HERE)
    result = json.loads((tmp_path / "j").read_text())
    assert result == wanted | {"map": None, "loss": None}
    assert re.search(rf"GAP@20\W+{result['gap']:.4f}", done.stdout)


def test_a_bad_file_on_the_command_line(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("VideoId,LabelConfidencePairs\nv0001,1 0.5 2\n")
    done = nextvlad("evaluate", "--predictions", tmp_path / "p.csv", "--data", folder / "test-0.tfrecord")
    assert done.returncode == 1
    assert done.stderr.startswith(f"nextvlad: {tmp_path}/p.csv, line 2: video v0001: 3 numbers")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["model", "--predictions", "p", "--data", "d"], "got --predictions and also model ..."),
        (["model", "data", "--predictions", "p"], "got --predictions and also model data ..."),
        (["model", "data", "--data", "d"], "--data goes with --predictions"),
        (["--data", "d"], "--data goes with --predictions"),
        (["--predictions", "p"], "--predictions without --data"),
        ([], "no CHECKPOINT given"),
    ],
)
def test_the_two_forms(arguments: list[str], message: str) -> None:
    from nextvlad.commands import VERBS

    with pytest.raises(UsageError) as caught:
        VERBS["evaluate"](arguments)
    assert message in str(caught.value)
    assert (
        "wanted `nextvlad evaluate CHECKPOINT DATA...`, or `nextvlad evaluate --predictions FILE --data"
        in str(caught.value)
    )


def test_options_of_the_other_form() -> None:
    from nextvlad.commands import VERBS

    with pytest.raises(
        UsageError, match=r"--batch-size is for a checkpoint; --predictions has no use for it"
    ):
        VERBS["evaluate"](["--predictions", "p", "--data", "d", "--batch-size", "4"])


def test_top_k_without_bound(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "few.csv"
    path.write_text("\n".join(f"v{number:04d},1 0.5 2 0.25" for number in range(4)))
    few = evaluate_predictions(path, [str(folder / "test-*.tfrecord")], top_k=20)
    assert evaluate_predictions(path, [str(folder / "test-*.tfrecord")], top_k=10**30) == few


def test_one_row_of_a_million_classes_takes_no_table_of_a_million_columns(tmp_path: Path) -> None:
    labels = Labels()
    for number in range(3000):
        labels.add(f"v{number}", [1])
    rows = [Prediction(f"v{number}", [1, 2], [0.5, 0.25]) for number in range(2000)]
    rows[500] = Prediction("v500", list(range(1 << 20)), [0.5] * (1 << 20))
    batches = list(_batches(iter(rows), labels))
    assert [row for batch in batches for row in batch] == rows
    assert max(len(batch) * max(len(row.labels) for row in batch) for batch in batches) <= 1 << 22
    assert max(map(len, batches)) == 1024
    result, coverage = score_lists(iter(rows), labels, top_k=20)
    assert result["num_videos"] == 3000
    assert coverage.without == 1000
    assert result["hit_at_one"] == 1999 / 3000


def test_json_into_a_device(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "few.csv"
    path.write_text("v0001,1 0.5 2 0.25")
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    evaluate_predictions(path, [str(folder / "test-*.tfrecord")], json_file=tmp_path / "pipe")
    assert json.loads(os.read(reader, 1 << 16))["gap"] is not None
    os.close(reader)
    assert (tmp_path / "pipe").is_fifo()
    if Path("/dev/full").is_char_device():
        with pytest.raises(OutputError, match="/dev/full: cannot be written"):
            evaluate_predictions(path, [str(folder / "test-*.tfrecord")], json_file=Path("/dev/full"))
        assert Path("/dev/full").is_char_device()
