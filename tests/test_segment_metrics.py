from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import reference_metrics as reference
from nextvlad import metrics
from nextvlad.metrics import SegmentAccumulator, per_class_segment_average_precision, segment_map
from nextvlad.metrics.segments import precision_of_ranking

# (score, state) of a segment for one class; state 0: not rated, 1: rated and not there, 2: there.
pair = st.tuples(st.sampled_from([0.0, 0.25, 0.5, 1.0]), st.integers(0, 2))


def arrays(pairs: list[tuple[float, int]]) -> tuple[Any, Any, Any]:
    scores = np.array([[score] for score, _ in pairs])
    states = np.array([[state] for _, state in pairs])
    return scores, states == 2, states > 0


def made_up(segments: int = 60, classes: int = 7, seed: int = 0, grid: int = 9) -> tuple[Any, Any, Any]:
    """Scores with many ties, labels, and about a third rated; class 2 has no positive, class 5 no rating."""
    numbers = np.random.default_rng(seed)
    scores = numbers.integers(0, grid, (segments, classes)).astype(np.float32) / grid
    rated = numbers.random((segments, classes)) < 0.35
    labels = rated & (numbers.random((segments, classes)) < 0.4)
    labels[:, 2] = labels[:, 5] = rated[:, 5] = False
    return scores, labels, rated


@settings(max_examples=150, deadline=None)
@given(pairs=st.lists(pair, min_size=1, max_size=6), max_segments=st.integers(1, 7))
def test_one_class_by_trying_all_orders(pairs: list[tuple[float, int]], max_segments: int) -> None:
    scores, labels, rated = arrays(pairs)
    expected = reference.segment_average_precision(
        scores[:, 0].tolist(), labels[:, 0].tolist(), rated[:, 0].tolist(), max_segments
    )
    value = per_class_segment_average_precision(scores, labels, rated, max_segments=max_segments)
    np.testing.assert_allclose(value, [expected], rtol=1e-12)


def test_the_mean_is_over_classes_with_a_positive() -> None:
    scores, labels, rated = made_up()
    per_class = per_class_segment_average_precision(scores, labels, rated)
    assert np.isnan(per_class).tolist() == [False, False, True, False, False, True, False]
    for index in (0, 1, 3, 4, 6):
        judged = rated[:, index]
        pairs = list(zip(scores[judged, index].tolist(), labels[judged, index].tolist(), strict=True))
        assert per_class[index] == pytest.approx(
            reference.average_precision(pairs, int(labels[:, index].sum())), rel=1e-12
        )
    assert segment_map(scores, labels, rated) == pytest.approx(np.nanmean(per_class))
    assert np.isnan(segment_map(scores, np.zeros_like(labels), rated))


def test_where_everything_is_rated_and_fits_it_is_map() -> None:
    scores, labels, _ = made_up()
    assert segment_map(scores, labels) == metrics.mean_average_precision(scores, labels)


def test_the_list_is_cut_before_unrated_segments_leave_it() -> None:
    scores = [[0.9], [0.8], [0.7], [0.6]]
    labels, rated = [[0], [1], [0], [1]], [[0], [1], [1], [1]]
    assert segment_map(scores, labels, rated) == pytest.approx((1 + 2 / 3) / 2)
    assert segment_map(scores, labels, rated, max_segments=2) == 0.5  # the unrated best one takes a place
    assert segment_map(scores, labels, rated, max_segments=1) == 0.0


def test_a_large_group_of_equal_scores_at_the_cut() -> None:
    """Against the mean of many random orders."""
    numbers = np.random.default_rng(1)
    states = numbers.integers(0, 3, 400)
    scores = np.where(np.arange(400) < 30, 0.9, 0.5)
    labels, rated = states == 2, states > 0
    values = []
    for _ in range(2000):
        order = np.concatenate([numbers.permutation(30), 30 + numbers.permutation(370)])[:100]
        kept = labels[order][rated[order]]
        values.append(precision_of_ranking(kept, int(labels.sum())))
    value = segment_map(scores[:, None], labels[:, None], rated[:, None], max_segments=100)
    assert value == pytest.approx(np.mean(values), abs=5 * np.std(values) / np.sqrt(2000))


def test_ranking() -> None:
    assert precision_of_ranking(np.array([False, True, True]), 2) == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert precision_of_ranking(np.array([], bool), 3) == 0.0
    assert precision_of_ranking(np.array([False]), 1) == 0.0
    assert np.isnan(precision_of_ranking(np.array([False]), 0))


@pytest.mark.parametrize("batch_size", [1, 7, 60])
@pytest.mark.parametrize("max_segments", [5, 100_000])
def test_batches_give_the_same_bits(batch_size: int, max_segments: int) -> None:
    scores, labels, rated = made_up()
    whole, parts = (SegmentAccumulator(7, top_k=3, max_segments=max_segments) for _ in range(2))
    losses = np.random.default_rng(0).random(60)
    whole.update(scores, labels, rated, losses=losses)
    for start in range(0, 60, batch_size):
        part = slice(start, start + batch_size)
        parts.update(torch.tensor(scores[part]), torch.tensor(labels[part]), torch.tensor(rated[part]),
                     losses=losses[part])  # fmt: skip
    assert parts.compute() == whole.compute()
    precisions = whole.per_class_average_precision()
    for index in (0, 1, 3, 4, 6):
        judged = rated[:, [index]]
        alone = per_class_segment_average_precision(
            scores[:, [index]][judged][:, None],
            labels[:, [index]][judged][:, None],
            max_segments=max_segments,
        )
        assert precisions[index] == alone[0]


def test_merging_in_any_order_and_split() -> None:
    scores, labels, rated = made_up()
    whole = SegmentAccumulator(7)
    whole.update(scores, labels, rated)
    first, second = SegmentAccumulator(7), SegmentAccumulator(7)
    first.update(scores[40:], labels[40:], rated[40:])
    second.update(scores[:40], labels[:40], rated[:40])
    for piece in reversed(list(second.pieces())):
        first.add_piece(piece)
    first.merge(SegmentAccumulator(7))
    assert first.compute() == whole.compute()
    assert first.num_segments == 60
    with pytest.raises(ValueError, match=r"max_segments\] = \[7, 7, 5\], wanted \[7, 7, 100000\]"):
        first.merge(SegmentAccumulator(7, max_segments=5))


def test_other_metrics_are_those_of_masked_scores() -> None:
    scores, labels, rated = made_up(grid=1000)
    accumulator = SegmentAccumulator(7, top_k=3)
    accumulator.update(scores, labels, rated)
    result = accumulator.compute()
    masked = scores * rated
    assert result["num_segments"] == result["num_videos"] == 60
    assert result["num_ratings"] == rated.sum()
    assert result["gap"] == metrics.gap(masked, labels, top_k=3)
    assert result["hit_at_one"] == metrics.hit_at_one(masked, labels)
    assert result["perr"] == metrics.perr(masked, labels)
    assert result["map_at_k"] == metrics.mean_average_precision_at(masked, labels, 3)
    assert result["segment_map"] == result["map"] == segment_map(scores, labels, rated)
    assert result["loss"] is None
    cut = SegmentAccumulator(7, max_segments=3)
    cut.update(scores, labels, rated)
    assert cut.compute()["segment_map"] < cut.compute()["map"] == result["map"]
    cut.close()


def test_nothing_seen() -> None:
    result = SegmentAccumulator(3).compute()
    assert (result["num_segments"], result["num_ratings"]) == (0, 0)
    assert result["segment_map"] is result["map"] is None


@pytest.mark.parametrize(
    ("rated", "message"),
    [
        ([[1, 1]], r"rated: got shape \(1, 2\), wanted that of labels, \(2, 2\)"),
        ([[1, 2], [1, 1]], r"rated\[0, 1\]: got 2, wanted bool, or 0 and 1"),
        ([[1, 1], [0, 1]], r"rated\[1, 0\]: got 0, wanted True where a label is"),
    ],
)
def test_ratings_that_cannot_be(rated: Any, message: str) -> None:
    scores, labels = [[0.5, 0.5], [0.5, 0.5]], [[0, 0], [1, 0]]
    with pytest.raises(ValueError, match=message):
        segment_map(scores, labels, rated)
    accumulator = SegmentAccumulator(2)
    with pytest.raises(ValueError, match=message):
        accumulator.update(scores, labels, rated)
    assert accumulator.num_segments == 0


def test_k_below_one() -> None:
    with pytest.raises(ValueError, match="max_segments: got 0, wanted 1 or more"):
        segment_map([[0.5]], [[1]], max_segments=0)
    with pytest.raises(ValueError, match="max_segments: got 0"):
        SegmentAccumulator(2, max_segments=0)
