"""Files that are whole or not there: written aside, renamed when finished; and why others do not open."""

from __future__ import annotations

import errno
import json
import os
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from nextvlad.errors import OutputError, UsageError


def write_json(path: Path, values: object) -> None:
    """A JSON file, written aside and renamed; into a pipe or a device (/dev/stdout) directly.

    Raises:
        OutputError: it cannot be written; what was there before is untouched.
    """
    text = json.dumps(values, indent=2) + "\n"
    aside = path.with_name(f".{path.name}.incomplete")
    try:
        if path.exists() and not path.is_dir() and (not path.is_file() or path.is_relative_to("/dev")):
            with path.open("a", encoding="utf-8") as file:
                file.write(text)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        aside.write_text(text, encoding="utf-8")
        aside.replace(path)
    except OSError as error:
        with suppress(OSError):
            aside.unlink()
        raise OutputError(f"{path}: cannot be written ({why(error)}). Choose another place.") from error


def why(error: OSError) -> str:
    """The system's reason, where it is clear without the path that it is about."""
    if isinstance(error, FileExistsError | NotADirectoryError):
        return "a file is where a folder should be"
    return error.strerror or str(error)


def cannot_open(name: str, error: OSError) -> UsageError:
    """What to tell of a file to read that does not open."""
    if isinstance(error, IsADirectoryError):
        return UsageError(f"{name}: is a directory, wanted a file; name the files in it.")
    if isinstance(error, FileNotFoundError):
        return UsageError(f"{name}: no such file. Check the path.")
    return UsageError(f"{name}: cannot be opened ({why(error)}).")


class NewFile:
    """A file to write, of bytes; a context manager.

    They go to a hidden file beside `path`, renamed when the block ends without an exception and removed
    otherwise, so `path` is always whole or untouched.

    Args:
        path: of the file.
        keep_partial: what was written stays in `path`.partial when the block ends with an exception, or when
            the file cannot be finished; for files of rows, each of which was work.

    Raises:
        OutputError: the file cannot be written.
    """

    def __init__(self, path: str | os.PathLike[str], *, keep_partial: bool = False) -> None:
        self.path = os.fspath(path)
        self._keep = keep_partial
        self._aside = f"{self.path}.partial" if keep_partial else aside_of(self.path, os.getpid())
        self._file: BinaryIO | None = None

    def __enter__(self) -> Self:
        try:
            if os.path.isdir(self.path):  # renaming would fail, after all the work
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
            self._file = open(self._aside, "wb")
        except OSError as error:
            raise self._failure(error) from error
        return self

    def write(self, data: bytes) -> None:
        """Append bytes."""
        if self._file is None:
            raise UsageError(f"{self.path}: write() outside of the `with` block.")
        try:
            self._file.write(data)
        except OSError as error:
            raise self._failure(error) from error

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._finish()
        finally:
            if self._file is not None:
                # Closing may fail again on a full disk; the first error is the one to tell.
                with suppress(OSError):
                    self._file.close()
                self._file = None
            if not self._keep:
                with suppress(OSError):
                    os.unlink(self._aside)

    def _finish(self) -> None:
        if self._file is None:
            return
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            os.replace(self._aside, self.path)
        except OSError as error:
            raise self._failure(error) from error

    def _failure(self, error: OSError) -> OutputError:
        kept = self._keep and self._file is not None
        left = f"what was written is in {self._aside}" if kept else "nothing of it was left there"
        return OutputError(
            f"{self.path}: cannot be written ({error.strerror or error}). "
            f"Free space or give another place; {left}."
        )


def aside_of(path: str, process: int | str) -> str:
    """Where `NewFile` of a process writes before `path` is whole; "*" for any process."""
    folder, name = os.path.split(path)
    return os.path.join(folder, f".{name}.{process}.partial")
