"""TFRecord files: framed byte strings with checksums, plain or compressed as a whole.

A record is a uint64 length, the masked CRC-32C of these eight bytes, the payload, and the masked
CRC-32C of the payload, all little-endian. Both checksums are always verified. The payload of a frame
file is read by `nextvlad.data.video_record`.
"""

from __future__ import annotations

import contextlib
import os
import stat
import struct
import zlib
from collections.abc import Callable, Iterator
from io import FileIO
from types import TracebackType
from typing import BinaryIO, Literal, NamedTuple, Self

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from nextvlad.errors import OutputError, RecordError, RecordPlace, UsageError

_HEADER = struct.Struct("<QI")
_FOOTER = struct.Struct("<I")
_BLOCK = 1 << 21  # bytes asked for in one read; 1 to 4 MB measured alike
_COUNT_BLOCK = 1 << 16  # for counting, where large payloads are jumped over
_INFLATE_INPUT = 1 << 16  # compressed bytes fed at a time: what a damaged spot can take with it
_WBITS = {"gzip": 31, "zlib": 15}
_LENGTH_SIZE = 8
_ADVICE = "fetch it again or pass --data.skip-damaged"

_Path = str | os.PathLike[str]
_OnDamage = Callable[[RecordError], None]


class Record(NamedTuple):
    """One record of a file.

    `payload` is a read-only [size] uint8 view of a buffer that the next record overwrites: copy what
    must outlive it.
    """

    payload: NDArray[np.uint8]
    place: RecordPlace


def read_records(
    path: _Path, *, start: RecordPlace | None = None, on_damage: _OnDamage | None = None
) -> Iterator[Record]:
    """Yield every record of one file, in order, both checksums verified.

    Whole-file gzip and zlib are recognised by content, and a valid plain header wins. An empty file
    has no records. The reader never allocates more than the file can fill, whatever a length says.

    Args:
        path: the file; a pipe works too.
        start: a place this function gave out before; reading goes on with that very record.
        on_damage: called with each error instead of raising it. A record whose payload fails its
            checksum is then left out; where the framing itself is lost, the file ends.

    Raises:
        RecordError: damaged, truncated, or not a TFRecord file (only without `on_damage`).
        UsageError: the file is missing, a directory, or may not be read.

    Source: tensorflow/core/lib/io/record_reader.cc describes the format.
    """
    with _open(path) as file:
        try:
            stream = _Window(os.fspath(path), file, _BLOCK)
            if start is not None:
                _go_to(stream, start)
            yield from _records(stream, on_damage)
        except RecordError as error:
            if on_damage is None:
                raise
            on_damage(error)


def count_records(path: _Path, *, on_damage: _OnDamage | None = None) -> int:
    """Number of records of one file, from the headers alone (payload checksums are not looked at).

    Args:
        path: the file; a compressed one is decompressed to count.
        on_damage: called instead of raising; the count then ends where the framing is lost.

    Raises:
        RecordError, UsageError: as `read_records`.
    """
    count = 0
    with _open(path) as file:
        try:
            stream = _Window(os.fspath(path), file, _COUNT_BLOCK)
            while (length := _next_length(stream)) is not None:
                place = stream.place()
                if not stream.skip(_HEADER.size + length + _FOOTER.size):
                    raise _truncated(stream, length).at(place)
                stream.number = count = count + 1
        except RecordError as error:
            if on_damage is None:
                raise
            on_damage(error)
    return count


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

    def __init__(self, path: _Path, compression: Literal["gzip", "zlib"] | None = None) -> None:
        self.path = os.fspath(path)
        self.compression = compression
        folder, name = os.path.split(self.path)
        self._aside = os.path.join(folder, f".{name}.{os.getpid()}.partial")
        self._file: BinaryIO | None = None
        self._deflate = zlib.compressobj(wbits=_WBITS[compression]) if compression else None

    def __enter__(self) -> Self:
        try:
            self._file = open(self._aside, "wb")
        except OSError as error:
            raise self._failure(error) from error
        return self

    def write(self, payload: bytes) -> None:
        """Append one record."""
        size = struct.pack("<Q", len(payload))
        self._put(
            b"".join((size, _FOOTER.pack(masked_crc(size)), payload, _FOOTER.pack(masked_crc(payload))))
        )

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._finish()
        finally:
            if self._file is not None:
                # Closing may fail again on a full disk; the first error is the one to tell.
                with contextlib.suppress(OSError):
                    self._file.close()
                self._file = None
            with contextlib.suppress(OSError):
                os.unlink(self._aside)

    def _put(self, data: bytes) -> None:
        if self._file is None:
            raise UsageError(f"{self.path}: write() outside of the `with RecordWriter(...)` block.")
        try:
            self._file.write(self._deflate.compress(data) if self._deflate else data)
        except OSError as error:
            raise self._failure(error) from error

    def _finish(self) -> None:
        if self._file is None:
            return
        try:
            if self._deflate:
                self._file.write(self._deflate.flush())
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            os.replace(self._aside, self.path)
        except OSError as error:
            raise self._failure(error) from error

    def _failure(self, error: OSError) -> OutputError:
        return OutputError(
            f"{self.path}: cannot be written ({error.strerror or error}). "
            "Free space or give another place; nothing of it was left there."
        )


def _open(path: _Path) -> FileIO:
    name = os.fspath(path)
    try:
        return FileIO(name, "rb")
    except IsADirectoryError:
        raise UsageError(f"{name}: is a directory, wanted a file; name the files in it.") from None
    except FileNotFoundError:
        raise UsageError(f"{name}: no such file. Check the path.") from None
    except OSError as error:
        raise UsageError(f"{name}: cannot be opened ({error.strerror or error}).") from error


def _go_to(stream: _Window, start: RecordPlace) -> None:
    if not stream.skip(start.offset):
        raise RecordError(
            "the file ends before this place, where reading was to go on: it is not the file that was read "
            "before. Start again from its beginning.",
            RecordPlace(stream.name, start.offset, start.number),
            framing_lost=True,
        )
    stream.number = start.number


def _records(stream: _Window, on_damage: _OnDamage | None) -> Iterator[Record]:
    while (length := _next_length(stream)) is not None:
        size = _HEADER.size + length + _FOOTER.size
        if not stream.fill(size):
            raise _truncated(stream, length)
        first = stream.low + _HEADER.size
        payload = stream.bytes[first : first + length]
        (wanted,) = _FOOTER.unpack_from(stream.memory, first + length)
        found = masked_crc(payload)
        if found == wanted:
            yield Record(payload, stream.place())
        else:
            error = RecordError(
                f"payload CRC {found:08x}, the header says {wanted:08x}. The file is damaged; {_ADVICE}.",
                stream.place(),
            )
            if on_damage is None:
                raise error
            on_damage(error)
        stream.consume(size)
        stream.number += 1


def _next_length(stream: _Window) -> int | None:
    """Payload size of the record that begins here, or None at the end of the data."""
    if not stream.fill(_HEADER.size):
        left = stream.high - stream.low + (stream.left() or 0)
        if left == 0:
            return None
        if stream.offset == 0:
            raise _not_a_tfrecord(stream)
        raise RecordError(
            f"the file ends {left} bytes into a record header of {_HEADER.size} bytes. It is truncated; "
            f"{_ADVICE}. Not read: the last {left} bytes.",
            stream.place(),
            framing_lost=True,
        )
    length: int
    length, wanted = _HEADER.unpack_from(stream.memory, stream.low)
    found = masked_crc(stream.bytes[stream.low : stream.low + _LENGTH_SIZE])
    if found == wanted:
        return length
    if stream.offset == 0 and not _plausible(stream, length):
        raise _not_a_tfrecord(stream)
    raise RecordError(
        f"length CRC {found:08x}, the header says {wanted:08x}. The file is damaged; {_ADVICE}. "
        f"Not read: {_unread(stream)}, since a length leads to the next record.",
        stream.place(),
        framing_lost=True,
    )


def _plausible(stream: _Window, length: int) -> bool:
    """Could a record of this size be in the data? Tells a damaged first header from another format."""
    left = stream.left()
    return length < (1 << 32 if left is None else left + stream.high - stream.low)


def _truncated(stream: _Window, length: int) -> RecordError:
    return RecordError(
        f"the file ends inside this record, whose payload should have {length} bytes. It is truncated; "
        f"{_ADVICE}. Not read: {_unread(stream)}.",
        stream.place(),
        framing_lost=True,
    )


def _unread(stream: _Window) -> str:
    left = stream.left()
    if left is None:
        return "the rest of the file"
    return f"the last {stream.high - stream.low + left} bytes"


def _not_a_tfrecord(stream: _Window) -> RecordError:
    head = bytes(stream.bytes[stream.low : min(stream.high, stream.low + 16)])
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
        (b"version https://",): " (a Git LFS pointer; fetch the file itself with git lfs pull)",
        (b"pk\x03\x04",): " (a zip archive; unpack it first)",
        (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"): " (a Python pickle)",
        (b"\x89hdf",): " (an HDF5 file)",
    }
    lowered = head.lower()
    return next((words for starts, words in known.items() if lowered.startswith(starts)), "")


class _Window:
    """A window on the (decompressed) bytes of a file, in one buffer that is used again and again.

    `bytes[low:high]` is what has been read and not yet consumed, and `bytes[low]` stands at `offset`
    of the data, where record `number` begins.
    """

    def __init__(self, name: str, file: FileIO, block: int) -> None:
        self.name = name
        self.offset = 0
        self.number = 0
        self._buffer = np.empty(block, np.uint8)
        self._set_views()
        head = _read_head(file)
        kind = _compression(head)
        self.compressed = kind is not None
        self._source: FileIO | _Inflate = file if kind is None else _Inflate(file, head, kind)
        self._file = file
        info = os.fstat(file.fileno())
        self._end = info.st_size if stat.S_ISREG(info.st_mode) and kind is None else None
        self._taken = len(head)
        self.low = 0
        self.high = 0 if self.compressed else len(head)
        self._buffer[: self.high] = np.frombuffer(head[: self.high], np.uint8)

    def place(self) -> RecordPlace:
        """Where the window begins."""
        return RecordPlace(self.name, self.offset, self.number)

    def left(self) -> int | None:
        """Bytes of data beyond the window; None where only reading can tell."""
        return None if self._end is None else max(self._end - self._taken, 0)

    def fill(self, wanted: int) -> bool:
        """Have `wanted` bytes in the window; False if the data ends before."""
        if self.high - self.low >= wanted:
            return True
        left = self.left()
        if left is not None and self.high - self.low + left < wanted:
            return False  # before a length that is a lie can ask for memory
        while self.high - self.low < wanted:
            full = self.high == len(self._buffer)
            if full or (left is not None and self.low + wanted > len(self._buffer)):
                self._make_room(wanted, left is not None)
            count = self._read(self.memory[self.high :])
            if count == 0:
                return False
            self.high += count
        return True

    def consume(self, count: int) -> None:
        """Step over `count` bytes of the window."""
        self.low += count
        self.offset += count

    def skip(self, count: int) -> bool:
        """Step over `count` bytes, by a seek where that is possible; False if the data ends before."""
        here = min(count, self.high - self.low)
        self.consume(here)
        count -= here
        left = self.left()
        if left is not None:
            if count > left:
                return False
            self._file.seek(count, os.SEEK_CUR)
            self._taken += count
            self.offset += count
            return True
        while count:
            self.low = self.high = 0
            self.high = self._read(self.memory)
            if self.high == 0:
                return False
            here = min(count, self.high)
            self.consume(here)
            count -= here
        return True

    def _make_room(self, wanted: int, certain: bool) -> None:
        """Move the window to the front of the buffer, and take a larger buffer if need be."""
        kept = self.high - self.low
        capacity = len(self._buffer)
        if certain:
            capacity = max(capacity, wanted)
        elif kept == capacity:  # compressed data or a pipe: grow as bytes really arrive
            capacity = min(wanted, 2 * capacity)
        window = self._buffer[self.low : self.high]
        if capacity > len(self._buffer):
            self._buffer = np.empty(capacity, np.uint8)
            self._set_views()
        self._buffer[:kept] = window
        self.low, self.high = 0, kept

    def _set_views(self) -> None:
        self.memory = self._buffer.data
        self.bytes = self._buffer[:]
        self.bytes.flags.writeable = False

    def _read(self, into: memoryview) -> int:
        try:
            count = self._source.readinto(into) or 0
        except OSError as error:
            raise self._unreadable(f"the file cannot be read ({error.strerror or error})") from error
        except zlib.error as error:
            raise self._unreadable(f"the compressed data is damaged ({error})") from error
        except EOFError:
            raise self._unreadable("the compressed data ends too early: the file is truncated") from None
        self._taken += count
        return count

    def _unreadable(self, what: str) -> RecordError:
        return RecordError(
            f"{what}; {_ADVICE}. Not read: the rest of the file.", self.place(), framing_lost=True
        )


def _read_head(file: FileIO) -> bytes:
    """The first bytes of a file; a pipe may give them one by one."""
    head = b""
    while len(head) < _HEADER.size and (more := file.read(_HEADER.size - len(head))):
        head += more
    return head


def _compression(head: bytes) -> Literal["gzip", "zlib"] | None:
    """How the file is compressed, by its first bytes. A valid record header wins over any magic."""
    if len(head) == _HEADER.size:
        _, wanted = _HEADER.unpack(head)
        if masked_crc(head[:_LENGTH_SIZE]) == wanted:
            return None
    if head[:2] == b"\x1f\x8b":
        return "gzip"
    # RFC 1950: deflate, a window of at most 32 kB, and the two bytes a multiple of 31.
    if len(head) >= 2 and head[0] & 0x8F == 8 and (head[0] << 8 | head[1]) % 31 == 0:
        return "zlib"
    return None


class _Inflate:
    """The decompressed bytes of a file; several gzip members one after another count as one."""

    def __init__(self, file: FileIO, head: bytes, kind: Literal["gzip", "zlib"]) -> None:
        self._file = file
        self._wbits = _WBITS[kind]
        self._engine = zlib.decompressobj(self._wbits)
        self._pending = head

    def readinto(self, into: memoryview) -> int:
        """Decompress some bytes; 0 at the end. Raises zlib.error, and EOFError if cut short."""
        while True:
            if self._engine.eof:
                # Padding with zeros after the last member is allowed, as gzip itself does.
                self._pending = self._pending.lstrip(b"\0") or self._file.read(_INFLATE_INPUT)
                if not self._pending:
                    return 0
                if self._pending.lstrip(b"\0"):
                    self._pending = self._pending.lstrip(b"\0")
                    self._engine = zlib.decompressobj(self._wbits)
                continue
            self._pending = self._pending or self._file.read(_INFLATE_INPUT)
            ended = not self._pending
            data = self._engine.decompress(self._pending, len(into))
            self._pending = self._engine.unused_data if self._engine.eof else self._engine.unconsumed_tail
            if data:
                into[: len(data)] = data
                return len(data)
            if ended and not self._engine.eof:
                raise EOFError
