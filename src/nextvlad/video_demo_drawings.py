"""The pictures of `nextvlad demo --video`: what can be seen in a clip, drawn with Pillow.

A subject is drawn on a square of its own at eight phases of its motion, large, and then placed frame by
frame, smaller. Coordinates are shares of that square, y downwards. Nothing here is a photograph.
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Colour = tuple[int, int, int]

NUM_PHASES = 8
"""Pictures of one round of a subject's motion."""
_SQUARE = 192  # pixels a side of a subject as drawn; at most this large in a frame, mostly half of it


class Palette(NamedTuple):
    """The colours of one subject in one clip."""

    body: Colour
    accent: Colour
    dark: Colour
    light: Colour


class _Pen:
    """Draws on a transparent square in shares of its side."""

    def __init__(self) -> None:
        self.image = Image.new("RGBA", (_SQUARE, _SQUARE))
        self._draw = ImageDraw.Draw(self.image)

    def disc(self, x: float, y: float, radius: float, fill: Colour, *, flat: float = 1.0) -> None:
        """A disc, or with `flat` (height over width) an ellipse."""
        box = (x - radius, y - radius * flat, x + radius, y + radius * flat)
        self._draw.ellipse([_SQUARE * value for value in box], fill=fill)

    def polygon(self, points: Sequence[tuple[float, float]], fill: Colour) -> None:
        self._draw.polygon([(_SQUARE * x, _SQUARE * y) for x, y in points], fill=fill)

    def box(self, x0: float, y0: float, x1: float, y1: float, fill: Colour) -> None:
        self.polygon([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], fill)

    def line(self, points: Sequence[tuple[float, float]], fill: Colour, width: float) -> None:
        self._draw.line(
            [(_SQUARE * x, _SQUARE * y) for x, y in points],
            fill=fill,
            width=max(1, round(_SQUARE * width)),
            joint="curve",
        )


def _turn(angle: float, radius: float, x: float = 0.5, y: float = 0.5) -> tuple[float, float]:
    """The point at `angle` (radians clockwise from the top) and `radius` from (x, y)."""
    return x + radius * math.sin(angle), y - radius * math.cos(angle)


def _clock(pen: _Pen, phase: float, colours: Palette) -> None:
    pen.disc(0.5, 0.5, 0.48, colours.dark)
    pen.disc(0.5, 0.5, 0.42, colours.light)
    for hour in range(12):
        angle = hour * math.tau / 12
        pen.line([_turn(angle, 0.32 if hour % 3 else 0.27), _turn(angle, 0.39)], colours.dark, 0.025)
    pen.line([(0.5, 0.5), _turn(math.tau * phase, 0.34)], colours.body, 0.03)
    pen.line([(0.5, 0.5), _turn(math.tau * phase / 12 + 1.0, 0.2)], colours.dark, 0.05)
    pen.disc(0.5, 0.5, 0.04, colours.dark)


def _boat(pen: _Pen, phase: float, colours: Palette) -> None:
    wind = 0.05 * math.sin(math.tau * phase)
    pen.line([(0.48, 0.05), (0.48, 0.72)], colours.dark, 0.025)
    pen.polygon([(0.5, 0.06), (0.9 + wind, 0.62), (0.5, 0.66)], colours.light)
    pen.polygon([(0.46, 0.14), (0.46, 0.66), (0.16 + wind, 0.62)], colours.accent)
    pen.polygon([(0.04, 0.7), (0.96, 0.7), (0.8, 0.92), (0.2, 0.92)], colours.body)
    pen.line([(0.08, 0.74), (0.92, 0.74)], colours.light, 0.02)


def _flower(pen: _Pen, phase: float, colours: Palette) -> None:
    sway = 0.04 * math.sin(math.tau * phase)
    pen.line([(0.5, 1.0), (0.52, 0.75), (0.5 + sway, 0.45)], (50, 130, 50), 0.035)
    pen.disc(0.63, 0.82, 0.12, (60, 150, 60), flat=0.4)
    for petal in range(10):
        x, y = _turn(petal * math.tau / 10 + sway, 0.22, 0.5 + sway, 0.34)
        pen.disc(x, y, 0.1, colours.light if petal % 2 else colours.body)
    pen.disc(0.5 + sway, 0.34, 0.13, (235, 190, 40))


def _fish(pen: _Pen, phase: float, colours: Palette) -> None:
    beat = 0.09 * math.sin(math.tau * phase)
    pen.polygon(
        [(0.24, 0.5), (0.02, 0.28 + beat), (0.08, 0.5 + beat / 2), (0.02, 0.72 + beat)], colours.accent
    )
    pen.polygon([(0.4, 0.3), (0.56, 0.12), (0.7, 0.3)], colours.accent)
    pen.disc(0.55, 0.5, 0.37, colours.body, flat=0.6)
    for x in (0.4, 0.52, 0.64):
        pen.line([(x, 0.31), (x + 0.04, 0.5), (x, 0.69)], colours.light, 0.03)
    pen.disc(0.78, 0.43, 0.05, (250, 250, 250))
    pen.disc(0.79, 0.43, 0.025, (15, 15, 15))
    pen.line([(0.82, 0.58), (0.91, 0.55)], colours.dark, 0.02)


def _car(pen: _Pen, phase: float, colours: Palette) -> None:
    pen.polygon([(0.22, 0.5), (0.34, 0.28), (0.66, 0.28), (0.8, 0.5)], colours.body)
    pen.polygon([(0.29, 0.49), (0.37, 0.33), (0.48, 0.33), (0.48, 0.49)], (190, 220, 240))
    pen.polygon([(0.52, 0.49), (0.52, 0.33), (0.63, 0.33), (0.72, 0.49)], (190, 220, 240))
    pen.box(0.03, 0.49, 0.97, 0.7, colours.body)
    pen.line([(0.05, 0.6), (0.95, 0.6)], colours.accent, 0.02)
    pen.disc(0.93, 0.55, 0.035, (255, 240, 150))
    for x in (0.25, 0.75):
        pen.disc(x, 0.71, 0.12, (25, 25, 28))
        pen.disc(x, 0.71, 0.06, (190, 190, 195))
        angle = math.tau * phase
        pen.line([_turn(angle, 0.06, x, 0.71), _turn(angle, -0.06, x, 0.71)], (60, 60, 65), 0.02)


def _balloon(pen: _Pen, phase: float, colours: Palette) -> None:
    swing = 0.03 * math.sin(math.tau * phase)
    pen.disc(0.5, 0.35, 0.33, colours.body)
    pen.polygon([(0.2, 0.48), (0.8, 0.48), (0.58, 0.74), (0.42, 0.74)], colours.body)
    for half_width in (0.2, 0.07):  # two gores, one over the other
        colour = colours.accent if half_width > 0.1 else colours.light
        pen.disc(0.5, 0.35, half_width, colour, flat=0.33 / half_width)
        pen.polygon([(0.5 - half_width, 0.42), (0.5 + half_width, 0.42), (0.53, 0.74), (0.47, 0.74)], colour)
    for x in (0.43, 0.57):
        pen.line([(x, 0.73), (x + swing, 0.86)], colours.dark, 0.012)
    pen.box(0.41 + swing, 0.85, 0.59 + swing, 0.98, (130, 90, 50))


SUBJECTS: dict[str, Callable[[_Pen, float, Palette], None]] = {
    "clock": _clock,
    "sailing boat": _boat,
    "flower": _flower,
    "fish": _fish,
    "car": _car,
    "hot-air balloon": _balloon,
}
"""What is labelled, by label: draws one phase, in [0, 1), of its motion."""


def _shape(pen: _Pen, phase: float, colours: Palette, corners: int) -> None:
    """A regular polygon, a star of as many points if negative, or a ring for 0 corners."""
    if corners == 0:
        pen.disc(0.5, 0.5, 0.42, colours.body)
        pen.disc(0.5, 0.5, 0.2 + 0.05 * math.sin(math.tau * phase), colours.light)
        return
    num_points = corners if corners > 0 else -2 * corners
    radii = [0.45 if corners > 0 or point % 2 == 0 else 0.2 for point in range(num_points)]
    start = math.tau * phase / abs(corners)
    points = [_turn(start + math.tau * point / num_points, radius) for point, radius in enumerate(radii)]
    pen.polygon(points, colours.body)


DISTRACTORS = (0, 3, 4, 6, -5)
"""Shapes that no label is for, as `corners` of `draw_distractor`."""


def draw_subject(label: str, colours: Palette) -> list[Image.Image]:
    """The phases of a subject: NUM_PHASES square RGBA pictures, transparent around it."""
    return [_phase(SUBJECTS[label], phase, colours) for phase in _phases()]


def draw_distractor(corners: int, colours: Palette) -> list[Image.Image]:
    """The same of a shape; `corners` of a polygon, minus the points of a star, or 0 for a ring."""

    def shape(pen: _Pen, phase: float, palette: Palette) -> None:
        _shape(pen, phase, palette, corners)

    return [_phase(shape, phase, colours) for phase in _phases()]


def _phases() -> list[float]:
    return [number / NUM_PHASES for number in range(NUM_PHASES)]


def _phase(draw: Callable[[_Pen, float, Palette], None], phase: float, colours: Palette) -> Image.Image:
    pen = _Pen()
    draw(pen, phase, colours)
    return pen.image


def choose_palette(numbers: np.random.Generator) -> Palette:
    """Random colours that stand out from each other."""
    hue = float(numbers.random())
    return Palette(
        body=_hsv(hue, numbers.uniform(0.55, 0.95), numbers.uniform(0.5, 0.95)),
        accent=_hsv(hue + numbers.uniform(0.2, 0.8), numbers.uniform(0.5, 0.9), numbers.uniform(0.5, 0.95)),
        dark=_hsv(hue, 0.5, numbers.uniform(0.05, 0.3)),
        light=_hsv(hue + 0.1, numbers.uniform(0.0, 0.2), numbers.uniform(0.85, 1.0)),
    )


def _hsv(hue: float, saturation: float, value: float) -> Colour:
    red, green, blue = colorsys.hsv_to_rgb(hue % 1.0, float(saturation), float(value))
    return round(255 * red), round(255 * green), round(255 * blue)


def draw_background(numbers: np.random.Generator, width: int, height: int) -> Image.Image:
    """A random backdrop: two colours as a slope, as stripes, as clouds, or as a ground under a sky."""
    first, second = (
        np.array(_hsv(numbers.random(), numbers.uniform(0.05, 0.6), numbers.uniform(0.2, 0.9)), np.float32)
        for _ in range(2)
    )
    share = _pattern(numbers, width, height)[..., None]
    return Image.fromarray((first + share * (second - first)).astype(np.uint8))


def _pattern(numbers: np.random.Generator, width: int, height: int) -> NDArray[np.float32]:
    """[H, W] in [0, 1]."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    angle = numbers.uniform(0.0, math.tau)
    along = math.cos(angle) * x / width + math.sin(angle) * y / height
    match int(numbers.integers(4)):
        case 0:
            pattern = (along - along.min()) / np.ptp(along)
        case 1:
            pattern = 0.5 + 0.5 * np.sin(along * numbers.uniform(15.0, 50.0))
        case 2:
            coarse = Image.fromarray(numbers.integers(0, 256, (7, 9)).astype(np.uint8))
            pattern = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.float32) / 255.0
        case _:
            horizon = numbers.uniform(0.4, 0.75)
            pattern = (y / height > horizon) * numbers.uniform(0.7, 1.0) + 0.2 * y / height
    clipped: NDArray[np.float32] = np.clip(pattern, 0.0, 1.0).astype(np.float32)
    return clipped
