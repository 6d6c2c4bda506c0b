"""The compiled way through usual records does what Python does, takes what it should, and nothing else."""

from __future__ import annotations

import shutil
import struct
import subprocess
import sysconfig
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from makers import values_of, write_records
from nextvlad.config import StreamConfig
from nextvlad.data import usual_records
from nextvlad.data.batch import find_fault
from nextvlad.data.loader import FrameLoader
from nextvlad.data.packer import Packer
from nextvlad.data.protobuf import encode_feature, encode_field
from nextvlad.data.tfrecord import RecordFile, masked_crc
from nextvlad.data.usual_records import UsualRecords
from nextvlad.data.video_record import VideoRecord, parse_video_record, serialize_video_record
from nextvlad.errors import DataError
from nextvlad.provenance import CONTEXT_KEY, Expected

pytestmark = pytest.mark.skipif(
    usual_records.compiled is None, reason="there was no C compiler when the package was installed"
)

STREAMS = (StreamConfig(name="rgb", size=130), StreamConfig(name="audio", size=2))
CLASSES = 300
few = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def video(number: int = 0, frames: tuple[int, int] = (3, 2), **changes: Any) -> VideoRecord:
    numbers = np.random.default_rng(number)
    sizes = zip(STREAMS, frames, strict=True)
    fields: dict[str, Any] = {
        "video_id": f"v{number}",
        "labels": numbers.integers(0, CLASSES, number % 4),
        "streams": {
            stream.name: numbers.integers(0, 256, (count, stream.size), np.uint8) for stream, count in sizes
        },
    }
    return VideoRecord(**(fields | changes))


def read(paths: Sequence[str], **changes: Any) -> tuple[list[Any], list[str], str]:
    """The batches, the damage that was skipped, and the error that ended it."""
    arguments: dict[str, Any] = {"streams": STREAMS, "num_classes": CLASSES, "batch_size": 4, "max_frames": 5}
    loader = FrameLoader(paths, **(arguments | changes))
    batches: list[Any] = []
    error = ""
    try:
        for batch in loader:
            batches += values_of([batch])
    except DataError as failure:
        error = str(failure)
    return batches, list(map(str, loader.damage)), error


def in_both_ways(monkeypatch: pytest.MonkeyPatch, run: Callable[[], Any]) -> tuple[Any, Any]:
    found = []
    for way in ("1", "0"):
        monkeypatch.setenv("NEXTVLAD_COMPILED", way)
        found.append(run())
    return found[0], found[1]


def taken(path: str, *, streams: Sequence[StreamConfig] = STREAMS, **changes: Any) -> int:
    """Records of a file that are taken before the first that is not."""
    arguments: dict[str, Any] = {"max_frames": 5, "num_classes": CLASSES, "batch_size": 100}
    usual = UsualRecords(streams, **({"with_labels": True} | arguments | changes))
    packer = Packer(streams, CLASSES, 100)
    packer.add(video(1, (5, 5), streams={s.name: np.zeros((5, s.size), np.uint8) for s in streams}))
    with RecordFile(path) as file:
        packed = usual.pack(file, packer)
    with RecordFile(path) as file:
        assert len(list(usual.find(file))) == packed
    return packed


# The checksum


@given(st.binary(max_size=2000))
@example(b"")
@example(bytes(range(256)) * 3)
@example(bytes(range(256)) * 97 + b"rest")
def test_the_checksum_is_that_of_the_library(data: bytes) -> None:
    for by_table in (False, True):
        assert usual_records.compiled.crc32c(data, by_table) == google_crc32c.value(data)


# What is taken


def test_all_of_a_usual_file_is_taken(tmp_path: Path) -> None:
    videos = [video(n, (n % 7, (n * 3) % 7)) for n in range(60)]
    assert taken(write_records(tmp_path / "a", videos)) == 60


@pytest.mark.parametrize("compression", ["gzip", "zlib"])
def test_compressed_files_are_taken_as_well(tmp_path: Path, compression: str) -> None:
    assert taken(write_records(tmp_path / "a", map(video, range(30)), compression=compression)) == 30


def test_records_larger_than_a_block(tmp_path: Path) -> None:
    big = (StreamConfig(name="rgb", size=1 << 16),)
    frames = [np.full((40, 1 << 16), n, np.uint8) for n in range(3)]
    path = write_records(tmp_path / "a", [video(n, streams={"rgb": f}) for n, f in enumerate(frames)])
    assert taken(path, streams=big, max_frames=300, batch_size=3) == 3


def entry(name: str, value: bytes) -> bytes:
    return encode_field(1, encode_field(1, name.encode()) + encode_field(2, value))


def payload(context: Sequence[bytes], *lists: bytes) -> bytes:
    return encode_field(1, b"".join(context)) + encode_field(2, b"".join(lists))


def frames(count: int, size: int, value: int = 7) -> bytes:
    return encode_field(1, encode_feature([bytes([value]) * size])) * count


ID = entry("id", encode_feature([b"x"]))
RGB = entry("rgb", frames(2, 130))
AUDIO = entry("audio", frames(2, 2))

USUAL = {
    "id and labels in any order": payload([entry("labels", encode_feature([3, 299])), ID], AUDIO, RGB),
    "AudioSet's id": payload([entry("video_id", encode_feature([b"x"]))], RGB, AUDIO),
    "an id that is not UTF-8": payload([entry("id", encode_feature([b"\xff\xfe"]))], RGB, AUDIO),
    "no labels": payload([ID, entry("labels", b"")], RGB, AUDIO),
    "an empty list of labels": payload([ID, entry("labels", b"\x1a\x00")], RGB, AUDIO),
    "other features": payload(
        [ID, entry("time", encode_feature([1.5, 2.0])), entry("n", encode_feature([-1 & 0xFFFF]))], RGB, AUDIO
    ),
    "an entry of more than 127 bytes": payload(
        [ID, entry("more", encode_feature([b"a" * 1000])), entry("none", b"")], RGB, AUDIO
    ),
    "a stream that nobody wants": payload([ID], RGB, AUDIO, entry("depth", b"\xff")),
    "no sound": payload([ID], RGB),
    "no frames": payload([ID], entry("rgb", b""), AUDIO),
    "damage behind the last frame wanted": payload([ID], entry("rgb", frames(5, 130) + b"\xff"), AUDIO),
}
UNUSUAL = {
    "no context": encode_field(2, RGB + AUDIO),
    "no lists": encode_field(1, ID),
    "lists before the context": encode_field(2, RGB + AUDIO) + encode_field(1, ID),
    "more behind": payload([ID], RGB, AUDIO) + encode_field(3, b""),
    "no id": payload([entry("labels", encode_feature([1]))], RGB, AUDIO),
    "two ids": payload([ID, entry("video_id", encode_feature([b"y"]))], RGB, AUDIO),
    "an id of two values": payload([entry("id", encode_feature([b"x", b"y"]))], RGB, AUDIO),
    "an id that is a number": payload([entry("id", encode_feature([1]))], RGB, AUDIO),
    "an id without a value": payload([entry("id", b"")], RGB, AUDIO),
    "an id that is an empty list": payload([entry("id", b"\x0a\x00")], RGB, AUDIO),
    "labels twice": payload([ID] + 2 * [entry("labels", encode_feature([1]))], RGB, AUDIO),
    "labels that are floats": payload([ID, entry("labels", encode_feature([1.0]))], RGB, AUDIO),
    "labels that are an empty list of floats": payload([ID, entry("labels", b"\x12\x00")], RGB, AUDIO),
    "labels that are an empty list of bytes": payload([entry("labels", b"\x0a\x00"), ID], RGB, AUDIO),
    "labels that are not packed": payload([ID, entry("labels", b"\x1a\x04\x08\x01\x08\x02")], RGB, AUDIO),
    "a label beyond the classes": payload([ID, entry("labels", encode_feature([300]))], RGB, AUDIO),
    "a negative label": payload([ID, entry("labels", encode_feature([-1]))], RGB, AUDIO),
    "a label that is cut": payload([ID, entry("labels", b"\x1a\x04\x0a\x02\x01\x80")], RGB, AUDIO),
    "a number that nobody wants, and that is cut": payload([ID, entry("n", b"\x1a\x03\x0a\x01\x80")], RGB),
    "floats of three bytes": payload([ID, entry("f", b"\x12\x05\x0a\x03abc")], RGB, AUDIO),
    "a feature of no known kind": payload([ID, entry("f", b"\x22\x00")], RGB, AUDIO),
    "a feature name that is not UTF-8": payload(
        [ID, encode_field(1, encode_field(1, b"\xff") + encode_field(2, b""))], RGB
    ),
    "a name behind its value": payload(
        [encode_field(1, encode_field(2, encode_feature([b"x"])) + encode_field(1, b"id"))], RGB, AUDIO
    ),
    "a size that ends outside": payload([ID], RGB, AUDIO)[:-1],
    "a stream twice": payload([ID], RGB, RGB),
    "another stream instead": payload([ID], RGB, entry("sound", frames(2, 2))),
    "a stream of another size": payload([ID], entry("rgb", frames(2, 131)), AUDIO),
    "frames that differ in size": payload([ID], entry("rgb", frames(2, 130) + frames(1, 131)), AUDIO),
    "frames that differ in size and fill the list": payload(
        [ID], RGB, entry("audio", frames(1, 2) + frames(1, 1) + frames(1, 3))
    ),
    "frames of floats": payload([ID], RGB, entry("audio", encode_field(1, encode_feature([1.0, 2.0])) * 2)),
    "frames of two values": payload([ID], RGB, entry("audio", encode_field(1, encode_feature([b"a", b"b"])))),
    "an empty frame": payload([ID], RGB, entry("audio", encode_field(1, b"") * 2)),
    "a list that is cut": payload([ID], entry("rgb", frames(2, 130) + b"\x0a"), AUDIO),
    "nothing": b"",
}


@pytest.mark.parametrize("name", USUAL)
def test_usual_records_are_taken(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_records(tmp_path / "a", [video(1), USUAL[name], video(2)])
    assert taken(path) == 3
    ours, theirs = in_both_ways(monkeypatch, lambda: read([path]))
    assert ours == theirs
    assert not ours[2]


@pytest.mark.parametrize("name", UNUSUAL)
@pytest.mark.parametrize("shuffle", [False, True])
def test_unusual_records_are_left(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch, shuffle: bool
) -> None:
    path = write_records(tmp_path / "a", [video(1), UNUSUAL[name], video(2)])
    assert taken(path) == 1
    for skip_damaged in (False, True):
        options = {"shuffle": shuffle, "shuffle_buffer": 2, "skip_damaged": skip_damaged}
        ours, theirs = in_both_ways(monkeypatch, lambda options=options: read([path], **options))
        assert ours == theirs


@pytest.mark.parametrize("place", [0, 3, 9, 12, 60, -2])
def test_damage_is_left(tmp_path: Path, place: int, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a"
    write_records(path, [video(1)])
    first = path.read_bytes()
    write_records(path, map(video, (2, 3)))
    second = bytearray(path.read_bytes())
    second[place] ^= 1
    path.write_bytes(first + second)
    assert taken(str(path)) == (1 if place >= 0 else 2)
    ours, theirs = in_both_ways(monkeypatch, lambda: read([str(path)], skip_damaged=True))
    assert ours == theirs
    assert ours[1]


def test_a_length_that_is_a_lie_takes_no_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for length in (1 << 33, (1 << 64) - 1):
        head = struct.pack("<Q", length)
        path = tmp_path / "a"
        write_records(path, [video(1)])
        path.write_bytes(path.read_bytes() + head + struct.pack("<I", masked_crc(head)) + b"x" * 100)
        ours, theirs = in_both_ways(monkeypatch, lambda path=path: read([str(path)], skip_damaged=True))
        assert ours == theirs
        assert "truncated" in ours[1][0]


# The same as without


videos = st.lists(
    st.builds(
        video, number=st.integers(0, 30), frames=st.tuples(st.integers(0, 9), st.sampled_from([0, 1, 9]))
    ),
    max_size=25,
)


@few
@given(
    shards=st.lists(videos, min_size=1, max_size=3),
    odd=st.lists(st.tuples(st.integers(0, 99), st.sampled_from(sorted(UNUSUAL))), max_size=3),
    options=st.fixed_dictionaries(
        {
            "shuffle": st.booleans(),
            "shuffle_buffer": st.integers(1, 6),
            "max_frames": st.sampled_from([1, 5, 300]),
            "batch_size": st.integers(1, 9),
            "with_labels": st.booleans(),
            "epochs": st.integers(1, 2),
            "skip_damaged": st.booleans(),
            "rank": st.integers(0, 2),
        }
    ),
)
def test_batches_damage_and_errors_are_those_of_python(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    shards: list[list[VideoRecord]],
    odd: list[tuple[int, str]],
    options: dict[str, Any],
) -> None:
    payloads: list[list[VideoRecord | bytes]] = [list(shard) for shard in shards]
    for place, name in odd:
        payloads[place % len(shards)].insert(place % (len(payloads[place % len(shards)]) + 1), UNUSUAL[name])
    paths = [write_records(tmp_path / str(number), shard) for number, shard in enumerate(payloads)]
    ours, theirs = in_both_ways(monkeypatch, lambda: read(paths, world_size=3, **options))
    assert ours == theirs


@settings(few, max_examples=400)
@given(
    base=st.sampled_from([*USUAL.values(), *UNUSUAL.values(), serialize_video_record(video(3))]),
    changes=st.lists(
        st.tuples(
            st.integers(0, 400), st.sampled_from(["set", "insert", "delete", "cut"]), st.integers(0, 255)
        ),
        max_size=4,
    ),
)
def test_what_is_taken_of_a_spoilt_record_python_reads_alike(
    base: bytes, changes: list[tuple[int, str, int]]
) -> None:
    spoilt = bytearray(base)
    for place, change, value in changes:
        place %= len(spoilt) + 1
        if change == "set":
            spoilt[place : place + 1] = bytes([value])
        elif change == "insert":
            spoilt[place:place] = bytes([value])
        elif change == "delete":
            del spoilt[place : place + 1 + value % 3]
        else:
            del spoilt[place:]
    usual = UsualRecords(STREAMS, 5, CLASSES, 4, with_labels=True)
    packer, wanted = Packer(STREAMS, CLASSES, 4), Packer(STREAMS, CLASSES, 4)
    packer.add(video(1))
    wanted.add(video(1))
    if usual.pack_payload(np.frombuffer(bytes(spoilt), np.uint8), packer):
        record = parse_video_record(bytes(spoilt), max_frames=5, streams={s.name for s in STREAMS})
        assert find_fault(record, STREAMS, CLASSES) is None
        wanted.add(record)
        assert values_of([packer.finish().batch()]) == values_of([wanted.finish().batch()])
    else:
        assert len(packer) == 1


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("shuffle", [False, True])
def test_a_place_of_one_way_is_a_place_of_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int, shuffle: bool
) -> None:
    paths = [write_records(tmp_path / str(n), [video(10 * n + m) for m in range(9)]) for n in range(3)]
    options: dict[str, Any] = {"shuffle": shuffle, "shuffle_buffer": 5, "workers": workers, "batch_size": 4}

    def loader(position: Any = None) -> FrameLoader:
        return FrameLoader(paths, streams=STREAMS, num_classes=CLASSES, position=position, **options)

    monkeypatch.setenv("NEXTVLAD_COMPILED", "1")
    whole = values_of(loader())
    for count in range(len(whole)):
        monkeypatch.setenv("NEXTVLAD_COMPILED", "1")
        with loader() as first:
            batches = iter(first)
            assert values_of(next(batches) for _ in range(count)) == whole[:count]
            position = first.position()
        for way in ("0", "1"):
            monkeypatch.setenv("NEXTVLAD_COMPILED", way)
            assert values_of(loader(position)) == whole[count:]


def test_more_labels_than_there_is_room_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    many = [video(n, labels=np.arange(CLASSES)) for n in range(9)]
    path = write_records(tmp_path / "a", many)
    ours, theirs = in_both_ways(monkeypatch, lambda: read([path], batch_size=3))
    assert ours == theirs
    assert all(labels == [[True] * CLASSES] * 3 for _, labels, _ in ours[0])


def test_as_many_frames_as_there_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More than C counts to, as a user may say who wants all."""
    path = write_records(tmp_path / "a", map(video, range(9)))
    ours, theirs = in_both_ways(monkeypatch, lambda: read([path], max_frames=1 << 70))
    assert ours == theirs
    assert len(ours[0]) == 3


def test_without_classes_no_label_is_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_records(tmp_path / "a", map(video, range(3)))
    ours, theirs = in_both_ways(monkeypatch, lambda: read([path], num_classes=0))
    assert ours == theirs
    assert "label" in ours[2]


# Where features come from


def with_origin(number: int, *token: bytes) -> VideoRecord:
    return video(number, context={CONTEXT_KEY: list(token)} if token else {})


def test_features_of_another_extractor_are_left_to_python(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = write_records(tmp_path / "plain", [with_origin(n) for n in range(6)])
    mixed = write_records(
        tmp_path / "mixed",
        [with_origin(0), with_origin(1), with_origin(2, b"rgb=0123456789abcdef"), with_origin(3)],
    )
    expected = Expected(None, ("rgb",), "this test")
    assert len(read([plain], expected=expected)[0]) == 2
    ours, theirs = in_both_ways(monkeypatch, lambda: read([plain, mixed], expected=expected))
    assert ours == theirs
    assert len(ours[0]) == 2
    assert "this test" in ours[2]


def test_only_records_of_the_known_origin_are_taken(tmp_path: Path) -> None:
    path = write_records(tmp_path / "a", [with_origin(0), with_origin(1, b"A"), with_origin(2, b"B")])
    for origin, count in ((None, 3), (b"", 1), (b"A", 0)):
        usual = UsualRecords(STREAMS, 5, CLASSES, 100, with_labels=True)
        usual.origin = origin
        with RecordFile(path) as file:
            assert len(list(usual.find(file))) == count
    with RecordFile(path) as file:
        file.read()
        usual.origin = b"A"
        assert len(list(usual.find(file))) == 1


# How it is built


def test_a_python_without_gil_has_no_limited_api(tmp_path: Path) -> None:
    """Its own headers refuse both together, and an optional extension would be left out without a word."""
    compiler, headers = shutil.which("cc"), Path(sysconfig.get_path("include"))
    if compiler is None or not (headers / "Python.h").exists():
        pytest.skip("no C compiler, or no headers of Python")
    (tmp_path / "pyconfig.h").write_text("#include_next <pyconfig.h>\n#define Py_GIL_DISABLED 1\n")
    source = Path(__file__).parents[1] / "src/nextvlad/data/compiled/module.c"
    command = [compiler, "-E", "-dM", f"-I{tmp_path}", f"-I{headers}", str(source)]
    macros = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert "#define Py_GIL_DISABLED 1" in macros
    assert "#define Py_LIMITED_API" not in macros


# Without it


def test_without_the_compiled_code_python_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_records(tmp_path / "a", map(video, range(9)))
    wanted = read([path])
    monkeypatch.setattr(usual_records, "compiled", None)
    assert not usual_records.available()
    assert read([path]) == wanted


def test_too_many_streams_are_for_python(tmp_path: Path) -> None:
    streams = tuple(StreamConfig(name=f"s{n}", size=2) for n in range(9))
    arrays = {stream.name: np.full((2, 2), n, np.uint8) for n, stream in enumerate(streams)}
    path = write_records(tmp_path / "a", [video(n, streams=arrays) for n in range(3)])
    ((_, _, found),) = read([path], streams=streams)[0]
    assert found["s8"] == ([[8, 8]] * 6, [0, 2, 4, 6])
    with pytest.raises(ValueError, match="9 streams, wanted at most 8"):
        UsualRecords(streams, 5, CLASSES, 4, with_labels=True)


# The functions themselves

PLAN = (((b"rgb", 130), (b"audio", 2)), 5, CLASSES, None)
ROOMS = (np.empty((9, 130), np.uint8), np.empty((9, 2), np.uint8))
COUNTS, LABELS = np.empty((4, 3), np.int64), np.empty(9, np.int64)


@pytest.mark.parametrize(
    "arguments",
    [
        (b"", PLAN, 0, 0, ROOMS, COUNTS, LABELS),
        (b"", PLAN, 1, 1, ROOMS, COUNTS, LABELS),
        (b"", PLAN, -1, 2, ROOMS, COUNTS, LABELS),
        (b"", PLAN, 0, 1, ROOMS[:1], COUNTS, LABELS),
        (b"", (PLAN[0], 0, CLASSES, None), 0, 1, ROOMS, COUNTS, LABELS),
        (b"", (PLAN[0], 5, -1, None), 0, 1, ROOMS, COUNTS, LABELS),
        (b"", (((b"rgb", 0),), 5, CLASSES, None), 0, 1, ROOMS[:1], COUNTS, LABELS),
        (b"", (PLAN[0] * 5, 5, CLASSES, None), 0, 1, ROOMS * 5, COUNTS, LABELS),
    ],
)
def test_arguments_out_of_range(arguments: tuple[Any, ...]) -> None:
    with pytest.raises(ValueError, match=r"."):
        usual_records.compiled.pack(*arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        ("text", PLAN, 0, 1, ROOMS, COUNTS, LABELS),
        (b"", PLAN[:2], 0, 1, ROOMS, COUNTS, LABELS),
        (b"", (PLAN[0], 5, CLASSES, "text"), 0, 1, ROOMS, COUNTS, LABELS),
        (b"", (((b"rgb",),), 5, CLASSES, None), 0, 1, ROOMS[:1], COUNTS, LABELS),
        (b"", ((b"rgb",), 5, CLASSES, None), 0, 1, ROOMS[:1], COUNTS, LABELS),
        (b"", (([b"rgb", 130],), 5, CLASSES, None), 0, 1, ROOMS[:1], COUNTS, LABELS),
        (b"", PLAN, 0, 1, (ROOMS[0], b"read only"), COUNTS, LABELS),
        (b"", PLAN, 0, 1, ROOMS, b"read only", LABELS),
    ],
)
def test_arguments_of_another_kind(arguments: tuple[Any, ...]) -> None:
    with pytest.raises((TypeError, BufferError)):
        usual_records.compiled.pack(*arguments)
    with pytest.raises((TypeError, BufferError, ValueError)):
        usual_records.compiled.pack_payload(*arguments[:2], *arguments[4:])


def test_no_room_is_no_video() -> None:
    whole = payload([ID, entry("labels", encode_feature([1, 2]))], RGB, AUDIO)
    small = (np.empty((1, 130), np.uint8), ROOMS[1])
    pack = usual_records.compiled.pack_payload
    assert pack(whole, PLAN, ROOMS, COUNTS, LABELS) == "x"
    assert COUNTS[0].tolist() == [2, 2, 2]
    assert LABELS[:2].tolist() == [1, 2]
    assert pack(whole, PLAN, small, COUNTS, LABELS) is None
    assert pack(whole, PLAN, ROOMS, COUNTS, LABELS[:1]) is None
    with pytest.raises(ValueError, match="no room for one video"):
        pack(whole, PLAN, ROOMS, COUNTS[0, :2].copy(), LABELS)


def test_nothing_is_written_beyond_the_room(tmp_path: Path) -> None:
    path = write_records(tmp_path / "a", [video(n, (2, 2)) for n in range(9)])
    data = Path(path).read_bytes()
    memory = np.full((20, 130), 255, np.uint8)
    counts = np.full((9, 3), -1)
    rooms = (memory[:5], np.empty((20, 2), np.uint8))
    seen, size, needed, names = usual_records.compiled.pack(
        data, PLAN, 0, 1, rooms, counts, np.empty(99, int)
    )
    assert (seen, needed, names) == (2, 0, ["v0", "v1"])
    assert (memory[4:] == 255).all()
    assert (counts[2:] == -1).all()
    assert size == sum(16 + len(serialize_video_record(video(n, (2, 2)))) for n in range(2))


def test_an_error_in_the_middle_is_raised(tmp_path: Path) -> None:
    path = tmp_path / "a"
    write_records(path, map(video, range(30)), compression="gzip")
    path.write_bytes(path.read_bytes()[:-500])
    batches, _, error = read([str(path)])
    assert batches
    assert "ends too early" in error
