"""What all tests share: where the golden numbers are, and small made-up records."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

# A shell without job control starts background commands with SIGINT ignored, and so would every process of
# the tests, those too that are there to be interrupted.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

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
