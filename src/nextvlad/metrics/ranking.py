"""What every metric is made of: checked arrays, the best classes of a video, one ranked list.

Letters: B videos, C classes, k classes kept a video.

Scores in [0, 1] are never negative, so the bits of a float, read as an unsigned integer, are ordered as
the floats are. A *key* is those bits shifted left by one, with 0 in the last bit for a hit and 1 for a
miss: one integer sort ranks a list and keeps hits and misses of the same score apart.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

DEFAULT_TOP_K = 20
"""Classes kept a video in YouTube-8M's GAP."""

_BLOCK_ELEMENTS = 1 << 17
"""Scores ranked at a time: 1 MiB of 8-byte integers stays in cache."""

_SMALL_GROUP = 8
"""Equal scores that are few enough to go through place by place."""

_SHORT_RUN = 4
"""Steps taken back from the end of a run of equal keys before its beginning is searched for."""

Scores = NDArray[np.floating[Any]]
Keys = NDArray[np.unsignedinteger[Any]]


def checked(probabilities: Any, labels: Any) -> tuple[Scores, NDArray[np.bool_]]:
    """Probabilities as float32 or float64 and labels as bool, both [B, C], or a ValueError.

    Takes arrays, nested lists and torch tensors of any device. Half precision becomes float32 exactly.
    """
    scores, truth = _as_array(probabilities), _as_array(labels)
    if scores.ndim != 2:
        raise ValueError(f"probabilities: got shape {scores.shape}, wanted [videos, classes].")
    if scores.shape != truth.shape:
        raise ValueError(f"labels: got shape {truth.shape}, wanted that of probabilities, {scores.shape}.")
    if scores.shape[1] == 0:
        raise ValueError(f"probabilities: got shape {scores.shape}, wanted at least one class.")
    if scores.dtype.kind not in "fbiu":
        raise ValueError(f"probabilities: got dtype {scores.dtype}, wanted numbers in [0, 1].")
    exact = np.float64 if scores.dtype.kind == "f" and scores.dtype.itemsize > 4 else np.float32
    scores = scores.astype(exact, copy=False)
    _check_range(scores)
    return scores + exact(0), _as_bool(truth)  # adding 0 turns -0.0, whose bits would rank first, into 0.0


def _as_array(values: Any) -> NDArray[Any]:
    if hasattr(values, "detach"):  # a torch tensor, recognised without importing torch
        values = values.detach().cpu()
        if str(values.dtype) in ("torch.bfloat16", "torch.float16"):
            values = values.float()
        values = values.numpy()
    return np.asarray(values)


def _check_range(scores: Scores) -> None:
    if scores.size == 0:
        return
    low, high = scores.min(), scores.max()  # either is NaN if any score is
    if low >= 0 and high <= 1:
        return
    row, column = np.argwhere(~((scores >= 0) & (scores <= 1)))[0]
    raise ValueError(
        f"probabilities[{row}, {column}]: got {scores[row, column]}, wanted a number in [0, 1]. "
        "Logits go through a sigmoid or softmax first."
    )


def _as_bool(truth: NDArray[Any]) -> NDArray[np.bool_]:
    if truth.dtype == np.bool_:
        return truth
    wrong = np.argwhere((truth != 0) & (truth != 1))
    if len(wrong):
        row, column = wrong[0]
        raise ValueError(f"labels[{row}, {column}]: got {truth[row, column]}, wanted bool, or 0 and 1.")
    return truth.astype(np.bool_)


def checked_top_k(top_k: int, num_classes: int) -> int:
    """`top_k` in 1..C, or a ValueError; the default of 20 keeps every class where there are fewer."""
    if isinstance(top_k, bool) or not isinstance(top_k, (int, np.integer)):
        raise ValueError(f"top_k: got {top_k!r}, wanted a whole number in 1..{num_classes}.")
    if top_k == DEFAULT_TOP_K:
        return min(DEFAULT_TOP_K, num_classes)
    if not 1 <= top_k <= num_classes:
        raise ValueError(f"top_k: got {top_k}, wanted 1..{num_classes}, the number of classes.")
    return int(top_k)


def best_classes(scores: Scores, depth: int) -> NDArray[np.int64]:
    """[B, depth] classes of the best scores, best first; of equal scores the lower class first."""
    best = np.empty((len(scores), depth), np.int64)
    step = max(1, _BLOCK_ELEMENTS // scores.shape[1])
    for start in range(0, len(scores), step):
        best[start : start + step] = _best_of_block(scores[start : start + step], depth)
    return best


def _best_of_block(scores: Scores, depth: int) -> NDArray[np.int64]:
    if scores.dtype == np.float64:  # 64 bits of score leave no room for the class in one integer
        return np.argsort(-scores, axis=1, kind="stable")[:, :depth].astype(np.int64)
    num_classes = scores.shape[1]
    last_class_first = np.arange(num_classes, dtype=np.uint64)[::-1]
    unique = (scores.view(np.uint32).astype(np.uint64) << np.uint64(32)) | last_class_first
    if depth < num_classes:
        unique = np.partition(unique, num_classes - depth, axis=1)[:, num_classes - depth :]
    unique.sort(axis=1)
    classes: NDArray[np.int64] = num_classes - 1 - (unique[:, ::-1] & np.uint64(0xFFFFFFFF)).astype(np.int64)
    return classes


def score_keys(scores: Scores, hits: NDArray[np.bool_]) -> Keys:
    """One unsigned integer a score, of the same shape: its bits, then 0 for a hit and 1 for a miss."""
    if scores.dtype == np.float32:
        return (scores.view(np.uint32) << np.uint32(1)) | ~hits
    return (scores.view(np.uint64) << np.uint64(1)) | ~hits


def average_precision(keys: Keys, num_positives: int) -> float:
    """AP of one list of keys [n] in any order; NaN without positives.

    The precision at each hit, summed, over `num_positives`, which may exceed the hits in the list. Of
    equal scores every order is as likely as another: what is returned is the mean over all orders, in
    closed form (McSherry and Najork, ECIR 2008).
    """
    if num_positives == 0:
        return float("nan")
    ranked = ~keys  # best first once sorted, and misses first among equals
    ranked.sort()
    return _sum_of_precisions(ranked) / num_positives


def _sum_of_precisions(ranked: Keys) -> float:
    """Sum over the hits of an inverted, sorted list of the precision at the hit."""
    places = np.flatnonzero((ranked & 1).astype(np.bool_))
    total = float((np.arange(1, len(places) + 1) / (places + 1)).sum())
    values = ranked[places]
    # A miss of the same score has the key below, and stands before: the first hit after it begins a tie.
    begins = np.flatnonzero((ranked[places - 1] == values - 1) & (places > 0))
    if len(begins) == 0:
        return total
    changes = np.flatnonzero(values[1:] != values[:-1]) + 1
    ends = np.append(changes, len(values))[np.searchsorted(changes, begins, side="right")]
    num_hits = ends - begins
    tied = np.arange(num_hits.sum()) + np.repeat(begins - (np.cumsum(num_hits) - num_hits), num_hits)
    total -= float(((tied + 1) / (places[tied] + 1)).sum())
    start = _first_of(ranked, places[begins] - 1)
    return total + _mean_over_orders(begins, start, num_hits, places[begins] + num_hits - start)


def _first_of(ranked: Keys, places: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where each run of equal keys begins that ends at `places`; long ones, which are few, are searched."""
    first = places.copy()
    longer = np.arange(len(places))
    for _ in range(_SHORT_RUN):
        longer = longer[(first[longer] > 0) & (ranked[first[longer] - 1] == ranked[places[longer]])]
        if len(longer) == 0:
            return first
        first[longer] -= 1
    first[longer] = np.searchsorted(ranked, ranked[places[longer]])
    return first


def _mean_over_orders(
    hits_before: NDArray[np.int64],
    ranked_before: NDArray[np.int64],
    hits: NDArray[np.int64],
    size: NDArray[np.int64],
) -> float:
    """Sum of the precisions at the hits of groups of equal scores, in the mean over their orders.

    A place of a group is a hit with probability hits / size; if it is, each place before it in the group
    is one with probability (hits - 1) / (size - 1).
    """
    small = size <= _SMALL_GROUP
    groups = (hits_before, ranked_before, hits, size)
    return _small_groups(*(part[small] for part in groups)) + _large_groups(
        *(part[~small] for part in groups)
    )


def _small_groups(
    hits_before: NDArray[np.int64],
    ranked_before: NDArray[np.int64],
    hits: NDArray[np.int64],
    size: NDArray[np.int64],
) -> float:
    """`_mean_over_orders` of the many groups of a few: the first place of all, then the second, ..."""
    rows = np.stack([size, hits / size, (hits - 1) / (size - 1), hits_before + 1, ranked_before + 1])
    total = 0.0
    for place in range(int(size.max(initial=0))):
        if place > 1:  # no group has fewer than a hit and a miss
            rows = rows[:, rows[0] > place]
        _, share, growth, found, rank = rows
        total += float((share * (found + place * growth) / (rank + place)).sum())
    return total


def _large_groups(
    hits_before: NDArray[np.int64],
    ranked_before: NDArray[np.int64],
    hits: NDArray[np.int64],
    size: NDArray[np.int64],
) -> float:
    """`_mean_over_orders` of the few groups of many, all places of all groups one after another."""
    if len(size) == 0:
        return 0.0
    ends = np.cumsum(size)
    share, growth = hits / size, (hits - 1) / (size - 1)
    total = 0.0
    for low in range(0, int(ends[-1]), _BLOCK_ELEMENTS):  # blocks of places stay in cache, whatever is tied
        high = min(low + _BLOCK_ELEMENTS, int(ends[-1]))
        first, last = np.searchsorted(ends, [low, high - 1], side="right").tolist()
        groups = slice(first, last + 1)
        inside = np.minimum(ends[groups], high) - np.maximum(ends[groups] - size[groups], low)
        place = np.arange(low, high) - np.repeat(ends[groups] - size[groups], inside)
        found = np.repeat(hits_before[groups] + 1, inside) + place * np.repeat(growth[groups], inside)
        ranks = np.repeat(ranked_before[groups] + 1, inside) + place
        total += float((np.repeat(share[groups], inside) * found / ranks).sum())
    return total


def grouped_average_precision(
    keys: Keys, groups: NDArray[Any], num_positives: NDArray[np.int64]
) -> NDArray[np.float64]:
    """[G] AP of many lists at once: keys [n], the list each belongs to [n], and positives a list [G]."""
    order = np.argsort(groups, kind="stable")  # a radix sort for 16 bits
    starts = np.searchsorted(groups[order], np.arange(1, len(num_positives)))
    lists = np.split(keys[order], starts)
    return np.array([average_precision(*pair) for pair in zip(lists, num_positives.tolist(), strict=True)])


def defined_mean(values: NDArray[np.float64]) -> float:
    """Mean of the values that are not NaN; NaN where all are."""
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if len(defined) else float("nan")
