from __future__ import annotations

import errno
import gzip
import io
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from makers import make_data, make_record, nextvlad
from nextvlad import check_report
from nextvlad.check import check, findings, spread, take_survey
from nextvlad.check_report import bins, histogram, print_report, remarks, size_words, verdict
from nextvlad.data import survey as surveys
from nextvlad.data.paddle_pickle import PickleWriter
from nextvlad.data.sources import expand
from nextvlad.data.survey import Survey, first_repeated, repeated_ids, survey_file, survey_files
from nextvlad.data.tfrecord import RecordWriter, count_records, read_records
from nextvlad.data.video_record import VideoRecord, serialize_video_record
from nextvlad.data.vocabulary import Vocabulary
from nextvlad.errors import OutputError, RecordError, RecordPlace, UsageError, WorkerError

_COUNTS = st.dictionaries(st.integers(0, 2000), st.integers(1, 50), min_size=1, max_size=40)


def write(path: Path, records: list[VideoRecord]) -> Path:
    with RecordWriter(path) as writer:
        for record in records:
            writer.write(serialize_video_record(record))
    return path


def video(video_id: str, labels: list[int], **frames: tuple[int, int]) -> VideoRecord:
    streams = {name: np.zeros(shape, np.uint8) for name, shape in frames.items()}
    return VideoRecord(video_id, np.array(labels, np.int64), streams)


def find(*data: Path | str, vocabulary: Vocabulary | None = None, workers: int = 0) -> dict[str, Any]:
    files = expand(data)
    survey = take_survey(files, num_classes=len(vocabulary) if vocabulary else None, workers=workers)
    return findings(survey, files, vocabulary)


def printed(found: dict[str, Any], width: int = 80, **more: Any) -> str:
    console = Console(file=io.StringIO(), width=width, highlight=False)
    print_report(found, console=console, **more)
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    return text


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    return write(tmp_path / "shard.tfrecord", [make_record(number, 5) for number in range(6)])


@pytest.fixture
def offsets(shard: Path) -> list[int]:
    return [record.place.offset for record in read_records(shard)]


def test_counts(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.tfrecord",
        [
            video("a", [3, 1, 3], rgb=(2, 4), audio=(2, 3)),
            video("b", [], rgb=(5, 4)),
            video("c", [1], rgb=(4, 4), audio=(3, 3)),
            video("d", [1, 2, 7], rgb=(301, 6), audio=(0, 3)),
            video("e", [2]),
        ],
    )
    found = find(path)
    assert (found["num_files"], found["num_videos"], found["num_bytes"]) == (1, 5, path.stat().st_size)
    assert (found["num_without_frames"], found["num_unequal_streams"]) == (1, 2)
    rgb, audio = found["streams"]["rgb"], found["streams"]["audio"]
    assert (rgb["num_videos"], audio["num_videos"], audio["num_without_frames"]) == (4, 3, 1)
    assert [(form["size"], form["dtype"], form["num_videos"]) for form in rgb["sizes"]] == [
        (4, "uint8", 3),
        (6, "uint8", 1),
    ]
    assert rgb["sizes"][1]["first"]["video_id"] == "d"
    assert rgb["sizes"][1]["first"]["record"] == 3
    assert rgb["frames"] == {
        "min": 2,
        "median": 4.5,
        "mean": 78,
        "p95": 301,
        "max": 301,
        "num_over_300": 1,
        "histogram": {"2": 1, "4": 1, "5": 1, "301": 1},
    }
    labels = found["labels"]
    assert labels["counts"] == {"1": 3, "2": 2, "3": 1, "7": 1}
    assert (labels["num_distinct"], labels["largest"], labels["num_without"]) == (4, 7, 1)
    assert labels["a_video"]["histogram"] == {"0": 1, "1": 2, "2": 1, "3": 1}
    assert [row["label"] for row in labels["commonest"]] == [1, 2, 3, 7]
    assert [row["label"] for row in labels["rarest"]] == [7, 3, 2, 1]
    assert found["sound"]
    notes = " ".join(remarks(found))
    assert f"1 video with 6 uint8 values a frame instead of 4 uint8, the first in {path}, byte " in notes
    assert "Stream audio has no frames in 3 videos (60.0%)" in notes
    assert "1 video with over 300 frames" in notes
    assert "20.0% of the videos have no labels" in notes


def test_vocabulary(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tfrecord", [video("a", [0, 2], x=(1, 2)), video("b", [4], x=(1, 2))])
    found = find(path, vocabulary=Vocabulary(("cat", "[dog]", "cow", "owl")))
    assert (found["num_videos"], found["num_damaged"], found["num_outside_vocabulary"]) == (1, 1, 1)
    assert found["labels"]["never"] == [1, 3]
    assert found["labels"]["commonest"][0] == {"label": 0, "name": "cat", "num_videos": 1}
    (damage,) = found["damaged"]
    assert (damage["video_id"], damage["record"]) == ("b", 1)
    assert damage["reason"].startswith("label 4, wanted 0..3 for the 4 classes of the vocabulary. Take")
    assert "2 of the 4 classes have no video here" in " ".join(remarks(found))
    assert "Give the vocabulary that belongs to the labels (1 outside of it)" in verdict(found)
    assert "Fetch" not in verdict(found)


def _flip(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 0x20
    path.write_bytes(content)


def test_payload_damage(shard: Path, offsets: list[int]) -> None:
    _flip(shard, offsets[2] + 40)
    found = find(shard)
    (damage,) = found["damaged"]
    assert (damage["file"], damage["offset"], damage["record"]) == (str(shard), offsets[2], 2)
    assert "payload CRC" in damage["reason"]
    assert (found["num_videos"], found["sound"]) == (5, False)
    assert verdict(found).startswith("Damaged: 1 record in 1 of 1 files; 5 are sound. Fetch")


def test_length_damage(shard: Path, offsets: list[int]) -> None:
    _flip(shard, offsets[4])
    found = find(shard)
    (damage,) = found["damaged"]
    assert (damage["offset"], damage["record"], found["num_videos"]) == (offsets[4], 4, 4)
    assert "length CRC" in damage["reason"]
    assert "Not read: the last" in damage["reason"]


def test_truncated(shard: Path, offsets: list[int]) -> None:
    os.truncate(shard, offsets[5] + 30)
    (damage,) = find(shard)["damaged"]
    assert (damage["offset"], damage["record"]) == (offsets[5], 5)
    assert "the file ends inside this record" in damage["reason"]


def test_malformed_content(tmp_path: Path) -> None:
    path = tmp_path / "a.tfrecord"
    good = serialize_video_record(make_record(1, 5))
    with RecordWriter(path) as writer:
        writer.write(b"\x07nonsense")
        writer.write(good)
        writer.write(serialize_video_record(video("minus", [-1], x=(1, 2))))
    found = find(path)
    assert [item["record"] for item in found["damaged"]] == [0, 2]
    assert "not a SequenceExample" in found["damaged"][0]["reason"]
    assert found["damaged"][1]["reason"] == "label -1, wanted 0 or more."
    assert found["damaged"][1]["video_id"] == "minus"
    assert found["num_videos"] == 1


def test_not_a_tfrecord(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text("<html>404, there is nothing here</html>")
    (damage,) = find(path)["damaged"]
    assert "not a TFRecord file" in damage["reason"]


def test_empty_files(tmp_path: Path) -> None:
    (tmp_path / "empty.tfrecord").touch()
    found = find(tmp_path)
    assert (found["num_empty_files"], found["num_videos"], found["sound"]) == (1, 0, True)
    assert verdict(found) == "Sound, but empty: there is not one video in it."
    assert "files" in printed(found)


def test_compressed(shard: Path, tmp_path: Path) -> None:
    packed = tmp_path / "packed" / "shard.gz"
    packed.parent.mkdir()
    packed.write_bytes(gzip.compress(shard.read_bytes()))
    found, plain = find(packed), find(shard)
    assert found["labels"] == plain["labels"]
    both = find(shard, packed)
    assert both["num_duplicate_ids"] == both["num_duplicates"] == 6
    assert both["duplicate_ids"][5]["video_id"] == "v0005"


def test_duplicates(tmp_path: Path) -> None:
    ids = ["a", "b", "c", "b", "d", "b", "a"]
    first = write(tmp_path / "1.tfrecord", [video(name, [1], x=(1, 2)) for name in ids])
    second = write(tmp_path / "2.tfrecord", [video("c", [1], x=(1, 2))])
    found = find(tmp_path)
    offsets = [record.place.offset for record in read_records(first)]
    assert (found["num_duplicate_ids"], found["num_duplicates"], found["sound"]) == (3, 4, True)
    assert [(item["video_id"], item["num_videos"]) for item in found["duplicate_ids"]] == [
        ("a", 2),
        ("b", 3),
        ("c", 2),
    ]
    assert found["duplicate_ids"][2]["places"] == [
        {"file": str(first), "offset": offsets[2], "record": 2},
        {"file": str(second), "offset": 0, "record": 0},
    ]
    assert "4 videos repeat the id of another" in " ".join(remarks(found))
    assert f"  a: 2 videos: {first}, byte 0, record 0; " in printed(found)


def test_many_duplicates_are_cut(tmp_path: Path) -> None:
    paths = [
        str(write(tmp_path / f"{n}.tfrecord", [video(str(v), [1], x=(1, 2)) for v in range(30)]))
        for n in range(7)
    ]
    survey = take_survey(paths, workers=0)
    hashes = repeated_ids(survey)
    items = first_repeated(survey, paths, np.unique(hashes), most=4, places=2)
    assert [item.video_id for item in items] == ["0", "1", "2", "3"]
    assert all(item.num_videos == 7 and len(item.places) == 2 for item in items)
    assert len(hashes) == 6 * 30
    found = findings(survey, paths, None)
    assert (found["num_duplicate_ids"], len(found["duplicate_ids"])) == (30, 20)
    assert "... and 25 more ids." in printed(found)


def test_id_of_a_file_that_changed_since(shard: Path) -> None:
    survey = Survey()
    for number in range(2):
        survey.merge(survey_file(str(shard), number))
    shard.write_bytes(b"")
    (item,) = first_repeated(survey, [str(shard)] * 2, np.unique(repeated_ids(survey)), most=1, places=1)
    assert (item.video_id, item.num_videos) == ("?", 2)


def test_processes_find_the_same(tmp_path: Path) -> None:
    data = make_data(tmp_path, "x", num_videos=40, num_shards=5)
    _flip(tmp_path / "x-1.tfrecord", 50)
    _flip(tmp_path / "x-3.tfrecord", 60)
    assert find(data, workers=2) == find(data, workers=0)
    assert not multiprocessing.active_children()


def test_damage_is_listed_in_order_and_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(surveys, "MAX_DAMAGE", 3)
    survey = Survey()
    for file in (5, 4, 3, 2, 1, 0):
        other = Survey()
        for offset in (10, 20):
            other.blame(RecordError("bad", RecordPlace("x", offset, 0)), file)
        survey.merge(other)
    assert [(file, error.place and error.place.offset) for file, error in survey.damage] == [
        (0, 10),
        (0, 20),
        (1, 10),
    ]
    assert (survey.num_damaged, len(survey.damaged_files)) == (12, 6)


def test_report_lists_twenty_damaged_records(tmp_path: Path) -> None:
    write(tmp_path / "a.tfrecord", [video(f"v{n}", [-1], x=(1, 2)) for n in range(25)])
    text = printed(find(tmp_path))
    assert "record 19 (video v19): label -1, wanted 0 or more." in text
    assert "record 20" not in text
    assert "... and 5 more; --json FILE lists them." in text


@pytest.mark.parametrize("width", [80, 120])
def test_report_fits(tmp_path: Path, width: int) -> None:
    records = [make_record(n, 5) for n in range(50)]
    records.append(video("odd", [2], rgb=(400, 13), a_rather_long_name_of_a_stream=(3, 1024)))
    write(tmp_path / "a.tfrecord", records)
    vocabulary = Vocabulary(("a [bold]name[/]", "b" * 100, "ç", "d", "e", "f"))
    text = printed(find(tmp_path, vocabulary=vocabulary), width, vocabulary="/somewhere/names.csv")
    assert max(map(len, text.splitlines())) <= width
    assert "a [bold]name[/]" in text
    assert "6  (names.csv)" in text
    assert text.rstrip().endswith("Sound: all 51 records are whole, every checksum is right.")


def test_pickles_have_no_checksums(shard: Path, tmp_path: Path) -> None:
    with PickleWriter(tmp_path / "a.pkl") as writer:
        writer.write(make_record(7, 5))
    assert verdict(find(tmp_path / "a.pkl")) == "Sound: all 1 records are whole, pickles have no checksums."
    found = find(shard, tmp_path / "a.pkl")
    assert found["num_pickles"] == 1
    assert verdict(found).endswith("are whole, every checksum is right (pickles have none).")


def test_video_level_data(tmp_path: Path) -> None:
    record = VideoRecord("a", np.array([1]), {}, {"mean_rgb": [0.5, 0.25], "duration": [3.5]})
    found = find(write(tmp_path / "a.tfrecord", [record]))
    assert found["streams"]["mean_rgb"]["sizes"][0]["dtype"] == "float32"
    assert found["streams"]["mean_rgb"]["frames"]["max"] == 1
    assert "other context features" in printed(found)


def test_unlabelled_data(tmp_path: Path) -> None:
    found = find(write(tmp_path / "a.tfrecord", [video("a", [], x=(1, 2))]))
    assert "No labels at all: good for `nextvlad predict` only." in list(remarks(found))
    assert found["labels"]["largest"] is None
    assert "commonest" not in printed(found)


@given(_COUNTS)
def test_spread_is_numpys(counts: dict[int, int]) -> None:
    values = np.repeat(list(counts), list(counts.values()))
    found = spread(Counter(counts))
    assert found is not None
    assert (found.min, found.max) == (values.min(), values.max())
    assert found.median == np.median(values)
    assert found.mean == pytest.approx(values.mean())
    assert found.p95 == np.percentile(values, 95, method="inverted_cdf")


def test_spread_of_nothing() -> None:
    assert spread(Counter()) is None


@given(_COUNTS)
def test_bins_hold_everything_once(counts: dict[int, int]) -> None:
    rows = bins(counts)
    assert len(rows) <= 15
    for first, last, videos in rows:
        assert videos == sum(n for value, n in counts.items() if first <= value <= last)
    assert sum(videos for *_, videos in rows) == sum(counts.values())
    assert [row[0] for row in rows[1:]] == [row[1] + 1 for row in rows[:-1]]


def test_bars() -> None:
    def draw(bars: bool) -> str:
        console = Console(file=io.StringIO(), width=80)
        console.print(histogram("t", {"0": 16, "1": 8, "2": 0, "3": 1}, bars))
        text: str = console.file.getvalue()  # type: ignore[attr-defined]
        return text

    assert [line.count("█") for line in draw(True).splitlines()[1:]] == [18, 9, 0, 1]
    assert [line.count("#") for line in draw(False).splitlines()[1:]] == [18, 9, 0, 1]
    assert check_report._bar(1e-6, True) == "▏"


def test_sizes_in_words() -> None:
    assert [size_words(n) for n in (0, 2_500, 7 * 10**9, 1_430 * 10**9)] == [
        "0 bytes",
        "2.5 kB",
        "7.0 GB",
        "1.4 TB",
    ]


def test_exit_status_and_json(shard: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check([str(shard)], json_file=tmp_path / "out" / "found.json", workers=0) == 0
    assert json.loads((tmp_path / "out" / "found.json").read_text()) == find(shard)
    assert "Sound: all 6 records" in capsys.readouterr().out
    _flip(shard, 40)
    assert check([str(shard)], workers=0) == 1


def test_json_that_cannot_be_written(shard: Path) -> None:
    with pytest.raises(OutputError, match=r"found\.json: cannot be written"):
        check([str(shard)], json_file=shard / "found.json", workers=0)


def test_file_that_is_gone(tmp_path: Path) -> None:
    paths = [str(tmp_path / "gone-0"), str(tmp_path / "gone-1")]
    for workers in (0, 2):
        with pytest.raises(UsageError, match="no such file"):
            take_survey(paths, workers=workers)
    assert not multiprocessing.active_children()


def test_fewer_than_no_workers(shard: Path) -> None:
    with pytest.raises(UsageError, match="workers: got -1, wanted 0 or more"):
        take_survey([str(shard), str(shard)], workers=-1)


def test_golden_folder_through_the_command_line(golden: Path, tmp_path: Path) -> None:
    names = tmp_path / "names.txt"
    names.write_text("".join(f"class {number}\n" for number in range(4716)))
    out = tmp_path / "found.json"
    environment = {**os.environ, "COLUMNS": "80"}
    data = golden / "yt8m" / "*.tfrecord"
    result = nextvlad("check", data, "--vocabulary", names, "--json", out, env=environment)
    assert (result.returncode, result.stderr) == (1, "")
    found = json.loads(out.read_text())
    expected = json.loads((golden / "yt8m" / "expected.json").read_text())
    sound = [
        record
        for records in expected.values()
        for record in records
        if all(label < 4716 for label in record["labels"])
    ]
    assert (found["num_files"], found["num_empty_files"], found["num_damaged"]) == (7, 1, 2)
    broken, outside = found["damaged"]
    assert broken["file"].endswith("broken_data_crc.tfrecord")
    assert (broken["offset"], broken["record"]) == (23486, 1)
    assert (outside["offset"], outside["record"], outside["video_id"]) == (0, 0, "_D1j")
    assert "label 4716, wanted 0..4715" in outside["reason"]
    # expected.json does not have the file with the broken record; its other records are sound.
    in_broken = count_records(golden / "yt8m" / "broken_data_crc.tfrecord") - 1
    assert found["num_videos"] == len(sound) + in_broken
    frames = Counter(record["rgb_frames"] for record in sound)
    counted = Counter({int(n): k for n, k in found["streams"]["rgb"]["frames"]["histogram"].items()})
    assert (counted - frames).total() == in_broken
    assert not frames - counted
    labels = Counter(label for record in sound for label in set(record["labels"]))
    assert not labels - Counter({int(n): k for n, k in found["labels"]["counts"].items()})
    assert found["labels"]["num_without"] >= sum(not record["labels"] for record in sound)
    assert found["streams"]["rgb"]["frames"]["num_over_300"] == 1
    assert found["num_unequal_streams"] == 1
    assert f"{broken['file']}, byte 23486, record 1: payload CRC" in result.stdout
    assert "Damaged: 2 records in 2 of 7 files" in result.stdout


def test_audioset_totals(audioset: Path) -> None:
    vocabulary = Vocabulary.load(audioset / "class_labels_indices.csv")
    train = find(str(audioset / "bal_train*"), vocabulary=vocabulary, workers=2)
    assert (train["num_videos"], train["num_damaged"], train["num_duplicate_ids"]) == (22160, 0, 0)
    assert (train["labels"]["num_distinct"], train["labels"]["num_never"]) == (527, 0)
    assert train["streams"]["audio_embedding"]["frames"]["max"] == 10
    assert find(str(audioset / "eval*"), vocabulary=vocabulary, workers=2)["num_videos"] == 20371


def test_bad_calls(tmp_path: Path) -> None:
    missing = nextvlad("check", tmp_path / "nothing-*")
    assert missing.returncode == 2
    assert "no file matches" in missing.stderr
    path = write(tmp_path / "a.tfrecord", [video("a", [1], x=(1, 2))])
    no_names = nextvlad("check", path, "--vocabulary", tmp_path / "names.csv")
    assert no_names.returncode == 2
    assert "names.csv: cannot be read" in no_names.stderr


def test_needs_no_torch_and_no_unicode(tmp_path: Path) -> None:
    data = make_data(tmp_path, "x", num_videos=6)
    (tmp_path / "names.txt").write_text("ä\nö\nü\nß\né\n", encoding="utf-8")
    program = (
        "import sys\n"
        "from nextvlad.commands import VERBS\n"
        "if __name__ == '__main__':\n"
        f"    status = VERBS['check']([{data!r}, '--vocabulary', {str(tmp_path / 'names.txt')!r}])\n"
        "    sys.exit(status if 'torch' not in sys.modules else 3)\n"
    )
    (tmp_path / "program.py").write_text(program)
    result = subprocess.run(
        [sys.executable, tmp_path / "program.py"],
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        check=False,
    )
    assert result.returncode == 0, result.stderr.decode()
    assert b"###" in result.stdout


@pytest.fixture
def fifo(tmp_path: Path) -> Path:
    """A file that never ends, so that a process is caught reading."""
    path = tmp_path / "endless"
    os.mkfifo(path)
    return path


def test_reader_process_that_dies(fifo: Path, shard: Path) -> None:
    def kill() -> None:
        while not multiprocessing.active_children():
            time.sleep(0.01)
        opened = _open_when_read(fifo)
        for process in multiprocessing.active_children():
            process.kill()
        os.close(opened)

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(WorkerError, match=r"the process that reads it \(pid \d+\) was killed by signal 9"):
        list(survey_files([str(fifo), str(shard)], num_classes=None, workers=2, on_bytes=lambda _: None))
    killer.join()
    assert not multiprocessing.active_children()


def _open_when_read(fifo: Path) -> int:
    """The writing end, once some process has opened the other."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            return os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            time.sleep(0.02)
    raise TimeoutError


@pytest.fixture
def running(fifo: Path, shard: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A check in its own process group, at work on a file that does not end."""
    command = [sys.executable, "-m", "nextvlad", "check", fifo, shard, "--workers", "2"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    opened = _open_when_read(fifo)
    yield process, opened
    process.kill()
    process.communicate()


def _wait_until_gone(group: int) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    raise AssertionError("a process was left behind")


def test_ctrl_c(running: tuple[subprocess.Popen[str], int]) -> None:
    process, opened = running
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    os.close(opened)
    assert (process.returncode, errors) == (130, "nextvlad: stopped.\n")
    _wait_until_gone(process.pid)


def test_parent_that_is_killed(running: tuple[subprocess.Popen[str], int]) -> None:
    process, opened = running
    process.kill()
    process.wait()
    os.close(opened)  # the reader comes to the end of its file, and finds nobody to tell
    _wait_until_gone(process.pid)
