"""The bytes of a file, plain or compressed as a whole, through one buffer that is used again.

`Window` reads large blocks and hands out views; what a record layer finds in them is its own affair.
"""

from __future__ import annotations

import os
import stat
import zlib
from io import FileIO
from typing import Literal

import numpy as np

from nextvlad.errors import RecordError, RecordPlace

SKIP = " or pass --data.skip-damaged"  # no advice in a list of what was skipped
ADVICE = f"fetch it again{SKIP}"
Compression = Literal["gzip", "zlib"]
WBITS: dict[Compression, int] = {"gzip": 31, "zlib": 15}
_INFLATE_INPUT = 1 << 16  # compressed bytes fed at a time: what a damaged spot can take with it
_PAGE = 4096  # bytes; of memory and of the page cache
_AHEAD = 64  # bytes read beyond what is wanted, so that the next record's header is there too


def compression_by_magic(head: bytes) -> Compression | None:
    r"""How a file that begins with `head` is compressed, as far as its first two bytes tell.

    >>> compression_by_magic(b"\x1f\x8b\x08")
    'gzip'
    """
    if head[:2] == b"\x1f\x8b":
        return "gzip"
    # RFC 1950: deflate, a window of at most 32 kB, and the two bytes a multiple of 31.
    if len(head) >= 2 and head[0] & 0x8F == 8 and (head[0] << 8 | head[1]) % 31 == 0:
        return "zlib"
    return None


class Window:
    """A window on the (decompressed) bytes of a file, in one buffer that is used again and again.

    `bytes[low:high]` is what has been read and not yet consumed, and `bytes[low]` stands at `offset`
    of the data, where record `number` begins.

    The buffer is small, and no more is read at a time than is needed: what was just read is still in the
    core's own cache when it is looked at. A byte of a file lies at the same place within a page of the buffer
    as in its page of the file, since processors copy between pages several times slower where the two places
    are a few bytes apart.
    """

    def __init__(
        self, name: str, file: FileIO, head: bytes, compression: Compression | None, block: int
    ) -> None:
        """`head` is what was already read of `file`; `block` the bytes asked for in one read."""
        self.name = name
        self.offset = 0
        self.number = 0
        self.compressed = compression is not None
        self.low = 0
        self.high = 0 if compression else len(head)
        self._block = block
        self._take_buffer(2 * block)
        self._buffer[: self.high] = np.frombuffer(head[: self.high], np.uint8)
        self._file = file
        self._source = Inflate(file, head, compression) if compression else file
        info = os.fstat(file.fileno())
        self._end = info.st_size if stat.S_ISREG(info.st_mode) and not compression else None
        self._taken = len(head)

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
        while (missing := wanted - (self.high - self.low)) > 0:
            full = self.high == len(self._buffer)
            if full or self.low == self.high or (left is not None and self.low + wanted > len(self._buffer)):
                self._make_room(wanted, left is not None)
            most = max(missing + _AHEAD, self._block)
            count = self._read(self.memory[self.high : self.high + most])
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
        left = self.left()
        if left is not None and count > self.high - self.low + left:
            return False
        here = min(count, self.high - self.low)
        self.consume(here)
        count -= here
        if count and left is not None:
            self._file.seek(count, os.SEEK_CUR)
            self._taken += count
            self.offset += count
            count = 0
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
        capacity = len(self._buffer) - _PAGE
        if certain:
            capacity = max(capacity, wanted + _AHEAD)
        elif kept >= capacity:  # compressed data or a pipe: grow as bytes really arrive
            capacity = min(wanted, 2 * kept)
        window = self._buffer[self.low : self.high]
        if capacity > len(self._buffer) - _PAGE:
            self._take_buffer(capacity)
        self.low = (self._taken - kept) % _PAGE
        self.high = self.low + kept
        self._buffer[self.low : self.high] = window

    def _take_buffer(self, size: int) -> None:
        """A new buffer that begins where a page does, with `size` bytes and a page."""
        memory = np.empty(size + 2 * _PAGE, np.uint8)
        first = -memory.__array_interface__["data"][0] % _PAGE
        self._buffer = memory[first : first + size + _PAGE]
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
            f"{what}; {ADVICE}. Not read: the rest of the file.", self.place(), framing_lost=True
        )


class Inflate:
    """The decompressed bytes of a file; several gzip members one after another count as one."""

    def __init__(self, file: FileIO, head: bytes, kind: Compression) -> None:
        self._file = file
        self._wbits = WBITS[kind]
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
