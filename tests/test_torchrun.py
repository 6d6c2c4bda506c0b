from __future__ import annotations

import os

import pytest
import torch

from makers import nextvlad
from nextvlad.distributed import process_group
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


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({}, "RANK expected, but not set"),
        ({"RANK": "0"}, "MASTER_ADDR expected, but not set"),
        ({"RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "many"}, "invalid literal"),
        ({"RANK": "7", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}, r"RANK=7 and WORLD_SIZE=2.*0\.\.1"),
        ({"RANK": "-1"}, "RANK='-1', wanted a number"),
    ],
)
def test_a_group_that_is_not_described_is_said(
    monkeypatch: pytest.MonkeyPatch, more: dict[str, str], message: str
) -> None:
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"WORLD_SIZE": "2", **more}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=message), process_group(torch.device("cpu")):
        pass
