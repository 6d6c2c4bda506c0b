"""Evaluation in the course of a run, on its validation data: which of its checkpoints is the best."""

from __future__ import annotations

from typing import Any

import torch

from nextvlad import distributed
from nextvlad.config import Precision
from nextvlad.data.loader import FrameLoader, count_examples
from nextvlad.errors import RecordError
from nextvlad.evaluate import check_scored, score
from nextvlad.models import Model, for_inference
from nextvlad.provenance import Expected
from nextvlad.run_config import TrainConfig

_LARGEST_MAP = 2**29  # scores kept for the untruncated mAP while training: 2 GiB
_SHOWN = {
    "segment_map": "segment MAP",
    "gap": "GAP",
    "hit_at_one": "Hit@1",
    "perr": "PERR",
    "map": "mAP",
    "loss": "loss",
}


class Validation:
    """The validation data of a run, and how good its model was on it at best.

    Args:
        config: of the run, settled.
        device: of the model.
        expected: how the features have to be made; None: in any way.
        best: as an earlier part of the run left it; None: there is none.

    Attributes:
        best: step, metric and value of the best evaluation, as checkpoints keep it; None before the first.
        damage: what was skipped of the data.
    """

    def __init__(
        self,
        config: TrainConfig,
        device: torch.device,
        *,
        expected: Expected | None,
        best: dict[str, Any] | None,
    ) -> None:
        self.best = best
        self.damage: list[RecordError] = []
        self._config, self._device, self._expected = config, device, expected
        self._metric = str(config.best_by)  # settled
        self._num_videos: int | None = None

    def score(self, model: Model, precision: Precision) -> dict[str, Any]:
        """The metrics over the whole data, all ranks together; the model is left in evaluation mode."""
        config, data = self._config, self._config.data
        model.eval()
        if self._num_videos is None and not data.segments:
            self._num_videos = count_examples(data.valid, skip_damaged=data.skip_damaged)
        with FrameLoader(
            data.valid,
            streams=config.model.streams,
            num_classes=config.model.num_classes,
            batch_size=data.eval_batch_size,
            max_frames=data.max_frames,
            workers=data.workers,
            pin_memory=self._device.type == "cuda",
            rank=distributed.rank(),
            world_size=distributed.world_size(),
            skip_damaged=data.skip_damaged,
            segments="rated" if data.segments else None,
            expected=self._expected,
        ) as loader:
            small = (self._num_videos or 0) * config.model.num_classes <= _LARGEST_MAP
            result: dict[str, Any] = score(
                for_inference(model, precision),
                loader,
                with_map=small or self._metric == "map",
                segments=data.segments,
                show=False,
                batch_option="--data.eval-batch-size",
            )
        check_scored(result, data.valid)
        self.damage = loader.damage
        return result

    def note(self, result: dict[str, Any], step: int) -> bool:
        """Whether the result of this step is better than all before; `best` is it then."""
        value = result[self._metric]
        better = self.best is None or (
            value is not None and _is_better(self._metric, value, self.best["value"])
        )
        if better:
            self.best = {"step": step, "metric": self._metric, "value": value}
        return better


def in_short(result: dict[str, Any]) -> str:
    """The metrics of `Validation.score` as a line shows them."""
    return "  ".join(
        f"{name} {result[key]:.4f}" for key, name in _SHOWN.items() if result.get(key) is not None
    )


def _is_better(metric: str, value: float, best: float | None) -> bool:
    if best is None:
        return True
    return value < best if metric == "loss" else value > best
