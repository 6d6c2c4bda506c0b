"""The weighted mean of prediction files of any system, as a stream."""

from __future__ import annotations

import math
from array import array
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from pathlib import Path

from nextvlad.data.vocabulary import Vocabulary
from nextvlad.errors import ConfigError, DataError, UsageError
from nextvlad.metrics.ranking import DEFAULT_TOP_K
from nextvlad.predictions import Prediction, detect, read_predictions, write_predictions, writer_for
from nextvlad.progress import ProgressBar, say

_VIDEOS_A_STEP = 256  # of the progress bar


def ensemble(
    files: Sequence[Path],
    *,
    out: Path,
    weights: Sequence[float] | None = None,
    top_k: int | None = None,
    vocabulary: Path | None = None,
) -> int:
    """`nextvlad ensemble`: writes `out` and returns the number of videos in it.

    A video's score of a class is the sum over the files of weight x score, 0 where a file does not list the
    class, with weights that sum to 1. Rows come in the order of the first file. Of the other files only
    rows are held that come before their turn: none where the order is the same.

    Args:
        files: one (which is then converted) or more, of any formats that
            `nextvlad.predictions.read_predictions` reads.
        out: .jsonl, .csv, .parquet or .pkl; none of the files.
        weights: one a file, finite, 0 or more, not all 0; None: equal ones.
        top_k: classes a video, 1 or more; None: 20, or all that a single file lists.
        vocabulary: CSV with class names for .jsonl and .parquet.

    Raises:
        NextvladError: as its message says; DataError for a video that is not in all files. Nothing is
            written then.
    """
    if not files:
        raise UsageError("ensemble: no FILE given; wanted prediction files to average, or one to convert.")
    shares = normalised(weights, len(files))
    kept = top_k or (DEFAULT_TOP_K if len(files) > 1 else None)
    if top_k is not None and top_k < 1:
        raise UsageError(f"--top-k: got {top_k}, wanted 1 or more.")
    writer_for(out)
    _refuse_overwriting(out, files)
    names = Vocabulary.load(vocabulary) if vocabulary is not None else None
    for file in files:
        detect(file)  # what is no prediction file is told before the work begins

    def rows() -> Generator[Prediction, None, None]:
        with ProgressBar("Averaging", total=None, unit="videos") as bar:
            for count, same_video in enumerate(aligned(files), 1):
                row = weighted_mean(same_video, shares, kept)
                _check_named(row, names, vocabulary)
                yield row
                if count % _VIDEOS_A_STEP == 0:
                    bar.advance(_VIDEOS_A_STEP)

    with closing(rows()) as averaged:
        count = write_predictions(out, averaged, names, keep_partial=False)
    source = f"the mean of {len(files)} files" if len(files) > 1 else str(files[0])
    say(f"{count:,} video{'s' if count != 1 else ''}, {source} -> {out}")
    return count


def normalised(weights: Sequence[float] | None, num_files: int) -> list[float]:
    """The weights over their sum; equal ones where none are given.

    Raises:
        UsageError: not one a file, negative, not finite, or all 0.

    >>> normalised([3, 1], 2)
    [0.75, 0.25]
    """
    given = [1.0] * num_files if weights is None else [float(weight) for weight in weights]
    if len(given) != num_files:
        raise UsageError(f"--weights: got {len(given)}, wanted one for each of the {num_files} files.")
    wrong = [weight for weight in given if not (math.isfinite(weight) and weight >= 0)]
    if wrong or not any(given):
        words = " ".join(f"{weight:g}" for weight in given)
        raise UsageError(f"--weights: got {words}; wanted finite numbers, 0 or more, and not all 0.")
    largest = max(given)  # so that no sum overflows
    total = math.fsum(weight / largest for weight in given)
    return [weight / largest / total for weight in given]


def weighted_mean(rows: Sequence[Prediction], shares: Sequence[float], top_k: int | None) -> Prediction:
    """The mean of one video's rows, its best classes (None: all), of equal scores the lower class first.

    >>> rows = [Prediction("v", [1, 2], [0.5, 0.25]), Prediction("v", [2], [0.75])]
    >>> weighted_mean(rows, [0.5, 0.5], 20)
    Prediction(video_id='v', labels=[2, 1], scores=[0.5, 0.25])
    """
    sums: dict[int, float] = {}
    for row, share in zip(rows, shares, strict=True):
        for label, score in zip(row.labels, row.scores, strict=True):
            sums[label] = sums.get(label, 0.0) + share * score
    best = sorted(sums.items(), key=lambda pair: (-pair[1], pair[0]))[:top_k]
    return Prediction(rows[0].video_id, [label for label, _ in best], [score for _, score in best])


def aligned(files: Sequence[Path]) -> Iterator[list[Prediction]]:
    """The rows of each video, one a file, in the order of the first file.

    Raises:
        DataError: a video that is not in all files, by its id; what `read_predictions` refuses.
    """
    others = [_Ahead(file, read_predictions(file)) for file in files[1:]]
    for row in read_predictions(files[0]):
        yield [row, *(other.take(row.video_id, files[0]) for other in others)]
    for other in others:
        other.check_used_up(files[0])


class _Ahead:
    """One file, and those of its rows that were read before their turn; 12 bytes a class and 400 a row."""

    def __init__(self, file: Path, rows: Iterator[Prediction]) -> None:
        self.file, self.rows = file, rows
        self.held: dict[str, tuple[array[int], array[float]]] = {}

    def take(self, video_id: str, wanted_by: Path) -> Prediction:
        """The row of one video."""
        if video_id in self.held:
            labels, scores = self.held.pop(video_id)
            return Prediction(video_id, labels.tolist(), scores.tolist())
        for row in self.rows:
            if row.video_id == video_id:
                return row
            self.held[row.video_id] = array("i", row.labels), array("d", row.scores)
        raise DataError(
            f"{self.file}: no video {video_id}, which {wanted_by} has (or it comes twice there). Wanted the "
            "same videos in every file."
        )

    def check_used_up(self, first: Path) -> None:
        """Refuses rows that are left."""
        left = next(iter(self.held), None)
        for row in self.rows:  # to the end, where a video that comes twice is told
            left = left or row.video_id
        if left is not None:
            raise DataError(
                f"{first}: no video {left}, which {self.file} has. Wanted the same videos in every file."
            )


def _refuse_overwriting(out: Path, files: Sequence[Path]) -> None:
    for file in files:
        for written in (out, out.with_name(out.name + ".partial")):
            if written.exists() and file.exists() and written.samefile(file):
                raise UsageError(f"--out {out}: would overwrite {file}, which is read. Choose another name.")


def _check_named(row: Prediction, names: Vocabulary | None, vocabulary: Path | None) -> None:
    if names is not None and row.labels and max(row.labels) >= len(names):
        raise ConfigError(
            f"{vocabulary}: {len(names)} classes, but video {row.video_id} has class {max(row.labels)}. Give "
            "the vocabulary that the predictions refer to."
        )
