"""The page of `nextvlad tag`: whole, without a network, escaped, and with the values that were given."""

from __future__ import annotations

import base64
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("av")
pytest.importorskip("PIL")

from nextvlad.errors import OutputError
from nextvlad.files import NewFile
from nextvlad.tag_report import MOST_STEPS, Failure, ReportWriter, _blocks, clock, stretches, thinned
from nextvlad.tag_video import Tag, TaggedVideo, thumbnail

NASTY = "</script><script>alert(1)</script>\"' onload=x <img src=https://evil.example/a.png> &amp; \udcff"


def video(num_steps: int = 12, *, name: str = "holiday", **more: Any) -> TaggedVideo:
    numbers = np.random.default_rng(num_steps)
    tags = [
        Tag(
            label=label,
            name=f"{name} {label}",
            score=score,
            threshold=0.25 if label else None,
            contributions=numbers.normal(0, 1, num_steps).astype(np.float32),
            intervals=[(2.0, 5.0), (7.0, 8.0)] if label else [],
            score_without=0.125 if label else None,
        )
        for label, score in ((1, 0.875), (0, 0.03125))
    ]
    values: dict[str, Any] = {
        "video_id": name,
        "path": f"{name}.mp4",
        "tags": tags,
        "duration_seconds": float(num_steps),
        "step_seconds": 1.0,
        "attention": {"rgb": numbers.uniform(0, 8, num_steps)},
        "level_db": np.linspace(-70, 0, num_steps, dtype=np.float32),
        "thumbnails": [(0.5, thumbnail(np.full((20, 20, 3), 90, np.uint8)))],
        "facts": {"sound": "aac", "length": f"{num_steps} s"},
        "notes": ("a note",),
    }
    return TaggedVideo(**values | more)


def write(path: Path, *videos: TaggedVideo | Failure, **more: Any) -> str:
    with ReportWriter(path, title=more.pop("title", "Tags"), **more) as page:
        for item in videos:
            page.add(item) if isinstance(item, TaggedVideo) else page.add_failure(item)
    return path.read_text(encoding="utf-8")


class Page(HTMLParser):
    """All elements with their attributes, the text outside of scripts, and scripts by type."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.scripts: list[tuple[str | None, str]] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes)))
        if tag not in ("meta", "img", "rect", "path", "line"):
            self.open.append(tag)
        if tag == "script":
            self.scripts.append((dict(attributes).get("type"), ""))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes)))

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            kind, before = self.scripts[-1]
            self.scripts[-1] = (kind, before + data)
        elif self.open and self.open[-1] != "style":
            self.text += data

    def values(self) -> list[dict[str, Any]]:
        return [json.loads(text) for kind, text in self.scripts if kind == "application/json"]


def test_the_page_is_well_formed_and_tells_everything(tmp_path: Path) -> None:
    page = Page(write(tmp_path / "r.html", video(), title="Tags of 1 video", facts=[("model", "runs/a")]))
    assert page.open == []
    for words in (
        *("Tags of 1 video", "model", "runs/a", "holiday 1", "0.875", "0.031", "aac", "12 s", "holiday.mp4"),
        *(
            "a note",
            "0:02-0:05, 0:07-0:08",
            "0.125 without them",
            "no stretch speaks for it",
            "leave-one-out",
        ),
        "attention, rgb",
    ):
        assert words in page.text, words


def test_nothing_comes_from_a_network(tmp_path: Path) -> None:
    html = write(tmp_path / "r.html", video(name=NASTY), Failure(NASTY, NASTY), title=NASTY)
    page = Page(html)
    for tag, attributes in page.elements:
        assert tag not in ("link", "iframe", "object", "embed", "base", "form", "video", "audio")
        for name in ("src", "href", "srcset", "action", "poster", "data", "style"):
            value = attributes.get(name)
            if value is not None:
                assert "//" not in value or value.startswith("data:image/jpeg;base64,"), (tag, value)
    (policy,) = [a["content"] for t, a in page.elements if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    own = "".join(text for kind, text in page.scripts if kind is None)
    own += "".join(re.findall(r"<style>(.*?)</style>", html, re.DOTALL))
    assert not re.search(r"https?:|//[a-z]|url\(|@import|fetch|XMLHttp|import\(", own.replace("// What", ""))


def test_names_cannot_become_markup(tmp_path: Path) -> None:
    plain = Page(write(tmp_path / "a.html", video(), Failure("a", "b")))
    bad = video(name=NASTY, facts={NASTY: NASTY}, notes=(NASTY,), attention={NASTY: np.ones(12)})
    html = write(tmp_path / "b.html", bad, Failure(NASTY, NASTY), title=NASTY, facts=[(NASTY, NASTY)])
    nasty = Page(html)
    assert [kind for kind, _ in nasty.scripts] == [kind for kind, _ in plain.scripts]
    assert not any(tag == "img" and "src" in a and "evil" in str(a["src"]) for tag, a in nasty.elements)
    assert not any("onload" in attributes for _, attributes in nasty.elements)
    shown = NASTY.replace("\udcff", "?")
    assert nasty.text.count(shown) >= 8


def test_values_are_those_of_the_video(tmp_path: Path) -> None:
    given = video()
    (values,) = Page(write(tmp_path / "r.html", given)).values()
    assert (values["steps"], values["step"], values["duration"], values["together"]) == (12, 1.0, 12.0, 1)
    for tag, shown in zip(given.tags, values["tags"], strict=True):
        np.testing.assert_allclose(shown["values"], tag.contributions, rtol=1e-3)
        assert 1 / (1 + np.exp(-shown["logit"])) == pytest.approx(tag.score)
    np.testing.assert_allclose(values["level"], given.level_db, atol=0.06)


def test_thumbnails_are_inside(tmp_path: Path) -> None:
    jpegs = [(0.5 + second, thumbnail(np.full((20, 20, 3), 20 * second, np.uint8))) for second in range(12)]
    page = Page(write(tmp_path / "r.html", video(thumbnails=jpegs)))
    images = [attributes for tag, attributes in page.elements if tag == "img"]
    assert [float(str(a["data-second"])) for a in images] == [second for second, _ in jpegs]
    for image, (_, jpeg) in zip(images, jpegs, strict=True):
        assert base64.b64decode(str(image["src"]).removeprefix("data:image/jpeg;base64,")) == jpeg
    assert sum(a.get("class") == "spare" for a in images) == 2  # ten stand side by side


def test_a_long_film_makes_no_longer_page(tmp_path: Path) -> None:
    hours = video(3 * 3600)
    html = write(tmp_path / "r.html", hours)
    assert len(html) < 300_000
    (values,) = Page(html).values()
    assert values["steps"] == MOST_STEPS
    assert values["step"] == 6.0
    strongest = np.abs(hours.tags[0].contributions).reshape(-1, 6).max(1)
    np.testing.assert_allclose(np.abs(values["tags"][0]["values"]), strongest, rtol=1e-3)
    assert "2:40:00" in Page(html).text


@pytest.mark.parametrize("num_steps", [1, 2, 5])
def test_a_short_clip(tmp_path: Path, num_steps: int) -> None:
    page = Page(write(tmp_path / "r.html", video(num_steps)))
    assert page.open == []
    assert page.values()[0]["steps"] == num_steps


def test_without_sound_labels_or_thumbnails(tmp_path: Path) -> None:
    bare = video(tags=[], level_db=np.empty(0, np.float32), thumbnails=[], attention={}, facts={}, notes=())
    page = Page(write(tmp_path / "r.html", bare))
    assert "No label reaches its threshold" in page.text
    assert page.values()[0]["tags"] == []
    assert page.values()[0]["level"] == [None] * 12


def test_a_page_that_was_given_up_is_not_there(tmp_path: Path) -> None:
    def give_up() -> None:
        with ReportWriter(tmp_path / "r.html", title="x") as page:
            page.add(video())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        give_up()
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(OutputError, match="cannot be written"):
        write(tmp_path / "no" / "r.html")


@pytest.mark.parametrize("good_writes", [0, 1])
def test_a_page_for_which_there_is_no_room_leaves_nothing(
    good_writes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[int] = []

    def full(file: NewFile, data: bytes) -> None:
        if len(written) == good_writes:
            raise OutputError(f"{file.path}: cannot be written (No space left on device).")
        written.append(len(data))

    monkeypatch.setattr(NewFile, "write", full)
    with pytest.raises(OutputError, match="No space left"):  # over the head, over the end
        write(tmp_path / "r.html")
    assert list(tmp_path.iterdir()) == []


def test_times_in_words() -> None:
    assert [clock(s) for s in (0, 59.9, 60, 3599, 3600, 36061)] == [
        *("0:00", "0:59", "1:00", "59:59", "1:00:00", "10:01:01"),
    ]
    parts = [(0.0, 1.0), (2.0, 12.0), (20.0, 22.0), (30.0, 33.0), (40.0, 41.0)]
    assert stretches(parts) == "0:02-0:12, 0:20-0:22, 0:30-0:33 and 2 more"


@given(st.lists(st.floats(-9, 9, width=32), min_size=1, max_size=60), st.integers(1, 20))
def test_thinning_keeps_the_extremes(values: list[float], most: int) -> None:
    array = np.array(values, np.float32)
    thin, together = thinned(array, most)
    assert len(thin) <= most
    assert len(thin) == -(-len(values) // together)
    assert np.abs(thin).max() == np.abs(array).max()
    assert set(thin.tolist()) <= set(array.tolist())


def test_blocks_are_where_the_values_are() -> None:
    assert _blocks(np.array([0.0, 2.0, 1.0, 0.0, 3.0]), 10.0, -1.0) == "M1 10V8H2V9H3V10ZM4 10V7H5V10Z"
    assert _blocks(np.zeros(4), 10.0, 1.0) == ""
