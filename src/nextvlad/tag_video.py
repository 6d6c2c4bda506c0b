"""One video file, tagged: read once, made features of, classified, and explained second by second."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from nextvlad.contributions import Seconds, intervals
from nextvlad.errors import DataError, UsageError
from nextvlad.models.base import Aggregator

if TYPE_CHECKING:
    from nextvlad.video.clip import ClipPart
    from nextvlad.video.extractor import Extractor

MOST_THUMBNAILS = 96
"""Of a video; between half of it and all of it are kept, whatever its length."""
THUMBNAIL_SIZE = 112
"""Pixels a side: what the backbone is shown, made smaller."""


@dataclass(frozen=True, kw_only=True)
class Tag:
    """One label of a video.

    Attributes:
        label: class index.
        name: its name; the index as text where no vocabulary is known.
        score: probability that the model gives it for the whole video.
        threshold: the score from which it counts; None: every score does.
        contributions: [T] float32: the label's logit minus that without each second; see
            `nextvlad.contributions`.
        intervals: [start, end) in seconds of the stretches that speak for it, in order.
        score_without: what the score would be without those stretches; None where there are none.
    """

    label: int
    name: str
    score: float
    threshold: float | None
    contributions: NDArray[np.float32]
    intervals: list[tuple[float, float]]
    score_without: float | None


@dataclass(frozen=True, kw_only=True)
class TaggedVideo:
    """A video and its labels.

    Attributes:
        video_id: the file's name without folder and ending.
        path: the file, as it was named.
        tags: best first; those that reach their threshold.
        duration_seconds: how long its rows are: steps x step.
        step_seconds: how long a step of `contributions` is; 1.0 for features of one row a second or more.
        attention: name of a stream -> [T] float64, see `Seconds.attention`; empty for models without it.
        level_db: [m] float32, loudness of each row of sound in dBFS; empty where there is no sound.
        level_step_seconds: how long such a row is.
        thumbnails: (second, JPEG) of pictures spread evenly over the video; empty unless asked for.
        facts: what the file says of itself, in words: name of a fact -> value.
        notes: what was unusual, in sentences without a full stop.
    """

    video_id: str
    path: str
    tags: list[Tag]
    duration_seconds: float
    step_seconds: float
    attention: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    level_db: NDArray[np.float32] = field(default_factory=lambda: np.empty(0, np.float32))
    level_step_seconds: float = 1.0
    thumbnails: list[tuple[float, bytes]] = field(default_factory=list)
    facts: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
