"""The verbs as the command line offers them: their options, their help, and the call that does the work.

Torch is imported only inside a verb, once its options are known to be good.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from nextvlad.config import StreamConfig, TrainConfig
from nextvlad.errors import UsageError
from nextvlad.recipes import RECIPES, find_recipe

_Precision = Literal["fp32", "bf16", "fp16"]


@dataclass(frozen=True, kw_only=True)
class TrainCall:
    """A recipe's settings, and where to write and to start from."""

    config: Annotated[TrainConfig, tyro.conf.arg(name="")]
    out: Path
    """The run folder: checkpoints, metrics.jsonl, config.json."""
    init: Path | None = None
    """Fine-tune: start from this checkpoint's weights and architecture."""
    resume: bool = False
    """Go on with the run in --out from its last checkpoint."""
    resume_from: Path | None = None
    """Go on from this checkpoint of the same run."""


def _parse(function: Any, arguments: list[str], verb: str, **options: Any) -> Any:
    return tyro.cli(
        function,
        args=arguments,
        prog=f"nextvlad {verb}",
        config=(tyro.conf.FlagCreatePairsOff, tyro.conf.AvoidSubcommands),
        **options,
    )


def _train(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: nextvlad train RECIPE --data.train DATA... --data.valid DATA... --out RUN [options]\n")
        print("RECIPE is one of these, or a config .json file that a run has written:\n")
        for name, recipe in RECIPES.items():
            print(f"  {name:20s} {recipe.summary}")
        print("\nAll options of a recipe, with its values: nextvlad train RECIPE --help")
        return 0 if arguments else 2
    name, rest = arguments[0], arguments[1:]
    if name.startswith("-"):
        raise UsageError(f"train: got {name} first, wanted a RECIPE: {', '.join(RECIPES)}, or a .json file.")
    recipe_config = find_recipe(name)

    registry = tyro.constructors.ConstructorRegistry()

    @registry.primitive_rule
    def stream_rule(info: tyro.constructors.PrimitiveTypeInfo) -> Any:
        if info.type is not StreamConfig:
            return None
        return tyro.constructors.PrimitiveConstructorSpec(
            nargs=1,
            metavar="NAME:SIZE",
            instance_from_str=lambda texts: StreamConfig.parse(texts[0]),
            is_instance=lambda value: isinstance(value, StreamConfig),
            str_from_instance=lambda stream: [str(stream)],
        )

    nothing: Any = tyro.MISSING_NONPROP
    call = _parse(
        TrainCall,
        rest,
        f"train {name}",
        default=TrainCall(config=recipe_config, out=nothing),
        registry=registry,
    )
    from nextvlad.train import Interrupted, train

    try:
        train(call.config, call.out, init=call.init, resume=call.resume, resume_from=call.resume_from)
    except Interrupted as stopped:
        print(
            f"nextvlad: stopped and saved in {call.out}/last; the same command with --resume goes on.",
            file=sys.stderr,
        )
        return 128 + stopped.signum
    return 0


def _evaluate(arguments: list[str]) -> int:
    def evaluate(
        checkpoint: tyro.conf.Positional[Path],
        data: tyro.conf.Positional[tuple[str, ...]],
        json: Path | None = None,
        top_k: int = 20,
        no_map: bool = False,
        batch_size: int = 256,
        max_frames: int | None = None,
        workers: int = 1,
        device: str = "auto",
        precision: _Precision = "fp32",
        skip_damaged: bool = False,
    ) -> None:
        """Hit@1, PERR, GAP and mAP of a checkpoint on labelled data, exact over the whole set.

        Args:
            checkpoint: folder of a run or of one of its checkpoints.
            data: files, directories, quoted globs or .list files.
            json: also write the metrics to this file.
            top_k: labels kept a video for GAP.
            no_map: leave out the untruncated mAP, which keeps every score (on disk when many).
            batch_size: videos at a time; changes no result.
            max_frames: frames used of each stream; as in training if not given.
            workers: reader processes beside this one.
            device: auto, cpu, cuda, cuda:1, ...
            precision: of the matrix products.
            skip_damaged: skip damaged records and list them, instead of stopping.
        """
        from nextvlad.evaluate import evaluate as run

        run(
            checkpoint,
            _given(data),
            json_file=json,
            top_k=top_k,
            with_map=not no_map,
            batch_size=batch_size,
            max_frames=max_frames,
            workers=workers,
            device=device,
            precision=precision,
            skip_damaged=skip_damaged,
        )

    _parse(evaluate, arguments, "evaluate")
    return 0


def _predict(arguments: list[str]) -> int:
    def predict(
        checkpoint: tyro.conf.Positional[Path],
        data: tyro.conf.Positional[tuple[str, ...]],
        out: Path,
        top_k: int = 20,
        vocabulary: Path | None = None,
        batch_size: int = 256,
        max_frames: int | None = None,
        workers: int = 1,
        device: str = "auto",
        precision: _Precision = "fp32",
        skip_damaged: bool = False,
    ) -> None:
        """The best labels of each video, into one file.

        Args:
            checkpoint: folder of a run or of one of its checkpoints.
            data: files, directories, quoted globs or .list files; labels are not needed.
            out: .jsonl, .csv (Kaggle 2018), .parquet or .pkl (Paddle v1.5.1).
            top_k: labels a video, best first.
            vocabulary: CSV with class names; the checkpoint's own if not given.
            batch_size: videos at a time; changes no result.
            max_frames: frames used of each stream; as in training if not given.
            workers: reader processes beside this one.
            device: auto, cpu, cuda, cuda:1, ...
            precision: of the matrix products.
            skip_damaged: skip damaged records and list them, instead of stopping.
        """
        from nextvlad.predict import predict as run

        run(
            checkpoint,
            _given(data),
            out=out,
            top_k=top_k,
            vocabulary=vocabulary,
            batch_size=batch_size,
            max_frames=max_frames,
            workers=workers,
            device=device,
            precision=precision,
            skip_damaged=skip_damaged,
        )

    _parse(predict, arguments, "predict")
    return 0


def _check(arguments: list[str]) -> int:
    def check(
        data: tyro.conf.Positional[tuple[str, ...]],
        json: Path | None = None,
        vocabulary: Path | None = None,
        workers: int = 2,
    ) -> int:
        """Verifies every record of a data set and shows what is in it; exit status 1 if damaged.

        Args:
            data: files, directories, quoted globs or .list files.
            json: also write the findings to this file.
            vocabulary: CSV with class names; labels outside it are damage.
            workers: reader processes.
        """
        from nextvlad.check import check as run

        return run(_given(data), json_file=json, vocabulary=vocabulary, workers=workers)

    status: int = _parse(check, arguments, "check")
    return status


def _demo(arguments: list[str]) -> int:
    def demo(out: Path = Path("demo-run"), open_plots: bool = False) -> None:
        """The whole job on embedded data: train, evaluate, predict, plots; about a minute on a CPU.

        Args:
            out: folder for everything it makes.
            open_plots: show the pictures in the desktop's viewer at the end.
        """
        from nextvlad.demo import demo as run

        run(out, open_plots=open_plots)

    _parse(demo, arguments, "demo")
    return 0


def _given(data: tuple[str, ...]) -> tuple[str, ...]:
    if not data:
        raise UsageError("no DATA given; wanted files, directories, quoted globs or .list files.")
    return data


VERBS: dict[str, Callable[[list[str]], int]] = {
    "demo": _demo,
    "check": _check,
    "train": _train,
    "evaluate": _evaluate,
    "predict": _predict,
}
"""By name, in the order a user meets them."""
