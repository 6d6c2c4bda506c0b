"""Decoded sound of any rate, format and channels -> one line of mono samples, 16,000 a second."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from av import AudioFrame, AudioResampler

SAMPLE_RATE_HZ = 16_000
_JITTER_SECONDS = 0.1
"""Timestamps that are off by less are not believed against the count of samples."""
_BLOCK = 30 * SAMPLE_RATE_HZ  # silence is made in pieces of at most this


class SoundLine:
    """Joins frames by their times: gaps become silence (which is told), what overlaps is left out.

    Channels are averaged here and not by the resampler, whose weights depend on the sample format.

    Args:
        most_samples: where the line is cut; None for no end.
    """

    def __init__(self, most_samples: int | None = None) -> None:
        self.most_samples = most_samples
        self.num_samples = 0
        """Given so far."""
        self.silence_seconds = 0.0
        """Filled in where the sound has gaps."""
        self._skip = 0  # samples of the future to leave out: before the clip's start, or heard already
        self._resampler: AudioResampler | None = None
        self._shape: tuple[object, ...] = ()
        self._expected_seconds = 0.0

    @property
    def is_done(self) -> bool:
        """Whether the line has reached its end."""
        return self.most_samples is not None and self.num_samples >= self.most_samples

    def add(self, frame: AudioFrame, seconds: float) -> Iterator[NDArray[np.float32]]:
        """The next frame, which begins at `seconds`; gives [n] float32 as they are ready."""
        shape = (frame.format.name, frame.layout.name, frame.sample_rate)
        is_new = self._resampler is None or shape != self._shape
        if is_new or abs(seconds - self._expected_seconds) > _JITTER_SECONDS:
            yield from self._restart(frame, seconds, shape)
        else:
            seconds = self._expected_seconds
        assert self._resampler is not None
        self._expected_seconds = seconds + frame.samples / frame.sample_rate
        frame.pts = None
        for resampled in self._resampler.resample(frame):
            yield from self._give(_mono(resampled))

    def finish(self) -> Iterator[NDArray[np.float32]]:
        """What the resampler still holds."""
        if self._resampler is not None:
            for resampled in self._resampler.resample(None):
                yield from self._give(_mono(resampled))
            self._resampler = None

    def notes(self) -> list[str]:
        """What to tell of the gaps, in sentences without a full stop."""
        if self.silence_seconds < 1.0:
            return []
        return [f"{self.silence_seconds:.1f} seconds of its sound are missing, taken as silence"]

    def _restart(
        self, frame: AudioFrame, seconds: float, shape: tuple[object, ...]
    ) -> Iterator[NDArray[np.float32]]:
        """A new resampler, and the line brought to `seconds`."""
        from av import AudioResampler

        yield from self.finish()
        self._shape = shape
        self._resampler = AudioResampler(format="flt", layout=frame.layout.name, rate=SAMPLE_RATE_HZ)
        ahead = round(seconds * SAMPLE_RATE_HZ) - self.num_samples
        self._skip = max(0, -ahead)
        if ahead > 0:
            if self.most_samples is not None:
                ahead = min(ahead, self.most_samples - self.num_samples)
            self.silence_seconds += ahead / SAMPLE_RATE_HZ
            for first in range(0, ahead, _BLOCK):
                yield from self._give(np.zeros(min(_BLOCK, ahead - first), dtype=np.float32))

    def _give(self, samples: NDArray[np.float32]) -> Iterator[NDArray[np.float32]]:
        """Cuts what is before the start, heard already, or behind the end."""
        skipped = min(self._skip, len(samples))
        self._skip -= skipped
        samples = samples[skipped:]
        if self.most_samples is not None:
            samples = samples[: self.most_samples - self.num_samples]
        if len(samples):
            self.num_samples += len(samples)
            yield np.nan_to_num(samples, copy=False)


def _mono(frame: AudioFrame) -> NDArray[np.float32]:
    """[n], of packed samples: PyAV 18 reads beyond its memory on frames of eight planes or more."""
    packed = frame.to_ndarray().reshape(-1, len(frame.layout.channels))
    mono: NDArray[np.float32] = packed.mean(axis=1, dtype=np.float32)
    return mono
