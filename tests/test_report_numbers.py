"""Calibration and thresholds against scikit-learn, SciPy and slow loops."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest
from sklearn.calibration import calibration_curve
from sklearn.metrics import precision_recall_curve

from nextvlad.metrics.ranking import score_keys
from nextvlad.report_numbers import NUM_BINS, Cut, Reliability, ScoreGrid, Thresholds


def made_up(seed: int, num_videos: int = 300, num_labels: int = 6, steps: int = 0) -> tuple[Any, Any]:
    """Scores that lean towards the truth; rounded to `steps` levels, so that many are equal."""
    numbers = np.random.default_rng(seed)
    truth = numbers.random((num_videos, num_labels)) < numbers.uniform(0.02, 0.4, num_labels)
    scores = 1 / (1 + np.exp(-(numbers.normal(-2, 1.5, truth.shape) + 2 * truth)))
    scores = np.round(scores * steps) / steps if steps else scores
    return scores.astype(np.float32), truth


def grid_of(scores: Any, truth: Any) -> ScoreGrid:
    grid = ScoreGrid()
    grid.add(scores, truth)
    return grid


def test_reliability_against_scikit_learn() -> None:
    scores, truth = made_up(1)
    curve = Reliability()
    for part in (slice(0, 100), slice(100, 300)):
        curve.add(scores[part], truth[part])
    shares, means = calibration_curve(truth.ravel(), scores.ravel(), n_bins=NUM_BINS)
    some = curve.counts > 0
    assert curve.counts.sum() == scores.size
    np.testing.assert_allclose(curve.shares()[some], shares, rtol=1e-12)
    np.testing.assert_allclose(curve.mean_scores()[some], means, rtol=1e-6)
    wanted = (curve.counts[some] * np.abs(shares - means)).sum() / scores.size
    assert curve.expected_error() == pytest.approx(wanted, rel=1e-6)


def test_intervals_against_scipy() -> None:
    curve = Reliability()
    curve.add(np.array([0.12, 0.12, 0.13, 0.12, 1.0, 0.99]), np.array([1, 0, 0, 0, 1, 1], np.bool_))
    low, high = curve.intervals()
    for place, (hits, count) in {2: (1, 4), NUM_BINS - 1: (2, 2)}.items():
        wanted = binomtest(hits, count).proportion_ci(0.95, method="wilson")
        assert low[place] == pytest.approx(wanted.low, abs=1e-6)
        assert high[place] == pytest.approx(wanted.high, abs=1e-6)
    assert np.isnan(low[0])
    assert np.isnan(high[0])


def test_nothing_is_not_calibrated() -> None:
    assert math.isnan(Reliability().expected_error())
    assert np.isnan(Reliability().shares()).all()


def test_a_perfect_model_has_no_error_and_a_contrary_one_all_of_it() -> None:
    for scores, error in (([0.0, 1.0], 0.0), ([1.0, 0.0], 1.0)):
        curve = Reliability()
        curve.add(np.array(scores), np.array([False, True]))
        assert curve.expected_error() == error


@given(seed=st.integers(0, 10_000), steps=st.sampled_from([0, 4, 16, 256]))
@settings(max_examples=60, deadline=None)
def test_without_a_prior_the_f1_is_the_best_there_is(seed: int, steps: int) -> None:
    scores, truth = made_up(seed, num_videos=40, num_labels=2, steps=steps)
    truth[0] = True
    thresholds = Thresholds(grid_of(scores, truth), prior=0.0)
    keys = score_keys(scores, truth)
    for label in range(2):
        precision, recall, _ = precision_recall_curve(truth[:, label], scores[:, label])
        best = (2 * precision * recall / np.maximum(precision + recall, 1e-12)).max()
        cut = thresholds.best(keys[:, label])
        assert cut.f1 == pytest.approx(best, abs=1e-12)
        given_label = scores[:, label] >= np.float32(cut.threshold)
        assert cut.hits == np.count_nonzero(given_label & truth[:, label])
        assert cut.misses == np.count_nonzero(given_label & ~truth[:, label])
        assert cut.num_positives == np.count_nonzero(truth[:, label])


def slow_best(scores: Any, truth: Any, label: int, prior: float) -> float:
    """The largest F1 that the docstring of Thresholds defines, over every score that there is."""
    best, total = 0.0, truth.sum()
    for threshold in np.unique(scores):
        above = scores >= threshold
        pooled_hits, pooled_misses = (above & truth).sum() / total, (above & ~truth).sum() / total
        hits = (above & truth)[:, label].sum() + prior * pooled_hits
        misses = (above & ~truth)[:, label].sum() + prior * pooled_misses
        best = max(best, 2 * hits / (hits + misses + truth[:, label].sum() + prior))
    return float(best)


@given(seed=st.integers(0, 10_000), prior=st.sampled_from([0.5, 5.0, 100.0]))
@settings(max_examples=40, deadline=None)
def test_the_prior_counts_as_it_says(seed: int, prior: float) -> None:
    scores, truth = made_up(seed, num_videos=50, num_labels=4, steps=64)  # every score on the grid: exact
    truth[0, 0], truth[:, 3] = True, False
    thresholds = Thresholds(grid_of(scores, truth), prior=prior)
    for label in range(4):
        cut = thresholds.best(score_keys(scores, truth)[:, label])
        above = scores >= np.float32(cut.threshold)
        hits = cut.hits + prior * (above & truth).sum() / truth.sum()
        misses = cut.misses + prior * (above & ~truth).sum() / truth.sum()
        got = 2 * hits / (hits + misses + cut.num_positives + prior)
        assert got == pytest.approx(slow_best(scores, truth, label, prior), abs=1e-12)


def test_labels_with_few_positives_lean_on_the_common_threshold() -> None:
    numbers = np.random.default_rng(3)
    truth = np.zeros((4000, 3), np.bool_)
    truth[:1000, 0], truth[:1000, 1], truth[0, 2] = True, True, True
    scores = np.where(truth, 0.5, 0.1) + numbers.normal(0, 0.03, truth.shape)
    scores[:, 1] = np.where(truth[:, 1], 0.9, 0.7) + numbers.normal(0, 0.02, 4000)
    scores[:, 2] = numbers.uniform(0.0, 0.2, 4000)  # one positive, which the scores know nothing of
    scores = np.clip(scores, 0, 1).astype(np.float32)
    grid, keys = grid_of(scores, truth), score_keys(scores, truth)
    common = Thresholds(grid).common().threshold
    alone, leaning = Thresholds(grid, prior=0.0), Thresholds(grid)
    assert 0.1 < leaning.best(keys[:, 0]).threshold < 0.5
    assert 0.7 < leaning.best(keys[:, 1]).threshold < 0.9
    assert alone.best(keys[:, 2]).threshold < 0.25
    assert leaning.best(keys[:, 2]).threshold == pytest.approx(common, rel=0.01)
    assert leaning.best(keys[:, 2]).misses == 0


def test_a_label_without_positives_gets_a_threshold_too() -> None:
    scores, truth = made_up(5)
    truth[:, 2] = False
    grid, keys = grid_of(scores, truth), score_keys(scores, truth)
    cut = Thresholds(grid).best(keys[:, 2])
    assert (cut.hits, cut.num_positives) == (0, 0)
    assert math.isnan(cut.f1)
    assert math.isnan(cut.recall)
    assert cut.threshold >= Thresholds(grid).common().threshold  # its own false alarms only push it up


def test_the_common_threshold_is_the_best_on_the_grid() -> None:
    scores, truth = made_up(6, steps=64)
    cut = Thresholds(grid_of(scores, truth)).common()
    found = [
        (2 * (truth & (scores >= t)).sum() / ((scores >= t).sum() + truth.sum()), t)
        for t in np.unique(scores)
    ]
    assert cut.f1 == pytest.approx(max(found)[0])
    assert cut.threshold == max(found)[1]


def test_rounding_of_a_score_does_not_change_who_gets_the_label() -> None:
    scores = np.array([[0.31], [0.62], [0.3100001]], np.float32)
    truth = np.array([[False], [True], [False]])
    cut = Thresholds(grid_of(scores, truth), prior=0.0).best(score_keys(scores, truth)[:, 0])
    assert np.float32(0.3100001) < cut.threshold < np.nextafter(np.float32(0.62), np.float32(0))


def test_scores_at_both_ends() -> None:
    scores = np.array([[0.0], [1.0], [-0.0], [1.0]], np.float32)
    truth = np.array([[False], [True], [False], [True]])
    for prior in (0.0, 5.0):
        cut = Thresholds(grid_of(scores, truth), prior).best(score_keys(np.abs(scores), truth)[:, 0])
        assert (cut.hits, cut.misses) == (2, 0)
        assert 0 < cut.threshold <= 1


def test_no_positive_at_all_is_refused() -> None:
    scores, truth = np.array([[0.5]], np.float32), np.array([[False]])
    thresholds = Thresholds(grid_of(scores, truth))
    with pytest.raises(ValueError, match="no pair is a hit"):
        thresholds.common()
    with pytest.raises(ValueError, match="no pair is a hit"):
        thresholds.best(score_keys(scores, truth)[:, 0])


def test_rates_that_are_not_defined_are_nan() -> None:
    assert math.isnan(Cut(0.5, 0, 0, 3).precision)
    assert Cut(0.5, 0, 0, 3).recall == 0
    assert Cut(0.5, 0, 0, 3).f1 == 0
