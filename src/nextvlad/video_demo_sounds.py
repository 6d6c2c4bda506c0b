"""The sounds of `nextvlad demo --video`, computed: what can be heard in a clip.

Every sound is a function of a random generator, a number of samples and the rate in Hz, and gives float32
in about [-1, 1].
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

Samples = NDArray[np.float32]
Sound = Callable[[np.random.Generator, int, int], Samples]


def _bell(numbers: np.random.Generator, num_samples: int, rate_hz: int) -> Samples:
    """Strokes on a bell: partials out of tune with each other, the high ones dying first."""
    pitch_hz = numbers.uniform(520.0, 800.0)
    stroke_seconds = 1.6
    t = np.arange(int(stroke_seconds * rate_hz)) / rate_hz
    partials = zip((0.5, 1.0, 1.19, 2.0, 2.74, 4.07), (0.3, 1.0, 0.7, 0.8, 0.6, 0.4), strict=True)
    stroke = sum(
        loudness * np.sin(math.tau * pitch_hz * ratio * t) * np.exp(-t * (1.5 + ratio))
        for ratio, loudness in partials
    )
    return _strokes(numbers, num_samples, rate_hz, 0.4 * stroke, every=numbers.uniform(0.6, 1.3))


def _siren(numbers: np.random.Generator, num_samples: int, rate_hz: int) -> Samples:
    """A tone that climbs and falls."""
    low_hz, high_hz = numbers.uniform(400.0, 700.0), numbers.uniform(1000.0, 1700.0)
    t = np.arange(num_samples) / rate_hz
    place = 0.5 - 0.5 * np.cos(math.tau * (t / numbers.uniform(1.0, 2.5) + numbers.random()))
    phase = math.tau * np.cumsum(low_hz + (high_hz - low_hz) * place) / rate_hz
    return _float(0.6 * np.sin(phase) + 0.25 * np.sin(2.0 * phase) + 0.12 * np.sin(3.0 * phase))


def _engine(numbers: np.random.Generator, num_samples: int, rate_hz: int) -> Samples:
    """The buzz of a motor, whose speed wavers."""
    t = np.arange(num_samples) / rate_hz
    waver = 1.0 + 0.15 * np.sin(math.tau * t / numbers.uniform(2.0, 5.0) + numbers.uniform(0.0, math.tau))
    phase = math.tau * np.cumsum(numbers.uniform(35.0, 80.0) * waver) / rate_hz
    buzz = sum(np.sin(order * phase) / order**0.7 for order in range(1, 14))
    rough = 1.0 + 0.4 * np.sin(0.5 * phase)
    return _float(0.25 * buzz * rough + 0.05 * numbers.standard_normal(num_samples))


def _birdsong(numbers: np.random.Generator, num_samples: int, rate_hz: int) -> Samples:
    """Chirps between 2.6 and 5.1 kHz, in bursts."""
    song = np.zeros(num_samples)
    centre_hz = numbers.uniform(3200.0, 4400.0)
    at = numbers.uniform(0.0, 0.2)
    while at * rate_hz < num_samples:
        for _ in range(int(numbers.integers(2, 7))):
            length = int(numbers.uniform(0.05, 0.14) * rate_hz)
            first_hz, last_hz = centre_hz * numbers.uniform(0.82, 1.15, size=2)
            glide = np.linspace(first_hz, last_hz, length)
            chirp = np.sin(math.tau * np.cumsum(glide) / rate_hz) * np.hanning(length)
            _add(song, chirp, int(at * rate_hz))
            at += length / rate_hz + numbers.uniform(0.02, 0.07)
        at += numbers.uniform(0.1, 0.5)
    return _float(0.8 * song)


def _drum(numbers: np.random.Generator, num_samples: int, rate_hz: int) -> Samples:
    """A low drum and a snare, in turn."""
    t = np.arange(int(0.3 * rate_hz)) / rate_hz
    low = np.sin(math.tau * np.cumsum(numbers.uniform(100.0, 140.0) * (1 + 2 * np.exp(-t * 30))) / rate_hz)
    snare = numbers.standard_normal(len(t)) * np.exp(-t * numbers.uniform(12.0, 22.0))
    beat_seconds = 60.0 / numbers.uniform(85.0, 170.0)
    music = np.zeros(num_samples)
    for number, at in enumerate(_times(numbers, num_samples / rate_hz, beat_seconds, unsteady=0.02)):
        _add(music, low * np.exp(-t * 10.0) if number % 2 == 0 else 0.6 * snare, int(at * rate_hz))
    return _float(0.9 * music)


def _beeps(numbers: np.random.Generator, num_samples: int, rate_hz: int) -> Samples:
    """An alarm clock: one pitch on and off, evenly."""
    t = np.arange(num_samples) / rate_hz
    tone = np.sin(math.tau * numbers.uniform(1200.0, 1900.0) * t)
    on = (t / numbers.uniform(0.18, 0.45) + numbers.random()) % 1.0 < 0.5
    return _float(0.5 * np.tanh(3.0 * tone) * on)


SOUNDS: dict[str, Sound] = {
    "bell": _bell,
    "siren": _siren,
    "engine": _engine,
    "birdsong": _birdsong,
    "drum": _drum,
    "beeping": _beeps,
}
"""What is labelled, by label."""


def _hiss(numbers: np.random.Generator, num_samples: int, rate_hz: int) -> Samples:
    """Wind: noise that comes and goes."""
    t = np.arange(num_samples) / rate_hz
    gusts = 0.6 + 0.4 * np.sin(math.tau * t / numbers.uniform(1.5, 4.0))
    return _float(0.3 * gusts * numbers.standard_normal(num_samples))


def _hum(numbers: np.random.Generator, num_samples: int, rate_hz: int) -> Samples:
    """Mains."""
    t = np.arange(num_samples) / rate_hz
    return _float(0.4 * np.sin(math.tau * 50.0 * t) + 0.2 * np.sin(math.tau * 100.0 * t))


def _tune(numbers: np.random.Generator, num_samples: int, rate_hz: int) -> Samples:
    """Soft notes of a scale, one after another."""
    notes_hz = numbers.uniform(110.0, 190.0) * 2.0 ** (numbers.choice([0, 2, 4, 7, 9, 12], size=64) / 12)
    t = np.arange(num_samples) / rate_hz
    note = (t / numbers.uniform(0.25, 0.6)).astype(np.int64) % len(notes_hz)
    return _float(0.6 * np.sin(math.tau * np.cumsum(notes_hz[note]) / rate_hz))


DISTRACTING_SOUNDS: tuple[Sound, ...] = (_hiss, _hum, _tune)
"""What can be heard and no label is for."""


def fade(samples: Samples, rate_hz: int) -> Samples:
    """The same, swelling from silence and back to it over 50 ms."""
    length = min(int(0.05 * rate_hz), len(samples) // 2)
    slope = np.ones(len(samples), np.float32)
    slope[:length] = np.linspace(0.0, 1.0, length, dtype=np.float32)
    slope[len(samples) - length :] = slope[:length][::-1]
    return samples * slope


def _strokes(
    numbers: np.random.Generator, num_samples: int, rate_hz: int, stroke: NDArray[np.float64], *, every: float
) -> Samples:
    music = np.zeros(num_samples)
    for at in _times(numbers, num_samples / rate_hz, every, unsteady=0.05):
        _add(music, stroke, int(at * rate_hz))
    return _float(music)


def _times(numbers: np.random.Generator, end: float, every: float, *, unsteady: float) -> Iterator[float]:
    """Seconds from near 0 to `end`, `every` apart, give or take."""
    at = 0.1 * numbers.random()
    while at < end:
        yield at
        at += every * (1.0 + unsteady * numbers.standard_normal())


def _add(onto: NDArray[np.float64], piece: NDArray[np.float64], start: int) -> None:
    """Adds as much of `piece` at `start` as there is room for."""
    room = onto[start : start + len(piece)]
    room += piece[: len(room)]


def _float(samples: NDArray[np.float64]) -> Samples:
    return samples.astype(np.float32)
