"""The verbs that a model works in, as the command line offers them: train, evaluate, report, predict, bench.

Torch is imported only inside a verb, once its options are known to be good.
"""

from __future__ import annotations

import re
import sys
import textwrap
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from nextvlad.command_options import DEFAULTS, Checkpoint, Count, Data, File, Options, given, option, parse
from nextvlad.config import Precision
from nextvlad.errors import UsageError
from nextvlad.recipes import RECIPES, find_recipe
from nextvlad.run_config import DEFAULT_BATCH_SIZE, InferenceOptions, TrainConfig


@dataclass(frozen=True, kw_only=True)
class TrainCall:
    """A recipe's settings, and where to write and to start from."""

    config: Annotated[TrainConfig, tyro.conf.arg(name="")]
    out: Annotated[Path, option("RUN", "(required)")]
    """The run folder: checkpoints, metrics.jsonl, config.json."""
    init: Annotated[Path | None, option("CHECKPOINT")] = None
    """Fine-tune: start from this checkpoint's weights and architecture."""
    resume: bool = False
    """Go on with the run in --out from its last checkpoint."""
    resume_from: Annotated[Path | None, option("CHECKPOINT")] = None
    """Go on from this checkpoint of the same run."""


def _train_usage() -> str:
    lines = [
        "usage: nextvlad train RECIPE --data.train DATA... --data.valid DATA...",
        "                             --out RUN [options]",
        "",
        "RECIPE is one of these, or a config .json file that a run has written:",
        "",
    ]
    for name, recipe in RECIPES.items():
        lines += textwrap.wrap(
            recipe.summary, 79, initial_indent=f"  {name:20s} ", subsequent_indent=" " * 23
        )
    return "\n".join([*lines, "", "All options of a recipe, with its values: nextvlad train RECIPE --help"])


def train(arguments: list[str]) -> int:
    """`nextvlad train`: returns the exit status."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_train_usage(), file=sys.stdout if arguments else sys.stderr)
        return 0 if arguments else 2
    name, rest = arguments[0], arguments[1:]
    if name.startswith("-"):
        raise UsageError(f"train: got {name} first, wanted a RECIPE: {', '.join(RECIPES)}, or a .json file.")
    recipe_config = find_recipe(name)
    nothing: Any = tyro.MISSING_NONPROP
    call = parse(
        TrainCall,
        [
            re.sub(r"^--batch[-_]size(?==|$)", "--data.batch-size", word) for word in rest
        ],  # as other verbs have it
        f"train {name}",
        default=TrainCall(config=recipe_config, out=nothing),
        description=RECIPES[name].summary if name in RECIPES else f"The settings of {name}.",
    )
    from nextvlad.stopping import Interrupted
    from nextvlad.train import train as run

    largest_batch = recipe_config.data.batch_size
    try:
        run(
            call.config,
            call.out,
            init=call.init,
            resume=call.resume,
            resume_from=call.resume_from,
            largest_batch=DEFAULT_BATCH_SIZE if largest_batch == "auto" else largest_batch,
        )
    except Interrupted as stopped:
        print(
            f"nextvlad: stopped and saved in {call.out}/last; the same command with --resume goes on.",
            file=sys.stderr,
        )
        return 128 + stopped.signum
    return 0


_EVALUATE_FORMS = (
    "wanted `nextvlad evaluate CHECKPOINT DATA...`, or `nextvlad evaluate --predictions FILE --data DATA...`."
)


def _check_scoring_call(
    checkpoint: Path | None,
    data: tuple[str, ...],
    predictions: Path | None,
    labels: tuple[str, ...],
    options: InferenceOptions,
) -> None:
    """Refuses what does not belong to `evaluate --predictions FILE --data DATA...`."""
    if predictions is None:
        raise UsageError(f"evaluate: --data goes with --predictions; {_EVALUATE_FORMS}")
    if checkpoint is not None or data:
        first = " ".join([*([str(checkpoint)] if checkpoint else []), *data[:1]])
        raise UsageError(f"evaluate: got --predictions and also {first} ...; {_EVALUATE_FORMS}")
    if not labels:
        raise UsageError(f"evaluate: --predictions without --data, which holds the labels; {_EVALUATE_FORMS}")
    for field in fields(options):
        if field.name != "skip_damaged" and getattr(options, field.name) != getattr(DEFAULTS, field.name):
            name = field.name.replace("_", "-")
            raise UsageError(f"evaluate: --{name} is for a checkpoint; --predictions has no use for it.")


def evaluate(arguments: list[str]) -> int:
    """`nextvlad evaluate`: returns the exit status."""

    def call(
        checkpoint: Annotated[Path | None, tyro.conf.Positional, option("CHECKPOINT")] = None,
        data: Data = (),
        predictions: File = None,
        labels: Annotated[tuple[str, ...], tyro.conf.arg(name="data", metavar="DATA...")] = (),
        json: File = None,
        top_k: Count = None,
        no_map: bool = False,
        segments: bool = False,
        options: Options = DEFAULTS,
    ) -> None:
        """Hit@1, PERR, GAP and mAP of a checkpoint or a file, exact over the whole data.

        The file, --predictions FILE --data DATA..., is of predictions by any system.

        Args:
            checkpoint: Folder of a run (its best checkpoint is taken) or of one checkpoint.
            data: Files, folders, quoted globs, or .list files with one path a line.
            predictions: Score this file in place of a checkpoint: JSON Lines, Kaggle CSV of 2018 (videos) or
                2019 (segments), Parquet, Paddle pickle.
            labels: The labelled data for --predictions.
            json: Also write the metrics to this file.
            top_k: Labels kept a video for GAP; 20, or all where there are fewer, if not given.
            no_map: Leave out the untruncated mAP, which keeps every score (on disk when many).
            segments: Score rated five-second segments (YouTube-8M 2019) on the classes they were rated for:
                MAP@100,000 and the others. With --predictions: the rows of FILE are segments.
            options: How to read and compute.
        """
        if predictions is not None or labels:
            _check_scoring_call(checkpoint, data, predictions, labels, options)
            from nextvlad.evaluate_predictions import evaluate_predictions

            evaluate_predictions(
                Path(str(predictions)),
                labels,
                json_file=json,
                top_k=top_k,
                with_map=not no_map,
                segments=segments,
                skip_damaged=options.skip_damaged,
            )
            return
        if checkpoint is None:
            raise UsageError(f"evaluate: no CHECKPOINT given; {_EVALUATE_FORMS}")
        from nextvlad.evaluate import evaluate as run

        run(
            checkpoint,
            given(data),
            options,
            json_file=json,
            top_k=top_k,
            with_map=not no_map,
            segments=segments,
        )

    parse(call, arguments, "evaluate")
    return 0


def report(arguments: list[str]) -> int:
    """`nextvlad report`: returns the exit status."""

    def call(
        run: Annotated[Path, tyro.conf.Positional, option("RUN")],
        data: Annotated[tuple[str, ...], option("DATA...", "(required)")],
        out: Annotated[Path, option("DIR", "(required)")],
        save_thresholds: bool = False,
        videos: Annotated[Path | None, option("DIR")] = None,
        top_k: Count = None,
        options: Options = DEFAULTS,
    ) -> None:
        """What a model does well and badly on labelled videos: one HTML page, its numbers, PNG pictures.

        Curves of training, AP of each label, confusions, calibration, thresholds, examples.

        Args:
            run: Folder of a run (its best checkpoint is taken) or of one checkpoint.
            data: Labelled files, folders, quoted globs, or .list files with one path a line; best videos that
                the model was not trained on.
            out: Folder for report.html, report.json and the pictures; an earlier report there is replaced.
            save_thresholds: Keep the best threshold of each label in the checkpoint, for `nextvlad tag`.
            videos: Folder of the videos, with subfolders, for pictures of the examples; not needed beside the
                index.csv of `nextvlad extract`.
            top_k: Labels a video for GAP and calibration; 20, or all where there are fewer, if not given.
            options: How to read and compute.
        """
        from nextvlad.report import report as write

        write(run, given(data), options, out=out, videos=videos, top_k=top_k, save_thresholds=save_thresholds)

    parse(call, arguments, "report")
    return 0


def predict(arguments: list[str]) -> int:
    """`nextvlad predict`: returns the exit status."""

    def call(
        checkpoint: Checkpoint,
        data: Data,
        out: Annotated[Path, option("FILE", "(required)")],
        top_k: Count = None,
        vocabulary: File = None,
        segments: bool = False,
        classes: File = None,
        max_segments: Count = None,
        options: Options = DEFAULTS,
    ) -> None:
        """The best labels of each video (or segments of each label), into one file.

        Args:
            checkpoint: Folder of a run (its best checkpoint is taken) or of one checkpoint.
            data: Files, folders, quoted globs, or .list files with one path a line. Labels are not needed.
            out: By its suffix: .jsonl, .csv (Kaggle 2018), .parquet or .pkl (Paddle v1.5.1).
            top_k: Labels a video, best first; 20, or all where there are fewer, if not given.
            vocabulary: CSV with class names; the checkpoint's own if not given.
            segments: Every five seconds of a video is one of its own. A .csv is then Kaggle's of 2019,
                Class,Segments: the best segments of each label.
            classes: For that .csv: file with the wanted class indices, one a line, as segment_label_ids.csv.
            max_segments: For that .csv: segments a label; 100000 if not given. They take 10 bytes each.
            options: How to read and compute.
        """
        from nextvlad.predict import predict as run

        run(
            checkpoint,
            given(data),
            options,
            out=out,
            top_k=top_k,
            vocabulary=vocabulary,
            segments=segments,
            classes=classes,
            max_segments=max_segments,
        )

    parse(call, arguments, "predict")
    return 0


def bench(arguments: list[str]) -> int:
    """`nextvlad bench`: returns the exit status."""

    def call(
        what: Annotated[Literal["read", "train", "infer"], tyro.conf.Positional, option("read|train|infer")],
        data: Data,
        checkpoint: Annotated[Path | None, option("CHECKPOINT")] = None,
        recipe: Annotated[str | None, option("RECIPE")] = None,
        batch_size: Count = None,
        precision: Precision = "fp32",
        workers: Count = None,
        threads: Count = None,
        device: str = "auto",
        seconds: float = 2.0,
        json: File = None,
    ) -> None:
        """How fast this machine reads, trains and infers on your data, and which of it limits.

        Args:
            what: Reading alone; reading and training; reading and inference.
            data: Files, folders, quoted globs, or .list files with one path a line.
            checkpoint: The model for `infer`: folder of a run or of one checkpoint.
            recipe: The model if none is given, random weights: a recipe or config .json; yt8m_paper.
            batch_size: Videos at a time; the recipe's to train, else 256, if not given.
            precision: Of the matrix products; int8 is for `infer`.
            workers: Reader processes; 1, or for `read` one a processor, if not given.
            threads: CPU threads for the arithmetic; torch's choice if not given.
            device: auto (a GPU if there is one), cpu, cuda, cuda:1, ...
            seconds: Time of each of five rounds a stage, and of the warm-up before them.
            json: Also write the figures to this file.
        """
        from nextvlad.bench import bench as run

        run(
            what,
            given(data),
            model=checkpoint,
            recipe=recipe,
            batch_size=batch_size,
            precision=precision,
            workers=workers,
            threads=threads,
            device=device,
            seconds=seconds,
            json_file=json,
        )

    parse(call, arguments, "bench")
    return 0
