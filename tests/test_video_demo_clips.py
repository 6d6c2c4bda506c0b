"""The clips of `nextvlad demo --video`: they decode, and hold what their labels say, when they say."""

from __future__ import annotations

import csv
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("PIL")
av = pytest.importorskip("av")

from nextvlad.video_demo_clips import (  # noqa: E402
    FORMATS,
    HEARD,
    VISUAL,
    ClipPlan,
    Event,
    encode,
    make_clips,
    picture_times,
    plan_clips,
    render_pictures,
    render_sound,
)

RATE_HZ = 16_000


def plan(
    *events: Event, seconds: float = 4.0, seed: int = 5, silent: bool = False, number: int = 0
) -> ClipPlan:
    return ClipPlan(f"clip{FORMATS[number].suffix}", "train", seconds, events, seed, silent, FORMATS[number])


def event(label: str, seed: int = 7) -> Event:
    return Event(label, 1.0, 3.0, seed)


def test_plans_have_every_label_about_equally_often_and_only_part_of_the_time() -> None:
    plans = plan_clips(num_train=60, num_valid=20, num_test=24, seed=3)
    for split in ("train", "valid", "test"):
        counts = Counter(label for one in plans if one.split == split for label in one.labels)
        assert set(counts) == {*VISUAL, *HEARD}
        for kind in (VISUAL, HEARD):
            shares = [counts[label] for label in kind]
            assert max(shares) - min(shares) <= 2
    for one in plans:
        assert one.labels
        for item in one.events:
            assert 0 <= item.start_seconds < item.end_seconds <= one.seconds
            assert 2.35 < item.end_seconds - item.start_seconds < 5.1 < one.seconds
    assert any(one.silent for one in plans)
    assert {len(one.labels) for one in plans} >= {1, 2, 3}


def test_no_two_clips_share_their_chance() -> None:
    plans = plan_clips(num_train=30, num_valid=10, num_test=10)
    assert len({one.name for one in plans}) == len({one.seed for one in plans}) == 50
    seeds = [item.seed for one in plans for item in one.events]
    assert len(set(seeds)) == len(seeds)


def test_the_seed_decides_the_plan() -> None:
    sizes = {"num_train": 5, "num_valid": 2, "num_test": 2}
    assert plan_clips(**sizes, seed=1) == plan_clips(**sizes, seed=1) != plan_clips(**sizes, seed=2)


@pytest.mark.parametrize("label", VISUAL)
def test_a_subject_is_seen_while_it_is_stated(label: str) -> None:
    with_it, without = plan(event(label)), plan()
    shown = [
        float((one != other).any(axis=2).mean())
        for one, other in zip(render_pictures(with_it), render_pictures(without), strict=True)
    ]
    for seconds, share in zip(picture_times(with_it), shown, strict=True):
        if 1.0 <= seconds < 3.0:
            assert share > 0.02, f"{label} at {seconds} s covers {share:.1%}"
        else:
            assert share == 0.0


@pytest.mark.parametrize("label", HEARD)
def test_a_sound_is_heard_while_it_is_stated(label: str) -> None:
    difference = render_sound(plan(event(label)), RATE_HZ) - render_sound(plan(), RATE_HZ)
    assert difference.shape == (4 * RATE_HZ,)
    assert difference.dtype == np.float32
    a_second = np.sqrt((difference.reshape(4, RATE_HZ) ** 2).mean(axis=1))
    assert a_second[[0, 3]].tolist() == [0.0, 0.0]
    assert (a_second[[1, 2]] > 0.01).all(), a_second


@pytest.mark.parametrize("label", [*VISUAL, *HEARD])
def test_the_same_label_looks_and_sounds_different_in_another_clip(label: str) -> None:
    one, other = (plan(event(label, seed), seed=5) for seed in (7, 8))
    if label in VISUAL:
        pictures = [np.stack(list(render_pictures(each)))[10:20] for each in (one, other)]
        assert (pictures[0] != pictures[1]).any(axis=3).mean() > 0.02
    else:
        sounds = [render_sound(each, RATE_HZ) for each in (one, other)]
        assert np.abs(sounds[0] - sounds[1]).max() > 0.05


@pytest.mark.parametrize("number", range(len(FORMATS)), ids=[entry.suffix for entry in FORMATS])
def test_files_decode_to_what_was_drawn(number: int, tmp_path: Path) -> None:
    one = plan(event("fish"), event("siren"), number=number)
    encode(one, tmp_path / one.name)
    drawn = list(render_pictures(one))
    with av.open(str(tmp_path / one.name)) as container:
        assert container.streams.video[0].codec_context.name in ("h264", "vp9", "mpeg4")
        pictures = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(pictures) == len(drawn)
    errors = [np.abs(a.astype(int) - b).mean() for a, b in zip(pictures, drawn, strict=True)]
    assert max(errors) < 16  # levels of 255
    with av.open(str(tmp_path / one.name)) as container:
        resampler = av.AudioResampler(format="flt", layout="mono", rate=RATE_HZ)
        frames = [out for frame in container.decode(audio=0) for out in resampler.resample(frame)]
    heard = np.concatenate([frame.to_ndarray()[0] for frame in frames])
    assert len(heard) / RATE_HZ == pytest.approx(4.0, abs=0.2)
    drawn_sound = render_sound(one, RATE_HZ)
    loud = [np.sqrt((part[: 4 * RATE_HZ] ** 2).mean()) for part in (heard, drawn_sound)]
    assert loud[0] == pytest.approx(loud[1], rel=0.2)
    middle, start = heard[int(1.3 * RATE_HZ) : int(2.7 * RATE_HZ)], heard[: int(0.7 * RATE_HZ)]
    assert np.abs(middle).mean() > 1.2 * np.abs(start).mean()


def test_a_silent_clip_has_no_sound_track(tmp_path: Path) -> None:
    encode(plan(event("car"), silent=True, seconds=1.0), tmp_path / "a.mp4")
    with av.open(str(tmp_path / "a.mp4")) as container:
        assert len(container.streams.audio) == 0
        assert len(container.streams.video) == 1


def test_files_labels_and_truth_agree_whoever_encodes(tmp_path: Path) -> None:
    plans = [
        replace(
            one, seconds=1.0, events=tuple(replace(e, start_seconds=0.0, end_seconds=1.0) for e in one.events)
        )
        for one in plan_clips(num_train=5, num_valid=1, num_test=1)
    ]
    for workers in (0, 2):
        make_clips(plans, tmp_path / str(workers), workers=workers)
    first, second = tmp_path / "0", tmp_path / "2"
    names = sorted(path.name for path in first.iterdir())
    assert names == sorted([*(one.name for one in plans), "labels.csv", "truth.json"])
    for name in names:
        assert (first / name).read_bytes() == (second / name).read_bytes(), name
    with (first / "labels.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    truth = json.loads((first / "truth.json").read_text(encoding="utf-8"))
    assert [row["path"] for row in rows] == [one.name for one in plans] == list(truth)
    for row, one in zip(rows, plans, strict=True):
        assert row["labels"].split(";") == list(one.labels)
        assert row["split"] == one.split
        assert [entry["label"] for entry in truth[one.name]] == [item.label for item in one.events]
