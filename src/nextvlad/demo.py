"""`nextvlad demo`: the whole job on embedded real data, through the same functions as the verbs.

The data is speech, not video: 640 utterances of the two Japanese vowels /ae/ by nine men, as sequences
of 7 to 29 frames of 12 numbers (demo_data/README.md). The job is the same: sequences of frames in,
labels out, scored on a published test split.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from nextvlad.check import check
from nextvlad.data.sources import read
from nextvlad.data.vocabulary import Vocabulary
from nextvlad.errors import UsageError
from nextvlad.evaluate import evaluate
from nextvlad.plots import can_draw, confusion_matrix, training_curves
from nextvlad.predict import predict
from nextvlad.progress import say
from nextvlad.recipes import RECIPES
from nextvlad.run_config import InferenceOptions, TrainConfig
from nextvlad.train import train

_NEXT = """
What next, with your own data (frame TFRecords as YouTube-8M's or AudioSet's; docs/data.md):

  nextvlad check 'features/train*.tfrecord' --vocabulary vocabulary.csv
  nextvlad train small --data.train 'features/train*' --data.valid 'features/valid*' \\
                       --data.vocabulary vocabulary.csv --out runs/first
  nextvlad evaluate runs/first 'features/test*'
  nextvlad predict  runs/first 'features/test*' --out predictions.jsonl

All recipes: nextvlad train --help"""


def demo(out: Path, *, open_plots: bool = False) -> dict[str, dict[str, Any]]:
    """Trains NeXtVLAD and the mean-pool baseline, evaluates, predicts, draws.

    Args:
        out: a new folder, or an empty one.
        open_plots: show the pictures in the desktop's viewer.

    Returns:
        The metrics on the test split, by model: "nextvlad" and "mean_pool".

    Raises:
        UsageError: `out` has something in it, or matplotlib is missing.
    """
    if out.exists() and any(out.iterdir()):
        raise UsageError(f"{out}: not empty; choose another folder with --out, or remove it.")
    if not can_draw():
        raise UsageError("the demo draws, which needs matplotlib: pip install 'nextvlad[plot]'.")
    with as_file(files("nextvlad") / "demo_data") as data:
        return _run(data, out, open_plots=open_plots)


def _run(data: Path, out: Path, *, open_plots: bool) -> dict[str, dict[str, Any]]:
    train_data, test_data = [str(data / "train-*.tfrecord")], [str(data / "test-*.tfrecord")]
    vocabulary, here = data / "vocabulary.csv", InferenceOptions(workers=0)

    _headline("1. The data: who of nine speakers said /ae/? (speech standing in for video; UCI, CC BY 4.0)")
    check([*train_data, *test_data], vocabulary=vocabulary, workers=1)

    results: dict[str, dict[str, Any]] = {}
    for number, (name, recipe) in enumerate(
        (("nextvlad", "small"), ("mean_pool", "small_mean_pool")), start=2
    ):
        _headline(f"{number}. Train {name} (recipe {recipe}) on 270 utterances, score it on 370 others")
        config = _settings(RECIPES[recipe].config, train_data, test_data, vocabulary)
        train(config, out / name)
        # The last checkpoint, not the best: the test split is watched here, not chosen by.
        results[name] = dict(
            evaluate(out / name / "last", test_data, here, top_k=5, json_file=out / f"{name}.json")
        )

    _headline("4. Predict, and draw")
    predict(out / "nextvlad" / "last", test_data, here, out=out / "predictions.jsonl", top_k=3)
    training_curves(out / "nextvlad" / "metrics.jsonl", out / "training_curves.png")
    names = Vocabulary.load(vocabulary).names
    confusion_matrix(
        _confusions(test_data, out / "predictions.jsonl", len(names)), names, out / "confusion.png"
    )
    say((out / "predictions.jsonl").read_text(encoding="utf-8").splitlines()[0])

    _summary(results, out)
    if open_plots:
        for picture in ("training_curves.png", "confusion.png"):
            opener = "open" if sys.platform == "darwin" else "xdg-open"
            subprocess.run([opener, str(out / picture)], check=False)
    print(_NEXT)
    return results


def _settings(
    recipe: TrainConfig, train_data: list[str], test_data: list[str], vocabulary: Path
) -> TrainConfig:
    return replace(
        recipe,
        data=replace(
            recipe.data,
            train=tuple(train_data),
            valid=tuple(test_data),
            vocabulary=str(vocabulary),
            workers=0,
        ),
        log_every=5,
        eval_every=100,
        threads=1,  # these models are too small for a second thread to pay
    )


def _confusions(data: list[str], predictions: Path, num_classes: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """[C, C] counts: rows the truth, columns the best label."""
    truth = {record.video_id: int(record.labels[0]) for record in read(data)}
    counts = np.zeros((num_classes, num_classes), np.int64)
    for line in predictions.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        counts[truth[row["video_id"]], row["labels"][0]] += 1
    return counts


def _summary(results: dict[str, dict[str, Any]], out: Path) -> None:
    _headline("Results on the 370 test utterances")
    table = Table()
    for column in ("model", "Hit@1", "GAP", "mAP"):
        table.add_column(column, justify="left" if column == "model" else "right")
    for name, title in (("nextvlad", "NeXtVLAD"), ("mean_pool", "mean of the frames + logistic regression")):
        row = results[name]
        table.add_row(title, f"{row['hit_at_one']:.4f}", f"{row['gap']:.4f}", f"{row['map']:.4f}")
    Console().print(table)
    say(f"In {out}/: checkpoints, training_curves.png, confusion.png, predictions.jsonl")


def _headline(text: str) -> None:
    say(f"\n=== {text}")
