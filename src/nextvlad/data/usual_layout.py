"""A short way through records laid out as every writer we know lays them out.

protobuf allows much that nobody writes: fields in another order, split messages, unpacked numbers, lengths
with leading zeros. What is below takes only the usual form, and answers None for anything else, which the
general parser of `nextvlad.data.protobuf` then reads; where both can read, they agree.
"""

from __future__ import annotations

import struct

from nextvlad.data import protobuf
from nextvlad.data.protobuf import BYTES_LIST, FLOAT_LIST, INT64_LIST, Values
from nextvlad.errors import RecordError

_FIRST, _SECOND = 0x0A, 0x12  # tags: field 1 or 2, a length follows
_BYTES, _FLOATS, _INTS = 0x0A, 0x12, 0x1A  # the same, of a Feature
_ONE_BYTE = 0x80  # lengths below it take one byte
_MOST_BITS = 56  # of a number that is read here

Context = dict[str, tuple[int, Values]]
Spans = dict[str, list[tuple[int, int]]]


def usual_layout(data: memoryview) -> tuple[Context, Spans] | None:
    """The context features and where the feature lists are, in a SequenceExample; None if it is unusual.

    The lists' spans are what `nextvlad.data.protobuf.map_entry` gives; their content is not looked at.
    """
    try:
        context_end, start = _message(data, 0, len(data), _FIRST)
        context = read_context(bytes(data[start:context_end]))
        if context is None:
            return None
        if context_end == len(data):
            return context, {}
        end, start = _message(data, context_end, len(data), _SECOND)
        return (context, _read_lists(data, start, end)) if end == len(data) else None
    except (IndexError, RecordError, UnicodeDecodeError, _UnusualError):
        return None


def read_context(head: bytes) -> Context | None:
    """Of a Features message whose entries are all shorter than 128 bytes; None if it is unusual.

    May raise IndexError or UnicodeDecodeError instead of giving None.
    """
    found: Context = {}
    position, end = 0, len(head)
    while position < end:
        # entry: 0A size, key: 0A size bytes, value: 12 size, kind size, list: 0A size content
        stop = position + 2 + head[position + 1]
        value = position + 4 + head[position + 3]
        size = stop - value - 6
        if (
            head[position] != _FIRST
            or stop >= position + 2 + _ONE_BYTE
            or stop > end
            or head[position + 2] != _FIRST
            or head[value] != _SECOND
            or head[value + 1] != size + 4
            or head[value + 3] != size + 2
            or head[value + 4] != _FIRST
            or head[value + 5] != size
        ):
            return None
        kind, content = head[value + 2], head[value + 6 : stop]
        name = head[position + 4 : value].decode()
        if kind == _BYTES:
            found[name] = BYTES_LIST, [content]
        elif kind == _FLOATS and size % 4 == 0:
            found[name] = FLOAT_LIST, list(struct.unpack(f"<{size // 4}f", content))
        elif kind == _INTS and (numbers := _numbers(content)) is not None:
            found[name] = INT64_LIST, numbers
        else:
            return None
        position = stop
    return found


def _numbers(content: bytes) -> list[int] | None:
    """Packed varints, none of them long enough to be negative."""
    if content.isascii():  # each in one byte
        return list(content)
    numbers = []
    number = shift = 0
    for byte in content:
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            numbers.append(number)
            number = shift = 0
        else:
            shift += 7
            if shift == _MOST_BITS:
                return None
    return numbers if shift == 0 else None


def _read_lists(data: memoryview, position: int, end: int) -> Spans:
    found: Spans = {}
    while position < end:
        entry_end, position = _message(data, position, end, _FIRST)
        key_end, position = _message(data, position, entry_end, _FIRST)
        name = str(data[position:key_end], "utf-8")
        value_end, position = _message(data, key_end, entry_end, _SECOND)
        if value_end != entry_end:
            raise _UnusualError
        found[name] = [(position, value_end)]
        position = entry_end
    return found


def _message(data: memoryview, position: int, end: int, tag: int) -> tuple[int, int]:
    """End and beginning of the content of the field `tag` at `position`."""
    if position >= end or data[position] != tag:
        raise _UnusualError
    size = data[position + 1]
    if size < _ONE_BYTE:
        position += 2
    else:
        size, position = protobuf.varint(data, position + 1, end)
    if size > end - position:
        raise _UnusualError
    return position + size, position


class _UnusualError(Exception):
    """For the general parser."""
