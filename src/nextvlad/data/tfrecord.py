"""TFRecord files: framed byte strings with checksums, plain or compressed as a whole.

A record is a uint64 length, the masked CRC-32C of these eight bytes, the payload, and the masked
CRC-32C of the payload, all little-endian. Both checksums are always verified. The payload of a frame
file is read by `nextvlad.data.video_record`.
"""

from __future__ import annotations

import functools
import os
import struct
import zlib
from collections.abc import Callable, Iterator
from io import FileIO
from types import TracebackType
from typing import NamedTuple, Self, TypeVar

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from nextvlad.data.window import ADVICE, WBITS, Compression, Window, compression_by_magic
from nextvlad.errors import RecordError, RecordPlace
from nextvlad.files import NewFile, cannot_open

_HEADER = struct.Struct("<QI")
_FOOTER = struct.Struct("<I")
HEADER_SIZE = _HEADER.size
"""Bytes of a record before its payload."""
FRAMING_SIZE = _HEADER.size + _FOOTER.size
"""Bytes of a record beside its payload."""
_BLOCK = 1 << 20  # bytes asked for in one read, more only for a larger record
_COUNT_BLOCK = 1 << 16  # for counting, where large payloads are jumped over
_LENGTH_SIZE = 8
_HEADERS_KEPT = 1024  # small records have few different sizes

_Path = str | os.PathLike[str]
_OnDamage = Callable[[RecordError], None]
_Result = TypeVar("_Result")


class Record(NamedTuple):
    """One record of a file.

    `payload` is a read-only [size] uint8 view of a buffer that the next record overwrites: copy what
    must outlive it.
    """

    payload: NDArray[np.uint8]
    place: RecordPlace


def read_records(
    path: _Path,
    *,
    start: RecordPlace | None = None,
    on_damage: _OnDamage | None = None,
    block_bytes: int = _BLOCK,
) -> Iterator[Record]:
    """Yield every record of one file, in order, both checksums verified.

    An empty file has no records.

    Args:
        path: the file; a pipe works too.
        start: a place this function gave out before; reading goes on with that very record.
        on_damage: called with each error instead of raising it. A record whose payload fails its
            checksum is then left out; where the framing itself is lost, the file ends.
        block_bytes: asked for in one read.

    Raises:
        RecordError: damaged, truncated, or not a TFRecord file (only without `on_damage`).
        UsageError: the file is missing, a directory, or may not be read.

    Source: tensorflow/core/lib/io/record_reader.cc describes the format.
    """
    with RecordFile(path, start=start, on_damage=on_damage, block_bytes=block_bytes) as file:
        while (record := file.read()) is not None:
            yield record


class RecordFile:
    """One file being read, record by record; a context manager.

    Whole-file gzip and zlib are recognised by content, and a valid plain header wins. The reader never
    allocates more than the file can fill, whatever a length says.

    Args, errors and source: as `read_records`.

    Attributes:
        window: where the next record begins; who takes records out of it by other ways moves it past them.
    """

    def __init__(
        self,
        path: _Path,
        *,
        start: RecordPlace | None = None,
        on_damage: _OnDamage | None = None,
        block_bytes: int = _BLOCK,
    ) -> None:
        self._on_damage = on_damage
        self._ended = False
        self._file = _open(path)
        try:
            self.window = _window(path, self._file, block_bytes)
            if start is not None:
                self._guarded(lambda: _go_to(self.window, start))
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def read(self) -> Record | None:
        """The next record, its checksums verified; None at the end."""
        return None if self._ended else self._guarded(self._read)

    def skip(self) -> bool:
        """Step over the next record, whose payload is not looked at; False at the end."""
        return not self._ended and bool(self._guarded(self._skip))

    def fill(self, wanted: int) -> bool:
        """Have `wanted` bytes in the window; False if the data ends before, or is damaged there."""
        return not self._ended and bool(self._guarded(lambda: self.window.fill(wanted)))

    def _guarded(self, step: Callable[[], _Result]) -> _Result | None:
        """Damage that loses the framing ends the file, after it has been told."""
        try:
            return step()
        except RecordError as error:
            # What on_damage itself raised about a skipped record is not ours to swallow.
            if self._on_damage is None or not error.framing_lost:
                raise
            self._ended = True
            self._on_damage(error)
            return None

    def _read(self) -> Record | None:
        window = self.window
        while (length := _next_length(window)) is not None:
            size = FRAMING_SIZE + length
            if not window.fill(size):
                raise _truncated(window, length)
            place = window.place()
            first = window.low + _HEADER.size
            payload = window.bytes[first : first + length]
            (wanted,) = _FOOTER.unpack_from(window.memory, first + length)
            found = masked_crc(payload)
            window.consume(size)
            window.number += 1
            if found == wanted:
                return Record(payload, place)
            error = RecordError(
                f"payload CRC {found:08x}, the header says {wanted:08x}. The file is damaged; {ADVICE}.",
                place,
            )
            if self._on_damage is None:
                raise error
            self._on_damage(error)
        return None

    def _skip(self) -> bool:
        window = self.window
        length = _next_length(window)
        if length is None:
            return False
        place = window.place()
        if not window.skip(FRAMING_SIZE + length):
            raise _truncated(window, length).at(place)
        window.number += 1
        return True


def count_records(path: _Path, *, on_damage: _OnDamage | None = None) -> int:
    """Number of records of one file, from the headers alone (payload checksums are not looked at).

    Args:
        path: the file; a compressed one is decompressed to count.
        on_damage: called instead of raising; the count then ends where the framing is lost.

    Raises:
        RecordError, UsageError: as `read_records`.
    """
    with RecordFile(path, on_damage=on_damage, block_bytes=_COUNT_BLOCK) as file:
        while file.skip():
            pass
        return file.window.number


def begins_with_record(head: bytes) -> bool:
    """Is this, the first 12 bytes of a file or more, a valid record header?"""
    if len(head) < _HEADER.size:
        return False
    wanted: int = _HEADER.unpack_from(head)[1]
    return masked_crc(head[:_LENGTH_SIZE]) == wanted


def masked_crc(data: bytes | NDArray[np.uint8]) -> int:
    """The checksum TFRecord stores: CRC-32C rotated right by 15 bits, plus a constant.

    >>> hex(masked_crc(b"123456789"))
    '0xc78ab0e5'
    """
    crc: int = google_crc32c.value(data)
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


class RecordWriter:
    """Writes one TFRecord file; a context manager.

    The records go to a hidden file beside `path`, renamed when the block ends without an exception
    and removed otherwise, so `path` is always whole or untouched.

    Args:
        path: the file to make; its folder must exist.
        compression: None, "gzip" or "zlib", of the whole file.

    Raises:
        OutputError: the file cannot be written.
    """

    def __init__(self, path: _Path, compression: Compression | None = None) -> None:
        self._file = NewFile(path)
        self._deflate = zlib.compressobj(wbits=WBITS[compression]) if compression else None

    def __enter__(self) -> Self:
        self._file.__enter__()
        return self

    def write(self, payload: bytes) -> None:
        """Append one record."""
        size = struct.pack("<Q", len(payload))
        data = b"".join((size, _FOOTER.pack(masked_crc(size)), payload, _FOOTER.pack(masked_crc(payload))))
        self._file.write(self._deflate.compress(data) if self._deflate else data)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None and self._deflate:
                self._file.write(self._deflate.flush())
        except BaseException as failure:
            self._file.__exit__(type(failure), failure, failure.__traceback__)
            raise
        self._file.__exit__(kind, error, trace)


def _open(path: _Path) -> FileIO:
    name = os.fspath(path)
    try:
        return FileIO(name, "rb")
    except OSError as error:
        raise cannot_open(name, error) from error


def _window(path: _Path, file: FileIO, block: int) -> Window:
    """The window on a file; a valid record header wins over what looks like compression."""
    head = b""
    while len(head) < _HEADER.size and (more := file.read(_HEADER.size - len(head))):
        head += more  # a pipe may give them one by one
    compression = None if begins_with_record(head) else compression_by_magic(head)
    return Window(os.fspath(path), file, head, compression, block)


def _go_to(stream: Window, start: RecordPlace) -> None:
    if not stream.skip(start.offset):
        raise RecordError(
            "the file ends before this place, where reading was to go on: it is not the file that was read "
            "before. Start again from its beginning.",
            RecordPlace(stream.name, start.offset, start.number),
            framing_lost=True,
        )
    stream.number = start.number


def _next_length(stream: Window) -> int | None:
    """Payload size of the record that begins here, or None at the end of the data."""
    if not stream.fill(_HEADER.size):
        left = stream.high - stream.low + (stream.left() or 0)
        if left == 0:
            return None
        if left >= _HEADER.size:
            raise RecordError(
                f"the file ends here, {left} bytes before where it ended when it was opened: something made "
                f"it shorter meanwhile; {ADVICE}. Not read: the rest of the file.",
                stream.place(),
                framing_lost=True,
            )
        if stream.offset == 0:
            raise _not_a_tfrecord(stream)
        raise RecordError(
            f"the file ends {left} bytes into a record header of {_HEADER.size} bytes. It is truncated; "
            f"{ADVICE}. Not read: the last {left} bytes.",
            stream.place(),
            framing_lost=True,
        )
    head = bytes(stream.memory[stream.low : stream.low + _HEADER.size])
    length, found, wanted = _parse_header(head)
    if found == wanted:
        return length
    if stream.offset == 0 and not _plausible(stream, length):
        raise _not_a_tfrecord(stream)
    raise RecordError(
        f"length CRC {found:08x}, the header says {wanted:08x}. The file is damaged; {ADVICE}. "
        f"Not read: {_unread(stream)}, since a length leads to the next record.",
        stream.place(),
        framing_lost=True,
    )


@functools.lru_cache(_HEADERS_KEPT)
def _parse_header(head: bytes) -> tuple[int, int, int]:
    """The length in a record header, its checksum, and the checksum it should have."""
    length, wanted = _HEADER.unpack(head)
    return length, masked_crc(head[:_LENGTH_SIZE]), wanted


def _plausible(stream: Window, length: int) -> bool:
    """Could a record of this size be in the data? Tells a damaged first header from another format."""
    left = stream.left()
    return length < (1 << 32 if left is None else left + stream.high - stream.low)


def _truncated(stream: Window, length: int) -> RecordError:
    return RecordError(
        f"the file ends inside this record, whose payload should have {length} bytes. It is truncated; "
        f"{ADVICE}. Not read: {_unread(stream)}.",
        stream.place(),
        framing_lost=True,
    )


def _unread(stream: Window) -> str:
    left = stream.left()
    if left is None:
        return "the rest of the file"
    return f"the last {stream.high - stream.low + left} bytes"


def _not_a_tfrecord(stream: Window) -> RecordError:
    head = bytes(stream.bytes[stream.low : min(stream.high, stream.low + _HEADER.size)])
    begins = "once decompressed it begins" if stream.compressed else "it begins"
    return RecordError(
        f"not a TFRecord file: {begins} with {head!r}{_looks_like(head)}. Wanted a TFRecord file, plain or "
        "compressed as a whole by gzip or zlib; check the path and that the download is complete.",
        stream.place(),
        framing_lost=True,
    )


def _looks_like(head: bytes) -> str:
    """What the file may be instead, for the message."""
    known = {
        (b"<!doctype", b"<html", b"<?xml"): " (a web page, perhaps a server's error message)",
        (b"version http",): " (a Git LFS pointer; fetch the file itself with git lfs pull)",
        (b"pk\x03\x04",): " (a zip archive; unpack it first)",
        (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"): " (a Python pickle)",
        (b"\x89hdf",): " (an HDF5 file)",
    }
    lowered = head.lower()
    return next((words for starts, words in known.items() if lowered.startswith(starts)), "")
