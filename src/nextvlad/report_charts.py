"""Charts of a report as SVG text, for a page that works offline, in light and in dark.

Colours are classes that the page's style sheet fills in, so that one drawing serves both. Texts are
escaped.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape

Point = tuple[float, float]

_WIDTH, _HEIGHT = 520, 300
_FEW = 10  # pairs of a bin whose share is mostly chance
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 24, 14, 44
_TICK_HEIGHT = 14  # of its text, with room


@dataclass(frozen=True, kw_only=True)
class Series:
    """One curve: its points in order of x, its name for the legend, and the class of its colour."""

    name: str
    points: Sequence[Point]
    colour: str
    faint: bool = False


@dataclass(frozen=True)
class Axis:
    """One axis: its name, its range, whether powers of ten are equally far apart, and how to write a tick."""

    name: str
    low: float
    high: float
    log: bool = False
    write: Callable[[float], str] = lambda value: f"{value:g}"

    def place(self, value: float) -> float:
        """Where a value lies, 0 at the low end and 1 at the high end; outside of it at the nearer end."""
        low, high = (self.low, self.high) if not self.log else (math.log10(self.low), math.log10(self.high))
        at = math.log10(max(value, self.low)) if self.log else value
        return min(max((at - low) / (high - low), 0.0), 1.0) if high > low else 0.5

    def ticks(self, most: int = 12) -> list[float]:
        """Round values, about five; of a logarithmic axis 1, 2, 5, 10, ... if these are at most `most`."""
        if self.log:
            powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            num_powers = math.log10(self.high) - math.log10(self.low)
            steps = (1, 2, 5) if self.high < 300 * self.low and 3 * num_powers <= most else (1,)
            found = [step * 10.0**power for power in powers for step in steps]
        else:
            rough = (self.high - self.low) / 5 or 1.0
            power = 10.0 ** math.floor(math.log10(rough))
            step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
            first = math.ceil(self.low / step - 1e-9)
            found = [(first + i) * step for i in range(12)]
        slack = 1e-9 * abs(self.high)
        return [0.0 if abs(v) < 1e-12 else v for v in found if self.low - slack <= v <= self.high + slack]


def axis_over(name: str, values: Iterable[float], *, log: bool = False, from_zero: bool = False) -> Axis:
    """An axis that holds all finite `values` with a little room, ticks written short (12k)."""
    finite = [value for value in values if math.isfinite(value) and (value > 0 or not log)]
    low, high = (min(finite), max(finite)) if finite else (0.0, 1.0)
    if log:
        if high < 3 * low:  # too narrow for a round value to lie inside
            low, high = 10.0 ** math.floor(math.log10(low)), 10.0 ** math.ceil(math.log10(high * 1.01))
        return Axis(name, low / 1.15, high * 1.15, log=True, write=short)
    low = min(low, 0.0) if from_zero else low
    room = 0.04 * (high - low) or 0.5 * abs(high) or 1.0
    return Axis(name, low if low == 0 and from_zero else low - room, high + room, write=short)


def short(value: float) -> str:
    """A number for a tick: 1200 -> 1.2k.

    >>> short(1200), short(3_000_000), short(0.25)
    ('1.2k', '3M', '0.25')
    """
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.4g}{letter}"
    return f"{value:.4g}"


def line_chart(title: str, x: Axis, y: Axis, series: Sequence[Series], *, height: int = _HEIGHT) -> str:
    """Curves over one another, a point each where there are few; a legend unless the y axis has no name."""
    frame = _Frame(x, y, height)
    parts = [frame.axes()]
    for one in series:
        points = [frame.at(*point) for point in one.points if all(map(math.isfinite, point))]
        if not points:
            continue
        path = " ".join(f"{px:.1f},{py:.1f}" for px, py in points)
        faint = " faint" if one.faint else ""
        parts.append(f'<polyline class="line {one.colour}{faint}" points="{path}"/>')
        if len(points) <= 40 and not one.faint:
            parts += [
                f'<circle class="dot {one.colour}" cx="{px:.1f}" cy="{py:.1f}" r="3">'
                f"<title>{escape(one.name)}: {y.write(value[1])} at {x.write(value[0])}</title></circle>"
                for (px, py), value in zip(points, one.points, strict=False)
            ]
    names = [(one.name, one.colour) for one in series if not one.faint]
    return frame.svg(title, parts) + (legend(names) if y.name else "")


def scatter_chart(title: str, x: Axis, y: Axis, points: Sequence[tuple[float, float, str]]) -> str:
    """Points with a text each, which shows under the pointer."""
    frame = _Frame(x, y, _HEIGHT)
    radius = 3.5 if len(points) <= 200 else 2.6
    dots = []
    for value_x, value_y, text in points:
        px, py = frame.at(value_x, value_y)
        dots.append(
            f'<circle class="dot blue see-through" cx="{px:.1f}" cy="{py:.1f}" r="{radius}">'
            f"<title>{escape(text)}</title></circle>"
        )
    return frame.svg(title, [frame.axes(), *dots])


@dataclass(frozen=True)
class Spot:
    """One bin of a reliability curve: mean score, share right with its interval, and pairs in it."""

    score: float
    share: float
    low: float
    high: float
    count: int


def reliability_chart(title: str, curves: Sequence[tuple[str, str, Sequence[Spot]]]) -> str:
    """Share right over score, and below it how many pairs each bin has.

    Args:
        title: what a screen reader says.
        curves: (name, class of its colour, its bins in order). Bins of fewer than 10 pairs are points off
            the line.
    """
    write = _percent
    frame = _Frame(Axis("", 0.0, 1.0, write=write), Axis("share right", 0.0, 1.0, write=write), 330)
    (x0, y0), (x1, y1) = frame.at(0, 0), frame.at(1, 1)
    parts = [frame.axes(), f'<line class="ideal" x1="{x0}" y1="{y0}" x2="{x1}" y2="{y1}"/>']
    for name, colour, spots in curves:
        sure = [frame.at(spot.score, spot.share) for spot in spots if spot.count >= _FEW]
        path = " ".join(f"{px:.1f},{py:.1f}" for px, py in sure)
        parts.append(f'<polyline class="line {colour}" points="{path}"/>')
        for spot in spots:
            px, py = frame.at(spot.score, spot.share)
            low, high = frame.at(0, spot.low)[1], frame.at(0, spot.high)[1]
            text = f"{name}: scored {spot.score:.3f}, right {spot.share:.3f}, {spot.count:,} pairs"
            radius = 3 if spot.count >= _FEW else 1.8
            parts.append(
                f'<line class="whisker {colour}" x1="{px:.1f}" y1="{low:.1f}" x2="{px:.1f}" y2="{high:.1f}"/>'
                f'<circle class="dot {colour}" cx="{px:.1f}" cy="{py:.1f}" r="{radius}">'
                f"<title>{escape(text)}</title></circle>"
            )
    names = [(name, colour) for name, colour, _ in curves]
    return frame.svg(title, parts) + _counts_chart(curves) + legend(names)


def _counts_chart(curves: Sequence[tuple[str, str, Sequence[Spot]]]) -> str:
    most = max((spot.count for _, _, spots in curves for spot in spots), default=1)
    counts = Axis("pairs", 0.8, max(10.0, most * 1.3), log=True, write=short)
    frame = _Frame(Axis("score", 0.0, 1.0, write=_percent), counts, 130)
    parts = [frame.axes()]
    width = (_WIDTH - _LEFT - _RIGHT) / 20 / (len(curves) + 0.6)
    for number, (name, colour, spots) in enumerate(curves):
        for spot in spots:
            middle = (min(int(spot.score * 20), 19) + 0.5) / 20
            px, py = frame.at(middle, spot.count)
            bottom = frame.at(0, counts.low)[1]
            left = px + (number - len(curves) / 2) * width
            parts.append(
                f'<rect class="bar {colour}" x="{left:.1f}" y="{py:.1f}" width="{width:.1f}" '
                f'height="{max(bottom - py, 0.5):.1f}">'
                f"<title>{escape(name)}: {spot.count:,} pairs</title></rect>"
            )
    return frame.svg("Pairs in each bin", parts)


def legend(names: Sequence[tuple[str, str]]) -> str:
    """Names with their colours, as HTML below a chart."""
    items = (f'<span><i class="swatch {colour}"></i>{escape(name)}</span>' for name, colour in names)
    return f'<div class="legend">{"".join(items)}</div>'


def _percent(value: float) -> str:
    return f"{100 * value:.0f}%"


class _Frame:
    """The rectangle that a chart is drawn in, its axes and its grid."""

    def __init__(self, x: Axis, y: Axis, height: int) -> None:
        self._x, self._y, self._height = x, y, height
        self._bottom = height - (_BOTTOM if x.name else 24)

    def at(self, x: float, y: float) -> Point:
        """Where a value stands in the picture."""
        across = _LEFT + self._x.place(x) * (_WIDTH - _LEFT - _RIGHT)
        return round(across, 2), round(self._bottom - self._y.place(y) * (self._bottom - _TOP), 2)

    def axes(self) -> str:
        """Grid, ticks and names."""
        parts = []
        for value in self._y.ticks(most=int((self._bottom - _TOP) / _TICK_HEIGHT)):
            y = self.at(self._x.low, value)[1]
            parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y}" y2="{y}"/>')
            text = escape(self._y.write(value))
            parts.append(f'<text class="tick" x="{_LEFT - 7}" y="{y + 3.5}" text-anchor="end">{text}</text>')
        for value in self._x.ticks():
            x, text = self.at(value, self._y.low)[0], escape(self._x.write(value))
            below = self._bottom + 16
            parts.append(f'<text class="tick" x="{x}" y="{below}" text-anchor="middle">{text}</text>')
        line = f'x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{self._bottom}" y2="{self._bottom}"'
        middle, centre = (_LEFT + _WIDTH - _RIGHT) / 2, (_TOP + self._bottom) / 2
        parts.append(f'<line class="axis" {line}/>')
        parts.append(
            f'<text class="name" x="{middle}" y="{self._height - 8}" text-anchor="middle">'
            f"{escape(self._x.name)}</text>"
        )
        parts.append(
            f'<text class="name" transform="translate(13 {centre}) rotate(-90)" text-anchor="middle">'
            f"{escape(self._y.name)}</text>"
        )
        return "".join(parts)

    def svg(self, title: str, parts: Sequence[str]) -> str:
        """The whole picture; `title` is what a screen reader says of it."""
        return (
            f'<svg viewBox="0 0 {_WIDTH} {self._height}" role="img" aria-label="{escape(title)}">'
            f"{''.join(parts)}</svg>"
        )
