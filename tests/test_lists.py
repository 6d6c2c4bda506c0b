"""Metrics of ranked lists: those of dense scores where the lists hold everything, and by hand where not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import reference_metrics as reference
from nextvlad import metrics
from nextvlad.metrics import MetricAccumulator
from nextvlad.metrics.lists import RankedLists


def made_up(seed: int, num_videos: int, num_classes: int, levels: int, share: float) -> tuple[Any, Any]:
    rng = np.random.default_rng(seed)
    scores = np.round(rng.random((num_videos, num_classes)) * levels).astype(np.float32) / np.float32(levels)
    return scores, rng.random((num_videos, num_classes)) < share


small_sets = st.builds(
    made_up,
    st.integers(0, 2**32 - 1),
    st.integers(1, 12),
    st.integers(1, 30),
    st.sampled_from([1, 3, 1000]),
    st.sampled_from([0.0, 0.1, 0.4, 1.0]),
)


def as_lists(scores: Any, seed: int, keep: int | None = None) -> RankedLists:
    """All classes, or the `keep` best of each video, in any order."""
    rng = np.random.default_rng(seed)
    classes = [rng.permutation(np.argsort(-row, kind="stable")[:keep]) for row in scores]
    return RankedLists(
        [order.tolist() for order in classes],
        [row[order].tolist() for row, order in zip(scores, classes, strict=True)],
    )


def labels_of(truth: Any) -> list[Any]:
    return [np.flatnonzero(row)[::-1] for row in truth]


@given(small_sets, st.integers(1, 30), st.integers(0, 99))
@settings(deadline=None, max_examples=80)
def test_the_same_bits_as_dense_scores_where_lists_hold_everything(
    made: tuple[Any, Any], top_k: int, seed: int
) -> None:
    scores, truth = made
    top_k = min(top_k, scores.shape[1])
    dense, lists = (MetricAccumulator(scores.shape[1], top_k=top_k) for _ in range(2))
    dense.update(scores, truth)
    half = len(scores) // 2
    for part in (slice(half), slice(half, None)):
        lists.update_lists(as_lists(scores[part], seed), labels_of(truth[part]))
    assert lists.compute() == dense.compute()


@given(small_sets, st.integers(1, 30), st.integers(0, 99))
@settings(deadline=None, max_examples=60)
def test_lists_of_the_k_best_have_the_gap_of_all(made: tuple[Any, Any], top_k: int, seed: int) -> None:
    """And Hit@1 and mAP@k; the classes that are left out may also be unknown to the accumulator."""
    scores, truth = made
    num_classes = scores.shape[1]
    dense = MetricAccumulator(num_classes, top_k=min(top_k, num_classes), with_map=False)
    dense.update(scores, truth)
    highest = int(np.flatnonzero(truth.any(0)).max(initial=-1)) + 1
    lists = MetricAccumulator.for_lists(highest, top_k=top_k)
    lists.update_lists(as_lists(scores, seed, keep=top_k), labels_of(truth))
    for key in ("num_videos", "gap", "hit_at_one", "map_at_k", "top1"):
        assert lists.compute()[key] == dense.compute()[key], key


@given(small_sets, st.integers(0, 12), st.integers(0, 99))
@settings(deadline=None, max_examples=60)
def test_what_is_not_listed_is_missed(made: tuple[Any, Any], keep: int, seed: int) -> None:
    scores, truth = made
    lists = MetricAccumulator.for_lists(scores.shape[1], top_k=20)
    lists.update_lists(as_lists(scores, seed, keep=keep), labels_of(truth))
    best = [np.argsort(-row, kind="stable")[:keep].tolist() for row in scores]
    labels = [set(np.flatnonzero(row).tolist()) for row in truth]
    shares = [
        sum(c in wanted for c in order[: len(wanted)]) / len(wanted) if wanted else 0.0
        for order, wanted in zip(best, labels, strict=True)
    ]
    result = lists.compute()
    assert result["perr"] == pytest.approx(np.mean(shares), abs=1e-12)
    top5 = [any(c in wanted for c in order[:5]) for order, wanted in zip(best, labels, strict=True)]
    if scores.shape[1] >= 5:
        assert result["top5"] == pytest.approx(np.mean(top5))
    pairs = [
        (float(row[c]), c in wanted)
        for row, order, wanted in zip(scores, best, labels, strict=True)
        for c in order[:20]
    ]
    if truth.any():
        low, high = reference.tie_bounds(pairs, int(truth.sum()))
        assert low - 1e-12 <= result["gap"] <= high + 1e-12


def test_scores_beyond_one_rank_alike() -> None:
    scores, truth = made_up(3, 40, 12, 1000, 0.2)
    results = []
    for factor in (1, 4096):
        lists = MetricAccumulator(12)
        lists.update_lists(as_lists(scores * factor, 0), labels_of(truth))
        results.append(lists.compute())
    assert results[0] == results[1]
    assert results[0]["gap"] == metrics.gap(scores, truth)


def test_labels_that_repeat_and_lists_of_nothing() -> None:
    lists = MetricAccumulator.for_lists(3, top_k=20)
    lists.update_lists(RankedLists([[2], [], []], [[0.5], [], []]), [np.array([2, 2]), np.array([1]), []])
    result = lists.compute()
    assert (result["num_videos"], result["gap"], result["hit_at_one"]) == (3, 0.5, 1 / 3)
    lists.update_lists(RankedLists([], []), [])
    assert lists.compute() == result


def test_merging_lists_and_dense_scores() -> None:
    scores, truth = made_up(5, 20, 8, 10, 0.3)
    whole, dense, lists = (MetricAccumulator(8, top_k=3) for _ in range(3))
    whole.update(scores, truth)
    dense.update(scores[:9], truth[:9])
    lists.update_lists(as_lists(scores[9:], 1), labels_of(truth[9:]))
    dense.merge(lists)
    assert dense.compute() == whole.compute()


def test_map_can_be_given_up() -> None:
    lists = MetricAccumulator(3)
    with pytest.raises(ValueError, match=r"lists: one lacks some of the 3 classes"):
        lists.update_lists(RankedLists([[0, 1]], [[0.5, 0.25]]), [[1]])
    assert lists.num_videos == 0
    lists.leave_out_map()
    lists.update_lists(RankedLists([[0, 1]], [[0.5, 0.25]]), [[1]])
    assert lists.compute()["map"] is None
    lists.leave_out_map()


@pytest.mark.parametrize(
    ("classes", "scores", "message"),
    [
        ([[1]], [[0.5, 0.5]], "differ in length"),
        ([[1]], [], "differ in length"),
        ([[1, 2, 1]], [[0.5, 0.5, 0.1]], "a class twice"),
        ([[-1]], [[0.5]], "got class -1"),
        ([[2**32 - 1]], [[0.5]], "got class 4294967295"),
        ([[1]], [[-0.5]], "got score -0.5"),
        ([[1]], [[float("nan")]], "got score nan"),
        ([[1]], [[1e39]], r"got score 1e\+39"),
    ],
)
def test_lists_that_are_refused(classes: Any, scores: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RankedLists(classes, scores)


def test_labels_that_are_refused() -> None:
    lists, accumulator = RankedLists([[1]], [[0.5]]), MetricAccumulator.for_lists(3, top_k=20)
    for labels, message in [
        ([], "those of 0 videos, wanted 1"),
        ([[3]], "got class 3"),
        ([[-1]], "class -1"),
    ]:
        with pytest.raises(ValueError, match=message):
            accumulator.update_lists(lists, [np.array(of_video) for of_video in labels])
    assert accumulator.num_videos == 0
