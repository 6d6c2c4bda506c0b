from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import shared_path
from nextvlad.data import protobuf, video_record
from nextvlad.data import usual_layout as layouts
from nextvlad.data.protobuf import encode_varint
from nextvlad.data.sources import read
from nextvlad.data.tfrecord import RecordWriter, read_records
from nextvlad.data.usual_layout import FrameList, usual_layout
from nextvlad.data.video_record import VideoRecord, parse_video_record, serialize_video_record
from nextvlad.errors import RecordError, RecordPlace, UsageError


def field(number: int, *content: bytes) -> bytes:
    return protobuf.encode_field(number, b"".join(content))


def entry(name: str, value: bytes) -> bytes:
    return field(1, field(1, name.encode()), field(2, value))


def bytes_feature(*values: bytes) -> bytes:
    return field(1, *(field(1, value) for value in values))


def ints_feature(*values: int) -> bytes:
    return field(3, field(1, *map(encode_varint, values)))


def floats_feature(*values: float) -> bytes:
    return field(2, field(1, struct.pack(f"<{len(values)}f", *values)))


def frame_list(*frames: bytes) -> bytes:
    return b"".join(field(1, frame) for frame in frames)


def sequence(context: list[bytes], lists: list[bytes] = []) -> bytes:  # noqa: B006
    return field(1, *context) + field(2, *lists)


ID = entry("id", bytes_feature(b"abcd"))


def with_stream(*frames: bytes, name: str = "rgb") -> bytes:
    return sequence([ID], [entry(name, frame_list(*frames))])


def parse_slowly(payload: bytes, **options: Any) -> VideoRecord:
    """The general parser alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(video_record, "usual_layout", lambda data: None)
        patch.setattr(video_record, "frame_list", lambda name, *_: FrameList(name, 0, 1, b"", 0))
        return parse_video_record(payload, **options)


def same(a: VideoRecord, b: VideoRecord) -> bool:
    return (
        (a.video_id, a.labels.tolist(), a.stream_names) == (b.video_id, b.labels.tolist(), b.stream_names)
        and repr(a.context) == repr(b.context)  # repr: nan equals nan
        and list(a.streams) == list(b.streams)
        and all(
            x.dtype == y.dtype and x.shape == y.shape and x.tobytes() == y.tobytes()
            for x, y in zip(a.streams.values(), b.streams.values(), strict=True)
        )
    )


def outcome(parse: Any, payload: bytes, **options: Any) -> VideoRecord | str:
    try:
        record: VideoRecord = parse(payload, **options)
    except RecordError as error:
        return str(error)
    return record


# ---- what a record holds -----------------------------------------------------------------------------


def test_every_part_of_a_record() -> None:
    payload = sequence(
        [
            entry("start_time_seconds", floats_feature(30.0)),
            entry("labels", ints_feature(5, 0, 5, -1)),
            entry("video_id", bytes_feature(b"xyz")),
            entry("segment_labels", ints_feature(7)),
        ],
        [
            entry("rgb", frame_list(bytes_feature(b"\x01\x02"), bytes_feature(b"\x03\x04"))),
            entry("audio", b""),
        ],
    )
    record = parse_video_record(payload)
    assert record.video_id == "xyz"
    assert record.labels.dtype == np.int64
    assert record.labels.tolist() == [5, 0, 5, -1]
    assert record.context == {"start_time_seconds": [30.0], "segment_labels": [7]}
    assert record.streams["rgb"].tolist() == [[1, 2], [3, 4]]
    assert record.streams["audio"].shape == (0, 0)
    assert record.streams["audio"].dtype == np.uint8
    assert record.stream_names == ("rgb", "audio")


def test_streams_are_views_of_the_payload() -> None:
    payload = np.frombuffer(with_stream(bytes_feature(b"\x01\x02"), bytes_feature(b"\x03\x04")), np.uint8)
    assert np.shares_memory(parse_video_record(payload).streams["rgb"], payload)


def test_streams_that_are_not_asked_for_are_still_named() -> None:
    lists = [entry(name, frame_list(bytes_feature(b"\x01"))) for name in ("rgb", "audio")]
    record = parse_video_record(sequence([ID], lists), streams=["audio", "depth"])
    assert list(record.streams) == ["audio"]
    assert record.stream_names == ("rgb", "audio")


def test_the_first_frames() -> None:
    payload = with_stream(*(bytes_feature(bytes([i, i])) for i in range(5)))
    for parse in (parse_video_record, parse_slowly):
        assert parse(payload, max_frames=2).streams["rgb"].tolist() == [[0, 0], [1, 1]]
        assert len(parse(payload, max_frames=9).streams["rgb"]) == 5
    with pytest.raises(UsageError, match="max_frames: got 0, wanted 1 or more"):
        parse_video_record(payload, max_frames=0)


def test_labels_may_be_absent_empty_or_unpacked() -> None:
    assert parse_video_record(sequence([ID])).labels.shape == (0,)
    assert parse_video_record(sequence([ID, entry("labels", b"")])).labels.tolist() == []
    assert parse_video_record(sequence([ID, entry("labels", field(3))])).labels.tolist() == []
    unpacked = field(3, b"\x08\x05", b"\x08" + encode_varint(-3), field(1, b"\x07\x80\x01"))
    assert parse_video_record(sequence([ID, entry("labels", unpacked)])).labels.tolist() == [5, -3, 7, 128]


def test_ids() -> None:
    both = sequence([entry("video_id", bytes_feature(b"other")), ID])
    assert parse_video_record(both).video_id == "abcd"
    assert parse_video_record(both).context == {"video_id": [b"other"]}
    assert (
        parse_video_record(sequence([entry("id", bytes_feature("é\xff".encode("latin1")))])).video_id
        == r"\xe9\xff"
    )


def test_merging_follows_protobuf() -> None:
    frames = [frame_list(bytes_feature(bytes([i]))) for i in range(3)]
    twice = field(1, field(2, frames[0]), field(1, b"rgb"), field(2, frames[1]))  # value before key, merged
    payload = (
        field(2, twice)
        + field(1, entry("labels", ints_feature(1)))
        + field(1, ID, entry("labels", ints_feature(2)))  # a key again: the last counts
        + field(2, entry("audio", frames[2]))
    )
    record = parse_video_record(payload)
    assert record.streams["rgb"].tolist() == [[0], [1]]
    assert record.streams["audio"].tolist() == [[2]]
    assert record.labels.tolist() == [2]


def test_a_later_member_of_a_oneof_replaces_the_first() -> None:
    value = floats_feature(1.0) + ints_feature(2) + field(3, b"\x08\x03")
    assert parse_video_record(sequence([ID, entry("x", value)])).context["x"] == [2, 3]


def test_unknown_fields_are_stepped_over() -> None:
    unknown = b"".join(
        (
            b"\x50\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",  # field 10, varint
            b"\x51" + bytes(8),  # fixed64
            field(10, b"abc"),
            b"\x53\x50\x01\x53\x52\x01\x00\x54\x55\x00\x00\x00\x00\x51"
            + bytes(8)
            + b"\x54",  # a group in a group
            b"\x55" + bytes(4),  # fixed32
            b"\x08\x01",  # field 1 with another wire type
        )
    )
    payload = (
        unknown
        + field(1, ID + unknown, unknown)
        + field(2, entry("rgb", frame_list(bytes_feature(b"\x07"))), unknown)
    )
    assert parse_video_record(payload).streams["rgb"].tolist() == [[7]]
    frames = frame_list(unknown + bytes_feature(b"\x07"), bytes_feature(b"\x08") + unknown) + unknown
    assert parse_video_record(sequence([ID], [entry("rgb", frames)])).streams["rgb"].tolist() == [[7], [8]]


def test_float_and_integer_frames() -> None:
    floats = with_stream(
        floats_feature(1.5, -2.0), field(2, b"\x0d" + struct.pack("<f", 3), b"\x0d" + bytes(4))
    )
    record = parse_video_record(floats)
    assert record.streams["rgb"].dtype == np.float32
    assert record.streams["rgb"].tolist() == [[1.5, -2.0], [3.0, 0.0]]
    record = parse_video_record(with_stream(ints_feature(1, 2), ints_feature(-3, 4)))
    assert record.streams["rgb"].dtype == np.int64
    assert record.streams["rgb"].tolist() == [[1, 2], [-3, 4]]


def test_vectors_of_video_level_examples_are_streams_of_one_frame() -> None:
    start = entry("start_time_seconds", floats_feature(3))
    other = entry("std_rgb", floats_feature(0, 1))
    vectors = [entry("mean_rgb", floats_feature(0.5, 1.5)), entry("mean_audio", floats_feature(2, 3, 4))]
    payload = field(1, ID, start, other, *vectors) + field(2)
    record = parse_video_record(payload)
    assert record.stream_names == ("mean_rgb", "mean_audio")
    assert {name: (frames.tolist(), frames.dtype) for name, frames in record.streams.items()} == {
        "mean_rgb": ([[0.5, 1.5]], np.float32),
        "mean_audio": ([[2, 3, 4]], np.float32),
    }
    assert record.context == {"start_time_seconds": [3.0], "std_rgb": [0.0, 1.0]}
    some = parse_video_record(payload, streams={"mean_audio", "rgb"})
    assert list(some.streams) == ["mean_audio"]
    assert some.stream_names == ("mean_rgb", "mean_audio")


def test_vectors_beside_frames_stay_in_the_context() -> None:
    context = [ID, entry("mean_rgb", floats_feature(0.5, 1.5))]
    record = parse_video_record(sequence(context, [entry("rgb", frame_list(bytes_feature(b"ab")))]))
    assert list(record.streams) == ["rgb"]
    assert record.context == {"mean_rgb": [0.5, 1.5]}


def test_real_video_level_files() -> None:
    records = list(read(shared_path("data/yt8m_video_level")))
    assert len(records) > 100
    for record in records:
        assert {name: frames.shape for name, frames in record.streams.items()} == {
            "mean_rgb": (1, 1024),
            "mean_audio": (1, 128),
        }
        assert len(record.labels)


# ---- what is refused ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        (
            b"",
            "no video id: wanted one bytes value in the context as id or video_id; the context has nothing",
        ),
        (sequence([entry("name", b""), entry("labels", b"")]), "the context has labels, name"),
        (sequence([entry("id", bytes_feature(b"a", b"b"))]), "no video id"),
        (sequence([entry("id", ints_feature(3))]), "no video id"),
        (sequence([ID, entry("labels", floats_feature(1))]), "labels are a list of float, wanted int64"),
        (
            with_stream(bytes_feature(b"abc"), bytes_feature(b"ab")),
            "(video abcd): stream rgb, frame 1: 2 values, the frames before have 3. Wanted frames of equal",
        ),
        (
            with_stream(bytes_feature(b"a"), b""),
            "stream rgb, frame 1: no value, wanted one bytes value a frame",
        ),
        (with_stream(bytes_feature(b"a", b"b")), "stream rgb, frame 0: 2 bytes values, wanted one a frame"),
        (
            with_stream(bytes_feature(b"a"), floats_feature(1)),
            "frame 1: a list of float, the frames before are lists of bytes",
        ),
        (b"\x0a\x05ab", "at byte 2 of the payload 5 bytes are announced, 2 are there"),
        (b"\x0a", "a number is cut at byte 1 of the payload"),
        (b"\x0a" + b"\xff" * 12, "the number at byte 1 of the payload has no end"),
        (b"\x0f\x00", "wire type 7 at byte 0 of the payload"),
        (b"\x0c", "wire type 4 at byte 0"),
        (b"\x02\x00", "field number 0"),
        (b"\x53\x50\x01", "the group of field 10 has no end"),
        (b"\x53\x5c", "the group of field 10 has no end"),
        (b"\x53" * 200, "groups nested more than 100 deep"),
        (sequence([field(1, field(1, b"\xff"))]), "the feature name b'\\xff' is not UTF-8"),
        (sequence([ID, entry("x", field(2, field(1, b"abc")))]), "a packed list of floats has 3 bytes"),
    ],
)
def test_refused(payload: bytes, message: str) -> None:
    for parse in (parse_video_record, parse_slowly):
        with pytest.raises(RecordError) as caught:
            parse(payload)
        assert message in str(caught.value)


def test_the_place_keeps_the_video_id() -> None:
    with pytest.raises(RecordError) as caught:
        parse_video_record(with_stream(b""))
    message = str(caught.value.at(RecordPlace("a.tfrecord", 12, 3)))
    assert message.startswith("a.tfrecord, byte 12, record 3 (video abcd): stream rgb, frame 0: no value")


# ---- properties --------------------------------------------------------------------------------------

names = st.sampled_from(["rgb", "audio", "x", "é", "labels2"])
values = st.one_of(
    st.lists(st.binary(max_size=5), max_size=3),
    st.lists(st.floats(width=32), max_size=3),
    st.lists(st.integers(-(2**63), 2**63 - 1), max_size=3),
)


@st.composite
def streams(draw: st.DrawFn) -> np.ndarray[Any, Any]:
    num_frames = draw(st.integers(0, 5))
    size = draw(st.sampled_from([1, 2, 3, 121, 122, 123, 124, 125, 126, 127, 128, 130])) if num_frames else 0
    dtype = (
        draw(st.sampled_from([np.uint8, np.uint8, np.uint8, np.float32, np.int64]))
        if num_frames
        else np.uint8
    )
    generator = np.random.default_rng(draw(st.integers(0, 1000)))
    return generator.integers(0, 256, (num_frames, size)).astype(dtype)


records = st.builds(
    VideoRecord,
    video_id=st.text(st.characters(codec="utf-8"), max_size=6),
    labels=st.lists(st.integers(-(2**63), 2**63 - 1), max_size=4).map(
        lambda labels: np.array(labels, np.int64)
    ),
    streams=st.dictionaries(names, streams(), max_size=3),
    context=st.dictionaries(names.map(lambda name: name + "_context"), values, max_size=2),
)


@settings(max_examples=150, deadline=None)
@given(record=records, id_key=st.sampled_from(["id", "video_id"]))
def test_parsing_what_was_written_gives_the_same(record: VideoRecord, id_key: str) -> None:
    payload = serialize_video_record(record, id_key=id_key)
    assert same(parse_video_record(payload), record)
    assert same(parse_slowly(payload), record)


@st.composite
def frame_bytes(draw: st.DrawFn, size: int) -> bytes:
    """A Feature with one bytes value, now and then written unusually."""
    value = draw(st.binary(min_size=size, max_size=size))
    match draw(st.sampled_from([0] * 12 + [1, 2, 3, 4, 5])):
        case 1:
            return bytes_feature(value) + field(9, b"unknown")
        case 2:
            return field(1, b"\x50\x01", field(1, value))
        case 3:  # a varint with a superfluous byte
            return (
                b"\x0a"
                + bytes([(len(value) + 3) | 0x80, 0])
                + b"\x0a"
                + bytes([len(value) | 0x80, 0])
                + value
            )
        case 4:
            return bytes_feature(value + b"!")
        case 5:
            return draw(st.sampled_from([b"", floats_feature(1.0), bytes_feature(value, value)]))
    return bytes_feature(value)


@st.composite
def payloads(draw: st.DrawFn) -> bytes:
    """Valid and nearly valid SequenceExamples in any order of fields, and cut or changed ones."""
    lists = []
    for name in draw(st.lists(names, max_size=3)):
        size = draw(st.integers(0, 6))
        frames = frame_list(*draw(st.lists(frame_bytes(size), max_size=5)))
        parts = draw(st.permutations([field(1, name.encode()), field(2, frames)]))
        lists.append(field(2, field(1, *parts)))
    label = st.integers(0, 5000)
    labels = draw(st.lists(label, max_size=3))
    unpacked = field(3, *(b"\x08" + encode_varint(value) for value in labels))
    context = [
        field(1, ID),
        field(1, entry("labels", draw(st.sampled_from([unpacked, ints_feature(*labels)])))),
        draw(st.sampled_from([b"", field(7, b"unknown"), b"\x55abcd"])),
    ]
    payload = bytearray(b"".join(draw(st.permutations(context + lists))))
    if draw(st.booleans()) and draw(st.booleans()):
        for _ in range(draw(st.integers(1, 3))):
            payload[draw(st.integers(0, len(payload) - 1))] = draw(st.integers(0, 255))
        payload = payload[: draw(st.integers(0, len(payload)))] if draw(st.booleans()) else payload
    return bytes(payload)


@settings(max_examples=400, deadline=None)
@given(payload=payloads(), max_frames=st.sampled_from([None, 1, 2, 5]))
def test_strided_views_equal_the_general_parser(payload: bytes, max_frames: int | None) -> None:
    fast = outcome(parse_video_record, payload, max_frames=max_frames)
    slow = outcome(parse_slowly, payload, max_frames=max_frames)
    if isinstance(fast, str) or isinstance(slow, str):
        assert isinstance(fast, str) == isinstance(slow, str), (fast, slow)
    else:
        assert same(fast, slow)


def test_the_usual_layout_is_read_the_short_way() -> None:
    record = VideoRecord("abcd", np.array([3, 300]), {"rgb": np.zeros((2, 4), np.uint8)}, {"start": [1.5]})
    assert usual_layout(memoryview(serialize_video_record(record))) is not None


@st.composite
def usual_payloads(draw: st.DrawFn) -> bytes:
    """Records of few shapes and many values, so that most are laid out like some that came before."""
    labels = draw(st.lists(st.sampled_from([1, 90, 300, 5000]), max_size=3))
    context = [
        entry(
            draw(st.sampled_from(["id", "video_id"])), bytes_feature(draw(st.binary(min_size=2, max_size=3)))
        ),
        entry("labels", ints_feature(*labels)),
        entry("start", floats_feature(draw(st.floats(width=32)))),
    ]
    num_frames, size = draw(st.sampled_from([(3, 2), (2, 3), (1, 7), (1, 130)]))
    frames = [bytes_feature(draw(st.binary(min_size=size, max_size=size))) for _ in range(num_frames)]
    return sequence(draw(st.permutations(context)), [entry("rgb", frame_list(*frames))])


@settings(max_examples=200, deadline=None)
@given(
    payloads=st.lists(usual_payloads(), min_size=1, max_size=8),
    change=st.none() | st.tuples(st.integers(0, 7), st.integers(0, 300), st.integers(1, 255)),
)
def test_records_like_earlier_ones_are_read_as_if_they_were_the_first(
    payloads: list[bytes], change: tuple[int, int, int] | None
) -> None:
    if change is not None:
        number, place, bits = change
        changed = bytearray(payloads[number % len(payloads)])
        changed[place % len(changed)] ^= bits
        payloads = [*payloads, bytes(changed), payloads[0]]
    for payload in payloads:
        fast, slow = outcome(parse_video_record, payload), outcome(parse_slowly, payload)
        assert isinstance(fast, str) == isinstance(slow, str)
        assert isinstance(fast, str) or isinstance(slow, str) or same(fast, slow)


def test_a_layout_is_kept_and_only_so_many() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layouts, "_lists", {})
        patch.setattr(layouts, "_contexts", {})
        patch.setattr(layouts, "_MOST_KEPT", 3)
        for size in (4, 5, 4, 6, 4, 7, 8, 4):
            payload = sequence(
                [entry("id", bytes_feature(b"a" * size))],
                [entry("rgb", frame_list(bytes_feature(b"x" * size)))],
            )
            record = parse_video_record(payload)
            assert (record.video_id, record.streams["rgb"].shape) == ("a" * size, (1, size))
            assert 1 <= len(layouts._lists) <= 3
            assert 1 <= len(layouts._contexts) <= 3
        kept = layouts._lists[len(sequence([], [entry("rgb", frame_list(bytes_feature(b"x" * 4)))])) - 2]
        parse_video_record(sequence([ID], [entry("rgb", frame_list(bytes_feature(b"abcd")))]))
        assert kept in layouts._lists.values()


@pytest.mark.parametrize("labels", [[-1], [1 << 56], [1 << 62]])
def test_numbers_that_are_too_long_for_the_short_way(labels: list[int]) -> None:
    payload = sequence([ID, entry("labels", ints_feature(*labels))])
    assert usual_layout(memoryview(payload)) is None
    assert parse_video_record(payload).labels.tolist() == labels


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=60))
def test_noise_is_refused_without_another_exception(payload: bytes) -> None:
    outcome(parse_video_record, payload)


def test_a_record_cut_or_changed_anywhere_never_raises_another_exception() -> None:
    record = VideoRecord(
        "abcd",
        np.array([3, 300, 70000]),
        {"rgb": np.arange(12, dtype=np.uint8).reshape(3, 4), "audio": np.zeros((2, 2), np.uint8)},
        {"start": [1.5], "segments": [5, 1 << 60]},
    )
    payload = serialize_video_record(record)
    parse_video_record(payload)  # so that its layout is known
    for cut in range(len(payload)):
        outcome(parse_video_record, payload[:cut])
        for value in (0, 1, 0x0A, 0x7F, 0x80, 0xFF, payload[cut] ^ 1):
            changed = payload[:cut] + bytes([value]) + payload[cut + 1 :]
            fast, slow = outcome(parse_video_record, changed), outcome(parse_slowly, changed)
            assert isinstance(fast, str) == isinstance(slow, str)
            assert isinstance(fast, str) or isinstance(slow, str) or same(fast, slow)


def test_a_written_file_is_read_or_refused_at_every_damaged_byte(tmp_path: Path) -> None:
    record = VideoRecord("abcd", np.array([3]), {"rgb": np.arange(12, dtype=np.uint8).reshape(3, 4)})
    with RecordWriter(tmp_path / "a") as writer:
        writer.write(serialize_video_record(record))
    data = (tmp_path / "a").read_bytes()
    for position in range(len(data)):
        changed = data[:position] + bytes([data[position] ^ 0x40]) + data[position + 1 :]
        for damaged in (changed, data[:position]):
            if not damaged:
                continue
            (tmp_path / "b").write_bytes(damaged)
            with pytest.raises(RecordError):
                list(read_records(tmp_path / "b"))


# ---- writing -----------------------------------------------------------------------------------------


def test_written_bytes() -> None:
    record = VideoRecord("ab", np.array([1, 300]), {"rgb": np.array([[7, 8]], np.uint8)})
    expected = sequence(
        [entry("id", bytes_feature(b"ab")), entry("labels", ints_feature(1, 300))],
        [entry("rgb", frame_list(bytes_feature(b"\x07\x08")))],
    )
    assert serialize_video_record(record) == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"streams": {"rgb": np.zeros(3, np.uint8)}}, r"a stream of shape \(3,\), wanted \[T, D\]"),
        ({"streams": {"rgb": np.zeros((3, 2))}}, "a stream of float64, wanted uint8, float32 or int64"),
        ({"context": {"x": [1, "a"]}}, "'a' is not an int64"),
        ({"context": {"x": [2**63]}}, "is not an int64"),
        ({"context": {"x": [1.0, "a"]}}, "required argument is not a float"),
        ({"context": {"x": [1e300]}}, "float too large"),
        ({"context": {"x": [b"a", 1]}}, "cannot be written"),
        ({"context": {"labels": [1]}}, "context feature 'labels' stands for the id or the labels"),
        ({"video_id": "\ud800"}, "surrogates not allowed"),
    ],
)
def test_what_cannot_be_written(change: dict[str, Any], message: str) -> None:
    record = VideoRecord(**{"video_id": "v", "labels": np.array([], np.int64), "streams": {}, **change})
    with pytest.raises(UsageError, match=message):
        serialize_video_record(record)


# ---- real files --------------------------------------------------------------------------------------


def digest(frames: np.ndarray[Any, Any]) -> str:
    return hashlib.sha256(frames.tobytes()).hexdigest()


def test_golden_youtube8m(golden: Path) -> None:
    for name, rows in json.loads((golden / "yt8m" / "expected.json").read_text()).items():
        found = []
        for payload, _ in read_records(golden / "yt8m" / name, on_damage=lambda error: None):
            record = parse_video_record(payload)
            assert same(record, parse_slowly(bytes(payload)))
            assert same(parse_video_record(serialize_video_record(record)), record)
            row = {"video_id": record.video_id, "labels": record.labels.tolist()}
            row |= {f"{stream}_frames": len(record.streams[stream]) for stream in ("rgb", "audio")}
            found.append(
                row | {f"{stream}_sha256": digest(record.streams[stream]) for stream in ("rgb", "audio")}
            )
        assert found == rows, name


def test_audioset_shard(audioset: Path) -> None:
    count = 0
    for payload, _ in read_records(audioset / "eval-00000-of-00008.tfrecord"):
        record = parse_video_record(payload)
        count += 1
        frames = record.streams["audio_embedding"]
        assert frames.dtype == np.uint8
        assert frames.shape[1] == 128
        assert 1 <= len(frames) <= 10
        assert len(record.labels) >= 1
        assert 0 <= record.labels.min() <= record.labels.max() <= 526
        assert set(record.context) == {"start_time_seconds", "end_time_seconds"}
        assert len(record.video_id) == 11
    assert count == 2547
