"""Training steps a second, optimiser included, against the equations written out on padded batches.

The paper's model from its initial weights, YouTube-8M's streams, 120 to 300 frames a video, another batch
each round. Ours is the step that `nextvlad train` makes: forward, backward, L2, clipping, fused Adam, in a
process set up as the command line does it (large pages, cli.py; denormal numbers flushed, train_step.py). The
other is a plain implementation's: padded frames, autograd through the equations, foreach Adam; once in a
process of its own, set up as PyTorch is, and once in ours, which shows what the set-up alone gives. Gradients
are compared before.

A precision that this CPU has no instructions for is left out: training would take float32 in its place.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # before torch

import naive_nextvlad
import torch
from batches import in_turn, made_up_batch
from measure import Comparison, compare, finish, parser
from torch import Tensor, nn

from nextvlad import optim
from nextvlad.config import NeXtVLADConfig, Precision, StreamConfig
from nextvlad.data.batch import FrameBatch
from nextvlad.inference import autocast
from nextvlad.models import branch_sums
from nextvlad.models.base import cross_entropy
from nextvlad.models.cpu import settle
from nextvlad.models.nextvlad import NeXtVLAD
from nextvlad.recipes import RECIPES
from nextvlad.run_config import OptimConfig

_WANTED: dict[Precision, float] = {"fp32": 3.3, "bf16": 4.8}
_EQUATIONS = "equations, padded, foreach Adam"
_SET_UP = "the same in our set-up"
_PLAIN = "--plain-worker"
_CPU = torch.device("cpu")
_OPTIM = OptimConfig()


def main() -> None:
    options = _options()
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.plain_worker:
        _work_plainly(options.plain_worker, options)
        return
    torch.set_flush_denormal(True)
    precisions = [precision for precision in options.precisions if settle(precision, _CPU) == precision]
    if left_out := set(options.precisions) - set(precisions):
        print(f"Left out, as this CPU has no instructions for it: {', '.join(left_out)}\n")
    comparisons = [
        _compare(precision, size, options) for size in options.batch_sizes for precision in precisions
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
    options.add_argument(_PLAIN, type=int, metavar="SIZE", help=argparse.SUPPRESS)
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
    with autocast(_CPU, precision):
        return model.loss(batch, batch.labels.float()) / batch.num_videos


def _naive_loss(model: NeXtVLAD, batch: FrameBatch) -> Tensor:
    return cross_entropy(naive_nextvlad.logits(model, batch), batch.labels.float(), None) / batch.num_videos


def _compare(precision: Precision, size: int, options: argparse.Namespace) -> Comparison:
    ours, plain = _model(options.quick), _model(options.quick)
    rounds = options.rounds + options.warmup
    batches = _batches(ours, size, rounds)
    differences = _gradient_differences(ours, plain, batches[0], precision)

    adam = optim.make_optimizer(ours, _OPTIM)
    plain_step = _plain_step(plain)

    def our_step(batch: FrameBatch) -> None:
        adam.zero_grad(set_to_none=True)
        _our_loss(ours, batch, precision).backward()
        optim.prepare_step(adam, _OPTIM, step=1, lr=_OPTIM.lr)
        optim.add_l2_gradient(ours.class_layers().values(), _OPTIM.l2)
        optim.clip_gradients(ours.parameters(), _OPTIM)
        adam.step()

    with _plain_process(size, options) as elsewhere:
        return compare(
            f"training {precision}, batch {size}",
            {
                precision: in_turn(our_step, batches),
                _EQUATIONS: elsewhere,
                _SET_UP: in_turn(plain_step, batches),
            },
            unit="videos",
            rounds=options.rounds,
            warmup=options.warmup,
            wanted={_EQUATIONS: _WANTED[precision]},
            facts={"threads": torch.get_num_threads(), **differences},
        )


def _plain_step(model: NeXtVLAD) -> Callable[[FrameBatch], None]:
    foreach = torch.optim.AdamW(model.parameters(), lr=_OPTIM.lr, weight_decay=0.0, foreach=True)

    def step(batch: FrameBatch) -> None:
        foreach.zero_grad(set_to_none=True)
        _naive_loss(model, batch).backward()
        optim.add_l2_gradient(model.class_layers().values(), _OPTIM.l2)
        nn.utils.clip_grad_norm_(model.parameters(), _OPTIM.clip_norm)
        foreach.step()

    return step


@contextmanager
def _plain_process(size: int, options: argparse.Namespace) -> Iterator[Callable[[], float]]:
    """A process without our settings; each call has it make one step."""
    command = [sys.executable, __file__, _PLAIN, str(size), "--rounds", str(options.rounds)]
    command += ["--warmup", str(options.warmup), "--threads", str(torch.get_num_threads())]
    command += ["--quick"] if options.quick else []
    environment = os.environ | {"THP_MEM_ALLOC_ENABLE": "0"}
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        orders, answers = process.stdin, process.stdout
        assert answers.readline() == "ready\n"

        def once() -> float:
            print("step", file=orders, flush=True)
            return float(answers.readline())

        yield once
        orders.close()


def _work_plainly(size: int, options: argparse.Namespace) -> None:
    """In that process: a step for each line that comes."""
    model = _model(options.quick)
    once = in_turn(_plain_step(model), _batches(model, size, options.rounds + options.warmup))
    print("ready", flush=True)
    for _ in sys.stdin:
        print(once(), flush=True)


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
