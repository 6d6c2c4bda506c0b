"""Processes that decode clips side by side, and the thread that collects what they give.

Memory is bounded however long a film is: a process waits with its next part until the last one was taken, and
the thread until there is room in its queue. A process that dies, as a decoder may over a damaged file, costs
that one clip; another takes its place.
"""

from __future__ import annotations

import os
import queue
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from types import TracebackType
from typing import NamedTuple, Self, cast

from nextvlad.data.file_processes import how_it_ended, leave_interrupts_to_parent, start_process
from nextvlad.errors import NextvladError, VideoError
from nextvlad.video.clip import ClipPart, read_clip
from nextvlad.video.decode import ReadOptions

_WAITING_PARTS = 8  # of some 5 MB each
_POLL_SECONDS = 0.2
_THREAD_SETTINGS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass(frozen=True, slots=True)
class Job:
    """A clip to decode: its number, and the file or the part of it."""

    number: int
    path: str
    start_seconds: float | None = None
    end_seconds: float | None = None


class Failure(NamedTuple):
    """Why a clip could not be read."""

    reason: str


Event = tuple[int, ClipPart | Failure]
"""Number of a clip, and its next part, or that it has failed; its last part has `is_last`."""


def decode(job: Job, options: ReadOptions) -> Iterator[Event]:
    """The parts of one clip, in this process; a failure is the last of them."""
    try:
        asked = replace(options, start_seconds=job.start_seconds, end_seconds=job.end_seconds)
        for part in read_clip(job.path, asked):
            yield job.number, part
    except VideoError as error:
        yield job.number, Failure(str(error))
    except MemoryError:
        yield job.number, Failure(f"{job.path}: not enough memory to decode it.")
    except (NextvladError, GeneratorExit):
        raise
    except Exception as error:  # of the decoder, over this one file
        yield job.number, Failure(f"{job.path}: cannot be decoded ({type(error).__name__}: {error}).")


class Decoders:
    """Decodes clips in processes of their own; a context manager. Iterate for what they give, in any order.

    Args:
        jobs: the clips, begun in this order.
        options: what to read of them.
        workers: processes, 1 or more.
    """

    def __init__(self, jobs: Sequence[Job], options: ReadOptions, workers: int) -> None:
        self._waiting = deque(jobs)
        self._options = options
        self._workers = min(workers, max(len(jobs), 1))
        self._processes: dict[Connection, BaseProcess] = {}
        self._working: dict[Connection, Job] = {}
        self._events: queue.Queue[Event | BaseException | None] = queue.Queue(_WAITING_PARTS)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._collect, name="nextvlad-collect", daemon=True)

    def __enter__(self) -> Self:
        try:
            for _ in range(self._workers):
                self._start()
        except BaseException:
            self._end()
            raise
        self._thread.start()
        return self

    def __iter__(self) -> Iterator[Event]:
        """Raises NextvladError that is no single clip's fault, as without PyAV."""
        while (event := self._events.get()) is not None:
            if isinstance(event, BaseException):
                raise event
            yield event

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopped.set()
        self._thread.join()
        self._end()

    def _start(self) -> None:
        with _one_thread_each():
            connection, process = start_process(_serve, self._options)
        self._processes[connection] = process

    def _end(self) -> None:
        for connection, process in self._processes.items():
            connection.close()
            process.kill()  # it holds nothing that needs a clean end
        for process in self._processes.values():
            process.join()
        self._processes.clear()

    def _collect(self) -> None:
        """The life of the thread."""
        try:
            for connection in list(self._processes):
                self._next(connection)
            while self._working and not self._stopped.is_set():
                for ready in wait(list(self._working), _POLL_SECONDS):
                    self._receive(cast(Connection, ready))
            self._put(None)
        except BaseException as error:
            self._put(error)

    def _next(self, connection: Connection) -> None:
        if not self._waiting:
            return
        self._working[connection] = self._waiting[0]
        try:
            connection.send(self._waiting[0])
        except OSError:
            self._replace(connection)
            return
        self._waiting.popleft()

    def _receive(self, connection: Connection) -> None:
        job = self._working[connection]
        try:
            event: Event | NextvladError = connection.recv()
        except (EOFError, OSError):
            how = how_it_ended(self._processes[connection])
            self._put((job.number, Failure(f"{job.path}: the process that decoded it {how}")))
            self._replace(connection)
            return
        if isinstance(event, NextvladError):
            raise event
        _, what = event
        if isinstance(what, Failure) or what.is_last:
            del self._working[connection]
            self._next(connection)
        self._put(event)

    def _replace(self, connection: Connection) -> None:
        """Another process for one that died."""
        process = self._processes.pop(connection)
        self._working.pop(connection, None)
        connection.close()
        process.join()
        if self._waiting:
            self._start()
            self._next(next(reversed(self._processes)))

    def _put(self, event: Event | BaseException | None) -> None:
        while not self._stopped.is_set():
            with suppress(queue.Full):
                self._events.put(event, timeout=_POLL_SECONDS)
                return


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """NumPy in a process that starts in this block uses one thread; there is a process for each."""
    before = {name: os.environ.get(name) for name in _THREAD_SETTINGS}
    os.environ.update(dict.fromkeys(_THREAD_SETTINGS, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _serve(connection: Connection, options: ReadOptions) -> None:
    """The life of a process: one clip after the other, until its parent closes or is gone."""
    leave_interrupts_to_parent()
    with suppress(EOFError, ConnectionError):
        while True:
            job: Job = connection.recv()
            try:
                for event in decode(job, options):
                    connection.send(event)
            except NextvladError as error:
                connection.send(error)
