"""Shards to shuffled batches, in this process or in reader processes, from any place on.

    shards --data.reader.Reader--> packed batches --data.processes.Readers--> FrameLoader --> FrameBatch

Readers take turns, each giving one batch, whatever their speed: what comes, and in which order, follows
from the arguments alone. The place in the data is one state a reader (`data.reader.ReaderState`),
taken together with the batch that it follows, and whose turn it is.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, NamedTuple, Self

import torch

from nextvlad.config import StreamConfig
from nextvlad.data.batch import FrameBatch
from nextvlad.data.processes import Readers
from nextvlad.data.reader import Delivery, Reader, ReaderPlan, ReaderState
from nextvlad.data.segments import Segments
from nextvlad.data.sources import count_videos, expand, read_file
from nextvlad.errors import ConfigError, DataError, RecordError, UsageError, WorkerError
from nextvlad.provenance import Expected

_PEEK = 256  # records looked at to learn the streams
_COUNTING_THREADS = 8
_MOST_WORKERS = 1024  # a slip of the keyboard should not fill the machine with processes
_LARGEST_BATCH = (1 << 31) - 1  # videos; no size in bytes then exceeds what memory is counted with
_VERSION = 2
_AFRESH = "Start without --resume."

_Ready = tuple[int, FrameBatch | None, Delivery]


class Place(NamedTuple):
    """Where a loader stands between two batches."""

    turn: int
    states: tuple[ReaderState, ...]


class FrameLoader:
    """The batches of one process of training, evaluation or prediction.

    Each video comes once an epoch, over all ranks together. The videos a reader gives in one epoch all
    come before those of its next, but batches are cut without regard to epochs, so that only the last
    batch of a reader may be smaller. Without `shuffle`, with one reader, videos come in file order.

    A loader is a stream: iterating again goes on after the last batch that was handed out, and gives
    nothing after the end. Reader processes run only while it is iterated; leaving the loop, by any
    way, ends them, and so does `close()` or the end of a `with` block.

    Args:
        data: files, folders, globs or .list files, as `nextvlad.data.sources.expand`.
        streams: what the model wants; C its number of classes `num_classes`.
        batch_size: videos a batch of this rank.
        max_frames: frames beyond these are left out, of each stream.
        shuffle: shards in random order each epoch, and records through a buffer.
        shuffle_buffer: records held to draw from, over all readers of this rank; 1 holds none.
        seed: 0 or more; of the shuffling.
        epochs: passes over the data.
        workers: reader processes; 0 reads in this one, in the same order as 1.
        start_method: "fork" or "spawn"; None: fork on Linux unless CUDA is in use, else spawn.
        pin_memory: batches in page-locked memory, prepared one ahead; ignored without CUDA.
        rank, world_size: which of how many processes that share the data.
        skip_damaged: leave damaged records out and list them in `damage`.
        position: what `position()` gave, to go on there.
        prefetch: batches each reader process may have ready.
        with_labels: False reads no labels, so that labels of other classes do not matter.
        segments: what counts as a video: None: a whole one; "rated": each segment that was judged; "all":
            every five seconds (see `nextvlad.data.segments`).
        expected: how the features have to have been made; None: in any way.

    Attributes:
        damage: what was skipped, with places; each place once, however many epochs.

    Raises:
        UsageError: no such data. ConfigError: an argument out of range; a position of other data or
            other settings.
        RecordError, UsageError: while iterating, damage without `skip_damaged`, as the reader says it.
        DataError: while iterating, features that are not as `expected`.
        WorkerError: while iterating, a reader process died.
    """

    def __init__(
        self,
        data: Sequence[str],
        *,
        streams: Sequence[StreamConfig],
        num_classes: int,
        batch_size: int,
        max_frames: int = 300,
        shuffle_buffer: int = 1,
        shuffle: bool = False,
        seed: int = 0,
        epochs: int = 1,
        workers: int = 0,
        start_method: str | None = None,
        pin_memory: bool = False,
        rank: int = 0,
        world_size: int = 1,
        skip_damaged: bool = False,
        position: Mapping[str, Any] | None = None,
        prefetch: int = 2,
        with_labels: bool = True,
        segments: Segments | None = None,
        expected: Expected | None = None,
    ) -> None:
        _check_range("batch_size", batch_size, 1)
        if batch_size > _LARGEST_BATCH:
            raise ConfigError(f"batch_size: got {batch_size}, wanted at most {_LARGEST_BATCH} videos.")
        _check_range("max_frames", max_frames, 1)
        _check_range("shuffle_buffer", shuffle_buffer, 1)
        _check_range("seed", seed, 0)
        _check_range("epochs", epochs, 0)
        _check_range("workers", workers, 0)
        if workers > _MOST_WORKERS:
            raise ConfigError(f"workers: got {workers}, wanted at most {_MOST_WORKERS} reader processes.")
        _check_range("prefetch", prefetch, 1)
        _check_range("world_size", world_size, 1)
        if not 0 <= rank < world_size:
            raise ConfigError(f"rank: got {rank}, wanted 0..{world_size - 1}.")
        if start_method not in (None, "fork", "spawn"):
            raise ConfigError(f"start_method: got {start_method!r}, wanted fork, spawn or None.")
        self.damage: list[RecordError] = []
        self._shards = tuple(expand(data))
        readers = max(workers, 1)
        self._plans = [
            ReaderPlan(
                shards=self._shards,
                streams=tuple(streams),
                num_classes=num_classes,
                batch_size=batch_size,
                max_frames=max_frames,
                shuffle=shuffle,
                shuffle_buffer=-(-shuffle_buffer // readers),
                seed=seed,
                epochs=epochs,
                reader=rank * readers + number,
                num_readers=world_size * readers,
                skip_damaged=skip_damaged,
                with_labels=with_labels,
                segments=segments,
                expected=expected,
            )
            for number in range(readers)
        ]
        self._made_of: dict[str, Any] = {
            "batch_size": batch_size,
            "workers": readers,
            "rank": rank,
            "world_size": world_size,
            "seed": seed,
            "shuffle": shuffle,
            "shuffle_buffer": shuffle_buffer,
            "segments": segments,
        }
        self._workers, self._start_method, self._prefetch = workers, start_method, prefetch
        self._pin = pin_memory and torch.cuda.is_available()
        self._data = _describe(self._shards)
        self._turn = 0
        self._states = [ReaderState()] * readers
        if position is not None:
            self._go_to(position)
        self._noted: set[str] = set()
        self._readers: Readers | None = None

    def __iter__(self) -> Iterator[FrameBatch]:
        """The batches from here on."""
        self.close()
        source: Iterator[tuple[int, Delivery]]
        if self._workers:
            readers = self._readers = Readers(
                self._plans, list(self._states), start_method=self._start_method, prefetch=self._prefetch
            )
            source, interrupt = _take_turns(readers, len(self._plans), self._turn), readers.interrupt
        else:
            readers = None
            source, interrupt = ((0, item) for item in Reader(self._plans[0], self._states[0])), _nothing
        try:
            ready = _pinned_one_ahead(source, interrupt) if self._pin else map(_unpacked, source)
            for reader, batch, delivery in ready:
                self._note(delivery.damage)
                self._states[reader] = delivery.state
                if batch is not None:
                    self._turn = (reader + 1) % len(self._plans)
                    yield batch
        except WorkerError:
            if self._readers is readers:  # else close() ended it
                raise
        finally:
            if self._readers is readers:
                self.close()

    def position(self, place: Place | None = None) -> dict[str, object]:
        """The place after the last batch that was handed out: JSON values, of this rank alone.

        A loader made with it, and with the same data, batch size, workers, shuffling and ranks, gives
        exactly the batches that would have come; the number of epochs may differ.

        Args:
            place: what `place` gave earlier, to be written instead.
        """
        place = place or self.place()
        return {
            "version": _VERSION,
            "data": self._data,
            **self._made_of,
            "turn": place.turn,
            "readers": [state.to_json() for state in place.states],
        }

    def place(self) -> Place:
        """The same as `position`, at no cost, for this loader only."""
        return Place(self._turn, tuple(self._states))

    def go_back(self, place: Place) -> None:
        """Iterating anew goes on from there; ends the iteration under way, if any."""
        self.close()
        self._turn, self._states = place.turn, list(place.states)

    def close(self) -> None:
        """End the reader processes; iterating again starts new ones."""
        readers, self._readers = self._readers, None
        if readers is not None:
            readers.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _note(self, damage: list[RecordError]) -> None:
        for error in damage:
            if str(error) not in self._noted:
                self._noted.add(str(error))
                self.damage.append(error)

    def _go_to(self, position: Mapping[str, Any]) -> None:
        if position.get("version") != _VERSION:
            raise ConfigError(
                f"the place in the data has version {position.get('version')!r}, wanted {_VERSION}. {_AFRESH}"
            )
        for name, now in self._made_of.items():
            then = position.get(name)
            if then != now:
                raise ConfigError(
                    f"{name}: got {now}, but the run to resume had {then}; the order of the videos "
                    f"depends on it. Give the same value, or {_AFRESH[0].lower()}{_AFRESH[1:]}"
                )
        then, now = position.get("data"), self._data
        if then != now:
            raise ConfigError(
                f"the data is not that of the run to resume: {_count(now)} now, {_count(then)} then"
                f"{_same_count(then, now)}. Give the same files, or {_AFRESH[0].lower()}{_AFRESH[1:]}"
            )
        turn = position.get("turn")
        if not isinstance(turn, int) or not 0 <= turn < len(self._plans):
            raise ConfigError(f"the place in the data has turn {turn!r}: it is damaged. {_AFRESH}")
        self._turn = turn
        self._states = [ReaderState.from_json(values) for values in position["readers"]]


def count_examples(data: Sequence[str], *, skip_damaged: bool = False) -> int:
    """Videos in all files of `data`, without reading the frames; damaged ones may be among them.

    Raises:
        RecordError: the framing of a file is damaged; with `skip_damaged` its count ends there.
        UsageError: no such data.
    """

    def count(path: str) -> int:
        return count_videos(path, on_damage=_ignore if skip_damaged else None)

    with ThreadPoolExecutor(_COUNTING_THREADS) as pool:
        return sum(pool.map(count, expand(data)))


def peek_streams(data: Sequence[str], *, skip_damaged: bool = False) -> tuple[StreamConfig, ...]:
    """The streams of the first records that have frames: names and sizes, wider streams first.

    Looks at some hundred records, since a video may lack a stream that others have.

    Raises:
        DataError: there are none. RecordError, UsageError: as reading.
    """
    sizes: dict[str, int] = {}
    seen = 0
    files = expand(data)
    for path in files:
        for _, record in read_file(path, max_frames=1, on_damage=_ignore if skip_damaged else None):
            found = {name: frames.shape[1] for name, frames in record.streams.items() if len(frames)}
            sizes = found | sizes
            seen += bool(found)
            if seen == _PEEK:
                return _widest_first(sizes)
    if not sizes:
        raise DataError(
            f"{files[0]}{' and others' if len(files) > 1 else ''}: no record has frames; wanted videos with "
            "frame features, as in YouTube-8M's frame-level files."
        )
    return _widest_first(sizes)


def _describe(shards: Sequence[str]) -> dict[str, object]:
    """Count, size and names of the files; names from the folder they share, which may have moved."""
    paths = [os.path.abspath(path) for path in shards]
    folder = os.path.commonpath([os.path.dirname(path) for path in paths])
    try:
        sizes = [os.path.getsize(path) for path in paths]
    except OSError as error:
        raise UsageError(f"{error.filename}: cannot be looked at ({error.strerror or error}).") from error
    names = [os.path.relpath(path, folder) for path in paths]
    digest = hashlib.sha256(json.dumps([names, sizes]).encode()).hexdigest()
    return {"num_files": len(sizes), "num_bytes": sum(sizes), "digest": digest}


def _widest_first(sizes: dict[str, int]) -> tuple[StreamConfig, ...]:
    ordered = sorted(sizes.items(), key=lambda item: (-item[1], item[0]))
    return tuple(StreamConfig(name=name, size=size) for name, size in ordered)


def _take_turns(readers: Readers, count: int, first: int) -> Iterator[tuple[int, Delivery]]:
    """One delivery of each reader in turn; one that has ended is left out from then on."""
    order = deque((first + number) % count for number in range(count))
    while order:
        reader = order.popleft()
        delivery = readers.receive(reader)
        if delivery.batch is not None:
            order.append(reader)
        yield reader, delivery


def _unpacked(item: tuple[int, Delivery]) -> _Ready:
    reader, delivery = item
    return reader, delivery.batch.batch() if delivery.batch else None, delivery


def _pinned_one_ahead(
    source: Iterator[tuple[int, Delivery]], interrupt: Callable[[], None]
) -> Iterator[_Ready]:
    """Copies the next batch to page-locked memory in a thread while the last one is used."""

    def fetch() -> _Ready | None:
        for reader, delivery in source:
            batch = delivery.batch.pin_memory().batch() if delivery.batch else None
            return reader, batch, delivery
        return None

    # A new thread would otherwise use the first GPU, and not this rank's.
    device = torch.cuda.current_device()
    with ThreadPoolExecutor(1, initializer=torch.cuda.set_device, initargs=(device,)) as pool:
        try:
            coming = pool.submit(fetch)
            while (item := coming.result()) is not None:
                coming = pool.submit(fetch)
                yield item
        finally:
            interrupt()


def _check_range(name: str, value: int, least: int) -> None:
    if value < least:
        raise ConfigError(f"{name}: got {value}, wanted {least} or more.")


def _count(described: Any) -> str:
    try:
        return f"{described['num_files']} files of {described['num_bytes']:,} bytes"
    except (KeyError, TypeError, ValueError):
        return "nothing known"


def _same_count(then: Any, now: Any) -> str:
    return ", under other names or of other sizes each" if _count(then) == _count(now) else ""


def _nothing() -> None:
    return None


def _ignore(error: RecordError) -> None:
    del error
