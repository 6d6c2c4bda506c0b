"""The payload of a frame TFRecord, a tf.SequenceExample, to and from a `VideoRecord`.

YouTube-8M, AudioSet and this package's own writer all use it: a context with the id and the labels, and
one feature list a stream with one bytes feature a frame. Frames of a list usually stand at a constant
stride, so a stream is one strided NumPy view of the payload after one vectorised comparison of all frame
headers; a list that is not like that goes frame by frame through the general parser.

Plain tf.Example records (YouTube-8M's video-level files) hold no feature lists. Their lists of floats
whose name begins with mean_, as mean_rgb and mean_audio, become streams of one float frame each.
"""

from __future__ import annotations

import struct
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nextvlad.data import protobuf
from nextvlad.data.protobuf import BYTES_LIST, FLOAT_LIST, INT64_LIST, KIND_NAMES, LENGTH, Values
from nextvlad.data.usual_layout import ID_KEYS, LABELS, frame_list, usual_layout
from nextvlad.errors import RecordError, RecordPlace, UsageError

_VECTOR_PREFIX = "mean_"  # of what a video-level file says about the whole video
_DTYPES = {FLOAT_LIST: np.float32, INT64_LIST: np.int64}

_Context = dict[str, tuple[int, Values]]
_Spans = list[tuple[int, int]]


@dataclass(slots=True, eq=False)
class VideoRecord:
    r"""One video.

    Attributes:
        video_id: bytes that are not UTF-8 are kept as \xNN.
        labels: [L] int64 as stored: unsorted, perhaps repeated, perhaps none.
        streams: name -> [T, D] uint8, each with its own T; [0, 0] for a list without frames. May be a
            read-only view of the payload. Lists of floats give float32, lists of int64 int64.
        context: every other context feature, such as start_time_seconds or segment_labels.
        stream_names: all streams the record has, also those that were not asked for.
        rated: classes that somebody judged, for a segment (`nextvlad.data.segments`); None: all, as for a
            whole video, whose labels are all it has.
        id_key: context key of the id: YouTube-8M "id", AudioSet "video_id".
    """

    video_id: str
    labels: NDArray[np.int64]
    streams: dict[str, NDArray[Any]]
    context: dict[str, Values] = field(default_factory=dict)
    stream_names: tuple[str, ...] = ()
    rated: NDArray[np.int64] | None = None
    id_key: str = ID_KEYS[0]

    def __post_init__(self) -> None:
        if not self.stream_names:
            self.stream_names = tuple(self.streams)


def parse_video_record(
    payload: NDArray[np.uint8] | bytes,
    *,
    max_frames: int | None = None,
    streams: Collection[str] | None = None,
) -> VideoRecord:
    """Read one record.

    Args:
        payload: [size] uint8, contiguous; the streams may be views of it.
        max_frames: keep the first so many frames of each stream, 1 or more; what follows in the list is
            not looked at. None keeps all.
        streams: names to read; None reads all. A name the record does not have is no error: a video may
            have no sound. `VideoRecord.stream_names` tells what was there.

    Raises:
        RecordError: malformed; without an id; labels that are not integers; frames of a stream that
            differ in size or do not have one value each. The place, which only the caller knows, is left
            to `RecordError.at`.

    Source: tensorflow/core/example/example.proto.
    """
    if max_frames is not None and max_frames < 1:
        raise UsageError(f"max_frames: got {max_frames}, wanted 1 or more.")
    array = np.frombuffer(payload, np.uint8) if isinstance(payload, bytes) else payload
    data = array.data
    return _parse_usual(array, data, max_frames, streams) or _parse_any(array, data, max_frames, streams)


def _parse_usual(
    array: NDArray[np.uint8], data: memoryview, max_frames: int | None, streams: Collection[str] | None
) -> VideoRecord | None:
    """A record as all writers we know lay it out; None for another."""
    usual = usual_layout(data)
    if usual is None:
        return None
    found: dict[str, NDArray[Any]] = {}
    for frames in usual.lists:
        if streams is None or frames.name in streams:
            view = frames.view(array, usual.shift, max_frames)
            if view is None:
                return None
            found[frames.name] = view
    id_key, video_id, labels, others = usual.context
    names = tuple([frames.name for frames in usual.lists])
    return VideoRecord(_text(video_id), np.array(labels, np.int64), found, others, names, id_key=id_key)


def _parse_any(
    array: NDArray[np.uint8], data: memoryview, max_frames: int | None, streams: Collection[str] | None
) -> VideoRecord:
    """Any valid record."""
    context, lists = _any_layout(data)
    id_key, video_id = _take_id(context)
    try:
        labels = _take_labels(context)
        found = {
            name: _read_stream(array, data, name, spans, max_frames)
            for name, spans in lists.items()
            if streams is None or name in streams
        }
    except RecordError as error:
        raise error.at(RecordPlace("payload", 0, 0, video_id)) from None
    vectors = {} if lists else _take_vectors(context)
    found |= {name: values for name, values in vectors.items() if streams is None or name in streams}
    others = {name: values for name, (_, values) in context.items()}
    names = tuple(lists) or tuple(vectors)
    return VideoRecord(video_id, labels, found, others, names, id_key=id_key)


def serialize_video_record(record: VideoRecord, *, id_key: str | None = None) -> bytes:
    """The SequenceExample of a record, as TensorFlow reads it; `parse_video_record` gives it back.

    A stream without frames comes back as [0, 0].

    Args:
        record: streams [T, D] uint8 (or float32, int64).
        id_key: context key of the id; None: the record's own.

    Raises:
        UsageError: a value that a SequenceExample cannot hold.
    """
    try:
        context = {id_key or record.id_key: protobuf.encode_feature([record.video_id.encode()])}
        context[LABELS] = protobuf.encode_feature([int(label) for label in record.labels])
        for name, values in record.context.items():
            if name in context:
                raise TypeError(f"context feature {name!r} stands for the id or the labels")
            context[name] = protobuf.encode_feature(values)
        lists = {name: _encode_frames(frames) for name, frames in record.streams.items()}
    except (TypeError, OverflowError, UnicodeEncodeError, struct.error) as error:
        raise UsageError(f"video {record.video_id!r} cannot be written as a record: {error}.") from error
    return b"".join(
        protobuf.encode_field(number, b"".join(_encode_entry(*item) for item in entries.items()))
        for number, entries in ((1, context), (2, lists))
    )


def _encode_entry(name: str, value: bytes) -> bytes:
    entry = protobuf.encode_field(1, name.encode()) + protobuf.encode_field(2, value)
    return protobuf.encode_field(1, entry)


def _encode_frames(frames: NDArray[Any]) -> bytes:
    if frames.ndim != 2:
        raise TypeError(f"a stream of shape {frames.shape}, wanted [T, D]")
    if frames.dtype == np.uint8:
        size = frames.shape[1]
        header = _bytes_header(size)
        rows = np.empty((len(frames), len(header) + size), np.uint8)
        rows[:, : len(header)] = np.frombuffer(header, np.uint8)
        rows[:, len(header) :] = frames
        return rows.tobytes()
    if frames.dtype not in (np.float32, np.int64):
        raise TypeError(f"a stream of {frames.dtype}, wanted uint8, float32 or int64")
    return b"".join(protobuf.encode_field(1, protobuf.encode_feature(row)) for row in frames.tolist())


def _bytes_header(size: int) -> bytes:
    """What stands before the `size` bytes of a frame: Feature, BytesList and value."""
    value = b"\x0a" + protobuf.encode_varint(size)
    values = b"\x0a" + protobuf.encode_varint(len(value) + size)
    return b"\x0a" + protobuf.encode_varint(len(values) + len(value) + size) + values + value


def _any_layout(data: memoryview) -> tuple[_Context, dict[str, _Spans]]:
    """The context features and where the feature lists are, in any valid SequenceExample."""
    features: dict[str, _Spans] = {}
    lists: dict[str, _Spans] = {}
    for number, wire, start, stop in protobuf.fields(data, 0, len(data)):
        if wire == LENGTH and number in (1, 2):
            _read_map(data, start, stop, features if number == 1 else lists)
    return {name: protobuf.feature(data, spans) for name, spans in features.items()}, lists


def _read_map(data: memoryview, start: int, stop: int, into: dict[str, _Spans]) -> None:
    """Entries of a Features or FeatureLists message; of a repeated key the last counts."""
    for number, wire, a, b in protobuf.fields(data, start, stop):
        if number == 1 and wire == LENGTH:
            name, value = protobuf.map_entry(data, a, b)
            into[name] = value


def _take_id(context: _Context) -> tuple[str, str]:
    """Remove the id from the context: its key, and the id."""
    for key in ID_KEYS:
        kind, values = context.get(key, (0, []))
        if kind == BYTES_LIST and len(values) == 1:
            del context[key]
            value = values[0]
            return key, _text(value) if isinstance(value, bytes) else ""
    found = ", ".join(sorted(context)) or "nothing"
    raise RecordError(
        f"no video id: wanted one bytes value in the context as id or video_id; the context has {found}. "
        "Is this a file of frame features?"
    )


def _text(video_id: bytes) -> str:
    return video_id.decode(errors="backslashreplace")


def _take_labels(context: _Context) -> NDArray[np.int64]:
    kind, values = context.pop(LABELS, (0, []))
    if kind not in (0, INT64_LIST):
        raise RecordError(f"labels are a list of {KIND_NAMES[kind]}, wanted int64.")
    return np.array(values, np.int64)


def _take_vectors(context: _Context) -> dict[str, NDArray[np.float32]]:
    """Remove a tf.Example's mean vectors from the context: name -> [1, D].

    By their names, since the bytes do not tell an Example from a SequenceExample without frames.
    """
    names = [
        name for name, (kind, _) in context.items() if kind == FLOAT_LIST and name.startswith(_VECTOR_PREFIX)
    ]
    return {name: np.array([context.pop(name)[1]], np.float32) for name in names}


def _read_stream(
    array: NDArray[np.uint8], data: memoryview, name: str, spans: _Spans, max_frames: int | None
) -> NDArray[Any]:
    if len(spans) == 1:
        frames = frame_list(name, data, *spans[0]).view(array, 0, max_frames)
        if frames is not None:
            return frames
    return _frame_by_frame(data, name, spans, max_frames)


def _frame_by_frame(data: memoryview, name: str, spans: _Spans, max_frames: int | None) -> NDArray[Any]:
    """The frames of any valid feature list, copied."""
    frames: list[Any] = []
    kind = 0
    for start, stop in spans:
        for number, wire, a, b in protobuf.fields(data, start, stop):
            if number != 1 or wire != LENGTH:
                continue
            frame_kind, values = protobuf.feature(data, [(a, b)])
            kind = kind or frame_kind
            _check_frame(name, len(frames), kind, frame_kind, len(values))
            first = values[0]
            frame = (
                np.frombuffer(first, "u1") if isinstance(first, bytes) else np.array(values, _DTYPES[kind])
            )
            if frames and len(frame) != len(frames[0]):
                raise RecordError(
                    f"stream {name}, frame {len(frames)}: {len(frame)} values, the frames before have "
                    f"{len(frames[0])}. Wanted frames of equal size."
                )
            frames.append(frame)
            if len(frames) == max_frames:
                return np.stack(frames)
    return np.stack(frames) if frames else np.zeros((0, 0), np.uint8)


def _check_frame(name: str, frame: int, kind: int, frame_kind: int, count: int) -> None:
    where = f"stream {name}, frame {frame}"
    if count == 0:
        raise RecordError(f"{where}: no value, wanted one bytes value a frame.")
    if frame_kind != kind:
        raise RecordError(
            f"{where}: a list of {KIND_NAMES[frame_kind]}, the frames before are lists of {KIND_NAMES[kind]}."
        )
    if kind == BYTES_LIST and count != 1:
        raise RecordError(f"{where}: {count} bytes values, wanted one a frame.")
