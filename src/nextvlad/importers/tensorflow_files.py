"""TensorFlow checkpoints (`model.ckpt-N.index`, `.data-00000-of-0000N`) to NumPy arrays, without TensorFlow.

The format, written by `tf.train.Saver` since TensorFlow 0.12 and by every later version:

- `.index` is a LevelDB table: blocks of sorted keys with shared prefixes, each block followed by a byte
  for its compression and a masked CRC-32C; a 48-byte footer says where the index block is.
- Its values are small protobuf messages. The empty key holds the header (number of data files, byte order);
  every other key is a variable: type, shape, data file, offset, size, masked CRC-32C of its bytes.
- The data files are raw little-endian values.

Every checksum is verified. TensorFlow never compresses these index files, so a compressed block is refused
rather than decoded, and so are variables saved in slices (partitioned over parameter servers).
"""

from __future__ import annotations

import codecs
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from nextvlad.errors import CheckpointError, UsageError
from nextvlad.importers.wire import message, number, read_fields, read_varint

_FOOTER_BYTES = 48
_MAGIC = bytes.fromhex("57fb808b247547db")
_TRAILER_BYTES = 5
_MAX_DIMS = 8
_MAX_INDEX_BYTES = 1 << 28
_DTYPES = {
    1: "<f4", 2: "<f8", 3: "<i4", 4: "|u1", 5: "<i2", 6: "|i1", 9: "<i8", 10: "|b1",
    17: "<u2", 19: "<f2", 22: "<u4", 23: "<u8",
}  # fmt: skip
_OBJECT_GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"  # a description tf.train.Checkpoint adds: no variable
_SUFFIX = re.compile(r"\.(index|meta|data-\d{5}-of-\d{5})$")
_OPTIMIZER = re.compile(r"(/(Adam(_\d+)?|Momentum|RMSProp(_\d+)?|Adagrad)|(^|/)beta[12]_power(_\d+)?)$")


@dataclass(frozen=True)
class _Entry:
    """What the index says of one variable."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    shard: int
    offset: int
    size: int
    crc: int


def is_tensorflow_checkpoint(source: Path) -> bool:
    """Whether `source` looks like a TensorFlow checkpoint: a folder or a prefix with an `.index` file."""
    if source.is_dir():
        return any(source.glob("*.index"))
    return _strip_suffix(source).with_name(_strip_suffix(source).name + ".index").is_file()


def is_optimizer_state(name: str) -> bool:
    """Whether a variable belongs to the optimizer, not to the model.

    >>> is_optimizer_state("tower/gates/weights/Adam_1"), is_optimizer_state("tower/gates/weights")
    (True, False)
    """
    return _OPTIMIZER.search(name) is not None


def read_tensorflow(
    source: Path, *, keep: Callable[[str], bool] = lambda name: True
) -> dict[str, NDArray[Any]]:
    """Every variable of a TensorFlow checkpoint under its own name, in sorted order.

    Args:
        source: the checkpoint's prefix (`.../model.ckpt-3`, or any one of its files), or the folder: then
            its `checkpoint` file says which one is the latest, or there is only one.
        keep: which names to read; default all, optimizer state included (see `is_optimizer_state`). The bytes
            of the others are neither read nor verified.

    Returns:
        name -> array of the stored shape and type, writable, each with memory of its own.

    Raises:
        UsageError: nothing is at `source`.
        CheckpointError: it is no such checkpoint, or damaged, or uses a feature we refuse; the message
            names the file and the byte or the variable.

    Source: the table format of LevelDB (doc/table_format.md) and TensorFlow's tensor_bundle.proto.
    """
    prefix = _find_prefix(source)
    index = prefix.with_name(prefix.name + ".index")
    num_shards, entries = _read_index(index)
    entries = [entry for entry in entries if keep(entry.name)]
    tensors: dict[str, NDArray[Any]] = {}
    for shard in range(num_shards):
        wanted = [entry for entry in entries if entry.shard == shard]
        if wanted:
            path = prefix.with_name(f"{prefix.name}.data-{shard:05d}-of-{num_shards:05d}")
            tensors.update(_read_shard(path, wanted))
    return {name: tensors[name] for name in sorted(tensors)}


def _strip_suffix(path: Path) -> Path:
    """The prefix a user means who names one file of the checkpoint."""
    return path.with_name(_SUFFIX.sub("", path.name))


def _find_prefix(source: Path) -> Path:
    if source.is_dir():
        return _prefix_in_folder(source)
    prefix = _strip_suffix(source)
    if prefix.with_name(prefix.name + ".index").is_file():
        return prefix
    if source.is_file():
        raise CheckpointError(
            f"{source}: not a TensorFlow checkpoint this can read: no {prefix.name}.index is beside it. "
            "Give the prefix of the .index and .data files, or their folder (single-file checkpoints of "
            "before TensorFlow 0.12 must be saved again by TensorFlow 1)."
        )
    raise UsageError(f"{source}: no such checkpoint; wanted a folder, or a prefix with an .index file.")


def _prefix_in_folder(folder: Path) -> Path:
    found = sorted(folder.glob("*.index"))
    state = folder / "checkpoint"
    if state.is_file():
        prefix = folder / _latest_name(state)
        if not prefix.with_name(prefix.name + ".index").is_file():
            # Written where the folder had another path: the file itself moved along with it.
            prefix = folder / prefix.name
        if prefix.with_name(prefix.name + ".index").is_file():
            return prefix
        raise CheckpointError(
            f"{state}: names {prefix.name}, but {prefix.name}.index is not in the folder; it holds "
            f"{_listing([path.name for path in found])}. Give the prefix of the one you want."
        )
    if len(found) == 1:
        return _strip_suffix(found[0])
    if not found:
        raise CheckpointError(
            f"{folder}: no TensorFlow checkpoint: no .index file among {_listing(_names_in(folder))}. "
            "Wanted model.ckpt-N.index and its .data files."
        )
    raise CheckpointError(
        f"{folder}: {len(found)} checkpoints ({_listing([path.name for path in found])}) and no file named "
        "checkpoint that says which is the latest. Give the prefix of the one you want."
    )


def _names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def _listing(names: list[str]) -> str:
    """A few names for a message."""
    shown = ", ".join(names[:4])
    return f"{shown} and {len(names) - 4} more" if len(names) > 4 else shown or "no files"


def _latest_name(state: Path) -> str:
    """What `model_checkpoint_path` says in a `checkpoint` file."""
    raw = _read_whole(state, limit=1 << 20)
    found = re.search(rb'^\s*model_checkpoint_path:\s*"((?:[^"\\\n]|\\.)*)"', raw, re.MULTILINE)
    try:
        name = codecs.escape_decode(found[1])[0].decode() if found else ""
    except ValueError:
        name = ""
    if not name or "\0" in name:
        raise CheckpointError(
            f'{state}: no line model_checkpoint_path: "..." in it, which TensorFlow writes. Give the prefix '
            "of the .index and .data files instead of the folder."
        )
    return str(name)


def _read_whole(path: Path, *, limit: int) -> bytes:
    try:
        with path.open("rb") as file:
            raw = file.read(limit + 1)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}.") from error
    if len(raw) > limit:
        raise CheckpointError(f"{path}: over {limit} bytes; too large for what it should be.")
    return raw


def _masked_crc(raw: bytes) -> int:
    """CRC-32C as TensorFlow stores it: rotated right by 15 bits, plus a constant."""
    crc: int = google_crc32c.value(raw)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _read_index(path: Path) -> tuple[int, list[_Entry]]:
    """Number of data files, and what the index says of every variable."""
    raw = _read_whole(path, limit=_MAX_INDEX_BYTES)
    if len(raw) < _FOOTER_BYTES or raw[-8:] != _MAGIC:
        raise CheckpointError(
            f"{path}, byte {max(len(raw) - 8, 0)}: ends in {raw[-8:].hex() or 'nothing'}, wanted "
            f"{_MAGIC.hex()}, the end of a TensorFlow index. The file is cut short or is "
            "something else; copy it again."
        )
    try:
        _, place = read_varint(raw, len(raw) - _FOOTER_BYTES)
        _, place = read_varint(raw, place)  # the handle of the meta index, which TensorFlow leaves empty
        handle = raw[place : len(raw) - len(_MAGIC)]
    except ValueError as error:
        raise CheckpointError(f"{path}, byte {len(raw) - _FOOTER_BYTES}: bad footer: {error}.") from None
    items: dict[bytes, bytes] = {}
    for _, block_handle in _read_block(path, raw, handle):
        for key, value in _read_block(path, raw, block_handle):
            if key in items:
                raise CheckpointError(f"{path}: lists {key!r} twice; the file is damaged.")
            items[key] = value
    num_shards = _read_header(path, items.pop(b"", None))
    entries = [_read_entry(path, key, value, num_shards) for key, value in items.items()]
    return num_shards, [entry for entry in entries if entry is not None]


def _read_block(path: Path, raw: bytes, handle: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values of the block that a handle (offset, size) points at, after its checksum holds."""
    try:
        offset, place = read_varint(handle, 0)
        size, _ = read_varint(handle, place)
    except ValueError as error:
        raise CheckpointError(f"{path}: the place of a block is damaged: {error}.") from None
    if size > len(raw) or offset > len(raw) - _FOOTER_BYTES - _TRAILER_BYTES - size:
        raise CheckpointError(
            f"{path}, byte {offset}: a block of {size} bytes runs past the end; the file has {len(raw)} "
            "bytes. It is cut short or damaged; copy it again."
        )
    checked = raw[offset : offset + size + 1]
    stored = int.from_bytes(raw[offset + size + 1 : offset + size + 5], "little")
    if _masked_crc(checked) != stored:
        raise CheckpointError(
            f"{path}, byte {offset}: block CRC {_masked_crc(checked):08x}, the file says {stored:08x}. "
            "The file is damaged; copy it again."
        )
    if checked[-1] != 0:
        raise CheckpointError(
            f"{path}, byte {offset}: a block compressed by method {checked[-1]} (1 is Snappy); wanted none, "
            "as TensorFlow writes. Save the checkpoint again with TensorFlow's Saver."
        )
    try:
        yield from _block_entries(checked[:-1])
    except ValueError as error:
        raise CheckpointError(f"{path}, byte {offset}: damaged block: {error}.") from None


def _block_entries(block: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The entries of a block: each key shares its beginning with the one before."""
    if len(block) < 4:
        raise ValueError("shorter than 4 bytes")
    end = len(block) - 4 - 4 * int.from_bytes(block[-4:], "little")  # the restart points fill the rest
    if end < 0:
        raise ValueError("more restart points than bytes")
    key, place = b"", 0
    while place < end:
        shared, place = read_varint(block, place)
        own, place = read_varint(block, place)
        size, place = read_varint(block, place)
        if shared > len(key) or own + size > end - place:
            raise ValueError("an entry runs past the end")
        key = key[:shared] + block[place : place + own]
        yield key, block[place + own : place + own + size]
        place += own + size


def _read_header(path: Path, value: bytes | None) -> int:
    """Number of data files, from the entry with the empty key."""
    if value is None:
        raise CheckpointError(
            f"{path}: a LevelDB table, but without TensorFlow's header; it is something else."
        )
    try:
        fields = dict(read_fields(value))
        num_shards, endianness = number(fields.get(1, 0)), number(fields.get(2, 0))
    except ValueError as error:
        raise CheckpointError(f"{path}: damaged header: {error}.") from None
    if not 1 <= num_shards <= 99_999:
        raise CheckpointError(f"{path}: {num_shards} data files, wanted 1 to 99999; it is damaged.")
    if endianness != 0:
        raise CheckpointError(
            f"{path}: big-endian values; wanted little-endian. Save it on a common machine."
        )
    return num_shards


def _read_entry(path: Path, key: bytes, value: bytes, num_shards: int) -> _Entry | None:
    """One variable of the index; None for what TensorFlow 2 adds and is no variable."""
    name = key.decode("utf-8", "backslashreplace")
    if name == _OBJECT_GRAPH:
        return None
    dtype_code = shard = offset = size = crc = 0
    shape: tuple[int, ...] = ()
    try:
        for field, content in read_fields(value):
            match field:
                case 1:
                    dtype_code = number(content)
                case 2:
                    shape = _read_shape(message(content))
                case 3:
                    shard = number(content)
                case 4:
                    offset = number(content)
                case 5:
                    size = number(content)
                case 6:
                    crc = number(content)
                case 7:
                    raise ValueError(
                        "saved in slices (a partitioned variable); save it whole with TensorFlow"
                    )
    except ValueError as error:
        raise CheckpointError(f"{path}: variable {name}: {error}.") from None
    if dtype_code not in _DTYPES:
        raise CheckpointError(
            f"{path}: variable {name} has TensorFlow's data type {dtype_code}, wanted one of "
            f"{sorted(_DTYPES)} (numbers; 1 is float32)."
        )
    dtype = np.dtype(_DTYPES[dtype_code])
    if size != math.prod(shape) * dtype.itemsize or shard >= num_shards:
        raise CheckpointError(
            f"{path}: variable {name}: {size} bytes in data file {shard} of {num_shards} for shape "
            f"{list(shape)} of {dtype}; wanted {math.prod(shape) * dtype.itemsize} bytes. "
            "The index is damaged."
        )
    return _Entry(name, dtype, shape, shard, offset, size, crc)


def _read_shape(shape: bytes) -> tuple[int, ...]:
    """TensorShapeProto: field 2 repeats {1: size}."""
    dims: list[int] = []
    for field, content in read_fields(shape):
        if field == 3:
            raise ValueError("has no shape")
        if field == 2:
            dims.append(number(dict(read_fields(message(content))).get(1, 0)))
    if len(dims) > _MAX_DIMS or math.prod(max(size, 1) for size in dims) >= 1 << 48:
        raise ValueError(f"has the shape {dims}, wanted at most {_MAX_DIMS} sizes of 0 or more")
    return tuple(dims)


def _read_shard(path: Path, entries: list[_Entry]) -> Iterator[tuple[str, NDArray[Any]]]:
    """The variables of one data file, in file order."""
    try:
        with path.open("rb") as file:
            file_size = file.seek(0, 2)
            _check_sizes(path, file_size, entries)
            for entry in sorted(entries, key=lambda entry: entry.offset):
                yield entry.name, _read_variable(path, file, entry)
    except FileNotFoundError:
        raise CheckpointError(
            f"{path}: not there, but the index says {len(entries)} variables are in it. Copy all files of "
            "the checkpoint."
        ) from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}.") from error


def _check_sizes(path: Path, file_size: int, entries: list[_Entry]) -> None:
    """Before any memory is taken: everything lies inside the file, and not on top of each other."""
    end = 0
    for entry in sorted(entries, key=lambda entry: (entry.offset, entry.size)):
        if entry.offset < end:
            raise CheckpointError(f"{path}, byte {entry.offset}: variable {entry.name} overlaps another one.")
        end = entry.offset + entry.size
        if end > file_size:
            raise CheckpointError(
                f"{path}, byte {entry.offset}: variable {entry.name} needs {entry.size} bytes, the "
                f"file ends at byte {file_size}. It is cut short; copy it again."
            )


def _read_variable(path: Path, file: BinaryIO, entry: _Entry) -> NDArray[Any]:
    file.seek(entry.offset)
    raw = file.read(entry.size)
    if len(raw) != entry.size or _masked_crc(raw) != entry.crc:
        raise CheckpointError(
            f"{path}, byte {entry.offset}: variable {entry.name}: CRC {_masked_crc(raw):08x}, the index says "
            f"{entry.crc:08x}. The file is damaged; copy it again."
        )
    return np.frombuffer(raw, entry.dtype).reshape(entry.shape).copy()
