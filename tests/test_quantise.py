"""Floats to bytes: YouTube-8M's law, its inverse, the error it causes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from nextvlad.errors import DataError, UsageError
from nextvlad.models.inputs import Preprocessing
from nextvlad.video.quantise import Quantiser, quantisation_error

VALUES = np.linspace(-2.5, 2.5, 2000, dtype=np.float32).reshape(100, 20)


def test_the_law_of_the_originals() -> None:
    """As YouTube-8M's extractor has it: cut, shift, scale, and Python's round."""
    clipped = np.clip(VALUES, -2.0, 2.0)
    wanted = [[round(float(v)) for v in row] for row in (clipped + 2.0) * (255.0 / 4.0)]
    np.testing.assert_array_equal(Quantiser().quantise(VALUES), wanted)


def test_a_model_sees_what_dequantise_gives() -> None:
    quantised = Quantiser().quantise(VALUES)
    seen = Preprocessing(20)(torch.from_numpy(quantised)).numpy()
    np.testing.assert_allclose(Quantiser().dequantise(quantised), seen, atol=1e-6)


def test_there_and_back_with_constants() -> None:
    quantiser = Quantiser(centre=(1.0, -3.0), scale=(0.5, 2.0))
    values = np.concatenate([VALUES[:, :10] + 1.0, VALUES[:, 10:] / 3 - 3.0], axis=1)
    back = quantiser.dequantise(quantiser.quantise(values))
    # Half a step of rounding, and the 4/512 that every reader adds.
    assert np.abs(back - values)[:, :10].max() <= (2 / 255 + 4 / 512) / 0.5 + 1e-5
    assert np.abs(back - values)[:, 10:].max() <= (2 / 255 + 4 / 512) / 2.0 + 1e-5


def test_the_error_is_that_of_the_values_a_model_sees() -> None:
    values = np.random.default_rng(0).normal(0, 0.5, (500, 32)).astype(np.float32)
    error = quantisation_error(values)
    seen = Preprocessing(32)(torch.from_numpy(Quantiser().quantise(values))).numpy()
    inside = np.abs(values) < 2
    assert error.mean_absolute == pytest.approx(np.abs(seen - values).mean(), rel=1e-4)
    assert error.relative == pytest.approx(np.abs(seen - values).mean() / values.std(), rel=1e-4)
    assert error.share_cut == pytest.approx(1 - inside.mean())
    # An even spread within a step of 4/255, moved by 4/512: mean 0.0078, at most 0.0157.
    assert error.mean_absolute == pytest.approx(0.0078, abs=3e-4)
    assert np.abs(seen - values)[inside].max() <= 0.0158


def test_what_is_refused() -> None:
    with pytest.raises(DataError, match="NaN"):
        Quantiser().quantise(np.full((1, 4), np.nan, dtype=np.float32))
    with pytest.raises(UsageError, match="above 0"):
        Quantiser(scale=(0.0,))
    with pytest.raises(UsageError, match="do not divide evenly"):
        Quantiser(centre=(0.0, 1.0, 2.0)).quantise(VALUES)


def test_infinities_are_cut() -> None:
    values = np.array([[np.inf, -np.inf]], dtype=np.float32)
    assert Quantiser().quantise(values).tolist() == [[255, 0]]
