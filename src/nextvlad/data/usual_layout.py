"""A short way through records laid out as every writer we know lays them out.

protobuf allows much that nobody writes: fields in another order, split messages, unpacked numbers, lengths
with leading zeros. What is below takes only the usual form, and answers None for anything else, which the
general parser of `nextvlad.data.protobuf` then reads; where both can read, they agree.

The records of a file differ in little but their values. So a layout that was found once, where the values
stand and which bytes are around them, is kept: a later record of the same sizes is cut at the same places
in one step, and if what is around the values is the same, byte for byte, then so is their meaning.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from nextvlad.data import protobuf
from nextvlad.data.protobuf import BYTES_LIST, FLOAT_LIST, INT64_LIST, Values
from nextvlad.errors import RecordError

ID_KEYS = ("id", "video_id")
LABELS = "labels"

_FIRST, _SECOND = 0x0A, 0x12  # tags: field 1 or 2, a length follows
_KINDS = {0x0A: BYTES_LIST, 0x12: FLOAT_LIST, 0x1A: INT64_LIST}  # the same, of a Feature
_ONE_BYTE = 0x80  # lengths below it take one byte
_MOST_BITS = 56  # of a number that is read here
_MOST_KEPT = 1024  # layouts of a kind; YouTube-8M has one for each number of frames

_Kind = TypeVar("_Kind")
_Layout = TypeVar("_Layout")


class UsualContext(NamedTuple):
    """The context of a record."""

    id_key: str
    video_id: bytes
    labels: list[int]
    others: dict[str, Values]


@dataclass(frozen=True, slots=True)
class FrameList:
    """One stream of a record.

    Attributes:
        name: of the stream.
        start, stop: where the list is in the payload, as `nextvlad.data.protobuf.map_entry` says it.
        header: what stands before the first frame's bytes, and should before each; none: unusual frames.
        stride: bytes from one frame to the next.
    """

    name: str
    start: int
    stop: int
    header: bytes
    stride: int

    def view(self, array: NDArray[np.uint8], shift: int, max_frames: int | None) -> NDArray[np.uint8] | None:
        """Its frames [T, D], `shift` bytes further on; None if they do not stand at a constant stride."""
        stride, header = self.stride, self.header
        if not header:
            return np.zeros((0, 0), np.uint8) if self.start == self.stop else None
        start = self.start + shift
        count, rest = divmod(self.stop - self.start, stride)
        if max_frames is not None and count >= max_frames:
            count = max_frames
        elif rest:
            return None
        # As items of the header's size: compared at once, which rows and columns of single bytes are not.
        headers: NDArray[Any] = np.ndarray(count, _item(len(header)), array, start, (stride,))
        if headers.tobytes() != header * count:
            return None
        size = stride - len(header)
        return np.ndarray((count, size), np.uint8, array, start + len(header), (stride, 1))


class Usual(NamedTuple):
    """What a record holds; of the lists only where they are."""

    context: UsualContext
    lists: tuple[FrameList, ...]
    shift: int  # bytes to add to what the lists say


def usual_layout(data: memoryview) -> Usual | None:
    """The context, and where the feature lists are; None if the record is unusual, or has no lists."""
    try:
        end, start = _message(data, 0, len(data), _FIRST)
        return Usual(_read_context(bytes(data[start:end])), _find_lists(data, end), end)
    except (IndexError, RecordError, UnicodeDecodeError, _UnusualError):
        return None


# ---- the context ---------------------------------------------------------------------------------------


class _ContextLayout:
    """Where the values of a Features message are; all its entries are shorter than 128 bytes."""

    def __init__(self, head: bytes) -> None:
        """May raise IndexError or UnicodeDecodeError instead of _UnusualError."""
        values = list(_context_values(head))
        kinds = {name: kind for name, kind, _, _ in values}
        self._id_key = next((key for key in ID_KEYS if kinds.get(key) == BYTES_LIST), "")
        if not self._id_key or kinds.get(LABELS, INT64_LIST) != INT64_LIST or len(kinds) < len(values):
            raise _UnusualError
        # What is around the values and the values take turns.
        pieces, position = "<", 0
        for _, _, start, stop in values:
            pieces, position = f"{pieces}{start - position}s{stop - start}s", stop
        self._cut = struct.Struct(pieces).unpack_from
        self._around = self._cut(head)[::2]
        places = {name: 2 * number + 1 for number, (name, _, _, _) in enumerate(values)}
        self._id, self._labels = places.pop(self._id_key), places.pop(LABELS, None)
        self._others = [(name, place, _READERS[kinds[name]]) for name, place in places.items()]

    def read(self, head: bytes) -> UsualContext | None:
        """Another message of this size; None if what is around the values is not the same."""
        parts = self._cut(head)
        if parts[::2] != self._around:
            return None
        labels = [] if self._labels is None else _numbers(parts[self._labels])
        others = {name: read(parts[place]) for name, place, read in self._others}
        return UsualContext(self._id_key, parts[self._id], labels, others)


_contexts: dict[tuple[int, ...], _ContextLayout] = {}  # sizes of the entries -> the last one like that


def _read_context(head: bytes) -> UsualContext:
    # The order of the entries is random in many files, so the sizes of all of them, and not only the whole.
    sizes, position = [], 0
    while position < len(head):
        sizes.append(head[position + 1])
        position += 2 + head[position + 1]
    kind = tuple(sizes)
    if position == len(head) and kind in _contexts and (found := _contexts[kind].read(head)):
        return found
    layout = _ContextLayout(head)
    _keep(_contexts, kind, layout)
    found = layout.read(head)
    assert found is not None
    return found


def _context_values(head: bytes) -> Iterator[tuple[str, int, int, int]]:
    """Of each feature its name, its kind, and where its values are."""
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
            or head[value + 2] not in _KINDS
            or head[value + 3] != size + 2
            or head[value + 4] != _FIRST
            or head[value + 5] != size
        ):
            raise _UnusualError
        yield head[position + 4 : value].decode(), _KINDS[head[value + 2]], value + 6, stop
        position = stop


def _one(content: bytes) -> list[bytes]:
    return [content]


def _floats(content: bytes) -> list[float]:
    if len(content) % 4:
        raise _UnusualError
    return list(struct.unpack(f"<{len(content) // 4}f", content))


def _numbers(content: bytes) -> list[int]:
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
                raise _UnusualError
    if shift:
        raise _UnusualError
    return numbers


_READERS: dict[int, Callable[[bytes], Values]] = {BYTES_LIST: _one, FLOAT_LIST: _floats, INT64_LIST: _numbers}


# ---- the feature lists ---------------------------------------------------------------------------------


class _ListsLayout:
    """Where the lists of a FeatureLists message are, and their frames."""

    def __init__(self, data: memoryview) -> None:
        """`data` begins with the tag of the message and ends with it."""
        stop, position = _message(data, 0, len(data), _SECOND)
        lists, pieces, done = [], "<", 0
        while position < stop:
            entry_end, position = _message(data, position, stop, _FIRST)
            key_end, position = _message(data, position, entry_end, _FIRST)
            name = str(data[position:key_end], "utf-8")
            end, position = _message(data, key_end, entry_end, _SECOND)
            if end != entry_end:
                raise _UnusualError
            frames = frame_list(name, data, position, end)
            first = position + len(frames.header)
            lists.append(frames)
            # All up to the first frame's bytes counts, and what comes then, to the end of the list, does not.
            pieces, done = f"{pieces}{first - done}s{end - first}x", end
            position = end
        if stop != len(data) or not lists or len({frames.name for frames in lists}) < len(lists):
            raise _UnusualError
        self.lists = tuple(lists)
        self._cut = struct.Struct(pieces).unpack_from
        self._around = self._cut(data)

    def fits(self, data: memoryview, start: int) -> bool:
        """Whether what stands at `start` is the same, but for the frames."""
        return self._cut(data, start) == self._around


_lists: dict[int, _ListsLayout] = {}  # size of the message -> the last one of that size


def _find_lists(data: memoryview, start: int) -> tuple[FrameList, ...]:
    size = len(data) - start
    layout = _lists.get(size)
    if layout is None or not layout.fits(data, start):
        layout = _ListsLayout(data[start:])
        _keep(_lists, size, layout)
    return layout.lists


def frame_list(name: str, data: memoryview, start: int, stop: int) -> FrameList:
    """The list at data[start:stop], as its first frame says it is."""
    position, stride = start, 0
    for level in range(3):  # Feature, BytesList, value: each the first field of the one around it
        if position >= stop or data[position] != _FIRST:
            return FrameList(name, start, stop, b"", 0)
        size, position = protobuf.varint(data, position + 1, stop)
        if level == 0:
            stride = position + size - start
        elif position + size != start + stride:
            return FrameList(name, start, stop, b"", 0)
    header = bytes(data[start:position]) if stride <= stop - start else b""
    return FrameList(name, start, stop, header, stride)


def _keep(known: dict[_Kind, _Layout], kind: _Kind, layout: _Layout) -> None:
    if len(known) >= _MOST_KEPT:
        known.clear()
    known[kind] = layout


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


@functools.cache
def _item(size: int) -> np.dtype[np.void]:
    return np.dtype((np.void, size))


class _UnusualError(Exception):
    """For the general parser."""
