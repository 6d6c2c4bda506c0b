"""Videos a second through training and inference on one GPU: plain steps, fused kernels, CUDA graphs.

The paper's model from its initial weights, YouTube-8M's streams, batches of 512 videos of 230 frames on
average, in bfloat16; and, where graphs should gain the most, inference of the AudioSet recipe's small model,
batches of 160 videos of 10 frames. The data lies in memory: on the GPU, or, where it says so, in page-locked
memory of the host, from where each batch is copied while the one before is computed. A round is several
batches, with one wait at its end (training also waits in every step, for the loss, as `nextvlad train` does).
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import itertools
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from batches import made_up_batch
from measure import Comparison, compare, finish, parser
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from nextvlad import optim
from nextvlad.config import NeXtVLADConfig, StreamConfig
from nextvlad.data.batch import FrameBatch
from nextvlad.data.device_batches import DeviceBatches
from nextvlad.inference import autocast
from nextvlad.models import InferenceModel, for_inference, kernels
from nextvlad.models.graphs import Graphs
from nextvlad.models.nextvlad import NeXtVLAD
from nextvlad.recipes import RECIPES
from nextvlad.run_config import OptimConfig

_TARGETS = {
    "training": (40_000, 100_000),
    "inference": (80_000, 205_000),
}  # videos/s: wanted, and the ceiling
_SMALL = "small inference"
_WHAT = ["inference", "training", _SMALL]
_LENGTHS = (160, 300)  # frames; 230 on average
_SMALL_BATCH, _SMALL_LENGTHS, _SMALL_STEPS = 160, (10, 10), 10  # times as many batches a round
_PLAIN, _FUSED, _COPIED, _GRAPH = "plain", "fused", "fused, copied from the host", "fused, as a graph"


def main() -> None:
    options = _options()
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        sys.exit("benchmarks/gpu.py: no CUDA device here; it measures nothing elsewhere.")
    facts = {"ceilings": _ceilings(device), "kernels": kernels.available(device)}
    if device.type == "cuda" and not facts["kernels"]:
        print("The fused kernels are not available; 'fused' is plain, too.", file=sys.stderr)
    comparisons = []
    for what in options.what:
        measure = _training if what == "training" else _inference
        own = _for_small(options) if what == _SMALL else options
        config = _config("audioset" if what == _SMALL else "yt8m_paper", options.quick)
        lengths = _SMALL_LENGTHS if what == _SMALL else _LENGTHS
        hosts = [_batch(config, own.batch_size, lengths, seed) for seed in range(own.batches)]
        if device.type == "cuda":
            hosts = [batch.pin_memory() for batch in hosts]
        comparisons.append(_compare(what, measure(config, hosts, device, own), facts, own))
    finish("gpu", comparisons, options)


def _options() -> argparse.Namespace:
    options = parser(__doc__, rounds=5)
    options.add_argument("--what", nargs="+", choices=_WHAT, default=_WHAT)
    options.add_argument("--batch-size", type=int, default=512, help="videos a batch (default %(default)s)")
    options.add_argument("--batches", type=int, default=4, help="different ones (default %(default)s)")
    options.add_argument("--steps", type=int, default=20, help="batches a round (default %(default)s)")
    options.add_argument("--profile", action="store_true", help="also print where the GPU's time goes")
    options.add_argument("--device", default="cuda", help="anything but cuda goes with --quick only")
    given = options.parse_args()
    if given.quick:
        given.batch_size, given.batches, given.steps, given.rounds = 3, 2, 2, 2
    elif not given.device.startswith("cuda"):
        options.error("--device: nothing but cuda is worth a measurement; --quick shows that it runs.")
    return given


def _for_small(options: argparse.Namespace) -> argparse.Namespace:
    own = copy.copy(options)
    if not options.quick:
        own.batch_size, own.steps = _SMALL_BATCH, options.steps * _SMALL_STEPS
    return own


def _config(recipe: str, quick: bool) -> NeXtVLADConfig:
    config = RECIPES[recipe].config.model
    assert isinstance(config, NeXtVLADConfig)
    if quick:
        streams = (StreamConfig(name="rgb", size=16),)
        return NeXtVLADConfig(streams=streams, num_classes=50, clusters=4, groups=2, hidden_size=8)
    return config


def _batch(config: NeXtVLADConfig, num_videos: int, lengths: tuple[int, int], seed: int) -> FrameBatch:
    shortest, longest = lengths
    batch = made_up_batch(config.streams, num_videos, seed, shortest=shortest, longest=longest)
    numbers = torch.Generator().manual_seed(seed)
    labels = torch.rand(num_videos, config.num_classes, generator=numbers) < 3 / config.num_classes
    return FrameBatch(batch.video_ids, labels, batch.streams)


class _InMemory:
    """What `DeviceBatches` asks of a loader: the same batches over and over."""

    def __init__(self, batches: list[FrameBatch], count: int) -> None:
        self._batches, self._count = batches, count

    def __iter__(self) -> Iterator[FrameBatch]:
        yield from itertools.islice(itertools.cycle(self._batches), self._count)

    def place(self) -> None:
        return None


@contextmanager
def _without_kernels() -> Iterator[None]:
    available = kernels.available
    kernels.available = lambda device: False  # type: ignore[assignment]
    try:
        yield
    finally:
        kernels.available = available


def _rounds(
    step: Callable[[FrameBatch], Any],
    hosts: list[FrameBatch],
    device: torch.device,
    options: argparse.Namespace,
) -> dict[str, Callable[[], float]]:
    """The same step on batches that are on the device, without and with kernels, and on batches that come."""
    here = [batch.to(device) for batch in hosts]

    def run(batches: Iterator[FrameBatch]) -> float:
        videos = 0
        for batch in batches:
            step(batch)
            videos += batch.num_videos
        _wait(device)
        return videos

    def resident() -> float:
        return run(itertools.islice(itertools.cycle(here), options.steps))

    def plain() -> float:
        with _without_kernels():
            return resident()

    def copied() -> float:
        loader: Any = _InMemory(hosts, options.steps)
        return run(batch for _, batch in DeviceBatches(loader, device))

    return {_FUSED: resident, _COPIED: copied, _PLAIN: plain}


@torch.inference_mode()
def _inference(
    config: NeXtVLADConfig, hosts: list[FrameBatch], device: torch.device, options: argparse.Namespace
) -> tuple[dict[str, Callable[[], float]], dict[str, Any]]:
    torch.manual_seed(0)
    model = NeXtVLAD(config).to(device).eval()
    for name, tensor in model.state_dict().items():  # statistics as after some training, not 0 and 1
        if name.endswith("running_mean"):
            tensor.normal_(0, 0.1)
        elif name.endswith("running_var"):
            tensor.uniform_(0.5, 1.5)
    fast = for_inference(model, "bf16")
    fast.graphs = None
    batch = hosts[0].to(device)
    exact = for_inference(model, "fp32")(batch).sigmoid()
    facts = {"probability off fp32 by": float(f"{(fast(batch).sigmoid() - exact).abs().max():.1e}")}
    with _without_kernels():
        facts["plain, by"] = float(f"{(fast(batch).sigmoid() - exact).abs().max():.1e}")
    rounds = _rounds(torch.inference_mode()(fast), hosts, device, options)
    if device.type == "cpu" or kernels.available(device):
        graph = _with_graphs(fast, hosts)
        start = time.perf_counter()
        facts["graph, by"] = float(f"{(graph(batch).sigmoid() - exact).abs().max():.1e}")
        facts["capture s"] = float(f"{time.perf_counter() - start:.2g}")
        rounds[_GRAPH] = _rounds(torch.inference_mode()(graph), hosts, device, options)[_FUSED]
    return rounds, facts


def _with_graphs(fast: InferenceModel, hosts: list[FrameBatch]) -> InferenceModel:
    """The same model, each shape of batch captured when it comes first, however large it is.

    On a CPU, where this only shows that it runs, the work itself again in place of a graph.
    """
    most = max(sum(frames.values.nbytes for frames in batch.streams.values()) for batch in hosts)
    capture = (lambda run: run) if fast.device.type == "cpu" else None
    graphed = copy.copy(fast)
    graphed.graphs = Graphs(fast.device, capture, after=0, most_bytes=2 * most)
    return graphed


def _training(
    config: NeXtVLADConfig, hosts: list[FrameBatch], device: torch.device, options: argparse.Namespace
) -> tuple[dict[str, Callable[[], float]], dict[str, Any]]:
    torch.manual_seed(0)
    model = NeXtVLAD(config).to(device).train()
    settings = OptimConfig()
    adam = optim.make_optimizer(model, settings)
    facts = {"gradients off plain by": _gradient_difference(model, hosts[0].to(device))}

    def step(batch: FrameBatch) -> None:
        adam.zero_grad(set_to_none=True)
        loss = _loss(model, batch)
        loss.backward()
        if not loss.detach().double().isfinite():
            raise SystemExit("benchmarks/gpu.py: the loss is not finite.")
        optim.prepare_step(adam, settings, step=1, lr=settings.lr)
        optim.add_l2_gradient(model.class_layers().values(), settings.l2)
        if not optim.clip_gradients(model.parameters(), settings).isfinite():
            raise SystemExit("benchmarks/gpu.py: the gradient is not finite.")
        adam.step()

    return _rounds(step, hosts, device, options), facts


def _loss(model: NeXtVLAD, batch: FrameBatch) -> Tensor:
    with autocast(model.device, "bf16"):
        return model.loss(batch, batch.labels.float()) / batch.num_videos


def _gradient_difference(model: NeXtVLAD, batch: FrameBatch) -> float:
    """Norm of the difference that the kernels make to the gradient, over its norm."""
    probability, model.dropout.probability = model.dropout.probability, 0.0
    found = torch.autograd.grad(_loss(model, batch), list(model.parameters()))
    with _without_kernels():
        wanted = torch.autograd.grad(_loss(model, batch), list(model.parameters()))
    model.dropout.probability = probability
    off = sum((a.double() - b.double()).square().sum() for a, b in zip(found, wanted, strict=True))
    whole = sum(b.double().square().sum() for b in wanted)
    return float(f"{float((off / whole) ** 0.5):.1e}")


def _compare(
    what: str,
    measured: tuple[dict[str, Callable[[], float]], dict[str, Any]],
    facts: dict[str, Any],
    options: argparse.Namespace,
) -> Comparison:
    rounds, own_facts = measured
    if options.profile:
        _print_profile(what, rounds[_FUSED])
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    name = f"{what} bf16, batch {options.batch_size}"
    found = compare(name, rounds, unit="videos", rounds=options.rounds, warmup=options.warmup)
    memory = round(torch.cuda.max_memory_allocated() / 1e9, 1) if torch.cuda.is_available() else None
    more: dict[str, Any] = {"peak GB": memory}
    if what in _TARGETS:
        more["videos/s"] = {key: _share(what, timing.rate) for key, timing in found.timings.items()}
    return dataclasses.replace(found, facts={**facts, **own_facts, **more})


def _share(what: str, rate: float) -> str:
    target, ceiling = _TARGETS[what]
    return f"{rate / target:.0%} of {target:,}, {rate / ceiling:.1%} of {ceiling:,}"


def _print_profile(what: str, run: Callable[[], float]) -> None:
    activities = [ProfilerActivity.CPU]
    order = "self_cpu_time_total"
    if torch.cuda.is_available():
        activities, order = [*activities, ProfilerActivity.CUDA], "self_device_time_total"
    run()
    with profile(activities=activities) as found:
        run()
    print(f"Where the time of {what} goes, one round, fused:")
    print(found.key_averages().table(sort_by=order, row_limit=30, max_name_column_width=70))


def _ceilings(device: torch.device) -> str:
    """What the device does at most: a large copy, a large product."""
    if device.type != "cuda":
        return "none"
    block = torch.randn(1 << 28, device=device)
    copy = _seconds(lambda: torch.empty_like(block).copy_(block), device)
    a, b = torch.randn(2, 8192, 8192, device=device).bfloat16()
    product = _seconds(lambda: a @ b, device)
    return f"{2 * block.nbytes / copy / 1e12:.2f} TB/s, {2 * 8192**3 / product / 1e12:.0f} TFLOP/s in bf16"


def _seconds(run: Callable[[], Any], device: torch.device, times: int = 10) -> float:
    for _ in range(3):
        run()
    _wait(device)
    start = time.perf_counter()
    for _ in range(times):
        run()
    _wait(device)
    return (time.perf_counter() - start) / times


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    main()
