"""What is predicted for one video."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Prediction:
    """The k best classes of one video, best first; equal scores keep the order of the classes.

    Attributes:
        video_id: as in the record.
        labels: k class indices.
        scores: k probabilities in [0, 1].
    """

    video_id: str
    labels: list[int]
    scores: list[float]
