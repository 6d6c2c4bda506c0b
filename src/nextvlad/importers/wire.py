"""The protobuf wire format, as far as the headers of foreign checkpoints use it."""

from __future__ import annotations

from collections.abc import Iterator


def read_varint(data: bytes, position: int) -> tuple[int, int]:
    """The unsigned varint at `position` and the position after it.

    Raises:
        ValueError: the bytes end inside it, or it is longer than 64 bits.

    >>> read_varint(bytes([0x80, 0x02]), 0)
    (256, 2)
    """
    value = shift = 0
    while True:
        if position >= len(data):
            raise ValueError("the bytes end inside a number")
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            break
        shift += 7
        if shift > 63:
            raise ValueError("a number is longer than 64 bits")
    if value >> 64:
        raise ValueError("a number is longer than 64 bits")
    return value, position


def read_fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """(field number, value) of each field of a message, in file order.

    Varints and fixed-size numbers come as unsigned int, everything with a length as bytes.

    Raises:
        ValueError: the message is malformed.
    """
    position = 0
    while position < len(message):
        tag, position = read_varint(message, position)
        kind = tag & 7
        value: int | bytes
        if kind == 0:
            value, position = read_varint(message, position)
        else:
            if kind == 2:
                size, position = read_varint(message, position)
            elif kind in (1, 5):
                size = 8 if kind == 1 else 4
            else:
                raise ValueError(f"field {tag >> 3} has the unknown wire type {kind}")
            if size > len(message) - position:
                raise ValueError(f"field {tag >> 3} runs {size - len(message) + position} bytes past the end")
            value = message[position : position + size]
            position += size
            if kind != 2:
                value = int.from_bytes(value, "little")
        yield tag >> 3, value


def number(value: int | bytes) -> int:
    """A field that must be a number.

    Raises:
        ValueError: it is a string of bytes.
    """
    if isinstance(value, bytes):
        raise ValueError("a field holds bytes where a number was wanted")
    return value


def message(value: int | bytes) -> bytes:
    """A field that must be a string of bytes or an inner message.

    Raises:
        ValueError: it is a number.
    """
    if isinstance(value, int):
        raise ValueError("a field holds a number where bytes were wanted")
    return value
