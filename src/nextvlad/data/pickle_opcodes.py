"""Opcodes of protocol 2 as Python 2 with NumPy 1 writes them, one value at a time and without the memo.

Any Python 2 and, with encoding="bytes", any Python 3 loads them; strings come back as bytes.
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

_NEW_ARRAY = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01"
_TYPES = {"uint8": b"u1", "float32": b"f4", "int64": b"i8"}
_MOST = (1 << 31) - 1  # bytes of a string: its size is read as a signed number


def array(values: NDArray[Any]) -> list[bytes]:
    """A [T, D] array of uint8, float32 or int64, in parts to write one after the other.

    Raises:
        TypeError: of another shape or type. OverflowError: 2 GiB or more.
    """
    if values.ndim != 2 or values.dtype.name not in _TYPES:
        raise TypeError(
            f"an array of {values.dtype} of shape {list(values.shape)}, wanted [T, D] of {', '.join(_TYPES)}"
        )
    kind = _TYPES[values.dtype.name]
    order = b"|" if kind == b"u1" else b"<"
    raw = np.ascontiguousarray(values, values.dtype.newbyteorder("<")).tobytes()
    dtype = b"cnumpy\ndtype\n" + string(kind) + b"K\x00K\x01\x87R(K\x03" + string(order)
    dtype += b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    shape = b"".join(integer(size) for size in values.shape) + b"\x86"
    return [_NEW_ARRAY, shape, dtype, b"\x89", string(raw), b"tb"]


def string(value: bytes) -> bytes:
    """A Python 2 string."""
    if len(value) > _MOST:
        raise OverflowError(f"{len(value)} bytes in one piece, a Python 2 pickle can hold {_MOST}")
    if len(value) < 256:
        return b"U" + bytes([len(value)]) + value
    return b"T" + struct.pack("<I", len(value)) + value


def integer(value: int) -> bytes:
    """A whole number of at most 64 bits."""
    if 0 <= value < 256:
        return b"K" + bytes([value])
    if -(1 << 31) <= value < 1 << 31:
        return b"J" + struct.pack("<i", value)
    return b"\x8a\x09" + value.to_bytes(9, "little", signed=True)


def scalar(value: object) -> bytes:
    """Bytes, a float or a whole number."""
    match value:
        case bytes():
            return string(value)
        case float():
            return b"G" + struct.pack(">d", value)
        case int():
            return integer(value)
    raise TypeError(f"{value!r} is neither bytes nor a number")


def items(values: list[bytes]) -> bytes:
    """A list of these."""
    return b"](" + b"".join(values) + b"e"
