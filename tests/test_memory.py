from __future__ import annotations

import resource
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nextvlad import memory

GB = 1 << 30


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A system without limits and 8 GB to be had."""
    monkeypatch.setattr(memory, "_PROC", tmp_path / "proc")
    monkeypatch.setattr(memory, "_CGROUP", tmp_path / "cgroup")
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    write(tmp_path / "proc", meminfo=f"MemTotal: 1 kB\nMemAvailable:  {8 * GB // 1024} kB\nSwapFree: 0 kB\n")
    return tmp_path


def write(folder: Path, **files: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(str(content))


def test_without_limits_it_is_the_machines(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert memory.available_memory() == 8 * GB
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert memory.available_memory() == 2 * GB


def test_limits_of_groups_count_on_the_whole_way_up(machine: Path) -> None:
    write(machine / "proc" / "self", cgroup="0::/jobs/one\n")
    jobs = machine / "cgroup" / "jobs"
    write(jobs / "one", memory__max="max\n", memory__current=GB)
    write(jobs, memory__max=4 * GB, memory__current=3 * GB, memory__stat=f"anon 7\ninactive_file {GB}\n")
    assert memory.available_memory() == 2 * GB


def test_inside_a_container_the_root_of_what_is_seen_counts(machine: Path) -> None:
    write(machine / "proc" / "self", cgroup="3:cpuset:/x\n4:memory:/docker/abc\n0::/\n")
    write(machine / "cgroup" / "memory", memory__limit_in_bytes=3 * GB, memory__usage_in_bytes=GB)
    assert memory.available_memory() == 2 * GB


def test_a_limit_of_the_process(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(machine / "proc" / "self", statm="1000 10 10")
    limit = 5 * GB
    monkeypatch.setattr(resource, "getrlimit", lambda _: (limit, resource.RLIM_INFINITY))
    assert memory.available_memory() == limit - 1000 * resource.getpagesize()


def test_never_less_than_nothing(machine: Path) -> None:
    write(machine / "proc" / "self", cgroup="0::/\n")
    write(machine / "cgroup", memory__max=GB, memory__current=2 * GB)
    assert memory.available_memory() == 0


def test_a_system_that_does_not_tell(machine: Path, monkeypatch: Any) -> None:
    (machine / "proc" / "meminfo").unlink()
    pages = {"SC_PHYS_PAGES": 1000, "SC_PAGE_SIZE": 4096}
    monkeypatch.setattr("os.sysconf", pages.__getitem__)
    assert memory.available_memory() == 500 * 4096


def test_here_it_is_something() -> None:
    assert 0 < memory.available_memory() < 1 << 50


def test_the_peak_rises_with_what_is_used() -> None:
    before = memory.peak_memory()
    block = np.ones(before + (64 << 20), np.uint8)
    assert memory.peak_memory() >= block.nbytes
