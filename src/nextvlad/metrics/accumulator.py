"""All metrics in one pass over batches, exact, and mergeable across processes.

Nothing kept depends on how the videos came: whole-number counts, lists that are sorted before they are
summed, and losses summed without rounding. So every batch size, every split over processes and every
order of merging gives the same bits.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nextvlad.metrics.class_keys import ClassKeys
from nextvlad.metrics.functions import hits_among_equal_recall, mean_precision
from nextvlad.metrics.lists import RankedLists
from nextvlad.metrics.ranking import (
    DEFAULT_TOP_K,
    Keys,
    average_precision,
    best_classes,
    checked,
    checked_top_k,
    defined_mean,
    grouped_average_precision,
    score_keys,
)

Piece = dict[str, NDArray[Any]]

_COUNTS = ("num_videos", "num_losses", "top1_hits", "top5_hits")
_COMPUTE_BYTES = 64 << 20
"""Keys of classes ranked at a time."""


class MetricAccumulator:
    """GAP@k, Hit@1, PERR, both mAPs, loss, top-1 and top-5 of videos that come in batches.

    Scores are compared as float32: half precision is exact, float64 is rounded.

    Memory: 6 bytes a kept class (8 from 65,536 classes on), so 120 MB a million videos at the default
    `top_k`, and 8 MB for losses; twice that while an array grows. The untruncated mAP keeps every score
    besides, 4 bytes each: with 3,862 classes 15.4 kB a video, in memory up to `memory_bytes`, then in a
    temporary file, 15.4 GB a million videos.

    Args:
        num_classes: C.
        top_k: classes kept a video for GAP and `map_at_k`, in 1..C; the default keeps all where there
            are fewer than 20.
        with_map: keep what the untruncated mAP needs; without it `map` is None.
        memory_bytes: scores kept in memory for mAP before the file is begun.
        directory: folder of the temporary file; None: the system's (TMPDIR).

    Raises:
        ValueError: `num_classes` below 1, or `top_k` outside 1..C.

    >>> metrics = MetricAccumulator(2, top_k=1)
    >>> metrics.update([[0.9, 0.1], [0.2, 0.8]], [[1, 0], [1, 0]])
    >>> metrics.compute()["gap"], metrics.compute()["hit_at_one"]
    (0.5, 0.5)
    """

    def __init__(
        self,
        num_classes: int,
        *,
        top_k: int = DEFAULT_TOP_K,
        with_map: bool = True,
        memory_bytes: int = 1 << 30,
        directory: str | None = None,
    ) -> None:
        if num_classes < 1:
            raise ValueError(f"num_classes: got {num_classes}, wanted 1 or more.")
        self.num_classes = num_classes
        self.top_k = checked_top_k(top_k, num_classes)
        self._counts = dict.fromkeys(_COUNTS, 0)
        self._equal_recall_hits = np.zeros(num_classes + 1, np.int64)  # by the number of labels of the video
        self._positives = np.zeros(num_classes, np.int64)
        self._top_keys = _Growing(np.uint32)
        self._top_classes = _Growing(np.uint16 if num_classes < 1 << 16 else np.uint32)
        self._losses = _Growing(np.float64)
        self._class_keys = ClassKeys(num_classes, memory_bytes, directory) if with_map else None

    @classmethod
    def for_lists(cls, num_classes: int, *, top_k: int, with_map: bool = False) -> MetricAccumulator:
        """One for `update_lists` alone, where `num_classes` is above every label and `top_k` has no bound.

        `num_classes` may be less than the classes of the lists, and is no more than what memory is for.
        """
        metrics = cls(max(num_classes, 1), with_map=with_map)
        metrics.top_k = max(top_k, 1)
        return metrics

    @property
    def num_videos(self) -> int:
        """Videos seen."""
        return self._counts["num_videos"]

    def update(
        self, probabilities: Any, labels: Any, loss_sum: float | None = None, *, losses: Any = None
    ) -> None:
        """Count the videos of one batch.

        Args:
            probabilities: [B, C] numbers in [0, 1]; an array or a tensor of any device.
            labels: [B, C] bool, or 0 and 1.
            loss_sum: sum of the losses of the videos; rounded already, so that the mean loss may depend on
                the batch size in its last bits.
            losses: [B] loss of each video, instead: the mean loss is then the same bits in every order.

        Raises:
            ValueError: shapes that do not fit, a probability that is NaN or outside [0, 1], a label that
                is neither 0 nor 1, a loss that is not finite. Nothing is counted then.
            OutputError: the temporary file cannot be written.
        """
        scores, truth = checked(probabilities, labels)
        if scores.shape[1] != self.num_classes:
            raise ValueError(f"probabilities: got {scores.shape[1]} classes, wanted {self.num_classes}.")
        batch_losses = _checked_losses(loss_sum, losses, len(scores))
        scores = scores.astype(np.float32, copy=False)
        videos, classes = np.nonzero(truth)
        num_labels = np.bincount(videos, minlength=len(scores))
        depth = min(self.num_classes, max(self.top_k, 5, int(num_labels.max(initial=0))))
        best = best_classes(scores, depth)

        self._count_best(
            best,
            np.take_along_axis(scores, best, axis=1),
            np.take_along_axis(truth, best, axis=1),
            num_labels,
        )
        self._positives += np.bincount(classes, minlength=self.num_classes)
        if batch_losses is not None:
            self._counts["num_losses"] += len(scores)
            self._losses.extend(batch_losses)
        if self._class_keys is not None:
            self._class_keys.add(score_keys(scores, truth).astype(np.uint32, copy=False))

    def update_lists(self, lists: RankedLists, labels: Sequence[NDArray[np.integer[Any]]]) -> None:
        """Count videos of which only some classes have a score.

        A class that a list leaves out ranks below all that it holds, and is not in the pool of GAP: where it
        is a label, it is missed. A class of C or more is no video's label. With every class listed, the same
        bits as `update`.

        Args:
            lists: the classes of B videos and their scores.
            labels: the classes of each of the B videos, in 0..C-1, in any order.

        Raises:
            ValueError: lengths that do not fit, a label outside 0..C-1, or an untruncated mAP to be computed
                from a list of other than all C classes (see `leave_out_map`). Nothing is counted then.
            OutputError: the temporary file cannot be written.
        """
        label_videos, label_classes = _checked_labels(labels, len(lists), self.num_classes)
        if self._class_keys is not None and not lists.hold_all(self.num_classes):
            raise ValueError(
                f"lists: one lacks some of the {self.num_classes} classes, which mAP is made of."
            )
        num_labels = np.bincount(label_videos, minlength=len(lists))
        depth = max(min(self.top_k, lists.longest), 5, int(num_labels.max(initial=0)))
        best, scores, listed = lists.best(depth)
        wanted = label_videos * self.num_classes + label_classes
        rows = np.arange(len(lists))[:, None]
        hits = listed & (best < self.num_classes) & np.isin(rows * self.num_classes + best, wanted)

        self._count_best(best, scores, hits, num_labels, listed)
        self._positives += np.bincount(label_classes, minlength=self.num_classes)
        if self._class_keys is not None:
            truth = np.zeros((len(lists), self.num_classes), np.bool_)
            truth[label_videos, label_classes] = True
            self._class_keys.add(
                score_keys(lists.dense(self.num_classes), truth).astype(np.uint32, copy=False)
            )

    def _count_best(
        self,
        best: NDArray[np.int64],
        scores: NDArray[np.float32],
        hits: NDArray[np.bool_],
        num_labels: NDArray[np.int64],
        listed: NDArray[np.bool_] | None = None,
    ) -> None:
        """Counts the best classes [B, depth] of videos, best first; where not `listed` there is none."""
        self._counts["num_videos"] += len(best)
        self._counts["top1_hits"] += int(np.count_nonzero(hits[:, 0]))
        self._counts["top5_hits"] += int(np.count_nonzero(hits[:, :5].any(axis=1)))
        self._equal_recall_hits += hits_among_equal_recall(hits, num_labels, self.num_classes)
        kept = slice(None), slice(self.top_k)
        keys, classes = score_keys(scores[kept], hits[kept]), np.minimum(best[kept], self.num_classes)
        self._top_keys.extend(keys if listed is None else keys[listed[kept]])
        self._top_classes.extend(classes if listed is None else classes[listed[kept]])

    def leave_out_map(self) -> None:
        """Compute no untruncated mAP, and forget what was kept for it."""
        if self._class_keys is not None:
            self._class_keys.close()
            self._class_keys = None

    def compute(self) -> dict[str, Any]:
        """The metrics of all videos so far, as plain values for JSON; None where one is not defined.

        Keys: num_videos (int), gap, hit_at_one, perr, map (untruncated; None if it was left out), map_at_k
        (the starter code's, on the `top_k` best classes of each video), loss (mean over videos; None
        unless every batch came with its loss), top1, top5 (None below five classes). Does not change the
        state; more videos may follow.
        """
        num_videos = self.num_videos
        keys, classes = self._top_keys.values(), self._top_classes.values()
        full_map = (
            defined_mean(self.per_class_average_precision()) if self._class_keys is not None else math.nan
        )
        has_loss = 0 < num_videos == self._counts["num_losses"]
        values = {
            "gap": average_precision(keys, int(self._positives.sum())),
            "hit_at_one": _share(self._counts["top1_hits"], num_videos),
            "perr": mean_precision(self._equal_recall_hits, num_videos),
            "map": full_map,
            "map_at_k": defined_mean(
                grouped_average_precision(keys, classes, np.append(self._positives, 0))  # 0: of C and above
            ),
            "loss": math.fsum(self._losses.values()) / num_videos if has_loss else math.nan,
            "top1": _share(self._counts["top1_hits"], num_videos),
            "top5": _share(self._counts["top5_hits"], num_videos) if self.num_classes >= 5 else math.nan,
        }
        defined = {name: None if math.isnan(value) else value for name, value in values.items()}
        return {"num_videos": num_videos, **defined}

    @property
    def num_positives(self) -> NDArray[np.int64]:
        """[C] videos seen of each class."""
        return self._positives.copy()

    def class_keys(self) -> Iterator[Keys]:
        """For each class in turn the keys [N] of all its scores (see `nextvlad.metrics.ranking`).

        Raises:
            ValueError: the accumulator was made with `with_map=False`.
        """
        if self._class_keys is None:
            raise ValueError("class_keys: this accumulator was made with with_map=False.")
        step = self._classes_at_a_time()
        for start in range(0, self.num_classes, step):
            yield from self._class_keys.classes(start, min(start + step, self.num_classes))

    def _classes_at_a_time(self) -> int:
        return max(1, _COMPUTE_BYTES // (4 * max(1, self.num_videos)))

    def per_class_average_precision(self) -> NDArray[np.float64]:
        """[C] untruncated average precision of each class; NaN for a class without positives.

        Raises:
            ValueError: the accumulator was made with `with_map=False`.
        """
        if self._class_keys is None:
            raise ValueError("per_class_average_precision: this accumulator was made with with_map=False.")
        precisions = np.full(self.num_classes, np.nan)
        step = self._classes_at_a_time()
        for start in range(0, self.num_classes, step):
            positives = self._positives[start : start + step].tolist()
            if any(positives):
                keys = self._class_keys.classes(start, start + len(positives))
                pairs = zip(keys, positives, strict=True)
                precisions[start : start + step] = [average_precision(*pair) for pair in pairs]
        return precisions

    def merge(self, other: MetricAccumulator) -> None:
        """Count the videos of another accumulator too, which stays as it is.

        Raises:
            ValueError: it was made for other classes, another `top_k`, or differs in `with_map`.
            OutputError: the temporary file cannot be written.
        """
        for piece in other.pieces():
            self.add_piece(piece)

    def pieces(self) -> Iterator[Piece]:
        """The state as a series of dictionaries of arrays, to send to another process.

        The first holds the counts and the kept classes, each further one about 64 MiB of scores for mAP.
        Pass each to `add_piece` of an accumulator made with the same settings; the order does not matter.
        The arrays must not be changed.
        """
        yield {
            "settings": self._settings(),
            "counts": np.array([self._counts[name] for name in _COUNTS], np.int64),
            "equal_recall_hits": self._equal_recall_hits.copy(),
            "positives": self._positives.copy(),
            "top_keys": self._top_keys.values().copy(),
            "top_classes": self._top_classes.values().copy(),
            "losses": self._losses.values().copy(),
        }
        if self._class_keys is not None:
            for chunk in self._class_keys.chunks():
                yield {"settings": self._settings(), "class_keys": chunk}

    def add_piece(self, piece: Piece) -> None:
        """Count what one of another accumulator's `pieces` holds; errors as for `merge`."""
        ours, theirs = self._settings().tolist(), piece["settings"].tolist()
        if ours != theirs:
            raise ValueError(
                f"merge: got an accumulator with [num_classes, top_k, with_map] = {theirs}, wanted {ours}."
            )
        if "class_keys" in piece:
            if self._class_keys is not None:
                self._class_keys.add_chunk(piece["class_keys"])
            return
        for name, count in zip(_COUNTS, piece["counts"].tolist(), strict=True):
            self._counts[name] += count
        self._equal_recall_hits += piece["equal_recall_hits"]
        self._positives += piece["positives"]
        self._top_keys.extend(piece["top_keys"])
        self._top_classes.extend(piece["top_classes"])
        self._losses.extend(piece["losses"])

    def close(self) -> None:
        """Remove the temporary file now, instead of when the accumulator is dropped; it ends here."""
        if self._class_keys is not None:
            self._class_keys.close()

    def _settings(self) -> NDArray[np.int64]:
        return np.array([self.num_classes, self.top_k, self._class_keys is not None], np.int64)


class _Growing:
    """A 1-D array that grows at its end; doubling makes many small batches as cheap as few large ones."""

    def __init__(self, dtype: Any) -> None:
        self._buffer = np.empty(0, dtype)
        self._length = 0

    def extend(self, values: NDArray[Any]) -> None:
        """Copy the values, flattened, to the end."""
        needed = self._length + values.size
        if needed > len(self._buffer):
            larger = np.empty(max(needed, 2 * len(self._buffer)), self._buffer.dtype)
            larger[: self._length] = self.values()
            self._buffer = larger
        self._buffer[self._length : needed] = values.ravel()
        self._length = needed

    def values(self) -> NDArray[Any]:
        """A view of what is there."""
        return self._buffer[: self._length]


def _checked_losses(loss_sum: float | None, losses: Any, num_videos: int) -> NDArray[np.float64] | None:
    if losses is None:
        if loss_sum is None:
            return None
        if not math.isfinite(loss_sum):
            raise ValueError(f"loss_sum: got {loss_sum}, wanted a finite number.")
        return np.array([loss_sum], np.float64)
    if loss_sum is not None:
        raise ValueError("update: got both loss_sum and losses, wanted one of them.")
    if hasattr(losses, "detach"):  # a torch tensor
        losses = losses.detach().cpu().double().numpy()
    values = np.asarray(losses, np.float64)
    if values.shape != (num_videos,):
        raise ValueError(f"losses: got shape {values.shape}, wanted one a video, {(num_videos,)}.")
    if not np.isfinite(values).all():
        raise ValueError(f"losses: got {values[~np.isfinite(values)][0]}, wanted finite numbers.")
    return values


def _checked_labels(
    labels: Sequence[NDArray[np.integer[Any]]], num_videos: int, num_classes: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Videos and classes of all labels [L], each pair once."""
    if len(labels) != num_videos:
        raise ValueError(f"labels: got those of {len(labels)} videos, wanted {num_videos}.")
    videos = np.repeat(np.arange(num_videos), [len(of_video) for of_video in labels])
    classes = np.concatenate([np.empty(0, np.int64), *labels]).astype(np.int64, copy=False)
    if len(classes) and not 0 <= classes.min() <= classes.max() < num_classes:
        wrong = classes[(classes < 0) | (classes >= num_classes)][0]
        raise ValueError(f"labels: got class {wrong}, wanted 0 to {num_classes - 1}.")
    pairs = np.unique(videos * num_classes + classes)
    return pairs // num_classes, pairs % num_classes


def _share(count: int, total: int) -> float:
    return count / total if total else math.nan
