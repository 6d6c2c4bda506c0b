"""Which seconds of a video speak for a label, as the model itself weighs them.

What a model keeps of a video is a sum over its frames (`Aggregator`), so taking a second away is a
subtraction. What the model says then is computed, not estimated. Two things are read from a model, and they
are not the same:

    contribution  of a second to a label: the label's logit of the whole video minus its logit without the
                  frames of that second, of all streams. Exact, by leave-one-out. Positive: the second speaks
                  for the label; negative: against it. Contributions do not add up to the logit.
    attention     the weight that a second has in a stream's descriptor, whatever the label: the model's
                  attention times its assignments, summed over groups and clusters (paper equations 3 to 5).

Letters: T seconds (steps, rather), C classes, L labels asked for, D values a frame.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nextvlad.data.batch import FrameBatch, Frames
from nextvlad.errors import UsageError
from nextvlad.models.base import Aggregator, Sums

STEPS_AT_A_TIME = 128
"""Seconds whose sums are held at once: 17 MB at the paper's sizes, whatever the length of the video."""

LEVEL = 0.2
"""A second is part of an interval from this share of the label's typical contribution on."""

LEAST_CONTRIBUTION = 1e-4
"""In logits. Below it, differences of float32 logits are rounding."""

_SMOOTHING = np.array([1.0, 2.0, 3.0, 2.0, 1.0])


class Seconds:
    """One video as a model sees it, second by second.

    Frame i of a stream stands for the time from i / rate to (i + 1) / rate. A second takes the frames of all
    streams that begin in it; a stream that has none there any more, or none at all, takes no part. Where the
    frames of a stream lie more than a second apart, a step is as long as the longest frame instead.

    Attributes:
        step_seconds: how long one step is; 1.0 unless a stream has less than one frame a second.
        num_steps: T.
        logits: [C] float32 on the CPU, of the whole video; equal to the model's own up to rounding.
        attention: name of a stream -> [T] float64: attention x assignment, summed over the frames of a step,
            groups and clusters (and members of a mixture); at most groups (x members) a frame. Empty for
            models without attention, for which all frames weigh the same.
    """

    def __init__(
        self,
        model: Aggregator,
        streams: Mapping[str, NDArray[Any]],
        *,
        rates_hz: Mapping[str, float] | float = 1.0,
    ) -> None:
        """Reads the video once.

        Args:
            model: in evaluation mode, or put into inference; in fp32, as other precisions round away what a
                second contributes.
            streams: name -> [n, D] frames, bytes or float32 as the model takes them; names that the model
                does not have are left out, and those that it misses are taken to have no frames.
            rates_hz: frames a second of every stream, or of each.

        Raises:
            UsageError: the model is in training mode, frames of another size, or a rate that is not above 0.
        """
        model.check_evaluating()
        self._model = model
        names = [stream.name for stream in model.config.streams]
        rates = {name: rates_hz if isinstance(rates_hz, int | float) else rates_hz[name] for name in names}
        for name, rate in rates.items():
            if not 0 < rate < float("inf"):
                raise UsageError(f"stream {name}: rate {rate} Hz, wanted a number above 0.")
        # Checked, and moved to the model's device, as for `update`.
        own = {name: values for name, values in streams.items() if name in names}
        self._streams = {name: frames.values for name, frames in model.one_video(own).streams.items()}
        self.step_seconds = max([1.0, *(1.0 / rates[name] for name in names if len(self._streams[name]))])
        steps = {
            name: np.floor(np.arange(len(values)) / rates[name] / self.step_seconds + 1e-9).astype(np.int64)
            for name, values in self._streams.items()
        }  # the step that each frame begins in
        self.num_steps = max((int(of[-1]) + 1 for of in steps.values() if len(of)), default=0)
        self._bounds = {
            name: np.searchsorted(of, np.arange(self.num_steps + 1)) for name, of in steps.items()
        }  # [T + 1], where the frames of each step begin
        self._add_up()

    @torch.no_grad()
    def _add_up(self) -> None:
        """The sums of the whole video in float64, so that a subtraction later leaves no rounding behind."""
        self._total = self._zero()
        self.attention: dict[str, NDArray[np.float64]] = {}
        for start, sums in self._sums():
            for name, of_steps in sums.items():
                self._total[name] += of_steps.double().sum(0, keepdim=True)
                if name.endswith(".mass"):  # "rgb.mass", or "2.rgb.mass" of a member
                    attention = self.attention.setdefault(name.split(".")[-2], np.zeros(self.num_steps))
                    attention[start : start + len(of_steps)] += of_steps.double().sum(1).cpu().numpy()
        self.logits = self._conclude(self._total)[0]

    @torch.no_grad()
    def contributions(self, labels: Sequence[int]) -> NDArray[np.float32]:
        """[L, T] float32: the logit of each of `labels`, minus what it is without each second. Exact."""
        found = np.zeros((len(labels), self.num_steps), np.float32)
        columns = torch.as_tensor(list(labels), dtype=torch.long)
        whole = self.logits[columns].double()
        for start, sums in self._sums():
            without = {name: self._total[name] - of_steps.double() for name, of_steps in sums.items()}
            logits = self._conclude(without)[:, columns].double()
            found[:, start : start + len(logits)] = (whole - logits).T.numpy()
        return found

    @torch.no_grad()
    def logits_of(self, chosen: NDArray[np.bool_]) -> Tensor:
        """What the model says of some seconds and of no others.

        Args:
            chosen: [S, T], of each selection True for the seconds in it.

        Returns:
            [S, C] float32. All selections take one pass over the video.
        """
        masks = torch.from_numpy(chosen).to(self._model.device, torch.float64)
        total = {name: sums.repeat(len(masks), *[1] * (sums.ndim - 1)) for name, sums in self._zero().items()}
        for start, sums in self._sums():
            for name, of_steps in sums.items():
                mask = masks[:, start : start + len(of_steps)]
                total[name] += torch.tensordot(mask, of_steps.double(), dims=1)
        return self._conclude(total)

    def _zero(self) -> Sums:
        """The sums of no frames, [1, ...] float64."""
        return {name: sums.double() for name, sums in self._model.begin().items()}

    def _conclude(self, sums: Sums) -> Tensor:
        return self._model.conclude({name: total.float() for name, total in sums.items()}).float().cpu()

    def _sums(self) -> Iterator[tuple[int, Sums]]:
        """First step, and the sums of that and the following ones, each a video of its own."""
        for start in range(0, self.num_steps, STEPS_AT_A_TIME):
            stop = min(start + STEPS_AT_A_TIME, self.num_steps)
            streams = {}
            for name, values in self._streams.items():
                bounds = self._bounds[name][start : stop + 1]
                offsets = torch.from_numpy(bounds - bounds[0]).to(values.device)
                streams[name] = Frames(values[bounds[0] : bounds[-1]], offsets)
            labels = torch.zeros(stop - start, 0, dtype=torch.bool, device=self._model.device)
            batch = FrameBatch([""] * (stop - start), labels, streams)
            yield start, self._model.aggregate(batch)


def intervals(contributions: NDArray[np.floating], *, level: float = LEVEL) -> list[tuple[int, int]]:
    """The stretches of a video that speak for a label, from its contributions.

    The rule: contributions are smoothed over five seconds (weights 1 2 3 2 1; at the ends of the video those
    that are there). The typical contribution is the mean of the positive ones, each weighted by itself:
    between their mean, which a long quiet rest pulls down, and their greatest, which one odd second pulls up.
    A stretch is a run of seconds whose smoothed contribution is at least `level` times that. Its ends are
    then moved to seconds that reach as much by themselves, inwards or outwards without a gap, so that
    smoothing bridges gaps of a few seconds, but moves no ends. Where no second reaches `LEAST_CONTRIBUTION`,
    there is no stretch.

    Args:
        contributions: [T] logits.
        level: share of the typical contribution, in (0, 1].

    Returns:
        [first, last + 1) of each stretch in steps, in order, none touching another.

    >>> intervals(np.array([0, 0, 1, 1, 1, 0, 0, 0, 0, 0, 1, 0.0]))
    [(2, 5), (10, 11)]
    """
    values = np.asarray(contributions, np.float64)
    if len(values) == 0 or values.max() < LEAST_CONTRIBUTION:
        return []
    smooth = _smoothed(values)
    positive = smooth.clip(min=0)
    least = level * np.square(positive).sum() / max(positive.sum(), LEAST_CONTRIBUTION)
    strong = values >= max(least, LEAST_CONTRIBUTION * level)
    edges = np.flatnonzero(np.diff(np.concatenate([[False], smooth >= max(least, 1e-9), [False]])))
    found: list[tuple[int, int]] = []
    for first, end in edges.reshape(-1, 2).tolist():
        inside = np.flatnonzero(strong[first:end])
        if len(inside):
            start, end = first + int(inside[0]), first + int(inside[-1]) + 1
            while start > 0 and strong[start - 1]:
                start -= 1
            while end < len(values) and strong[end]:
                end += 1
            if found and start <= found[-1][1]:
                start = found.pop()[0]
            found.append((start, end))
    return found


def _smoothed(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """[T] -> [T], a centred mean over five."""
    reach = len(_SMOOTHING) // 2
    weight = np.convolve(np.ones(len(values)), _SMOOTHING)[reach : reach + len(values)]
    smooth: NDArray[np.float64] = np.convolve(values, _SMOOTHING)[reach : reach + len(values)] / weight
    return smooth
