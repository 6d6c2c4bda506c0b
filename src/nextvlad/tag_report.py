"""The page of `nextvlad tag --report`: one HTML file with everything in it, for a browser without a network.

Of each video: thumbnails along a time line, the loudness, and for each label what each second contributes to
it, with the stretches that speak for it. All that a user or a file can name is escaped.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from nextvlad.files import NewFile
from nextvlad.tag_video import Tag, TaggedVideo

MOST_STEPS = 1800
"""Steps of a time line in the page; of a longer video several seconds share one."""

_STRIP = 10  # thumbnails side by side; the others appear under the pointer
_QUIETEST_DB = -60.0  # the foot of the loudness
_TICK_SECONDS = (1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 14400)
_MOST_TICKS = 9

_HOW_TO_READ = """\
<div class="legend"><span><span class="key for"></span>a second that speaks for the label</span>
<span><span class="key against"></span>one that speaks against it</span>
<span><span class="key band"></span>stretches that speak for it</span></div>
<details><summary>What the numbers are</summary>
<p>The height of a block is what the label's log-odds lose when that second is left out of the video,
pictures and sound. It is computed with the model itself (leave-one-out), not estimated. The contributions of
all seconds do not add up to the score. Every label has a scale of its own; its greatest value stands at the
right.</p>
<p>Stretches are found from that curve; &ldquo;without them&rdquo; is the score when all of them are left
out.</p>
<p>Attention is what the model weighs a second with, whatever the label.</p></details>
"""


@dataclass(frozen=True)
class Failure:
    """A video that could not be tagged, and why."""

    path: str
    reason: str


class ReportWriter:
    """Writes the page video by video, so that memory holds one at a time; a context manager.

    Args:
        path: of the HTML file; appears when it is complete.
        title: of the page.
        facts: what holds for all videos: (name, value).

    Raises:
        OutputError: the file cannot be written.
    """

    def __init__(self, path: Path, *, title: str, facts: Sequence[tuple[str, str]] = ()) -> None:
        self._file = NewFile(path)
        self._title, self._facts = title, facts
        self._sections: list[str] = []

    def __enter__(self) -> Self:
        self._file.__enter__()
        try:
            self._write(self._head())
        except BaseException as error:
            self._file.__exit__(type(error), error, error.__traceback__)
            raise
        return self

    def add(self, video: TaggedVideo) -> None:
        """One more video."""
        for part in section(video):
            self._write(part)

    def add_failure(self, failure: Failure) -> None:
        """One more video, that could not be tagged."""
        self._write(
            f"<section><h2>{escape(Path(failure.path).name)}</h2>"
            f'<p class="failed">Not tagged: {escape(failure.reason)}</p></section>\n'
        )

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                script = (files("nextvlad") / "tag_report.js").read_text(encoding="utf-8")
                self._write(f"</main>\n<script>\n{script}</script>\n</body></html>\n")
        except BaseException as failure:
            self._file.__exit__(type(failure), failure, failure.__traceback__)
            raise
        self._file.__exit__(kind, error, trace)

    def _head(self) -> str:
        style = (files("nextvlad") / "tag_report.css").read_text(encoding="utf-8")
        return (
            '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            # Nothing in the page may ask a network for anything, whatever is written into it.
            '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
            "style-src 'unsafe-inline'; script-src 'unsafe-inline'\">\n"
            f"<title>{escape(self._title)}</title>\n<style>\n{style}</style></head>\n<body><main>\n"
            f"<header><h1>{escape(self._title)}</h1>{_facts(self._facts)}{_HOW_TO_READ}</header>\n"
        )

    def _write(self, text: str) -> None:
        self._file.write(text.encode("utf-8", errors="replace"))


def section(video: TaggedVideo) -> Iterator[str]:
    """The HTML of one video."""
    yield f"<section><h2>{escape(video.video_id)}</h2>{_facts([*video.facts.items(), ('file', video.path)])}"
    if video.notes:
        yield '<ul class="notes">' + "".join(f"<li>{escape(note)}</li>" for note in video.notes) + "</ul>"
    yield '<div class="rows" tabindex="0" role="group" aria-label="Time line; arrow keys move along it">\n'
    if video.thumbnails:
        yield f'<div class="head blank"></div>{_thumbnails(video)}\n'
    if not video.tags:
        yield '<div class="head blank"></div><div class="lane none">No label reaches its threshold.</div>\n'
    for number, tag in enumerate(video.tags):
        yield _tag(number, tag, video)
    yield _sound(video)
    for stream, mass in video.attention.items():
        yield _attention(stream, mass)
    yield f'<div class="head blank"></div><div class="axis">{_ticks(video.duration_seconds)}</div>\n'
    yield '<div class="cursor"></div><div class="peek"></div>\n'
    yield f'<script type="application/json">{_for_script(_values(video))}</script></div></section>\n'


def clock(seconds: float) -> str:
    """Seconds as m:ss or h:mm:ss.

    >>> clock(75.9), clock(3600)
    ('1:15', '1:00:00')
    """
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def stretches(intervals: Sequence[tuple[float, float]], most: int = 3) -> str:
    """Stretches in words, the longest `most` of them in order.

    >>> stretches([(12, 25), (70, 71)])
    '0:12-0:25, 1:10-1:11'
    """
    longest = sorted(sorted(intervals, key=lambda pair: pair[0] - pair[1])[:most])
    shown = ", ".join(f"{clock(start)}-{clock(math.ceil(end))}" for start, end in longest)
    return f"{shown} and {len(intervals) - most} more" if len(intervals) > most else shown


def thinned(values: NDArray[Any], most: int = MOST_STEPS) -> tuple[NDArray[Any], int]:
    """[T] -> ([at most `most`], how many share one place): of each group the value furthest from zero."""
    together = max(1, math.ceil(len(values) / most))
    if together == 1:
        return values, 1
    padded = np.full(math.ceil(len(values) / together) * together, np.nan)
    padded[: len(values)] = values
    groups = padded.reshape(-1, together)
    return groups[np.arange(len(groups)), np.nanargmax(np.abs(groups), axis=1)], together


def _facts(facts: Sequence[tuple[str, str]]) -> str:
    words = "".join(f"<span>{escape(name)} <b>{escape(value)}</b></span>" for name, value in facts if value)
    return f'<div class="facts">{words}</div>'


def _thumbnails(video: TaggedVideo) -> str:
    """A strip over the whole time line; each place shows the picture nearest to its middle."""
    seconds = np.array([second for second, _ in video.thumbnails])
    places = min(_STRIP, len(seconds))
    middles = (np.arange(places) + 0.5) * video.duration_seconds / places
    shown = set(np.abs(seconds[:, None] - middles).argmin(axis=0).tolist())
    images = "".join(
        f'<img{"" if index in shown else " class=spare"} data-second="{second:g}" alt="at {clock(second)}" '
        f'src="data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}">'
        for index, (second, jpeg) in enumerate(video.thumbnails)
    )
    return f'<div class="lane thumbs{" few" if places < _STRIP - 2 else ""}">{images}</div>'


def _tag(number: int, tag: Tag, video: TaggedVideo) -> str:
    threshold = "" if tag.threshold is None else f'<u style="left:{tag.threshold:.2%}"></u>'
    if tag.score_without is None:
        words = "no stretch speaks for it"
    else:
        words = f"{stretches(tag.intervals)}; {tag.score_without:.3f} without them"
    scale = np.abs(tag.contributions).max(initial=0.0)
    return (
        f'<div class="head"><div class="name"><b>{escape(tag.name)}</b><span>{tag.score:.3f}</span></div>'
        f'<div class="bar"><i style="width:{tag.score:.2%}"></i>{threshold}</div>'
        f'<div class="small">{escape(words)}</div></div>'
        f'<div class="lane label">{_curve(tag, video)}<span class="scale">{scale:.2g}</span>'
        f'<span class="reading" data-tag="{number}"></span></div>\n'
    )


def _curve(tag: Tag, video: TaggedVideo) -> str:
    """Contributions as blocks, above and below a line; the stretches behind them."""
    values, together = thinned(tag.contributions)
    width = len(values) or 1
    high, low = max(0.0, float(values.max(initial=0.0))), max(0.0, float(-values.min(initial=0.0)))
    low = min(low, high) if high > 0 else low  # what speaks against it does not flatten what speaks for it
    unit = 92.0 / ((high + low) or 1.0)
    zero = 4.0 + unit * high
    per_second = 1.0 / (video.step_seconds * together)
    bands = "".join(
        f'<rect class="band" x="{a * per_second:g}" y="0" width="{(b - a) * per_second:g}" height="100"/>'
        f'<rect class="edge" x="{a * per_second:g}" y="0" width="{(b - a) * per_second:g}" height="3"/>'
        for a, b in tag.intervals
    )
    return _svg(
        width,
        f"{bands}"
        f'<path class="for" d="{_blocks(np.clip(values, 0, None), zero, -unit)}"/>'
        f'<path class="against" d="{_blocks(np.clip(-values, 0, low), zero, unit)}"/>'
        f'<line class="zero" x1="0" x2="{width}" y1="{zero:.2f}" y2="{zero:.2f}"/>',
    )


def _sound(video: TaggedVideo) -> str:
    if not len(video.level_db):
        return '<div class="head thin small">sound</div><div class="lane none">none</div>\n'
    heights = np.clip(video.level_db - _QUIETEST_DB, 0, -_QUIETEST_DB) / -_QUIETEST_DB * 100
    values, together = thinned(heights)
    # The sound may be shorter or longer than the pictures: its steps keep their length on the common axis.
    width = video.duration_seconds / (video.level_step_seconds * together)
    picture = _svg(width, f'<path class="level" d="{_blocks(values, 100.0, -1.0)}"/>')
    return (
        '<div class="head thin small">loudness, &minus;60 to 0 dBFS</div>'
        f'<div class="lane level">{picture}</div>\n'
    )


def _attention(stream: str, mass: NDArray[np.float64]) -> str:
    values, _ = thinned(mass)
    unit = 100.0 / (float(values.max(initial=0.0)) or 1.0)
    picture = _svg(len(values), f'<path class="attention" d="{_blocks(values, 100.0, -unit)}"/>')
    return (
        f'<div class="head thin small">attention, {escape(stream)}</div>'
        f'<div class="lane attention">{picture}</div>\n'
    )


def _svg(width: float, content: str) -> str:
    return f'<svg viewBox="0 0 {width:g} 100" preserveAspectRatio="none" aria-hidden="true">{content}</svg>'


def _blocks(values: NDArray[Any], zero: float, unit: float) -> str:
    """A path of blocks of width 1 from `zero` on, `unit` a value; blocks of no height cost nothing."""
    parts, inside = [], False
    for place, value in enumerate(values.tolist()):
        if value > 0:
            parts.append(f"{'' if inside else f'M{place} {zero:.4g}'}V{zero + unit * value:.4g}H{place + 1}")
        elif inside:
            parts.append(f"V{zero:.4g}Z")
        inside = value > 0
    return "".join(parts) + (f"V{zero:.4g}Z" if inside else "")


def _ticks(duration: float) -> str:
    """Marks at round times."""
    duration = max(duration, 1e-9)
    step = next((s for s in _TICK_SECONDS if duration / s <= _MOST_TICKS), 86400)
    marks = []
    for second in range(0, int(duration) + 1, step):
        share = second / duration
        side = ' class="first"' if second == 0 else ' class="last"' if share > 0.97 else ""
        marks.append(f'<span{side} style="left:{share:.3%}">{clock(second)}</span>')
    return "".join(marks)


def _values(video: TaggedVideo) -> dict[str, Any]:
    """What the script shows of each step."""
    num_steps = max((len(tag.contributions) for tag in video.tags), default=0)
    together = max(1, math.ceil(num_steps / MOST_STEPS))
    step = video.step_seconds * together
    steps = math.ceil(num_steps / together) or max(1, math.ceil(video.duration_seconds / step))
    starts = ((np.arange(steps) * step) / video.level_step_seconds + 1e-9).astype(int)
    level = [float(round(video.level_db[i], 1)) if i < len(video.level_db) else None for i in starts.tolist()]
    return {
        "duration": video.duration_seconds,
        "step": step,
        "steps": steps,
        "together": together,
        "level": level,
        "tags": [
            {
                "logit": _logit(tag.score),
                "values": [float(f"{value:.4g}") for value in thinned(tag.contributions)[0].tolist()],
            }
            for tag in video.tags
        ],
    }


def _logit(score: float) -> float:
    score = min(max(score, 1e-12), 1.0 - 1e-12)
    return math.log(score / (1.0 - score))


def _for_script(values: object) -> str:
    """JSON that cannot end the element it stands in."""
    return json.dumps(values, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
