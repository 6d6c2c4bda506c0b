"""Log-mel rows against equations written out, and sound in pieces of any size."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nextvlad.errors import UsageError
from nextvlad.video.audio import LogMel, SampleWindows, level_db, log_mel, mel_weights

NOISE = np.random.default_rng(0).normal(0, 0.1, 16_000 * 3 + 5000).astype(np.float32)


def slow_log_mel(samples: np.ndarray) -> np.ndarray:
    """One window and one band at a time."""
    edges = np.linspace(1127 * np.log(1 + 125 / 700), 1127 * np.log(1 + 7500 / 700), 66)
    out = []
    for start in range(0, len(samples) - 399, 160):
        window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)
        spectrum = np.abs(np.fft.fft(samples[start : start + 400].astype(np.float64) * window, 512))[:257]
        bands = np.zeros(64)
        for k in range(1, 257):
            mel = 1127 * np.log(1 + k * 31.25 / 700)
            for band in range(64):
                rising = (mel - edges[band]) / (edges[band + 1] - edges[band])
                falling = (edges[band + 2] - mel) / (edges[band + 2] - edges[band + 1])
                bands[band] += max(0.0, min(rising, falling)) * spectrum[k]
        out.append(np.log(bands + 0.01))
    return np.array(out)


def test_log_mel_is_what_the_equations_say() -> None:
    np.testing.assert_allclose(log_mel(NOISE[:1000]), slow_log_mel(NOISE[:1000]), atol=2e-4)
    assert log_mel(NOISE[:399]).shape == (0, 64)


def test_a_tone_is_heard_in_its_band() -> None:
    for hz in (200.0, 1000.0, 5000.0):
        tone = np.sin(2 * np.pi * hz * np.arange(16_000) / 16_000).astype(np.float32)
        band = log_mel(tone).mean(axis=0).argmax()
        assert mel_weights()[round(hz / 31.25), band] > 0.4


def rows_of(line: LogMel | SampleWindows, pieces: list[np.ndarray]) -> tuple[np.ndarray, list[float]]:
    rows = [row for piece in pieces for row in line.add(piece)]
    rows += line.finish()
    return np.stack([row for row, _ in rows]), [level for _, level in rows]


def test_a_row_is_mean_and_deviation_of_its_second() -> None:
    rows, levels = rows_of(LogMel(), [NOISE])
    padded = np.concatenate([np.zeros(120, np.float32), NOISE])  # window i: 160 i - 120 to 160 i + 280
    bands = log_mel(padded)
    np.testing.assert_allclose(rows[1, :64], bands[100:200].mean(axis=0), atol=1e-5)
    np.testing.assert_allclose(rows[1, 64:], bands[100:200].std(axis=0), atol=1e-5)
    assert len(rows) == 4  # the last of 5,000 samples
    assert levels[1] == pytest.approx(20 * np.log10(0.1), abs=0.2)


@settings(deadline=None, max_examples=20)
@given(st.lists(st.integers(0, len(NOISE)), max_size=12), st.sampled_from([0.5, 1.0, 3.0]))
def test_pieces_change_nothing(cuts: list[int], rate_hz: float) -> None:
    pieces = np.split(NOISE, sorted(cuts))
    for make in (lambda: LogMel(rate_hz), lambda: SampleWindows(rate_hz, 0.975)):
        whole, parts = rows_of(make(), [NOISE]), rows_of(make(), pieces)
        np.testing.assert_array_equal(whole[0], parts[0])
        assert whole[1] == parts[1]


def test_windows_of_samples_overlap_and_end_in_zeros() -> None:
    rows, levels = rows_of(SampleWindows(1.0, 1.5), [NOISE])
    assert rows.shape == (4, 24_000)
    np.testing.assert_array_equal(rows[1], NOISE[16_000:40_000])
    np.testing.assert_array_equal(rows[3, :5000], NOISE[48_000:])
    assert (rows[3, 5000:] == 0).all()
    assert len(levels) == 4


def test_short_and_silent_sound() -> None:
    rows, levels = rows_of(LogMel(), [NOISE[:50]])
    assert rows.shape == (1, 128)
    silent, levels = rows_of(LogMel(), [np.zeros(16_000, np.float32)])
    np.testing.assert_allclose(silent[0, :64], np.log(0.01), atol=1e-5)
    np.testing.assert_allclose(silent[0, 64:], 0, atol=1e-5)
    assert levels == [-100.0]
    assert list(LogMel().finish()) == []


def test_level_of_full_scale_is_zero() -> None:
    assert level_db(np.ones(10, np.float32)) == 0.0


def test_rates_that_are_refused() -> None:
    with pytest.raises(UsageError, match="up to 25"):
        LogMel(30.0)
