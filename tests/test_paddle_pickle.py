"""PaddleVideo's data pickles: the real ones, those of every protocol, and what is wrong with others."""

from __future__ import annotations

import os
import pickle
import resource
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import nextvlad
from nextvlad.data.loader import count_examples, peek_streams
from nextvlad.data.paddle_pickle import PickleWriter, count_pickle, is_pickle, read_pickle
from nextvlad.data.sources import count_videos, expand, read_file
from nextvlad.data.survey import survey_file
from nextvlad.data.tfrecord import RecordWriter
from nextvlad.data.video_record import VideoRecord, parse_video_record, serialize_video_record
from nextvlad.errors import OutputError, RecordError, UsageError

PROTOCOLS = range(6)


def video(number: int = 0, *, keys: str = "str", **more: Any) -> dict[Any, Any]:
    """A record as tf2pkl.py makes it; a value None leaves the key out."""
    record: dict[str, Any] = {
        "video": f"v{number}",
        "feature": np.arange(12, dtype=np.uint8).reshape(3, 4) + number,
        "audio": np.arange(6, dtype=np.uint8).reshape(3, 2),
        "label": [number, 7],
        "nframes": np.int32(2),
    }
    record = {key: value for key, value in {**record, **more}.items() if value is not None}
    if keys == "bytes":
        record["video"] = record["video"].encode()
        return {key.encode(): value for key, value in record.items()}
    return record


def write(path: Path, records: Any, protocol: int = 2) -> Path:
    path.write_bytes(pickle.dumps(records, protocol))
    return path


def only(path: Path, **more: Any) -> VideoRecord:
    ((_, record),) = read_pickle(path, **more)
    return record


def same(found: VideoRecord, wanted: VideoRecord) -> bool:
    return (
        found.video_id == wanted.video_id
        and found.id_key == wanted.id_key
        and found.labels.tolist() == wanted.labels.tolist()
        and found.context == wanted.context
        and found.streams.keys() == wanted.streams.keys()
        and all(
            frames.dtype == wanted.streams[name].dtype
            and frames.shape == wanted.streams[name].shape
            and np.array_equal(frames, wanted.streams[name], equal_nan=frames.dtype == np.float32)
            for name, frames in found.streams.items()
        )
    )


@pytest.mark.parametrize(
    ("name", "num_videos"), [("sample_a.pkl", 7), ("sample_b.pkl", 5), ("sample_infer_nolabel.pkl", 12)]
)
def test_real_files_of_python_2(golden: Path, name: str, num_videos: int) -> None:
    path = golden / "paddle" / name
    expected = np.load(golden / "paddle" / "sample_expected.npz")
    names = expected["video"].tolist()
    assert is_pickle(path)
    assert count_pickle(path) == count_videos(path) == count_examples([str(path)]) == num_videos
    records = list(read_pickle(path))
    assert [place.number for place, _ in records] == list(range(num_videos))
    for place, record in records:
        index = names.index(record.video_id)
        num_frames = int(expected["nframes"][index])
        for stream in ("rgb", "audio"):
            wanted = expected[f"{stream}_{index}"][:num_frames]
            assert record.streams[stream].dtype == np.uint8
            assert np.array_equal(record.streams[stream], wanted)
        labels = [] if "nolabel" in name else sorted(expected[f"label_{index}"].tolist())
        assert sorted(record.labels.tolist()) == labels
        again = next(read_pickle(path, first=place.number))
        assert again[0] == place
        assert same(again[1], record)


def test_real_files_wherever_data_is(golden: Path) -> None:
    files = [str(golden / "paddle" / f"sample_{part}.pkl") for part in "ab"]
    assert len(list(nextvlad.read(files))) == count_examples(files) == 12
    streams = peek_streams(files)
    assert [(stream.name, stream.size) for stream in streams] == [("rgb", 1024), ("audio", 128)]
    told: list[int] = []
    survey = survey_file(files[0], 0, on_bytes=told.append)
    assert (survey.num_videos, survey.num_damaged) == (7, 0)
    assert sum(told) == survey.num_bytes == os.path.getsize(files[0])


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("keys", ["str", "bytes"])
def test_both_kinds_of_keys_in_every_protocol(tmp_path: Path, protocol: int, keys: str) -> None:
    path = write(tmp_path / "a", [video(number, keys=keys) for number in range(3)], protocol)
    assert is_pickle(path)
    assert count_pickle(path) == 3
    for number, (place, record) in enumerate(read_pickle(path)):
        assert (place.path, place.number) == (str(path), number)
        wanted = VideoRecord(
            f"v{number}",
            np.array([number, 7]),
            {"rgb": video(number)["feature"][:2], "audio": video()["audio"][:2]},
        )
        assert same(record, wanted)
        assert record.stream_names == ("rgb", "audio")
        for frames in record.streams.values():
            assert frames.flags.owndata
            assert frames.flags.writeable


def test_frames_that_count(tmp_path: Path) -> None:
    path = tmp_path / "a"
    cases = [(2, None, 2), (9, None, 3), (0, None, 0), (None, None, 3), (3, 1, 1), (np.array([1]), 5, 1)]
    for num_frames, most, wanted in cases:
        record = only(write(path, [video(nframes=num_frames)]), max_frames=most)
        assert {name: len(frames) for name, frames in record.streams.items()} == dict.fromkeys(
            ("rgb", "audio"), wanted
        )
    some = only(path, streams=["audio", "flow"])
    assert list(some.streams) == ["audio"]
    assert some.stream_names == ("rgb", "audio")
    with pytest.raises(UsageError, match="max_frames: got 0, wanted 1 or more"):
        next(read_pickle(path, max_frames=0))


@pytest.mark.parametrize(
    "labels", [[3, 1], (3, 1), np.array([3, 1]), [np.int64(3), np.int32(1)], np.array([3, 1], np.uint8)]
)
def test_labels(tmp_path: Path, labels: Any) -> None:
    record = only(write(tmp_path / "a", [video(label=labels)]))
    assert record.labels.dtype == np.int64
    assert record.labels.tolist() == [3, 1]


def test_one_label_and_none(tmp_path: Path) -> None:
    assert only(write(tmp_path / "a", [video(label=5)])).labels.tolist() == [5]
    for none in ([], (), None, np.empty(0, np.int64)):
        assert only(write(tmp_path / "a", [video(label=none)])).labels.tolist() == []


def test_other_keys_are_kept(tmp_path: Path) -> None:
    more = {
        "flow": np.ones((3, 5), np.float32),
        "fps": 25,
        "title": "cat é",
        "times": [0.5, 2],
        "mean": np.array([1.5, 2.5]),
        "no": {"nested": 1},
        "mixed": [1, "a"],
    }
    record = only(write(tmp_path / "a", [video(**more)]))
    assert record.streams["flow"].shape == (2, 5)
    assert record.context == {
        "fps": [25],
        "title": ["cat é".encode()],
        "times": [0.5, 2.0],
        "mean": [1.5, 2.5],
    }


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ("text", "a str, wanted a dictionary with video, feature"),
        (("v", [0.5], [3]), "a tuple, wanted a dictionary .* Is this another pickle"),
        (video(video=None), "no video id: wanted a text under the key video; the keys are feature, audio"),
        (video(video=5), "no video id"),
        ({}, "the keys are none"),
        (
            video(feature=None),
            r"record 0 \(video v0\): no frames: wanted an array under the key feature; the",
        ),
        (video(feature=[1, 2]), r"\(video v0\): stream rgb is a list, wanted an array \[frames, values\]"),
        (video(feature=np.zeros(4, np.uint8)), r"stream rgb is of shape \[4\], wanted an array"),
        (video(audio=np.zeros((2, 2, 2), np.uint8)), r"stream audio is of shape \[2, 2, 2\]"),
        (video(audio=np.zeros((2, 2))), "stream audio is float64, wanted uint8, float32, int64"),
        (video(nframes=-1), "nframes is -1, wanted a whole number of 0 or more"),
        (video(nframes="x" * 99), "nframes is 'xxxx.*xxx..., wanted a whole number"),
        (video(nframes=2.0), "nframes is 2.0, wanted"),
        (video(nframes=True), "nframes is True, wanted"),
        (video(nframes=np.array([1, 2])), r"nframes is an array of shape \[2\], wanted"),
        (video(label="cat"), "label is 'cat', wanted a list of class indices"),
        (video(label=[0.5]), r"label is \[0.5\], wanted"),
        (video(label=[True]), r"label is \[True\], wanted"),
        (video(label=np.zeros((3, 0), np.int64)), r"label is an array of shape \[3, 0\], wanted"),
        (video(label=[1 << 63]), r"label is \[9223372036854775808\], wanted"),
    ],
)
def test_a_wrong_record_is_told_or_skipped(tmp_path: Path, record: Any, message: str) -> None:
    path = write(tmp_path / "a", [record, video(1)])
    with pytest.raises(RecordError, match=message) as caught:
        list(read_pickle(path))
    place = caught.value.place
    assert place is not None
    assert (place.path, place.number) == (str(path), 0)
    assert str(caught.value).startswith(f"{path}, byte {place.offset}, record 0")
    assert not caught.value.framing_lost
    errors: list[RecordError] = []
    assert [video.video_id for _, video in read_pickle(path, on_damage=errors.append)] == ["v1"]
    assert [str(error) for error in errors] == [str(caught.value)]
    assert count_pickle(path) == 2
    survey = survey_file(str(path), 0)
    assert (survey.num_videos, survey.num_damaged) == (1, 1)


class Attack:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch ran",)


@pytest.mark.parametrize(
    ("raw", "message", "before"),
    [
        (pickle.dumps([video(0), video(1)], 2) + b"more", "the pickle ends here, but 4 more bytes follow", 1),
        (pickle.dumps([video(0), video(1)], 2)[:-9], "cut short or damaged", 1),
        (pickle.dumps([video(0), {"a": Attack()}], 2), r"wants '\w+.system', .* Nothing was run", 1),
        (pickle.dumps([video(0), Attack()], 2), r"wants '\w+.system', .* Nothing was run", 0),
        (pickle.dumps(Attack(), 2), r"wants '\w+.system', .* Nothing was run", 0),
        (pickle.dumps({"model": np.ones(3)}, 2), "holds a dict, wanted a list", 0),
    ],
)
def test_a_damaged_pickle_ends_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, raw: bytes, message: str, before: int
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.pkl").write_bytes(raw)
    assert is_pickle("a.pkl")
    with pytest.raises(RecordError, match=rf"a.pkl, byte \d+, record \d: .*{message}") as caught:
        list(read_file("a.pkl"))
    assert caught.value.framing_lost
    for read in (read_pickle, read_file):
        errors: list[RecordError] = []
        assert len(list(read("a.pkl", on_damage=errors.append))) >= before  # type: ignore[operator]
        assert [str(error) for error in errors] == [str(caught.value)]
    errors = []
    assert count_pickle("a.pkl", on_damage=errors.append) >= before
    assert [str(error) for error in errors] == [str(caught.value)]
    with pytest.raises(RecordError, match=message):
        count_pickle("a.pkl")
    assert not Path("ran").exists()


def test_cut_at_every_byte(tmp_path: Path) -> None:
    with PickleWriter(tmp_path / "whole") as writer:
        for number in range(2):
            writer.write(VideoRecord(f"v{number}", np.array([1]), {"rgb": np.ones((2, 3), np.uint8)}))
    whole = (tmp_path / "whole").read_bytes()
    assert count_pickle(tmp_path / "whole") == 2
    for size in range(3, len(whole)):
        (tmp_path / "cut").write_bytes(whole[:size])
        if not is_pickle(tmp_path / "cut"):
            assert size < 4
            continue
        errors: list[RecordError] = []
        found = list(read_file(tmp_path / "cut", on_damage=errors.append))
        assert [error.framing_lost for error in errors] == [True]
        assert count_pickle(tmp_path / "cut", on_damage=errors.append) == len(found) <= 2


# Which files are pickles


def test_what_is_no_pickle(tmp_path: Path) -> None:
    path = tmp_path / "a"
    with RecordWriter(path) as writer:
        writer.write(bytes(0x280))  # its length begins as protocol 2 does
    assert path.read_bytes()[:2] == b"\x80\x02"
    assert not is_pickle(path)
    raw = bytearray(path.read_bytes())
    for length, index in ((0x280, 9), (0x5D0280, 9), (0x950480, 9)):
        raw[:8] = length.to_bytes(8, "little")
        raw[index] ^= 0xFF
        path.write_bytes(raw)
        assert not is_pickle(path), hex(length)
    for other in (
        b"",
        b"\x80",
        b"\x1f\x8b\x08",
        b"(large text)",
        b"index,name\n0,a\n",
        b"\x80\x06]",
        b"\x80\x02\x00",
    ):
        path.write_bytes(other)
        assert not is_pickle(path), other
    assert not is_pickle(tmp_path)
    assert not is_pickle(tmp_path / "gone")
    os.mkfifo(tmp_path / "pipe")
    assert not is_pickle(tmp_path / "pipe")


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("content", [[], [[]], [{}], [1], ["a"], [{}, {}], {}, {"a": 1}, [np.zeros(3)]])
def test_what_is_a_pickle(tmp_path: Path, protocol: int, content: Any) -> None:
    assert is_pickle(write(tmp_path / "a", content, protocol))


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="gone: no such file"):
        list(read_pickle(tmp_path / "gone"))
    with pytest.raises(UsageError, match="gone: no such file"):
        count_pickle(tmp_path / "gone")


def test_lists_as_paddlevideo_writes_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lists").mkdir()
    (tmp_path / "data").mkdir()
    write(tmp_path / "data" / "a.pkl", [video(0)])
    write(tmp_path / "data" / "b.pkl", [video(1), video(2)])
    (tmp_path / "lists" / "train.list").write_text("data/a.pkl\ndata/b*.pkl\n")
    monkeypatch.chdir(tmp_path)
    assert expand("lists/train.list") == ["data/a.pkl", "data/b.pkl"]
    assert count_examples(["lists/train.list"]) == 3
    assert [record.video_id for record in nextvlad.read("lists/train.list")] == ["v0", "v1", "v2"]
    (tmp_path / "lists" / "data").mkdir()
    write(tmp_path / "lists" / "data" / "a.pkl", [video(5)])  # beside the list comes first
    assert expand("lists/train.list") == ["lists/data/a.pkl", "data/b.pkl"]
    (tmp_path / "lists" / "train.list").write_text("data/c.pkl\n")
    with pytest.raises(
        UsageError, match=r"line 1: lists/data/c.pkl: no such file .* or else to the current one"
    ):
        expand("lists/train.list")


# Writing


def test_what_paddlevideo_reads(tmp_path: Path) -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (5, 1024), np.uint8)
    labelled = VideoRecord("cat", np.array([3, 700]), {"rgb": rgb, "audio": rgb[:4, :128]})
    bare = VideoRecord("dög", np.empty(0, np.int64), {"rgb": rgb[:1], "audio": rgb[:1, :128]})
    with PickleWriter(tmp_path / "a.pkl") as writer:
        writer.write(labelled)
        writer.write(bare)
    with open(tmp_path / "a.pkl", "rb") as file:
        first, second = pickle.load(file, encoding="bytes")
    assert set(first) == set(second) == {b"video", b"feature", b"audio", b"label", b"nframes"}
    assert first[b"video"] == b"cat"
    assert second[b"video"] == "dög".encode()
    assert (first[b"label"], second[b"label"]) == ([3, 700], [])
    assert (first[b"nframes"], second[b"nframes"]) == (5, 1)
    for name, wanted in ((b"feature", rgb), (b"audio", rgb[:4, :128])):
        assert first[name].dtype == np.uint8
        assert np.array_equal(first[name][: first[b"nframes"]], wanted)
        assert first[name].astype(float).shape == wanted.shape
    ((_, found), (_, other)) = read_pickle(tmp_path / "a.pkl")
    assert same(found, labelled)
    assert same(other, bare)


FEATURES = (
    st.lists(st.binary(max_size=5), max_size=3)
    | st.lists(st.integers(-(2**63), 2**63 - 1), max_size=3)
    | st.lists(st.floats(width=32, allow_nan=False), max_size=3)
)
NAMES = st.sampled_from(["rgb", "audio", "feature", "video", "label", "nframes", "streams", "context", "é"])


def frames(names: st.SearchStrategy[str]) -> st.SearchStrategy[dict[str, Any]]:
    shapes = st.tuples(st.integers(1, 4), st.integers(1, 5))
    kinds = st.sampled_from([np.uint8, np.float32, np.int64])
    some = st.tuples(kinds, shapes).flatmap(lambda both: arrays(*both))
    return st.dictionaries(names, some | st.just(np.zeros((0, 0), np.uint8)), max_size=3)


RECORDS = st.builds(
    VideoRecord,
    video_id=st.text(st.characters(codec="utf-8"), max_size=5),
    labels=st.lists(st.integers(-5, 2**40), max_size=4).map(lambda labels: np.array(labels, np.int64)),
    streams=frames(NAMES),
    context=st.dictionaries(NAMES, FEATURES, max_size=3),
    id_key=st.sampled_from(["id", "video_id"]),
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(records=st.lists(RECORDS, max_size=3))
def test_tfrecord_to_pickle_to_tfrecord_loses_nothing(tmp_path: Path, records: list[VideoRecord]) -> None:
    payloads = [serialize_video_record(record) for record in records]
    with PickleWriter(tmp_path / "a.pkl") as writer:
        for payload in payloads:
            writer.write(parse_video_record(payload))
    found = [record for _, record in read_pickle(tmp_path / "a.pkl")]
    assert len(found) == len(records)
    assert all(map(same, found, map(parse_video_record, payloads)))
    with open(tmp_path / "a.pkl", "rb") as file:
        assert len(pickle.load(file, encoding="bytes")) == len(records)
    again = [parse_video_record(serialize_video_record(record)) for record in found]
    assert all(map(same, again, map(parse_video_record, payloads)))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    frames=arrays(np.uint8, st.tuples(st.integers(1, 6), st.integers(1, 5))),
    num_frames=st.integers(0, 8),
    labels=st.lists(st.integers(0, 5000), max_size=4),
    protocol=st.integers(0, 5),
)
def test_pickle_to_tfrecord_to_pickle_loses_nothing(
    tmp_path: Path, frames: Any, num_frames: int, labels: list[int], protocol: int
) -> None:
    write(tmp_path / "a", [video(feature=frames, nframes=num_frames, label=labels)], protocol)
    record = only(tmp_path / "a")
    found = parse_video_record(serialize_video_record(record))
    with PickleWriter(tmp_path / "b") as writer:
        writer.write(found)
    again = only(tmp_path / "b")
    assert again.labels.tolist() == labels
    assert np.array_equal(again.streams["rgb"], frames[:num_frames]) or num_frames == 0
    assert len(again.streams["rgb"]) == min(num_frames, len(frames))


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (VideoRecord("v", np.empty(0, np.int64), {"rgb": np.zeros((2, 2))}), "an array of float64 of shape"),
        (VideoRecord("v", np.empty(0, np.int64), {"rgb": np.zeros(2, np.uint8)}), r"of shape \[2\], wanted"),
        (VideoRecord("\ud800", np.empty(0, np.int64), {}), "cannot be written as a record: .*surrogate"),
        (VideoRecord("v", np.empty(0, np.int64), {}, {"a": [None]}), "None is neither bytes nor a number"),  # type: ignore[list-item]
    ],
)
def test_records_that_cannot_be_written(tmp_path: Path, record: VideoRecord, message: str) -> None:
    with pytest.raises(UsageError, match=message), PickleWriter(tmp_path / "a") as writer:
        writer.write(record)
    assert not list(tmp_path.iterdir())


def test_a_writer_leaves_a_whole_file_or_nothing(tmp_path: Path) -> None:
    record = VideoRecord("v", np.array([1]), {"rgb": np.ones((1, 2), np.uint8)})
    write(tmp_path / "a.pkl", ["before"])
    with suppress(KeyboardInterrupt), PickleWriter(tmp_path / "a.pkl") as writer:
        writer.write(record)
        raise KeyboardInterrupt
    assert [path.name for path in tmp_path.iterdir()] == ["a.pkl"]
    assert count_pickle(tmp_path / "a.pkl") == 1
    with PickleWriter(tmp_path / "a.pkl"):
        pass
    assert count_pickle(tmp_path / "a.pkl") == 0
    with pytest.raises(UsageError, match=r"write\(\) outside of the `with` block"):
        writer.write(record)
    with pytest.raises(OutputError, match=r"gone/a.pkl: cannot be written \(No such file"):
        PickleWriter(tmp_path / "gone" / "a.pkl").__enter__()


FULL_DISK = """
import resource, signal, sys
import numpy as np
from nextvlad.data.paddle_pickle import PickleWriter
from nextvlad.data.video_record import VideoRecord
from nextvlad.errors import OutputError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), int(sys.argv[2])))
try:
    with PickleWriter(sys.argv[1]) as writer:
        for _ in range(3):
            writer.write(VideoRecord("v", np.array([1]), {"rgb": np.ones((9, 999), np.uint8)}))
except OutputError as error:
    print(error)
"""


@pytest.mark.parametrize("most", [2, 10_000])
@pytest.mark.skipif(not hasattr(resource, "RLIMIT_FSIZE"), reason="files cannot be limited here")
def test_a_full_disk(tmp_path: Path, most: int) -> None:
    call = [sys.executable, "-c", FULL_DISK, str(tmp_path / "a.pkl"), str(most)]
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    assert "a.pkl: cannot be written (File too large). Free space" in done.stdout, done.stderr
    assert not list(tmp_path.iterdir())
