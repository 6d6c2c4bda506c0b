"""What a long job has done so far: a hidden file in its folder, one JSON value a line, for one process.

A line is added once what it tells of is whole, so that the job goes on after any end. A last line that was
cut off while it was written is dropped.
"""

from __future__ import annotations

import fcntl
import json
import os
import stat
from contextlib import suppress
from types import TracebackType
from typing import Any, BinaryIO, Self

from nextvlad.errors import DataError, OutputError, UsageError
from nextvlad.files import why

ADVICE = "Give another --out"


class Journal:
    """The file; a context manager.

    Args:
        folder: made if it is not there; removed again, with the file, if nothing was added.
        name: of the file.
        job: what is at work there, as messages say it: "conversion".

    Attributes:
        lines: of an earlier run, without their ends, until something is added.

    Raises:
        OutputError: the folder or the file cannot be made or written.
        UsageError: another process is at work in the folder.
        DataError: the file is no regular file.
    """

    def __init__(self, folder: str, name: str, job: str) -> None:
        self.folder, self.job = folder, job
        self.path = os.path.join(folder, name)
        self.lines: list[bytes] = []
        self._file: BinaryIO | None = None
        self._made_folder = self._is_begun = False

    def __enter__(self) -> Self:
        try:
            self._made_folder = not os.path.exists(self.folder)
            os.makedirs(self.folder, exist_ok=True)
            self._file = open(self.path, "a+b")
        except OSError as error:
            raise OutputError(
                f"{self.folder}: cannot be written to ({why(error)}). Choose another place."
            ) from error
        try:
            if not stat.S_ISREG(os.fstat(self._file.fileno()).st_mode):
                raise DataError(f"{self.path}: is no regular file. {ADVICE}, or remove it.")
            self._lock()
            self._read()
        except BaseException:
            self._file.close()
            raise
        return self

    def add(self, value: dict[str, Any]) -> None:
        """Appends a line; on disk when this returns."""
        file = self._open_file()
        self._is_begun = True
        try:
            file.write(json.dumps(value).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        except OSError as error:
            raise OutputError(
                f"{self.path}: cannot be written ({why(error)}). Free space, and start the same again."
            ) from error

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            if not self._is_begun:
                with suppress(OSError):
                    os.unlink(self.path)
                    if self._made_folder:
                        os.rmdir(self.folder)
            with suppress(OSError):  # of a full disk again, after the error that told of it
                self._file.close()

    def _lock(self) -> None:
        at_work = f"{self.folder}: another {self.job} is at work in this folder. {ADVICE}, or wait for it."
        try:
            fcntl.flock(self._open_file(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(at_work) from None
        except OSError:
            return  # a file system without locks
        try:  # one that began nothing removes its file: then the lock is on a file that is gone
            is_ours = os.path.samestat(os.fstat(self._open_file().fileno()), os.stat(self.path))
        except FileNotFoundError:
            is_ours = False
        if not is_ours:
            raise UsageError(at_work)

    def _read(self) -> None:
        file = self._open_file()
        file.seek(0)
        self.lines = file.read().splitlines(keepends=True)
        if self.lines and not self.lines[-1].endswith(b"\n"):  # cut off while it was written
            file.truncate(sum(map(len, self.lines[:-1])))
            self.lines.pop()
        self._is_begun = bool(self.lines)

    def _open_file(self) -> BinaryIO:
        if self._file is None:
            raise UsageError(f"{self.path}: used outside of its `with` block.")
        return self._file
