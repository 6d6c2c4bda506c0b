"""How good predictions are: GAP@k, Hit@1, PERR, mAP, top-k accuracy, MAP@K of segments. NumPy only.

Functions for whole sets that fit in memory, and `MetricAccumulator` (`SegmentAccumulator`) for sets that
come in batches and from several processes. Both give the same numbers, and the same bits for every order
of the videos.
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
from nextvlad.metrics.segments import (
    SegmentAccumulator,
    per_class_segment_average_precision,
    segment_map,
)

__all__ = [
    "MetricAccumulator",
    "SegmentAccumulator",
    "gap",
    "hit_at_one",
    "mean_average_precision",
    "mean_average_precision_at",
    "per_class_average_precision",
    "per_class_segment_average_precision",
    "perr",
    "segment_map",
    "top_k_accuracy",
]
