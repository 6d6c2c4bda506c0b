"""Pictures: drawn whole from every kind of run, and refused with a message that helps."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from nextvlad import plots
from nextvlad.errors import DataError, OutputError, UsageError

PNG = b"\x89PNG\r\n\x1a\n"


def write_run(path: Path, num_train: int, num_valid: int = 0, **changes: object) -> Path:
    rows: list[dict[str, object]] = []
    for step in range(1, num_train + 1):
        seen = {"step": step * 10, "examples": step * 320, "epoch": step / 8}
        rows.append({"kind": "train", **seen, "loss": 30.0 / step, "lr": 2e-4, **changes})
        if step <= num_valid:
            score = 1 - 0.5**step
            rows.append(
                {"kind": "valid", **seen, "gap": score, "hit_at_one": score, "perr": score, "map": score}
            )
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def texts(svg: Path) -> str:
    return svg.read_text(encoding="utf-8")  # labels stand in it as comments


@pytest.mark.parametrize(("num_train", "num_valid"), [(1, 0), (1, 1), (12, 3), (100, 50)])
def test_curves_are_drawn(tmp_path: Path, num_train: int, num_valid: int) -> None:
    out = tmp_path / "new folder" / "curves.png"
    plots.training_curves(write_run(tmp_path / "metrics.jsonl", num_train, num_valid), out)
    assert out.read_bytes().startswith(PNG)


def test_curves_name_their_axes_and_metrics(tmp_path: Path) -> None:
    out = tmp_path / "curves.svg"
    plots.training_curves(write_run(tmp_path / "metrics.jsonl", 8, 4), out)
    for said in ("videos seen", "epochs", "loss (nats a video)", "learning rate", "GAP 0.938", "Hit@1 0.938"):
        assert said in texts(out)


def test_the_best_value_is_told_where_it_is_not_the_last(tmp_path: Path) -> None:
    path = write_run(tmp_path / "metrics.jsonl", 3)
    with path.open("a", encoding="utf-8") as file:
        for step, gap in ((10, 0.5), (20, 0.75), (30, 0.625)):
            file.write(json.dumps({"kind": "valid", "step": step, "examples": step * 32, "gap": gap}) + "\n")
    plots.training_curves(path, tmp_path / "curves.svg")
    assert "GAP 0.625, best 0.750" in texts(tmp_path / "curves.svg")


@pytest.mark.parametrize(
    "changes",
    [
        {"loss": float("nan")},
        {name: None for name in plots.METRICS},
        {"loss": 0.0},
        {"lr": None},
        {"epoch": 0.0},
        {"loss": 1e9},
    ],
)
def test_odd_values_are_drawn_without_a_warning(tmp_path: Path, changes: dict[str, object]) -> None:
    plots.training_curves(write_run(tmp_path / "metrics.jsonl", 70, 2, **changes), tmp_path / "curves.png")


def test_a_validation_without_metrics_is_drawn_without_a_warning(tmp_path: Path) -> None:
    path = write_run(tmp_path / "metrics.jsonl", 3)
    with path.open("a", encoding="utf-8") as file:
        file.write('{"kind": "valid", "step": 3, "examples": 96, "gap": null, "loss": NaN}\n')
    plots.training_curves(path, tmp_path / "curves.png")


def test_a_later_row_of_the_same_step_counts_and_a_cut_last_line_does_not(tmp_path: Path) -> None:
    path = write_run(tmp_path / "metrics.jsonl", 3, 1)
    with path.open("a", encoding="utf-8") as file:
        file.write('{"kind": "train", "step": 20, "examples": 640, "loss": 7.0}\n{"kind": "train", "st')
    rows = plots.read_metrics(path)
    assert [(row["kind"], row["step"]) for row in rows] == [
        ("train", 10),
        ("valid", 10),
        ("train", 20),
        ("train", 30),
    ]
    assert rows[2]["loss"] == 7.0


WRONG = [
    f'{{"kind": "train", "step": {step}, "loss": {loss}}}'
    for step, loss in [(2, '"low"'), (2, "[]"), (2, "1" + 400 * "0"), ("1e400", 1.0)]
]


@pytest.mark.parametrize(
    "bad", ["{", "[1]", '{"step": 1}', '{"kind": "train", "step": "x"}', '"text"', *WRONG]
)
def test_a_line_that_is_no_row_is_named(tmp_path: Path, bad: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"kind": "train", "step": 1}}\n{bad}\n', encoding="utf-8")
    with pytest.raises(
        DataError, match=r"metrics\.jsonl, line 2: got .*wanted a JSON object with kind, step"
    ):
        plots.read_metrics(path)


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none\.jsonl: cannot be read \(No such file"):
        plots.training_curves(tmp_path / "none.jsonl", tmp_path / "x.png")
    (tmp_path / "bytes.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match=r"bytes\.jsonl: not text"):
        plots.training_curves(tmp_path / "bytes.jsonl", tmp_path / "x.png")
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(DataError, match=r"empty\.jsonl: no row of training yet"):
        plots.training_curves(tmp_path / "empty.jsonl", tmp_path / "x.png")


def test_confusion_matrix_says_how_many_were_right(tmp_path: Path) -> None:
    out = tmp_path / "confusion.svg"
    plots.confusion_matrix([[1200, 3], [7, 90]], ["cats $&$", "dogs <b>"], out)
    for said in ("1,290 of 1,300 right (99.2%)", "1,200", "true class", "predicted class"):
        assert said in texts(out)


@pytest.mark.parametrize("num_classes", [1, 9, 21, 300])
def test_confusion_matrix_of_any_size(tmp_path: Path, num_classes: int) -> None:
    counts = np.eye(num_classes, dtype=np.int64) * 5
    counts[0] = 0  # a class without videos
    plots.confusion_matrix(counts, [f"class {i}" for i in range(num_classes)], tmp_path / "confusion.png")
    assert (tmp_path / "confusion.png").read_bytes().startswith(PNG)


@pytest.mark.parametrize("shape", [(2, 3), (3, 3), (4,)])
def test_confusion_matrix_refuses_shapes_that_do_not_fit(tmp_path: Path, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="with 2 names: wanted"):
        plots.confusion_matrix(np.zeros(shape), ["a", "b"], tmp_path / "x.png")


def test_pictures_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"x\.bmp: cannot draw to \.bmp; wanted \.png, \.svg, \.pdf"):
        plots.confusion_matrix([[1]], ["a"], tmp_path / "x.bmp")
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"x\.png: cannot be written"):
        plots.confusion_matrix([[1]], ["a"], tmp_path / "file" / "x.png")


def test_without_matplotlib_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UsageError, match=r"needs matplotlib: pip install 'nextvlad\[plot\]'"):
        plots.confusion_matrix([[1]], ["a"], tmp_path / "x.png")


def test_importing_and_drawing_leave_pyplot_alone(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from nextvlad import plots\n"
        "assert 'matplotlib' not in sys.modules\n"
        f"plots.confusion_matrix([[1]], ['a'], Path({str(tmp_path / 'x.png')!r}))\n"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_average_precision_over_support_is_drawn(tmp_path: Path) -> None:
    plots.label_precision([1, 20, 3000], [0.0, 0.5, 1.0], tmp_path / "precision.svg")
    for said in ("3 labels, mAP 0.5000", "videos that have the label", "average precision"):
        assert said in texts(tmp_path / "precision.svg")


def test_reliability_is_drawn_with_empty_bins(tmp_path: Path) -> None:
    some = ([0.05, np.nan, 0.95], [0.0, np.nan, 0.9], [1000, 0, 3])
    for name, curves in {"one": {"best $label$": some}, "two": {"best": some, "kept": some}}.items():
        plots.reliability(curves, tmp_path / f"{name}.png")
        assert (tmp_path / f"{name}.png").read_bytes().startswith(PNG)


def test_whether_there_is_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    assert plots.can_draw()
    monkeypatch.delitem(sys.modules, "matplotlib", raising=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert not plots.can_draw()
