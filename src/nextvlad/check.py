"""`nextvlad check`: every record of a data set verified, and what is in it, before a long training."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from nextvlad.check_report import print_report
from nextvlad.data.sources import expand
from nextvlad.data.survey import (
    Repeated,
    StreamSurvey,
    Survey,
    first_repeated,
    repeated_ids,
    survey_files,
)
from nextvlad.data.vocabulary import Vocabulary
from nextvlad.errors import RecordPlace
from nextvlad.files import write_json
from nextvlad.progress import ProgressBar

FRAME_CAP = 300
"""`data.max_frames` where the user does not say otherwise: later frames are not used."""

_EXTREMES = 5
_REPEATED_IDS = 20
_REPEATED_PLACES = 5
_MEGABYTE = 1_000_000


def check(
    data: Sequence[str],
    *,
    json_file: Path | None = None,
    vocabulary: Path | None = None,
    workers: int | None = None,
) -> int:
    """`nextvlad check`: prints what is in the data, writes the JSON file, returns the exit status.

    Args:
        data: files, folders, globs or .list files.
        json_file: where to write `findings`.
        vocabulary: CSV with the class names; a label outside it is damage.
        workers: reader processes; 0 reads in this one; None: one a processor, at most 8.

    Returns:
        1 if a record is damaged, else 0.

    Raises:
        UsageError: data or vocabulary are not there; fewer than 0 workers.
        WorkerError: a reader process died.
        OutputError: the JSON file cannot be written.
    """
    names = Vocabulary.load(vocabulary) if vocabulary else None
    files = expand(data)
    survey = take_survey(files, num_classes=len(names) if names else None, workers=workers)
    found = findings(survey, files, names)
    print_report(found, vocabulary=str(vocabulary) if vocabulary else None)
    if json_file is not None:
        write_json(json_file, found)
    return 1 if survey.num_damaged else 0


def take_survey(
    files: Sequence[str], *, num_classes: int | None = None, workers: int | None = None
) -> Survey:
    """Reads all files, with a progress bar, into one survey."""
    sizes = sum(os.path.getsize(path) for path in files if os.path.exists(path))
    total = Survey()
    rest = 0  # bytes that do not make a whole megabyte yet
    with ProgressBar("Checking", total=math.ceil(sizes / _MEGABYTE), unit="MB") as bar:

        def on_bytes(count: int) -> None:
            nonlocal rest
            megabytes, rest = divmod(rest + count, _MEGABYTE)
            bar.advance(megabytes, f"{total.num_files}/{len(files)} files")

        for survey in survey_files(files, num_classes=num_classes, workers=workers, on_bytes=on_bytes):
            total.merge(survey)
    return total


class Spread(NamedTuple):
    """How a number is spread over the videos; `p95`: 95 of 100 videos have at most so many."""

    min: int
    median: float
    mean: float
    p95: int
    max: int


def spread(counts: Counter[int]) -> Spread | None:
    """The exact spread of value -> videos; None without videos.

    >>> spread(Counter({1: 1, 4: 2, 10: 1}))
    Spread(min=1, median=4, mean=4.75, p95=10, max=10)
    """
    values = np.array(sorted(counts), np.int64)
    if not len(values):
        return None
    videos = np.array([counts[value] for value in values.tolist()], np.int64)
    up_to = videos.cumsum()
    num_videos = int(up_to[-1])

    def at(rank: int) -> int:  # the value of the rank-th video, from 1
        return int(values[np.searchsorted(up_to, rank)])

    middle = at((num_videos + 1) // 2) + at(num_videos // 2 + 1)
    median = middle / 2 if middle % 2 else middle // 2
    mean = float(values @ videos) / num_videos
    return Spread(int(values[0]), median, mean, at(math.ceil(0.95 * num_videos)), int(values[-1]))


def findings(survey: Survey, files: Sequence[str], vocabulary: Vocabulary | None) -> dict[str, Any]:
    """The whole content of `--json`, as docs/check.md describes it."""
    hashes = repeated_ids(survey)
    repeated = first_repeated(survey, files, np.unique(hashes), most=_REPEATED_IDS, places=_REPEATED_PLACES)
    return {
        "sound": survey.num_damaged == 0,
        "num_files": survey.num_files,
        "num_pickles": survey.num_pickles,
        "num_empty_files": survey.num_empty_files,
        "num_bytes": survey.num_bytes,
        "num_videos": survey.num_videos,
        "num_without_frames": survey.num_without_frames,
        "num_unequal_streams": survey.num_unequal,
        "streams": {name: _stream(survey.streams[name]) for name in sorted(survey.streams)},
        "labels": _labels(survey, vocabulary),
        "context": dict(sorted(survey.context.items())),
        "num_duplicate_ids": len(np.unique(hashes)),
        "num_duplicates": len(hashes),
        "duplicate_ids": [_repeated(item) for item in repeated],
        "num_damaged": survey.num_damaged,
        "num_damaged_files": len(survey.damaged_files),
        "num_outside_vocabulary": survey.num_outside,
        "damaged": [
            {**_place(error.place), "video_id": error.place.video_id, "reason": error.reason}
            for _, error in survey.damage
            if error.place
        ],
    }


def _stream(stream: StreamSurvey) -> dict[str, Any]:
    frames = spread(stream.num_frames)
    return {
        "num_videos": stream.num_frames.total(),
        "num_without_frames": stream.num_frames[0],
        "sizes": [
            {
                "size": size,
                "dtype": np.dtype(code).name,
                "num_videos": form.num_videos,
                "first": {**_place(form.first), "video_id": form.first.video_id},
            }
            for (code, size), form in sorted(stream.forms.items(), key=lambda item: -item[1].num_videos)
        ],
        "frames": {
            **(frames._asdict() if frames else {}),
            "num_over_300": sum(videos for count, videos in stream.num_frames.items() if count > FRAME_CAP),
            "histogram": _histogram(stream.num_frames),
        },
    }


def _labels(survey: Survey, vocabulary: Vocabulary | None) -> dict[str, Any]:
    def named(label: int, videos: int) -> dict[str, Any]:
        return {"label": label, "name": vocabulary[label] if vocabulary else None, "num_videos": videos}

    labels = survey.num_labels
    a_video = spread(labels)
    by_count = sorted(survey.labels.items(), key=lambda item: (-item[1], item[0]))
    never = [label for label in range(len(vocabulary or ())) if label not in survey.labels]
    return {
        "num_distinct": len(survey.labels),
        "largest": max(survey.labels, default=None),
        "num_without": labels[0],
        "a_video": {**(a_video._asdict() if a_video else {}), "histogram": _histogram(labels)},
        "commonest": [named(*item) for item in by_count[:_EXTREMES]],
        "rarest": [named(*item) for item in by_count[::-1][:_EXTREMES]],
        "num_classes": len(vocabulary) if vocabulary else None,
        "num_never": len(never) if vocabulary else None,
        "never": never if vocabulary else None,
        "counts": {str(label): videos for label, videos in sorted(survey.labels.items())},
    }


def _histogram(counts: Counter[int]) -> dict[str, int]:
    return {str(value): counts[value] for value in sorted(counts) if counts[value]}


def _place(place: RecordPlace) -> dict[str, Any]:
    return {"file": place.path, "offset": place.offset, "record": place.number}


def _repeated(item: Repeated) -> dict[str, Any]:
    return {
        "video_id": item.video_id,
        "num_videos": item.num_videos,
        "places": [_place(place) for place in item.places],
    }
