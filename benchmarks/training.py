"""Training steps a second, optimiser included, against the equations written out on padded batches.

The paper's model from its initial weights, YouTube-8M's streams, 120 to 300 frames a video, another batch
each round. Ours is the step that `nextvlad train` makes: forward, backward, L2, clipping, fused Adam. The
other is a plain implementation's: padded frames, autograd through the equations, foreach Adam. Gradients are
compared before. Both take large memory in large pages, as the command line does (cli.py).
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable

os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # before torch

import naive_nextvlad
import torch
from batches import made_up_batch
from measure import Comparison, compare, finish, parser
from torch import Tensor, nn

from nextvlad import optim
from nextvlad.config import NeXtVLADConfig, OptimConfig, Precision, StreamConfig
from nextvlad.data.batch import FrameBatch
from nextvlad.inference import autocast
from nextvlad.models import branch_sums
from nextvlad.models.base import cross_entropy
from nextvlad.models.cpu import settle
from nextvlad.models.nextvlad import NeXtVLAD
from nextvlad.recipes import RECIPES

_WANTED: dict[Precision, float] = {"fp32": 3.3, "bf16": 4.8}
_EQUATIONS = "equations, padded, foreach Adam"
_OPTIM = OptimConfig()


def main() -> None:
    options = _options()
    if options.threads:
        torch.set_num_threads(options.threads)
    torch.set_flush_denormal(True)  # for all alternatives
    comparisons = [
        _compare(precision, size, options) for size in options.batch_sizes for precision in options.precisions
    ]
    if options.folding:
        comparisons += [_compare_folding(frames, options) for frames in options.folding]
    finish("training", comparisons, options)


def _options() -> argparse.Namespace:
    options = parser(__doc__, rounds=5)
    options.add_argument("--batch-sizes", type=int, nargs="*", default=[32, 80], help="videos a batch")
    options.add_argument("--precisions", nargs="+", choices=list(_WANTED), default=list(_WANTED))
    options.add_argument(
        "--folding",
        type=int,
        nargs="*",
        default=[1024, 2048, 4096],
        help="frames with which one branch is timed folded and not",
    )
    given = options.parse_args()
    if given.quick:
        given.batch_sizes, given.rounds, given.folding = [3], 2, [64]
    return given


def _model(quick: bool) -> NeXtVLAD:
    config = RECIPES["yt8m_paper"].config.model
    assert isinstance(config, NeXtVLADConfig)
    if quick:
        streams = (StreamConfig(name="rgb", size=16),)
        config = NeXtVLADConfig(
            streams=streams, num_classes=50, clusters=4, groups=2, hidden_size=8, dropout=0.0
        )
    torch.manual_seed(0)
    return NeXtVLAD(config).train()


def _batches(model: NeXtVLAD, size: int, count: int) -> list[FrameBatch]:
    batches = []
    for seed in range(count):
        batch = made_up_batch(model.config.streams, size, seed)
        numbers = torch.Generator().manual_seed(seed)
        labels = torch.rand(size, model.config.num_classes, generator=numbers)
        batches.append(FrameBatch(batch.video_ids, labels < 3 / model.config.num_classes, batch.streams))
    return batches


def _our_loss(model: NeXtVLAD, batch: FrameBatch, precision: Precision) -> Tensor:
    with autocast(torch.device("cpu"), precision):
        return model.loss(batch, batch.labels.float()) / batch.num_videos


def _naive_loss(model: NeXtVLAD, batch: FrameBatch) -> Tensor:
    return cross_entropy(naive_nextvlad.logits(model, batch), batch.labels.float(), None) / batch.num_videos


def _compare(asked: Precision, size: int, options: argparse.Namespace) -> Comparison:
    precision = settle(asked, torch.device("cpu"))
    ours, plain = _model(options.quick), _model(options.quick)
    rounds = options.rounds + options.warmup
    batches = _batches(ours, size, rounds)
    differences = _gradient_differences(ours, plain, batches[0], precision)

    adam = optim.make_optimizer(ours, _OPTIM)
    foreach = torch.optim.AdamW(plain.parameters(), lr=_OPTIM.lr, weight_decay=0.0, foreach=True)

    def our_step(batch: FrameBatch) -> None:
        adam.zero_grad(set_to_none=True)
        _our_loss(ours, batch, precision).backward()
        optim.prepare_step(adam, _OPTIM, step=1, lr=_OPTIM.lr)
        optim.add_l2_gradient(ours.class_layers().values(), _OPTIM.l2)
        optim.clip_gradients(ours.parameters(), _OPTIM)
        adam.step()

    def plain_step(batch: FrameBatch) -> None:
        foreach.zero_grad(set_to_none=True)
        _naive_loss(plain, batch).backward()
        optim.add_l2_gradient(plain.class_layers().values(), _OPTIM.l2)
        nn.utils.clip_grad_norm_(plain.parameters(), _OPTIM.clip_norm)
        foreach.step()

    def in_turn(step: Callable[[FrameBatch], None]) -> Callable[[], float]:
        coming = iter(batches)

        def once() -> float:
            batch = next(coming)
            step(batch)
            return batch.num_videos

        return once

    return compare(
        f"training {asked}, batch {size}",
        {asked: in_turn(our_step), _EQUATIONS: in_turn(plain_step)},
        unit="videos",
        rounds=options.rounds,
        warmup=options.warmup,
        wanted={_EQUATIONS: _WANTED[asked]},
        facts={"threads": torch.get_num_threads(), "computed in": precision, **differences},
    )


def _gradient_differences(
    ours: NeXtVLAD, plain: NeXtVLAD, batch: FrameBatch, precision: Precision
) -> dict[str, float]:
    """Norm of the difference over norm of the gradient: all parameters together, and the worst of them."""
    for model in (ours, plain):
        model.dropout.probability = 0.0
    _our_loss(ours, batch, precision).backward()
    _naive_loss(plain, batch).backward()
    parts = []
    for (name, a), b in zip(ours.named_parameters(), plain.parameters(), strict=True):
        assert a.grad is not None, name
        assert b.grad is not None, name
        if not name.endswith("descriptor_norm.bias"):  # its true gradient is 0: a batch norm follows
            parts.append((float((a.grad - b.grad).norm()), float(b.grad.norm())))
    for model in (ours, plain):
        model.dropout.probability = model.config.dropout
    total = sum(difference**2 for difference, _ in parts) / sum(norm**2 for _, norm in parts)
    return {
        "gradient difference": float(f"{total**0.5:.1e}"),
        "of the worst parameter": float(f"{max(difference / norm for difference, norm in parts):.1e}"),
    }


def _compare_folding(num_frames: int, options: argparse.Namespace) -> Comparison:
    """One branch's sums, forward and backward, with expansion and assignment as one layer or two."""
    model = _model(options.quick)
    branch = next(iter(model.branches.values()))
    stream = model.config.streams[0]
    numbers = torch.Generator().manual_seed(0)
    values = torch.randint(0, 256, (num_frames, stream.size), dtype=torch.uint8, generator=numbers)
    offsets = torch.arange(0, num_frames + 1, min(256, num_frames))

    def run(folded: bool) -> Callable[[], float]:
        def once() -> float:
            found = branch_sums.branch_sums(
                values,
                offsets,
                branch.preprocess,
                branch.weights(),
                epsilon=1e-3,
                dtype=torch.float32,
                folded=folded,
            )
            (found.sums.sum() + found.mass.sum()).backward()
            return num_frames

        return once

    return compare(
        f"one branch, {num_frames} frames",
        {"folded": run(True), "two layers": run(False)},
        unit="frames",
        rounds=options.rounds,
        warmup=options.warmup,
        facts={"threads": torch.get_num_threads()},
    )


if __name__ == "__main__":
    main()
