"""Exact GAP over 22 million pairs against plain Python, and what keeping all metrics costs.

GAP: 1.1 million videos, the 20 best classes of each, about 3 labels a video, scores that are sigmoids of
normal logits. Plain Python gets a part of the pairs, and its rate is compared (sorting grows a little faster
than the number of pairs, so this favours Python); `--full` gives it all of them once.

Keeping: `MetricAccumulator.update` with a batch of 3,862 classes, with and without the untruncated mAP,
against a forward pass in float32 of the paper's model, put into inference, on a batch of as many videos.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np
import torch
from batches import made_up_batch
from measure import Comparison, compare, finish, parser
from numpy.typing import NDArray
from starter_gap import gap

from nextvlad.config import NeXtVLADConfig, StreamConfig
from nextvlad.metrics import MetricAccumulator
from nextvlad.metrics.ranking import average_precision, score_keys
from nextvlad.models import build_model, for_inference
from nextvlad.recipes import RECIPES

_TOP_K = 20
_LABELS_PER_VIDEO = 3.0
_MODEL = RECIPES["yt8m_paper"].config.model


def main() -> None:
    options = _options()
    if options.threads:
        torch.set_num_threads(options.threads)
    finish("metrics", [_compare_gap(options), _compare_update(options)], options)


def _options() -> argparse.Namespace:
    options = parser(__doc__, rounds=5)
    options.add_argument("--pairs", type=int, default=22_000_000, help="of GAP (default %(default)s)")
    options.add_argument(
        "--sample", type=int, default=1_000_000, help="pairs for Python (default %(default)s)"
    )
    options.add_argument("--full", action="store_true", help="all pairs for Python, one round")
    options.add_argument("--batch-size", type=int, default=80, help="videos a batch (default %(default)s)")
    given = options.parse_args()
    given.model = _MODEL
    if given.quick:
        given.pairs, given.sample, given.batch_size, given.rounds = 20_000, 5_000, 4, 2
        stream = StreamConfig(name="rgb", size=16)
        given.model = NeXtVLADConfig(streams=(stream,), num_classes=50, clusters=4, groups=2, hidden_size=8)
    if given.full:
        given.sample, given.rounds, given.warmup = given.pairs, 1, 0
    return given


def _compare_gap(options: argparse.Namespace) -> Comparison:
    scores, hits, num_positives = pooled_pairs(options.pairs)
    part = slice(options.sample)
    sample = scores[part].tolist(), hits[part].tolist()
    found: dict[str, float] = {}

    def ours(of: slice) -> Callable[[], float]:
        def run() -> float:
            keys = score_keys(scores[of], hits[of])
            found[str(len(keys))] = average_precision(keys, num_positives)
            return len(keys)

        return run

    def python() -> float:
        found["python"] = gap(*sample, num_positives)
        return len(sample[0])

    comparison = compare(
        "exact GAP",
        {"ours": ours(slice(None)), "plain Python": python},
        unit="pairs",
        rounds=options.rounds,
        warmup=options.warmup,
        wanted={"plain Python": 30.0},
        facts={"pairs": options.pairs, "pairs in Python": options.sample},
    )
    ours(part)()
    if abs(found[str(options.sample)] - found["python"]) > 1e-6:
        raise SystemExit(f"the two do not agree: {found}")
    return comparison


def pooled_pairs(count: int) -> tuple[NDArray[np.float32], NDArray[np.bool_], int]:
    """Scores [n] and hits [n] of the best classes of videos, in the order of the videos; positives of all."""
    numbers = np.random.default_rng(0)
    logits = np.sort(numbers.normal(-4, 2.5, (count // _TOP_K, _TOP_K)).astype(np.float32), axis=1)[:, ::-1]
    scores = (1 / (1 + np.exp(-logits))).astype(np.float32, copy=False)
    chance = scores * (_LABELS_PER_VIDEO * 0.9 / scores.sum(axis=1).mean())  # a tenth is not among the 20
    hits = numbers.random(scores.shape, np.float32) < chance
    return scores.ravel(), hits.ravel(), int(np.count_nonzero(hits) / 0.9)


def _compare_update(options: argparse.Namespace) -> Comparison:
    model = for_inference(build_model(options.model).eval())
    num_classes = options.model.num_classes
    batch = made_up_batch(options.model.streams, options.batch_size)
    numbers = torch.Generator().manual_seed(0)
    logits = torch.randn(options.batch_size, num_classes, generator=numbers) * 2.5 - 6
    probabilities = torch.sigmoid(logits)
    labels = torch.rand(logits.shape, generator=numbers) < _LABELS_PER_VIDEO / num_classes
    losses = torch.ones(options.batch_size)
    calls = 1 if options.quick else 20

    def updating(with_map: bool) -> Callable[[], float]:
        def run() -> float:
            metrics = MetricAccumulator(num_classes, with_map=with_map)
            for _ in range(calls):
                metrics.update(probabilities, labels, losses=losses)
            return metrics.num_videos

        return run

    def forward() -> float:
        with torch.inference_mode():
            return len(model(batch))

    return compare(
        "keeping all metrics",
        {"update": updating(True), "update without mAP": updating(False), "forward pass": forward},
        unit="videos",
        rounds=options.rounds,
        warmup=options.warmup,
        wanted={"forward pass": 20.0},
        facts={"classes": num_classes, "batch": options.batch_size},
    )


if __name__ == "__main__":
    main()
