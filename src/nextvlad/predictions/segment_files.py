"""Files of segments as Kaggle's YouTube-8M competition of 2019 took them: written, read, and scored.

    Class,Segments
    3,kX4a:0 b7Q2:25 kX4a:5
    9,b7Q2:30

A row is a class and its segments, best first, each `VIDEO:START`, without scores: rank is all there is.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from nextvlad.data.ratings import read_ratings
from nextvlad.errors import DataError, OutputError, RecordError
from nextvlad.files import NewFile, why
from nextvlad.metrics.segments import SEGMENTS_A_CLASS, precision_of_ranking
from nextvlad.predictions.readers import detect, read_predictions
from nextvlad.predictions.row import MAX_CLASSES, Prediction
from nextvlad.predictions.text_rows import is_segments_header, lines

_SEPARATORS = frozenset(',"')  # and white space of any kind


class SegmentList(NamedTuple):
    """One row of a file."""

    line: int
    """Counts from 1; 0 where it stands on no line."""
    label: int
    """The class."""
    segments: list[str]
    """Best first, each once."""
    num_repeated: int
    """Segments left out because they stand further up already."""


def write_segment_lists(path: Path, lists: Iterable[tuple[int, Sequence[str]]]) -> int:
    """Writes rows of (class, segment ids); a class without segments has none. Returns the number of rows.

    Raises:
        OutputError: the file cannot be written.
        DataError: a video id that cannot stand in such a file. In either case nothing is left behind.
    """
    count = 0
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({why(error)}). Choose another --out.") from error
    with NewFile(path) as file:
        file.write(b"Class,Segments\n")
        for label, segments in lists:
            for segment in segments:
                if segment[0] == ":":
                    raise DataError(
                        f"{path}: a video without id cannot stand in it. Write a .jsonl file instead."
                    )
                if not _SEPARATORS.isdisjoint(segment) or segment.split() != [segment]:
                    raise DataError(
                        f"{path}: video {segment.rpartition(':')[0]!r} cannot stand in it: ids are parted by "
                        "blanks. Write a .jsonl file instead."
                    )
            if segments:
                file.write(f"{label},{' '.join(segments)}\n".encode())
                count += 1
    return count


def read_segment_lists(path: Path) -> Iterator[SegmentList]:
    """The rows of a file, in its order; header, CRLF, a BOM, quotes around the list and gzip do not matter.

    Raises:
        UsageError: no such file.
        DataError: the line, what is there and what was wanted: a row that is not `class,VIDEO:START ...`, a
            class that comes twice.
    """
    seen: dict[int, int] = {}
    first = True
    for number, line in lines(path):
        if not line.strip():
            continue
        cells = [cell.strip().strip('"') for cell in line.split(",", 1)]
        is_header = first and is_segments_header(cells)
        first = False
        if is_header:
            continue
        where = f"{path}, line {number}"
        label = _class_of(cells, where)
        if label in seen:
            raise DataError(
                f"{where}: class {label} a second time, after line {seen[label]}; wanted it once."
            )
        seen[label] = number
        found = cells[1].split()
        for segment in found:
            video, colon, start = segment.rpartition(":")
            is_start = start.isascii() and start.isdecimal()
            if not (colon and video and is_start and _SEPARATORS.isdisjoint(video)):
                raise DataError(
                    f"{where}: segment {segment[:60]!r}, wanted VIDEO:START, as kX4a:25, parted by blanks."
                )
        segments = list(dict.fromkeys(found))
        yield SegmentList(number, label, segments, len(found) - len(segments))


def _class_of(cells: list[str], where: str) -> int:
    if len(cells) != 2:
        raise DataError(f"{where}: no comma, wanted `class,VIDEO:START VIDEO:START ...`.")
    text = cells[0]
    if not (text.isascii() and text.isdecimal() and len(text) < 9 and int(text) < MAX_CLASSES):
        raise DataError(f"{where}: class {text[:60]!r}, wanted a whole number from 0 to {MAX_CLASSES - 1}.")
    return int(text)


def lists_of_rows(rows: Iterable[Prediction], *, where: str) -> Iterator[SegmentList]:
    """Rows of segments (`VIDEO:START` as video id), from any prediction file, turned into lists of segments.

    Ranked as `nextvlad predict --segments` ranks: by score, then video id, then start. A segment is on the
    lists of the classes its row lists. Memory: 12 bytes a listed class, and about 100 bytes a segment.

    Args:
        rows: in any order, each segment once.
        where: the file, for messages.

    Raises:
        DataError: a row that is none of a segment.
    """
    places: list[tuple[str, int]] = []
    found: dict[int, tuple[array[float], array[int]]] = {}
    for row in rows:
        video, colon, start = row.video_id.rpartition(":")
        if not (colon and video and start.isascii() and start.isdecimal()):
            raise DataError(f"{where}: row {row.video_id[:60]!r}, wanted a segment, VIDEO:START, as kX4a:25.")
        for label, score in zip(row.labels, row.scores, strict=True):
            scores, numbers = found.setdefault(label, (array("d"), array("I")))
            scores.append(score)
            numbers.append(len(places))
        places.append((video, int(start)))
    for label in sorted(found):
        pairs = zip(*found[label], strict=True)
        best = sorted((-score, *places[number]) for score, number in pairs)
        yield SegmentList(0, label, [f"{video}:{start}" for _, video, start in best], 0)


def score_segment_file(
    path: Path,
    data: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    max_segments: int = SEGMENTS_A_CLASS,
    on_damage: Callable[[RecordError], None] | None = None,
) -> dict[str, Any]:
    """MAP@K of a file against the rated segments of `data`, exactly as the competition scored it.

    The file is one of `Class,Segments`, or any prediction file whose rows are segments (`lists_of_rows`).
    Each list is cut to its first K segments, then those without a rating for the class are left out. The mean
    is over all classes of the data that have a positive; one that the file does not list counts as 0.
    Repeated segments are left out before the cut. The ratings are kept in memory, about 200 bytes each.

    Args:
        path: the file.
        data: videos with segment_labels; files, folders, globs or .list files.
        max_segments: K.
        on_damage: as `read_ratings`.

    Returns:
        segment_map; num_segments and num_ratings of the data; num_classes, those with a positive, and
        num_classes_missing, those of them that the file does not list; num_classes_without_positive of the
        file, which count nothing; num_listed, segments in all lists, of which num_repeated stood further
        up already, num_beyond were beyond the first K, and num_unrated had no rating for their class.

    Raises:
        DataError: a malformed row, no positive rating in the data, no list that names a segment of it.
        UsageError: no such file or data.
    """
    rated, num_segments = _ratings(data, on_damage)
    num_positives = {label: sum(of_class.values()) for label, of_class in rated.items()}
    num_positives = {label: count for label, count in num_positives.items() if count}
    if not num_positives:
        shown = data if isinstance(data, str | os.PathLike) else " ".join(map(str, data))
        found = "none of its rated segments is rated positive" if rated else "no rated segments in it"
        raise DataError(
            f"{shown}: {found}; wanted videos with segment_labels and segment_scores, as in YouTube-8M's "
            "validation files of 2019."
        )
    precisions: dict[int, float] = {}
    counts = dict.fromkeys(
        ("num_listed", "num_repeated", "num_beyond", "num_unrated", "num_classes_without_positive"), 0
    )
    is_lists = detect(path) == "segments"
    lists = read_segment_lists(path) if is_lists else lists_of_rows(read_predictions(path), where=str(path))
    for row in lists:
        of_class = rated.get(row.label, {})
        kept = row.segments[:max_segments]
        hits = [of_class[segment] for segment in kept if segment in of_class]
        counts["num_listed"] += len(row.segments) + row.num_repeated
        counts["num_repeated"] += row.num_repeated
        counts["num_beyond"] += len(row.segments) - len(kept)
        counts["num_unrated"] += len(kept) - len(hits)
        counts["num_classes_without_positive"] += row.label not in num_positives
        if row.label in num_positives:
            precisions[row.label] = precision_of_ranking(np.array(hits, bool), num_positives[row.label])
    if counts["num_listed"] == counts["num_repeated"] + counts["num_beyond"] + counts["num_unrated"]:
        raise DataError(
            f"{path}: none of the {counts['num_listed']:,} segments in its lists has a rating for its class "
            "in the data. Give the data that belongs to it; an id is VIDEO:START, START in seconds."
        )
    return {
        "segment_map": sum(precisions[label] for label in sorted(precisions)) / len(num_positives),
        "num_segments": num_segments,
        "num_ratings": sum(map(len, rated.values())),
        "num_classes": len(num_positives),
        "num_classes_missing": len(num_positives) - len(precisions),
        **counts,
    }


def _ratings(
    data: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    on_damage: Callable[[RecordError], None] | None,
) -> tuple[dict[int, dict[str, bool]], int]:
    """Class -> segment id -> whether it is there (the last rating counts), and the number of segments."""
    rated: dict[int, dict[str, bool]] = {}
    names: set[str] = set()
    for segments in read_ratings(data, on_damage=on_damage):
        for segment in segments:
            names.add(segment.video_id)
            positives = set(segment.labels.tolist())
            for label in [] if segment.rated is None else segment.rated.tolist():
                rated.setdefault(label, {})[segment.video_id] = label in positives
    return rated, len(names)


def remarks(result: dict[str, Any]) -> list[str]:
    """What to tell about a score, beside it; one sentence each, none where there is nothing to tell."""
    sentences = {
        "num_unrated": "{n:,} of {num_listed:,} listed segments have no rating for their class: left out.",
        "num_repeated": "{n:,} segments were listed twice for a class: only the first place counts.",
        "num_beyond": "{n:,} segments stood beyond the end of what a list may hold: left out.",
        "num_classes_without_positive": "{n:,} listed classes have no positive in the data: left out.",
        "num_classes_missing": "{n:,} of {num_classes:,} classes with positives are missing: they count 0.",
    }
    return [text.format(n=result[key], **result) for key, text in sentences.items() if result[key]]
