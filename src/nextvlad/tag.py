"""`nextvlad tag`: videos -> names with scores, and the seconds that speak for each."""

from __future__ import annotations

import json
import math
import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich import box
from rich.console import Console, Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from nextvlad import checkpoint, distributed
from nextvlad.errors import DataError, OutputError, UsageError
from nextvlad.files import NewFile, why
from nextvlad.models import InferenceModel, Model, for_inference
from nextvlad.progress import ProgressBar, counted, say
from nextvlad.tag_extractor import FeatureOptions, open_extractor
from nextvlad.tag_report import Failure, ReportWriter, clock, stretches
from nextvlad.tag_video import Choice, TaggedVideo, tag_video
from nextvlad.video.decode import probe
from nextvlad.video.extractor import Extractor
from nextvlad.video_files import VideoFile, expand_videos, shown

DEFAULT_TOP_K = 5

_DIGITS = 5  # of a contribution in JSON


@dataclass(frozen=True)
class Result:
    """What `tag` gives back.

    Attributes:
        num_tagged: videos that were.
        failures: the others, with the reasons.
    """

    num_tagged: int
    failures: list[Failure]


def tag(
    checkpoint_folder: Path,
    videos: Sequence[str],
    *,
    out: Path | None = None,
    report: Path | None = None,
    top_k: int | None = None,
    threshold: float | None = None,
    features: FeatureOptions | None = None,
    device: str = "auto",
    console: Console | None = None,
) -> Result:
    """Tags videos one after another: a table each, and a row of `out` and a section of `report`.

    A video that cannot be read is told of at the end and does not stop the others.

    Args:
        checkpoint_folder: a run or one of its checkpoints, trained on features of `nextvlad extract`.
        videos: files, folders, globs or .list files.
        out: a .jsonl file: the row of `nextvlad predict`, and with it what each second contributes.
        report: an .html file: see `nextvlad.tag_report`.
        top_k: labels a video at most, in 1..C; None: 5, or all where there are fewer.
        threshold: the score that a label must reach, in [0, 1]; None: that of each label that the checkpoint
            has (`nextvlad report --save-thresholds`), or none where it has none.
        features: how features are made, beyond what the checkpoint says.
        device: for the model and the backbones.
        console: where tables go; None: standard output.

    Raises:
        NextvladError: no such checkpoint, videos or device; the model's features cannot be made.
    """
    _check_call(out, report, threshold)
    files = expand_videos(videos)
    chosen = distributed.pick_device(device)
    place = checkpoint.resolve(checkpoint_folder)
    model = checkpoint.load(place, device=chosen)
    choice = _choice(model, place, top_k, threshold)
    extractor = open_extractor(
        model.provenance,
        model.config.streams,
        features or FeatureOptions(),
        whose=str(checkpoint_folder),
        device=str(chosen),
    )
    job = _Job(for_inference(model), extractor, choice, max_rows=_trained_rows(place))
    failures: list[Failure] = []
    with ExitStack() as stack:
        # Each row was work, so that what is done stays in OUT.partial if the rest is given up.
        rows = None if out is None else stack.enter_context(NewFile(_in_folder(out), keep_partial=True))
        page = None if report is None else stack.enter_context(_page(report, checkpoint_folder, files, job))
        console = console or _standard_output()
        for file, video_id in zip(files, _ids(files), strict=True):
            try:
                video = job.run(file.path, video_id, thumbnails=page is not None)
            except DataError as error:
                failures.append(Failure(shown(file.path), shown(str(error))))
                say(f"{shown(file.path)}: not tagged, see the end.")
                if page is not None:
                    page.add_failure(failures[-1])
                continue
            console.print(table_of(video))
            if rows is not None:
                rows.write(json.dumps(row_of(video), ensure_ascii=False).encode() + b"\n")
            if page is not None:
                page.add(video)
    for written in (out, report):
        if written is not None:
            say(f"{counted(len(files) - len(failures), 'video')} -> {written}")
    if failures:
        say(f"Not tagged, {len(failures):,} of {counted(len(files), 'video')}:")
        for failure in failures:
            say(f"  {failure.reason}")
    return Result(len(files) - len(failures), failures)


@dataclass(frozen=True)
class _Job:
    """What is the same for all videos."""

    model: InferenceModel
    extractor: Extractor
    choice: Choice
    max_rows: int | None

    def run(self, path: str, video_id: str, *, thumbnails: bool) -> TaggedVideo:
        """Tags one video, with a bar of its seconds."""
        duration = probe(path).duration_seconds
        rate = self.extractor.options.rate_hz
        total = None if duration is None else max(1, math.ceil(duration * rate - 0.5))
        with ProgressBar(video_id, total=total, unit="rows") as bar:
            return tag_video(
                self.model,
                self.extractor,
                path,
                self.choice,
                video_id=video_id,
                max_rows=self.max_rows,
                thumbnails=thumbnails,
                on_rows=bar.advance,
            )


def row_of(video: TaggedVideo) -> dict[str, Any]:
    """A line of the JSON Lines file: first what `nextvlad predict` writes, then what explains it."""
    return {
        "video_id": video.video_id,
        "labels": [tag.label for tag in video.tags],
        "names": [tag.name for tag in video.tags],
        "scores": [tag.score for tag in video.tags],
        "intervals": [[list(pair) for pair in tag.intervals] for tag in video.tags],
        "scores_without_intervals": [tag.score_without for tag in video.tags],
        "seconds": [_short(tag.contributions) for tag in video.tags],
        "step_seconds": video.step_seconds,
        "attention": {name: _short(mass) for name, mass in video.attention.items()},
        "duration_seconds": video.duration_seconds,
        "path": video.path,
        "notes": list(video.notes),
    }


def _short(values: NDArray[Any]) -> list[float]:
    """With five digits: of a 3-hour film there are many."""
    return [float(f"{value:.{_DIGITS}g}") for value in values.tolist()]


def table_of(video: TaggedVideo) -> Group:
    """What the terminal shows of a video."""
    notes = "".join(f"; {note}" for note in video.notes)
    title = Text.assemble((video.video_id, "bold"), (f"  {clock(video.duration_seconds)}{notes}", "dim"))
    if not video.tags:
        return Group(title, Text("  no label reaches its threshold\n"))
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    table.add_column("label", overflow="fold")
    table.add_column("score", justify="right", no_wrap=True)
    table.add_column("seconds that speak for it", overflow="fold")
    table.add_column("without them", justify="right", no_wrap=True)
    for tag in video.tags:
        without = "" if tag.score_without is None else f"{tag.score_without:.3f}"
        table.add_row(Text(tag.name), f"{tag.score:.3f}", Text(stretches(tag.intervals) or "-"), without)
    return Group(title, Padding(table, (0, 0, 1, 2), expand=False))


def _check_call(out: Path | None, report: Path | None, threshold: float | None) -> None:
    """Tells a mistaken call at once."""
    if out is not None and out.suffix != ".jsonl":
        raise UsageError(f"--out {out}: wanted a name that ends in .jsonl (JSON Lines).")
    if report is not None and report.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"--report {report}: wanted a name that ends in .html.")
    if threshold is not None and not 0 <= threshold <= 1:
        raise UsageError(f"--threshold: got {threshold:g}, wanted a score from 0 to 1.")


def _choice(model: Model, place: Path, top_k: int | None, threshold: float | None) -> Choice:
    num_classes = model.config.num_classes
    if top_k is not None and not 1 <= top_k <= num_classes:
        raise UsageError(f"--top-k: got {top_k}, wanted 1 to {num_classes}, the number of classes.")
    thresholds: NDArray[np.float32] | None = None
    if threshold is not None:
        thresholds = np.full(num_classes, threshold, np.float32)
    elif (kept := checkpoint.read_thresholds(place, num_classes)) is not None:
        thresholds = kept.numpy()
    names = None if model.vocabulary is None else model.vocabulary.names
    return Choice(top_k=top_k or min(DEFAULT_TOP_K, num_classes), thresholds=thresholds, names=names)


def _in_folder(file: Path) -> Path:
    """The same path; its folder is there now."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{file}: cannot be written ({why(error)}). Choose another place.") from error
    return file


def _trained_rows(place: Path) -> int | None:
    """How many rows of a stream the model saw in training at most; None if that is not known."""
    config = checkpoint.read_train_config(place)
    return config.data.max_frames if config else None


def _page(report: Path, model: Path, files: list[VideoFile], job: _Job) -> ReportWriter:
    extractors = ", ".join(stream["extractor"] for stream in job.extractor.describe().values())
    facts = [
        ("model", str(model)),
        ("features", extractors),
        ("classes", f"{job.model.config.num_classes:,}"),
    ]
    return ReportWriter(_in_folder(report), title=f"Tags of {counted(len(files), 'video')}", facts=facts)


def _ids(files: list[VideoFile]) -> list[str]:
    """A name for each file: without folder and ending where that is nobody else's, else the whole path."""
    stems = [Path(file.path).stem for file in files]
    times = Counter(stems)
    return [shown(stem if times[stem] == 1 else file.path) for stem, file in zip(stems, files, strict=True)]


def _standard_output() -> Console:
    if hasattr(sys.stdout, "reconfigure"):  # a name that the terminal has no letters for
        sys.stdout.reconfigure(errors="replace")
    return Console(highlight=False)
