"""`nextvlad bench`: how fast this machine reads, computes and does both, on the user's own data.

Each stage is the product's own path: the loader, a model put into inference, the step of a training. It runs
for a while without being timed, and then for some rounds of equal time; what counts is the median round.
"""

from __future__ import annotations

import itertools
import math
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from nextvlad import checkpoint, distributed
from nextvlad.bench_report import Stage, What, limits, print_report, processes
from nextvlad.config import ModelConfig, Precision, StreamConfig
from nextvlad.data import usual_records
from nextvlad.data.batch import FrameBatch
from nextvlad.data.device_batches import DeviceBatch, DeviceBatches
from nextvlad.data.file_processes import num_processors
from nextvlad.data.loader import FrameLoader, peek_streams
from nextvlad.errors import UsageError
from nextvlad.files import write_json
from nextvlad.inference import without_instructions
from nextvlad.models import build_model, count_parameters, for_inference
from nextvlad.progress import ProgressBar, say
from nextvlad.recipes import find_recipe
from nextvlad.run_config import TrainConfig
from nextvlad.train import Run
from nextvlad.train_step import flushed_denormals

_FOREVER = 1 << 30  # passes over the data
_IN_MEMORY = 8  # batches that computing alone takes in turn
_CLASSES = 3862  # for random weights, where neither recipe nor checkpoint says


def bench(
    what: What,
    data: Sequence[str],
    *,
    model: Path | None = None,
    recipe: str | None = None,
    batch_size: int | None = None,
    precision: Precision = "fp32",
    workers: int | None = None,
    threads: int | None = None,
    device: str = "auto",
    seconds: float = 2.0,
    rounds: int = 5,
    json_file: Path | None = None,
) -> dict[str, Any]:
    """`nextvlad bench`: prints a table and what limits; returns what was found.

    Args:
        what: reading alone; training; inference.
        data: files, folders, globs or .list files.
        model: a checkpoint, for "infer"; None: random weights of `recipe`.
        recipe: a recipe's name or a config file; None: yt8m_paper. Its streams are replaced by the data's
            where they differ.
        batch_size: None: the recipe's to train, 256 for the others.
        precision: of the products; int8 in inference alone.
        workers: reader processes; None: one, and for "read" one a processor, at most 8.
        threads: of the arithmetic; None: torch's choice.
        device: as `nextvlad.distributed.pick_device`.
        seconds: of a round, and of the time before that does not count.
        rounds: how many are timed.
        json_file: where the findings go as well.

    Raises:
        NextvladError: as its message says.
    """
    for name, value, least in (("seconds", seconds, 0.0), ("rounds", rounds, 1), ("workers", workers, 0),
                               ("batch-size", batch_size, 1), ("threads", threads, 1)):  # fmt: skip
        if value is not None and not least <= value < math.inf:
            raise UsageError(f"bench: --{name}: got {value}, wanted {least} or more.")
    if model is not None and what != "infer":
        raise UsageError(f"bench {what}: --checkpoint is for `bench infer`.")
    if model is not None and recipe is not None:
        raise UsageError("bench infer: got --checkpoint and --recipe; wanted one of them.")
    distributed.refuse_torchrun("bench runs")
    if threads is not None:
        torch.set_num_threads(threads)
    cores = num_processors()
    if workers is None:
        workers = min(cores, 8) if what == "read" else 1
    clock = _Clock(seconds, rounds)
    facts: dict[str, Any] = {"workers": workers, "threads": torch.get_num_threads(), "cores": cores}
    if what == "read":
        stages, more = _bench_reading(data, clock, batch_size or 256, workers)
    else:
        where = distributed.pick_device(device)
        settings = find_recipe(recipe or "yt8m_paper")
        with distributed.process_group(where):
            if what == "infer":
                stages, more = _bench_inference(
                    data, clock, settings, model, where, batch_size or 256, precision, workers
                )
            else:
                stages, more = _bench_training(data, clock, settings, where, batch_size, precision, workers)
        more |= {
            "device": _name_of(where),
            "model": str(model or recipe or "yt8m_paper"),
        }
    facts |= more
    verdict = limits(what, stages, facts)
    result = {
        "what": what,
        "stages": [asdict(stage) for stage in stages],
        "facts": facts,
        "verdict": verdict,
        "environment": {
            "platform": platform.platform(),
            "python": platform.python_version(),
            "torch": torch.__version__,
        },
    }
    print_report(stages, facts, verdict)
    if json_file is not None:
        write_json(json_file, result)
    return result


class _Clock:
    """Times stages one after the other."""

    def __init__(self, seconds: float, rounds: int) -> None:
        self._seconds, self._rounds = seconds, rounds

    def time(self, name: str, step: Callable[[], FrameBatch]) -> Stage:
        """Calls `step`, which does its work on one batch and returns it, until the time is over."""
        counts = []
        with ProgressBar(name, total=1 + self._rounds, unit="rounds") as bar:
            for number in range(1 + self._rounds):
                counts.append(self._round(step))
                bar.advance(1, "warming up" if number == 0 else "")
        videos, frames, size = (sorted(rate) for rate in zip(*counts[1:], strict=True))
        quartiles = statistics.quantiles(videos, n=4, method="inclusive") if len(videos) > 1 else videos * 3
        return Stage(
            name,
            statistics.median(videos),
            statistics.median(frames),
            statistics.median(size) / 1e6,
            (quartiles[0], quartiles[2]),
            self._rounds,
        )

    def _round(self, step: Callable[[], FrameBatch]) -> tuple[float, float, float]:
        """Videos, frames and bytes a second."""
        videos = frames = size = 0
        start = time.perf_counter()
        while True:
            batch = step()
            videos += batch.num_videos
            frames += max((len(part.values) for part in batch.streams.values()), default=0)
            size += sum(part.values.nbytes for part in batch.streams.values())
            took = time.perf_counter() - start
            if took >= self._seconds:
                return videos / took, frames / took, size / took


def _bench_reading(
    data: Sequence[str], clock: _Clock, batch_size: int, workers: int
) -> tuple[list[Stage], dict[str, Any]]:
    streams = peek_streams(data)
    stages = []
    for count in dict.fromkeys((0, workers)):
        name = "reading, in this process" if count == 0 else f"reading, {processes(count)}"
        stages.append(_time_reading(name, _loader(data, streams, batch_size, count), clock))
    return stages, {
        "batch_size": batch_size,
        "streams": [str(stream) for stream in streams],
        "compiled": usual_records.available(),
    }


def _bench_inference(
    data: Sequence[str],
    clock: _Clock,
    settings: TrainConfig,
    folder: Path | None,
    device: torch.device,
    batch_size: int,
    precision: Precision,
    workers: int,
) -> tuple[list[Stage], dict[str, Any]]:
    if folder is not None:
        peek_streams(data)  # refuses what has no videos: they would be looked for without end
        model = checkpoint.load(checkpoint.resolve(folder), device=device)
    else:
        torch.manual_seed(0)
        model = build_model(_model_for(settings.model, data)).to(device).eval()
    fast = for_inference(model, precision)

    def infer(batch: DeviceBatch) -> FrameBatch:
        torch.sigmoid(fast(batch.here)).cpu()
        return batch.host

    def loader() -> FrameLoader:
        return _loader(
            data, model.config.streams, batch_size, workers, settings.data.max_frames, device.type == "cuda"
        )

    stages = [_time_reading(f"reading, {processes(workers)}", loader(), clock)]
    with loader() as some:
        in_memory = _some_batches(iter(some), device)
    stages.append(clock.time("inference, from memory", lambda: infer(next(in_memory))))
    with loader() as whole:
        batches = iter(DeviceBatches(whole, device))
        stages.append(clock.time("both: reading and inference", lambda: infer(next(batches))))
    return stages, {
        "batch_size": batch_size,
        "parameters": count_parameters(model),
        "precision": _precision(fast.precision, precision, device),
    }


def _bench_training(
    data: Sequence[str],
    clock: _Clock,
    settings: TrainConfig,
    device: torch.device,
    batch_size: int | None,
    precision: Precision,
    workers: int,
) -> tuple[list[Stage], dict[str, Any]]:
    if precision == "int8":
        raise UsageError("bench train: --precision int8 is for inference; wanted fp32, bf16 or fp16.")
    size = batch_size or settings.data.batch_size
    config = replace(
        settings,
        model=_model_for(settings.model, data, may_be_open=True),
        data=replace(
            settings.data, train=tuple(data), valid=(), batch_size=size, workers=workers, num_train_examples=1
        ),
        epochs=_FOREVER,
        steps=None,
        precision=precision,
    )
    with flushed_denormals(), ExitStack() as stack:
        run = Run(config, Path(), device)

        def train(batch: DeviceBatch) -> FrameBatch:
            run.take_step(batch, batch.host.num_videos)
            return batch.host

        # The loader goes on where it is, with the videos that it holds to shuffle from.
        stack.enter_context(run.loader)
        reading = iter(run.loader)
        stages = [clock.time(f"reading, {processes(workers)}", lambda: next(reading))]
        in_memory = _some_batches(reading, device)
        stages.append(clock.time("training steps, from memory", lambda: train(next(in_memory))))
        batches = iter(run.batches)
        stages.append(clock.time("both: reading and training", lambda: train(next(batches))))
        return stages, {
            "batch_size": run.batch_size,
            "parameters": count_parameters(run.model),
            "precision": _precision(run.learner.precision, precision, device),
        }


def _precision(taken: Precision, asked: Precision, device: torch.device) -> Precision:
    """What was computed in; says so where it is not what was asked for."""
    if taken != asked:
        say(without_instructions(taken, asked, device))
    return taken


def _time_reading(name: str, loader: FrameLoader, clock: _Clock) -> Stage:
    with loader:
        batches = iter(loader)
        return clock.time(name, lambda: next(batches))


def _some_batches(batches: Iterator[FrameBatch], device: torch.device) -> Iterator[DeviceBatch]:
    """The first batches, on the device, again and again."""
    some = [DeviceBatch(batch, batch.to(device)) for batch in itertools.islice(batches, _IN_MEMORY)]
    return itertools.cycle(some)


def _loader(
    data: Sequence[str],
    streams: Sequence[StreamConfig],
    batch_size: int,
    workers: int,
    max_frames: int = 300,
    pin_memory: bool = False,
) -> FrameLoader:
    return FrameLoader(
        data,
        streams=streams,
        num_classes=_CLASSES,
        batch_size=batch_size,
        max_frames=max_frames,
        workers=workers,
        epochs=_FOREVER,
        pin_memory=pin_memory,
        with_labels=False,
    )


def _model_for(model: ModelConfig, data: Sequence[str], *, may_be_open: bool = False) -> ModelConfig:
    """The recipe's model, with the streams of the data where its own are others."""
    found = peek_streams(data)
    ours = {(stream.name, stream.size) for stream in model.streams}
    if ours != {(stream.name, stream.size) for stream in found}:
        model = replace(model, streams=found)
        if ours:
            say(f"The recipe's model with the streams of the data: {' '.join(map(str, found))}.")
    if not model.num_classes and not may_be_open:
        model = replace(model, num_classes=_CLASSES)
    return model


def _name_of(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
