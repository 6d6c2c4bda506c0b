"""What is in a data set: counts that one file gives, and that add up over files.

`survey_file` reads one file and verifies every record of it; `survey_files` does so for many files at
once. Nothing is held but what the counts need:

- a count for each different label, number of labels, number of frames, and stream size;
- 20 bytes a video to find ids that occur twice: an 8-byte hash of the id, and where the record stands
  (30 while they are sorted; 180 MB for the 6.1 million videos of YouTube-8M);
- the damaged records, the first MAX_DAMAGE of them.
"""

from __future__ import annotations

import os
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from hashlib import blake2b
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from nextvlad.data.file_processes import each_file
from nextvlad.data.paddle_pickle import is_pickle
from nextvlad.data.sources import read_file
from nextvlad.data.video_record import VideoRecord
from nextvlad.errors import NextvladError, RecordError, RecordPlace

MAX_DAMAGE = 100_000
"""Damaged records that are listed one by one; all are counted."""

_PROGRESS_BYTES = 8 << 20

_SUMS = (
    "num_files",
    "num_pickles",
    "num_empty_files",
    "num_bytes",
    "num_videos",
    "num_damaged",
    "num_outside",
    "num_unequal",
    "num_without_frames",
)

_OnBytes = Callable[[int], None]


@dataclass(slots=True)
class Form:
    """Frames of one type and size: how many videos have such, and the first that does."""

    num_videos: int
    first: RecordPlace
    file: int  # the number of its file, to know which is first


@dataclass(slots=True)
class StreamSurvey:
    """One stream, over the videos that have it."""

    num_frames: Counter[int] = field(default_factory=Counter)  # frames -> videos
    forms: dict[tuple[str, int], Form] = field(default_factory=dict)  # (type code, values a frame)


class Ids(NamedTuple):
    """The ids of one file's sound records, in their order."""

    hashes: NDArray[np.uint64]
    offsets: NDArray[np.int64]
    numbers: NDArray[np.uint32]


@dataclass(slots=True)
class Survey:
    """The counts. Damaged records are in `num_damaged` and `damage`, and in nothing else."""

    num_files: int = 0
    num_pickles: int = 0  # of the files; they have no checksums
    num_empty_files: int = 0
    num_bytes: int = 0
    num_videos: int = 0
    num_damaged: int = 0
    num_outside: int = 0  # of the damaged ones, those with a label outside the vocabulary
    damage: list[tuple[int, RecordError]] = field(default_factory=list)  # with the number of the file
    damaged_files: set[int] = field(default_factory=set)
    streams: dict[str, StreamSurvey] = field(default_factory=dict)
    num_unequal: int = 0  # videos whose streams differ in length
    num_without_frames: int = 0
    labels: Counter[int] = field(default_factory=Counter)  # label -> videos
    num_labels: Counter[int] = field(default_factory=Counter)  # different labels a video -> videos
    context: Counter[str] = field(default_factory=Counter)  # other context features -> videos
    ids: dict[int, Ids] = field(default_factory=dict)  # by number of the file

    def count(self, record: VideoRecord, place: RecordPlace, file: int) -> None:
        """Adds one sound record."""
        self.num_videos += 1
        lengths = set()
        for name, frames in record.streams.items():
            stream = self.streams.get(name)
            if stream is None:
                stream = self.streams[name] = StreamSurvey()
            length, size = frames.shape
            lengths.add(length)
            stream.num_frames[length] += 1
            if length:
                key = (frames.dtype.char, size)
                form = stream.forms.get(key)
                if form is None:
                    first = RecordPlace(place.path, place.offset, place.number, record.video_id)
                    stream.forms[key] = Form(1, first, file)
                else:
                    form.num_videos += 1
        self.num_unequal += len(lengths) > 1
        self.num_without_frames += not any(lengths)
        labels = set(record.labels.tolist())
        self.labels.update(labels)
        self.num_labels[len(labels)] += 1
        for name in record.context:
            self.context[name] += 1

    def blame(self, error: RecordError, file: int) -> None:
        """Adds one damaged record."""
        self.num_damaged += 1
        self.damaged_files.add(file)
        self.damage.append((file, error))
        if len(self.damage) >= 2 * MAX_DAMAGE:
            self.trim()

    def trim(self) -> None:
        """Brings the damage in the order of the files, and cuts it to MAX_DAMAGE."""
        self.damage.sort(key=lambda item: (item[0], item[1].place.offset if item[1].place else 0))
        del self.damage[MAX_DAMAGE:]

    def merge(self, other: Survey) -> None:
        """Adds the counts of other files, in any order."""
        for name in _SUMS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.damaged_files |= other.damaged_files
        self.damage += other.damage
        self.trim()
        self.labels.update(other.labels)
        self.num_labels.update(other.num_labels)
        self.context.update(other.context)
        self.ids.update(other.ids)
        for name, theirs in other.streams.items():
            ours = self.streams.setdefault(name, StreamSurvey())
            ours.num_frames.update(theirs.num_frames)
            for key, form in theirs.forms.items():
                known = ours.forms.setdefault(key, Form(0, form.first, form.file))
                known.num_videos += form.num_videos
                if form.file < known.file:
                    known.first, known.file = form.first, form.file


def survey_file(
    path: str, number: int, *, num_classes: int | None = None, on_bytes: _OnBytes | None = None
) -> Survey:
    """Reads one file whole, and verifies and counts every record.

    Args:
        path: the file.
        number: which file of the data set it is, from 0.
        num_classes: C; a label outside 0..C-1 is damage. None: only a negative one is.
        on_bytes: called now and then with how many bytes of the file were read since the last call.

    Raises:
        UsageError: the file is missing or may not be read.
    """
    survey = Survey(num_files=1)
    size = survey.num_bytes = os.stat(path).st_size if os.path.exists(path) else 0
    hashes, offsets, numbers = array("Q"), array("q"), array("I")
    told = 0
    for place, record in read_file(path, on_damage=lambda error: survey.blame(error, number)):
        if on_bytes and place.offset - told >= _PROGRESS_BYTES and place.offset < size:
            on_bytes(place.offset - told)
            told = place.offset
        wrong = _label_outside(record, num_classes)
        if wrong is not None:
            survey.num_outside += num_classes is not None
            survey.blame(wrong.at(place), number)
            continue
        survey.count(record, place, number)
        hashes.append(int.from_bytes(blake2b(record.video_id.encode(), digest_size=8).digest(), "little"))
        offsets.append(place.offset)
        numbers.append(place.number)
    survey.num_pickles = int(is_pickle(path))
    survey.num_empty_files = int(not survey.num_videos and not survey.num_damaged)
    survey.ids[number] = Ids(
        np.array(hashes, np.uint64), np.array(offsets, np.int64), np.array(numbers, np.uint32)
    )
    if on_bytes:
        on_bytes(max(0, size - told))
    return survey


def survey_files(
    paths: Sequence[str], *, num_classes: int | None, workers: int | None, on_bytes: _OnBytes
) -> Iterator[Survey]:
    """Yield the survey of each file, as they are done; `workers` and errors as `each_file`."""
    work = partial(_survey_one, num_classes=num_classes)
    return each_file(list(enumerate(paths)), work, workers=workers, on_bytes=on_bytes)


def _survey_one(number: int, path: str, on_bytes: _OnBytes, num_classes: int | None) -> Survey:
    return survey_file(path, number, num_classes=num_classes, on_bytes=on_bytes)


def repeated_ids(survey: Survey) -> NDArray[np.uint64]:
    """The hash of each id that several videos have, sorted, as often as it occurs beyond the first.

    Two different ids share a 64-bit hash with a probability of one in a million for six million videos.
    """
    if not survey.ids:
        return np.zeros(0, np.uint64)
    hashes = np.concatenate([ids.hashes for ids in survey.ids.values()])
    hashes.sort()
    repeated: NDArray[np.uint64] = hashes[1:][hashes[1:] == hashes[:-1]]
    return repeated


class Repeated(NamedTuple):
    """An id that several videos have."""

    video_id: str
    num_videos: int
    places: list[RecordPlace]  # the first few


def first_repeated(
    survey: Survey, paths: Sequence[str], hashes: NDArray[np.uint64], *, most: int, places: int
) -> list[Repeated]:
    """The first `most` ids of `hashes` (sorted), with their first `places` places each.

    The ids themselves were not kept: one record of each is read again.
    """
    chosen: dict[int, list[RecordPlace]] = {}
    for number in sorted(survey.ids):
        if len(chosen) < most:
            ids = survey.ids[number].hashes
            for value in ids[np.isin(ids, hashes)].tolist():
                if len(chosen) < most:
                    chosen.setdefault(value, [])
    wanted = np.array(list(chosen), np.uint64)
    totals: Counter[int] = Counter()
    for number in sorted(survey.ids):
        ids, offsets, numbers = survey.ids[number]
        for row in np.flatnonzero(np.isin(ids, wanted)).tolist():
            found = chosen[value := int(ids[row])]
            totals[value] += 1
            if len(found) < places:
                found.append(RecordPlace(paths[number], int(offsets[row]), int(numbers[row])))
    return [Repeated(_read_id(found[0]), totals[value], found) for value, found in chosen.items()]


def _read_id(place: RecordPlace) -> str:
    """The id of one record; ? if the file has changed since."""
    with suppress(NextvladError):
        for _, record in read_file(place.path, start=place, streams=()):
            return record.video_id
    return "?"


def _label_outside(record: VideoRecord, num_classes: int | None) -> RecordError | None:
    labels = record.labels
    if not len(labels) or (labels.min() >= 0 and (num_classes is None or labels.max() < num_classes)):
        return None
    wrong = next(
        label for label in labels.tolist() if label < 0 or (num_classes is not None and label >= num_classes)
    )
    if num_classes is None:
        reason = f"label {wrong}, wanted 0 or more."
    else:
        reason = (
            f"label {wrong}, wanted 0..{num_classes - 1} for the {num_classes} classes of the vocabulary. "
            "Take the vocabulary that belongs to this data."
        )
    return RecordError(reason, RecordPlace("", 0, 0, record.video_id))
