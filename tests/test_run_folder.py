from __future__ import annotations

from pathlib import Path

import pytest

from nextvlad import checkpoint, run_folder
from nextvlad.errors import OutputError
from test_checkpoint import CONFIG, saved


def test_links_and_clean_up(tmp_path: Path) -> None:
    for name in ("step-1", "step-2", "step-3"):
        saved(tmp_path / "checkpoints" / name)
    (tmp_path / "checkpoints" / ".step-4.incomplete-77").mkdir()
    for name in ("step-1", "step-3"):
        run_folder.point(tmp_path / "last", tmp_path / "checkpoints" / name)
    run_folder.point(tmp_path / "best", tmp_path / "checkpoints" / "step-1")
    run_folder.remove_unlinked(tmp_path)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step-1", "step-3"]
    assert checkpoint.resolve(tmp_path) == tmp_path / "best"
    (tmp_path / "best").unlink()
    assert checkpoint.resolve(tmp_path).resolve().name == "step-3"
    moved = tmp_path.with_name("moved")
    tmp_path.rename(moved)
    assert checkpoint.load(moved).config == CONFIG
    moved.rename(tmp_path)


def test_something_in_the_way_of_a_link(tmp_path: Path) -> None:
    folder = saved(tmp_path / "checkpoints" / "step-1")
    (tmp_path / "last").mkdir()
    with pytest.raises(OutputError, match=r"last: cannot be made a link to .*step-1"):
        run_folder.point(tmp_path / "last", folder)


def test_clean_up_leaves_what_is_not_ours(tmp_path: Path) -> None:
    saved(tmp_path / "checkpoints" / "step-00000001")
    (tmp_path / "checkpoints" / "my notes").mkdir()
    run_folder.remove_unlinked(tmp_path)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["my notes"]
