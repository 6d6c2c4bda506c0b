"""Paddle checkpoints of NeXtVLAD, as PaddleVideo v1.5 to today wrote them, to NumPy arrays without Paddle.

    folder    v1.5       one file a variable, named like it: parameters among optimizer state and other files
    stream    v1.6       one file: the tensors one after the other, sorted by their names, nameless
    pickle    v1.7+      a pickled dictionary, name -> array, by Python 2 or 3, Paddle 1 to 3

and a `.tar` or `.tar.gz` of one of these. Which it is shows in the bytes, not in the name. The names a stream
lacks are those of the one model that was published; they are checked through the shapes, which hang together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from nextvlad.data.safe_pickle import as_text, loads
from nextvlad.errors import CheckpointError, DataError, UsageError
from nextvlad.importers.paddle_names import SHAPES, first_misfit, known_lists, why_ignored
from nextvlad.importers.tar import is_tar, read_tar
from nextvlad.importers.wire import number, read_fields

_DTYPES = {0: "|b1", 1: "<i2", 2: "<i4", 3: "<i8", 4: "<f2", 5: "<f4", 6: "<f8", 20: "|u1", 21: "|i1"}
_MAX_DIMS = 8
_MAX_FILE_BYTES = 16 << 30

Kind = Literal["folder", "stream", "pickle"]


@dataclass(frozen=True)
class PaddleCheckpoint:
    """What `read_paddle` found."""

    source: str
    """The file or folder that holds the variables, as messages name it."""
    kind: Kind
    """Which of the three formats it is."""
    tensors: dict[str, NDArray[Any]]
    """Name -> array, in sorted order; fully connected weights are [in, out]. Writable."""
    ignored: dict[str, str] = field(default_factory=dict)
    """Name -> why it is no parameter: optimizer state, schedules, intermediate results."""


def read_paddle(source: Path) -> PaddleCheckpoint:
    """The parameters of a Paddle checkpoint under their own names.

    Args:
        source: a folder with one file a variable, one file of either later format, a folder with one such
            file, or a tar (also gzip-compressed) of any of them.

    Returns:
        The arrays, which format it was, and what was left out. Variables of unknown names are returned as
        well: whoever maps them decides.

    Raises:
        UsageError: nothing is at `source`.
        CheckpointError: it is no such checkpoint, or damaged; the message names the file and the byte or
            the variable. Nothing in the file is run, no file is written.

    Source: Paddle's lod_tensor.cc and fluid/io.py; the names of PaddleVideo v1.5.1's nextvlad_model.py.
    """
    if source.is_dir():
        return _read_folder(str(source), _files_of(source))
    if not source.exists():
        raise UsageError(f"{source}: no such file or folder; wanted a checkpoint of Paddle or TensorFlow.")
    raw = _read_bytes(source)
    if is_tar(raw):
        packed = read_tar(str(source), raw)
        return _read_folder(str(source), {name: partial(bytes, content) for name, content in packed.items()})
    return _read_file(str(source), raw)


# Which format


def _read_bytes(path: Path) -> bytes:
    try:
        if path.is_char_device():  # /dev/zero has no end
            raise CheckpointError(f"{path}: a device, wanted a file or folder of a Paddle checkpoint.")
        if path.stat().st_size > _MAX_FILE_BYTES:
            raise CheckpointError(
                f"{path}: {path.stat().st_size:,} bytes, more than any NeXtVLAD has. It is something else."
            )
        return path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}.") from error


def _files_of(folder: Path) -> dict[str, Callable[[], bytes]]:
    """The files of a folder, and of a folder that is alone in it, with what reads them."""
    try:
        entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
        if len(entries) == 1 and entries[0].is_dir():
            return {f"{entries[0].name}/{name}": reader for name, reader in _files_of(entries[0]).items()}
        return {entry.name: partial(_read_bytes, entry) for entry in entries if entry.is_file()}
    except (OSError, RecursionError) as error:
        raise CheckpointError(f"{folder}: cannot be read: {error}.") from error


def _read_folder(where: str, files: Mapping[str, Callable[[], bytes]]) -> PaddleCheckpoint:
    """A folder or archive: one file a variable, or one file of a later format."""
    ignored: dict[str, str] = {}
    wanted: dict[str, tuple[str, Callable[[], bytes]]] = {}
    for path, reader in files.items():
        name = path.rpartition("/")[2]
        reason = why_ignored(name)
        if reason is not None:
            ignored[name] = reason
        elif name in wanted:
            raise CheckpointError(
                f"{where}: holds {wanted[name][0]} and {path}; give the folder of one checkpoint."
            )
        else:
            wanted[name] = (path, reader)
    if not any(name in SHAPES for name in wanted):
        return _read_only_file(where, wanted, ignored)
    tensors = {}
    for name, (path, reader) in sorted(wanted.items()):
        raw = reader()
        tensors[name], end = _read_tensor(raw, 0, f"{where}/{path}")
        if end != len(raw):
            raise CheckpointError(
                f"{where}/{path}, byte {end}: the tensor ends here, but {len(raw) - end} more bytes follow. "
                "Wanted one variable a file; it is damaged or something else."
            )
    return PaddleCheckpoint(where, "folder", tensors, ignored)


def _read_only_file(
    where: str, files: Mapping[str, tuple[str, Callable[[], bytes]]], ignored: Mapping[str, str]
) -> PaddleCheckpoint:
    """The one file of a folder that holds no variables by name."""
    if len(files) > 1:
        parameters = {
            name: file for name, file in files.items() if name.endswith((".pdparams", ".pdiparams"))
        }
        files = parameters if len(parameters) == 1 else files
    if len(files) != 1:
        names = sorted(files)
        shown = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
        raise CheckpointError(
            f"{where}: no Paddle checkpoint: holds {shown or 'no parameters'}. Wanted one file a variable, "
            "named hidden1_fc_weights, logits_clf_bias and so on, or one .pdparams file."
        )
    ((path, reader),) = files.values()
    found = _read_file(f"{where}/{path}", reader())
    return PaddleCheckpoint(found.source, found.kind, found.tensors, {**ignored, **found.ignored})


def _read_file(where: str, raw: bytes) -> PaddleCheckpoint:
    """One file: a pickle or a stream."""
    if raw[:1] == b"\x80" or raw[:2] in (b"(d", b"}q"):
        return _read_pickle(where, raw)
    if raw[:4] == bytes(4) and len(raw) >= 12:
        return _read_stream(where, raw)
    kind = {b"PK": ", a zip file (of PyTorch?)", b"": ", nothing at all"}.get(raw[:2], "")
    raise CheckpointError(
        f"{where}: no Paddle checkpoint: begins with {raw[:4].hex() or 'no bytes'}{kind}. Wanted a pickle "
        "(80 02 ...), a stream of tensors (00 00 00 00 ...), a tar of these, or a folder with one file a "
        "variable."
    )


# Tensors


def _read_tensor(raw: bytes, start: int, where: str) -> tuple[NDArray[Any], int]:
    """The LoDTensor at byte `start`, and where it ends.

    Layout, little-endian: uint32 version 0; uint64 levels of detail, each uint64 size and bytes; uint32
    version 0; int32 size of a description (field 1 type, field 2 repeated sizes); the values.
    """

    def take(position: int, size: int, what: str) -> bytes:
        if size > len(raw) - position:
            raise CheckpointError(
                f"{where}, byte {position}: wanted {size} bytes of {what}, but the file ends at byte "
                f"{len(raw)}. It is cut short or damaged; copy it again."
            )
        return raw[position : position + size]

    def unsigned(position: int, size: int, what: str) -> int:
        return int.from_bytes(take(position, size, what), "little")

    def version(position: int) -> int:
        found = unsigned(position, 4, "a tensor's version")
        if found != 0:
            raise CheckpointError(
                f"{where}, byte {position}: version {found} where a Paddle tensor has 0. The file is damaged "
                "or something else."
            )
        return position + 4

    position = version(start)
    num_levels = unsigned(position, 8, "a tensor's header")
    position += 8
    for _ in range(num_levels):
        size = unsigned(position, 8, "a tensor's header")
        take(position + 8, size, "a tensor's levels of detail")
        position += 8 + size
    position = version(position)
    size = unsigned(position, 4, "a tensor's header")
    try:
        dtype, shape = _read_description(take(position + 4, size, "a tensor's description"))
    except ValueError as error:
        raise CheckpointError(
            f"{where}, byte {position + 4}: damaged description of a tensor: {error}."
        ) from None
    position += 4 + size
    values = take(position, math.prod(shape) * dtype.itemsize, f"a tensor of shape {list(shape)}")
    return np.frombuffer(values, dtype).reshape(shape).copy(), position + len(values)


def _read_description(raw: bytes) -> tuple[np.dtype[Any], tuple[int, ...]]:
    """Type and shape of a tensor, from Paddle's VarType.TensorDesc."""
    code, dims = None, []
    for field_number, content in read_fields(raw):
        if field_number == 1:
            code = number(content)
        elif field_number == 2:
            if isinstance(content, bytes):
                raise ValueError("packed sizes, which Paddle does not write")
            dims.append(content)
    if code not in _DTYPES:
        raise ValueError(f"data type {code}, wanted one of {sorted(_DTYPES)} (numbers; 5 is float32)")
    if len(dims) > _MAX_DIMS or 0 in dims or math.prod(dims) >= 1 << 48:
        raise ValueError(f"shape {dims}, wanted at most {_MAX_DIMS} sizes of 1 or more")
    return np.dtype(_DTYPES[code]), tuple(dims)


# The stream without names


def _read_stream(where: str, raw: bytes) -> PaddleCheckpoint:
    arrays: list[NDArray[Any]] = []
    starts: list[int] = []
    position = 0
    longest = max(len(names) for names in known_lists())
    while position < len(raw):
        if len(arrays) == longest:
            raise CheckpointError(
                f"{where}, byte {position}: {len(raw) - position} more bytes after {longest} tensors, the "
                "most a NeXtVLAD has. It is of another model, or damaged."
            )
        starts.append(position)
        array, position = _read_tensor(raw, position, where)
        arrays.append(array)
    candidates = [names for names in known_lists() if len(names) == len(arrays)]
    problems = []
    for names in candidates:
        problem = first_misfit(dict(zip(names, arrays, strict=True)))
        if problem is None:
            found = dict(zip(names, arrays, strict=True))
            ignored = {name: reason for name in names if (reason := why_ignored(name)) is not None}
            kept = {name: array for name, array in found.items() if name not in ignored}
            return PaddleCheckpoint(where, "stream", kept, ignored)
        problems.append(f"byte {starts[names.index(problem[0])]}: {problem[0]} {problem[1]}")
    if len(arrays) == 1:
        raise CheckpointError(
            f"{where}: one tensor of shape {list(arrays[0].shape)}, without a name. It looks like one file "
            "of a folder with one file a variable; give that folder."
        )
    counts = sorted({len(names) for names in known_lists()})
    if not candidates:
        raise CheckpointError(
            f"{where}: a stream of {len(arrays)} tensors without names; a NeXtVLAD of PaddleVideo has one of "
            f"{counts}. It is of another model, cut short, or has more variables."
        )
    raise CheckpointError(
        f"{where}, {problems[0]}. The tensors have no names here, and their shapes are not those of a "
        "NeXtVLAD of PaddleVideo in the order of its names: it is of another model."
    )


# The pickle


def _read_pickle(where: str, raw: bytes) -> PaddleCheckpoint:
    try:
        content = loads(raw, where=where)
    except DataError as error:
        raise CheckpointError(str(error)) from None
    if not isinstance(content, dict):
        raise CheckpointError(
            f"{where}: a pickled {type(content).__name__}, wanted a dictionary of parameters (a .pdparams "
            "file). If it holds videos, it is data, not a checkpoint."
        )
    tensors: dict[str, NDArray[Any]] = {}
    ignored: dict[str, str] = {}
    for key, value in content.items():
        name = as_text(key) or repr(key)
        reason = why_ignored(name)
        if reason is not None:
            ignored[name] = reason
            continue
        array = value[1] if isinstance(value, tuple) and len(value) == 2 else value  # Paddle 2: (name, array)
        if not isinstance(array, np.ndarray):
            raise CheckpointError(
                f"{where}: {name[:100]} is a {type(array).__name__}, wanted an array. It is no file of "
                "parameters."
            )
        if name in tensors:
            raise CheckpointError(f"{where}: {name[:100]} is there twice; the file is damaged.")
        tensors[name] = array
    if not tensors:
        raise CheckpointError(f"{where}: no parameters in it, only {sorted(ignored)[:4]}.")
    if sum(array.nbytes for array in tensors.values()) > len(raw):
        raise CheckpointError(f"{where}: its arrays are larger than the file, as in a pickle bomb.")
    return PaddleCheckpoint(
        where, "pickle", {name: tensors[name].copy() for name in sorted(tensors)}, ignored
    )
