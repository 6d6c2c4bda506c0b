"""The plain files of a `.tar` or `.tar.gz`, in memory.

Python's own `tarfile` raises whatever comes up on a damaged header, and may loop for ever on a negative size
in one (until the releases of 2025). Checkpoints need only names, sizes, plain files
and folders.
"""

from __future__ import annotations

import gzip
import io
import zlib

from nextvlad.errors import CheckpointError

_BLOCK = 512
_MAX_UNPACKED_BYTES = 16 << 30
_FILE, _FOLDER, _LONG_NAME, _PAX, _PAX_GLOBAL = (b"0", b"\0", b"7"), b"5", b"L", b"x", b"g"


def is_tar(raw: bytes) -> bool:
    """Whether a file begins like a tar, or like anything compressed by gzip."""
    return raw[:2] == b"\x1f\x8b" or raw[257:262] == b"ustar"


def read_tar(where: str, raw: bytes) -> dict[str, memoryview]:
    """Path in the archive -> content of each plain file, as views into the unpacked bytes.

    Nothing is written to disk. Links, devices and names that lead out of the archive are refused. Weights
    hardly compress, so an archive that grows more than 64 times is refused as well.

    Args:
        where: the archive's name for messages.
        raw: the archive, compressed by gzip or not.

    Raises:
        CheckpointError: it is damaged, cut short, or refused; the message names the byte or the file in it.

    Source: POSIX.1-2001 pax and ustar, and GNU tar's long names.
    """
    raw = _decompress(where, raw)
    files: dict[str, memoryview] = {}
    view, position, name = memoryview(raw), 0, ""
    while position + _BLOCK <= len(raw):
        header = raw[position : position + _BLOCK]
        if not any(header):
            return files
        size = _checked_size(where, position, header)
        start, position = position + _BLOCK, position + _BLOCK + -(-size // _BLOCK) * _BLOCK
        if start + size > len(raw):
            break
        kind = header[156:157]
        if kind == _LONG_NAME:
            name = _text(raw[start : start + size])
        elif kind == _PAX:
            name = _pax_path(raw[start : start + size]) or name
        elif kind != _PAX_GLOBAL:
            _add(where, files, name or _header_name(header), kind, view[start : start + size])
            name = ""
    raise CheckpointError(
        f"{where}: damaged archive: cut short at byte {len(raw)} of the tar, before its end mark. Fetch it "
        "again."
    )


def _decompress(where: str, raw: bytes) -> bytes:
    """The tar itself, of a size that the archive's own bounds."""
    if raw[:2] != b"\x1f\x8b":
        return raw
    limit = min(_MAX_UNPACKED_BYTES, 64 * len(raw) + (64 << 20))
    try:
        unpacked = gzip.GzipFile(fileobj=io.BytesIO(raw)).read(limit + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise CheckpointError(f"{where}: damaged archive: {error}. Fetch it again.") from None
    if len(unpacked) > limit:
        raise CheckpointError(
            f"{where}: unpacks to more than {limit} bytes, as an archive bomb does. If you trust it, unpack "
            "it yourself and give the folder."
        )
    if unpacked[257:262] != b"ustar":
        raise CheckpointError(
            f"{where}: compressed, but no tar inside. Wanted .tar.gz, or the file uncompressed."
        )
    return unpacked


def _checked_size(where: str, position: int, header: bytes) -> int:
    """Size of the content behind a header, after the header's checksum holds."""
    try:
        stored = int(header[148:156].strip(b" \0") or b"x", 8)
        size = int(header[124:136].strip(b" \0") or b"0", 8)
    except ValueError:
        stored = size = -1
    if size < 0 or stored != sum(header) - sum(header[148:156]) + 8 * ord(" "):
        raise CheckpointError(
            f"{where}: damaged archive: no header of a file at byte {position} of the tar. Fetch it again."
        )
    return size


def _text(raw: bytes) -> str:
    return raw.split(b"\0", 1)[0].decode("utf-8", "backslashreplace")


def _header_name(header: bytes) -> str:
    """Name, after its prefix where the header has one (GNU tar keeps something else there)."""
    prefix = _text(header[345:500]) if header[257:263] == b"ustar\0" else ""
    return f"{prefix}/{_text(header[:100])}" if prefix else _text(header[:100])


def _pax_path(raw: bytes) -> str:
    """The `path` among the records `LENGTH KEY=VALUE` and a line end."""
    path, position = "", 0
    while position < len(raw):
        digits = raw[position : position + 10].split(b" ", 1)[0]
        length = int(digits) if digits.isdigit() and len(digits) < 10 else 0
        record = raw[position + len(digits) + 1 : position + length]
        if not record.endswith(b"\n"):
            break
        if record.startswith(b"path="):
            path = _text(record[5:-1])
        position += length
    return path


def _add(where: str, files: dict[str, memoryview], name: str, kind: bytes, content: memoryview) -> None:
    name = name.removeprefix("./")
    if name.startswith("/") or ".." in name.split("/"):
        problem = "leads out of the archive"
    elif kind not in (*_FILE, _FOLDER):
        problem = "is a link, a device or the like, wanted plain files"
    elif name in files:
        problem = "is there twice"
    else:
        if kind != _FOLDER and not name.endswith("/"):
            files[name] = content
        return
    raise CheckpointError(
        f"{where}: {name[:100]!r} {problem}. If you trust it, unpack it yourself and give the folder."
    )
