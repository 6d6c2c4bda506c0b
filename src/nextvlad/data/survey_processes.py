"""Surveys of many files at once: reader processes, each with one file at a time.

A process sends how many bytes it has read as it goes, and the survey of the file at its end. It ignores
SIGINT, which is for its parent to act on, and ends when its connection closes, however that came about.
"""

from __future__ import annotations

import multiprocessing
import signal
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import TypeVar, cast

from nextvlad.data.survey import Survey, survey_file
from nextvlad.errors import NextvladError, WorkerError

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_PATIENCE_SECONDS = 2.0

_T = TypeVar("_T")


def survey_files(
    paths: Sequence[str], *, num_classes: int | None, workers: int, on_bytes: Callable[[int], None]
) -> Iterator[Survey]:
    """Yield the survey of each file, as they are done.

    Args:
        paths: the files.
        num_classes: as `survey_file`.
        workers: reader processes, each with one file at a time; 0 reads in this process, as one file
            does in any case.
        on_bytes: as `survey_file`, over all files.

    Raises:
        UsageError: a file is missing or may not be read.
        WorkerError: a reader process died.
    """
    if workers == 0 or len(paths) < 2:
        for number, path in enumerate(paths):
            yield survey_file(path, number, num_classes=num_classes, on_bytes=on_bytes)
        return
    waiting = deque(enumerate(paths))
    with _start(min(workers, len(paths)), num_classes) as readers:
        reading: dict[Connection, str] = {}

        def next_file(connection: Connection) -> None:
            if waiting:
                number, path = waiting.popleft()
                reading[connection] = path
                connection.send((number, path))

        for connection in readers:
            _talk(readers, reading, connection, next_file)
        while reading:
            for connection in cast(list[Connection], wait(list(reading))):
                message = _talk(readers, reading, connection, _receive)
                if isinstance(message, NextvladError):
                    raise message
                if isinstance(message, Survey):
                    del reading[connection]
                    _talk(readers, reading, connection, next_file)
                    yield message
                elif isinstance(message, int):
                    on_bytes(message)


@contextmanager
def _start(count: int, num_classes: int | None) -> Iterator[dict[Connection, BaseProcess]]:
    """Reader processes, by the connection to each; none is left when the block ends.

    Spawned: then no process holds another's connection, so each sees at once when its parent is gone.
    """
    context = multiprocessing.get_context("spawn")
    readers: dict[Connection, BaseProcess] = {}
    try:
        for _ in range(count):
            ours, theirs = context.Pipe()
            process: BaseProcess = context.Process(target=_serve, args=(theirs, num_classes), daemon=True)
            # Blocked while the process starts, so that a Ctrl-C cannot reach it before it ignores it.
            before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
            try:
                process.start()
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
                theirs.close()
            readers[ours] = process
        yield readers
    finally:
        for connection, process in readers.items():
            connection.close()
            process.kill()  # it holds nothing that needs a clean end
        for process in readers.values():
            process.join()


def _talk(
    readers: dict[Connection, BaseProcess],
    reading: dict[Connection, str],
    connection: Connection,
    what: Callable[[Connection], _T],
) -> _T:
    """One exchange with a reader process, or the news that it is dead."""
    try:
        return what(connection)
    except (EOFError, OSError):
        process = readers[connection]
        process.join(_PATIENCE_SECONDS)
        code = process.exitcode
        how = (
            f"was killed by signal {-code}" if code is not None and code < 0 else f"ended with status {code}"
        )
        memory = " Perhaps the machine ran out of memory." if code == -signal.SIGKILL else ""
        raise WorkerError(
            f"{reading.get(connection, 'before its first file')}: the process that reads it (pid "
            f"{process.pid}) {how}.{memory} With --workers 0 no such processes are needed."
        ) from None


def _receive(connection: Connection) -> object:
    return connection.recv()


def _serve(connection: Connection, num_classes: int | None) -> None:
    """The life of a reader process: one file after the other, until its parent closes or is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    with suppress(EOFError, ConnectionError):
        while True:
            number, path = connection.recv()
            try:
                connection.send(survey_file(path, number, num_classes=num_classes, on_bytes=connection.send))
            except NextvladError as error:
                connection.send(error)
