"""A file that the test encodes, read as rows."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("av")

from nextvlad.video.clip import read_clip
from videos import encode, level_of, tone


def test_reading_imports_no_torch() -> None:
    code = "import sys, nextvlad.video.clip; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_rows_of_a_video_with_sound(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.mp4", frames=40, fps=8, sound=tone(5.0))
    (part,) = read_clip(path)
    # Row t shows the frame at its middle: with 8 frames a second, frame 4 of each.
    assert part.pictures.shape == (5, 224, 224, 3)
    assert part.seconds.tolist() == [0.5, 1.5, 2.5, 3.5, 4.5]
    greys = part.pictures.mean(axis=(1, 2, 3))
    np.testing.assert_allclose(greys, [level_of(8 * t + 4) for t in range(5)], atol=4)
    assert part.sound.shape == (5, 128)
    np.testing.assert_allclose(part.level_db, 20 * np.log10(0.5 / np.sqrt(2)), atol=0.2)
    assert part.is_last
    assert part.notes == ()
