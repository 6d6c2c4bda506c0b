from __future__ import annotations

import csv
import json
import os
import pickle
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from makers import make_data, make_record, nextvlad
from nextvlad import __version__, checkpoint
from nextvlad.cli import main
from nextvlad.commands import VERBS
from nextvlad.config import NeXtVLADConfig
from nextvlad.data.tfrecord import RecordWriter, read_records
from nextvlad.data.video_record import serialize_video_record

_SMALL = ["--data.workers", "0", "--threads", "1", "--log-every", "1"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with good data, bad data of every kind, and run/: the result of a real `nextvlad train`."""
    place = tmp_path_factory.mktemp("cli")
    make_data(place, "train", num_videos=60, num_shards=2)
    make_data(place, "valid", num_videos=25, first=1000)
    make_data(place, "named", num_videos=4, num_shards=1, sizes={"audio_embedding": 128})
    make_data(place, "sized", num_videos=4, num_shards=1, sizes={"rgb": 13, "audio": 6})
    make_data(place, "unlabelled", num_videos=4, num_shards=1, labelled=False)
    make_data(place, "many", num_videos=30, num_shards=1, num_classes=9)
    (place / "notes.txt").write_text("These are notes and no records at all. " * 5)
    (place / "empty.tfrecord").touch()
    (place / "nothing-in-it").mkdir()
    (place / "three.csv").write_text("index,name\n0,a\n1,b\n2,c\n")
    (place / "five.csv").write_text("index,name\n0,cat\n1,dog\n2,cow\n3,owl\n4,elk\n")
    (place / "unknown.json").write_text('{"optim": {"learning_rate": 0.1}}')
    (place / "broken.json").write_text('{"optim": ')
    damage(place / "valid-0.tfrecord", place / "damaged.tfrecord", record=3)
    done = nextvlad("train", "small", "--data.train", place / "train-*", "--data.valid", place / "valid-*",
                    "--data.vocabulary", place / "five.csv", "--epochs", 12, "--data.batch-size", 16,
                    "--out", place / "run",
                    "--model.hidden-size", 32, "--model.clusters", 4, *_SMALL)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    shutil.copytree(place / "run" / "best", place / "torn")
    weights = (place / "torn" / "model.safetensors").read_bytes()
    (place / "torn" / "model.safetensors").write_bytes(weights[:-100])
    return place


def damage(source: Path, target: Path, *, record: int) -> None:
    """Flips a bit of the last byte of one record's content."""
    content = bytearray(source.read_bytes())
    places = [(entry.place.offset, len(entry.payload)) for entry in read_records(source)]
    offset, length = places[record]
    content[offset + 12 + length - 1] ^= 1
    target.write_bytes(content)


def call(capfd: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """The command line in this process: exit status, standard output, standard error.

    An error without a message of its own would leave as the exception it is, and fail the test.
    """
    capfd.readouterr()
    with pytest.raises(SystemExit) as left:
        main([str(argument) for argument in arguments])
    out, err = capfd.readouterr()
    assert isinstance(left.value.code, int)
    return left.value.code, out, err


def plain(text: str) -> str:
    """Without line breaks and boxes, for messages that are wrapped."""
    return " ".join(text.replace("│", " ").split())


HELP = """
import io, json, sys
from contextlib import redirect_stdout
from nextvlad.cli import main
from nextvlad.commands import VERBS
pages = {}
for call in json.loads(sys.argv[1]):
    with redirect_stdout(io.StringIO()) as out:
        try:
            main(call)
        except SystemExit as left:
            pages[" ".join(call)] = (left.code, out.getvalue())
heavy = [name for name in ("torch", "pyarrow", "matplotlib") if name in sys.modules]
print(json.dumps({"pages": pages, "heavy": heavy}))
"""


def test_help_needs_no_torch_and_names_the_options() -> None:
    wanted = {
        "--help": ["demo", "check", "train", "evaluate", "predict", "Exit status"],
        "--version": [__version__],
        "train --help": ["RECIPE", "yt8m_paper", "audioset_tuned", "small", "--data.train", "--out"],
        "train small --help": ["--out RUN", "--init CHECKPOINT", "--resume ", "--optim.lr FLOAT", "--epochs",
                               "--data.train DATA...", "--model.streams NAME:SIZE...", "--steps INT|None"],
        "convert --help": ["DATA...", "--out DIR", "--to {auto,tfrecord,pickle}", "--videos-per-file INT",
                           "--workers INT", "--skip-damaged", "--compression {none,gzip,zlib}"],
        "evaluate --help": ["CHECKPOINT DATA...", "--json FILE", "--top-k INT", "--no-map", "--batch-size",
                            "--max-frames INT", "--workers", "--device", "--precision", "--skip-damaged"],
        "predict --help": ["CHECKPOINT DATA...", "--out FILE", "--top-k INT", "--vocabulary FILE", ".parquet",
                           "--skip-damaged"],
        "check --help": ["DATA...", "--json FILE", "--vocabulary FILE", "--workers INT"],
        "demo --help": ["--out DIR", "--video", "--clips INT", "--open-plots"],
    }  # fmt: skip
    calls = [page.split() for page in wanted]
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", HELP, json.dumps(calls)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env=dict(os.environ, COLUMNS="80"),
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["heavy"] == []
    for page, words in wanted.items():
        status, text = said["pages"][page]
        assert status == 0, page
        for word in words:
            assert word in text, (page, word)
        assert "{None}" not in text
        assert "(default: )" not in text
        assert "\x1b" not in text
        boxed = [line for line in text.splitlines() if not line.startswith(("usage", "Any streams"))]
        assert [line for line in boxed if len(line) > 80] == []


def test_alone_it_explains_itself_and_fails() -> None:
    done = nextvlad()
    assert done.returncode == 2
    assert "Usage: nextvlad VERB" in done.stderr
    assert done.stdout == ""


def test_train_evaluate_predict(place: Path, tmp_path: Path) -> None:
    """The verbs as processes of their own, with their default reader process, in the order of a user."""
    data = place / "valid-*"
    done = nextvlad("evaluate", place / "run", data, "--json", tmp_path / "scores.json")
    assert done.returncode == 0, done.stderr
    assert "GAP@5" in done.stdout
    assert "\x1b" not in done.stdout + done.stderr
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert scores["num_videos"] == 25
    assert scores["hit_at_one"] > 0.8
    assert scores["gap"] > 0.7
    log = [json.loads(line) for line in (place / "run" / "metrics.jsonl").read_text().splitlines()]
    best = max(row["gap"] for row in log if row["kind"] == "valid")
    assert scores["gap"] == pytest.approx(best, abs=1e-6)

    done = nextvlad("predict", place / "run", data, "--out", tmp_path / "out.jsonl", "--top-k", 2)
    assert done.returncode == 0, done.stderr
    assert "25 videos -> " in done.stderr
    assert done.stdout == ""
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert sorted(row["video_id"] for row in rows) == [f"v{number}" for number in range(1000, 1025)]
    names = ["cat", "dog", "cow", "owl", "elk"]
    assert all(row["names"] == [names[label] for label in row["labels"]] for row in rows)
    assert all(row["scores"] == sorted(row["scores"], reverse=True) for row in rows)


def test_options_stand_anywhere(place: Path, tmp_path: Path, capfd: Any) -> None:
    one, two = place / "valid-0.tfrecord", place / "valid-1.tfrecord"
    for number, order in enumerate((
        [place / "run", one, two, "--out", tmp_path / "0.pkl", "--workers", 0],
        ["--out", tmp_path / "1.pkl", "--workers", "0", place / "run", one, two],
        [f"--out={tmp_path / '2.pkl'}", "--workers=0", place / "run" / "best", one, two],
    )):  # fmt: skip
        assert call(capfd, "predict", *order)[0] == 0, number
    (tmp_path / "all.list").write_text(f"# both\n{one}\n{two}\n")
    assert call(capfd, "predict", place / "run", tmp_path / "all.list", "--out", tmp_path / "3.pkl")[0] == 0
    first, *others = (pickle.loads((tmp_path / f"{number}.pkl").read_bytes()) for number in range(4))
    assert len(first) == 25
    assert all(other == first for other in others)


Case = tuple[list[str], int, list[str]]
_TRAIN = ["train", "small", "--out", "@/new", *_SMALL, "--data.train"]
_EVALUATE = ["evaluate", "@/run", "--workers", "0"]
_PREDICT = ["predict", "@/run", "@/valid-0.tfrecord", "--workers", "0"]
CASES: dict[str, Case] = {
    "unknown verb": (["trian"], 2, ["no verb 'trian'; wanted one of demo, check, train, evaluate, predict"]),
    "unknown recipe": (["train", "smal"], 2, ["smal: no such recipe; wanted one of yt8m_paper"]),
    "no recipe": (["train", "--out", "x"], 2, ["got --out first, wanted a RECIPE"]),
    "unknown option": ([*_PREDICT, "--out", "@/x.csv", "--topk", "3"], 2, ["--topk", "predict --help"]),
    "bad choice": ([*_EVALUATE, "@/valid-*", "--precision", "fp8"], 2, ["fp8", "'bf16'"]),
    "bad number": ([*_TRAIN, "@/train-*", "--steps", "many"], 2, ["--steps", "'many'"]),
    "missing option": (_PREDICT, 2, ["--out FILE"]),
    "no data": (_EVALUATE, 2, ["no DATA given; wanted files"]),
    "no training data": (_TRAIN, 2, ["no training data; pass --data.train"]),
    "missing file": ([*_EVALUATE, "@/gone.tfrecord"], 2, ["@/gone.tfrecord: no such file or folder"]),
    "missing file to train": ([*_TRAIN, "@/gone.tfrecord"], 2, ["@/gone.tfrecord: no such file or folder"]),
    "empty glob": ([*_EVALUATE, "@/gone*.tfrecord"], 2, ["@/gone*.tfrecord: no file matches"]),
    "empty folder": ([*_EVALUATE, "@/nothing-in-it"], 2, ["@/nothing-in-it: no files in this folder"]),
    "not a TFRecord": ([*_EVALUATE, "@/notes.txt"], 1, ["@/notes.txt, byte 0, record 0", "not a TFRecord"]),
    "not a TFRecord to train": ([*_TRAIN, "@/notes.txt"], 1, ["@/notes.txt, byte 0", "not a TFRecord"]),
    "empty file": ([*_EVALUATE, "@/empty.tfrecord"], 1, ["@/empty.tfrecord: no videos in it"]),
    "nothing to train on": ([*_TRAIN, "@/empty.tfrecord"], 1, ["@/empty.tfrecord"]),
    "stream names": (
        [*_EVALUATE, "@/named-0.tfrecord"],
        1,
        ["named-0.tfrecord, byte 0, record 0 (video v0000)", "found streams audio_embedding (128)",
         "the model wants rgb (12), audio (6)"],
    ),
    "stream names of a recipe": (
        ["train", "audioset", "--out", "@/new", *_SMALL, "--data.train", "@/train-*"],
        1,
        ["the model wants audio_embedding (128)", "--model.streams", "rgb:12", "audio:6"],
    ),
    "stream sizes": ([*_EVALUATE, "@/sized-0.tfrecord"], 1, ["stream rgb has 13 values a frame, wanted 12"]),
    "no labels to train on": ([*_TRAIN, "@/unlabelled-0.tfrecord"], 1, ["no labels in the first 4 videos"]),
    "no labels to score": ([*_EVALUATE, "@/unlabelled-0.tfrecord"], 1, ["none of the 4 videos has a label"]),
    "label out of range": (
        [*_EVALUATE, "@/many-0.tfrecord"],
        1,
        ["@/many-0.tfrecord, byte", "(video v0", "wanted 0..4 for 5 classes"],
    ),
    "label out of range to train": (
        [*_TRAIN, "@/many-0.tfrecord", "--data.vocabulary", "@/five.csv"],
        1,
        ["@/many-0.tfrecord, byte", "wanted 0..4 for 5 classes", "--data.vocabulary"],
    ),
    "vocabulary to predict": (
        [*_PREDICT, "--out", "@/x.csv", "--vocabulary", "@/three.csv"],
        2,
        ["@/three.csv: 3 classes, the model has 5"],
    ),
    "vocabulary to train": (
        [*_TRAIN, "@/train-*", "--data.vocabulary", "@/three.csv", "--model.num-classes", "5"],
        2,
        ["@/three.csv: 3 classes, the model has 5"],
    ),
    "no vocabulary": ([*_PREDICT, "--out", "@/x.csv", "--vocabulary", "@/no.csv"], 2,
        ["no.csv: cannot be read"]),
    "unknown key": (["train", "@/unknown.json", "--out", "@/new"], 2,
                    ["@/unknown.json", "unknown key optim.learning_rate"]),
    "not JSON": (["train", "@/broken.json", "--out", "@/new"], 2, ["@/broken.json: not valid JSON"]),
    "no config file": (["train", "@/gone.json", "--out", "@/new"], 2, ["@/gone.json: cannot be read"]),
    "value out of range": ([*_TRAIN, "@/train-*", "--data.batch-size", "0"], 2, ["data.batch_size: got 0"]),
    "bad stream": ([*_TRAIN, "@/train-*", "--model.streams", "rgb"], 2, ["stream 'rgb': wanted NAME:SIZE"]),
    "batch size": ([*_EVALUATE, "@/valid-*", "--batch-size", "0"], 2,
        ["batch_size: got 0, wanted 1 or more"]),
    "frames": ([*_EVALUATE, "@/valid-*", "--max-frames", "0"], 2, ["max_frames: got 0, wanted 1 or more"]),
    "top k": ([*_EVALUATE, "@/valid-*", "--top-k", "6"], 2, ["--top-k: got 6, wanted 1 to 5"]),
    "device": ([*_EVALUATE, "@/valid-*", "--device", "gpu"], 2, ["device 'gpu': not to be had here"]),
    "device to train on": ([*_TRAIN, "@/train-*", "--device", "cuda:99"], 2,
        ["device 'cuda:99': not to be had"]),
    "no checkpoint": (["evaluate", "@/gone", "@/valid-*"], 1, ["@/gone: no such folder"]),
    "not a checkpoint": (["evaluate", "@/nothing-in-it", "@/valid-*"], 1,
                         ["@/nothing-in-it: not a checkpoint (found an empty folder)", "model.safetensors"]),
    "a file for a checkpoint": (["predict", "@/notes.txt", "@/valid-*", "--out", "@/x.csv"], 1,
                                ["@/notes.txt: not a checkpoint (found a file)"]),
    "torn checkpoint": (["predict", "@/torn", "@/valid-*", "--out", "@/x.csv"], 1,
                        ["@/torn/model.safetensors: cannot be read", "damaged"]),
    "no checkpoint to start from": ([*_TRAIN, "@/train-*", "--init", "@/gone"], 1,
        ["@/gone: no such folder"]),
    "out is a file": (["train", "small", "--out", "@/notes.txt", *_SMALL, "--data.train", "@/train-*"], 1,
                      ["@/notes.txt: cannot be made", "choose another --out"]),
    "out not writable": (["train", "small", "--out", "/proc/x/run", *_SMALL, "--data.train", "@/train-*"], 1,
                         ["/proc/x/run: cannot be made"]),
    "a run is there": (["train", "small", "--out", "@/run", *_SMALL, "--data.train", "@/train-*"], 2,
                       ["@/run: holds a run already", "--resume"]),
    "nothing to resume": ([*_TRAIN, "@/train-*", "--resume"], 2, ["@/new: nothing to resume from"]),
    "predictions into a folder": ([*_PREDICT, "--out", "@/run"], 2, ["@/run: is a folder"]),
    "predictions under a file": ([*_PREDICT, "--out", "@/notes.txt/x.csv"], 1,
                                 ["@/notes.txt/x.csv: cannot be written (a file is where a"]),
    "predictions not writable": ([*_PREDICT, "--out", "/proc/x/x.csv"], 1,
        ["/proc/x/x.csv: cannot be written"]),
    "suffix": ([*_PREDICT, "--out", "@/x.json"], 2, ["@/x.json: suffix '.json'; wanted .jsonl, .csv"]),
    "scores under a file": ([*_EVALUATE, "@/valid-0.tfrecord", "--json", "@/notes.txt/x.json"], 1,
                            ["@/notes.txt/x.json: cannot be written"]),
    "scores into a folder": ([*_EVALUATE, "@/valid-0.tfrecord", "--json", "@/run"], 1,
                             ["@/run: cannot be written"]),
    "eigenvalues": ([*_TRAIN, "@/train-*", "--data.eigenvalues", "@/no.npy"], 2,
        ["@/no.npy: cannot be read"]),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_bad_input_has_its_message(place: Path, capfd: Any, name: str) -> None:
    arguments, status, wanted = CASES[name]
    left, _, err = call(capfd, *(argument.replace("@", str(place)) for argument in arguments))
    text = plain(err)
    assert left == status, text
    for part in wanted:
        assert plain(part.replace("@", str(place))) in text
    assert "Traceback" not in text
    assert "\x1b" not in err
    assert not (place / "x.csv").exists()
    assert not list(place.glob("*.partial"))
    assert not (place / "new" / "last").exists()
    shutil.rmtree(place / "new", ignore_errors=True)


def test_a_damaged_record(place: Path, tmp_path: Path, capfd: Any) -> None:
    """File, byte, record and video are named; with --skip-damaged the rest is used and the end tells it."""
    data, out = place / "damaged.tfrecord", tmp_path / "out.csv"
    offset = list(read_records(place / "valid-0.tfrecord"))[3].place.offset
    spot = f"{data}, byte {offset}, record 3"

    done = nextvlad("predict", place / "run", data, "--out", out, "--batch-size", 2)
    assert done.returncode == 1
    assert spot in done.stderr
    assert "2 finished videos are kept in" in done.stderr
    assert " --skip-damaged" in done.stderr  # as this verb spells it
    assert "Traceback" not in done.stderr
    assert not out.exists()
    status, _, err = call(capfd, "evaluate", place / "run", data, "--workers", 0)
    assert status == 1
    assert spot in err

    status, _, err = call(capfd, "predict", place / "run", data, "--out", out, "--skip-damaged")
    assert status == 0, err
    assert "Skipped 1 damaged record:" in err
    assert spot in err
    assert "skip-damaged" not in err  # it was given
    with out.open(newline="") as file:
        ids = [row["VideoId"] for row in csv.DictReader(file)]
    assert "v1006" not in ids
    assert len(ids) == 12

    arguments = ["train", "small", "--data.train", data, "--out", tmp_path / "run", "--epochs", 2, *_SMALL]
    status, _, err = call(capfd, *arguments)
    assert status == 1
    assert spot in err
    assert "--data.skip-damaged" in err
    status, _, err = call(capfd, *arguments, "--data.skip-damaged", "--out", tmp_path / "run2")
    assert status == 0, err
    assert "Skipped 1 damaged record:" in err
    assert err.count(spot) == 1


def test_a_damaged_first_record_of_the_training_data(place: Path, tmp_path: Path, capfd: Any) -> None:
    damage(place / "train-0.tfrecord", tmp_path / "first.tfrecord", record=0)
    arguments = ["train", "small", "--data.train", tmp_path / "first.tfrecord", "--epochs", 1, *_SMALL]
    assert call(capfd, *arguments, "--out", tmp_path / "a")[0] == 1
    status, _, err = call(capfd, *arguments, "--out", tmp_path / "b", "--data.skip-damaged")
    assert status == 0, err
    assert "first.tfrecord, byte 0, record 0" in err


def test_a_full_disk_keeps_the_last_checkpoint(place: Path, tmp_path: Path) -> None:
    """Files may grow to 20 kB: the new checkpoint does not fit, and the one before stays what it was."""
    shutil.copytree(place / "run", tmp_path / "run", symlinks=True)
    before = os.readlink(tmp_path / "run" / "last")

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    more: dict[str, Callable[[], None]] = {"preexec_fn": limit}
    done = nextvlad("train", tmp_path / "run" / "config.json", "--epochs", 8, "--out", tmp_path / "run",
                    "--resume", **more)  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert "the checkpoint could not be written" in done.stderr
    assert "earlier checkpoints are untouched" in done.stderr
    assert "Traceback" not in done.stderr
    assert os.readlink(tmp_path / "run" / "last") == before
    assert isinstance(checkpoint.load(tmp_path / "run" / "last").config, NeXtVLADConfig)
    assert not list((tmp_path / "run" / "checkpoints").glob(".*"))


IMPATIENT = """
import sys
from nextvlad.cli import main
class Interrupting:
    def find_spec(self, name, path, target=None):
        if name == "nextvlad.commands":
            raise KeyboardInterrupt
sys.meta_path.insert(0, Interrupting())
main(["demo"])
"""


def test_an_interrupt_while_it_starts() -> None:
    command = [sys.executable, "-c", IMPATIENT]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 130
    assert done.stderr == "nextvlad: stopped.\n"


TALKATIVE = """
from nextvlad.cli import main
from nextvlad.commands import VERBS
VERBS["demo"] = lambda arguments: [print("x" * 80) for _ in range(10_000)] and 0
main(["demo"])
"""


def test_nobody_reads_on() -> None:
    """`nextvlad ... | head` ends without a traceback."""
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-W", "error", "-c", TALKATIVE]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, check=False, timeout=60)
    os.close(writing)
    assert done.returncode == 1
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (MemoryError(), 1, "out of memory; use a smaller batch or model"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: ..."), 1, "out of memory"),
        (KeyboardInterrupt(), 130, "stopped."),
    ],
)
def test_ends_that_are_nobodys_fault(
    monkeypatch: pytest.MonkeyPatch, capfd: Any, error: BaseException, status: int, message: str
) -> None:
    def fail(arguments: list[str]) -> int:
        raise error

    monkeypatch.setitem(VERBS, "demo", fail)
    left, _, err = call(capfd, "demo")
    assert left == status
    assert message in err


def test_a_bug_shows_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(arguments: list[str]) -> int:
        raise RuntimeError("a bug")

    monkeypatch.setitem(VERBS, "demo", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        main(["demo"])


def test_the_demo_says_at_once_that_it_cannot_draw(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: Any
) -> None:
    monkeypatch.setattr("nextvlad.demo.can_draw", lambda: False)
    status, out, err = call(capfd, "demo", "--out", tmp_path / "run")
    assert status == 2
    assert out == ""
    assert "pip install 'nextvlad[plot]'" in err
    assert not (tmp_path / "run").exists()


def test_records_without_frames_are_predicted(place: Path, tmp_path: Path, capfd: Any) -> None:
    """A video without one of its streams, or without any frame, is no fault."""
    with RecordWriter(tmp_path / "few.tfrecord") as writer:
        for number, names in enumerate((["rgb"], ["audio"], [])):
            record = make_record(number, 5)
            record.streams = {name: record.streams[name] for name in names}
            writer.write(serialize_video_record(record))
    out = tmp_path / "out.jsonl"
    status, _, err = call(
        capfd, "predict", place / "run", tmp_path / "few.tfrecord", "--out", out, "--workers", 0
    )
    assert status == 0, err
    assert len(out.read_text().splitlines()) == 3


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_behind_standard_output(tmp_path: Path) -> None:
    data = make_data(tmp_path, "data", num_videos=4)
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "nextvlad", "check", data, "--workers", "0"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1
    assert "nextvlad: the output: No space left on device" in done.stderr
    assert "Traceback" not in done.stderr
