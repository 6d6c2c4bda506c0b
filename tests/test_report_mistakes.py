"""Confusions and examples against slow loops over every video."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import confusion_matrix

from nextvlad import report_mistakes
from nextvlad.report_mistakes import Confusions, Examples


def made_up(seed: int, num_videos: int, num_labels: int, *, single: bool = False) -> tuple[Any, Any]:
    numbers = np.random.default_rng(seed)
    if single:
        truth = np.eye(num_labels, dtype=np.bool_)[numbers.integers(num_labels, size=num_videos)]
    else:
        truth = numbers.random((num_videos, num_labels)) < 0.3
    scores = np.round(numbers.random(truth.shape) * 32) / 32  # many are equal
    return scores.astype(np.float32), truth


def slow_pairs(scores: Any, truth: Any) -> Counter[tuple[int, int]]:
    pairs: Counter[tuple[int, int]] = Counter()
    for row, labels in zip(scores, truth, strict=True):
        named = sorted(range(len(row)), key=lambda label: (-row[label], label))[: int(labels.sum())]
        for missed in np.flatnonzero(labels):
            for taken in named:
                if missed not in named and not labels[taken]:
                    pairs[int(missed), taken] += 1
    return pairs


@given(seed=st.integers(0, 10_000), num_labels=st.integers(1, 9))
@settings(max_examples=50, deadline=None)
def test_confusions_against_loops(seed: int, num_labels: int) -> None:
    scores, truth = made_up(seed, 30, num_labels)
    confusions = Confusions(num_labels)
    for part in (slice(0, 1), slice(1, 12), slice(12, 30)):
        confusions.add(scores[part], truth[part])
    wanted = slow_pairs(scores, truth)
    got = confusions.most_frequent(num_labels**2)
    assert {(pair.missed, pair.taken): pair.videos for pair in got} == wanted
    assert [pair.videos for pair in got] == sorted(wanted.values(), reverse=True)
    for pair in got:
        row = sum(count for (missed, _), count in wanted.items() if missed == pair.missed)
        column = sum(count for (_, taken), count in wanted.items() if taken == pair.taken)
        assert pair.expected == pytest.approx(row * column / sum(wanted.values()))


def test_one_label_a_video_gives_the_confusion_matrix() -> None:
    scores, truth = made_up(4, 200, 6, single=True)
    confusions = Confusions(6)
    confusions.add(scores, truth)
    wanted = confusion_matrix(truth.argmax(1), scores.argmax(1), labels=range(6))
    np.testing.assert_array_equal(confusions.matrix(truth.sum(axis=0)), wanted)
    np.testing.assert_array_equal(confusions.missed, wanted.sum(1) - np.diag(wanted))
    by_hand = sorted(((wanted[2, other], -other) for other in range(6) if other != 2), reverse=True)
    assert confusions.taken_for(2, 3) == [(-other, count) for count, other in by_hand[:3]]


def test_counts_are_the_same_however_often_they_are_put_together(monkeypatch: pytest.MonkeyPatch) -> None:
    scores, truth = made_up(8, 120, 5)
    once = Confusions(5)
    once.add(scores, truth)
    monkeypatch.setattr(report_mistakes, "_FEW_PAIRS", 3)
    often = Confusions(5)
    for video in range(120):
        often.add(scores[video : video + 1], truth[video : video + 1])
    assert often.most_frequent(25) == once.most_frequent(25)


def test_telling_pairs_are_those_beyond_chance() -> None:
    """Label 0 is named for everything; 3 is taken for 4 as no other is."""
    confusions = Confusions(6)
    rows = [(1, 0)] * 30 + [(2, 0)] * 30 + [(3, 0)] * 10 + [(3, 4)] * 9 + [(5, 4)] * 1 + [(5, 2)] * 4
    for missed, taken in rows:
        scores, truth = np.zeros((1, 6), np.float32), np.zeros((1, 6), np.bool_)
        scores[0, taken], truth[0, missed] = 1, True
        confusions.add(scores, truth)
    assert [(pair.missed, pair.taken) for pair in confusions.most_frequent(2)] == [(1, 0), (2, 0)]
    first = confusions.most_telling(6)[0]
    assert (first.missed, first.taken, first.videos) == (3, 4, 9)
    assert first.times_chance == pytest.approx(9 / (19 * 10 / len(rows)))
    assert (5, 2) not in [(pair.missed, pair.taken) for pair in confusions.most_telling(6)]  # four videos


def test_nothing_confused() -> None:
    confusions = Confusions(3)
    confusions.add(np.zeros((0, 3), np.float32), np.zeros((0, 3), np.bool_))
    confusions.add(np.eye(3, dtype=np.float32), np.eye(3, dtype=np.bool_))
    confusions.add(np.ones((2, 3), np.float32), np.zeros((2, 3), np.bool_))  # no labels: nothing is missed
    confusions.add(np.ones((2, 3), np.float32), np.ones((2, 3), np.bool_))
    assert confusions.most_frequent(3) == confusions.most_telling(3) == confusions.taken_for(0, 3) == []


def test_examples_are_the_surest_of_each_label() -> None:
    scores = np.array(
        [
            [0.9, 0.1, 0.0],
            [0.8, 0.3, 0.0],
            [0.7, 0.0, 0.0],
            [0.95, 0.2, 0.1],
            [0.1, 0.6, 0.5],
            [0.4, 0.2, 0.3],
        ],
        np.float32,
    )
    truth = np.array([[1, 0, 0], [1, 0, 0], [1, 0, 0], [0, 1, 1], [0, 0, 1], [0, 0, 0]], np.bool_)
    ids = [f"v{number}" for number in range(6)]
    examples = Examples(a_label=2)
    for start in range(0, 6, 2):
        examples.add(ids[start : start + 2], scores[start : start + 2], truth[start : start + 2])
    assert [example.video_id for example in examples.right(9)] == ["v0", "v1"]  # v2 is the third of its label
    wrong = examples.wrong(9)
    assert [(example.video_id, example.label) for example in wrong] == [("v3", 0), ("v4", 1)]
    assert wrong[0].labels == (1, 2)
    assert wrong[0].best == ((0, pytest.approx(0.95)), (1, pytest.approx(0.2)), (2, pytest.approx(0.1)))
    assert [(example.video_id, example.score) for example in examples.missed(2)] == [
        ("v3", pytest.approx(0.1)),
        ("v4", pytest.approx(0.5)),
    ]
    assert examples.missed(0) == []
    assert len(examples.wrong(1)) == 1


def test_examples_of_two_labels_and_of_no_videos() -> None:
    examples = Examples()
    examples.add([], np.zeros((0, 2), np.float32), np.zeros((0, 2), np.bool_))
    examples.add(["all"], np.array([[0.2, 0.1]], np.float32), np.array([[True, True]]))
    assert [example.labels for example in examples.right(3)] == [(0, 1)]
    assert len(examples.right(3)[0].best) == 2
    assert examples.wrong(3) == []
