"""The metrics of a whole set at once, as functions of probabilities and labels [B, C].

All take NumPy arrays, nested lists or torch tensors (any device, any float type) and return float64. float64
scores are compared in float64, all others in float32. For sets that come in batches see
`nextvlad.metrics.MetricAccumulator`. Definitions and ties: docs/metrics.md.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nextvlad.metrics.ranking import (
    average_precision,
    best_classes,
    checked,
    checked_top_k,
    defined_mean,
    grouped_average_precision,
    score_keys,
)


def gap(probabilities: Any, labels: Any, *, top_k: int = 20) -> np.float64:
    """Global average precision over all videos together, in [0, 1].

    Pools the `top_k` best classes of every video, ranks them by probability, and sums the precision at
    each hit over the number of all positives, kept or not.

    Args:
        probabilities: [B, C] numbers in [0, 1].
        labels: [B, C] bool, or 0 and 1.
        top_k: classes kept a video, in 1..C. The default keeps all where there are fewer than 20.

    Returns:
        Scalar float64; NaN where no video has a label.

    Raises:
        ValueError: shapes differ or are not 2-D, a probability is NaN or outside [0, 1], a label is
            neither 0 nor 1, or `top_k` is outside 1..C.

    Source: YouTube-8M starter code, eval_util.calculate_gap. Where it shuffles equal scores, we
    take the mean over all their orders, so that no order of the videos can change the result.

    >>> float(gap([[0.9, 0.1]], [[True, False]], top_k=1))
    1.0
    """
    scores, truth = checked(probabilities, labels)
    best = best_classes(scores, checked_top_k(top_k, scores.shape[1]))
    keys = score_keys(np.take_along_axis(scores, best, axis=1), np.take_along_axis(truth, best, axis=1))
    return np.float64(average_precision(keys.ravel(), int(np.count_nonzero(truth))))


def hit_at_one(probabilities: Any, labels: Any) -> np.float64:
    """Share of the videos whose best class is a true label, in [0, 1].

    Of equal best scores the lowest class counts. A video without labels is a miss. Arguments and errors
    as for `gap`; NaN for no videos at all.

    Source: YouTube-8M starter code, eval_util.calculate_hit_at_one.

    >>> float(hit_at_one([[0.9, 0.1], [0.2, 0.3]], [[1, 0], [1, 0]]))
    0.5
    """
    return top_k_accuracy(probabilities, labels, top_k=1)


def top_k_accuracy(probabilities: Any, labels: Any, *, top_k: int = 1) -> np.float64:
    """Share of the videos with a true label among their `top_k` best classes, in [0, 1].

    The usual top-1 and top-5 accuracy where each video has one label. Of equal scores the lower class
    ranks first. Arguments and errors as for `gap`; NaN for no videos at all.

    >>> float(top_k_accuracy([[0.5, 0.3, 0.2]], [[0, 1, 0]], top_k=2))
    1.0
    """
    scores, truth = checked(probabilities, labels)
    best = best_classes(scores, checked_top_k(top_k, scores.shape[1]))
    hits = np.take_along_axis(truth, best, axis=1).any(axis=1)
    return np.float64(np.count_nonzero(hits) / len(scores) if len(scores) else np.nan)


def perr(probabilities: Any, labels: Any) -> np.float64:
    """Precision at equal recall rate: of a video with n labels, the share of true ones in its n best.

    The mean over all videos, in [0, 1]; a video without labels counts 0. Of equal scores the lower class
    ranks first. Arguments and errors as for `gap`; NaN for no videos at all.

    Source: YouTube-8M starter code, eval_util.calculate_precision_at_equal_recall_rate. It does not
    count a hit whose score is exactly 0; we do.

    >>> float(perr([[0.9, 0.8, 0.1]], [[1, 0, 1]]))
    0.5
    """
    scores, truth = checked(probabilities, labels)
    num_labels = np.count_nonzero(truth, axis=1)
    best = best_classes(scores, max(1, int(num_labels.max(initial=0))))
    hits_by_labels = hits_among_equal_recall(
        np.take_along_axis(truth, best, axis=1), num_labels, scores.shape[1]
    )
    return np.float64(mean_precision(hits_by_labels, len(scores)))


def mean_average_precision(probabilities: Any, labels: Any) -> np.float64:
    """Mean of the average precisions of the classes that have a positive, in [0, 1].

    Over all scores of a class, without truncation. Equal scores: the mean over their orders. Arguments and
    errors as for `gap`; NaN where no video has a label.

    >>> float(mean_average_precision([[0.9, 0.2], [0.4, 0.6]], [[0, 0], [1, 1]]))
    0.75
    """
    return np.float64(defined_mean(per_class_average_precision(probabilities, labels)))


def per_class_average_precision(probabilities: Any, labels: Any) -> NDArray[np.float64]:
    """[C] average precision of each class over all its scores; NaN for a class without positives.

    Arguments, errors and ties as for `mean_average_precision`.

    >>> per_class_average_precision([[0.9, 0.2], [0.4, 0.6]], [[0, 0], [1, 0]]).tolist()
    [0.5, nan]
    """
    scores, truth = checked(probabilities, labels)
    keys = np.ascontiguousarray(score_keys(scores, truth).T)
    num_positives = np.count_nonzero(truth, axis=0)
    return np.array([average_precision(*pair) for pair in zip(keys, num_positives.tolist(), strict=True)])


def mean_average_precision_at(probabilities: Any, labels: Any, top_k: int = 20) -> np.float64:
    """The starter code's mAP: only the `top_k` best classes of each video enter the lists of the classes.

    Each class: the precision at each hit in its list, summed over all its positives, kept or not (0 for
    a class that is nowhere kept). The mean over classes that have a positive. Equal scores: the mean
    over their orders. Arguments and errors as for `gap`; NaN where no video has a label.

    Source: YouTube-8M starter code, eval_util.EvaluationMetrics. Older copies of it average over all
    classes, those without a positive as 0.

    >>> float(mean_average_precision_at([[0.9, 0.2], [0.4, 0.6]], [[0, 0], [1, 1]], top_k=1))
    0.5
    """
    scores, truth = checked(probabilities, labels)
    best = best_classes(scores, checked_top_k(top_k, scores.shape[1]))
    keys = score_keys(np.take_along_axis(scores, best, axis=1), np.take_along_axis(truth, best, axis=1))
    num_positives = np.count_nonzero(truth, axis=0).astype(np.int64)
    return np.float64(defined_mean(grouped_average_precision(keys.ravel(), best.ravel(), num_positives)))


def hits_among_equal_recall(
    hits: NDArray[np.bool_], num_labels: NDArray[np.int64], num_classes: int
) -> NDArray[np.int64]:
    """[C + 1] sums of the hits in the n best of the videos with n labels, for n = 0..C.

    `hits` [B, depth] are those of the best classes, best first; depth is at least the largest n. Whole
    numbers a value of n, because their sum is the same in every order; a sum of fractions is not.
    """
    in_first_n = np.arange(hits.shape[1]) < num_labels[:, None]
    sums = np.zeros(num_classes + 1, np.int64)
    np.add.at(sums, num_labels, np.count_nonzero(hits & in_first_n, axis=1))
    return sums


def mean_precision(hits_by_labels: NDArray[np.int64], num_videos: int) -> float:
    """PERR from the sums of `hits_among_equal_recall`; NaN for no videos."""
    if num_videos == 0:
        return float("nan")
    shares = hits_by_labels[1:] / np.arange(1, len(hits_by_labels))
    return math.fsum(shares) / num_videos
