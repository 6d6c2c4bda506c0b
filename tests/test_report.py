"""`nextvlad report` from end to end: of a real run, of a checkpoint alone, with videos, and refused."""

from __future__ import annotations

import base64
import builtins
import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from makers import make_data, nextvlad
from nextvlad import checkpoint, metrics
from nextvlad.cli import main
from nextvlad.config import NeXtVLADConfig, StreamConfig
from nextvlad.data.batch import collate
from nextvlad.data.sources import read
from nextvlad.data.vocabulary import Vocabulary
from nextvlad.errors import DataError, OutputError, UsageError
from nextvlad.evaluate import evaluate
from nextvlad.models import build_model
from nextvlad.report import report
from nextvlad.report_pictures import listed_videos
from nextvlad.run_config import DataConfig, InferenceOptions, OptimConfig, TrainConfig
from nextvlad.train import train

HERE = InferenceOptions(workers=0)
PNG = b"\x89PNG\r\n\x1a\n"
NAMES = ("<i>cat</i>", "dog & bone", "owl", "fox", "hen")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """run/: two epochs of training on train-*; test-*: 60 videos of 5 labels that it has not seen."""
    folder = tmp_path_factory.mktemp("report")
    Vocabulary(NAMES).save(folder / "names.csv")
    make_data(folder, "test", num_videos=60, first=1000)
    train(config(folder, epochs=2), folder / "run")
    return folder


@pytest.fixture
def no_png(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures take most of the time of a small report."""
    monkeypatch.setattr("nextvlad.plots.can_draw", lambda: False)


def config(folder: Path, *, epochs: int) -> TrainConfig:
    return TrainConfig(
        model=NeXtVLADConfig(clusters=4, groups=2, hidden_size=16, gating_reduction=4, batch_norm_weight=0.1),
        data=DataConfig(
            train=(make_data(folder, "train", num_videos=60),),
            valid=(make_data(folder, "valid", num_videos=20, first=500),),
            vocabulary=str(folder / "names.csv"),
            batch_size=16,
            workers=0,
        ),
        optim=OptimConfig(lr=5e-3),
        epochs=epochs,
        log_every=1,
        threads=1,
    )


def test_the_command_writes_a_page_its_numbers_and_pictures(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "report"
    done = nextvlad("report", folder / "run", "--data", folder / "test-*", "--out", out, "--workers", 0)
    assert done.returncode == 0, done.stderr
    assert f"60 videos, 5 labels -> {out}/report.html" in done.stderr
    assert sorted(path.name for path in out.iterdir()) == sorted(
        ["report.html", "report.json", "training_curves.png", "label_precision.png", "reliability.png"]
    )
    assert all(path.read_bytes().startswith(PNG) for path in out.glob("*.png"))
    text = (out / "report.html").read_text(encoding="utf-8")
    assert "&lt;i&gt;cat&lt;/i&gt;" in text
    assert "<i>cat" not in text
    assert 'id="training"' in text
    assert "They are not saved" in text
    assert "was trained on" not in text
    assert checkpoint.read_thresholds(folder / "run" / "best", 5) is None


@pytest.mark.usefixtures("no_png")
def test_the_numbers_are_those_of_evaluate(folder: Path, tmp_path: Path) -> None:
    """To the bit where both are exact: mAP and the other metrics; per label against the functions."""
    found = report(folder / "run", [str(folder / "test-*")], HERE, out=tmp_path / "out", top_k=3)
    assert found.metrics == evaluate(folder / "run", [str(folder / "test-*")], HERE, top_k=3)
    model = checkpoint.load(folder / "run")
    batch = collate(
        list(read(str(folder / "test-*"))), streams=model.config.streams, num_classes=model.config.num_classes
    )
    with torch.inference_mode():
        scores = torch.sigmoid(model(batch))
    precisions = metrics.per_class_average_precision(scores, batch.labels)
    written = json.loads((tmp_path / "out" / "report.json").read_text())
    assert written["metrics"] == found.metrics
    for label, precision, row in zip(found.labels, precisions, written["labels"], strict=True):
        assert label.average_precision == pytest.approx(precision, abs=1e-6)
        assert row["average_precision"] == label.average_precision
        assert row["name"] == NAMES[label.index]
        assert label.num_positives == int(batch.labels[:, label.index].sum())
        chosen = scores[:, label.index] >= label.cut.threshold
        assert label.cut.hits == int((chosen & batch.labels[:, label.index]).sum())
        assert label.cut.misses == int((chosen & ~batch.labels[:, label.index]).sum())


@pytest.mark.usefixtures("no_png")
def test_thresholds_stay_with_their_checkpoint(folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(config(folder, epochs=1), run)
    found = report(run, [str(folder / "test-*")], HERE, out=tmp_path / "out", save_thresholds=True)
    place = checkpoint.resolve(run).resolve()
    kept = checkpoint.read_thresholds(place, 5)
    assert kept is not None
    assert kept.tolist() == [label.cut.threshold for label in found.labels]
    chosen = json.loads((place / "thresholds.json").read_text())["chosen"]
    assert chosen["data"] == [str(folder / "test-*")]
    assert chosen["num_videos"] == 60
    assert str(place / "thresholds.json") in (tmp_path / "out" / "report.html").read_text()

    train(config(folder, epochs=3), run, resume=True)
    assert checkpoint.read_training_state(run / "last").values["step"] > 4
    later = [path for path in (run / "checkpoints").iterdir() if path != place]
    assert (run / "last").resolve() in later
    assert [checkpoint.read_thresholds(path, 5) for path in later] == [None] * len(later)


@pytest.mark.usefixtures("no_png")
def test_the_report_is_there_where_thresholds_cannot_be_saved(folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(folder / "run", run, symlinks=True)
    (checkpoint.resolve(run) / "thresholds.json").mkdir()  # in the way
    with pytest.raises(OutputError, match=r"thresholds\.json: cannot be written"):
        report(run, [str(folder / "test-*")], HERE, out=tmp_path / "out", save_thresholds=True)
    assert "They could not be saved: " in (tmp_path / "out" / "report.html").read_text()


@pytest.fixture(scope="module")
def bare(folder: Path) -> Path:
    """A checkpoint of nobody's run, without class names."""
    streams = (StreamConfig(name="rgb", size=12), StreamConfig(name="audio", size=6))
    torch.manual_seed(1)
    model = build_model(NeXtVLADConfig(streams=streams, num_classes=5, clusters=4, groups=2, hidden_size=16,
                                       gating_reduction=4))  # fmt: skip
    checkpoint.save(folder / "bare", model)
    return folder / "bare"


@pytest.mark.usefixtures("no_png")
def test_a_checkpoint_alone(folder: Path, bare: Path, tmp_path: Path) -> None:
    report(bare, [str(folder / "test-*")], HERE, out=tmp_path / "out")
    text = (tmp_path / "out" / "report.html").read_text()
    assert 'id="training"' not in text
    assert "no vocabulary, so labels are numbers" in text
    assert "label 3" in text
    assert not (tmp_path / "out" / "training_curves.png").exists()


@pytest.mark.usefixtures("no_png")
def test_a_checkpoint_inside_a_run_has_the_curves_of_the_run(folder: Path, tmp_path: Path) -> None:
    inside = (folder / "run" / "last").resolve()
    report(inside, [str(folder / "test-*")], HERE, out=tmp_path / "out")
    assert 'id="training"' in (tmp_path / "out" / "report.html").read_text()


def test_an_earlier_report_is_replaced_and_other_things_are_not(
    folder: Path, bare: Path, tmp_path: Path
) -> None:
    data = [str(folder / "test-*")]
    (tmp_path / "out").mkdir()
    for name in ("report.html", "training_curves.png", "confusion.png"):
        (tmp_path / "out" / name).write_text("old")
    (tmp_path / "out" / "notes.txt").write_text("mine")
    report(bare, data, HERE, out=tmp_path / "out")
    assert (tmp_path / "out" / "report.html").read_text().startswith("<!DOCTYPE html>")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "label_precision.png", "notes.txt", "reliability.png", "report.html", "report.json",
    ]  # fmt: skip
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"
    (tmp_path / "killed").mkdir()
    (tmp_path / "killed" / "report.json").write_text("cut sh")
    report(bare, data * 4, HERE, out=tmp_path / "killed")
    assert f"{data[0]}, {data[0]}, {data[0]} and 1 more" in (tmp_path / "killed" / "report.html").read_text()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"other: not empty, and no earlier report"):
        report(bare, data, HERE, out=tmp_path / "other")
    with pytest.raises(UsageError, match=r"thesis\.txt: cannot be the folder of a report \(a file is where"):
        report(bare, data, HERE, out=tmp_path / "other" / "thesis.txt")
    with pytest.raises(OutputError, match=r"deep: cannot be made \(a file is where a folder should be"):
        report(bare, data, HERE, out=tmp_path / "other" / "thesis.txt" / "deep")


def test_one_label_a_video_draws_the_matrix(bare: Path, tmp_path: Path) -> None:
    def single(number: int, num_classes: int) -> Any:
        from makers import make_record

        record = make_record(number, num_classes)
        record.labels = record.labels[:1]
        return record

    data = make_data(tmp_path, "single", num_videos=30, make=single)
    found = report(bare, [data], HERE, out=tmp_path / "out")
    assert found.matrix is not None
    assert found.matrix.sum() == 30
    assert (tmp_path / "out" / "confusion.png").read_bytes().startswith(PNG)


@pytest.mark.usefixtures("no_png")
def test_data_that_the_model_was_trained_on_is_told(folder: Path, tmp_path: Path) -> None:
    report(folder / "run", [str(folder / "train-1.tfrecord")], HERE, out=tmp_path / "out")
    assert "The model was trained on some of these files" in (tmp_path / "out" / "report.html").read_text()


def test_faults_of_the_data(folder: Path, bare: Path, tmp_path: Path) -> None:
    unlabelled = make_data(tmp_path, "none", num_videos=5, labelled=False)
    with pytest.raises(DataError, match=r"none of the 5 videos has a label"):
        report(bare, [unlabelled], HERE, out=tmp_path / "out")
    (tmp_path / "empty.tfrecord").touch()
    with pytest.raises(DataError, match=r"empty\.tfrecord: no videos in it"):
        report(bare, [str(tmp_path / "empty.tfrecord")], HERE, out=tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())  # nothing that could be taken for a report


@pytest.mark.parametrize(
    ("arguments", "status", "complaint"),
    [
        (["nowhere", "--data", "test-*", "--out", "o"], 1, "nowhere: no such folder; wanted a checkpoint"),
        (["run", "--data", "nothing-*", "--out", "o"], 2, "nothing-*: no file matches"),
        (["run", "--data", "damaged", "--out", "o"], 1, "damaged, byte "),
        (["run", "--data", "test-*", "--out", "o", "--top-k", "6"], 2, "--top-k: got 6, wanted 1 to 5"),
        (["run", "--data", "test-*", "--out", "o", "--videos", "v"], 2, "--videos v: no such folder"),
        (["run", "--out", "o"], 2, "--data"),
        (["run", "--data", "test-*"], 2, "--out"),
        (["run", "--data", "--out", "o"], 2, "no DATA given"),
    ],
)
def test_faults_of_the_call(
    folder: Path,
    arguments: list[str],
    status: int,
    complaint: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    whole = (folder / "test-0.tfrecord").read_bytes()
    (folder / "damaged").write_bytes(whole[:100] + bytes([whole[100] ^ 1]) + whole[101:])
    monkeypatch.chdir(folder)
    with pytest.raises(SystemExit) as stopped:
        main(["report", *arguments])
    assert stopped.value.code == status
    assert complaint in capsys.readouterr().err
    assert not list(folder.glob("o/*"))


def test_not_under_torchrun(bare: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="report runs in one process"):
        report(bare, ["x"], HERE, out=tmp_path)


def test_without_matplotlib_the_page_is_whole(
    folder: Path, tmp_path: Path, no_png: None, capsys: pytest.CaptureFixture[str]
) -> None:
    report(folder / "run", [str(folder / "test-*")], HERE, out=tmp_path / "out")
    assert "pip install 'nextvlad[plot]'" in " ".join(capsys.readouterr().err.split())
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["report.html", "report.json"]
    assert (tmp_path / "out" / "report.html").read_text().count("<svg") >= 5


@pytest.mark.usefixtures("no_png")
def test_pictures_of_the_examples(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("av")
    from videos import encode

    videos = tmp_path / "videos"
    (videos / "deep").mkdir(parents=True)
    found = report(folder / "run", [str(folder / "test-*")], HERE, out=tmp_path / "first")
    shown = [example.video_id for example in (*found.right, *found.wrong, *found.missed)]
    first, second, third = list(dict.fromkeys(shown))[:3]
    encode(videos / "deep" / f"{first}.mp4", frames=24)
    (videos / f"{second}.mp4").write_bytes(b"no video at all")
    for place in (videos, videos / "deep"):
        encode(place / f"{third}.mkv", frames=8)

    report(folder / "run", [str(folder / "test-*")], HERE, out=tmp_path / "out", videos=videos)
    text = (tmp_path / "out" / "report.html").read_text()
    assert text.count("data:image/jpeg;base64,") == shown.count(first)
    assert f"No picture: {videos / second}.mp4" in text
    told = " ".join(capsys.readouterr().err.split())
    assert f"{len(set(shown)) - 2} of {len(set(shown))} example videos have no picture" in told


@pytest.mark.usefixtures("no_png")
def test_pictures_of_videos_that_extract_has_listed(folder: Path, bare: Path, tmp_path: Path) -> None:
    pytest.importorskip("av")
    from PIL import Image

    from videos import encode, level_of, plain

    data = make_data(tmp_path / "features", "test", num_videos=8, first=1000)
    shades = encode(tmp_path / "clips.mp4", frames=48, fps=8, draw=lambda n: plain()(2 if n < 24 else 12))
    rows = [
        f"v{number:04d},{shades},{3 * (number % 2)},{3 + 3 * (number % 2)}" for number in range(1000, 1007)
    ]
    rows.append("v1007,gone.mp4,,")
    (tmp_path / "features" / "index.csv").write_text(
        "\n".join(["video_id,path,start_seconds,end_seconds", *rows])
    )
    found = report(bare, [data], HERE, out=tmp_path / "out")
    shown = {example.video_id for kind in (found.right, found.wrong, found.missed) for example in kind}
    pictures = re.findall(
        r"base64,([^\"]+)\"><div><div class=\"id\">(v\d+)<", (tmp_path / "out" / "report.html").read_text()
    )
    assert {video_id for _, video_id in pictures} == shown - {"v1007"}
    for coded, video_id in pictures:
        grey = np.asarray(Image.open(io.BytesIO(base64.b64decode(coded)))).mean()
        assert grey == pytest.approx(level_of(12 if int(video_id[1:]) % 2 else 2), abs=6), video_id


def test_a_table_that_is_no_index_is_left_alone(tmp_path: Path) -> None:
    for content in (b"a,b\n1,2\n", b"\xff\xfe", b"video_id,path,start_seconds\nv,x.mp4,soon\n", b""):
        (tmp_path / "index.csv").write_bytes(content)
        assert listed_videos([str(tmp_path / "test.tfrecord")], {"v"}) == {}


def test_videos_without_the_extra(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def refuse(name: str, *more: Any, **others: Any) -> Any:
        if name == "av":
            raise ImportError("No module named 'av'")
        return real(name, *more, **others)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(UsageError, match=r"--videos: pictures of videos need PyAV.*nextvlad\[video\]"):
        report(folder / "run", [str(folder / "test-*")], HERE, out=tmp_path / "out", videos=tmp_path)
