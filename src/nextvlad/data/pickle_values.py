"""What a pickle would have called functions for: NumPy arrays, types and scalars, made without a call.

A function that the file names is a word to compare (`named`); what it would have made of its arguments is
made here (`call`, `finish`), or refused by name. So are numbers and strings in the text of protocol 0.
"""

from __future__ import annotations

import codecs
import math
import re
from collections.abc import Callable
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

_MAX_DIMS = 16
_MAX_EMPTY = 1 << 20  # rows and columns that an array without bytes may claim, which costs its writer nothing
_DTYPE = re.compile(r"b1|[iu][1248]|f[248]")

_RECONSTRUCT, _NDARRAY, _NUMPY_DTYPE, _SCALAR, _FROM_BUFFER, ENCODE, _BYTES, TUPLE, DICT = range(9)
_GLOBALS: Final = {
    "numpy.core.multiarray._reconstruct": _RECONSTRUCT,
    "numpy._core.multiarray._reconstruct": _RECONSTRUCT,
    "numpy.ndarray": _NDARRAY,
    "numpy.dtype": _NUMPY_DTYPE,
    "numpy.core.multiarray.scalar": _SCALAR,
    "numpy._core.multiarray.scalar": _SCALAR,
    "numpy.core.numeric._frombuffer": _FROM_BUFFER,
    "numpy._core.numeric._frombuffer": _FROM_BUFFER,
    "_codecs.encode": ENCODE,  # how Python 3 writes bytes in protocol 2
    "builtins.bytes": _BYTES,  # and no bytes at all
    "__builtin__.bytes": _BYTES,
    "builtins.tuple": TUPLE,  # how Paddle 2 writes (name, array)
    "__builtin__.tuple": TUPLE,
    "collections.OrderedDict": DICT,
}


class Refused(Exception):
    """Why the pickle cannot be read, a sentence without its place."""


class Named:
    """A function the file names and we know: a word, nothing to call."""

    def __init__(self, kind: int) -> None:
        self.kind = kind


class Unfinished:
    """An array or type between the opcode that starts it and the one that fills it (BUILD)."""

    def __init__(self, dtype: np.dtype[Any] | None) -> None:
        self.dtype = dtype  # None: an array is being made
        self.memo_keys: list[int] = []


class Arguments(tuple[Any, ...]):
    """A tuple with such things in it: fit to build an array from, never part of the result."""


class Unread(bytes):
    """Stands for bytes that were stepped over, where only the structure is wanted: empty, with a size."""

    size: int

    @classmethod
    def of(cls, size: int) -> Unread:
        """The stand-in for so many bytes."""
        unread = cls()
        unread.size = size
        return unread


INTERNAL = (Named, Unfinished, Arguments)


def as_text(value: Any) -> str | None:
    """A name as str, whether Python 2 or 3 wrote it; None for anything else.

    >>> as_text(b"rgb"), as_text("rgb"), as_text(3)
    ('rgb', 'rgb', None)
    """
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    return value if isinstance(value, str) else None


def ascii_text(raw: bytes) -> str:
    """What should be ASCII, fit for a message if it is not."""
    return raw.decode("ascii", "backslashreplace")


def unquoted(line: bytes) -> bytes:
    """A Python 2 string of protocol 0, as `repr` spells it."""
    line = line.strip()
    if len(line) < 2 or line[0] != line[-1] or line[:1] not in (b"'", b'"'):
        raise Refused("damaged: a string without its quotes.")
    try:
        return bytes(codecs.escape_decode(line[1:-1])[0])
    except ValueError as error:
        raise Refused(f"damaged: a string with a bad escape: {error}.") from None


def number(line: bytes, kind: Callable[[str], int | float]) -> int | float:
    """A number in decimal digits; 00 and 01 are how protocols 0 and 1 write False and True."""
    digits = ascii_text(line).removesuffix("L")
    if kind is int and digits in ("00", "01"):
        return digits == "01"
    try:
        value = kind(digits) if len(digits) <= 64 else None
    except ValueError:
        value = None
    if value is None:
        raise Refused(f"damaged: {line[:32]!r} where a number was wanted.")
    return integer(value) if isinstance(value, int) else value


def integer(value: int) -> int:
    """A whole number, of at most 64 bits."""
    if not -(1 << 63) <= value < 1 << 64:
        raise Refused("a whole number of more than 64 bits, which no data of ours has.")
    return value


def memo_key(line: bytes) -> int:
    """The number of a remembered value, in decimal digits."""
    if not line.isdigit() or len(line) > 18:
        raise Refused(f"damaged: {line[:32]!r} where the number of a value was wanted.")
    return int(line)


def named(module: str, name: str) -> Named:
    """A function the file wants: known, or the end."""
    kind = _GLOBALS.get(f"{module}.{name}")
    if kind is None:
        raise Refused(
            f"wants {f'{module}.{name}'[:100]!r}, which plain data and arrays do not need. Nothing was run. "
            "If you trust whoever made the file, save its arrays again without Python objects."
        )
    return Named(kind)


def call(function: Named, arguments: tuple[Any, ...]) -> Any:
    """What the function would have made: a value, or for TUPLE and DICT the list of what goes into one."""
    # No literals in these patterns: comparing one with an array has no truth value.
    match function.kind, arguments:
        case (kind, (Named() as cls, tuple(), str() | bytes())) if (
            kind == _RECONSTRUCT and cls.kind == _NDARRAY
        ):
            return Unfinished(None)
        case (kind, (str() | bytes() as code, *_)) if kind == _NUMPY_DTYPE:
            return Unfinished(_dtype(code))
        case (kind, (Unfinished() as dtype, bytes() as raw)) if kind == _SCALAR:
            return _array(raw, dtype.dtype, (1,), "C")[0].item()
        case (kind, (bytes() as raw, Unfinished() as dtype, tuple() as shape, str() as order)) if (
            kind == _FROM_BUFFER and order in ("C", "F")
        ):
            return _array(raw, dtype.dtype, shape, order)
        case (kind, (str() as text, str() | bytes() as encoding)) if kind == ENCODE and as_text(encoding) in (
            "latin1",
            "latin-1",
        ):
            return _encode(text)
        case (kind, ()) if kind == _BYTES:
            return b""
        case (kind, (list() | tuple() as items,)) if kind == TUPLE:
            return list(items)
        case (kind, ()) if kind == DICT:
            return []
        case (kind, (list() as pairs,)) if kind == DICT:
            return _flatten(pairs)
    name = next(name for name, kind in _GLOBALS.items() if kind == function.kind)
    raise Refused(f"{name} with arguments that plain data and arrays do not have.")


def finish(target: Unfinished, state: tuple[Any, ...]) -> NDArray[Any] | None:
    """Gives an array (returned) or a type (changed in place) the state that BUILD has for it."""
    if target.dtype is not None:
        target.dtype = _ordered(target.dtype, state)
        return None
    match state:
        case (_, tuple() as shape, Unfinished() as dtype, bool() | int() as fortran, bytes() as raw):
            return _array(raw, dtype.dtype, shape, "F" if fortran else "C")
    raise Refused("damaged: an array's state is not its shape, type and bytes.")


def _encode(text: str) -> bytes:
    try:
        return text.encode("latin-1")
    except UnicodeEncodeError:
        raise Refused("damaged: text that stands for bytes has other characters.") from None


def _flatten(pairs: list[Any]) -> list[Any]:
    """The pairs of an OrderedDict as Python 2 writes them: [[key, value], ...]."""
    if not all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in pairs):
        raise Refused("damaged: an OrderedDict of something else than pairs.")
    return [part for pair in pairs for part in pair]


def _dtype(code: str | bytes) -> np.dtype[Any]:
    text = ascii_text(code) if isinstance(code, bytes) else code
    if text.startswith("O"):
        raise Refused("an array of Python objects; wanted numbers. Such arrays are never loaded.")
    if not _DTYPE.fullmatch(text):
        raise Refused(f"an array of type {text[:32]!r}; wanted bool or numbers of up to 8 bytes.")
    return np.dtype(text)


def _ordered(dtype: np.dtype[Any], state: tuple[Any, ...]) -> np.dtype[Any]:
    """The type with the byte order of its state (version, order, five fields that simple types lack, ...)."""
    order = as_text(state[1]) if len(state) >= 8 else None
    if order not in ("<", ">", "|", "=") or any(part is not None for part in state[2:5]):
        raise Refused("an array type with fields, wanted simple numbers.")
    return dtype.newbyteorder(">") if order == ">" else dtype


def _array(raw: bytes, dtype: np.dtype[Any] | None, shape: tuple[Any, ...], order: Any) -> NDArray[Any]:
    """The array, if its bytes are as many as its shape and type say."""
    if dtype is None or len(shape) > _MAX_DIMS or not all(type(size) is int and size >= 0 for size in shape):
        raise Refused("damaged: an array without a type, or with a shape that is none.")
    if math.prod(max(size, 1) for size in shape) > (_MAX_EMPTY if 0 in shape else 1 << 48):
        raise Refused(f"an array of shape {list(shape)}, too large to be true.")
    wanted = math.prod(shape) * dtype.itemsize
    found = raw.size if isinstance(raw, Unread) else len(raw)
    if found != wanted:
        raise Refused(f"an array of shape {list(shape)} of {dtype} needs {wanted} bytes, got {found}.")
    if isinstance(raw, Unread):
        return np.broadcast_to(np.zeros((), dtype.newbyteorder("=")), shape)
    array = np.frombuffer(raw, dtype) if raw else np.zeros(0, dtype)
    if not dtype.isnative:
        array = array.astype(dtype.newbyteorder("="))
    return array.reshape(shape, order=order)
