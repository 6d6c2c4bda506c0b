"""Floats -> bytes, by YouTube-8M's law on [-2, 2] after a fixed shift and scale.

A byte is round((x + 2) x 255 / 4) of the value x, cut to [-2, 2]: what YouTube-8M's extractor wrote.
Features that are whitened fit that range as they are; others are first brought to it by
x = (value - centre) x scale, with constants that are part of the extractor and depend on no data.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from nextvlad.errors import DataError, UsageError

LOWEST, HIGHEST = -2.0, 2.0
_STEPS = 255.0 / (HIGHEST - LOWEST)


class QuantisationError(NamedTuple):
    """What quantisation did to some values, in the units in which a model sees them (about [-2, 2])."""

    mean_absolute: float
    """Mean of |value after - value before|; 0.0039 is the least there can be on evenly spread values."""
    relative: float
    """The same, over the standard deviation of the values before."""
    largest: float
    share_cut: float
    """Of the values, how many lay outside [-2, 2]."""


@dataclass(frozen=True)
class Quantiser:
    """Values -> bytes and back.

    Args:
        centre: subtracted first; one number, or several, each for an equal share of the dimensions in order.
        scale: multiplied then; likewise, above 0.
    """

    centre: tuple[float, ...] = (0.0,)
    scale: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        numbers = (*self.centre, *self.scale)
        if not self.centre or not self.scale or not np.isfinite(numbers).all() or min(self.scale) <= 0:
            raise UsageError(f"quantiser {self}: wanted finite centres, and scales above 0.")

    def scaled(self, values: NDArray[np.floating]) -> NDArray[np.float32]:
        """[T, D] -> [T, D]: as a model is to see them, before they become bytes."""
        size = values.shape[-1]
        centre, scale = _spread(self.centre, size), _spread(self.scale, size)
        return ((np.asarray(values, dtype=np.float32) - centre) * scale).astype(np.float32)

    def quantise(self, values: NDArray[np.floating]) -> NDArray[np.uint8]:
        """[T, D] float -> [T, D] uint8.

        Raises:
            DataError: a value is NaN.
        """
        x = self.scaled(values)
        if np.isnan(x).any():
            raise DataError("features that are NaN: the backbone cannot digest this input, or is damaged.")
        steps: NDArray[np.float32] = np.rint((np.clip(x, LOWEST, HIGHEST) - LOWEST) * _STEPS)
        return steps.astype(np.uint8)

    def dequantise(self, quantised: NDArray[np.uint8]) -> NDArray[np.float32]:
        """[T, D] uint8 -> [T, D] float32 in the units before `quantise`."""
        size = quantised.shape[-1]
        return _seen(quantised) / _spread(self.scale, size) + _spread(self.centre, size)

    def error(self, values: NDArray[np.floating]) -> QuantisationError:
        """What `quantise` does to values [T, D], T at least 1."""
        before = self.scaled(values)
        error = np.abs(_seen(self.quantise(values)) - before)
        deviation = float(before.std())
        mean = float(error.mean())
        return QuantisationError(
            mean_absolute=mean,
            relative=mean / deviation if deviation > 0 else float("inf"),
            largest=float(error.max()),
            share_cut=float(((before < LOWEST) | (before > HIGHEST)).mean()),
        )

    def describe(self) -> dict[str, object]:
        """JSON values, for provenance."""
        return {
            "law": "round((x + 2) * 255 / 4)",
            "range": [LOWEST, HIGHEST],
            "centre": list(self.centre),
            "scale": list(self.scale),
        }


def quantisation_error(values: NDArray[np.floating], quantiser: Quantiser | None = None) -> QuantisationError:
    """What becoming bytes does to values [T, D]; without a quantiser, to whitened ones."""
    return (quantiser or Quantiser()).error(values)


def _seen(quantised: NDArray[np.uint8]) -> NDArray[np.float32]:
    """What a model makes of bytes; the 4/512 is in every reader of YouTube-8M, and in models/inputs.py."""
    return quantised.astype(np.float32) / np.float32(_STEPS) + np.float32(4.0 / 512.0 + LOWEST)


def _spread(numbers: tuple[float, ...], size: int) -> NDArray[np.float32]:
    """[size]: each number for an equal share of the dimensions."""
    if size % len(numbers):
        raise UsageError(
            f"{len(numbers)} constants of a quantiser for {size} dimensions do not divide evenly."
        )
    return np.repeat(np.asarray(numbers, dtype=np.float32), size // len(numbers))
