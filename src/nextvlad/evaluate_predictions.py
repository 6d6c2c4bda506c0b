"""Scoring a prediction file of any system against labelled data, exactly, without a model.

The labels are kept in memory, the predictions pass by as a stream: about 200 bytes a video of the data for
its id, number and labels, and 6 bytes a kept class for the metrics, twice that where they grow and are
sorted. Measured: 1.1 million videos at 20 classes peak at 0.9 GB, 0.2 of it Python and torch.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nextvlad import distributed
from nextvlad.data.sources import expand, read_file
from nextvlad.errors import DataError, RecordError, UsageError
from nextvlad.evaluate import check_scored, print_table
from nextvlad.files import write_json
from nextvlad.inference import tell_damage
from nextvlad.metrics import MetricAccumulator
from nextvlad.metrics.lists import RankedLists
from nextvlad.metrics.ranking import DEFAULT_TOP_K
from nextvlad.predictions import Prediction, detect, read_predictions
from nextvlad.predictions.row import MAX_CLASSES
from nextvlad.predictions.segment_files import remarks, score_segment_file
from nextvlad.progress import ProgressBar, counted, say

_VIDEOS_A_BATCH = 1024
_PLACES_A_BATCH = 1 << 22  # 1024 videos with all 3,862 classes of YouTube-8M


@dataclass
class Labels:
    """The labels of a data set by video id, each class of a video once.

    Attributes:
        number_of: number of each video, from 0.
        starts: [N + 1] where the labels of each video begin in `classes`, and where the last end.
        classes: labels of all videos, one after the other.
    """

    number_of: dict[str, int] = field(default_factory=dict)
    starts: array[int] = field(default_factory=lambda: array("q", [0]))
    classes: array[int] = field(default_factory=lambda: array("i"))

    def __len__(self) -> int:
        return len(self.number_of)

    def add(self, video_id: str, classes: Sequence[int]) -> None:
        """One more video. Raises RecordError if it is there already, or a class is out of range."""
        number = len(self)
        if self.number_of.setdefault(video_id, number) != number:
            raise RecordError(f"video {video_id} a second time in the data; predictions name videos by id.")
        wrong = [label for label in classes if not 0 <= label < MAX_CLASSES]
        if wrong:
            raise RecordError(f"label {wrong[0]}, wanted 0 to {MAX_CLASSES - 1}.")
        self.classes.extend(sorted(set(classes)))
        self.starts.append(len(self.classes))

    def of(self, number: int) -> NDArray[np.int32]:
        """[L] the labels of one video."""
        return np.array(self.classes[self.starts[number] : self.starts[number + 1]], np.int32)

    def num_labels(self, number: int) -> int:
        """How many labels a video has."""
        return self.starts[number + 1] - self.starts[number]


@dataclass
class Coverage:
    """What the lists cannot tell, counted.

    Attributes:
        without: videos of the data without a prediction.
        unknown: predictions for videos that are not in the data.
        short: videos whose list is shorter than k.
        missed: videos with more labels than their list has classes.
    """

    without: int = 0
    unknown: int = 0
    short: int = 0
    missed: int = 0


def evaluate_predictions(
    predictions: Path,
    data: Sequence[str],
    *,
    json_file: Path | None = None,
    top_k: int | None = None,
    with_map: bool = True,
    segments: bool = False,
    skip_damaged: bool = False,
) -> dict[str, float | int | None]:
    """`nextvlad evaluate --predictions`: prints the table, writes the JSON file, returns the metrics.

    A file of segments (Kaggle 2019, `Class,Segments`) is known by its content and scored as one.

    Args:
        predictions: a file that `nextvlad.predictions.read_predictions` reads, or of segments.
        data: files, folders, globs or .list files, with labels; frames are not read.
        json_file: where the metrics go as well.
        top_k: classes kept a video for GAP, 1 or more; None: 20.
        with_map: also the untruncated mAP, where every list holds every class.
        segments: the rows of any file are segments, `VIDEO:START`.
        skip_damaged: leave out damaged records of the data.

    Returns:
        num_videos (of the data), gap, hit_at_one, perr, map (None unless the file lists every class of every
        video), map_at_k, loss (None), top1, top5; for segments as
        `nextvlad.predictions.segment_files.score_segment_file`.

    Raises:
        NextvladError: as its message says; DataError where no prediction is of a video of the data.
    """
    if top_k is not None and top_k < 1:
        raise UsageError(f"--top-k: got {top_k}, wanted 1 or more.")
    distributed.refuse_torchrun("prediction files are scored")
    if detect(predictions) == "segments" or segments:
        return _evaluate_segments(predictions, data, json_file, top_k, skip_damaged)
    kept = DEFAULT_TOP_K if top_k is None else top_k
    rows = read_predictions(predictions)
    first = next(rows, None)  # what is no prediction file is told before the data is read
    if first is None:
        raise DataError(f"{predictions}: no predictions in it.")
    labels = read_labels(data, skip_damaged=skip_damaged)
    result, coverage = score_lists(chain([first], rows), labels, top_k=kept, with_map=with_map)
    if coverage.without == len(labels) > 0:
        theirs = next(iter(labels.number_of))
        advice = "Are these the predictions for this data?"
        if first.video_id.rpartition(":")[0] in labels.number_of:
            advice = "These are segments: score them with --segments."
        raise DataError(
            f"{predictions}: none of its {coverage.unknown:,} videos is among the {len(labels):,} of "
            f"{' '.join(data)} (its first is {first.video_id[:60]}, theirs {theirs[:60]}). {advice}"
        )
    check_scored(result, data)
    _tell(coverage, predictions, kept, complete=result["map"] is not None)
    print_table(result, kept)
    if json_file is not None:
        write_json(json_file, result)
    return result


def _evaluate_segments(
    predictions: Path, data: Sequence[str], json_file: Path | None, top_k: int | None, skip_damaged: bool
) -> dict[str, float | int | None]:
    """The score of a file of segments, printed and written."""
    if top_k is not None:
        raise UsageError(f"--top-k: {predictions} is a file of segments, which lists no labels of videos.")
    damage: list[RecordError] = []
    result = score_segment_file(predictions, data, on_damage=damage.append if skip_damaged else None)
    tell_damage(damage)
    for remark in remarks(result):
        say(remark)
    print_table(result, 0)
    if json_file is not None:
        write_json(json_file, result)
    return result


def read_labels(data: Sequence[str], *, skip_damaged: bool = False) -> Labels:
    """The labels of all videos of `data`; frames are stepped over.

    Raises:
        UsageError: as `nextvlad.data.sources.expand`.
        RecordError: a damaged record, unless skipped; a video twice; a label of `MAX_CLASSES` or more.
    """
    labels = Labels()
    damage: list[RecordError] = []
    on_damage = damage.append if skip_damaged else None
    with ProgressBar("Reading labels", total=None, unit="videos") as bar:
        for path in expand(data):
            for place, record in read_file(path, streams=(), on_damage=on_damage):
                try:
                    labels.add(record.video_id, record.labels.tolist())
                except RecordError as error:
                    raise error.at(place) from None
                bar.advance(1)
    tell_damage(damage)
    return labels


def score_lists(
    predictions: Iterator[Prediction], labels: Labels, *, top_k: int, with_map: bool = True
) -> tuple[dict[str, float | int | None], Coverage]:
    """The metrics of predictions in any order, and what they lack. Videos without one count as missed."""
    coverage = Coverage()
    seen = np.zeros(len(labels), np.bool_)
    first = next(predictions, Prediction("", [], []))
    highest = max(labels.classes, default=-1)
    # Every class is listed, as far as one row can tell: then the untruncated mAP can be had.
    holds_all = sorted(first.labels) == list(range(len(first.labels))) and len(first.labels) > max(highest, 0)
    with_map = with_map and holds_all
    num_classes = len(first.labels) if with_map else max(highest + 1, 5)
    metrics = MetricAccumulator.for_lists(num_classes, top_k=top_k, with_map=with_map)
    most = 0
    with ProgressBar("Scoring", total=None, unit="videos") as bar:
        for batch in _batches(chain([first], predictions), labels):
            bar.advance(len(batch))
            known = [row for row in batch if row.video_id in labels.number_of]
            coverage.unknown += len(batch) - len(known)
            numbers = [labels.number_of[row.video_id] for row in known]
            seen[numbers] = True
            most = max(most, *(max(row.labels, default=-1) + 1 for row in batch))
            _count(metrics, known, [labels.of(number) for number in numbers])
            coverage.short += sum(len(row.labels) < top_k for row in known)
            coverage.missed += sum(
                len(row.labels) < labels.num_labels(number)
                for row, number in zip(known, numbers, strict=True)
            )
    left = np.flatnonzero(~seen)
    coverage.without = len(left)
    ids = list(labels.number_of)
    for batch in _batches((Prediction(ids[number], [], []) for number in left), labels):
        _count(metrics, batch, [labels.of(labels.number_of[row.video_id]) for row in batch])
    result = metrics.compute()
    if max(highest + 1, most) < 5:  # classes that anybody spoke of
        result["top5"] = None
    return result, coverage


def _batches(rows: Iterator[Prediction], labels: Labels) -> Iterator[list[Prediction]]:
    """The rows in batches that make tables of bounded size, however long a single row is."""
    batch: list[Prediction] = []
    width = 0
    for row in rows:
        number = labels.number_of.get(row.video_id)
        own = max(len(row.labels), labels.num_labels(number) if number is not None else 0)
        if len(batch) == _VIDEOS_A_BATCH or (len(batch) + 1) * max(width, own) > _PLACES_A_BATCH:
            if batch:
                yield batch
            batch, width = [], 0
        batch.append(row)
        width = max(width, own)
    if batch:
        yield batch


def _count(metrics: MetricAccumulator, rows: list[Prediction], labels: list[NDArray[np.int32]]) -> None:
    lists = RankedLists([row.labels for row in rows], [row.scores for row in rows])
    if not lists.hold_all(metrics.num_classes):
        metrics.leave_out_map()
    metrics.update_lists(lists, labels)


def _tell(coverage: Coverage, predictions: Path, top_k: int, *, complete: bool) -> None:
    """Says what the file leaves open, so that nobody takes its numbers for more than they are."""
    if coverage.without:
        videos = counted(coverage.without, "video")
        say(f"{videos} of the data without a prediction: counted, all labels missed.")
    if coverage.unknown:
        say(f"{counted(coverage.unknown, 'video')} of {predictions} not in the data: left out.")
    if coverage.short and not complete:
        videos = counted(coverage.short, "video")
        say(f"{videos} with fewer than {top_k} labels listed: GAP@{top_k} is of those.")
    if coverage.missed:
        videos = counted(coverage.missed, "video")
        say(f"{videos} with more labels than listed: PERR counts the others as missed.")
