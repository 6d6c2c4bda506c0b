"""Reads pickled plain data and arrays without ever running what is in the file.

A pickle is a program for a small stack machine, and Python's own machine calls whatever function the
program names. Three ways to tame it were weighed:

- `pickle.Unpickler` with a narrow `find_class`: still calls NumPy's `_reconstruct` and `__setstate__` on
  arguments from the file, takes memory for sizes the file only claims (a memo index of 2^30, a string of
  2^40 bytes), hashes nested tuples by recursion in C, and hands out structures that refer to themselves.
- a walk over the opcodes with `pickletools` first, then the real unpickler: two machines that must agree.
- this: a machine of our own for the few opcodes that data needs. It knows names of functions only as
  words it compares; nothing is imported and nothing called. An array is made here, by `np.frombuffer`, from
  bytes whose number must fit its shape and type. What is left over is refused by name.

So the memory taken is bounded by the file's real size, and so is the result, walked in any way: nesting is
at most 32 deep, nothing contains itself, and what the file refers to again counts again.
All protocols (0 to 5), Python 2 and 3.
"""

from __future__ import annotations

import codecs
import math
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from nextvlad.errors import DataError

_MAX_DEPTH = 32
_MAX_DIMS = 16
_SHARED_ALLOWANCE = 1 << 16
_DTYPE = re.compile(r"b1|[iu][1248]|f[248]")

_RECONSTRUCT, _NDARRAY, _NUMPY_DTYPE, _SCALAR, _FROM_BUFFER, _ENCODE, _BYTES, _TUPLE, _DICT = range(9)
_GLOBALS: Final = {
    "numpy.core.multiarray._reconstruct": _RECONSTRUCT,
    "numpy._core.multiarray._reconstruct": _RECONSTRUCT,
    "numpy.ndarray": _NDARRAY,
    "numpy.dtype": _NUMPY_DTYPE,
    "numpy.core.multiarray.scalar": _SCALAR,
    "numpy._core.multiarray.scalar": _SCALAR,
    "numpy.core.numeric._frombuffer": _FROM_BUFFER,
    "numpy._core.numeric._frombuffer": _FROM_BUFFER,
    "_codecs.encode": _ENCODE,  # how Python 3 writes bytes in protocol 2
    "builtins.bytes": _BYTES,  # and no bytes at all
    "__builtin__.bytes": _BYTES,
    "builtins.tuple": _TUPLE,  # how Paddle 2 writes (name, array)
    "__builtin__.tuple": _TUPLE,
    "collections.OrderedDict": _DICT,
}


def load(path: Path) -> Any:
    """What a pickle file holds; see `loads`.

    Raises:
        DataError: as `loads`, or the file cannot be read.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}.") from error
    return loads(data, where=str(path))


def loads(data: bytes, *, where: str) -> Any:
    """What a pickle holds: None, bool, int, float, str, bytes, list, tuple, dict and arrays.

    A Python 2 `str` comes back as bytes (see `as_text`), a NumPy scalar as a Python number, an
    OrderedDict as a dict. Dictionary keys are str, bytes or int. Arrays are numbers or bool in this
    machine's byte order, read-only, and may be unaligned views: copy them to keep or change them.

    Args:
        data: the whole pickle.
        where: its name for messages.

    Raises:
        DataError: the pickle is damaged, goes on after its end, or asks for anything else: the message
            names the byte, and the function it wanted to call.

    >>> import pickle
    >>> loads(pickle.dumps({"a": [1, 2.5]}), where="doc")
    {'a': [1, 2.5]}
    """
    machine = _Machine(data)
    try:
        return machine.run()
    except _Refused as error:
        raise DataError(f"{where}, byte {machine.start}: {error}") from None


def as_text(value: Any) -> str | None:
    """A name as str, whether Python 2 or 3 wrote it; None for anything else.

    >>> as_text(b"rgb"), as_text("rgb"), as_text(3)
    ('rgb', 'rgb', None)
    """
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    return value if isinstance(value, str) else None


class _Refused(Exception):
    """Why the pickle cannot be read, a sentence without its place."""


class _Named:
    """A function the file names and we know: a word, nothing to call."""

    def __init__(self, kind: int) -> None:
        self.kind = kind


class _Unfinished:
    """An array or type between the opcode that starts it and the one that fills it (BUILD)."""

    def __init__(self, dtype: np.dtype[Any] | None) -> None:
        self.dtype = dtype  # None: an array is being made
        self.memo_keys: list[int] = []


class _Arguments(tuple[Any, ...]):
    """A tuple with such things in it: fit to build an array from, never part of the result."""


_CONTAINERS = (list, dict, tuple, _Arguments)
_INTERNAL = (_Named, _Unfinished, _Arguments)


class _Machine:
    """The stack machine. Each opcode is one method or one line of `_OPCODES`."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.position = 0
        self.start = 0  # of the opcode at hand, for messages
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.depths: dict[int, int] = {}  # by id, set anew whenever a container is made
        self.fetched: set[int] = set()  # ids of containers in the memo that were used again
        self.shared_left = 4 * len(data) + _SHARED_ALLOWANCE
        self.encoded_left = len(data)

    def run(self) -> Any:
        """Runs to the STOP opcode and returns what is on the stack."""
        while True:
            self.start = self.position
            code = self.take(1)
            if code == b".":
                break
            step = _OPCODES.get(code)
            if step is None:
                raise _Refused(self.unknown(code))
            step(self)
        if self.position != len(self.data):
            raise _Refused(f"the pickle ends here, but {len(self.data) - self.position} more bytes follow.")
        if len(self.stack) != 1 or self.marks:
            raise _Refused(f"damaged: {len(self.stack)} values are left at the end, wanted one.")
        return self.plain(self.stack[0])

    def unknown(self, code: bytes) -> str:
        """The message for an opcode that data does not need."""
        if code == b"i":  # INST: an instance of an old class, named in the opcode
            return _refused_global(_ascii(self.line()), _ascii(self.line()))
        return (
            f"opcode 0x{code.hex()} is not one that plain data and arrays need. The file is damaged, no "
            "pickle, or holds Python objects; those are never loaded."
        )

    # Reading

    def take(self, size: int) -> bytes:
        """The next `size` bytes."""
        if size > len(self.data) - self.position:
            raise _Refused(
                f"the file is cut short or damaged: {size} bytes wanted, "
                f"{len(self.data) - self.position} left."
            )
        self.position += size
        return self.data[self.position - size : self.position]

    def line(self) -> bytes:
        """The bytes before the next line end."""
        end = self.data.find(b"\n", self.position)
        if end < 0:
            raise _Refused("the file is cut short or damaged: a line without an end.")
        line = self.data[self.position : end]
        self.position = end + 1
        return line

    def unsigned(self, size: int) -> int:
        """A little-endian unsigned number of `size` bytes."""
        return int.from_bytes(self.take(size), "little")

    # The stack

    def push(self, value: Any) -> None:
        """Puts one value on the stack."""
        self.stack.append(value)

    def pop(self) -> Any:
        """Takes one value, never from below the last mark."""
        if len(self.stack) <= (self.marks[-1] if self.marks else 0):
            raise _Refused("damaged: a value is wanted where none is left.")
        return self.stack.pop()

    def top(self, kind: type) -> Any:
        """The value on top, which must be a container of this kind that may still grow."""
        value = self.pop()
        self.stack.append(value)
        if type(value) is not kind or id(value) in self.fetched:
            raise _Refused(f"damaged: a growing {kind.__name__} is wanted here.")
        return value

    def pop_to_mark(self) -> list[Any]:
        """Takes all values down to the last mark."""
        if not self.marks:
            raise _Refused("damaged: the start of a list of values is missing.")
        mark = self.marks.pop()
        items = self.stack[mark:]
        del self.stack[mark:]
        return items

    def mark(self) -> None:
        """Remembers where a list of values starts."""
        self.marks.append(len(self.stack))

    def plain(self, value: Any) -> Any:
        """The value, if it may be part of the result."""
        if isinstance(value, _INTERNAL):
            raise _Refused("a function or an unfinished array stands where plain data was wanted.")
        return value

    # Containers

    def note_depth(self, container: Any, items: list[Any] | tuple[Any, ...]) -> None:
        """Records how deep a container nests, now that it holds these items too."""
        inner = max((self.depths[id(item)] for item in items if type(item) in _CONTAINERS), default=0)
        if inner + 1 > _MAX_DEPTH:
            raise _Refused(f"nested more than {_MAX_DEPTH} deep, which no data of ours is.")
        self.depths[id(container)] = max(inner + 1, self.depths.get(id(container), 1))

    def make(self, container: Any, items: list[Any] | tuple[Any, ...] = ()) -> None:
        """Pushes a container that was just made of these items."""
        self.depths[id(container)] = 1
        self.fetched.discard(id(container))  # of one that is gone
        self.note_depth(container, items)
        self.push(container)

    def make_tuple(self, items: list[Any]) -> None:
        """Pushes a tuple; one that arrays are built from is kept apart."""
        internal = any(isinstance(item, _INTERNAL) for item in items)
        self.make(_Arguments(items) if internal else tuple(items), items)

    def make_short_tuple(self, size: int) -> None:
        """Pushes a tuple of the last 1 to 3 values."""
        self.make_tuple([self.pop() for _ in range(size)][::-1])

    def extend(self, items: list[Any]) -> None:
        """Adds values to the list on top."""
        target = self.top(list)
        target.extend(self.plain(item) for item in items)
        self.note_depth(target, items)

    def update(self, items: list[Any]) -> None:
        """Adds keys and values, one after the other, to the dictionary on top."""
        target = self.top(dict)
        if len(items) % 2:
            raise _Refused("damaged: a key without a value.")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(key, str | bytes | int):
                raise _Refused(f"a dictionary key is a {type(key).__name__}, wanted str, bytes or int.")
            target[key] = self.plain(value)
        self.note_depth(target, items)

    def make_list(self) -> None:
        """Opcode LIST of protocol 0."""
        items = self.pop_to_mark()
        self.make([])
        self.extend(items)

    def make_dict(self) -> None:
        """Opcode DICT of protocol 0."""
        items = self.pop_to_mark()
        self.make({})
        self.update(items)

    # The memo

    def put(self, key: int) -> None:
        """Remembers the value on top."""
        value = self.pop()
        self.stack.append(value)
        self.memo[key] = value
        if isinstance(value, _Unfinished):
            value.memo_keys.append(key)

    def get(self, key: int) -> None:
        """Uses a remembered value again: bounded, so that what is small on disk stays small."""
        if key not in self.memo:
            raise _Refused(f"damaged: value {key} is used before it is there.")
        value = self.memo[key]
        if type(value) in _CONTAINERS:
            if self.depths[id(value)] > 1:
                raise _Refused("a nested list or dictionary is used twice, as in a pickle bomb.")
            self.fetched.add(id(value))
        weight = value.nbytes if isinstance(value, np.ndarray) else 0
        if isinstance(value, str | bytes | list | dict | tuple):
            weight = len(value)
        # Short names are used again by every record, and take no memory.
        self.shared_left -= weight if weight > 64 or type(value) in _CONTAINERS else 0
        if self.shared_left < 0:
            raise _Refused("the same values are used again and again, as in a pickle bomb.")
        self.push(value)

    # Strings and numbers

    def push_text(self, raw: bytes, encoding: str = "utf-8") -> None:
        """A unicode string."""
        try:
            self.push(raw.decode(encoding))
        except UnicodeDecodeError as error:
            raise _Refused(f"damaged: text that is not {encoding}: {error.reason}.") from None

    def push_quoted(self) -> None:
        """A Python 2 string of protocol 0, as `repr` spells it."""
        line = self.line().strip()
        if len(line) < 2 or line[0] != line[-1] or line[:1] not in (b"'", b'"'):
            raise _Refused("damaged: a string without its quotes.")
        try:
            self.push(bytes(codecs.escape_decode(line[1:-1])[0]))
        except ValueError as error:
            raise _Refused(f"damaged: a string with a bad escape: {error}.") from None

    def push_number(self, kind: Callable[[str], int | float]) -> None:
        """A number in decimal digits."""
        line = self.line()
        digits = _ascii(line).removesuffix("L")
        if kind is int and digits in ("00", "01"):
            self.push(digits == "01")
            return
        try:
            value = kind(digits) if len(digits) <= 64 else None
        except ValueError:
            value = None
        if value is None:
            raise _Refused(f"damaged: {line[:32]!r} where a number was wanted.")
        self.push_integer(value) if isinstance(value, int) else self.push(value)

    def push_integer(self, value: int) -> None:
        """A whole number, of at most 64 bits."""
        if not -(1 << 63) <= value < 1 << 64:
            raise _Refused("a whole number of more than 64 bits, which no data of ours has.")
        self.push(value)

    def push_long(self, size: int) -> None:
        """A whole number in two's complement, of at most 64 bits and a sign."""
        if size > 9:
            raise _Refused(f"a whole number of {size} bytes, wanted at most 64 bits.")
        self.push_integer(int.from_bytes(self.take(size), "little", signed=True))

    # Functions by name, and what they would have made

    def name(self, module: Any, name: Any) -> None:
        """A function the file wants: known, or the end."""
        kind = _GLOBALS.get(f"{module}.{name}")
        if kind is None:
            raise _Refused(_refused_global(str(module), str(name)))
        self.push(_Named(kind))

    def stack_name(self) -> None:
        """The same with its two words on the stack."""
        name, module = self.pop(), self.pop()
        if not (isinstance(name, str) and isinstance(module, str)):
            raise _Refused("damaged: a function's name is no text.")
        self.name(module, name)

    def reduce(self) -> None:
        """Where Python would call a function, one of nine things is made."""
        arguments, function = self.pop(), self.pop()
        if not isinstance(function, _Named) or not isinstance(arguments, tuple):
            raise _Refused("damaged: a call of something that is no function.")
        # No literals in these patterns: comparing one with an array has no truth value.
        match function.kind, tuple(arguments):
            case (kind, (_Named() as cls, tuple(), str() | bytes())) if (
                kind == _RECONSTRUCT and cls.kind == _NDARRAY
            ):
                self.push(_Unfinished(None))
            case (kind, (str() | bytes() as code, *_)) if kind == _NUMPY_DTYPE:
                self.push(_Unfinished(_dtype(code)))
            case (kind, (_Unfinished() as dtype, bytes() as raw)) if kind == _SCALAR:
                self.push(_array(raw, dtype.dtype, (1,), "C")[0].item())
            case (kind, (bytes() as raw, _Unfinished() as dtype, tuple() as shape, str() as order)) if (
                kind == _FROM_BUFFER and order in ("C", "F")
            ):
                self.push(_array(raw, dtype.dtype, shape, order))
            case (kind, (str() as text, str() | bytes() as encoding)) if kind == _ENCODE and as_text(
                encoding
            ) in ("latin1", "latin-1"):
                self.push(self.encode(text))
            case (kind, ()) if kind == _BYTES:
                self.push(b"")
            case (kind, (list() | tuple() as items,)) if kind == _TUPLE:
                self.make_tuple(list(items))
            case (kind, ()) if kind == _DICT:
                self.make({})
            case (kind, (list() as pairs,)) if kind == _DICT:
                self.make({})
                self.update(_flatten(pairs))
            case _:
                name = next(name for name, kind in _GLOBALS.items() if kind == function.kind)
                raise _Refused(f"{name} with arguments that plain data and arrays do not have.")

    def encode(self, text: str) -> bytes:
        """Bytes that Python 3 wrote as text, at most as many as the file has."""
        self.encoded_left -= len(text)
        if self.encoded_left < 0:
            raise _Refused("the same text is used again and again, as in a pickle bomb.")
        try:
            return text.encode("latin-1")
        except UnicodeEncodeError:
            raise _Refused("damaged: text that stands for bytes has other characters.") from None

    def build(self) -> None:
        """Finishes an array or a type with its state."""
        state, target = self.pop(), self.pop()
        if not isinstance(target, _Unfinished) or not isinstance(state, tuple):
            raise _Refused("sets the state of an object, which plain data and arrays do not need.")
        if target.dtype is not None:
            target.dtype = _ordered(target.dtype, tuple(state))
            self.push(target)
            return
        match tuple(state):
            case (_, tuple() as shape, _Unfinished() as dtype, bool() | int() as fortran, bytes() as raw):
                array = _array(raw, dtype.dtype, shape, "F" if fortran else "C")
            case _:
                raise _Refused("damaged: an array's state is not its shape, type and bytes.")
        for key in target.memo_keys:
            if self.memo.get(key) is target:
                self.memo[key] = array
        self.push(array)


def _refused_global(module: str, name: str) -> str:
    return (
        f"wants {f'{module}.{name}'[:100]!r}, which plain data and arrays do not need. Nothing was run. "
        "If you trust whoever made the file, save its arrays again without Python objects."
    )


def _ascii(raw: bytes) -> str:
    return raw.decode("ascii", "backslashreplace")


def _flatten(pairs: list[Any]) -> list[Any]:
    """The pairs of an OrderedDict as Python 2 writes them: [[key, value], ...]."""
    if not all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in pairs):
        raise _Refused("damaged: an OrderedDict of something else than pairs.")
    return [part for pair in pairs for part in pair]


def _dtype(code: str | bytes) -> np.dtype[Any]:
    text = _ascii(code) if isinstance(code, bytes) else code
    if text.startswith("O"):
        raise _Refused("an array of Python objects; wanted numbers. Such arrays are never loaded.")
    if not _DTYPE.fullmatch(text):
        raise _Refused(f"an array of type {text[:32]!r}; wanted bool or numbers of up to 8 bytes.")
    return np.dtype(text)


def _ordered(dtype: np.dtype[Any], state: tuple[Any, ...]) -> np.dtype[Any]:
    """The type with the byte order of its state (version, order, five fields that simple types lack, ...)."""
    order = as_text(state[1]) if len(state) >= 8 else None
    if order not in ("<", ">", "|", "=") or any(part is not None for part in state[2:5]):
        raise _Refused("an array type with fields, wanted simple numbers.")
    return dtype.newbyteorder(">") if order == ">" else dtype


def _array(raw: bytes, dtype: np.dtype[Any] | None, shape: tuple[Any, ...], order: Any) -> NDArray[Any]:
    """The array, if its bytes are as many as its shape and type say."""
    if dtype is None or len(shape) > _MAX_DIMS or not all(type(size) is int and size >= 0 for size in shape):
        raise _Refused("damaged: an array without a type, or with a shape that is none.")
    if math.prod(max(size, 1) for size in shape) >= 1 << 48:
        raise _Refused(f"an array of shape {list(shape)}, too large to be true.")
    wanted = math.prod(shape) * dtype.itemsize
    if len(raw) != wanted:
        raise _Refused(f"an array of shape {list(shape)} of {dtype} needs {wanted} bytes, got {len(raw)}.")
    array = np.frombuffer(raw, dtype) if raw else np.zeros(0, dtype)
    if not dtype.isnative:
        array = array.astype(dtype.newbyteorder("="))
    return array.reshape(shape, order=order)


_Step = Callable[[_Machine], Any]
_OPCODES: Final[dict[bytes, _Step]] = {
    b"\x80": lambda m: m.take(1),  # PROTO
    b"\x95": lambda m: m.take(8),  # FRAME
    b"(": _Machine.mark,
    b"N": lambda m: m.push(None),
    b"\x88": lambda m: m.push(True),
    b"\x89": lambda m: m.push(False),
    b"I": lambda m: m.push_number(int),
    b"L": lambda m: m.push_number(int),
    b"F": lambda m: m.push_number(float),
    b"J": lambda m: m.push(int.from_bytes(m.take(4), "little", signed=True)),
    b"K": lambda m: m.push(m.unsigned(1)),
    b"M": lambda m: m.push(m.unsigned(2)),
    b"\x8a": lambda m: m.push_long(m.unsigned(1)),
    b"\x8b": lambda m: m.push_long(m.unsigned(4)),
    b"G": lambda m: m.push(struct.unpack(">d", m.take(8))[0]),
    b"S": _Machine.push_quoted,
    b"T": lambda m: m.push(m.take(m.unsigned(4))),  # Python 2 strings
    b"U": lambda m: m.push(m.take(m.unsigned(1))),
    b"C": lambda m: m.push(m.take(m.unsigned(1))),  # Python 3 bytes
    b"B": lambda m: m.push(m.take(m.unsigned(4))),
    b"\x8e": lambda m: m.push(m.take(m.unsigned(8))),
    b"\x96": lambda m: m.push(m.take(m.unsigned(8))),  # a bytearray: what protocol 5 makes arrays from
    b"V": lambda m: m.push_text(m.line(), "raw-unicode-escape"),
    b"\x8c": lambda m: m.push_text(m.take(m.unsigned(1))),
    b"X": lambda m: m.push_text(m.take(m.unsigned(4))),
    b"\x8d": lambda m: m.push_text(m.take(m.unsigned(8))),
    b"]": lambda m: m.make([]),
    b"l": _Machine.make_list,
    b"a": lambda m: m.extend([m.pop()]),
    b"e": lambda m: m.extend(m.pop_to_mark()),
    b"}": lambda m: m.make({}),
    b"d": _Machine.make_dict,
    b"s": lambda m: m.update([m.pop(), m.pop()][::-1]),
    b"u": lambda m: m.update(m.pop_to_mark()),
    b")": lambda m: m.make_tuple([]),
    b"t": lambda m: m.make_tuple(m.pop_to_mark()),
    b"\x85": lambda m: m.make_short_tuple(1),
    b"\x86": lambda m: m.make_short_tuple(2),
    b"\x87": lambda m: m.make_short_tuple(3),
    b"p": lambda m: m.put(_memo_key(m.line())),
    b"q": lambda m: m.put(m.unsigned(1)),
    b"r": lambda m: m.put(m.unsigned(4)),
    b"\x94": lambda m: m.put(len(m.memo)),
    b"g": lambda m: m.get(_memo_key(m.line())),
    b"h": lambda m: m.get(m.unsigned(1)),
    b"j": lambda m: m.get(m.unsigned(4)),
    b"c": lambda m: m.name(_ascii(m.line()), _ascii(m.line())),
    b"\x93": _Machine.stack_name,
    b"R": _Machine.reduce,
    b"b": _Machine.build,
}


def _memo_key(line: bytes) -> int:
    if not line.isdigit() or len(line) > 18:
        raise _Refused(f"damaged: {line[:32]!r} where the number of a value was wanted.")
    return int(line)
