"""The protobuf wire format, as far as tf.SequenceExample needs it.

`fields` walks one message; `features` and `Feature` read tf.train.Features on top of it. Unknown fields
of every wire type are stepped over, repeated messages are merged as protobuf merges them, and whatever
is malformed is a RecordError, never another exception.

Source: protobuf.dev/programming-guides/encoding; tensorflow/core/example/feature.proto for the messages.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from nextvlad.errors import RecordError

VARINT, FIXED64, LENGTH, START_GROUP, END_GROUP, FIXED32 = 0, 1, 2, 3, 4, 5
BYTES_LIST, FLOAT_LIST, INT64_LIST = 1, 2, 3
KIND_NAMES = {BYTES_LIST: "bytes", FLOAT_LIST: "float", INT64_LIST: "int64"}

Values = list[bytes] | list[float] | list[int]
_MAX_DEPTH = 100
_MALFORMED = "the record is not a SequenceExample, or was written wrongly"
_FLOAT = struct.Struct("<f")


def varint(data: memoryview, position: int, end: int) -> tuple[int, int]:
    """An unsigned 64-bit varint, and the position after it."""
    value = shift = 0
    while position < end:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFFFFFFFFFFFFFF, position
        shift += 7
        if shift == 70:
            raise RecordError(f"{_MALFORMED}: the number at byte {position - 10} of the payload has no end.")
    raise RecordError(f"{_MALFORMED}: a number is cut at byte {end} of the payload.")


def fields(data: memoryview, position: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Walk the message in data[position:end].

    Yields:
        (field number, wire type, a, b). LENGTH, FIXED32, FIXED64: the content is data[a:b]. VARINT: a is
        the value, b the position after it. Groups are stepped over.
    """
    while position < end:
        tag = data[position]
        position += 1
        if tag >= 0x80:
            tag, position = varint(data, position - 1, end)
        wire = tag & 7
        if wire == LENGTH:
            if position < end and data[position] < 0x80:
                size = data[position]
                position += 1
            else:
                size, position = varint(data, position, end)
        elif wire == VARINT:
            value, after = varint(data, position, end)
            _check_number(tag, position)
            yield tag >> 3, wire, value, after
            position = after
            continue
        elif wire == FIXED32:
            size = 4
        elif wire == FIXED64:
            size = 8
        elif wire == START_GROUP:
            _check_number(tag, position)
            position = _skip_group(data, position, end, tag >> 3, 0)
            continue
        else:
            raise RecordError(f"{_MALFORMED}: wire type {wire} at byte {position - 1} of the payload.")
        _check_number(tag, position)
        if size > end - position:
            raise RecordError(
                f"{_MALFORMED}: at byte {position} of the payload {size} bytes are announced, "
                f"{end - position} are there."
            )
        yield tag >> 3, wire, position, position + size
        position += size


def _check_number(tag: int, position: int) -> None:
    if not 8 <= tag <= 0xFFFFFFFF:
        raise RecordError(f"{_MALFORMED}: field number {tag >> 3} before byte {position} of the payload.")


def _skip_group(data: memoryview, position: int, end: int, number: int, depth: int) -> int:
    """Position after the end of a group (an old, deprecated kind of submessage)."""
    if depth > _MAX_DEPTH:
        raise RecordError(f"{_MALFORMED}: groups nested more than {_MAX_DEPTH} deep.")
    while position < end:
        tag, position = varint(data, position, end)
        _check_number(tag, position)
        wire = tag & 7
        if wire == END_GROUP:
            if tag >> 3 != number:
                break
            return position
        if wire == VARINT:
            _, position = varint(data, position, end)
        elif wire == START_GROUP:
            position = _skip_group(data, position, end, tag >> 3, depth + 1)
        elif wire in (LENGTH, FIXED32, FIXED64):
            size = 4 if wire == FIXED32 else 8
            if wire == LENGTH:
                size, position = varint(data, position, end)
            position += size
        else:
            break
    raise RecordError(
        f"{_MALFORMED}: the group of field {number} has no end before byte {end} of the payload."
    )


def text(data: memoryview, start: int, stop: int) -> str:
    """A string field; protobuf wants UTF-8."""
    try:
        return str(data[start:stop], "utf-8")
    except UnicodeDecodeError:
        name = bytes(data[start:stop])
        raise RecordError(f"{_MALFORMED}: the feature name {name!r} is not UTF-8.") from None


def map_entry(data: memoryview, start: int, stop: int) -> tuple[str, list[tuple[int, int]]]:
    """An entry of a map with string keys: the key, and the spans of the value (several: to be merged)."""
    key, value = "", []
    for number, wire, a, b in fields(data, start, stop):
        if wire == LENGTH and number == 1:
            key = text(data, a, b)
        elif wire == LENGTH and number == 2:
            value.append((a, b))
    return key, value


def feature(data: memoryview, spans: list[tuple[int, int]]) -> tuple[int, Values]:
    """A tf.train.Feature: its kind (0 if it has none) and its values."""
    kind = 0
    values: list[bytes] | list[float] | list[int] = []
    for start, stop in spans:
        for number, wire, a, b in fields(data, start, stop):
            if wire != LENGTH or number not in KIND_NAMES:
                continue
            if number != kind:  # another member of the oneof replaces the first
                kind, values = number, []
            _READERS[number](data, a, b, values)
    return kind, values


def _read_bytes(data: memoryview, start: int, stop: int, values: list[bytes]) -> None:
    for number, wire, a, b in fields(data, start, stop):
        if number == 1 and wire == LENGTH:
            values.append(bytes(data[a:b]))


def _read_floats(data: memoryview, start: int, stop: int, values: list[float]) -> None:
    for number, wire, a, b in fields(data, start, stop):
        if number != 1:
            continue
        if wire == LENGTH:
            if (b - a) % 4:
                raise RecordError(f"{_MALFORMED}: a packed list of floats has {b - a} bytes.")
            values.extend(np.frombuffer(data[a:b], "<f4").tolist())
        elif wire == FIXED32:
            values.append(_FLOAT.unpack_from(data, a)[0])


def _read_ints(data: memoryview, start: int, stop: int, values: list[int]) -> None:
    for number, wire, a, b in fields(data, start, stop):
        if number != 1:
            continue
        if wire == LENGTH:
            while a < b:
                value, a = varint(data, a, b)
                values.append(_signed(value))
        elif wire == VARINT:
            values.append(_signed(a))


_READERS: dict[int, Callable[[memoryview, int, int, Any], None]] = {
    BYTES_LIST: _read_bytes,
    FLOAT_LIST: _read_floats,
    INT64_LIST: _read_ints,
}


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def encode_varint(value: int) -> bytes:
    r"""The varint of an integer of -2**63 to 2**64 - 1.

    >>> encode_varint(300)
    b'\xac\x02'
    """
    value &= 0xFFFFFFFFFFFFFFFF
    encoded = bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def encode_field(number: int, content: bytes) -> bytes:
    r"""A LENGTH field.

    >>> encode_field(1, b"id")
    b'\n\x02id'
    """
    return b"".join((encode_varint(number << 3 | LENGTH), encode_varint(len(content)), content))


def encode_feature(values: Values) -> bytes:
    """A tf.train.Feature of bytes, ints or floats, packed where protobuf packs; empty for no values.

    Raises:
        TypeError, OverflowError, struct.error: values of mixed types, or out of range.
    """
    if not values:
        return b""
    if isinstance(values[0], bytes):
        return encode_field(BYTES_LIST, b"".join(encode_field(1, value) for value in values))
    if isinstance(values[0], float):
        return encode_field(FLOAT_LIST, encode_field(1, struct.pack(f"<{len(values)}f", *values)))
    packed = b"".join(encode_varint(_checked_int64(value)) for value in values)
    return encode_field(INT64_LIST, encode_field(1, packed))


def _checked_int64(value: object) -> int:
    if not isinstance(value, int) or not -(1 << 63) <= value < 1 << 63:
        raise TypeError(f"{value!r} is not an int64")
    return value
