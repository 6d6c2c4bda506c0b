"""Times alternatives side by side, and says what on: the common part of all benchmarks.

A machine's speed drifts, so only ratios taken in one run mean anything: the alternatives take turns
(A B C A B C ...), and a ratio is that of their medians, with the quartiles of the ratios round by round.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
_PACKAGES = ("nextvlad", "torch", "numpy", "google-crc32c", "protobuf", "tensorflow", "tensorflow-cpu")


@dataclass(frozen=True, slots=True)
class Timing:
    """How one alternative did: seconds of each round, and what a round got done (videos, pairs, calls)."""

    seconds: list[float]
    amount: float

    @property
    def median(self) -> float:
        """Seconds a round."""
        return statistics.median(self.seconds)

    @property
    def rate(self) -> float:
        """Units of work a second, in the median round."""
        return self.amount / self.median

    def to_json(self) -> dict[str, Any]:
        """All rounds and what follows from them."""
        low, high = quartiles(self.seconds)
        return {
            "median_s": self.median,
            "quartiles_s": [low, high],
            "amount": self.amount,
            "per_second": self.rate,
            "rounds_s": self.seconds,
        }


@dataclass(frozen=True, slots=True)
class Comparison:
    """Alternatives that were timed side by side.

    Attributes:
        name: key of the comparison in the result file.
        unit: what is counted: "videos".
        timings: name of each alternative -> its timing; the first is ours.
        wanted: name of another alternative -> how many times its rate ours should be.
        facts: anything else to keep: sizes, largest differences.
    """

    name: str
    unit: str
    timings: Mapping[str, Timing]
    wanted: Mapping[str, float]
    facts: Mapping[str, Any]

    def ratios(self) -> dict[str, dict[str, Any]]:
        """Of our rate to each other one: by the medians, quartiles by rounds, and what was wanted."""
        ours, *others = self.timings
        return {other: self._ratio(ours, other) for other in others}

    def _ratio(self, ours: str, other: str) -> dict[str, Any]:
        a, b = self.timings[ours], self.timings[other]
        rounds = [
            (a.amount / mine) / (b.amount / theirs)
            for mine, theirs in zip(a.seconds, b.seconds, strict=False)
        ]
        low, high = quartiles(rounds)
        return {"ratio": a.rate / b.rate, "quartiles": [low, high], "wanted": self.wanted.get(other)}

    def to_json(self) -> dict[str, Any]:
        """Its part of a result line."""
        timings = {name: timing.to_json() for name, timing in self.timings.items()}
        return {
            "name": self.name,
            "unit": self.unit,
            "timings": timings,
            "ratios": self.ratios(),
            "facts": dict(self.facts),
        }


def quartiles(values: Sequence[float]) -> tuple[float, float]:
    """First and third quartile; both the value itself where there is one.

    >>> quartiles([1.0, 2.0, 3.0, 4.0, 5.0])
    (2.0, 4.0)
    """
    if len(values) < 2:
        return values[0], values[0]
    first, _, third = statistics.quantiles(values, n=4, method="inclusive")
    return first, third


def compare(
    name: str,
    alternatives: Mapping[str, Callable[[], float]],
    *,
    unit: str,
    rounds: int,
    warmup: int = 1,
    wanted: Mapping[str, float] | None = None,
    facts: Mapping[str, Any] | None = None,
) -> Comparison:
    """Time alternatives in turns.

    Args:
        name: key of the comparison in the result file.
        alternatives: each does its work once and returns how much that was; ours first.
        unit: of what they return.
        rounds: how often each is timed.
        warmup: rounds before, which are not timed.
        wanted: least ratio of our rate to that of some others.
        facts: more to write down.
    """
    seconds: dict[str, list[float]] = {key: [] for key in alternatives}
    amounts: dict[str, float] = {}
    for number in range(-warmup, rounds):
        for key, run in alternatives.items():
            gc.collect()
            start = time.perf_counter()
            amounts[key] = run()
            took = time.perf_counter() - start
            if number >= 0:
                seconds[key].append(took)
    timings = {key: Timing(seconds[key], amounts[key]) for key in alternatives}
    return Comparison(name, unit, timings, wanted or {}, facts or {})


def parser(description: str | None, *, rounds: int) -> argparse.ArgumentParser:
    """The options all benchmarks have."""
    options = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument(
        "--rounds", type=int, default=rounds, help="rounds that are timed (default %(default)s)"
    )
    options.add_argument("--warmup", type=int, default=1, help="rounds before them (default %(default)s)")
    options.add_argument("--threads", type=int, help="threads of arithmetic; default: what torch takes")
    options.add_argument(
        "--quick", action="store_true", help="tiny sizes: shows that it runs, measures nothing"
    )
    options.add_argument(
        "--out",
        nargs="?",
        const=str(RESULTS),
        metavar="FOLDER",
        help="append the JSON line to FOLDER/<what>_<hardware>_<date>.jsonl (default benchmarks/results)",
    )
    return options


def finish(
    what: str,
    comparisons: Sequence[Comparison],
    options: argparse.Namespace,
    more: Mapping[str, Any] | None = None,
) -> None:
    """Print the tables and the JSON line, with `more` in it, and keep the line where `--out` says so."""
    record = {
        "what": what,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "quick": getattr(options, "quick", False),
        "command": " ".join(
            ["python", os.path.relpath(sys.argv[0], ROOT), *map(_without_folder, sys.argv[1:])]
        ),
        "environment": environment(),
        "comparisons": [comparison.to_json() for comparison in comparisons],
        **(more or {}),
    }
    for comparison in comparisons:
        print(table(comparison), end="\n\n")
    line = json.dumps(record)
    print(line)
    if options.out:
        folder = Path(options.out)
        folder.mkdir(parents=True, exist_ok=True)
        name = f"{what}_{hardware()}_{record['date'][:10]}.jsonl"
        with open(folder / name, "a", encoding="utf-8") as file:
            file.write(line + "\n")


def table(comparison: Comparison) -> str:
    """For people: median, quartiles, rate, and how many times faster ours is."""
    ratios = comparison.ratios()
    facts = ", ".join(f"{key} {value}" for key, value in comparison.facts.items())
    lines = [f"{comparison.name}{f' ({facts})' if facts else ''}"]
    wide = max(map(len, comparison.timings))
    rates = f"{comparison.unit}/s"
    lines.append(f"  {'':{wide}}  {'median s':>9}  {'quartiles':>17}  {rates:>13}  ours is")
    for name, timing in comparison.timings.items():
        low, high = quartiles(timing.seconds)
        line = f"  {name:{wide}}  {timing.median:9.4f}  {low:8.4f} {high:8.4f}  {timing.rate:13,.0f}"
        if name in ratios:
            low, high = ratios[name]["quartiles"]
            wanted = ratios[name]["wanted"]
            line += f"  {ratios[name]['ratio']:.2f}x ({low:.2f}-{high:.2f})"
            line += f", wanted {wanted:g}x" if wanted else ""
        lines.append(line)
    return "\n".join(lines)


def environment() -> dict[str, Any]:
    """What the figures depend on besides the code, and which code it was."""
    torch = sys.modules.get("torch")
    found = {
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "usable_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "load_average": list(os.getloadavg()),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "threads": torch.get_num_threads() if torch else None,
        "gpu": torch.cuda.get_device_name() if torch and torch.cuda.is_available() else None,
        "versions": {name: found for name in _PACKAGES if (found := _version(name))},
        "commit": _git("rev-parse", "HEAD"),
        "dirty": bool(_git("status", "--porcelain", "--untracked-files=no")),
    }
    return {name: value for name, value in found.items() if value is not None}


def cpu_model() -> str:
    """As the system names it."""
    try:
        names = re.findall(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()


def hardware() -> str:
    """For file names: intel-xeon-processor-2-cores; a GPU's name where torch is loaded and has one."""
    torch = sys.modules.get("torch")
    if torch and torch.cuda.is_available():
        name = torch.cuda.get_device_name()
    else:
        name = f"{cpu_model()} {os.cpu_count()} cores"
    name = re.sub(r"\((r|tm)\)|@.*GHz|CPU", " ", name, flags=re.IGNORECASE)
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _without_folder(argument: str) -> str:
    """Where somebody keeps the data is nobody's business."""
    return os.path.basename(argument) if os.path.isabs(argument) else argument


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=False
        )
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None
