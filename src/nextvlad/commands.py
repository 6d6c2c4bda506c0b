"""The verbs as the command line offers them: their options, their help, and the call that does the work.

Torch is imported only inside a verb, once its options are known to be good.
"""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin

import tyro

from nextvlad.config import InferenceOptions, StreamConfig, TrainConfig
from nextvlad.errors import UsageError
from nextvlad.recipes import RECIPES, find_recipe


def _option(metavar: str, hint: str = "") -> Any:
    """How an option without a default is shown; "None" would not help anybody."""
    return tyro.conf.arg(metavar=metavar, help_behavior_hint=hint)


_Checkpoint = Annotated[Path, tyro.conf.Positional, _option("CHECKPOINT")]
_Data = Annotated[tuple[str, ...], tyro.conf.Positional, _option("DATA...")]
_File = Annotated[Path | None, _option("FILE")]
_Count = Annotated[int | None, _option("INT")]
_Options = Annotated[InferenceOptions, tyro.conf.arg(name="")]
_DEFAULTS = InferenceOptions()


@dataclass(frozen=True, kw_only=True)
class TrainCall:
    """A recipe's settings, and where to write and to start from."""

    config: Annotated[TrainConfig, tyro.conf.arg(name="")]
    out: Annotated[Path, _option("RUN", "(required)")]
    """The run folder: checkpoints, metrics.jsonl, config.json."""
    init: Annotated[Path | None, _option("CHECKPOINT")] = None
    """Fine-tune: start from this checkpoint's weights and architecture."""
    resume: bool = False
    """Go on with the run in --out from its last checkpoint."""
    resume_from: Annotated[Path | None, _option("CHECKPOINT")] = None
    """Go on from this checkpoint of the same run."""


def _parse(function: Any, arguments: list[str], verb: str, **options: Any) -> Any:
    return tyro.cli(
        function,
        args=arguments,
        prog=f"nextvlad {verb}",
        config=(tyro.conf.FlagCreatePairsOff, tyro.conf.AvoidSubcommands),
        registry=_registry(),
        **options,
    )


def _registry() -> tyro.constructors.ConstructorRegistry:
    """How values are read from the command line and shown in help, where tyro's own way reads badly."""
    registry = tyro.constructors.ConstructorRegistry()

    @registry.primitive_rule
    def several(info: tyro.constructors.PrimitiveTypeInfo) -> Any:
        read: dict[Any, tuple[str, Callable[[str], Any]]] = {
            (str, Ellipsis): ("DATA...", str),
            (StreamConfig, Ellipsis): ("NAME:SIZE...", StreamConfig.parse),
        }
        # For a default of two values tyro makes typing's own Tuple of it, which is not equal to tuple.
        if get_origin(info.type) is not tuple or get_args(info.type) not in read:
            return None
        metavar, from_text = read[get_args(info.type)]
        return tyro.constructors.PrimitiveConstructorSpec(
            nargs="*",
            metavar=metavar,
            instance_from_str=lambda texts: tuple(map(from_text, texts)),
            is_instance=lambda value: isinstance(value, tuple),
            str_from_instance=lambda values: [str(value) for value in values] or ["none"],
        )

    @registry.primitive_rule
    def optional(info: tyro.constructors.PrimitiveTypeInfo) -> Any:
        kinds = [kind for kind in get_args(info.type) if kind is not NoneType]
        if NoneType not in get_args(info.type) or kinds not in ([int], [str], [Path]):
            return None
        kind = kinds[0]
        return tyro.constructors.PrimitiveConstructorSpec(
            nargs=1,
            metavar=f"{kind.__name__.upper()}|None",
            instance_from_str=lambda texts: None if texts[0] == "None" else kind(texts[0]),
            is_instance=lambda value: value is None or isinstance(value, kind),
            str_from_instance=lambda value: [str(value)],
        )

    return registry


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


def _train(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_train_usage(), file=sys.stdout if arguments else sys.stderr)
        return 0 if arguments else 2
    name, rest = arguments[0], arguments[1:]
    if name.startswith("-"):
        raise UsageError(f"train: got {name} first, wanted a RECIPE: {', '.join(RECIPES)}, or a .json file.")
    recipe_config = find_recipe(name)
    nothing: Any = tyro.MISSING_NONPROP
    call = _parse(
        TrainCall,
        rest,
        f"train {name}",
        default=TrainCall(config=recipe_config, out=nothing),
        description=RECIPES[name].summary if name in RECIPES else f"The settings of {name}.",
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
    for option in fields(options):
        if option.name != "skip_damaged" and getattr(options, option.name) != getattr(_DEFAULTS, option.name):
            name = option.name.replace("_", "-")
            raise UsageError(f"evaluate: --{name} is for a checkpoint; --predictions has no use for it.")


def _evaluate(arguments: list[str]) -> int:
    def evaluate(
        checkpoint: Annotated[Path | None, tyro.conf.Positional, _option("CHECKPOINT")] = None,
        data: _Data = (),
        predictions: _File = None,
        labels: Annotated[tuple[str, ...], tyro.conf.arg(name="data", metavar="DATA...")] = (),
        json: _File = None,
        top_k: _Count = None,
        no_map: bool = False,
        segments: bool = False,
        options: _Options = _DEFAULTS,
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
            _given(data),
            options,
            json_file=json,
            top_k=top_k,
            with_map=not no_map,
            segments=segments,
        )

    _parse(evaluate, arguments, "evaluate")
    return 0


def _predict(arguments: list[str]) -> int:
    def predict(
        checkpoint: _Checkpoint,
        data: _Data,
        out: Annotated[Path, _option("FILE", "(required)")],
        top_k: _Count = None,
        vocabulary: _File = None,
        segments: bool = False,
        classes: _File = None,
        max_segments: _Count = None,
        options: _Options = _DEFAULTS,
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
            _given(data),
            options,
            out=out,
            top_k=top_k,
            vocabulary=vocabulary,
            segments=segments,
            classes=classes,
            max_segments=max_segments,
        )

    _parse(predict, arguments, "predict")
    return 0


def _ensemble(arguments: list[str]) -> int:
    def ensemble(
        files: Annotated[tuple[Path, ...], tyro.conf.Positional, _option("FILE...")],
        out: Annotated[Path, _option("FILE", "(required)")],
        weights: Annotated[tuple[float, ...], _option("FLOAT...")] = (),
        top_k: _Count = None,
        vocabulary: _File = None,
    ) -> None:
        """The weighted mean of prediction files of the same videos, into one file.

        Of a single file: the same predictions in another format.

        Args:
            files: Prediction files of any systems: JSON Lines, Kaggle CSV, Parquet, Paddle pickle.
            out: By its suffix: .jsonl, .csv (Kaggle 2018), .parquet or .pkl (Paddle v1.5.1).
            weights: One a file, in the same order; equal ones if not given.
            top_k: Labels a video, best first; 20, or all of a single file, if not given.
            vocabulary: CSV with class names, for .jsonl and .parquet.
        """
        from nextvlad.ensemble import ensemble as run

        run(files, out=out, weights=weights or None, top_k=top_k, vocabulary=vocabulary)

    _parse(ensemble, arguments, "ensemble")
    return 0


def _check(arguments: list[str]) -> int:
    def check(
        data: _Data,
        json: _File = None,
        vocabulary: _File = None,
        workers: _Count = None,
    ) -> int:
        """Verifies every record of a data set and shows what is in it.

        Exit status 1 if a record is damaged.

        Args:
            data: Files, folders, quoted globs, or .list files with one path a line.
            json: Also write the findings to this file.
            vocabulary: CSV with class names; labels outside it are damage.
            workers: Reader processes, 0 for none beside this one; one a processor, at most 8, if not given.
        """
        from nextvlad.check import check as run

        return run(_given(data), json_file=json, vocabulary=vocabulary, workers=workers)

    status: int = _parse(check, arguments, "check")
    return status


def _demo(arguments: list[str]) -> int:
    def demo(out: Path = Path("demo-run"), open_plots: bool = False) -> None:
        """The whole job on embedded data, end to end, in about a minute on a CPU.

        Args:
            out: Folder for everything it makes.
            open_plots: Show the pictures in the desktop's viewer at the end.
        """
        from nextvlad.demo import demo as run

        run(out, open_plots=open_plots)

    _parse(demo, arguments, "demo")
    return 0


def _import(arguments: list[str]) -> int:
    def import_(
        source: Annotated[Path, tyro.conf.Positional, _option("SOURCE")],
        out: Annotated[Path, tyro.conf.Positional, _option("OUT")],
        eigenvalues: _File = None,
        vocabulary: _File = None,
    ) -> None:
        """A trained NeXtVLAD of PaddleVideo or of the author's TensorFlow code becomes a checkpoint folder.

        Of the author's code the single model and the mixture. Shows what was found and what became of it.

        Args:
            source: Paddle's folder, file or .tar.gz (v1.5, v1.6, v1.7+), or TensorFlow's folder or prefix.
            out: A new checkpoint folder.
            eigenvalues: eigenvals.npy of YouTube-8M's PCA, which a TensorFlow checkpoint does not hold.
            vocabulary: CSV with class names, kept with the checkpoint.
        """
        from nextvlad.import_checkpoint import import_checkpoint

        import_checkpoint(source, out, eigenvalues=eigenvalues, vocabulary=vocabulary)

    _parse(import_, arguments, "import")
    return 0


def _convert(arguments: list[str]) -> int:
    def convert(
        data: _Data,
        out: Annotated[Path, _option("DIR", "(required)")],
        to: Literal["auto", "tfrecord", "pickle"] = "auto",
        videos_per_file: _Count = None,
        workers: _Count = None,
        skip_damaged: bool = False,
        compression: Literal["none", "gzip", "zlib"] = "none",
    ) -> None:
        """PaddleVideo's data pickles become TFRecord files, and the other way round.

        The same command again goes on where it was stopped.

        Args:
            data: Files, folders, quoted globs, or .list files with one path a line.
            out: Folder for the files to make; made if it is not there.
            to: What to make; auto is the other kind than the data's.
            videos_per_file: Numbered files of at most so many videos; if not given, one for each file.
            workers: Processes, 0 for none beside this one; one a processor, at most 8, if not given.
            skip_damaged: Skip damaged records and list them, instead of stopping.
            compression: Of TFRecord files, each as a whole.
        """
        from nextvlad.convert import convert as run

        run(
            _given(data),
            out,
            to=None if to == "auto" else to,
            videos_per_file=videos_per_file,
            workers=workers,
            skip_damaged=skip_damaged,
            compression=None if compression == "none" else compression,
        )

    _parse(convert, arguments, "convert")
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
    "ensemble": _ensemble,
    "import": _import,
    "convert": _convert,
}
"""By name, in the order a user meets them."""
