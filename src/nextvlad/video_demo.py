"""`nextvlad demo --video`: from videos to named tags, on clips it draws itself, by the verbs' own functions.

The clips are synthetic (see `nextvlad.video_demo_clips`), which makes two things possible: nothing is
downloaded, and the truth about every second of them is known, to be shown beside what the model found.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from nextvlad.errors import UsageError
from nextvlad.evaluate import evaluate
from nextvlad.extract import extract
from nextvlad.extract_labels import LabelOptions
from nextvlad.progress import say
from nextvlad.recipes import RECIPES
from nextvlad.report import report
from nextvlad.run_config import InferenceOptions, TrainConfig
from nextvlad.tag import tag
from nextvlad.train import train
from nextvlad.video.files import pyav

if TYPE_CHECKING:
    from nextvlad.video_demo_clips import ClipPlan

FEWEST_CLIPS = 8
DEFAULT_CLIPS = 160
FEWEST_TO_LEARN_FROM = 80
"""Below, poor scores are to be expected, and said to be."""

_EPOCHS = 20  # of the recipe's 12: with a hundred videos that is few steps, and scores stay timid

_NEXT = """
What next, with your own videos (docs/small_data.md says what to do with 100, 1,000 and 100,000 of them):

  nextvlad extract my-videos/ --labels labels.csv --out features
  nextvlad train own --data.train 'features/train*' --data.valid 'features/valid*' \\
                     --data.vocabulary features/vocabulary.csv --out runs/first
  nextvlad evaluate runs/first 'features/test*'
  nextvlad tag runs/first some_video.mp4 --report some_video.html"""


@dataclass(frozen=True)
class Found:
    """One label of the tagged clip, as it is and as the model says.

    Attributes:
        label: its name.
        truth: (start, end) in seconds, where it is in the clip; None: it is not.
        score: the model's, in [0, 1]; None: not among the best, which are all that `tag` names.
        intervals: (start, end) in seconds that speak for it.
    """

    label: str
    truth: tuple[float, float] | None
    score: float | None
    intervals: tuple[tuple[float, float], ...]

    @property
    def overlap(self) -> float | None:
        """Intersection over union of truth and intervals, in [0, 1]; None where either is missing.

        >>> Found("fish", (2.0, 6.0), 0.9, ((4.0, 8.0),)).overlap
        0.3333333333333333
        """
        if self.truth is None or not self.intervals:
            return None
        start, end = self.truth
        shared = sum(max(0.0, min(end, b) - max(start, a)) for a, b in self.intervals)
        either = (end - start) + sum(b - a for a, b in self.intervals) - shared
        return shared / either


@dataclass(frozen=True)
class VideoDemoResult:
    """What the demo found out.

    Attributes:
        metrics: of the clips held out, as `nextvlad.evaluate.evaluate` gives them.
        clip: name of the tagged one.
        found: its true labels, and those that the model puts before them.
    """

    metrics: dict[str, Any]
    clip: str
    found: tuple[Found, ...]


def video_demo(
    out: Path, *, num_clips: int = DEFAULT_CLIPS, seed: int = 0, open_report: bool = False
) -> VideoDemoResult:
    """Draws clips, extracts features, trains, evaluates, tags a clip held out, and writes the report.

    Args:
        out: a new folder, or an empty one.
        num_clips: 8 or more; a fifth is held out, an eighth chooses the checkpoint, the others teach.
        seed: of the clips and of the training.
        open_report: show the pages in the desktop's browser.

    Raises:
        UsageError: `out` has something in it, too few clips, or PyAV or Pillow is not installed.
    """
    if out.exists() and any(out.iterdir()):
        raise UsageError(f"{out}: not empty; choose another folder with --out, or remove it.")
    if num_clips < FEWEST_CLIPS:
        raise UsageError(f"--clips: got {num_clips}, wanted {FEWEST_CLIPS} or more.")
    pyav()  # which says what to install
    try:
        from nextvlad.video_demo_clips import make_clips, plan_clips
    except ImportError as error:
        raise UsageError(f"drawing clips needs Pillow ({error}): pip install 'nextvlad[video]'.") from error

    began = time.monotonic()
    num_valid, num_test = max(1, num_clips // 8), max(2, num_clips // 5)
    plans = plan_clips(
        num_train=num_clips - num_valid - num_test, num_valid=num_valid, num_test=num_test, seed=seed
    )
    clips, features, run = out / "clips", out / "features", out / "run"

    _headline(
        f"1. {num_clips} synthetic clips: drawn subjects and computed sounds, real codecs; "
        f"{sum(plan.seconds for plan in plans) / 60:.1f} minutes in all"
    )
    make_clips(plans, clips)
    say(f"{clips}/labels.csv has the labels of each, {clips}/truth.json the seconds of each label.")

    _headline("2. Features: every second of picture and sound becomes a row of numbers")
    _stands_for("extract", clips, "--labels", clips / "labels.csv", "--out", features)
    extract([str(clips)], features, labels=LabelOptions(tables=(clips / "labels.csv",)))

    _headline("3. Train on them")
    config = _settings(features, seed)
    _stands_for(
        *("train", "own", "--data.train", *config.data.train, "--data.valid", *config.data.valid),
        *("--data.vocabulary", config.data.vocabulary, "--epochs", config.epochs, "--out", run),
    )
    train(config, run)

    _headline(f"4. Evaluate on the {num_test} clips held out")
    test = [str(features / "test*.tfrecord")]
    _stands_for("evaluate", run, *test, "--json", out / "scores.json")
    metrics = dict(evaluate(run, test, InferenceOptions(workers=0), json_file=out / "scores.json"))

    clip = _most_telling(plans)
    _headline(f"5. Tag one of them, {clip.name}")
    _stands_for("tag", run, clips / clip.name, "--report", out / "tags.html", "--out", out / "tags.jsonl")
    tag(run, [str(clips / clip.name)], report=out / "tags.html", out=out / "tags.jsonl")
    found = compare(clip, json.loads((out / "tags.jsonl").read_text(encoding="utf-8")))
    _show(clip, found)

    _headline("6. A report on the model")
    _stands_for("report", run, "--data", *test, "--videos", clips, "--out", out / "report")
    report(run, test, InferenceOptions(workers=0), out=out / "report", videos=clips)

    result = VideoDemoResult(metrics, clip.name, found)
    _farewell(result, out, num_clips - num_valid - num_test, time.monotonic() - began)
    if open_report:
        for page in (out / "tags.html", out / "report" / "report.html"):
            opener = "open" if sys.platform == "darwin" else "xdg-open"
            subprocess.run([opener, str(page)], check=False)
    return result


def _settings(features: Path, seed: int) -> TrainConfig:
    recipe = RECIPES["own"].config
    data = replace(
        recipe.data,
        train=(str(features / "train*.tfrecord"),),
        valid=(str(features / "valid*.tfrecord"),),
        vocabulary=str(features / "vocabulary.csv"),
    )
    return replace(recipe, data=data, seed=seed, epochs=_EPOCHS)


def _most_telling(plans: Sequence[ClipPlan]) -> ClipPlan:
    """The first clip held out with the most labels; one that has sound."""
    held_out = [plan for plan in plans if plan.split == "test" and not plan.silent]
    return max(held_out, key=lambda plan: len(plan.labels))


def compare(plan: ClipPlan, row: dict[str, Any]) -> tuple[Found, ...]:
    """The true labels of a clip and those that the model found, best score first.

    Args:
        plan: the clip.
        row: what `nextvlad tag --out` wrote of it: `names`, `scores`, `intervals`.
    """
    said = {
        name: (score, tuple((float(a), float(b)) for a, b in intervals))
        for name, score, intervals in zip(row["names"], row["scores"], row["intervals"], strict=True)
    }
    truth = {event.label: (event.start_seconds, event.end_seconds) for event in plan.events}
    found = [
        Found(label, truth.get(label), *said.get(label, (None, ())))
        for label in dict.fromkeys([*said, *truth])
    ]
    return tuple(sorted(found, key=lambda one: -1.0 if one.score is None else one.score, reverse=True))


def _show(plan: ClipPlan, found: Sequence[Found]) -> None:
    table = Table(title=f"{plan.name}, {plan.seconds:.1f} s: the truth, and what the model says")
    table.add_column("label")
    table.add_column("truth")
    table.add_column("score", justify="right")
    table.add_column("seconds that speak for it")
    table.add_column("overlap", justify="right")
    for one in found:
        truth = "not in it" if one.truth is None else _span(*one.truth)
        overlap = "" if one.overlap is None else f"{one.overlap:.0%}"
        score = "below" if one.score is None else f"{one.score:.2f}"
        table.add_row(one.label, truth, score, ", ".join(_span(*i) for i in one.intervals), overlap)
    Console().print(table)


def _span(start: float, end: float) -> str:
    return f"{start:.1f} to {end:.1f} s"


def _farewell(result: VideoDemoResult, out: Path, num_train: int, seconds: float) -> None:
    true = [one for one in result.found if one.truth is not None]
    right = sum(one.truth is not None for one in result.found[: len(true)])
    overlaps = [one.overlap or 0.0 for one in true]
    _headline(f"Done in {seconds / 60:.1f} minutes")
    say(f"Clips held out: mAP {result.metrics['map']:.3f}, GAP {result.metrics['gap']:.3f}, learnt from")
    say(f"{num_train} clips. All clips are synthetic: the scores say that the chain works, and nothing of")
    say(f"other videos. The tagged clip: {right} of its {len(true)} labels come first. The seconds found")
    say(f"overlap the true ones by {sum(overlaps) / len(overlaps):.0%} on average (intersection over union).")
    if num_train < FEWEST_TO_LEARN_FROM:
        say(f"So few clips teach little: --clips {DEFAULT_CLIPS}, the default, gives good scores.")
    say("\nTo look at:")
    for path, what in (
        (out / "clips", "the clips"),
        (out / "tags.html", "the tagged clip: pictures, scores and seconds"),
        (out / "report" / "report.html", "how good the model is, label by label"),
        (out / "run" / "best", "the checkpoint"),
    ):
        say(f"  {path!s:40s} {what}")
    print(_NEXT)


def _stands_for(*words: object) -> None:
    """Shows the command that does the same."""
    say("$ nextvlad " + " ".join(shlex.quote(str(word)) for word in words))


def _headline(text: str) -> None:
    say(f"\n=== {text}")
