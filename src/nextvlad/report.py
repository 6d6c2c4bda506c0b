"""`nextvlad report`: what a model does well and badly on labelled videos, as a page for people.

Writes into one folder report.html (all of it, works offline), report.json (its numbers) and, where matplotlib
is installed, PNG pictures.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from datetime import date
from pathlib import Path
from typing import Any

import torch

from nextvlad import __version__, checkpoint, distributed, plots
from nextvlad.data.sources import expand
from nextvlad.errors import OutputError, UsageError
from nextvlad.evaluate import answers, check_scored
from nextvlad.files import NewFile, why, write_json
from nextvlad.inference import Opened, open_checkpoint, settle_top_k, tell_damage
from nextvlad.progress import ProgressBar, counted, say
from nextvlad.report_findings import Collector, Findings
from nextvlad.report_numbers import PRIOR_POSITIVES
from nextvlad.report_page import About, page
from nextvlad.report_pictures import check_can_read, find_videos, listed_videos, pictures
from nextvlad.run_config import InferenceOptions

PICTURES = ("training_curves.png", "label_precision.png", "reliability.png", "confusion.png")
MATPLOTLIB_MISSING = (
    "No PNG pictures: they need matplotlib, pip install 'nextvlad[plot]'. The page has its own and is whole."
)
_MANY_POSITIVES = 10


def report(
    run: Path,
    data: Sequence[str],
    options: InferenceOptions | None = None,
    *,
    out: Path,
    videos: Path | None = None,
    top_k: int | None = None,
    save_thresholds: bool = False,
) -> Findings:
    """Scores the videos once and writes the report.

    Memory: that of `nextvlad evaluate`. Every score is kept for average precision and thresholds, 4 bytes
    each, beyond 1 GiB in a temporary file.

    Args:
        run: a run or one of its checkpoints; with a run's metrics.jsonl come the curves of training.
        data: files, folders, globs or .list files, with labels.
        options: how to read and compute; None: the defaults.
        out: folder to make; one that holds an earlier report is written over.
        videos: folder of the videos themselves, for pictures of the examples; None: those that the index.csv
            of `nextvlad extract` beside the data names, where they are.
        top_k: labels a video for GAP and the reliability curve, in 1..C; None: 20, or all where fewer.
        save_thresholds: keep the best threshold of each label with the checkpoint.

    Raises:
        NextvladError: as its message says.
    """
    options = options or InferenceOptions()
    distributed.refuse_torchrun("report runs")
    _check_folder(out)
    if videos is not None:
        if not videos.is_dir():
            raise UsageError(f"--videos {videos}: no such folder; wanted the folder that the videos are in.")
        check_can_read()
    place = checkpoint.resolve(run)
    log = _metrics_of(run, place)
    rows = plots.read_metrics(log) if log else []
    opened = open_checkpoint(run, data, options, with_labels=True)
    num_classes = opened.model.config.num_classes
    collector = Collector(num_classes, settle_top_k(top_k, num_classes))
    with opened.loader:
        _collect(opened, collector)
    tell_damage(opened.loader.damage)
    check_scored(
        {"num_videos": collector.num_videos, "gap": collector.num_positives or None},
        data,
    )
    vocabulary = opened.model.vocabulary
    names = vocabulary.names if vocabulary else tuple(f"label {index}" for index in range(num_classes))
    found = collector.findings(names)
    shown, failures = _pictures(videos, data, found)
    thresholds, not_saved = _thresholds(place, found, data, save=save_thresholds)
    about = About(
        title=f"Report on {_name_of(run, log)}",
        facts=_facts(place, data),
        notes=[*_notes(place, data, found, has_names=vocabulary is not None), *failures],
        thresholds=thresholds,
        rows=rows,
        pictures=shown,
    )
    _write(out, found, about, data, log)
    counts = f"{counted(found.metrics['num_videos'], 'video')}, {counted(len(found.seen_labels), 'label')}"
    say(f"{counts} -> {out / 'report.html'}")
    if not_saved is not None:
        raise not_saved
    return found


@torch.inference_mode()
def _collect(opened: Opened, collector: Collector) -> None:
    with ProgressBar("Scoring", total=opened.total, unit="videos") as bar:
        for batch, scores, losses in answers(opened.model, opened.loader):
            collector.add(batch.video_ids, scores, batch.labels.numpy(), losses)
            bar.advance(batch.num_videos)


def _check_folder(out: Path) -> None:
    """Refuses a place where something else would be mixed with the report, or lost."""
    try:
        kept = {path.name for path in out.iterdir() if path.name[0] != "."} if out.exists() else set()
    except OSError as error:
        raise UsageError(f"{out}: cannot be the folder of a report ({why(error)}).") from error
    if "report.html" not in kept and not kept <= {"report.json", *PICTURES}:  # those of a killed run
        raise UsageError(f"{out}: not empty, and no earlier report; choose another folder with --out.")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{out}: cannot be made ({why(error)}). Choose another --out.") from error


def _metrics_of(run: Path, place: Path) -> Path | None:
    """The metrics.jsonl of the run that a checkpoint belongs to; None for a checkpoint on its own."""
    real = place.resolve()
    for folder in (run, real.parent.parent if real.parent.name == "checkpoints" else run):
        if (folder / "metrics.jsonl").is_file():
            return folder / "metrics.jsonl"
    return None


def _name_of(run: Path, log: Path | None) -> str:
    """The name of the run's folder, or of the checkpoint's where it is nobody's run."""
    return Path(os.path.abspath(log.parent if log else run)).name


def _facts(place: Path, data: Sequence[str]) -> list[tuple[str, str]]:
    return [
        ("checkpoint", place.resolve().name),
        ("data", ", ".join(data[:3]) + (f" and {len(data) - 3:,} more" if len(data) > 3 else "")),
        ("made", f"{date.today():%-d %B %Y} by nextvlad {__version__}"),
    ]


def _notes(place: Path, data: Sequence[str], found: Findings, *, has_names: bool) -> list[str]:
    notes = []
    config = checkpoint.read_train_config(place)
    trained_on: set[str] = set()
    with suppress(UsageError):  # files that are no longer there
        trained_on = {os.path.realpath(path) for path in expand(config.data.train)} if config else set()
    if trained_on & {os.path.realpath(path) for path in expand(data)}:
        notes.append(
            "The model was trained on some of these files. Scores, thresholds and calibration look better "
            "here than on videos it has not seen."
        )
    if not has_names:
        notes.append("The checkpoint has no vocabulary, so labels are numbers.")
    seen = found.seen_labels
    average = sum(label.num_positives for label in seen) / len(seen)
    if average < _MANY_POSITIVES:
        notes.append(
            f"A label has {average:.1f} videos here in the mean, so what is said of single labels is mostly "
            "chance."
        )
    return notes


def _thresholds(
    place: Path, found: Findings, data: Sequence[str], *, save: bool
) -> tuple[str, OutputError | None]:
    """Saves the thresholds if asked to; what the page says of it, and why they could not be saved."""
    if not save:
        return (
            "They are not saved. With --save-thresholds they go into the checkpoint, where nextvlad tag "
            "finds them."
        ), None
    chosen = {
        "rule": f"best F1 of a label, counted with {PRIOR_POSITIVES:g} positives of an average label",
        "data": list(data),
        "num_videos": found.metrics["num_videos"],
        "num_positives": [label.num_positives for label in found.labels],
        "macro_f1": found.macro_f1(),
        "micro_f1": found.micro_f1(),
        "common_threshold": found.common.threshold,
    }
    # The folder itself: `best`, a link, may lead to another one tomorrow.
    folder = place.parent / os.readlink(place) if place.is_symlink() else place
    try:
        path = checkpoint.save_thresholds(folder, [label.cut.threshold for label in found.labels], chosen)
    except OutputError as error:  # the report is worth having all the same
        return f"They could not be saved: {error}", error
    say(f"{counted(len(found.labels), 'threshold')} -> {path}")
    return f"They are saved in {path}, where nextvlad tag finds them.", None


def _pictures(
    videos: Path | None, data: Sequence[str], found: Findings
) -> tuple[dict[str, bytes], list[str]]:
    """JPEGs by video id, and what to say of those that are not there."""
    wanted = {example.video_id for kind in (found.right, found.wrong, found.missed) for example in kind}
    files = listed_videos(expand(data), wanted)
    if videos is not None:
        files |= find_videos(videos, wanted)
    if not files and videos is None:
        return {}, []
    try:
        shown, failures = pictures(files)
    except UsageError:
        if videos is not None:
            raise
        return {}, []  # nobody asked for them
    notes = [f"No picture: {failure}" for failure in failures]
    missing = len(wanted) - len(files)
    if missing and videos is not None:
        notes.append(
            f"{missing} of {len(wanted)} example videos have no picture: no file, or several, of that name "
            f"in {videos}."
        )
    for note in notes:
        say(note)
    return shown, notes


def _write(out: Path, found: Findings, about: About, data: Sequence[str], log: Path | None) -> None:
    """Pictures and numbers first, the page last; what an earlier report left behind goes."""
    for name in ("report.html", "report.json", *PICTURES):
        with suppress(FileNotFoundError):
            (out / name).unlink()
    _draw(out, found, log if about.rows else None)
    values: dict[str, Any] = {"data": list(data), "title": about.title, **found.to_json()}
    write_json(out / "report.json", values)
    with NewFile(out / "report.html") as file:
        file.write(page(found, about).encode("utf-8"))


def _draw(out: Path, found: Findings, log: Path | None) -> None:
    if not plots.can_draw():
        say(MATPLOTLIB_MISSING)
        return
    if log is not None and any(row["kind"] == "train" for row in plots.read_metrics(log)):
        plots.training_curves(log, out / "training_curves.png")
    seen = found.seen_labels
    plots.label_precision(
        [label.num_positives for label in seen],
        [label.average_precision or 0.0 for label in seen],
        out / "label_precision.png",
    )
    curves = {
        "best label of a video": found.reliability["best"],
        f"{found.top_k} best labels": found.reliability["kept"],
    }
    plots.reliability(
        {
            name: (curve.mean_scores(), curve.shares(), curve.counts)
            for name, curve in list(curves.items())[: min(found.top_k, 2)]
        },
        out / "reliability.png",
    )
    if found.matrix is not None:
        plots.confusion_matrix(found.matrix, [label.name for label in found.labels], out / "confusion.png")
