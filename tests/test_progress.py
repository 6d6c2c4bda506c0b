from __future__ import annotations

import pytest

from nextvlad import progress
from nextvlad.progress import ProgressBar


class Clock:
    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(progress, "time", made)
    return made


@pytest.mark.parametrize(
    ("total", "done", "advance", "seconds", "line"),
    [
        (100, 0, 8, 20, "Extracting: 8 of 100 videos, 0.4 videos/s, 0:03:50 left, 2 failed"),
        (100, 50, 10, 40, "Extracting: 60 of 100 videos, 0.25 videos/s, 0:02:40 left, 2 failed"),
        (None, 0, 4000, 20, "Extracting: 4,000 videos, 200 videos/s, 2 failed"),
        (5, 0, 6, 20, "Extracting: 6 of 5 videos, 0.3 videos/s, 2 failed"),
    ],
)
def test_lines_away_from_a_terminal(
    total: int | None,
    done: int,
    advance: int,
    seconds: int,
    line: str,
    clock: Clock,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with ProgressBar("Extracting", total=total, unit="videos", done=done) as bar:
        clock.now += seconds
        bar.advance(advance, "2 failed")
        bar.advance(0)  # too soon after the last
    assert capsys.readouterr().err == f"{line}\n"
