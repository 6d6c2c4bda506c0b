"""Work on many files at once: processes that each have one file at a time.

A process sends how many bytes it has read as it goes, and its result for the file at its end. It ignores
SIGINT, which is for its parent to act on, and ends when its connection closes, however that came about.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple, TypeVar, cast

from nextvlad.errors import NextvladError, UsageError, WorkerError

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_PATIENCE_SECONDS = 2.0
_MOST_WORKERS = 8  # by default; more seldom help, since disks come to their limit

_T = TypeVar("_T")
_OnBytes = Callable[[int], None]
_Work = Callable[[int, str, _OnBytes], _T]


def start_process(target: Callable[..., None], *arguments: Any) -> tuple[Connection, BaseProcess]:
    """Start a process with a connection to it, which it gets as its first argument.

    Spawned: then no process holds another's connection, so each sees at once when its parent is gone.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process: BaseProcess = context.Process(target=target, args=(theirs, *arguments), daemon=True)
    # Blocked while the process starts, so that a Ctrl-C cannot reach it before it ignores it.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()
    return ours, process


def leave_interrupts_to_parent() -> None:
    """Called first by a process: a Ctrl-C is for its parent to act on."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)


def how_it_ended(process: BaseProcess) -> str:
    """Of a process that is dead or about to be, in words: "was killed by signal 9."."""
    process.join(_PATIENCE_SECONDS)
    code = process.exitcode
    how = f"was killed by signal {-code}" if code is not None and code < 0 else f"ended with status {code}"
    memory = " Perhaps the machine ran out of memory." if code == -signal.SIGKILL else ""
    return f"{how}.{memory}"


class _Done(NamedTuple):
    result: Any


def each_file(
    files: Sequence[tuple[int, str]], work: _Work[_T], *, workers: int | None, on_bytes: _OnBytes
) -> Generator[_T, None, None]:
    """Yield the result of each file, as they are done.

    Args:
        files: a number of the caller's own and a path, of each file.
        work: called with number, path and a function to tell how many bytes were read since its last call;
            it must be possible to pickle it and what it returns.
        workers: processes, each with one file at a time; 0 works in this process, as one file does in any
            case; None: one a processor, at most 8.
        on_bytes: called with how many bytes were read since the last call, over all files.

    Raises:
        NextvladError: the first that `work` raises; work on other files is cut off.
        WorkerError: a process died.
        UsageError: fewer than 0 workers.
    """
    if workers is None:
        workers = min(_MOST_WORKERS, num_processors())
    if workers < 0:
        raise UsageError(f"workers: got {workers}, wanted 0 or more.")
    if workers == 0 or len(files) < 2:
        for number, path in files:
            yield work(number, path, on_bytes)
        return
    waiting = deque(files)
    with _start(min(workers, len(files)), work) as processes:
        working: dict[Connection, str] = {}

        def next_file(connection: Connection) -> None:
            if waiting:
                number, path = waiting.popleft()
                working[connection] = path
                connection.send((number, path))

        for connection in processes:
            _talk(processes, working, connection, next_file)
        while working:
            for connection in cast(list[Connection], wait(list(working))):
                message = _talk(processes, working, connection, _receive)
                if isinstance(message, NextvladError):
                    raise message
                if isinstance(message, _Done):
                    del working[connection]
                    _talk(processes, working, connection, next_file)
                    yield cast(_T, message.result)
                elif isinstance(message, int):
                    on_bytes(message)


def num_processors() -> int:
    """That this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextmanager
def _start(count: int, work: _Work[Any]) -> Iterator[dict[Connection, BaseProcess]]:
    """Processes, by the connection to each; none is left when the block ends."""
    processes: dict[Connection, BaseProcess] = {}
    try:
        for _ in range(count):
            connection, process = start_process(_serve, work)
            processes[connection] = process
        yield processes
    finally:
        for connection, process in processes.items():
            connection.close()
            process.kill()  # it holds nothing that needs a clean end
        for process in processes.values():
            process.join()


def _talk(
    processes: dict[Connection, BaseProcess],
    working: dict[Connection, str],
    connection: Connection,
    what: Callable[[Connection], _T],
) -> _T:
    """One exchange with a process, or the news that it is dead."""
    try:
        return what(connection)
    except (EOFError, OSError):
        process = processes[connection]
        raise WorkerError(
            f"{working.get(connection, 'before its first file')}: the process that reads it (pid "
            f"{process.pid}) {how_it_ended(process)} With --workers 0 no such processes are needed."
        ) from None


def _receive(connection: Connection) -> object:
    return connection.recv()


def _serve(connection: Connection, work: _Work[Any]) -> None:
    """The life of a process: one file after the other, until its parent closes or is gone."""
    leave_interrupts_to_parent()
    with suppress(EOFError, ConnectionError):
        while True:
            number, path = connection.recv()
            try:
                connection.send(_Done(work(number, path, connection.send)))
            except NextvladError as error:
                connection.send(error)
