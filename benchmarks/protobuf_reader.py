"""Reads frame records with Google's protobuf library: what `benchmarks/reading.py` compares with.

As one would write it without thought for how frames lie in a file: frame the records, verify both
checksums, parse the SequenceExample, join the frames of the lists. Needs the extra `bench`.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import google_crc32c
import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from numpy.typing import NDArray

from nextvlad.config import StreamConfig

_HEADER = struct.Struct("<QI")
_FOOTER = struct.Struct("<I")
_PACKAGE = "nextvlad.benchmark"
_Field = descriptor_pb2.FieldDescriptorProto
_Join = Callable[[list[bytes], int], NDArray[np.uint8]]


class Packed(NamedTuple):
    """B videos, as `nextvlad.data.batch.FrameBatch` has them, but for the tensors around the arrays."""

    video_ids: list[str]
    labels: NDArray[np.bool_]
    streams: dict[str, tuple[NDArray[np.uint8], NDArray[np.int64]]]


def batches(
    paths: Sequence[str],
    streams: Sequence[StreamConfig],
    *,
    num_classes: int,
    batch_size: int,
    max_frames: int,
    frame_by_frame: bool = False,
) -> Iterator[Packed]:
    """All records of some plain files, `batch_size` at a time.

    `frame_by_frame` makes an array of each frame and stacks them; else the bytes are joined first.
    """
    sequence_example = sequence_example_class()
    join = _stacked if frame_by_frame else _joined
    waiting = []
    for path in paths:
        for payload in _payloads(path):
            waiting.append(sequence_example.FromString(payload))
            if len(waiting) == batch_size:
                yield _pack(waiting, streams, num_classes, max_frames, join)
                waiting = []
    if waiting:
        yield _pack(waiting, streams, num_classes, max_frames, join)


def _payloads(path: str) -> Iterator[bytes]:
    with open(path, "rb") as file:
        while head := file.read(_HEADER.size):
            size, wanted = _HEADER.unpack(head)
            if _masked_crc(head[:8]) != wanted:
                raise ValueError(f"{path}: a length is damaged")
            payload = file.read(size)
            if _masked_crc(payload) != _FOOTER.unpack(file.read(_FOOTER.size))[0]:
                raise ValueError(f"{path}: a payload is damaged")
            yield payload


def _masked_crc(data: bytes) -> int:
    crc: int = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _pack(
    examples: Sequence[Any], streams: Sequence[StreamConfig], num_classes: int, max_frames: int, join: _Join
) -> Packed:
    ids = []
    labels = np.zeros((len(examples), num_classes), np.bool_)
    frames: dict[str, list[bytes]] = {stream.name: [] for stream in streams}
    offsets: dict[str, list[int]] = {stream.name: [0] for stream in streams}
    for row, example in enumerate(examples):
        context = example.context.feature
        key = "id" if "id" in context else "video_id"
        ids.append(context[key].bytes_list.value[0].decode())
        labels[row, list(context["labels"].int64_list.value)] = True
        for stream in streams:
            found = example.feature_lists.feature_list[stream.name].feature
            frames[stream.name].extend(one.bytes_list.value[0] for one in found[:max_frames])
            offsets[stream.name].append(len(frames[stream.name]))
    packed = {
        stream.name: (join(frames[stream.name], stream.size), np.array(offsets[stream.name]))
        for stream in streams
    }
    return Packed(ids, labels, packed)


def _joined(frames: list[bytes], size: int) -> NDArray[np.uint8]:
    return np.frombuffer(b"".join(frames), np.uint8).reshape(-1, size)


def _stacked(frames: list[bytes], size: int) -> NDArray[np.uint8]:
    arrays = [np.frombuffer(frame, np.uint8) for frame in frames]
    return np.stack(arrays) if arrays else np.empty((0, size), np.uint8)


def sequence_example_class() -> Any:
    """tf.train.SequenceExample, from its published field numbers; no TensorFlow.

    Source: tensorflow/core/example/example.proto and feature.proto.
    """
    file = descriptor_pb2.FileDescriptorProto(
        name="nextvlad_benchmark.proto", package=_PACKAGE, syntax="proto3"
    )
    kinds = {"BytesList": _Field.TYPE_BYTES, "FloatList": _Field.TYPE_FLOAT, "Int64List": _Field.TYPE_INT64}
    for name, kind in kinds.items():
        _add(file.message_type.add(name=name), "value", 1, kind, repeated=True)
    feature = file.message_type.add(name="Feature")
    feature.oneof_decl.add(name="kind")
    for number, (member, kind_name) in enumerate(
        (("bytes_list", "BytesList"), ("float_list", "FloatList"), ("int64_list", "Int64List")), start=1
    ):
        _add(feature, member, number, _Field.TYPE_MESSAGE, of=kind_name).oneof_index = 0
    _add_map(file.message_type.add(name="Features"), "feature", "Feature")
    feature_list = file.message_type.add(name="FeatureList")
    _add(feature_list, "feature", 1, _Field.TYPE_MESSAGE, of="Feature", repeated=True)
    _add_map(file.message_type.add(name="FeatureLists"), "feature_list", "FeatureList")
    example = file.message_type.add(name="SequenceExample")
    _add(example, "context", 1, _Field.TYPE_MESSAGE, of="Features")
    _add(example, "feature_lists", 2, _Field.TYPE_MESSAGE, of="FeatureLists")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.SequenceExample"))


def _add(message: Any, name: str, number: int, kind: int, *, of: str = "", repeated: bool = False) -> Any:
    label = _Field.LABEL_REPEATED if repeated else _Field.LABEL_OPTIONAL
    field = message.field.add(name=name, number=number, type=kind, label=label)
    if of:
        field.type_name = f".{_PACKAGE}.{of}"
    return field


def _add_map(message: Any, name: str, of: str) -> None:
    """map<string, of> name = 1, which is a list of entries with a key and a value."""
    entry = message.nested_type.add(name="".join(part.title() for part in name.split("_")) + "Entry")
    entry.options.map_entry = True
    _add(entry, "key", 1, _Field.TYPE_STRING)
    _add(entry, "value", 2, _Field.TYPE_MESSAGE, of=of)
    whole = f"{message.name}.{entry.name}"
    _add(message, name, 1, _Field.TYPE_MESSAGE, of=whole, repeated=True)
