"""Log-mel statistics of sound: 128 numbers a row, without any weights.

A row is the mean and the standard deviation over its time of 64 log-mel bands, so that it tells what is
heard and how much that changes. Analysis as in VGGish: windows of 25 ms every 10 ms, 64 bands from
125 to 7,500 Hz, log(magnitude + 0.01).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import numpy as np
from numpy.typing import NDArray

from nextvlad.errors import UsageError
from nextvlad.video.sound import SAMPLE_RATE_HZ

NUM_BANDS = 64
SIZE = 2 * NUM_BANDS
"""Numbers in a row: 64 means, then 64 standard deviations."""
MOST_RATE_HZ = 25.0
"""Rows a second, at most: a row needs some windows."""

_WINDOW = 400  # samples
_HOP = 160
_FFT = 512
_LOWEST_HZ, _HIGHEST_HZ = 125.0, 7500.0
_LOG_OFFSET = 0.01
_BEFORE = (_WINDOW - _HOP) // 2  # window i is centred on the i-th 10 ms: from 160 i - 120 to 160 i + 280
_QUIETEST_DB = -100.0


@cache
def mel_weights() -> NDArray[np.float32]:
    """[257, 64]: how much of each frequency of the spectrum falls in each band (triangles, even in mel)."""
    frequencies = np.linspace(0.0, SAMPLE_RATE_HZ / 2, _FFT // 2 + 1)
    edges = np.linspace(_mel(np.float64(_LOWEST_HZ)), _mel(np.float64(_HIGHEST_HZ)), NUM_BANDS + 2)
    mels = _mel(frequencies)[:, None]
    rising = (mels - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - mels) / (edges[2:] - edges[1:-1])
    weights = np.maximum(0.0, np.minimum(rising, falling))
    weights[0] = 0.0  # a constant is not heard
    single: NDArray[np.float32] = weights.astype(np.float32)
    return single


def _mel(frequency_hz: NDArray[np.float64] | np.float64) -> NDArray[np.float64]:
    return np.asarray(1127.0 * np.log1p(frequency_hz / 700.0))


def log_mel(samples: NDArray[np.float32]) -> NDArray[np.float32]:
    """Log-mel bands of every full window.

    Args:
        samples: [n] float, 16,000 a second, in [-1, 1].

    Returns:
        [(n - 400) // 160 + 1, 64] float32; none if n is below 400.
    """
    if len(samples) < _WINDOW:
        return np.zeros((0, NUM_BANDS), dtype=np.float32)
    windows = np.lib.stride_tricks.sliding_window_view(samples, _WINDOW)[::_HOP]  # [w, 400]
    hann = (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(_WINDOW) / _WINDOW)).astype(np.float32)
    spectrum = np.abs(np.fft.rfft(windows * hann, _FFT)).astype(np.float32)  # [w, 257]
    bands: NDArray[np.float32] = np.log(spectrum @ mel_weights() + np.float32(_LOG_OFFSET))
    return bands


class LogMel:
    """Sound, piece by piece -> rows. How it is cut into pieces changes nothing.

    Args:
        rate_hz: rows a second, up to 25.
    """

    def __init__(self, rate_hz: float = 1.0) -> None:
        if not 0 < rate_hz <= MOST_RATE_HZ:
            raise UsageError(
                f"{rate_hz:g} rows of sound a second; wanted more than 0, up to {MOST_RATE_HZ:g}."
            )
        self.rate_hz = rate_hz
        self.num_rows = 0
        """Given so far."""
        self._pending = np.zeros(_BEFORE, dtype=np.float32)  # the line from _first_sample on
        self._first_sample = -_BEFORE
        self._num_samples = 0
        self._blocks: list[NDArray[np.float32]] = []
        self._blocks_size = 0

    def add(self, samples: NDArray[np.float32]) -> Iterator[tuple[NDArray[np.float32], float]]:
        """Takes the next samples; gives (row [128] float32, level in dBFS) for each that is complete."""
        self._blocks.append(samples)
        self._blocks_size += len(samples)
        self._num_samples += len(samples)
        have = self._first_sample + len(self._pending) + self._blocks_size
        if have >= self._end_of(self.num_rows):
            self._join()
        while have >= self._end_of(self.num_rows):
            yield self._row()

    def finish(self) -> Iterator[tuple[NDArray[np.float32], float]]:
        """The last rows, the very last from what there is of it; nothing of less than a hop of 10 ms."""
        self._join()
        end = self._num_samples
        self._pending = np.pad(self._pending, (0, _WINDOW + round(SAMPLE_RATE_HZ / self.rate_hz)))
        if end and not self.num_rows and end < _HOP:
            yield self._row(1)
        while end - self._start_of(self.num_rows) >= _HOP:
            yield self._row((end - self._start_of(self.num_rows)) // _HOP)

    def _join(self) -> None:
        self._pending = np.concatenate([self._pending, *self._blocks])
        self._blocks, self._blocks_size = [], 0

    def _hops_before(self, row: int) -> int:
        """Windows that belong to earlier rows: those centred before this one's start."""
        return round(row / self.rate_hz * SAMPLE_RATE_HZ / _HOP)

    def _start_of(self, row: int) -> int:
        return self._hops_before(row) * _HOP

    def _end_of(self, row: int) -> int:
        """The sample behind the last window of a row."""
        return self._start_of(row + 1) - _HOP - _BEFORE + _WINDOW

    def _row(self, most_windows: int | None = None) -> tuple[NDArray[np.float32], float]:
        start = self._start_of(self.num_rows) - _BEFORE - self._first_sample
        end = self._end_of(self.num_rows) - self._first_sample
        bands = log_mel(self._pending[start:end])[:most_windows]  # [w, 64]
        heard = self._pending[start + _BEFORE : start + _BEFORE + len(bands) * _HOP]
        row = np.concatenate([bands.mean(axis=0), bands.std(axis=0)]).astype(np.float32)
        self.num_rows += 1
        keep = self._start_of(self.num_rows) - _BEFORE
        self._pending = self._pending[keep - self._first_sample :]
        self._first_sample = keep
        return row, level_db(heard)


class SampleWindows:
    """Sound, piece by piece -> the samples of each row, for a backbone that makes its own analysis.

    Row t begins at t / rate and is `window_seconds` long, which may be more or less than a row's time;
    past the end of the sound there are zeros.
    """

    def __init__(self, rate_hz: float, window_seconds: float) -> None:
        self.rate_hz = rate_hz
        self.size = round(window_seconds * SAMPLE_RATE_HZ)
        self.num_rows = 0
        """Given so far."""
        self._pending = np.zeros(0, dtype=np.float32)  # the line from _first_sample on
        self._first_sample = 0

    def add(self, samples: NDArray[np.float32]) -> Iterator[tuple[NDArray[np.float32], float]]:
        """Takes the next samples; gives (row [size] float32, level in dBFS) for each that is complete."""
        self._pending = np.concatenate([self._pending, samples])
        while self._first_sample + len(self._pending) >= max(
            self._start_of(self.num_rows) + self.size, self._start_of(self.num_rows + 1)
        ):
            yield self._row()

    def finish(self) -> Iterator[tuple[NDArray[np.float32], float]]:
        """The last rows, with zeros behind the end; nothing of less than 10 ms."""
        end = self._first_sample + len(self._pending)
        while end - self._start_of(self.num_rows) >= (_HOP if self.num_rows else 1):
            yield self._row()

    def _start_of(self, row: int) -> int:
        return round(row / self.rate_hz * SAMPLE_RATE_HZ)

    def _row(self) -> tuple[NDArray[np.float32], float]:
        start = self._start_of(self.num_rows) - self._first_sample
        self.num_rows += 1
        keep = self._start_of(self.num_rows) - self._first_sample
        row = self._pending[start : start + self.size]
        level = level_db(self._pending[start:keep])
        self._pending = self._pending[keep:]
        self._first_sample += keep
        return np.pad(row, (0, self.size - len(row))), level


def level_db(samples: NDArray[np.float32]) -> float:
    """Loudness of samples [n]: 20 log10 of the root mean square, 0 for full scale, -100 for silence."""
    power = float(np.mean(np.square(samples, dtype=np.float64))) if len(samples) else 0.0
    return max(_QUIETEST_DB, 10.0 * float(np.log10(power))) if power > 0 else _QUIETEST_DB


def describe() -> dict[str, object]:
    """How rows are made, as JSON values, for provenance."""
    return {
        "sample_rate_hz": SAMPLE_RATE_HZ,
        "channels": "mean",
        "window": _WINDOW,
        "hop": _HOP,
        "fft": _FFT,
        "bands": NUM_BANDS,
        "band_hz": [_LOWEST_HZ, _HIGHEST_HZ],
        "log_offset": _LOG_OFFSET,
        "row": "64 means, then 64 standard deviations",
    }
