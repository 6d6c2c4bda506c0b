"""Pickled plain data and arrays, read whole or item by item, without running what is in the file.

`load` and `loads` give the whole content, `stream` the items of a list one after the other in the memory
of one. `nextvlad.data.pickle_machine` says what is read, and why nothing can be run and no bomb goes off.
"""

from __future__ import annotations

import io
import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from nextvlad.data.pickle_machine import STOP, Machine
from nextvlad.data.pickle_values import Arguments, Refused, Unread
from nextvlad.data.pickle_values import as_text as as_text
from nextvlad.errors import DataError, RecordError, RecordPlace, UsageError
from nextvlad.files import cannot_open

_SHORT = 64  # bytes of a string or an array that are remembered
_FEW = 16  # numbers of a list, likewise
_MOST_SMALL = (
    1 << 16
)  # such values remembered: keys and types come early, and the ids of a million rows add up
_NO_ITEM = sys.maxsize
_BUFFER = 1 << 16


class Item(NamedTuple):
    """One item of a pickled list."""

    number: int  # from 0
    offset: int  # of the byte in the file where it begins
    value: Any


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
    machine = Machine(io.BytesIO(data), len(data))
    try:
        return machine.run()
    except Refused as error:
        raise DataError(f"{where}, byte {machine.start}: {error}") from None


def stream(path: str | os.PathLike[str], *, first: int = 0) -> Iterator[Item]:
    """The items of the list that a pickle file holds, one after the other; values as `loads` gives them.

    A dictionary is handed out as soon as the next one begins, anything else when the file adds it to the
    list, which Python does for a thousand items at a time. What was handed out is forgotten, but for the
    first 65,536 small values. Should the file refer to it again (one array for all silent videos, say), it
    is read a second time with nothing forgotten, in memory for all of it. Values are not to be changed.

    Args:
        path: a regular file.
        first: item to begin with; those before are stepped over without reading what is in their arrays.

    Raises:
        RecordError: as DataError of `loads`, also where the content is no list; nothing after it can be read.
            Items before it were handed out. What stands in the file shows only at its end whether it is
            whole.
        UsageError: the file is missing, no regular file, or may not be read.
    """
    for item in _items(path, first):
        if item.number >= first:
            yield item
        del item  # two records at a time otherwise


def count(path: str | os.PathLike[str]) -> Iterator[int]:
    """Counts the items of the list that a pickle file holds: 1, 2, ... up to the last. Arrays are not read.

    Raises:
        RecordError, UsageError: as `stream`.
    """
    for item in _items(path, _NO_ITEM):
        yield item.number + 1


def _items(path: str | os.PathLike[str], first: int) -> Iterator[Item]:
    """All items; those before `first` without what is in their arrays."""
    name = os.fspath(path)
    with _open(path) as file:
        size = os.fstat(file.fileno()).st_size
        done = 0
        try:
            for item in _Stream(file, size, first).items(name):
                done = item.number + 1
                yield item
                del item
            return
        except _Again:
            file.seek(0)
        # Any item may be referred to by one that is wanted.
        for item in _Stream(file, size, first if first == _NO_ITEM else 0, keep=True).items(name):
            if item.number >= done:
                yield item
            del item


class _Again(Exception):
    """The file refers to what was forgotten."""


class _Stream(Machine):
    """The machine that hands out the items of the list at the bottom of its stack."""

    def __init__(self, file: BinaryIO, end: int, first: int, *, keep: bool = False) -> None:
        super().__init__(file, end)
        self.first = first
        self.skim = first > 0
        self.keep = keep
        self.number = 0
        self.recent: list[int] = []  # memo keys since the last item was handed out
        self.small_left = _MOST_SMALL

    def put(self, key: int) -> None:
        super().put(key)
        self.recent.append(key)

    def get(self, key: int) -> None:
        if not self.keep and key < self.next_key and key not in self.memo:
            raise _Again
        super().get(key)

    def items(self, name: str) -> Iterator[Item]:
        """The items; `name` of the file is for messages."""
        try:
            yield from self.run_items()
        except Refused as error:
            reason = f"{error} Not read: the last {self.end - self.start} bytes."
            place = RecordPlace(name, self.start, self.number)
            raise RecordError(reason, place, framing_lost=True) from None

    def run_items(self) -> Iterator[Item]:
        """Runs the whole pickle, with a look at the bottom of the stack after each opcode.

        There are the list, perhaps a mark for several items to come, and items.
        """
        stack, marks = self.stack, self.marks
        begins: list[int] = []  # where each value on the stack begins
        handed_out = False  # items above the mark
        while (code := self.next_code()) != STOP:
            closes = bool(stack) and type(stack[0]) is list and _closes(code, marks, len(stack))
            bottom, begun = stack[0] if closes else None, begins[1:] if closes else []
            self.step(code)
            if bottom is not None:
                handed_out = False
                items = list(bottom)
                bottom.clear()
                begun = [begins[0]] * (len(items) - len(begun)) + begun
                yield from self.hand_out(items, begun)
            elif len(stack) == 3 and marks == [1] and [type(value) for value in stack] == [list, dict, dict]:
                # Nothing that follows can belong to the first of two dictionaries side by side.
                handed_out = True
                self.note_depth(stack[0], [stack[1]])
                yield from self.hand_out([stack.pop(1)], [begins.pop(1)])
            elif handed_out and not marks:
                raise Refused("damaged: a list of dictionaries that ends as something else.")
            del begins[len(stack) :]
            begins += [self.start] * (len(stack) - len(begins))
        rest = self.result()
        if type(rest) is not list:
            raise Refused(f"holds a {type(rest).__name__}, wanted a list.")
        yield from self.hand_out(rest, [begins[0]] * len(rest))

    def hand_out(self, items: list[Any], begun: list[int]) -> Iterator[Item]:
        """Gives the items away, and forgets what is not small."""
        if self.skim and self.number < self.first < self.number + len(items):
            raise _Again  # some that are wanted were skimmed
        if not self.keep:
            for key in set(self.recent):
                if self.small_left and _is_small(self.memo[key]):
                    self.small_left -= 1
                else:
                    del self.memo[key]
        self.recent.clear()
        items.reverse()
        for offset in begun:
            number = self.number
            self.number += 1
            self.skim = self.number < self.first
            yield Item(number, offset, self.plain(items.pop()))


def _closes(code: bytes, marks: list[int], height: int) -> bool:
    """Does this opcode add what is on the stack to the list at its bottom?"""
    return (code == b"a" and not marks and height == 2) or (code == b"e" and marks == [1])


def _is_small(value: Any) -> bool:
    if isinstance(value, np.ndarray):
        return value.nbytes <= _SHORT
    if isinstance(value, str | bytes):
        return len(value) <= _SHORT and not isinstance(value, Unread)
    if isinstance(value, dict | Arguments):
        return False
    if isinstance(value, list | tuple):
        return len(value) <= _FEW and all(type(item) in (int, float, bool) for item in value)
    return True


def _open(path: str | os.PathLike[str]) -> BinaryIO:
    name = os.fspath(path)
    try:
        file = open(name, "rb", buffering=_BUFFER)  # noqa: SIM115
    except OSError as error:
        raise cannot_open(name, error) from error
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise UsageError(f"{name}: a pickle is read from a regular file, not from a pipe.")
    return file
