"""`nextvlad evaluate` and `nextvlad train` as whole processes, against the slower of their stages alone.

A whole process is the command line in a process of its own, on files. What it does once, whatever the amount
of data (starting Python and torch, loading and folding a model, filling the shuffle buffer, the last
checkpoint), is taken out by running it twice, on little data and on much: the rate is (videos of much -
videos of little) / (seconds of much - seconds of little). `facts` has the seconds of little, so that nothing
is hidden.

Against it: reading alone (the same files through the loader, one reader process) and computing alone (a
model put into inference, or a training step, on batches in memory), whichever is slower. Reading and
computing share the processors of this machine, which is a limit of its own.
"""

from __future__ import annotations

import argparse
import itertools
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import torch
from measure import Comparison, Timing, finish, parser
from reading import made_up_data

from nextvlad import checkpoint
from nextvlad.data.device_batches import DeviceBatch
from nextvlad.data.loader import FrameLoader, count_examples, peek_streams
from nextvlad.data.sources import expand
from nextvlad.models import build_model, for_inference
from nextvlad.recipes import RECIPES
from nextvlad.run_config import DataConfig, TrainConfig
from nextvlad.train import Run
from nextvlad.train_step import flushed_denormals

_CPU = torch.device("cpu")
_IN_MEMORY = 4  # batches that computing alone takes in turn
_FOREVER = 1 << 30  # passes over the data


def main() -> None:
    options = _options()
    if options.threads:
        torch.set_num_threads(options.threads)
        os.environ["OMP_NUM_THREADS"] = str(options.threads)
    kinds = {"evaluate": _evaluate, "train": _train}
    comparisons = []
    with made_up_data(options.videos, options.shards) as folder:
        for verb in [] if options.real_alone else options.verbs:
            comparisons.append(kinds[verb]("YouTube-8M, made up", options.recipe, [folder], options))
    if options.data:
        for verb in options.verbs:
            comparisons.append(kinds[verb](options.name, options.data_recipe, options.data, options))
    finish("whole_process", comparisons, options)


def _options() -> argparse.Namespace:
    options = parser(__doc__, rounds=3)
    options.set_defaults(warmup=0)  # every process starts anew, and the files were just written
    options.add_argument(
        "--verbs", nargs="+", choices=("evaluate", "train"), default=["evaluate", "train"], help="which"
    )
    options.add_argument("--videos", type=int, default=2000, help="made-up videos (default %(default)s)")
    options.add_argument("--shards", type=int, default=8, help="files they are in (default %(default)s)")
    options.add_argument("--recipe", default="yt8m_paper", help="the model (default %(default)s)")
    options.add_argument("--batch-size", type=int, default=80, help="videos a batch (default %(default)s)")
    options.add_argument(
        "--steps", type=int, nargs=2, default=[2, 10], help="of training, little and much (default 2 10)"
    )
    options.add_argument("--data", nargs="+", metavar="DATA", help="real files as well")
    options.add_argument("--real-alone", action="store_true", help="leave the made-up videos out")
    options.add_argument("--name", default="AudioSet", help="what DATA is (default %(default)s)")
    options.add_argument("--data-recipe", default="audioset", help="its model (default %(default)s)")
    given = options.parse_args()
    if given.quick:
        given.videos, given.shards, given.rounds, given.warmup, given.batch_size = 20, 4, 1, 0, 5
        given.recipe, given.steps = "small", [1, 2]
    return given


def _config(recipe: str, data: Sequence[str], options: argparse.Namespace) -> TrainConfig:
    config = RECIPES[recipe].config
    model = config.model if config.model.streams else replace(config.model, streams=peek_streams(data))
    settings = DataConfig(train=tuple(data), batch_size=options.batch_size, num_train_examples=1)
    classes = config.model.num_classes or 3862
    return replace(
        config, model=replace(model, num_classes=classes), data=settings, epochs=_FOREVER, steps=None
    )


def _evaluate(name: str, recipe: str, data: Sequence[str], options: argparse.Namespace) -> Comparison:
    config = _config(recipe, data, options)
    files = [str(Path(path).absolute()) for path in expand(data)]
    amounts = count_examples(files[:1]), count_examples(files)
    with tempfile.TemporaryDirectory(prefix="nextvlad-benchmark-") as folder:
        torch.manual_seed(0)
        model = build_model(config.model).eval()
        checkpoint.save(Path(folder) / "model", model)
        fast = for_inference(model)
        (Path(folder) / "all.list").write_text("\n".join(files), encoding="utf-8")

        def whole(*paths: str) -> None:
            batch = ["--batch-size", str(options.batch_size)]
            _run("evaluate", str(Path(folder) / "model"), *paths, *batch)

        loader = FrameLoader(
            files,
            streams=config.model.streams,
            num_classes=config.model.num_classes,
            batch_size=options.batch_size,
        )
        some = list(itertools.islice(loader, _IN_MEMORY))
        loader.close()

        def infer() -> float:
            with torch.inference_mode():
                for batch in itertools.islice(itertools.cycle(some), _calls(amounts, options)):
                    torch.sigmoid(fast(batch))
            return _calls(amounts, options) * some[0].num_videos

        return _compare(
            f"evaluate, {name}",
            (lambda: whole(files[0]), lambda: whole(str(Path(folder) / "all.list"))),
            amounts,
            {"reading alone": lambda: _read(files, config, options), "inference alone": infer},
            options,
        )


def _train(name: str, recipe: str, data: Sequence[str], options: argparse.Namespace) -> Comparison:
    config = _config(recipe, data, options)
    little, much = options.steps
    amounts = little * options.batch_size, much * options.batch_size
    with tempfile.TemporaryDirectory(prefix="nextvlad-benchmark-") as folder, ExitStack() as stack:
        stack.enter_context(flushed_denormals())
        run = Run(config, Path(folder) / "alone", _CPU)
        with run.loader:
            some = [DeviceBatch(batch, batch) for batch in itertools.islice(run.loader, _IN_MEMORY)]

        def whole(steps: int) -> None:
            out = Path(folder) / "run"
            _run(
                "train",
                recipe,
                "--data.train",
                *map(str, data),
                "--data.batch-size",
                str(options.batch_size),
                "--data.shuffle-buffer",
                str(config.data.shuffle_buffer),
                "--model.num-classes",
                str(config.model.num_classes),
                "--epochs",
                "1000",
                "--steps",
                str(steps),
                "--out",
                str(out),
            )
            shutil.rmtree(out)

        def steps() -> float:
            for batch in itertools.islice(itertools.cycle(some), much - little):
                run.take_step(batch, batch.host.num_videos)
            return float(amounts[1] - amounts[0])

        return _compare(
            f"train, {name}",
            (lambda: whole(little), lambda: whole(much)),
            amounts,
            {"reading alone": lambda: _read(list(data), config, options), "training steps alone": steps},
            options,
        )


def _compare(
    name: str,
    whole: tuple[Callable[[], None], Callable[[], None]],
    amounts: tuple[int, int],
    stages: dict[str, Callable[[], float]],
    options: argparse.Namespace,
) -> Comparison:
    """All in turns; `whole` on little and on much data, which has so many videos."""
    seconds: dict[str, list[float]] = {key: [] for key in ("little", "much", *stages)}
    done: dict[str, float] = {}
    for number in range(-options.warmup, options.rounds):
        for key, work in (("little", whole[0]), ("much", whole[1]), *stages.items()):
            start = time.perf_counter()
            done[key] = work() or 0.0
            took = time.perf_counter() - start
            if number >= 0:
                seconds[key].append(took)
    alone = {key: Timing(seconds[key], done[key]) for key in stages}
    slower = min(alone, key=lambda key: alone[key].rate)
    differences = [much - little for little, much in zip(seconds["little"], seconds["much"], strict=True)]
    if min(differences) <= 0:  # told, not raised: what was measured before is kept
        print(f"{name}: much data took no longer than little. Is the machine busy? Or take more of it.")
        differences = [max(seconds, 1e-9) for seconds in differences]
    ours = Timing(differences, amounts[1] - amounts[0])
    both = 1 / sum(1 / timing.rate for timing in alone.values())
    return Comparison(
        name,
        "videos",
        {"whole process": ours, "slower stage alone": alone[slower]},
        {"slower stage alone": 0.9},
        {
            "slower stage": slower,
            **{f"{key}, videos/s": round(timing.rate, 1) for key, timing in alone.items()},
            "one after the other, videos/s": round(both, 1),
            "seconds of little": round(sorted(seconds["little"])[len(seconds["little"]) // 2], 2),
            "videos of little and much": amounts,
            "batch": options.batch_size,
            "threads": torch.get_num_threads(),
        },
    )


def _calls(amounts: tuple[int, int], options: argparse.Namespace) -> int:
    """Batches for computing alone: about as much as the whole process does."""
    return max(1, (amounts[1] - amounts[0]) // options.batch_size)


def _read(files: Sequence[str], config: TrainConfig, options: argparse.Namespace) -> float:
    loader = FrameLoader(
        files,
        streams=config.model.streams,
        num_classes=config.model.num_classes,
        batch_size=options.batch_size,
        workers=1,
    )
    return sum(batch.num_videos for batch in loader)


def _run(*arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "nextvlad", *arguments], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"nextvlad {' '.join(arguments)}\n{done.stderr}")


if __name__ == "__main__":
    main()
