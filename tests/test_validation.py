"""Which evaluation of a run is its best; evaluation itself is tested with whole runs, in test_train."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from nextvlad.run_config import TrainConfig
from nextvlad.validation import Validation, in_short


@pytest.mark.parametrize(
    ("metric", "values", "better"),
    [
        ("gap", [0.5, 0.4, 0.5, 0.6], [True, False, False, True]),
        ("loss", [2.0, 2.5, 1.0, 1.0], [True, False, True, False]),
        ("map", [None, None, 0.1, None, 0.0], [True, False, True, False, False]),  # None: it has no value
    ],
)
def test_the_best_is_the_first_of_its_value(metric: Any, values: list[Any], better: list[bool]) -> None:
    config = TrainConfig(best_by=metric)
    validation = Validation(config, torch.device("cpu"), expected=None, best=None)
    assert [validation.note({metric: value}, step) for step, value in enumerate(values)] == better
    step = max(step for step, is_better in enumerate(better) if is_better)
    assert validation.best == {"step": step, "metric": metric, "value": values[step]}
    resumed = Validation(config, torch.device("cpu"), expected=None, best=validation.best)
    assert not resumed.note({metric: values[step]}, 9)


def test_what_has_no_value_is_not_shown() -> None:
    assert in_short({"num_videos": 3, "gap": 0.25, "map": None, "loss": 1}) == "GAP 0.2500  loss 1.0000"
