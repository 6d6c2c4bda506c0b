"""Every example runs, as a user would run it, and prints what its page says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


def run(script: Path, folder: Path, *arguments: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "error", str(script), *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


@pytest.mark.parametrize("script", EXAMPLES, ids=lambda path: path.name)
def test_example_runs(script: Path, tmp_path: Path) -> None:
    assert run(script, tmp_path).strip()
    assert list(tmp_path.iterdir()) == []


def test_there_are_examples_and_the_readme_lists_each() -> None:
    assert EXAMPLES
    page = (ROOT / "examples" / "README.md").read_text(encoding="utf-8")
    for script in EXAMPLES:
        assert f"({script.name})" in page


def test_one_video_prints_what_its_page_shows(tmp_path: Path) -> None:
    """All lines but those with scores, which hang on the version of torch."""
    page = (ROOT / "docs" / "one_video.md").read_text(encoding="utf-8")
    shown = "".join(re.findall(r"```text\n(.*?)```", page, re.DOTALL)).splitlines()
    shapes = [line for line in shown if not line.startswith(("predict", "GAP", "Hit@1"))]
    printed = run(ROOT / "examples" / "one_video.py", tmp_path).splitlines()
    assert shapes == printed[: len(shapes)]
    assert len(shapes) == 8
    scores = printed[len(shapes) :]
    assert [line.split()[0] for line in scores] == ["predict"] * 4 + ["GAP", "Hit@1"]


def test_one_video_takes_a_checkpoint(tmp_path: Path) -> None:
    from nextvlad import NeXtVLADConfig, StreamConfig, build_model
    from nextvlad.checkpoint import save

    config = NeXtVLADConfig(
        streams=(StreamConfig(name="lpc", size=12),), num_classes=9, clusters=2, groups=2, hidden_size=8
    )
    save(tmp_path / "model", build_model(config))
    printed = run(ROOT / "examples" / "one_video.py", tmp_path, "model")
    assert "describe  [4, 24] torch.float32" in printed
