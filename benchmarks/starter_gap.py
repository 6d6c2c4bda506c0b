"""GAP in plain Python, the way YouTube-8M's starter code goes about it: what `metrics.py` compares with.

Every (score, hit) pair is pushed on a heap as it comes; at the end all pairs are shuffled, so that equal
scores stand in random order, sorted, and gone through one by one. Written from that description.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Iterable, Sequence


def gap(scores: Sequence[float], hits: Iterable[bool], num_positives: int) -> float:
    """Average precision of pooled pairs; `num_positives` counts those that were not kept, too."""
    heap: list[tuple[float, bool]] = []
    for pair in zip(scores, hits, strict=True):
        heapq.heappush(heap, pair)
    pairs = random.sample(heap, len(heap))
    order = sorted(range(len(pairs)), key=lambda index: pairs[index][0], reverse=True)
    found = 0
    total = 0.0
    for rank, index in enumerate(order, start=1):
        if pairs[index][1]:
            found += 1
            total += found / rank
    return total / num_positives
