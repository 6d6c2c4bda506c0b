"""The page: whole, offline, and safe with names that look like markup; whatever was or was not found."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest

from nextvlad.metrics import mean_average_precision, per_class_average_precision
from nextvlad.report_charts import Axis, Series, axis_over, line_chart, short
from nextvlad.report_findings import Collector, Findings
from nextvlad.report_page import About, page

NASTY = '<img src=x onerror="alert(1)">&amp; "quoted" \'single\''
VOID = {"meta", "input", "img"}


class Checker(HTMLParser):
    """Complains about tags that are not closed in order; keeps the text and the attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.texts: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def read_page(text: str) -> Checker:
    checker = Checker()
    checker.feed(text)
    checker.close()
    assert checker.open == []
    return checker


def collect(scores: Any, truth: Any, names: list[str], *, top_k: int = 2) -> Findings:
    collector = Collector(truth.shape[1], min(top_k, truth.shape[1]))
    for start in range(0, len(truth), 16):
        part = slice(start, start + 16)
        ids = [f"video {number}" for number in range(len(truth))][part]
        collector.add(ids, scores[part], truth[part], np.ones(len(ids)))
    return collector.findings(names)


def made_up(num_videos: int = 60, num_labels: int = 5, seed: int = 0) -> tuple[Any, Any]:
    numbers = np.random.default_rng(seed)
    truth = numbers.random((num_videos, num_labels)) < 0.3
    truth[:, -1] = False  # a label without positives
    scores = np.clip(0.3 * truth + numbers.random(truth.shape) * 0.6, 0, 1)
    return scores.astype(np.float32), truth


def about(**more: Any) -> About:
    return About(**{"title": "Report", "facts": [("data", "x")], "notes": [], "thresholds": "Saved."} | more)


ROWS = [
    {"kind": "train", "step": step, "examples": step * 10, "loss": 30.0 / step, "lr": 1e-3}
    for step in range(1, 90)
] + [
    {
        "kind": "valid",
        "step": 40,
        "examples": 400,
        "gap": 0.5,
        "hit_at_one": 0.5,
        "perr": None,
        "map": 0.2,
        "loss": 2,
    }
]


def test_findings_are_those_of_the_metrics() -> None:
    scores, truth = made_up()
    found = collect(scores, truth, list("abcde"))
    precisions = per_class_average_precision(scores, truth)
    assert found.metrics["map"] == mean_average_precision(scores, truth)
    for label, precision in zip(found.labels, precisions, strict=True):
        assert label.average_precision == (None if np.isnan(precision) else precision)
        assert label.num_positives == truth[:, label.index].sum()
        assert label.prevalence == truth[:, label.index].mean()
    pooled = truth & (scores >= np.array([label.cut.threshold for label in found.labels], np.float32))
    given = (scores >= np.array([label.cut.threshold for label in found.labels], np.float32)).sum()
    assert found.micro_f1() == pytest.approx(2 * pooled.sum() / (given + truth.sum()))
    assert len(found.seen_labels) == 4
    for example in found.missed:
        others = scores[~truth[:, example.label], example.label]
        assert example.ranked_above == pytest.approx(np.mean(others > np.float32(example.score)))
        assert precisions[example.label] >= np.nanmedian(precisions)


def test_the_page_is_whole_and_asks_for_nothing_outside() -> None:
    found = collect(*made_up(), list("abcde"))
    text = page(found, about(rows=ROWS, pictures={found.right[0].video_id: b"\xff\xd8jpeg"}))
    checker = read_page(text)
    for anchor in ("training", "labels", "confusions", "calibration", "thresholds", "examples"):
        assert ("href", f"#{anchor}") in checker.attributes
        assert ("id", anchor) in checker.attributes
    assert not re.search(r"https?://|//cdn|url\(|@import|<link|<script src", text)
    sources = [value or "" for name, value in checker.attributes if name == "src"]
    assert len(sources) == 1
    assert sources[0].startswith("data:image/jpeg;base64,/9h")
    assert "default-src 'none'" in text


def test_names_from_outside_are_escaped_everywhere() -> None:
    scores, truth = made_up()
    names = [f"{NASTY} {number}" for number in range(5)]
    collector = Collector(5, 2)
    collector.add([f"{NASTY} {number}" for number in range(60)], scores, truth, np.ones(60))
    found = collector.findings(names)
    text = page(found, about(title=NASTY, facts=[(NASTY, NASTY)], notes=[NASTY], thresholds=NASTY, rows=ROWS))
    checker = read_page(text)
    assert "img" not in checker.tags
    assert not [name for name, _ in checker.attributes if name.startswith("onerror")]
    assert "<img" not in text
    assert any(NASTY in said for said in checker.texts)


def test_one_label_a_video_shows_the_matrix() -> None:
    numbers = np.random.default_rng(1)
    truth = np.eye(3, dtype=np.bool_)[numbers.integers(3, size=50)]
    scores = numbers.random((50, 3)).astype(np.float32)
    found = collect(scores, truth, ["cat", "dog", "owl"])
    assert found.matrix is not None
    assert np.trace(found.matrix) == (scores.argmax(1) == truth.argmax(1)).sum()
    assert 'class="matrix"' in page(found, about())
    assert collect(*made_up(), list("abcde")).matrix is None


@pytest.mark.parametrize(("num_videos", "num_labels"), [(1, 1), (1, 2), (3, 1), (40, 3)])
def test_small_and_perfect_sets(num_videos: int, num_labels: int) -> None:
    truth = np.zeros((num_videos, num_labels), np.bool_)
    truth[:, 0] = True
    found = collect(truth.astype(np.float32), truth, [f"label {number}" for number in range(num_labels)])
    assert found.macro_f1() == 1.0
    assert found.frequent == found.wrong == []
    read_page(page(found, about()))


def test_without_a_log_there_is_no_training_section() -> None:
    text = page(collect(*made_up(), list("abcde")), about())
    assert 'href="#training"' not in text
    assert "<h2>Training</h2>" not in text


@pytest.mark.parametrize(
    "row",
    [
        {"loss": float("nan"), "lr": 1e-3, "examples": 3},
        {"loss": None, "lr": None, "examples": 3},
        {"loss": 0.0, "lr": 0.0, "examples": 0},
        {"loss": "x", "lr": [], "examples": "y"},
        {"loss": -1.7e308, "lr": 1.7e308, "examples": 3},
        {},
    ],
)
def test_odd_rows_of_a_log_are_left_out(row: dict[str, Any]) -> None:
    rows = [{"kind": "train", "step": 1} | row, {"kind": "valid", "step": 1} | row]
    text = page(collect(*made_up(), list("abcde")), about(rows=rows))
    read_page(text)
    assert "nan" not in re.sub(r"<script>.*", "", text, flags=re.DOTALL).lower().replace("isnan", "")


def test_ticks_are_round_and_inside() -> None:
    for axis in (
        Axis("x", 0.0, 1.0),
        Axis("x", 0.0, 11_080.0),
        Axis("x", 8.7, 420.0, log=True),
        Axis("x", 1.0, 5e6, log=True),
        axis_over("x", [3.0]),
        axis_over("x", []),
        axis_over("x", [0.0, 0.0], from_zero=True),
        axis_over("x", [7.0], log=True),
        axis_over("x", [-1e-9, 1e-9]),
    ):
        ticks = axis.ticks()
        assert 1 <= len(ticks) <= 12, axis
        assert all(axis.low <= tick * (1 + 1e-9) + 1e-12 and tick <= axis.high * (1 + 1e-9) for tick in ticks)
        assert ticks == sorted(ticks)
        assert 0 <= axis.place(axis.low) <= axis.place(axis.high) <= 1
    assert [short(value) for value in (0, 950, 1500, 2e6, 3e9, 0.00025)] == [
        "0",
        "950",
        "1.5k",
        "2M",
        "3G",
        "0.00025",
    ]


def test_a_low_chart_has_room_for_powers_of_ten_alone() -> None:
    axis = Axis("pairs", 0.8, 130.0, log=True)
    assert axis.ticks(most=5) == [1.0, 10.0, 100.0]
    assert axis.ticks(most=12) == [1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0]


def test_a_curve_of_one_point_is_drawn() -> None:
    x, y = axis_over("x", [5.0], from_zero=True), axis_over("y", [2.0])
    text = line_chart("title", x, y, [Series(name="<b>", points=[(5.0, 2.0)], colour="blue")])
    assert text.count("<circle") == 1
    assert "&lt;b&gt;" in text


def test_confusions_of_a_few_videos_say_nothing_of_chance() -> None:
    found = collect(*made_up(num_videos=4, seed=2), list("abcde"))
    assert found.frequent
    assert not found.telling
    text = page(found, about())
    read_page(text)
    assert "No pair in enough videos to tell" in text
