"""`nextvlad extract` on real files that the tests encode."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("av")

from makers import nextvlad
from nextvlad import video_commands
from nextvlad.data.sources import read
from nextvlad.data.tfrecord import read_records
from nextvlad.data.vocabulary import Vocabulary
from nextvlad.errors import DataError, UsageError
from nextvlad.extract import extract, provenance_of, share_processors
from nextvlad.extract_labels import LabelOptions
from nextvlad.extract_outcome import Outcome
from nextvlad.extract_splits import SplitOptions
from nextvlad.journal import Journal
from nextvlad.provenance import Provenance, of_record
from nextvlad.video.extractor import Extractor, ExtractorOptions
from videos import encode, tone

SOUND = ExtractorOptions(visual=None)
"""Only the log-mel of sound, which takes no backbone and no time."""
ALL_IN_TRAIN = SplitOptions((1.0, 0.0, 0.0))


def clip(path: Path, seconds: int = 2, hz: float = 440.0, **more: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return encode(
        path,
        frames=seconds * 4,
        fps=4,
        sound=tone(seconds, hz=hz, rate_hz=16_000),
        sound_rate_hz=16_000,
        **more,
    )


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight clips in folders of two labels, and three files that cannot be read."""
    folder = tmp_path_factory.mktemp("clips")
    for number in range(4):
        clip(folder / "dog" / f"d{number}.mp4", 1 + number, 300.0 + 100 * number)
        clip(folder / "cat" / f"c{number}.mkv", 2, 900.0 + 100 * number)
    (folder / "cat" / "empty.mp4").touch()
    (folder / "dog" / "text.avi").write_text("no video at all\n" * 100)
    (folder / "dog" / "cut.mp4").write_bytes((folder / "dog" / "d3.mp4").read_bytes()[:900])
    return folder


def run(clips: Path | str, out: Path, options: ExtractorOptions = SOUND, **more: Any) -> dict[str, Outcome]:
    settings = {"labels": LabelOptions(from_folders=True), "splits": ALL_IN_TRAIN, "workers": 0, **more}
    return extract([str(clips)], out, options, **settings)


def contents(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(out.glob("t*.tfrecord"))}


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_the_records_are_those_of_the_extractor(
    clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ExtractorOptions(batch_size=5)
    outcomes = run(clips, tmp_path / "f", options, videos_per_shard=3)
    assert sorted(contents(tmp_path / "f")) == [f"train-0000{number}.tfrecord" for number in range(4)]
    records = {record.video_id: record for record in read(str(tmp_path / "f"))}
    names = Vocabulary.load(tmp_path / "f" / "vocabulary.csv").names
    assert names == ("cat", "dog")
    extractor = Extractor(options)
    assert records.keys() == {f"{letter}{number}" for letter in "cd" for number in range(4)}
    provenance = provenance_of(extractor)
    for video_id, record in records.items():
        folder = "dog" if video_id[0] == "d" else "cat"
        assert [names[label] for label in record.labels] == [folder]
        path = next((clips / folder).glob(f"{video_id}.*"))
        alone = extractor.extract(path).streams
        assert record.streams.keys() == alone.keys() == {"rgb", "audio"}
        assert record.streams["audio"].tobytes() == alone["audio"].tobytes()
        # A backbone rounds a batch of another size otherwise; a byte may fall on the other side.
        difference = record.streams["rgb"].astype(int) - alone["rgb"]
        assert record.streams["rgb"].shape == alone["rgb"].shape == (outcomes[video_id].num_rows["rgb"], 1280)
        assert np.abs(difference).max() <= 1
        assert of_record(record.context) == provenance.token
    assert Provenance.load(tmp_path / "f" / "provenance.json") == provenance
    failed = {name for name, outcome in outcomes.items() if outcome.failure}
    assert failed == {"empty", "text", "cut"}
    assert {row["video_id"] for row in table(tmp_path / "f" / "failures.csv")} == failed
    rows = {row["video_id"]: row for row in table(tmp_path / "f" / "index.csv")}
    assert len(rows) == 11
    assert rows["d2"]["status"] == "done"
    assert rows["d2"]["labels"] == "dog"
    assert rows["empty"]["status"] == "failed"
    assert "empty" in rows["empty"]["message"]
    assert not (tmp_path / "f" / ".nextvlad-extract").exists()
    text = capsys.readouterr().out
    assert "videos   8 done" in text
    assert "failed   3" in text


def test_on_the_command_line_with_processes(clips: Path, tmp_path: Path) -> None:
    arguments = ["--labels-from-folders", "--visual", "none", "--fractions", 1, 0, 0, "--workers", 2]
    done = nextvlad("extract", clips, "--out", tmp_path / "f", *arguments)
    assert done.returncode == 0, done.stderr
    run(clips, tmp_path / "same")
    assert contents(tmp_path / "f") == contents(tmp_path / "same")  # whatever the order they were finished in
    checked = nextvlad("check", tmp_path / "f")
    assert checked.returncode == 0, checked.stderr


def test_nothing_that_can_be_read(clips: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"not one of 1 clips could be read; failures\.csv"):
        extract([str(clips / "cat" / "empty.mp4")], tmp_path / "f", SOUND, workers=0)
    assert [row["video_id"] for row in table(tmp_path / "f" / "failures.csv")] == ["empty"]
    assert not contents(tmp_path / "f")


def test_nothing_is_done_twice(clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = tmp_path / "clips"
    shutil.copytree(clips, copy)
    run(copy, tmp_path / "f", videos_per_shard=4)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "f").glob("*.tfrecord")}
    (copy / "cat" / "empty.mp4").write_bytes((copy / "cat" / "c0.mkv").read_bytes())  # repaired
    capsys.readouterr()
    outcomes = run(copy, tmp_path / "f", videos_per_shard=4)
    assert {name for name, outcome in outcomes.items() if outcome.failure} == {"text", "cut"}
    text = capsys.readouterr().out
    assert "videos   9 done, 8 of them before" in text
    changed = [path for path, when in before.items() if path.stat().st_mtime_ns != when]
    assert len(changed) == 1  # the one that it belongs to
    run(copy, tmp_path / "new", videos_per_shard=4)
    assert contents(tmp_path / "f") == contents(tmp_path / "new")


def test_a_shard_that_is_gone_is_made_again(clips: Path, tmp_path: Path) -> None:
    run(clips, tmp_path / "f", videos_per_shard=4)
    wanted = contents(tmp_path / "f")
    (tmp_path / "f" / "train-00001.tfrecord").unlink()
    run(clips, tmp_path / "f", videos_per_shard=4)
    assert contents(tmp_path / "f") == wanted


def die_at(stop_at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The end comes at this one of the renames and deletions that the work consists of."""
    count = 0
    real = {name: getattr(os, name) for name in ("replace", "unlink")}

    def counted(name: str) -> Any:
        def call(*arguments: Any) -> None:
            nonlocal count
            count += 1
            if count >= stop_at:  # nothing more is done, as after SIGKILL, also no cleaning up
                raise KeyboardInterrupt
            real[name](*arguments)

        return call

    for name in real:
        monkeypatch.setattr(os, name, counted(name))


@pytest.mark.parametrize("stop_at", [1, 3, 4, 7, 9, 12, 15, 17])
def test_stopped_anywhere_it_goes_on(
    stop_at: int, clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(clips, tmp_path / "whole", videos_per_shard=4)
    die_at(stop_at, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        run(clips, tmp_path / "f", videos_per_shard=4)
    monkeypatch.undo()
    for name, content in contents(tmp_path / "f").items():
        assert content == contents(tmp_path / "whole")[name]
    run(clips, tmp_path / "f", videos_per_shard=4)
    assert contents(tmp_path / "f") == contents(tmp_path / "whole")
    left = {path.name for path in (tmp_path / "f").iterdir()}
    assert left == {path.name for path in (tmp_path / "whole").iterdir()}


def test_killed_and_started_again(clips: Path, tmp_path: Path) -> None:
    run(clips, tmp_path / "whole", videos_per_shard=4)
    command = [sys.executable, "-m", "nextvlad", "extract", str(clips), "--out", str(tmp_path / "f")]
    command += ["--labels-from-folders", "--visual", "none", "--fractions", "1", "0", "0", "--workers", "1"]
    command += ["--videos-per-shard", "4"]
    journal = tmp_path / "f" / ".nextvlad-extract.jsonl"
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    give_up = time.monotonic() + 60
    while not journal.exists() or journal.read_bytes().count(b'"failure": null}\n') < 2:
        assert time.monotonic() < give_up
        assert process.poll() is None
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = [json.loads(line) for line in journal.read_bytes().splitlines()[1:] if line.endswith(b"}")]
    again = subprocess.run(command, capture_output=True, text=True, timeout=100, check=True)
    lines = [json.loads(line) for line in journal.read_bytes().splitlines()[1:]]
    read_before = [line["clip"] for line in done if "clip" in line and line["failure"] is None]
    clips_done = [line["clip"] for line in lines if "clip" in line]
    assert read_before
    assert all(clips_done.count(number) == 1 for number in read_before)
    assert f"{len(read_before)} of them before" in again.stdout
    assert contents(tmp_path / "f") == contents(tmp_path / "whole")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            {"options": ExtractorOptions(visual=None, rate_hz=2.0)},
            r"(?s)made in another way.*\* +rate_hz +1.0 +2.0",
        ),
        ({"labels": None}, "was begun with 2 labels, now there are 0"),
        ({"videos_per_shard": 2}, "has changed since this was begun: shard 'train-00000' then"),
        ({"splits": SplitOptions((0.0, 1.0, 0.0))}, "shard 'train-00000' then, 'valid-00000' now"),
    ],
)
def test_other_settings_are_refused(change: dict[str, Any], reason: str, clips: Path, tmp_path: Path) -> None:
    run(clips, tmp_path / "f")
    before = contents(tmp_path / "f")
    with pytest.raises(UsageError, match=reason):
        run(clips, tmp_path / "f", **change)
    with pytest.raises(
        UsageError, match="was begun with 11 clips, now there are 6: 'c0' and 4 more was there then"
    ):
        run(clips / "dog" / "..", tmp_path / "f", labels=LabelOptions((one_folder(tmp_path),)))
    assert contents(tmp_path / "f") == before


def one_folder(folder: Path) -> Path:
    path = folder / "dogs.csv"
    path.write_text("d0,dog\nd1,dog\nd2,dog\nd3,dog\ntext,dog\ncut,cat\n")
    return path


@pytest.mark.parametrize(
    "name", ["train-00000.tfrecord", "valid-00007.tfrecord", "vocabulary.csv", "index.csv"]
)
def test_another_files_are_not_overwritten_nor_mixed_in(name: str, clips: Path, tmp_path: Path) -> None:
    (tmp_path / "f").mkdir()
    (tmp_path / "f" / name).write_bytes(b"mine")
    with pytest.raises(UsageError, match=f"{name}: is there already, and not from an extraction"):
        run(clips, tmp_path / "f")
    assert [path.name for path in (tmp_path / "f").iterdir()] == [name]
    assert (tmp_path / "f" / name).read_bytes() == b"mine"


def replace_video(path: Path, source: Path) -> None:
    """By another of the same size, which is padded to it; written a second later, as clocks may be coarse."""
    before = path.stat()
    content = source.read_bytes()
    assert len(content) <= before.st_size
    path.write_bytes(content.ljust(before.st_size, b"\0"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1_000_000_000))


@pytest.fixture
def own_clips(tmp_path: Path) -> Path:
    """Six clips that may be changed, of which d is the largest."""
    folder = tmp_path / "clips"
    for number, name in enumerate("abcdef"):
        clip(folder / f"{name}.mp4", 4 if name == "d" else 2, 300.0 + 50 * number)
    return folder


def replaced_run(clips: Path, out: Path) -> dict[str, Outcome]:
    return run(clips, out, labels=None, videos_per_shard=3)


def test_a_video_that_was_replaced_is_extracted_again(
    own_clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    replaced_run(own_clips, tmp_path / "f")
    first = contents(tmp_path / "f")
    replace_video(own_clips / "d.mp4", own_clips / "b.mp4")
    capsys.readouterr()
    assert replaced_run(own_clips, tmp_path / "f")["d"].num_rows["audio"] == 2
    said = capsys.readouterr()
    assert "1 clip whose file was replaced since" in said.err
    assert "d.mp4" in said.err
    assert "6 done, 5 of them before" in said.out
    replaced_run(own_clips, tmp_path / "new")
    assert contents(tmp_path / "f") == contents(tmp_path / "new")
    assert contents(tmp_path / "f")["test-00000.tfrecord"] == first["test-00000.tfrecord"]
    assert contents(tmp_path / "f")["test-00001.tfrecord"] != first["test-00001.tfrecord"]
    assert not (tmp_path / "f" / ".nextvlad-extract").exists()
    capsys.readouterr()
    replaced_run(own_clips, tmp_path / "f")
    assert "replaced" not in capsys.readouterr().err


@pytest.mark.parametrize("content", [b"no video", None])
def test_a_video_that_was_replaced_by_none_is_left_out(
    content: bytes | None, own_clips: Path, tmp_path: Path
) -> None:
    """By a file of another size; where it is a link to nothing now, what was made of it stays."""
    replaced_run(own_clips, tmp_path / "f")
    before = contents(tmp_path / "f")
    (own_clips / "d.mp4").unlink()
    if content is None:
        (own_clips / "d.mp4").symlink_to(tmp_path / "nowhere")
        assert replaced_run(own_clips, tmp_path / "f")["d"].failure is None
        assert contents(tmp_path / "f") == before
        return
    (own_clips / "d.mp4").write_bytes(content)
    assert replaced_run(own_clips, tmp_path / "f")["d"].failure is not None
    assert [record.video_id for record in read(str(tmp_path / "f"))] == list("abcef")
    assert [row["video_id"] for row in table(tmp_path / "f" / "failures.csv")] == ["d"]
    assert not (tmp_path / "f" / ".nextvlad-extract").exists()


@pytest.mark.parametrize("stop_at", [3, 7, 8, 9, 13, 14, 15, 16, 18])
def test_stopped_while_it_is_extracted_again(
    stop_at: int, own_clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replaced_run(own_clips, tmp_path / "f")
    replace_video(own_clips / "d.mp4", own_clips / "b.mp4")
    die_at(stop_at, monkeypatch)
    with suppress(KeyboardInterrupt):
        replaced_run(own_clips, tmp_path / "f")
    monkeypatch.undo()
    replaced_run(own_clips, tmp_path / "f")
    replaced_run(own_clips, tmp_path / "new")
    assert contents(tmp_path / "f") == contents(tmp_path / "new")
    left = {path.name for path in (tmp_path / "f").iterdir()}
    assert left == {path.name for path in (tmp_path / "new").iterdir()}


def test_a_journal_without_times_is_taken(
    own_clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of an earlier version: sizes alone tell what was replaced."""
    replaced_run(own_clips, tmp_path / "f")
    journal = tmp_path / "f" / ".nextvlad-extract.jsonl"
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    assert sum(line.pop("mtime_ns", None) is not None for line in lines) == 6
    journal.write_text("".join(json.dumps(line) + "\n" for line in lines))
    replace_video(own_clips / "d.mp4", own_clips / "b.mp4")
    with (own_clips / "a.mp4").open("ab") as file:
        file.write(b"more")
    capsys.readouterr()
    replaced_run(own_clips, tmp_path / "f")
    said = capsys.readouterr()
    assert "6 done, 5 of them before" in said.out
    assert "a.mp4" in said.err


def test_times_in_whole_seconds_are_the_same(
    own_clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a copy by tar has them."""
    os.utime(own_clips / "d.mp4", ns=(0, 1_700_000_000_123_456_789))
    replaced_run(own_clips, tmp_path / "f")
    capsys.readouterr()
    for time_ns, done in ((1_700_000_000_000_000_000, 6), (1_700_000_001_000_000_000, 5)):
        os.utime(own_clips / "d.mp4", ns=(0, time_ns))
        replaced_run(own_clips, tmp_path / "f")
        assert f"6 done, {done} of them before" in capsys.readouterr().out


@pytest.mark.parametrize("content", [b"{}\n", b"nonsense\n", b'{"version": 9}\n', b"[]\n"])
def test_a_journal_of_something_else(content: bytes, clips: Path, tmp_path: Path) -> None:
    (tmp_path / "f").mkdir()
    (tmp_path / "f" / ".nextvlad-extract.jsonl").write_bytes(content)
    with pytest.raises(DataError, match="not a list of what was extracted"):
        run(clips, tmp_path / "f")


def test_what_a_cut_clip_holds(tmp_path: Path) -> None:
    clip(tmp_path / "v" / "_x-1.mp4", 8)
    clip(tmp_path / "v" / "_y_000010_000013.mp4", 3)
    (tmp_path / "k.csv").write_text(
        "label,youtube_id,time_start,time_end,split\nrun,_x-1,2,5,train\nsit,_x-1,5,7,val\nrun,_y,10,13,train\n"
        "sit,gone,0,10,train\n"
    )
    outcomes = run(tmp_path / "v", tmp_path / "f", labels=LabelOptions((tmp_path / "k.csv",)))
    assert {name: outcome.num_rows["audio"] for name, outcome in outcomes.items()} == {
        "_x-1_000002_000005": 3,
        "_x-1_000005_000007": 2,
        "_y_000010_000013": 3,
    }
    (record,) = read(str(tmp_path / "f" / "valid-00000.tfrecord"))
    assert record.context["start_time_seconds"] == [5.0]
    assert record.context["end_time_seconds"] == [7.0]
    status = {row["video_id"]: row["status"] for row in table(tmp_path / "f" / "index.csv")}
    assert status["gone_000000_000010"] == "missing"


def test_a_vocabulary_of_ones_own(clips: Path, tmp_path: Path) -> None:
    (tmp_path / "names.csv").write_text("index,name\n0,mouse\n1,dog\n2,cat\n")
    run(clips, tmp_path / "f", labels=LabelOptions(from_folders=True, vocabulary=tmp_path / "names.csv"))
    labels = {record.video_id: record.labels.tolist() for record in read(str(tmp_path / "f"))}
    assert labels["d1"] == [1]
    assert labels["c1"] == [2]
    (tmp_path / "names.csv").write_text("index,name\n0,mouse\n1,dog\n")
    with pytest.raises(UsageError, match=r"c0.mkv: label 'cat' is not in .*names.csv"):
        run(clips, tmp_path / "g", labels=LabelOptions(from_folders=True, vocabulary=tmp_path / "names.csv"))
    assert not (tmp_path / "g").exists()


@pytest.mark.parametrize(
    "text", ["index,mid,name\n1,/m/1,dog\n0,/m/0,mouse\n2,/m/2,cat\n", "mouse\ndog\ncat\n"]
)
def test_the_vocabulary_that_is_given_may_lie_in_the_folder(text: str, clips: Path, tmp_path: Path) -> None:
    """In a form of its own, with more columns: it stays as it is."""
    (tmp_path / "f").mkdir()
    names = tmp_path / "f" / "vocabulary.csv"
    names.write_text(text)
    with pytest.raises(UsageError, match=r"vocabulary\.csv: is there already"):
        run(clips, tmp_path / "f")  # without --vocabulary
    other = tmp_path / "other.csv"
    other.write_text(text)
    with pytest.raises(UsageError, match=r"vocabulary\.csv: is there already"):
        run(clips, tmp_path / "f", labels=LabelOptions(from_folders=True, vocabulary=other))
    labels = LabelOptions(from_folders=True, vocabulary=names)
    for _ in range(2):
        run(clips, tmp_path / "f", labels=labels)
        assert names.read_text() == text
    found = {record.video_id: record.labels.tolist() for record in read(str(tmp_path / "f"))}
    assert (found["c1"], found["d1"]) == ([2], [1])
    (tmp_path / "g").mkdir()
    (tmp_path / "g" / "vocabulary.csv").write_text(text.replace("mouse", "e\u0301lan"))  # is written as é
    labels = LabelOptions(from_folders=True, vocabulary=tmp_path / "g" / "vocabulary.csv")
    with pytest.raises(UsageError, match=r"vocabulary\.csv: is there already"):
        run(clips, tmp_path / "g", labels=labels)


def test_processors_are_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nextvlad.extract.num_processors", lambda: 8)
    assert share_processors(None, None) == (4, 4)
    assert share_processors(6, None) == (6, 2)
    assert share_processors(None, 7) == (1, 7)
    assert share_processors(20, None) == (20, 1)
    assert share_processors(0, None) == (0, 8)
    assert share_processors(None, None, on_cpu=False) == (7, 1)
    with pytest.raises(UsageError, match="wanted 0 or more and 1 or more"):
        share_processors(-1, None)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--labels-from-folders", "--labels", "x.csv"], "the one or the other"),
        (["--split-column", "x"], "give it by --labels"),
        (["--videos-per-shard", "0"], "wanted 1 or more"),
        (["--fractions", "1", "1", "1"], "--fractions"),
        (["--visual", "none", "--audio", "none"], "neither pictures nor sound"),
        (["--visual", "none", "--rate-hz", "0"], "wanted more than 0"),
        (["--visual", "none", "--rate-hz", "nan"], "wanted more than 0"),
        (["--visual", "none", "--rate-hz", "100"], "rows of sound a second"),
    ],
)
def test_calls_that_cannot_be(arguments: list[str], reason: str, clips: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=reason):
        video_commands.extract([str(clips), "--out", str(tmp_path / "f"), *arguments])
    assert not (tmp_path / "f").exists()


def test_protobuf_finds_what_youtube_8m_s_readers_ask_for(clips: Path, tmp_path: Path) -> None:
    pytest.importorskip("google.protobuf", reason="needs the extra bench")
    from test_benchmarks import load

    run(clips / "dog", tmp_path / "f", labels=LabelOptions((one_folder(tmp_path),)))
    parse = load("protobuf_reader").sequence_example_class().FromString
    (shard,) = tmp_path.glob("f/train*")
    records = {record.video_id: record for record in read(str(shard))}
    for payload, _ in read_records(shard):
        example = parse(payload.tobytes())
        (video_id,) = example.context.feature["id"].bytes_list.value
        record = records.pop(video_id.decode())
        assert list(example.context.feature["labels"].int64_list.value) == [1]
        frames = [feature.bytes_list.value for feature in example.feature_lists.feature_list["audio"].feature]
        assert b"".join(value for (value,) in frames) == record.streams["audio"].tobytes()
        assert {len(value) for (value,) in frames} == {128}
    assert not records


def test_one_process_at_a_time(clips: Path, tmp_path: Path) -> None:
    with (
        Journal(str(tmp_path / "f"), ".nextvlad-extract.jsonl", "extraction"),
        pytest.raises(UsageError, match="another extraction is at work in this folder"),
    ):
        run(clips, tmp_path / "f")
    run(clips, tmp_path / "f")


def test_labels_that_look_like_one_are_told(
    clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "dogs.csv"
    path.write_text("d0,dog\nd1,Dog\nd2,cat\n")
    run(clips, tmp_path / "f", labels=LabelOptions((path,)))
    assert "taken for different ones: 'Dog' and 'dog'" in capsys.readouterr().err
