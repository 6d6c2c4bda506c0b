"""The README's table of speeds, from the files in benchmarks/results: one for each machine.

`python benchmarks/table.py` prints it; with `--write` it replaces what stands between the markers in the
README. A row whose comparison nobody has measured is left out. Of several results the last counts.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
BEGIN, END = "<!-- speed -->", "<!-- /speed -->"

_OfMachine = dict[tuple[str, str], dict[str, Any]]
_Results = dict[str, _OfMachine]


class Row(NamedTuple):
    """One line of the table: which ratio of which comparison, and how to say it."""

    what: str
    comparison: str
    other: str
    text: str
    against: str


ROWS = (
    Row("reading", "YouTube-8M, made up, one process", "protobuf", "reading, YouTube-8M's shape", "protobuf"),
    Row(
        "reading",
        "YouTube-8M, made up, one process",
        "protobuf, frame by frame",
        "the same",
        "protobuf, an array for each frame",
    ),
    Row(
        "reading",
        "YouTube-8M, made up, one process",
        "tf.data, one thread",
        "the same",
        "tf.data, one thread",
    ),
    Row(
        "reading",
        "YouTube-8M, made up, one process",
        "fetching, checksums and copying alone",
        "the same",
        "fetching, checksums and copying alone",
    ),
    Row(
        "reading",
        "YouTube-8M, made up, one process",
        "ours, in Python alone",
        "the same",
        "ours, without the compiled part",
    ),
    Row("reading", "AudioSet, one process", "protobuf", "reading, AudioSet", "protobuf"),
    Row(
        "reading",
        "AudioSet, one process",
        "ours, in Python alone",
        "the same",
        "ours, without the compiled part",
    ),
    Row(
        "reading",
        "YouTube-8M, made up, reader processes",
        "1 process",
        "two reader processes",
        "one",
    ),
    Row("metrics", "exact GAP", "plain Python", "exact GAP, 22 million pairs", "plain Python"),
    Row(
        "metrics",
        "keeping all metrics",
        "forward pass",
        "keeping all metrics, 3,862 classes",
        "a forward pass",
    ),
    Row(
        "whole_process",
        "evaluate, YouTube-8M, made up",
        "slower stage alone",
        "`nextvlad evaluate`, paper's model",
        "the slower of reading and inference alone",
    ),
    Row(
        "whole_process",
        "evaluate, AudioSet",
        "slower stage alone",
        "`nextvlad evaluate`, AudioSet",
        "the slower of reading and inference alone",
    ),
    Row(
        "whole_process",
        "train, YouTube-8M, made up",
        "slower stage alone",
        "`nextvlad train`, paper's model",
        "training steps alone",
    ),
    Row(
        "whole_process",
        "train, AudioSet",
        "slower stage alone",
        "`nextvlad train`, AudioSet",
        "training steps alone",
    ),
    Row(
        "inference",
        "inference fp32, batch 32",
        "equations, padded",
        "inference fp32, paper's model, batch 32",
        "the equations on padded batches, fp32",
    ),
    Row(
        "inference",
        "inference fp32, batch 80",
        "equations, padded",
        "inference fp32, paper's model, batch 80",
        "the equations on padded batches, fp32",
    ),
    Row(
        "inference",
        "inference bf16, batch 32",
        "equations, padded",
        "inference bf16, paper's model, batch 32",
        "the equations on padded batches, fp32",
    ),
    Row(
        "inference",
        "inference bf16, batch 80",
        "equations, padded",
        "inference bf16, paper's model, batch 80",
        "the equations on padded batches, fp32",
    ),
    Row(
        "inference",
        "inference int8, batch 32",
        "equations, padded",
        "inference int8, paper's model, batch 32",
        "the equations on padded batches, fp32",
    ),
    Row(
        "inference",
        "inference int8, batch 80",
        "equations, padded",
        "inference int8, paper's model, batch 80",
        "the equations on padded batches, fp32",
    ),
    Row(
        "training",
        "training fp32, batch 32",
        "equations, padded, foreach Adam",
        "training step fp32, paper's model, batch 32",
        "the equations on padded batches, fp32, foreach Adam",
    ),
    Row(
        "training",
        "training bf16, batch 32",
        "equations, padded, foreach Adam",
        "training step bf16, paper's model, batch 32",
        "the equations on padded batches, fp32, foreach Adam",
    ),
    Row(
        "training",
        "training fp32, batch 80",
        "equations, padded, foreach Adam",
        "training step fp32, paper's model, batch 80",
        "the equations on padded batches, fp32, foreach Adam",
    ),
    Row(
        "training",
        "training bf16, batch 80",
        "equations, padded, foreach Adam",
        "training step bf16, paper's model, batch 80",
        "the equations on padded batches, fp32, foreach Adam",
    ),
)


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--write", action="store_true", help="into the README")
    table = speed_table(read_results(ROOT / "benchmarks" / "results"))
    if options.parse_args().write:
        readme = ROOT / "README.md"
        readme.write_text(insert(readme.read_text(encoding="utf-8"), table), encoding="utf-8")
    else:
        print(table)


def read_results(folder: Path) -> _Results:
    """Machine, the newest first -> (what, comparison) -> the last of that name, with its `date`."""
    lines = (line for path in folder.glob("*.jsonl") for line in path.read_text("utf-8").splitlines())
    records = [record for record in map(json.loads, lines) if not record.get("quick")]
    found: _Results = {}
    for record in sorted(records, key=lambda record: str(record["date"])):
        machine = _machine(record["environment"])
        of_machine = found.pop(machine, {})
        for comparison in record["comparisons"]:
            of_machine[record["what"], comparison["name"]] = comparison | {"date": record["date"][:10]}
        found[machine] = of_machine
    return dict(reversed(found.items()))


def speed_table(results: _Results, rows: tuple[Row, ...] = ROWS) -> str:
    """Markdown; says so where there is nothing yet."""
    parts = []
    for machine, of_machine in results.items():
        lines = [
            *_ratios(of_machine, rows),
            *_shares(of_machine),
            *_exponents(of_machine),
            *_start(of_machine),
        ]
        if lines:
            days = sorted({comparison["date"] for comparison in of_machine.values()})
            when = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
            head = ["| what | here | against | ratio | quartiles | aim |", "|---|---|---|---|---|---|"]
            parts.append("\n".join([f"**{machine}**, {when}:", "", *head, *lines]))
    return "\n\n".join(parts) or "Nothing has been measured yet."


def _ratios(results: _OfMachine, rows: tuple[Row, ...]) -> list[str]:
    return [
        _line(results[row.what, row.comparison], row.other, row.text, row.against)
        for row in rows
        if row.other in results.get((row.what, row.comparison), {}).get("ratios", {})
    ]


def _shares(results: _OfMachine) -> list[str]:
    """Extraction, against whichever part alone is the slower one."""
    return [
        _line(comparison, other, f"`nextvlad extract`, {name.split(', ')[1]}", other)
        for (what, name), comparison in results.items()
        if what == "extraction"
        for other, ratio in comparison["ratios"].items()
        if ratio["wanted"]
    ]


def _line(comparison: dict[str, Any], other: str, text: str, against: str) -> str:
    ratio = comparison["ratios"][other]
    ours = next(iter(comparison["timings"].values()))["per_second"]
    low, high = (_short(value) for value in ratio["quartiles"])
    wanted = f"{ratio['wanted']:g}x" if ratio["wanted"] else ""
    return (
        f"| {text}{_taken(comparison)} | {_rate(ours)} {comparison['unit']}/s | {against} "
        f"| **{_short(ratio['ratio'])}x** | {low} to {high} | {wanted} |"
    )


def _taken(comparison: dict[str, Any]) -> str:
    """What to say where the machine computed in another precision than was asked for."""
    asked, taken = next(iter(comparison["timings"])), comparison.get("facts", {}).get("computed in")
    return f" (computed in {taken}: faster on that CPU)" if taken and taken != asked else ""


def _exponents(results: _OfMachine) -> list[str]:
    lines = []
    for (what, name), comparison in results.items():
        if what == "scaling":
            facts = comparison["facts"]
            memory = f", of memory {facts['memory exponent']:.2f}" if "memory exponent" in facts else ""
            lines.append(
                f"| a video's cost against {name.split(', ')[1]}, {name.split(', ')[0]} | exponent of time "
                f"{facts['time exponent']:.2f}{memory} | | | | {facts['expected']:g} |"
            )
    return lines


def _start(results: _OfMachine) -> list[str]:
    startup = results.get(("startup", "help"))
    if startup is None:
        return []
    seconds = startup["timings"]["nextvlad --help"]["median_s"]
    return [f"| `nextvlad --help` | {seconds:.2f} s | | | | below {startup['facts']['wanted_s']} s |"]


def insert(text: str, table: str) -> str:
    """The text with the table between its markers."""
    pattern = re.compile(f"(?<={re.escape(BEGIN)}\n\n).*?(?=\n\n{re.escape(END)})", re.DOTALL)
    if len(pattern.findall(text)) != 1:
        raise SystemExit(f"wanted {BEGIN} and {END} once, with empty lines inside and something between")
    return pattern.sub(lambda _: table, text)


def _machine(environment: dict[str, Any]) -> str:
    found = environment.get("gpu") or f"{environment['cpu']}, {environment['cores']} cores"
    return re.sub(r"\((R|TM)\)", "", found)


def _rate(value: float) -> str:
    if value >= 1e6:
        return f"{value / 1e6:.0f} million"
    digits = max(0, len(str(int(value))) - 3)
    return f"{round(value, -digits):,.0f}"


def _short(ratio: float) -> str:
    return f"{ratio:.2f}" if ratio < 10 else f"{ratio:.0f}"


if __name__ == "__main__":
    main()
