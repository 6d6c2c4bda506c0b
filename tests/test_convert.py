"""Conversions through the real command line: lossless, numbered, gone on with, and whatever comes between."""

from __future__ import annotations

import fcntl
import json
import multiprocessing
import os
import pickle
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from makers import make_data, make_record, nextvlad
from nextvlad.convert import convert
from nextvlad.convert_manifest import MANIFEST, Manifest
from nextvlad.data import conversion
from nextvlad.data.paddle_pickle import PickleWriter, is_pickle, read_pickle
from nextvlad.data.sources import count_videos, read
from nextvlad.data.tfrecord import RecordWriter
from nextvlad.data.video_record import VideoRecord, serialize_video_record
from nextvlad.errors import DataError, OutputError, RecordError, UsageError, WorkerError


def make_pickles(folder: Path, *counts: int, name: str = "part") -> list[Path]:
    """One pickle for each of the numbers of videos."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}{index}.pkl" for index in range(len(counts))]
    first = 0
    for path, count in zip(paths, counts, strict=True):
        with PickleWriter(path) as writer:
            for number in range(first, first + count):
                writer.write(make_record(number, 5))
        first += count
    return paths


def videos(*paths: object) -> list[tuple[Any, ...]]:
    """All that the videos of some files hold, to compare."""
    return [
        (
            video.video_id,
            video.id_key,
            video.labels.tolist(),
            {name: (frames.dtype, frames.tolist()) for name, frames in sorted(video.streams.items())},
            video.context,
        )
        for video in read([str(path) for path in paths])
    ]


def names(folder: Path) -> list[str]:
    """The files in a folder, hidden ones but the manifest included."""
    return sorted(path.name for path in folder.iterdir() if path.name != MANIFEST)


def test_real_pickles_become_tfrecords_and_pickles_again(golden: Path, tmp_path: Path) -> None:
    sources = [golden / "paddle" / f"sample_{name}.pkl" for name in ("a", "b", "infer_nolabel")]
    done = nextvlad("convert", *sources, "--out", tmp_path / "records")
    assert (done.returncode, done.stderr) == (0, "")
    made = [tmp_path / "records" / f"{source.stem}.tfrecord" for source in sources]
    assert names(tmp_path / "records") == [path.name for path in made]
    assert [is_pickle(path) for path in made] == [False] * 3
    assert videos(*made) == videos(*sources)
    frames = sum(max(map(len, video.streams.values())) for video in read([str(path) for path in sources]))
    sizes = [sum(os.path.getsize(path) for path in paths) for paths in (sources, made)]
    assert "3 TFRecord files" in done.stdout
    assert "videos   24 read, and counted again in what was written" in done.stdout
    assert f"frames   {frames:,}" in done.stdout
    assert f"bytes    {sizes[0]:,} read, {sizes[1]:,} written" in done.stdout
    assert "videos/s" in done.stdout
    back = nextvlad("convert", tmp_path / "records", "--out", tmp_path / "back", "--workers", 0)
    assert (back.returncode, back.stderr) == (0, "")
    again = [tmp_path / "back" / source.name for source in sources]
    assert videos(*again) == videos(*sources)
    with open(again[0], "rb") as file:
        assert len(pickle.load(file, encoding="bytes")) == 7


def test_what_paddlevideo_does_not_know_goes_along(tmp_path: Path) -> None:
    record = VideoRecord(
        "a",
        np.array([2, 1, 2]),
        {"audio_embedding": np.ones((3, 4), np.uint8), "flow": np.ones((2, 3), np.float32)},
        {
            "start_time_seconds": [30.0],
            "segment_labels": [3, 4],
            "segment_scores": [1.0, 0.0],
            "note": [b"\xff"],
        },
        id_key="video_id",
    )
    with RecordWriter(tmp_path / "a.tfrecord", "gzip") as writer:
        writer.write(serialize_video_record(record))
    convert([str(tmp_path / "a.tfrecord")], tmp_path / "there", workers=0)
    convert([str(tmp_path / "there")], tmp_path / "back", workers=0)
    assert names(tmp_path / "back") == ["a.tfrecord"]
    assert videos(tmp_path / "back" / "a.tfrecord") == videos(tmp_path / "a.tfrecord")


def test_numbered_files(tmp_path: Path) -> None:
    sources = make_pickles(tmp_path / "in", 7, 3, 0)
    done = nextvlad("convert", tmp_path / "in", "--out", tmp_path / "out", "--videos-per-file", 3)
    assert (done.returncode, done.stderr) == (0, "")
    assert names(tmp_path / "out") == [
        *(f"part0-0000{part}.tfrecord" for part in range(3)),
        "part1-00000.tfrecord",
        "part2-00000.tfrecord",
    ]
    made = sorted((tmp_path / "out").glob("*.tfrecord"))
    assert [count_videos(path) for path in made] == [3, 3, 1, 3, 0]
    assert videos(*made) == videos(*sources)
    assert "5 TFRecord files" in done.stdout


def test_compression_and_the_same_kind(tmp_path: Path) -> None:
    data = make_data(tmp_path / "in", "a", num_videos=4, num_shards=1)
    done = nextvlad("convert", data, "--out", tmp_path / "out", "--to", "tfrecord", "--compression", "gzip")
    assert (done.returncode, done.stderr) == (0, "")
    made = tmp_path / "out" / "a-0.tfrecord.gz"
    assert made.read_bytes()[:2] == b"\x1f\x8b"
    assert videos(made) == videos(tmp_path / "in" / "a-0.tfrecord")
    convert([str(made)], tmp_path / "pickles", workers=0)
    assert names(tmp_path / "pickles") == ["a-0.pkl"]


def test_equal_names_from_several_folders(tmp_path: Path) -> None:
    for place, first in (("x", 0), ("y/deep", 1)):
        make_pickles(tmp_path / place, 1, 1, name="part")
        with PickleWriter(tmp_path / place / "part0.pkl") as writer:
            writer.write(make_record(10 + first, 5))
    make_pickles(tmp_path / "z", 1, name="x-part")  # as what x/part0 would be called
    make_pickles(tmp_path / "z", 1, name="PART")
    sources = sorted(map(str, tmp_path.glob("**/*.pkl")))
    results = convert(sources, tmp_path / "out", workers=0)
    made = [tmp_path / "out" / done.outputs[0][0] for done in results]
    assert len({path.name.lower() for path in made}) == len(sources) == 6
    assert names(tmp_path / "out") == sorted(path.name for path in made)
    assert "x-part0.tfrecord" in names(tmp_path / "out")
    for source, path in zip(sources, made, strict=True):
        assert videos(path) == videos(source)


def test_lists_of_pickles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_pickles(tmp_path / "data", 2, 1)
    (tmp_path / "train.list").write_text("data/part1.pkl\ndata/part0.pkl\n")
    monkeypatch.chdir(tmp_path)
    assert [done.num_videos for done in convert(["train.list"], Path("out"), workers=0)] == [1, 2]


def stamps(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir() if path.name != MANIFEST}


def test_the_same_again_redoes_only_what_is_not_whole(tmp_path: Path) -> None:
    make_pickles(tmp_path / "in", 2, 2, 2, 2)
    out = tmp_path / "out"
    call = ("convert", tmp_path / "in", "--out", out, "--workers", 2)
    assert nextvlad(*call).returncode == 0
    wanted, before = videos(out), stamps(out)
    (out / "part1.tfrecord").unlink()
    (out / "part2.tfrecord").write_bytes((out / "part2.tfrecord").read_bytes()[:-1])
    (out / ".part2.tfrecord.99.partial").write_bytes(b"x")
    done = nextvlad(*call)
    assert (done.returncode, done.stderr) == (0, "")
    assert "4 read, 2 of them before" in done.stdout
    assert "videos   8 read" in done.stdout
    assert videos(out) == wanted
    after = stamps(out)
    assert after.keys() == before.keys()
    changed = {name for name in after if after[name] != before[name]}
    assert changed == {"part1.tfrecord", "part2.tfrecord"}


def test_into_the_folder_of_the_sources(tmp_path: Path) -> None:
    make_pickles(tmp_path, 2, 1)
    for _ in range(2):  # the second time with what was made among the data
        done = nextvlad("convert", tmp_path, "--out", tmp_path)
        assert (done.returncode, done.stderr) == (0, "")
    assert names(tmp_path) == ["part0.pkl", "part0.tfrecord", "part1.pkl", "part1.tfrecord"]


KILLED = """
import os, signal, sys
from pathlib import Path
from nextvlad.convert import convert
from nextvlad.convert_manifest import Manifest
from nextvlad.data import conversion
left = [int(sys.argv[3])]
def last(then):
    def call(*arguments):
        left[0] -= 1
        if left[0] < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return then(*arguments)
    return call
for place, name in ((conversion._Parts, "write"), (conversion._Parts, "check"), (Manifest, "add")):
    setattr(place, name, last(getattr(place, name)))
convert([sys.argv[1]], Path(sys.argv[2]), videos_per_file=2, workers=0)
"""


@pytest.mark.parametrize("steps", [0, 2, 4, 5, 12])
def test_going_on_after_kill_9(tmp_path: Path, steps: int) -> None:
    sources = make_pickles(tmp_path / "in", 3, 3, 2)  # 14 steps
    out = tmp_path / "out"
    call = [sys.executable, "-c", KILLED, str(tmp_path / "in"), str(out), str(steps)]
    assert subprocess.run(call, check=False).returncode == -signal.SIGKILL
    with Manifest(str(out)) as manifest:
        finished = len(manifest.done)
    assert finished == sum(steps >= needed for needed in (5, 10))
    done = nextvlad("convert", tmp_path / "in", "--out", out, "--videos-per-file", 2)
    assert (done.returncode, done.stderr) == (0, "")
    assert (f", {finished} of them before" in done.stdout) == (finished > 0)
    assert names(out) == [
        f"part{source}-0000{part}.tfrecord" for source, part in ((0, 0), (0, 1), (1, 0), (1, 1), (2, 0))
    ]
    assert videos(out) == videos(*sources)


def wait_for(path: Path, pattern: str) -> None:
    deadline = time.monotonic() + 60
    while not list(path.glob(pattern)):
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("workers", [0, 2])
def test_ctrl_c_keeps_what_is_finished(tmp_path: Path, workers: int) -> None:
    data = tmp_path / "in"
    make_data(data, "a", num_videos=2, num_shards=1)
    whole = (data / "a-0.tfrecord").read_bytes()
    os.mkfifo(data / "b.tfrecord")
    call = [sys.executable, "-m", "nextvlad", "convert", data / "a-0.tfrecord", data / "b.tfrecord"]
    call += ["--out", tmp_path / "out", "--workers", str(workers)]
    process = subprocess.Popen(call, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with process, open(data / "b.tfrecord", "wb", buffering=0) as pipe:  # held open, so it does not end
        pipe.write(whole[: len(whole) // 2 + 10])
        wait_for(tmp_path / "out", "a-0.pkl")
        wait_for(tmp_path / "out", ".b.pkl.*.partial")
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=60)
    assert (process.returncode, error) == (130, "nextvlad: stopped.\n")
    assert names(tmp_path / "out") == ["a-0.pkl"]
    assert videos(tmp_path / "out" / "a-0.pkl") == videos(data / "a-0.tfrecord")


def test_a_process_that_dies(tmp_path: Path) -> None:
    data = tmp_path / "in"
    make_data(data, "a", num_videos=2, num_shards=1)
    os.mkfifo(data / "b.tfrecord")

    def kill() -> None:
        with open(data / "b.tfrecord", "wb", buffering=0):
            for process in multiprocessing.active_children():
                process.kill()

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    with pytest.raises(WorkerError, match=r"\.tfrecord: the process that reads it \(pid \d+\) was killed"):
        convert([str(data / "a-0.tfrecord"), str(data / "b.tfrecord")], tmp_path / "out", workers=2)
    killer.join()
    assert not multiprocessing.active_children()
    assert set(names(tmp_path / "out")) <= {"a-0.pkl"}


def test_damage_stops_or_is_left_out(tmp_path: Path) -> None:
    sources = make_pickles(tmp_path / "in", 2, 3)
    records = [
        {"video": f"v{number}", "feature": np.ones((2, 3), np.uint8), "nframes": 2} for number in range(3)
    ]
    del records[1]["feature"]
    sources[1].write_bytes(pickle.dumps(records))
    out = tmp_path / "out"
    call = ("convert", tmp_path / "in", "--out", out, "--workers", 0)
    failed = nextvlad(*call)
    assert (failed.returncode, failed.stdout) == (1, "")
    assert "part1.pkl, byte" in failed.stderr
    assert "record 1 (video v1): no frames" in failed.stderr
    assert names(out) == ["part0.tfrecord"]
    done = nextvlad(*call, "--skip-damaged")
    assert (done.returncode, done.stderr) == (0, "")
    assert "1 of them before" in done.stdout
    assert "damaged  1 left out\n" in done.stdout
    assert "record 1 (video v1): no frames" in done.stdout
    assert [video.video_id for video in read(str(out / "part1.tfrecord"))] == ["v0", "v2"]
    assert nextvlad(*call).returncode == 1  # what was left out is not taken for done


def test_many_damaged_records_are_listed_up_to_some(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.pkl").write_bytes(pickle.dumps([{"no": number} for number in range(40)]))
    monkeypatch.setattr(conversion, "MAX_DAMAGE", 30)
    (done,) = convert([str(tmp_path / "a.pkl")], tmp_path / "out", skip_damaged=True)
    assert (done.num_videos, done.num_damaged, len(done.damage)) == (0, 40, 30)


def test_the_list_of_damage_is_cut(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.pkl").write_bytes(pickle.dumps([{"no": number} for number in range(40)]))
    convert([str(tmp_path / "a.pkl")], tmp_path / "out", skip_damaged=True)
    assert "and 20 more; `nextvlad check` lists them all" in capsys.readouterr().out


def test_a_record_that_the_other_kind_cannot_hold(tmp_path: Path) -> None:
    record = {"video": "a", "feature": np.ones((2, 3), np.uint8), "labels": [3]}
    (tmp_path / "a.pkl").write_bytes(pickle.dumps([record]))
    with pytest.raises(RecordError, match=r"a.pkl, byte \d+, record 0: .*'labels' stands for the id or the"):
        convert([str(tmp_path / "a.pkl")], tmp_path / "out", workers=0)
    (done,) = convert([str(tmp_path / "a.pkl")], tmp_path / "out", workers=0, skip_damaged=True)
    assert (done.num_videos, done.num_damaged) == (0, 1)


def test_what_was_written_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (source,) = make_pickles(tmp_path / "in", 3)
    monkeypatch.setattr(conversion, "count_videos", lambda path: 2)
    with pytest.raises(OutputError, match=r"part0\.tfrecord: 3 videos were written, but what is there is 2"):
        convert([str(source)], tmp_path / "out", workers=0)
    assert names(tmp_path / "out") == []

    def fail(path: str) -> int:
        raise RecordError("truncated")

    monkeypatch.setattr(conversion, "count_videos", fail)
    with pytest.raises(OutputError, match="but what is there is truncated"):
        convert([str(source)], tmp_path / "out", workers=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["in", "--to", "pickle"], "was begun with --to tfrecord --videos-per-file 2, now --to pickle. Give"),
        (["in", "--videos-per-file", 3], "--videos-per-file 2, now --to tfrecord --videos-per-file 3."),
        (
            ["in", "--compression", "zlib", "--videos-per-file", 2],
            "now --to tfrecord --videos-per-file 2 --com",
        ),
        (
            ["in/part0.pkl", "--videos-per-file", 2],
            "1 file of {0:,} bytes: part1.pkl was there then and is not",
        ),
        (["in", "more", "--videos-per-file", 2], "2 files of {1:,} bytes, now 3 files"),
        (["in/part1.pkl", "in/part0.pkl", "--videos-per-file", 2], "in another order"),
    ],
)
def test_a_folder_of_another_conversion(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[object], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    sources = make_pickles(Path("in"), 2, 1)
    make_pickles(Path("more"), 1, name="other")
    convert(["in"], Path("out"), videos_per_file=2, workers=0)
    before = stamps(Path("out"))
    done = nextvlad("convert", *arguments, "--out", "out")
    sizes = [path.stat().st_size for path in sources]
    assert done.returncode == 2
    assert message.format(sizes[0], sum(sizes)) in done.stderr
    assert stamps(Path("out")) == before


def test_a_source_that_has_changed(tmp_path: Path) -> None:
    sources = make_pickles(tmp_path / "in", 2, 1)
    convert([str(tmp_path / "in")], tmp_path / "out", workers=0)
    size = sources[1].stat().st_size
    with PickleWriter(sources[1]) as writer:
        writer.write(make_record(0, 5))
        writer.write(make_record(1, 5))
    done = nextvlad("convert", tmp_path / "in", "--out", tmp_path / "out")
    assert done.returncode == 2
    assert (
        f"part1.pkl has changed since ({size:,} bytes then, {sources[1].stat().st_size:,} now)" in done.stderr
    )
    os.utime(sources[0], ns=(1, 1))
    with pytest.raises(UsageError, match=r"part0.pkl has changed since \(as long as before\)"):
        convert([str(tmp_path / "in")], tmp_path / "out", workers=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere", "--out", "out"], "nowhere: no such file or folder"),
        (["--out", "out"], "no DATA given"),
        (
            ["in/part0.pkl", "in/a-0.tfrecord", "--out", "out"],
            "both pickles (in/part0.pkl) and TFRecord files (",
        ),
        (
            ["in/part0.pkl", "--out", "out", "--videos-per-file", 0],
            "videos-per-file: got 0, wanted 1 or more",
        ),
        (["in/part0.pkl", "--out", "out", "--workers", -1], "workers: got -1, wanted 0 or more"),
        (
            ["in/a-0.tfrecord", "--out", "out", "--compression", "gzip"],
            "PaddleVideo reads no compressed pickles",
        ),
        (
            ["in/*.pkl", "--to", "pickle", "--out", "out", "--compression", "zlib"],
            "reads no compressed pickles",
        ),
        (["in/a-0.tfrecord", "--to", "tfrecord", "--out", "in"], "in/a-0.tfrecord: would be overwritten"),
        (["in/part0.pkl", "--out", "there"], "there/part0.tfrecord: is there already. Remove it, or give"),
    ],
)
def test_wrong_calls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[object], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    make_pickles(Path("in"), 1)
    make_data(Path("in"), "a", num_videos=1, num_shards=1)
    Path("there").mkdir()
    Path("there/part0.tfrecord").write_text("mine")
    before = names(Path("in"))
    done = nextvlad("convert", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
    assert Path("there/part0.tfrecord").read_text() == "mine"
    assert names(Path("in")) == before
    assert sorted(path.name for path in Path("there").iterdir()) == ["part0.tfrecord"]
    assert not Path("out").exists() or "workers" in message


def test_mixed_kinds_with_a_target(tmp_path: Path) -> None:
    make_pickles(tmp_path / "in", 1)
    make_data(tmp_path / "in", "a", num_videos=1, num_shards=1)
    done = nextvlad("convert", tmp_path / "in", "--out", tmp_path / "out", "--to", "pickle")
    assert (done.returncode, done.stderr) == (0, "")
    assert names(tmp_path / "out") == ["a-0.pkl", "part0.pkl"]


def test_all_given_was_made_here(tmp_path: Path) -> None:
    make_pickles(tmp_path / "in", 1)
    convert([str(tmp_path / "in")], tmp_path / "out", workers=0)
    with pytest.raises(UsageError, match="all of the data given was made by this conversion"):
        convert([str(tmp_path / "out")], tmp_path / "out", workers=0)


def test_a_folder_in_use(tmp_path: Path) -> None:
    make_pickles(tmp_path / "in", 1)
    convert([str(tmp_path / "in")], tmp_path / "out", workers=0)
    with Manifest(str(tmp_path / "out")):
        done = nextvlad("convert", tmp_path / "in", "--out", tmp_path / "out")
    assert done.returncode == 2
    assert "another conversion is at work in this folder. Give another --out, or wait for it." in done.stderr


def test_a_list_cut_while_it_was_written_or_damaged(tmp_path: Path) -> None:
    sources = make_pickles(tmp_path / "in", 1, 1)
    out = tmp_path / "out"
    convert([str(tmp_path / "in")], out, workers=0)
    whole = (out / MANIFEST).read_bytes()
    for cut in range(len(whole)):
        (out / MANIFEST).write_bytes(whole[:cut])
        with Manifest(str(out)) as manifest:
            assert (manifest.plan is not None) == (b"\n" in whole[:cut])
            assert len(manifest.done) == max(whole[:cut].count(b"\n") - 1, 0)
    (out / MANIFEST).write_bytes(whole[:-5])
    convert([str(tmp_path / "in")], out, workers=0)
    assert len((out / MANIFEST).read_text().splitlines()) == 3
    assert videos(out) == videos(*sources)
    lines = whole.decode().splitlines()
    wrong = [
        json.dumps({**json.loads(lines[0]), "version": 9}),
        "[]",
        "x",
        '{"version": 1}',
        lines[0] + "\n5",
    ]
    for text in wrong:
        (out / MANIFEST).write_text(text + "\n")
        with pytest.raises(DataError, match="not a list of what was converted, as this version writes it"):
            convert([str(tmp_path / "in")], out, workers=0)


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    make_pickles(tmp_path / "in", 1)
    (tmp_path / "file").touch()
    done = nextvlad("convert", tmp_path / "in", "--out", tmp_path / "file" / "out")
    assert done.returncode == 1
    assert (
        "file/out: cannot be written to (a file is where a folder should be). Choose another" in done.stderr
    )


LIMITED = """
import resource, runpy, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), int(sys.argv[1])))
sys.argv = ["nextvlad", *sys.argv[2:]]
runpy.run_module("nextvlad", run_name="__main__", alter_sys=True)
"""


@pytest.mark.skipif(not hasattr(resource, "RLIMIT_FSIZE"), reason="files cannot be limited here")
@pytest.mark.parametrize(("most", "kept"), [(5, []), (3000, ["small.tfrecord"])])
def test_a_full_disk(tmp_path: Path, most: int, kept: list[str]) -> None:
    make_pickles(tmp_path, 1, name="a")
    (tmp_path / "a0.pkl").rename(tmp_path / "small.pkl")
    with PickleWriter(tmp_path / "wide.pkl") as writer:
        writer.write(VideoRecord("v", np.array([1]), {"rgb": np.ones((9, 999), np.uint8)}))
    call = [tmp_path / "small.pkl", tmp_path / "wide.pkl", "--out", tmp_path / "out", "--workers", "0"]
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(most), "convert", *call],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "cannot be written (File too large). Free space" in done.stderr
    assert names(tmp_path / "out") == kept
    assert nextvlad("convert", *call).returncode == 0
    assert videos(tmp_path / "out") == videos(tmp_path / "small.pkl", tmp_path / "wide.pkl")


def test_pickles_where_data_is(tmp_path: Path) -> None:
    sources = make_pickles(tmp_path / "in", 3, 2)
    done = nextvlad("check", tmp_path / "in", "--json", tmp_path / "found.json")
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    assert (found["num_videos"], found["num_damaged"], found["num_files"]) == (5, 0, 2)
    assert found["num_bytes"] == sum(path.stat().st_size for path in sources)
    assert len(list(read_pickle(sources[0]))) == 3


def test_manifest_that_somebody_changed(tmp_path: Path) -> None:
    source, out = str(make_pickles(tmp_path / "in", 2, 3)[0].parent), tmp_path / "out"
    convert([source], out, workers=0)
    path = out / MANIFEST
    whole = path.read_bytes()
    lines = [json.loads(line) for line in whole.splitlines()]
    before = names(out)
    strange: list[Any] = [None, -1, {}, [["a\0b", 3]], [["../../x", 3]], [[5, "y"]], 1.5]
    strange += [{"to": "tfrecord", "videos_per_file": "x"}, {"to": "bogus"}, [{"name": 1, "num_bytes": "z"}]]
    for line, values in enumerate(lines):
        for key in values:
            for value in strange:
                changed = [*lines[:line], {**values, key: value}, *lines[line + 1 :]]
                path.write_text("".join(json.dumps(each) + "\n" for each in changed))
                with pytest.raises((DataError, UsageError)):
                    convert([source], out, workers=0)
                assert names(out) == before, (key, value)
    for content in (
        b"[" * 100_000 + b"\n",
        b"null\n",
        whole + whole,
        whole.replace(b"part1.tf", b"part0.tf"),
    ):
        path.write_bytes(content)
        with pytest.raises(DataError, match="not a list of what was converted"):
            convert([source], out, workers=0)
        assert names(out) == before
    path.write_bytes(whole)
    convert([source], out, workers=0)
    path.unlink()
    path.symlink_to("/dev/zero")
    with pytest.raises(DataError, match="is no regular file"):
        convert([source], out, workers=0)


def test_manifest_that_was_removed_before_it_was_locked(tmp_path: Path, monkeypatch: Any) -> None:
    (source,) = make_pickles(tmp_path / "in", 2)
    lock = fcntl.flock

    def locked_late(*arguments: Any) -> None:
        (tmp_path / "out" / MANIFEST).unlink()
        lock(*arguments)

    monkeypatch.setattr(fcntl, "flock", locked_late)
    with pytest.raises(UsageError, match="another conversion is at work"):
        convert([str(source)], tmp_path / "out", workers=0)
