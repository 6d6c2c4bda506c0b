"""How good predictions are: GAP@k, Hit@1, PERR, mAP, top-k accuracy. NumPy only.

Functions for whole sets that fit in memory, and `MetricAccumulator` for sets that come in batches and
from several processes. Both give the same numbers, and the same bits for every order of the videos.
The definitions, ties included, are in docs/metrics.md.
"""

from nextvlad.metrics.accumulator import MetricAccumulator
from nextvlad.metrics.functions import (
    gap,
    hit_at_one,
    mean_average_precision,
    mean_average_precision_at,
    per_class_average_precision,
    perr,
    top_k_accuracy,
)

__all__ = [
    "MetricAccumulator",
    "gap",
    "hit_at_one",
    "mean_average_precision",
    "mean_average_precision_at",
    "per_class_average_precision",
    "perr",
    "top_k_accuracy",
]
