"""What is predicted for one video, and what makes a row of a file such a prediction."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from operator import gt
from typing import Any

MAX_CLASSES = 1 << 20
"""Class indices in a file are below this: far above any vocabulary, and no table of classes gets large."""

MAX_SCORE = 3.4e38
"""About the largest 32-bit float; scores are compared as such."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """The best classes of one video, best first; of equal scores the lower class first.

    Attributes:
        video_id: as in the record.
        labels: class indices, each once.
        scores: as many numbers, 0 or more: probabilities in ours, perhaps beyond 1 in other systems' files.
    """

    video_id: str
    labels: list[int]
    scores: list[float]


class BadRow(Exception):
    """What is wrong with a row, a sentence without its place."""


def ranked(video_id: Any, labels: Sequence[Any], scores: Sequence[Any]) -> Prediction:
    """The prediction that a row of a file holds, sorted, or a BadRow.

    Args:
        video_id: not empty.
        labels: whole numbers in 0..MAX_CLASSES - 1, none twice.
        scores: as many finite numbers in 0..MAX_SCORE.
    """
    if not isinstance(video_id, str) or not video_id:
        raise BadRow(f"video id {_short(video_id)}, wanted text.")
    if not (video_id.isascii() or _is_unicode(video_id)):
        raise BadRow(
            f"video id {_short(video_id)}, wanted Unicode text, which half of a surrogate pair is not."
        )
    if len(labels) != len(scores):
        raise BadRow(f"video {video_id}: {len(labels)} classes and {len(scores)} scores, wanted as many.")
    if not labels:
        return Prediction(video_id, [], [])
    if set(map(type, labels)) != {int} or min(labels) < 0 or max(labels) >= MAX_CLASSES:
        wrong = next(x for x in labels if type(x) is not int or not 0 <= x < MAX_CLASSES)
        raise BadRow(
            f"video {video_id}: class {_short(wrong)}, wanted a whole number from 0 to {MAX_CLASSES - 1}."
        )
    if len(set(labels)) != len(labels):
        twice = Counter(labels).most_common(1)[0][0]
        raise BadRow(f"video {video_id}: class {twice} twice; wanted each class once.")
    if not _are_scores(scores):
        wrong = next(x for x in scores if not _are_scores([x]))
        raise BadRow(f"video {video_id}: score {_short(wrong)}, {_why_no_score(wrong)}.")
    values = [float(score) + 0.0 for score in scores]  # 0.0 for -0.0
    if all(map(gt, values, values[1:])):
        return Prediction(video_id, list(labels), values)
    order = sorted(range(len(values)), key=lambda place: (-values[place], labels[place]))
    return Prediction(video_id, [labels[place] for place in order], [values[place] for place in order])


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # JSON can spell what no other file can hold
        return False
    return True


def _are_scores(scores: Sequence[Any]) -> bool:
    if not set(map(type, scores)) <= {int, float}:
        return False
    # A NaN, which compares as nothing, makes the sum NaN.
    return min(scores) >= 0 and max(scores) <= MAX_SCORE and math.isfinite(sum(scores))


def _why_no_score(score: Any) -> str:
    if isinstance(score, int | float) and not isinstance(score, bool) and score < 0:
        return "wanted 0 or more: probabilities. Logits go through a sigmoid first; the order stays the same"
    return "wanted a finite number, 0 or more"


def _short(value: Any) -> str:
    try:
        text = repr(value)
    except ValueError:  # an integer of thousands of digits
        text = "of thousands of digits"
    return text if len(text) <= 60 else text[:60] + "..."
