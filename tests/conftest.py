"""What all tests share: where the golden numbers are, and small made-up records."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

_SHARED = Path(os.environ.get("NEXTVLAD_SHARED", Path(__file__).resolve().parents[2] / "shared"))


def shared_path(relative: str) -> Path:
    """A file of the shared golden numbers and data, or skip the test that wants it."""
    path = _SHARED / relative
    if not path.exists():
        pytest.skip(f"no {relative} here; set NEXTVLAD_SHARED to the folder that holds golden/ and data/")
    return path


@pytest.fixture
def golden() -> Path:
    """The folder of numbers made by the TensorFlow and Paddle originals."""
    return shared_path("golden")


@pytest.fixture
def audioset() -> Path:
    """The folder of AudioSet frame features."""
    return shared_path("data/audioset")
