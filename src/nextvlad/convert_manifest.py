"""What a conversion has done so far: a hidden file in its folder, one JSON value a line.

The first line is the plan (settings, sources, names of the files to make), each further line a source that
is done. A line is added only once all files of its source are whole, so a conversion goes on after any
end, and what it left half-written is never taken for finished.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Any, Self

from nextvlad.data.conversion import Converted, Target
from nextvlad.errors import DataError, UsageError
from nextvlad.journal import ADVICE, Journal

MANIFEST = ".nextvlad-convert.jsonl"
_VERSION = 1


@dataclass(frozen=True, slots=True)
class Source:
    """A file to convert, as far as it must be the same when a conversion goes on.

    Attributes:
        name: its path from the folder that all sources share, which may have moved.
        num_bytes: its size.
        changed: when it was last changed, in nanoseconds.
    """

    name: str
    num_bytes: int
    changed: int


@dataclass(frozen=True, slots=True)
class Plan:
    """What a conversion makes of what; `stems` are the names of the files to make, without suffix."""

    target: Target
    sources: tuple[Source, ...]
    stems: tuple[str, ...]

    def makes(self, name: str) -> bool:
        """Is this the name of a file that the conversion makes?"""
        stem = self.target.stem(name)
        return stem is not None and stem in self.stems


class Manifest:
    """The file, locked for one process; a context manager.

    Attributes:
        plan: of the conversion that the folder holds, None for a new one.
        done: the sources that are done, by number.

    Raises:
        OutputError: the folder or the file cannot be made or written.
        UsageError: another process is at work in the folder.
        DataError: the file is damaged.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.plan: Plan | None = None
        self.done: dict[int, Converted] = {}
        self._journal = Journal(folder, MANIFEST, "conversion")

    def __enter__(self) -> Self:
        self._journal.__enter__()
        try:
            self._read()
        except BaseException as error:
            self._journal.__exit__(type(error), error, error.__traceback__)
            raise
        return self

    def begin(self, plan: Plan) -> None:
        """Writes the plan of a new conversion."""
        self.plan = plan
        self._journal.add({"version": _VERSION, **asdict(plan)})

    def add(self, done: Converted) -> None:
        """Notes a source that is done."""
        self.done[done.number] = done
        self._journal.add(asdict(done))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._journal.__exit__(kind, error, trace)

    def _read(self) -> None:
        try:
            values = [json.loads(line) for line in self._journal.lines]
            if values:
                self.plan = _plan(values[0])
                for value in values[1:]:
                    done = _converted(value, self.plan)
                    self.done[done.number] = done
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise DataError(
                f"{self._journal.path}: not a list of what was converted, as this version writes it "
                f"({error}). {ADVICE}, or remove this file and what was converted into the folder."
            ) from None


def check_same(folder: str, old: Plan, new: Plan) -> None:
    """Refuses to go on with a conversion of other sources, or with other settings.

    Raises:
        UsageError: with what was and what is.
    """
    if old.target != new.target:
        raise UsageError(
            f"{folder}: was begun with {_options(old.target)}, now {_options(new.target)}. Give the same, or "
            f"{ADVICE[0].lower()}{ADVICE[1:]}."
        )
    if old.sources == new.sources:
        return
    before = {source.name: source for source in old.sources}
    now = {source.name: source for source in new.sources}
    changed = next((name for name in before if name in now and before[name] != now[name]), None)
    if changed is not None:
        then, today = before[changed].num_bytes, now[changed].num_bytes
        sizes = f"{then:,} bytes then, {today:,} now" if then != today else "as long as before"
        difference = f"{changed} has changed since ({sizes})"
    else:
        missing, added = sorted(before.keys() - now.keys()), sorted(now.keys() - before.keys())
        difference = "; ".join(
            f"{names[0]}{f' and {len(names) - 1} more' if len(names) > 1 else ''} {what}"
            for names, what in (
                (missing, "was there then and is not now"),
                (added, "is there now and was not then"),
            )
            if names
        )
        difference = difference or "in another order"
    raise UsageError(
        f"{folder}: holds the conversion of {_files(old.sources)}, now {_files(new.sources)}: {difference}. "
        f"Give the same files, or {ADVICE[0].lower()}{ADVICE[1:]}."
    )


def _options(target: Target) -> str:
    parts = [f"--to {target.to}"]
    parts += [f"--videos-per-file {target.videos_per_file}"] if target.videos_per_file else []
    parts += [f"--compression {target.compression}"] if target.compression else []
    return " ".join(parts)


def _files(sources: Sequence[Source]) -> str:
    total = sum(source.num_bytes for source in sources)
    return f"{len(sources)} file{'s' if len(sources) > 1 else ''} of {total:,} bytes"


def _plan(values: dict[str, Any]) -> Plan:
    if values["version"] != _VERSION:
        raise ValueError(f"version {values['version']!r}, wanted {_VERSION}")
    target = Target(**values["target"])
    if target.videos_per_file is not None:
        _whole_number(target.videos_per_file)
    if not isinstance(target.suffix, str):  # a KeyError for a kind or compression that does not exist
        raise ValueError("no such kind of file")
    sources = tuple(Source(**source) for source in values["sources"])
    for source in sources:
        _text(source.name)
        _whole_number(source.num_bytes)
        if type(source.changed) is not int:
            raise ValueError(f"time {source.changed!r}")
    stems = tuple(_text(stem) for stem in values["stems"])
    if len(stems) != len(sources):
        raise ValueError(f"{len(stems)} names for {len(sources)} sources")
    return Plan(target, sources, stems)


def _converted(values: dict[str, Any], plan: Plan) -> Converted:
    """A source that is done, of files that the plan makes of it: others are never taken for them."""
    outputs = [(_text(name), _whole_number(size)) for name, size in values["outputs"]]
    if not isinstance(values["damage"], list):
        raise TypeError("damage that is no list")
    done = Converted(**{**values, "outputs": outputs, "damage": [*map(_text, values["damage"])]})
    for count in (done.number, done.num_videos, done.num_frames, done.num_bytes, done.num_damaged):
        _whole_number(count)
    if done.number >= len(plan.stems):
        raise ValueError(f"source {done.number} of {len(plan.stems)}")
    made = [plan.target.name(plan.stems[done.number], part) for part in range(len(outputs))]
    if (
        not outputs
        or [name for name, _ in outputs] != made
        or (plan.target.videos_per_file is None and made[1:])
    ):
        raise ValueError(f"source {done.number} with files that are not made of it")
    return done


def _text(value: object) -> str:
    if not isinstance(value, str) or "\0" in value:
        raise ValueError(f"{value!r:.60} where a text was wanted")
    return value


def _whole_number(value: object) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r:.60} where a whole number was wanted")
    return value
