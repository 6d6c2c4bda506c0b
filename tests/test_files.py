"""Files that are whole or not there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from nextvlad.errors import OutputError
from nextvlad.files import NewFile


def write(path: Path, data: bytes, then: Callable[[], object] = lambda: None, *, keep: bool = False) -> None:
    with NewFile(path, keep_partial=keep) as file:
        file.write(data)
        then()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_whole_or_untouched(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"before")
    with pytest.raises(ZeroDivisionError):
        write(path, b"half", lambda: 1 // 0)
    assert (names(tmp_path), path.read_bytes()) == (["a"], b"before")
    write(path, b"after")
    assert (names(tmp_path), path.read_bytes()) == (["a"], b"after")


@pytest.mark.parametrize("keep", [False, True])
def test_a_folder_in_the_way_is_told_before_the_work(tmp_path: Path, keep: bool) -> None:
    (tmp_path / "a").mkdir()
    worked: list[int] = []
    with pytest.raises(OutputError, match=r"Is a directory.*nothing of it was left"):
        write(tmp_path / "a", b"", lambda: worked.append(1), keep=keep)
    assert (names(tmp_path), worked) == (["a"], [])


def test_rows_are_kept_that_cannot_be_brought_to_their_place(tmp_path: Path) -> None:
    path = tmp_path / "a"
    with pytest.raises(OutputError, match=r"what was written is in .*a\.partial"):
        write(path, b"a row", path.mkdir, keep=True)  # a folder appears meanwhile
    assert (tmp_path / "a.partial").read_bytes() == b"a row"
