"""What `nextvlad bench` measured, for people: the table, what limits, and what to do about it.

The slower of reading and computing is what both together could reach; how near they come says whether they
get in each other's way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from rich.console import Console
from rich.table import Table

from nextvlad.models.byte_linear import integer_products
from nextvlad.models.cpu import multiplies

What = Literal["read", "train", "infer"]

_IN_PYTHON = (
    "Records are read in Python alone, which is slower: the compiled part is not there, or NEXTVLAD_COMPILED "
    "is 0. Install the package again where there is a C compiler."
)


@dataclass(frozen=True)
class Stage:
    """What was measured of one stage; rates are per second, those of the median round.

    Attributes:
        name: what it does.
        videos, frames, megabytes: done a second; frames of the stream that has most, bytes of all.
        videos_quartiles: of the rounds.
        rounds: how many.
    """

    name: str
    videos: float
    frames: float
    megabytes: float
    videos_quartiles: tuple[float, float]
    rounds: int


def processes(count: int) -> str:
    """As in "reading, 2 reader processes"."""
    return f"{count} reader process{'es' if count != 1 else ''}" if count else "in this process"


def limits(what: What, stages: Sequence[Stage], facts: dict[str, Any]) -> list[str]:
    """What limits, and what to do about it, in a few lines.

    Args:
        what: was measured.
        stages: for "read" in this process and in reader processes; else reading, computing, both.
        facts: `workers`, `threads`, `cores`; for reading `compiled`, and for computing `device`, `precision`,
            `batch_size`.
    """
    if what == "read":
        return _limits_of_reading(stages, facts)
    reading, computing, both = stages
    slower = min(reading, computing, key=lambda stage: stage.videos)
    share = both.videos / slower.videos
    lines = [
        f"The slower stage is {slower.name}: {slower.videos:,.0f} videos/s. "
        f"Both together reach {share:.0%} of it."
    ]
    if slower is reading:
        lines.append(
            f"Reading limits. More reader processes: --workers {facts['workers'] * 2 or 1}."
            if facts["workers"] < facts["cores"]
            else "Reading limits, with a process for every processor: a faster disk, or data on this machine."
        )
    else:
        lines.append(f"Computing limits. {_faster_computing(what, facts)}")
    busy = facts["threads"] + facts["workers"]
    if share < 0.9 and facts.get("device", "").startswith("cpu") and busy > facts["cores"]:
        lines.append(
            f"Reading and computing share {facts['cores']} processors ({facts['threads']} threads and "
            f"{facts['workers']} reader processes): that is what is missing."
        )
    return lines


def _limits_of_reading(stages: Sequence[Stage], facts: dict[str, Any]) -> list[str]:
    alone, *many = stages
    in_python = [] if facts["compiled"] else [_IN_PYTHON]
    if not many:
        return ["More reader processes may read more: --workers 2.", *in_python]
    gain = many[0].videos / alone.videos
    line = f"Reading with {processes(facts['workers'])} is {gain:.2f} times as fast as in this one."
    if gain < 0.9:
        line += (
            " Handing batches from process to process costs more than it gains, as it does where records are "
            "small, or other work keeps the processors busy: one reader process is enough."
        )
    elif facts["workers"] > 1 and gain < 0.5 * facts["workers"]:
        line += " Disk, memory or other work on this machine limits: more processes will not help."
    elif facts["workers"] >= facts["cores"]:
        line += " There is a process for every processor."
    else:
        line += f" There are {facts['cores']} processors: try --workers {facts['cores']}."
    return [line, *in_python]


def _faster_computing(what: What, facts: dict[str, Any]) -> str:
    ways = []
    on_cpu = facts["device"].startswith("cpu")
    if facts["precision"] == "fp32":
        if not on_cpu or multiplies(torch.bfloat16):
            ways.append("--precision bf16")
        elif what == "infer" and integer_products():
            ways.append("--precision int8")
    if facts["batch_size"] < 64:
        ways.append("a larger --batch-size" + (" (another training)" if what == "train" else ""))
    if on_cpu:
        if facts["threads"] < facts["cores"]:
            ways.append(f"--threads {facts['cores']}")
        ways.append("a GPU")
    else:
        ways.append("more GPUs (torchrun)")
    return f"What may help: {', '.join(ways)}."


def print_report(stages: Sequence[Stage], facts: dict[str, Any], verdict: Sequence[str]) -> None:
    """The table and the lines on standard output."""
    title = "  ".join(f"{name.replace('_', ' ')} {_shown(value)}" for name, value in facts.items())
    table = Table(title=title, title_justify="left")
    table.add_column("stage")
    for name in ("videos/s", "quartiles", "frames/s", "MB/s"):
        table.add_column(name, justify="right")
    for stage in stages:
        low, high = stage.videos_quartiles
        table.add_row(
            stage.name,
            f"{stage.videos:,.0f}",
            f"{low:,.0f} to {high:,.0f}",
            f"{stage.frames:,.0f}",
            f"{stage.megabytes:,.0f}",
        )
    console = Console()
    console.print(table)
    for line in verdict:
        console.print(line, markup=False, soft_wrap=True, highlight=False)


def _shown(value: object) -> str:
    if isinstance(value, list):
        return " ".join(map(str, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else str(value)
