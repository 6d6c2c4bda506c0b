from __future__ import annotations

import os

import pytest

from makers import nextvlad
from nextvlad.errors import UsageError
from nextvlad.torchrun import read_number


def test_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert read_number("WORLD_SIZE", 1) == 1
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert read_number("WORLD_SIZE", 1) == 8


@pytest.mark.parametrize("text", ["", "two", "-1", "1.5"])
def test_what_is_no_number_is_said(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("WORLD_SIZE", text)
    with pytest.raises(UsageError, match=r"WORLD_SIZE=.*wanted a number of 0 or more"):
        read_number("WORLD_SIZE", 1)


@pytest.mark.parametrize("name", ["WORLD_SIZE", "LOCAL_RANK"])
def test_the_command_line_ends_without_a_traceback(name: str) -> None:
    done = nextvlad("bench", "infer", "nowhere", env={**os.environ, name: "many"})
    assert done.returncode == 2
    assert f"{name}='many'" in done.stderr
    assert "Traceback" not in done.stderr
