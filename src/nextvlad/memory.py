"""How much memory this machine has left for this process, and how much the process has used."""

from __future__ import annotations

import os
import re
import resource
import sys
from pathlib import Path

from nextvlad.torchrun import read_number

_PROC = Path("/proc")
_CGROUP = Path("/sys/fs/cgroup")


def available_memory() -> int:
    """Bytes that may still be taken: of the machine, of the container (cgroup), of the process (ulimit -v).

    Processes that torchrun started here share it evenly. Where the system does not tell what is free
    (macOS), half of the machine's memory.
    """
    limits = [_of_machine(), *_of_cgroups(), *_of_process()]
    return max(min(limits), 0) // max(read_number("LOCAL_WORLD_SIZE", 1), 1)


def peak_memory() -> int:
    """The most bytes of memory (resident set) this process ever had."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _of_machine() -> int:
    found = re.search(r"^MemAvailable:\s+(\d+) kB", _text(_PROC / "meminfo"), re.MULTILINE)
    if found:
        return int(found[1]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def _of_cgroups() -> list[int]:
    """What is left below each limit on the way up from the process's own group; versions 1 and 2."""
    left = []
    for line in _text(_PROC / "self" / "cgroup").splitlines():
        _, controllers, name = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        version_2 = not controllers
        root = _CGROUP if version_2 else _CGROUP / "memory"
        limit_file, usage_file = (
            ("memory.max", "memory.current")
            if version_2
            else ("memory.limit_in_bytes", "memory.usage_in_bytes")
        )
        # Inside a container the name may be that outside, and its folder not there: then the root counts.
        place = root / name.lstrip("/")
        for folder in (place, *place.parents):
            limit, usage = _text(folder / limit_file).strip(), _text(folder / usage_file).strip()
            if limit.isdigit() and usage.isdigit():
                left.append(int(limit) - int(usage) + _reclaimable(folder))
            if folder == root:
                break
    return left


def _reclaimable(cgroup: Path) -> int:
    """Files in the page cache count as used, but are given up when memory is wanted."""
    found = re.search(r"^(?:total_)?inactive_file (\d+)$", _text(cgroup / "memory.stat"), re.MULTILINE)
    return int(found[1]) if found else 0


def _of_process() -> list[int]:
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    used = _text(_PROC / "self" / "statm").split()
    if limit == resource.RLIM_INFINITY or not used:
        return []
    return [limit - int(used[0]) * os.sysconf("SC_PAGE_SIZE")]


def _text(path: Path) -> str:
    """What a file of the system says; nothing where there is none."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""
