"""One reader's share of the data: its shards, its shuffle buffer, its batches, and its place.

The data is divided among `num_readers` readers (processes of training x reader processes of each), of
which this is one; it runs in the process of training or in a reader process, and cannot tell. Shards
are dealt out anew each epoch. Where there are fewer shards than readers, every reader reads all of
them and keeps every num_readers-th record. Either way each video comes once an epoch.

A record is one video of a batch, or, where the plan asks for segments, several: its *parts*.

What a reader yields depends on its plan alone, never on timing, and its state after each batch is a
handful of numbers: where to read on, how many random numbers were drawn, and the places of the parts
that wait in the shuffle buffer. To resume, their records are read again.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from nextvlad.config import StreamConfig
from nextvlad.data.batch import PackedBatch, find_fault
from nextvlad.data.contents import Content, Contents, Copies
from nextvlad.data.packer import Packer
from nextvlad.data.segments import Segments, segments_of
from nextvlad.data.tfrecord import FRAMING_SIZE, RecordFile
from nextvlad.data.usual_records import MOST_STREAMS, UsualRecords, available
from nextvlad.data.video_record import VideoRecord, parse_video_record
from nextvlad.errors import ConfigError, DataError, RecordError, RecordPlace
from nextvlad.provenance import Expected, of_record

_NO_LABELS = np.empty(0, np.int64)


@dataclass(frozen=True, slots=True)
class ReaderPlan:
    """What to read; the same for all readers but for `reader`."""

    shards: tuple[str, ...]
    streams: tuple[StreamConfig, ...]
    num_classes: int
    batch_size: int
    max_frames: int
    shuffle: bool
    shuffle_buffer: int  # records held by this reader; 0 or 1 keep the order
    seed: int
    epochs: int
    reader: int  # 0..num_readers-1
    num_readers: int
    skip_damaged: bool
    with_labels: bool = True
    segments: Segments | None = None
    expected: Expected | None = None  # how the features were made; None: in any way


_NUMBERS = ("epoch", "draws", "turn", "offset", "number", "part")
_COLUMNS = ("shards", "offsets", "numbers", "parts")


@dataclass(frozen=True, slots=True)
class ReaderState:
    """Where a reader stands between two batches."""

    epoch: int = 0
    draws: int = 0  # random numbers drawn from the epoch's generator
    turn: int = 0  # position in this epoch's list of shards
    offset: int = 0  # bytes, in that shard
    number: int = 0  # record number, in that shard
    part: int = 0  # parts of that record that were taken already
    held: bytes = b""  # [4, parts] int64: shard, offset, record number and part of each in the buffer

    def to_json(self) -> dict[str, object]:
        """Plain values; `held` as four lists."""
        columns = np.frombuffer(self.held, np.int64).reshape(len(_COLUMNS), -1).tolist()
        numbers = {name: getattr(self, name) for name in _NUMBERS}
        return {**numbers, "held": dict(zip(_COLUMNS, columns, strict=True))}

    @classmethod
    def from_json(cls, values: Any) -> ReaderState:
        """The reverse; ConfigError for anything else."""
        try:
            held = np.array([values["held"][name] for name in _COLUMNS], np.int64)
            numbers = {name: int(values[name]) for name in _NUMBERS}
            return cls(**numbers, held=held.tobytes())
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(
                f"the place in the data is not one this version saved ({error!r}); start without --resume."
            ) from error


class Delivery(NamedTuple):
    """What a reader hands over: a batch (None at the end), its state then, and damage met since."""

    batch: PackedBatch | None
    state: ReaderState
    damage: list[RecordError]


class _Held(NamedTuple):
    """A record, or a part of one, on its way into a batch.

    Its streams are views of its own copy of the payload. With `payload` None they are its own, or, where none
    has to wait, views of what the next record overwrites. With `record` None the payload is usual (see
    `nextvlad.data.usual_records`) and was not parsed.
    """

    record: VideoRecord | None
    payload: NDArray[np.uint8] | None
    shard: int
    offset: int
    number: int
    part: int = 0


class Reader:
    """Yields deliveries, from `state` on; the last has no batch.

    Args:
        plan: what to read.
        state: what an earlier reader of this plan had delivered; None: nothing.
        allocate: where batches are put, as `nextvlad.data.batch.pack`.
    """

    def __init__(
        self,
        plan: ReaderPlan,
        state: ReaderState | None = None,
        allocate: Callable[[int], Tensor] | None = None,
    ) -> None:
        self._plan = plan
        self._start = state or ReaderState()
        self._packer = Packer(plan.streams, plan.num_classes, plan.batch_size, allocate=allocate)
        self._shuffles = plan.shuffle and plan.shuffle_buffer > 1
        self._names = {stream.name for stream in plan.streams}
        self._usual = _usual_records(plan)
        self._damage: list[RecordError] = []
        self._copies = Copies(plan.batch_size)
        self._origins: set[bytes] = set()  # that are as expected
        self._epoch = self._draws = self._turn = self._offset = self._number = self._part = 0
        # Columns rather than rows: each batch carries them, and bytes travel at no cost.
        self._places = (array("q"), array("q"), array("q"), array("q"))

    def __iter__(self) -> Iterator[Delivery]:
        """Raises RecordError (without `skip_damaged`), UsageError, DataError."""
        for epoch in range(self._start.epoch, self._plan.epochs):
            for held in self._one_epoch(epoch):
                if held is not None:
                    self._add(held)
                if not self._packer.missing:
                    yield self._deliver()
        if len(self._packer):
            yield self._deliver()
        yield self._deliver()

    def _add(self, held: _Held) -> None:
        record, payload = held.record, held.payload
        if record is None:
            assert self._usual is not None
            assert payload is not None
            if not self._usual.pack_payload(payload, self._packer):
                record = self._parse(payload)
        if record is not None:
            self._packer.add(record)
        self._copies.done(payload)

    def _deliver(self) -> Delivery:
        batch = self._packer.finish() if len(self._packer) else None
        held = b"".join(column.tobytes() for column in self._places)
        state = ReaderState(**{name: getattr(self, f"_{name}") for name in _NUMBERS}, held=held)
        damage, self._damage = self._damage, []
        return Delivery(batch, state, damage)

    def _one_epoch(self, epoch: int) -> Iterator[_Held | None]:
        """What is to be added to the batch; None where something was added already."""
        start = self._start if epoch == self._start.epoch else ReaderState()
        self._epoch, self._draws = epoch, start.draws
        self._turn, self._offset, self._number = start.turn, start.offset, start.number
        self._part = start.part
        incoming = self._read(epoch)
        if not self._shuffles:
            return incoming
        return self._shuffled(incoming, self._read_again(start.held))

    def _shuffled(self, incoming: Iterator[_Held | None], buffer: list[_Held]) -> Iterator[_Held]:
        """Each that comes draws one of those that wait, and takes its place."""
        capacity = self._plan.shuffle_buffer
        random = _generator(self._plan.seed, self._epoch, self._plan.reader + 1, self._draws)
        shards, offsets, numbers, parts = self._places
        for held in incoming:
            assert held is not None  # nothing goes into a batch past the buffer
            if len(buffer) < capacity:
                buffer.append(held)
                shards.append(held.shard)
                offsets.append(held.offset)
                numbers.append(held.number)
                parts.append(held.part)
                continue
            slot = int(random() * capacity)
            self._draws += 1
            drawn, buffer[slot] = buffer[slot], held
            shards[slot], offsets[slot], numbers[slot] = held.shard, held.offset, held.number
            parts[slot] = held.part
            yield drawn
        while buffer:
            slot = int(random() * len(buffer))
            self._draws += 1
            drawn = buffer[slot]
            buffer[slot] = buffer[-1]
            buffer.pop()
            for column in self._places:
                column[slot] = column[-1]
                column.pop()
            yield drawn

    def _read(self, epoch: int) -> Iterator[_Held | None]:
        """What this epoch holds from where the reader stands, in the order of the files."""
        shards, shared = _deal(self._plan, epoch)
        num_readers = self._plan.num_readers
        for turn in range(self._turn, len(shards)):
            if turn != self._turn:
                self._turn, self._offset, self._number, self._part = turn, 0, 0, 0
            # Which of the readers has record 0 changes, lest the first gets more where shards are short.
            mine = (self._plan.reader - turn - epoch) % num_readers if shared else None
            yield from self._read_shard(shards[turn], mine)
        self._turn, self._offset, self._number, self._part = len(shards), 0, 0, 0

    def _read_shard(self, shard: int, mine: int | None) -> Iterator[_Held | None]:
        """The records of one shard from where the reader stands; every num_readers-th, or all (None)."""
        path, num_readers = self._plan.shards[shard], self._plan.num_readers

        def note(error: RecordError) -> None:
            if mine is None or error.place is None or error.place.number % num_readers == mine:
                self._damage.append(error)

        done = self._part
        start = RecordPlace(path, self._offset, self._number)
        with Contents(path, start, note if self._plan.skip_damaged else None) as contents:
            while True:
                if not done and self._usual and contents.file:
                    yield from self._take_usual(self._usual, contents.file, shard, mine)
                if (next_one := contents.read()) is None:
                    return
                content, place, after = next_one
                if mine is None or place.number % num_readers == mine:
                    held = self._take(content, place, shard)
                    for part in held[done:]:
                        # Until the last part is out, this record is where to go on.
                        if part is held[-1]:
                            self._offset, self._number, self._part = after, place.number + 1, 0
                        else:
                            self._offset, self._number = place.offset, place.number
                            self._part = part.part + 1
                        yield part
                done = 0
                self._offset, self._number, self._part = after, place.number + 1, 0

    def _take_usual(
        self, usual: UsualRecords, file: RecordFile, shard: int, mine: int | None
    ) -> Iterator[_Held | None]:
        """As many records as there are that need no parser in Python."""
        if self._plan.expected is not None and usual.origin is None:
            return  # the first record tells
        first, every = (0, 1) if mine is None else (mine, self._plan.num_readers)
        if self._shuffles:
            for number, offset, payload in usual.find(file, first, every):
                self._offset, self._number = offset + FRAMING_SIZE + len(payload), number + 1
                yield _Held(None, self._copies.of(payload), shard, offset, number)
            return
        while usual.pack(file, self._packer, first, every):
            self._offset, self._number = file.window.offset, file.window.number
            yield None

    def _take(self, content: Content, place: RecordPlace, shard: int) -> list[_Held]:
        """The parts of a record; none if it is damaged and to be skipped."""
        try:
            return self._hold(content, place, shard)
        except RecordError as error:
            if not self._plan.skip_damaged:
                raise
            self._damage.append(error)
            return []

    def _hold(self, content: Content, place: RecordPlace, shard: int) -> list[_Held]:
        plan, copy = self._plan, None
        max_frames = plan.max_frames if plan.segments is None else None
        try:
            if isinstance(content, VideoRecord):
                record = _cut(content, max_frames)
            else:
                # Segments are copies by themselves, and what need not wait needs no copy.
                if self._shuffles and plan.segments is None:
                    copy = self._copies.of(content)
                payload = content if copy is None else copy
                record = parse_video_record(payload, max_frames=max_frames, streams=self._names)
            if plan.segments is None:
                records = [record]
            else:
                records = segments_of(record, plan.segments, max_frames=plan.max_frames)
        except RecordError as error:
            raise error.at(place) from None
        self._check_origin(record, place)
        if not plan.with_labels:
            for part in records:
                part.labels, part.rated = _NO_LABELS, None
        self._check(records, content, place)
        return [
            _Held(part, copy, shard, place.offset, place.number, index) for index, part in enumerate(records)
        ]

    def _parse(self, payload: NDArray[np.uint8]) -> VideoRecord:
        """A payload that was usual when it was found."""
        record = parse_video_record(payload, max_frames=self._plan.max_frames, streams=self._names)
        if not self._plan.with_labels:
            record.labels = _NO_LABELS
        return record

    def _check_origin(self, record: VideoRecord, place: RecordPlace) -> None:
        """Raises DataError for features that were made in another way than expected: no damage to skip."""
        expected, token = self._plan.expected, of_record(record.context)
        if expected is not None and token not in self._origins:
            expected.check(token, place.path)
            self._origins.add(token)
        if expected is not None and self._usual:
            self._usual.origin = token

    def _check(self, records: list[VideoRecord], content: Content, place: RecordPlace) -> None:
        """Raises RecordError, with its place, for a record that the model cannot take."""
        plan = self._plan
        for record in records:
            fault = find_fault(record, plan.streams, plan.num_classes)
            if fault is None:
                continue
            # Once more with all streams: the message tells the sizes of those that were not asked for.
            whole = content if isinstance(content, VideoRecord) else parse_video_record(content, max_frames=1)
            whole.labels, whole.rated = record.labels, record.rated
            fault = find_fault(whole, plan.streams, plan.num_classes) or fault
            raise RecordError(fault, RecordPlace(place.path, place.offset, place.number, record.video_id))

    def _read_again(self, held: bytes) -> list[_Held]:
        """What waited in the buffer, each in its old slot."""
        columns: list[list[int]] = np.frombuffer(held, np.int64).reshape(len(_COLUMNS), -1).tolist()
        for column, values in zip(self._places, columns, strict=True):
            column.extend(values)
        slots: dict[int, dict[int, dict[int, int]]] = {}  # shard -> record number -> part -> slot
        first: dict[int, RecordPlace] = {}
        for slot, (shard, offset, number, part) in enumerate(zip(*columns, strict=True)):
            slots.setdefault(shard, {}).setdefault(number, {})[part] = slot
            if shard not in first or number < first[shard].number:
                first[shard] = RecordPlace(self._plan.shards[shard], offset, number)
        found: dict[int, _Held] = {}
        for shard, wanted in slots.items():
            found.update(self._find(shard, first[shard], wanted))
        return [found[slot] for slot in range(len(columns[0]))]

    def _find(
        self, shard: int, start: RecordPlace, wanted: dict[int, dict[int, int]]
    ) -> Iterator[tuple[int, _Held]]:
        """(slot, part) for the wanted record numbers and parts of one shard."""
        missing = {(number, part) for number, parts in wanted.items() for part in parts}
        with Contents(start.path, start, lambda error: None) as contents:
            while missing and (next_one := contents.read()) is not None:
                content, place, _ = next_one
                for held in self._hold(content, place, shard) if place.number in wanted else ():
                    if (place.number, held.part) in missing:
                        missing.remove((place.number, held.part))
                        yield wanted[place.number][held.part], held
        if not missing:
            return
        raise DataError(
            f"{start.path}: record {min(missing)[0]} cannot be read any more, and the place to resume from "
            "needs it. The data has changed since the checkpoint was saved; start without --resume."
        )


def _usual_records(plan: ReaderPlan) -> UsualRecords | None:
    """The short way, where it leads to what the plan wants."""
    if not available() or plan.segments is not None or len(plan.streams) > MOST_STREAMS:
        return None
    if plan.with_labels and not plan.num_classes:  # which means no labels there, and here that none is right
        return None
    return UsualRecords(
        plan.streams, plan.max_frames, plan.num_classes, plan.batch_size, with_labels=plan.with_labels
    )


def _cut(record: VideoRecord, max_frames: int | None) -> VideoRecord:
    """The record with at most so many frames of each stream."""
    record.streams = {name: frames[:max_frames] for name, frames in record.streams.items()}
    return record


def _deal(plan: ReaderPlan, epoch: int) -> tuple[list[int], bool]:
    """This reader's shards in this epoch, in order, and whether it shares them with all readers."""
    count = len(plan.shards)
    order = list(range(count))
    if plan.shuffle:
        order = np.random.Generator(_bits(plan.seed, epoch, 0)).permutation(count).tolist()
    if count < plan.num_readers:
        return order, True
    # Dealing goes on where it ended in the epoch before, so that no reader always gets one more.
    first = (plan.reader - epoch * count) % plan.num_readers
    return order[first :: plan.num_readers], False


def _generator(seed: int, epoch: int, stream: int, draws: int) -> Callable[[], float]:
    """Random numbers in [0, 1), after `draws` of them; one step of the generator each."""
    random: Callable[[], float] = np.random.Generator(_bits(seed, epoch, stream).advance(draws)).random
    return random


def _bits(seed: int, epoch: int, stream: int) -> np.random.PCG64:
    return np.random.PCG64([seed, epoch, stream])
