"""The stack machine that reads pickled plain data and arrays without running what is in the file.

A pickle is a program for a small stack machine, and Python's own machine calls whatever function the
program names. Three ways to tame it were weighed:

- `pickle.Unpickler` with a narrow `find_class`: still calls NumPy's `_reconstruct` and `__setstate__` on
  arguments from the file, takes memory for sizes the file only claims (a memo index of 2^30, a string of
  2^40 bytes), hashes nested tuples by recursion in C, and hands out structures that refer to themselves.
- a walk over the opcodes with `pickletools` first, then the real unpickler: two machines that must agree.
- this: a machine of our own for the few opcodes that data needs. It knows names of functions only as
  words it compares; nothing is imported and nothing called. An array is made by `np.frombuffer`, from bytes
  whose number must fit its shape and type (`nextvlad.data.pickle_values`). What is left over is refused by
  name.

So the memory taken is bounded by the file's real size (about 45 bytes a byte at worst: a list takes more
than the byte that asks for it, so lists and remembered values are counted), and so is the result, walked in
any way: nesting is at most 32 deep, nothing contains itself, and what the file refers to again counts again.
All protocols (0 to 5), Python 2 and 3. `nextvlad.data.safe_pickle` has the functions to call.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from typing import Any, BinaryIO, Final

import numpy as np

from nextvlad.data.pickle_values import (
    DICT,
    ENCODE,
    INTERNAL,
    TUPLE,
    Arguments,
    Named,
    Refused,
    Unfinished,
    Unread,
    ascii_text,
    call,
    finish,
    integer,
    memo_key,
    named,
    number,
    unquoted,
)

_MAX_DEPTH = 32
_ALLOWANCE = 1 << 16  # of each limit, so that what is small is never refused
_BYTES_A_CONTAINER = 4  # of the file; what Python writes has more, also in rows of a single number
_BYTES_A_MEMORY = 4  # likewise, of a remembered value
_SKIM_SIZE = 1 << 12
_CONTAINERS = (list, dict, tuple, Arguments)
STOP = b"."


class Machine:
    """The stack machine. Each opcode is one method or one line of `_OPCODES`.

    Args:
        file: the pickle, from its start.
        end: its real size in bytes; no more than this is ever asked for.
    """

    def __init__(self, file: BinaryIO, end: int) -> None:
        self.file = file
        self.end = end
        self.position = 0
        self.start = 0  # of the opcode at hand, for messages
        self.skim = False  # long bytes are stepped over, where only the structure is wanted
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.next_key = 0  # of the memo, where the file leaves the number to us
        self.depths: dict[int, int] = {}  # by id, of containers that hold others; settled anew for each
        self.fetched: set[int] = set()  # ids of containers in the memo that were used again
        self.shared_left = 4 * end + _ALLOWANCE
        self.containers_left = end // _BYTES_A_CONTAINER + _ALLOWANCE
        self.most_remembered = end // _BYTES_A_MEMORY + _ALLOWANCE
        self.encoded_left = end

    def run(self) -> Any:
        """Runs to the STOP opcode and returns what is on the stack."""
        while (code := self.next_code()) != STOP:
            self.step(code)
        return self.result()

    def next_code(self) -> bytes:
        """Reads one opcode."""
        self.start = self.position
        return self.take(1)

    def step(self, code: bytes) -> None:
        """Runs one opcode, any but STOP."""
        step = _OPCODES.get(code)
        if step is None:
            raise Refused(
                f"opcode 0x{code.hex()} is not one that plain data and arrays need. The file is damaged, no "
                "pickle, or holds Python objects; those are never loaded."
            )
        step(self)

    def result(self) -> Any:
        """What is left on the stack after STOP, which must be the last byte."""
        if self.position != self.end:
            raise Refused(f"the pickle ends here, but {self.end - self.position} more bytes follow.")
        if len(self.stack) != 1 or self.marks:
            raise Refused(f"damaged: {len(self.stack)} values are left at the end, wanted one.")
        return self.plain(self.stack[0])

    # Reading

    def take(self, size: int) -> bytes:
        """The next `size` bytes."""
        self.check_left(size)
        try:
            data = self.file.read(size)
        except OSError as error:
            raise Refused(f"the file cannot be read ({error.strerror or error}).") from error
        if len(data) != size:
            raise Refused("the file got shorter while it was read.")
        self.position += size
        return data

    def take_long(self, size: int) -> bytes:
        """The same for the bytes of a string, perhaps of a whole array."""
        if not self.skim or size < _SKIM_SIZE:
            return self.take(size)
        self.check_left(size)
        self.position += size
        self.file.seek(size, os.SEEK_CUR)
        return Unread.of(size)

    def check_left(self, size: int) -> None:
        """Refuses a size that is a lie before it can ask for memory."""
        if size > self.end - self.position:
            raise Refused(
                f"the file is cut short or damaged: {size} bytes wanted, {self.end - self.position} left."
            )

    def line(self) -> bytes:
        """The bytes before the next line end."""
        try:
            line = self.file.readline(self.end - self.position)
        except OSError as error:
            raise Refused(f"the file cannot be read ({error.strerror or error}).") from error
        self.position += len(line)
        if not line.endswith(b"\n"):
            raise Refused("the file is cut short or damaged: a line without an end.")
        return line[:-1]

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
            raise Refused("damaged: a value is wanted where none is left.")
        return self.stack.pop()

    def top(self, kind: type) -> Any:
        """The value on top, which must be a container of this kind that may still grow."""
        value = self.pop()
        self.stack.append(value)
        if type(value) is not kind or id(value) in self.fetched:
            raise Refused(f"damaged: a growing {kind.__name__} is wanted here.")
        return value

    def pop_to_mark(self) -> list[Any]:
        """Takes all values down to the last mark."""
        if not self.marks:
            raise Refused("damaged: the start of a list of values is missing.")
        mark = self.marks.pop()
        items = self.stack[mark:]
        del self.stack[mark:]
        return items

    def mark(self) -> None:
        """Remembers where a list of values starts."""
        self.marks.append(len(self.stack))

    def plain(self, value: Any) -> Any:
        """The value, if it may be part of the result."""
        if isinstance(value, INTERNAL):
            raise Refused("a function or an unfinished array stands where plain data was wanted.")
        return value

    # Containers

    def note_depth(self, container: Any, items: list[Any] | tuple[Any, ...]) -> None:
        """Records how deep a container nests, now that it holds these items too."""
        inner = max((self.depths.get(id(item), 1) for item in items if type(item) in _CONTAINERS), default=0)
        if inner + 1 > _MAX_DEPTH:
            raise Refused(f"nested more than {_MAX_DEPTH} deep, which no data of ours is.")
        if inner and inner + 1 > self.depths.get(id(container), 1):
            self.depths[id(container)] = inner + 1

    def make(self, container: Any, items: list[Any] | tuple[Any, ...] = ()) -> None:
        """Pushes a container that was just made of these items."""
        self.containers_left -= 1
        if self.containers_left < 0:
            raise Refused(
                "more lists, dictionaries and tuples than data of this size has, as in a pickle bomb."
            )
        self.depths.pop(id(container), None)  # of one that is gone
        self.fetched.discard(id(container))
        self.note_depth(container, items)
        self.push(container)

    def make_tuple(self, items: list[Any]) -> None:
        """Pushes a tuple; one that arrays are built from is kept apart."""
        internal = any(isinstance(item, INTERNAL) for item in items)
        self.make(Arguments(items) if internal else tuple(items), items)

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
            raise Refused("damaged: a key without a value.")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(key, str | bytes | int):
                raise Refused(f"a dictionary key is a {type(key).__name__}, wanted str, bytes or int.")
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
        if isinstance(value, Unfinished) and self.memo.get(key) is not value:
            value.memo_keys.append(key)
        self.memo[key] = value
        self.next_key = max(self.next_key, key + 1)
        if len(self.memo) > self.most_remembered:
            raise Refused("more values to remember than data of this size has, as in a pickle bomb.")

    def get(self, key: int) -> None:
        """Uses a remembered value again: bounded, so that what is small on disk stays small."""
        if key not in self.memo:
            raise Refused(f"damaged: value {key} is used before it is there.")
        value = self.memo[key]
        if type(value) in _CONTAINERS:
            if id(value) in self.depths:
                raise Refused("a nested list or dictionary is used twice, as in a pickle bomb.")
            self.fetched.add(id(value))
        weight = value.nbytes if isinstance(value, np.ndarray) else 0
        if isinstance(value, str | bytes | list | dict | tuple):
            weight = len(value)
        # Short names are used again by every record, and take no memory.
        self.shared_left -= weight if weight > 64 or type(value) in _CONTAINERS else 0
        if self.shared_left < 0:
            raise Refused("the same values are used again and again, as in a pickle bomb.")
        self.push(value)

    # Strings and numbers

    def push_text(self, raw: bytes, encoding: str = "utf-8") -> None:
        """A unicode string."""
        try:
            text = raw.decode(encoding)
            if encoding != "utf-8":  # old Pythons escape the halves of a character; one alone is no text
                text = text.encode("utf-16", "surrogatepass").decode("utf-16")
        except UnicodeDecodeError as error:
            raise Refused(f"damaged: text that is not {encoding}: {error.reason}.") from None
        self.push(text)

    def push_long(self, size: int) -> None:
        """A whole number in two's complement, of at most 64 bits and a sign."""
        if size > 9:
            raise Refused(f"a whole number of {size} bytes, wanted at most 64 bits.")
        self.push(integer(int.from_bytes(self.take(size), "little", signed=True)))

    # Functions by name, and what they would have made

    def instance(self) -> None:
        """Opcode INST of protocol 0: an instance of an old class, named in the opcode."""
        named(ascii_text(self.line()), ascii_text(self.line()))
        raise Refused("makes an object of an old class, which plain data and arrays do not need.")

    def stack_name(self) -> None:
        """A function the file wants, with its two words on the stack."""
        name, module = self.pop(), self.pop()
        if not (isinstance(name, str) and isinstance(module, str)):
            raise Refused("damaged: a function's name is no text.")
        self.push(named(module, name))

    def reduce(self) -> None:
        """Where Python would call a function, one of nine things is made."""
        arguments, function = self.pop(), self.pop()
        if not isinstance(function, Named) or not isinstance(arguments, tuple):
            raise Refused("damaged: a call of something that is no function.")
        made = call(function, tuple(arguments))
        if function.kind == TUPLE:
            self.make_tuple(made)
        elif function.kind == DICT:
            self.make({})
            self.update(made)
        else:
            if function.kind == ENCODE:  # bytes that Python 3 wrote as text: at most as many as the file has
                self.encoded_left -= len(made)
            if self.encoded_left < 0:
                raise Refused("the same text is used again and again, as in a pickle bomb.")
            self.push(made)

    def build(self) -> None:
        """Finishes an array or a type with its state."""
        state, target = self.pop(), self.pop()
        if not isinstance(target, Unfinished) or not isinstance(state, tuple):
            raise Refused("sets the state of an object, which plain data and arrays do not need.")
        array = finish(target, tuple(state))
        if array is None:
            self.push(target)
            return
        for key in target.memo_keys:
            if self.memo.get(key) is target:
                self.memo[key] = array
        target.memo_keys.clear()  # the array may be built many times over
        self.push(array)


_Step = Callable[[Machine], Any]
_OPCODES: Final[dict[bytes, _Step]] = {
    b"\x80": lambda m: m.take(1),  # PROTO
    b"\x95": lambda m: m.take(8),  # FRAME
    b"(": Machine.mark,
    b"N": lambda m: m.push(None),
    b"\x88": lambda m: m.push(True),
    b"\x89": lambda m: m.push(False),
    b"I": lambda m: m.push(number(m.line(), int)),
    b"L": lambda m: m.push(number(m.line(), int)),
    b"F": lambda m: m.push(number(m.line(), float)),
    b"J": lambda m: m.push(int.from_bytes(m.take(4), "little", signed=True)),
    b"K": lambda m: m.push(m.unsigned(1)),
    b"M": lambda m: m.push(m.unsigned(2)),
    b"\x8a": lambda m: m.push_long(m.unsigned(1)),
    b"\x8b": lambda m: m.push_long(m.unsigned(4)),
    b"G": lambda m: m.push(struct.unpack(">d", m.take(8))[0]),
    b"S": lambda m: m.push(unquoted(m.line())),
    b"T": lambda m: m.push(m.take_long(m.unsigned(4))),  # Python 2 strings
    b"U": lambda m: m.push(m.take_long(m.unsigned(1))),
    b"C": lambda m: m.push(m.take_long(m.unsigned(1))),  # Python 3 bytes
    b"B": lambda m: m.push(m.take_long(m.unsigned(4))),
    b"\x8e": lambda m: m.push(m.take_long(m.unsigned(8))),
    b"\x96": lambda m: m.push(m.take_long(m.unsigned(8))),  # a bytearray: what protocol 5 makes arrays from
    b"V": lambda m: m.push_text(m.line(), "raw-unicode-escape"),
    b"\x8c": lambda m: m.push_text(m.take(m.unsigned(1))),
    b"X": lambda m: m.push_text(m.take(m.unsigned(4))),
    b"\x8d": lambda m: m.push_text(m.take(m.unsigned(8))),
    b"]": lambda m: m.make([]),
    b"l": Machine.make_list,
    b"a": lambda m: m.extend([m.pop()]),
    b"e": lambda m: m.extend(m.pop_to_mark()),
    b"}": lambda m: m.make({}),
    b"d": Machine.make_dict,
    b"s": lambda m: m.update([m.pop(), m.pop()][::-1]),
    b"u": lambda m: m.update(m.pop_to_mark()),
    b")": lambda m: m.make_tuple([]),
    b"t": lambda m: m.make_tuple(m.pop_to_mark()),
    b"\x85": lambda m: m.make_short_tuple(1),
    b"\x86": lambda m: m.make_short_tuple(2),
    b"\x87": lambda m: m.make_short_tuple(3),
    b"p": lambda m: m.put(memo_key(m.line())),
    b"q": lambda m: m.put(m.unsigned(1)),
    b"r": lambda m: m.put(m.unsigned(4)),
    b"\x94": lambda m: m.put(m.next_key),
    b"g": lambda m: m.get(memo_key(m.line())),
    b"h": lambda m: m.get(m.unsigned(1)),
    b"j": lambda m: m.get(m.unsigned(4)),
    b"c": lambda m: m.push(named(ascii_text(m.line()), ascii_text(m.line()))),
    b"\x93": Machine.stack_name,
    b"i": Machine.instance,
    b"R": Machine.reduce,
    b"b": Machine.build,
}
