"""The metrics once more, slow and obvious: Python loops and exact fractions, to compare with."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise, permutations

import numpy as np


def ranked_classes(scores: np.ndarray) -> list[int]:
    """All classes of one video, best first; of equal scores the lower class first."""
    return sorted(range(len(scores)), key=lambda c: (-float(scores[c]), c))


def average_precision(pairs: list[tuple[float, bool]], num_positives: int) -> float:
    """Mean over all orders of equal scores, by counting: no cleverness, a group at a time."""
    if num_positives == 0:
        return float("nan")
    total, ranked, found = Fraction(0), 0, 0
    for score in sorted({score for score, _ in pairs}, reverse=True):
        hits = [hit for other, hit in pairs if other == score]
        size, true = len(hits), sum(hits)
        for place in range(size):
            # This place is a hit, and of the places before it in the group so many are, on average:
            chance = Fraction(true, size)
            before = Fraction(place * (true - 1), size - 1) if size > 1 else Fraction(0)
            total += chance * (found + before + 1) / (ranked + place + 1)
        ranked += size
        found += true
    return float(total / num_positives)


def average_precision_of_order(hits: list[bool], num_positives: int) -> float:
    """AP of a list that is already in order."""
    found, total = 0, 0.0
    for rank, hit in enumerate(hits, start=1):
        if hit:
            found += 1
            total += found / rank
    return total / num_positives


def tie_bounds(pairs: list[tuple[float, bool]], num_positives: int) -> tuple[float, float]:
    """The least and the most that any order of equal scores gives: misses first, hits first."""
    worst = sorted(pairs, key=lambda pair: (-pair[0], pair[1]))
    best = sorted(pairs, key=lambda pair: (-pair[0], not pair[1]))
    return (
        average_precision_of_order([hit for _, hit in worst], num_positives),
        average_precision_of_order([hit for _, hit in best], num_positives),
    )


def kept_pairs(scores: np.ndarray, labels: np.ndarray, top_k: int) -> list[tuple[float, bool]]:
    """The scores and hits of the best classes of all videos, pooled."""
    return [
        (float(scores[v, c]), bool(labels[v, c]))
        for v in range(len(scores))
        for c in ranked_classes(scores[v])[:top_k]
    ]


def gap(scores: np.ndarray, labels: np.ndarray, top_k: int) -> float:
    return average_precision(kept_pairs(scores, labels, top_k), int(labels.sum()))


def hit_at_k(scores: np.ndarray, labels: np.ndarray, top_k: int) -> float:
    hits = [any(labels[v, c] for c in ranked_classes(scores[v])[:top_k]) for v in range(len(scores))]
    return sum(hits) / len(hits)


def perr(scores: np.ndarray, labels: np.ndarray) -> float:
    total = Fraction(0)
    for row, truth in zip(scores, labels, strict=True):
        n = int(truth.sum())
        if n:
            total += Fraction(sum(int(truth[c]) for c in ranked_classes(row)[:n]), n)
    return float(total / len(scores))


def per_class(scores: np.ndarray, labels: np.ndarray) -> list[float]:
    return [
        average_precision(
            [(float(score), bool(hit)) for score, hit in zip(scores[:, c], labels[:, c], strict=True)],
            int(labels[:, c].sum()),
        )
        for c in range(scores.shape[1])
    ]


def mean_over_defined(values: list[float]) -> float:
    defined = [value for value in values if value == value]
    return sum(defined) / len(defined) if defined else float("nan")


def mean_average_precision_at(scores: np.ndarray, labels: np.ndarray, top_k: int) -> float:
    lists: list[list[tuple[float, bool]]] = [[] for _ in range(scores.shape[1])]
    for v in range(len(scores)):
        for c in ranked_classes(scores[v])[:top_k]:
            lists[c].append((float(scores[v, c]), bool(labels[v, c])))
    counts = labels.sum(0)
    return mean_over_defined(
        [average_precision(pairs, int(n)) for pairs, n in zip(lists, counts, strict=True)]
    )


def segment_average_precision(
    scores: list[float], hits: list[bool], rated: list[bool], max_segments: int
) -> float:
    """One class's list, by trying every order that its scores allow; for very few segments."""
    values = []
    for order in permutations(range(len(scores))):
        if any(scores[a] < scores[b] for a, b in pairwise(order)):
            continue
        kept = [hits[index] for index in order[:max_segments] if rated[index]]
        values.append(average_precision_of_order(kept, sum(hits)) if any(hits) else float("nan"))
    return sum(values) / len(values)
