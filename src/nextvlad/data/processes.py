"""Reader processes: each runs one `Reader` and sends its deliveries to the process that started it.

A batch is written straight into anonymous shared memory, whose descriptor goes through a socket; the
receiver maps it, so the frames are never copied on the way. It is not in /dev/shm, so a container
needs no larger one. A process makes at most `prefetch` batches ahead of the last one taken. Memory that the
receiver has no part of any more is used again: new pages cost more than what is written on them.

No process outlives its parent, however that ends: it stops when its socket closes. It ignores SIGINT
and SIGTERM, since a signal to the group is for the parent to act on, who may want one more batch.

Why not torch's DataLoader: if a worker dies it raises RuntimeError from a SIGCHLD handler, in the
middle of whatever the caller does; an exception of a worker arrives as another one of the same type;
its workers take up to five seconds to notice that the parent is gone. torchdata's StatefulDataLoader
is built on the same processes, and adds a position of its own to each item where ours is part of it.
"""

from __future__ import annotations

import contextlib
import mmap
import multiprocessing
import os
import signal
import socket
import sys
import tempfile
import threading
import time
import traceback
import warnings
import weakref
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from multiprocessing.util import Finalize
from typing import NamedTuple

import torch
from torch import Tensor

from nextvlad.data.batch import PackedBatch, Part
from nextvlad.data.reader import Delivery, Reader, ReaderPlan, ReaderState
from nextvlad.errors import NextvladError, RecordError, WorkerError, is_out_of_memory

_GO_ON = b"+"
_DESCRIPTOR = b"d"
_ONCE = -1  # number of a memory that is not used again
_IN_USE = 3  # batches the receiver may work with while all prefetched ones wait
_SPARE = 4  # a memory is made larger than asked for by a part of so many
_PATIENCE_SECONDS = 2.0
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class _Message(NamedTuple):
    """What goes through the socket; the descriptor of the memory follows if there is a batch."""

    # Number of the memory, its size, then as PackedBatch.
    batch: tuple[int, int, list[str], int, list[Part], bool] | None
    state: ReaderState
    damage: list[RecordError]


class Readers:
    """The reader processes of one loader.

    Args:
        plans: one a process.
        states: likewise, where each goes on.
        start_method: "fork" or "spawn"; None picks (see `pick_start_method`).
        prefetch: batches a process may have ready, 1 or more.
    """

    def __init__(
        self,
        plans: list[ReaderPlan],
        states: list[ReaderState],
        *,
        start_method: str | None,
        prefetch: int,
    ) -> None:
        method = start_method or pick_start_method()
        self._workers: list[_Worker] = []
        self._receiving = threading.Lock()
        # Also runs when the interpreter ends, before multiprocessing waits for its children.
        self._finalize = Finalize(self, _stop, args=(self._workers,), exitpriority=100)
        try:
            for plan, state in zip(plans, states, strict=True):
                self._workers.append(_start(method, plan, state, prefetch))
        except BaseException:
            self.stop()
            raise

    def receive(self, reader: int) -> Delivery:
        """The next delivery of one reader; waits for it.

        Raises:
            NextvladError: what the reader raised.
            WorkerError: the process is gone.
        """
        with self._receiving:
            if not self._workers:
                raise WorkerError("the reader processes were ended by close(); iterate the loader anew.")
            return self._receive(self._workers[reader], reader)

    def _receive(self, worker: _Worker, reader: int) -> Delivery:
        try:
            wait([worker.connection, worker.process.sentinel])
            if not worker.connection.poll():
                raise EOFError
            message = worker.connection.recv()
            if isinstance(message, NextvladError):
                raise message
            batch = None
            if message.batch is not None:
                number, size, *what = message.batch
                memory = _receive_memory(worker.socket, size)
                if number != _ONCE:
                    weakref.finalize(memory, worker.unused.append, number).atexit = False
                batch = PackedBatch(torch.frombuffer(memory, dtype=torch.uint8), *what)
                # What was let go of in other threads meanwhile is told the next time.
                unused = [worker.unused.popleft() for _ in range(len(worker.unused))]
                worker.connection.send_bytes(_GO_ON + bytes(unused))
            return Delivery(batch, message.state, message.damage)
        except (EOFError, OSError) as error:
            if is_out_of_memory(error):  # here, and not in the reader
                raise MemoryError("a batch of a reader process cannot be mapped") from error
            raise _obituary(worker, reader) from None

    def interrupt(self) -> None:
        """Tell all processes to end; a `receive` under way in another thread ends too."""
        _interrupt(self._workers)

    def stop(self) -> None:
        """End all processes, and wait until they have."""
        self.interrupt()
        with self._receiving:
            self._finalize()


@dataclass(frozen=True, slots=True)
class _Worker:
    process: BaseProcess
    connection: Connection
    socket: socket.socket  # the connection's, to receive descriptors
    method: str
    unused: deque[int] = field(default_factory=deque)  # numbers of memories of which nobody has any part


def pick_start_method() -> str:
    """Pick fork on Linux, since it takes milliseconds, but not once CUDA runs; spawn elsewhere."""
    cuda_runs: bool = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return "fork" if sys.platform == "linux" and not cuda_runs else "spawn"


def _start(method: str, plan: ReaderPlan, state: ReaderState, prefetch: int) -> _Worker:
    context: BaseContext = multiprocessing.get_context(method)
    ours, theirs = context.Pipe()
    process = context.Process(  # type: ignore[attr-defined]
        target=_serve,
        args=(plan, state, prefetch, theirs, ours if method == "fork" else None),
        name=f"nextvlad-reader-{plan.reader}",
        daemon=True,
    )
    # Blocked while the process starts, so that a Ctrl-C cannot reach it before it ignores them.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        with warnings.catch_warnings():
            # Python 3.12 warns of fork in a process with threads; a reader takes no lock of theirs.
            warnings.filterwarnings("ignore", message=".*fork", category=DeprecationWarning)
            process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()
    return _Worker(process, ours, socket.socket(fileno=os.dup(ours.fileno())), method)


def _interrupt(workers: list[_Worker]) -> None:
    for worker in workers:
        with contextlib.suppress(OSError):
            worker.socket.shutdown(socket.SHUT_RDWR)


def _stop(workers: list[_Worker]) -> None:
    _interrupt(workers)
    patience = time.monotonic() + _PATIENCE_SECONDS
    for worker in workers:
        worker.process.join(max(0.0, patience - time.monotonic()))
        if worker.process.is_alive():
            worker.process.kill()
            worker.process.join()
        worker.connection.close()
        worker.socket.close()
    workers.clear()


def _obituary(worker: _Worker, reader: int) -> WorkerError:
    process = worker.process
    process.join(_PATIENCE_SECONDS)
    code = process.exitcode
    if code is not None and code < 0:
        number = signal.Signals(-code).name if -code in set(signal.Signals) else "unknown"
        how = f"was killed by signal {-code} ({number})"
    else:
        how = f"ended with exit status {code}"
    why = ""
    if code == -signal.SIGKILL:
        why = " Most likely the machine or the container ran out of memory: lower data.shuffle_buffer."
    elif code == 1 and worker.method == "spawn":
        why = " If a script of yours starts it, the script needs an `if __name__ == '__main__':` block."
    return WorkerError(
        f"reader process {reader} (pid {process.pid}) {how}.{why} Reading in the process of training itself, "
        "with data.workers=0, needs no such processes."
    )


def _serve(
    plan: ReaderPlan, state: ReaderState, prefetch: int, connection: Connection, inherited: Connection | None
) -> None:
    """The life of a reader process."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    torch.set_num_threads(1)
    if inherited is not None:
        inherited.close()  # else it would never see its parent's end close
    # The parent closed its end, or is gone: an end, not an error.
    with contextlib.suppress(EOFError, ConnectionError):
        try:
            _send_all(plan, state, prefetch, connection)
        except (EOFError, ConnectionError):
            raise
        except NextvladError as error:
            connection.send(error)
        except Exception as error:
            what = f"failed unexpectedly.\n{traceback.format_exc()}"
            if is_out_of_memory(error):
                what = "ran out of memory. Use a smaller batch, fewer workers or a smaller shuffle buffer."
            connection.send(WorkerError(f"reader process {plan.reader} {what}"))
        while True:  # the parent may not have taken the last batch yet
            connection.recv_bytes()


def _send_all(plan: ReaderPlan, state: ReaderState, prefetch: int, connection: Connection) -> None:
    memory = _SharedMemory(prefetch)
    with socket.socket(fileno=os.dup(connection.fileno())) as carrier:
        for delivery in Reader(plan, state, memory.allocate):
            while prefetch == 0 or connection.poll():
                memory.reuse(connection.recv_bytes()[len(_GO_ON) :])
                prefetch += 1  # the parent took one
            batch = delivery.batch
            shape = None
            if batch is not None:
                shape = (
                    memory.number,
                    batch.buffer.numel(),
                    batch.video_ids,
                    batch.num_classes,
                    batch.parts,
                    batch.has_rated,
                )
            connection.send(_Message(shape, delivery.state, delivery.damage))
            if batch is not None:
                memory.send(carrier)
                prefetch -= 1


class _SharedMemory:
    """Memory for one batch at a time, and its way to the parent.

    Args:
        prefetch: batches that wait to be taken; so many memories, and a few that the parent works with, are
            kept to be used again. What goes beyond is used once.

    Attributes:
        number: of the memory that `allocate` gave last, or `_ONCE`.
    """

    def __init__(self, prefetch: int) -> None:
        most = min(prefetch + _IN_USE, 255)  # a number travels as a byte
        self._kept: dict[int, tuple[int, Tensor]] = {}  # number -> descriptor, mapped
        self._unmade = set(range(most))
        self._unused: list[int] = []
        self._descriptor = -1
        self.number = _ONCE

    def allocate(self, size: int) -> Tensor:
        """[size] uint8; all of it lives as long as somebody has it mapped.

        If what was allocated before has not been sent, it was too small. What is in it is still to be moved,
        so it is used again after this, and not for this.
        """
        descriptor, number = self._descriptor, self.number
        memory = self._take(size)
        if number != _ONCE:
            self._unused.append(number)
        elif descriptor >= 0:
            os.close(descriptor)
        return memory

    def _take(self, size: int) -> Tensor:
        while self._unused:
            # The last that came back: the most of it is still in the processor's cache.
            number = self._unused.pop()
            self._descriptor, memory = self._kept[number]
            if len(memory) >= size:
                self.number = number
                return memory[:size]
            del self._kept[number]
            os.close(self._descriptor)
            self._unmade.add(number)
        self._descriptor = _anonymous_file()
        self.number = self._unmade.pop() if self._unmade else _ONCE
        # Pages nobody writes to are never there, and batches grow a little for some time.
        room = size if self.number == _ONCE else size + size // _SPARE
        os.ftruncate(self._descriptor, room)
        memory = torch.frombuffer(mmap.mmap(self._descriptor, room), dtype=torch.uint8)
        if self.number != _ONCE:
            self._kept[self.number] = self._descriptor, memory
        return memory[:size]

    def send(self, carrier: socket.socket) -> None:
        """Hand over what `allocate` gave last."""
        socket.send_fds(carrier, [_DESCRIPTOR], [self._descriptor])
        if self.number == _ONCE:
            os.close(self._descriptor)
        self._descriptor, self.number = -1, _ONCE

    def reuse(self, numbers: Iterable[int]) -> None:
        """The parent has no part of these any more."""
        self._unused.extend(numbers)


def _anonymous_file() -> int:
    if sys.platform == "linux":
        return os.memfd_create("nextvlad-batch")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def _receive_memory(carrier: socket.socket, size: int) -> mmap.mmap:
    data, descriptors, _, _ = socket.recv_fds(carrier, len(_DESCRIPTOR), 1)
    if data != _DESCRIPTOR or not descriptors:
        raise EOFError
    try:
        return mmap.mmap(descriptors[0], size)
    finally:
        os.close(descriptors[0])
