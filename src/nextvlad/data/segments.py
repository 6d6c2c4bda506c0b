"""Parts of a video as records of their own: YouTube-8M 2019's five-second segments.

A video's context holds four lists of equal length, one entry a judgement: `segment_start_times` and
`segment_end_times` (seconds, which are frames at one a second), `segment_labels` (a class) and
`segment_scores` (above 0: the class is there). Only judged classes are known; of all others
nothing can be said. A segment's id is `VIDEO:START`, as in the competition's files.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from nextvlad.data.video_record import VideoRecord
from nextvlad.errors import RecordError, RecordPlace

SEGMENT_SECONDS = 5
"""Length of a segment in YouTube-8M 2019."""

Segments = Literal["rated", "all"]
"""Which parts of a video: those that were judged, or every five seconds."""

_Classes = NDArray[np.int64]
_NAMES = ("segment_start_times", "segment_end_times", "segment_labels", "segment_scores")


def segments_of(record: VideoRecord, which: Segments, *, max_frames: int | None = None) -> list[VideoRecord]:
    """The segments of a video, in the order of their times; `rated_segments` or `all_segments`."""
    return (rated_segments if which == "rated" else all_segments)(record, max_frames=max_frames)


def rated_segments(record: VideoRecord, *, max_frames: int | None = None) -> list[VideoRecord]:
    """The judged segments of a video; none where nothing was judged.

    Args:
        record: a whole video, with all its frames.
        max_frames: keep the first so many frames of each segment; None: all.

    Returns:
        A record for each different start: its own frames of each stream (copies), as `labels` the classes
        judged to be there, as `rated` all that were judged, each once. A class that was judged twice has
        its last judgement. A segment beyond the end of a stream has no frames of it.

    Raises:
        RecordError: the four lists differ in length or type, a segment has no length, or two lengths, a class
            is negative.

    Source: YouTube-8M starter code of 2019, readers.py, which takes five frames from each start whatever
    the end says, and counts missing ones as real.
    """
    ends: dict[int, int] = {}
    scores: dict[int, dict[int, float]] = {}
    for start, end, label, score in zip(*_judgements(record), strict=True):
        if not 0 <= start < end:
            raise _fault(record, f"a segment from second {start} to {end}; wanted 0 <= start < end")
        if label < 0:
            raise _fault(record, f"segment_labels has class {label}, wanted 0 or more")
        if ends.setdefault(start, end) != end:
            raise _fault(record, f"segments from {start} to {ends[start]} and to {end}; wanted one end")
        scores.setdefault(start, {})[label] = score
    return [
        _part(
            record,
            start,
            ends[start],
            labels=np.array([label for label, score in judged.items() if score > 0], np.int64),
            rated=np.array(list(judged), np.int64),
            max_frames=max_frames,
        )
        for start, judged in sorted(scores.items())
    ]


def all_segments(record: VideoRecord, *, max_frames: int | None = None) -> list[VideoRecord]:
    """Every five seconds of a video from its beginning, without labels; the last may be shorter.

    `max_frames` is as for `rated_segments`.

    Source: YouTube-8M starter code of 2019, inference.py, whose candidates these are.
    """
    longest = max((len(frames) for frames in record.streams.values()), default=0)
    nothing = np.empty(0, np.int64)
    return [
        _part(record, start, start + SEGMENT_SECONDS, labels=nothing, rated=None, max_frames=max_frames)
        for start in range(0, longest, SEGMENT_SECONDS)
    ]


def _judgements(record: VideoRecord) -> tuple[list[int], list[int], list[int], list[float]]:
    lists = [record.context.get(name) or [] for name in _NAMES]
    if len({len(values) for values in lists}) > 1:
        lengths = ", ".join(f"{name} {len(values)}" for name, values in zip(_NAMES, lists, strict=True))
        raise _fault(record, f"lists of different length ({lengths}); wanted one entry a judgement in each")
    starts, ends, labels, scores = lists
    for name, values in zip(_NAMES, (starts, ends, labels), strict=False):
        if not all(isinstance(value, int) for value in values):
            raise _fault(record, f"{name} are not whole numbers")
    if any(isinstance(value, bytes) or value != value for value in scores):
        raise _fault(record, "segment_scores are not numbers")
    return starts, ends, labels, scores  # type: ignore[return-value]


def _part(
    record: VideoRecord,
    start: int,
    end: int,
    *,
    labels: _Classes,
    rated: _Classes | None,
    max_frames: int | None,
) -> VideoRecord:
    return VideoRecord(
        video_id=f"{record.video_id}:{start}",
        labels=labels,
        # Cut before they are copied: a segment may claim to last for the whole of a long video.
        streams={name: np.array(frames[start:end][:max_frames]) for name, frames in record.streams.items()},
        stream_names=record.stream_names,
        rated=rated,
    )


def _fault(record: VideoRecord, what: str) -> RecordError:
    return RecordError(f"{what}.", RecordPlace("payload", 0, 0, record.video_id))
