"""What a folder of features is filled with: which clips, in which shards, with which labels."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

from nextvlad.errors import UsageError
from nextvlad.journal import ADVICE
from nextvlad.provenance import Provenance, compared

SPLITS = ("train", "valid", "test")
_VERSION = 1


@dataclass(frozen=True, slots=True)
class Clip:
    """A clip of the plan.

    Attributes:
        path: its file, as messages name it and as it is opened.
        video_id: of its record.
        labels: class indices, rising.
        shard: the name without suffix of the shard it goes to; begins with its split.
        start_seconds, end_seconds: the part of the file; None: its start, its end.
    """

    path: str
    video_id: str
    labels: tuple[int, ...]
    shard: str
    start_seconds: float | None = None
    end_seconds: float | None = None

    @property
    def split(self) -> str:
        """train, valid or test."""
        return self.shard.rpartition("-")[0]


@dataclass(frozen=True)
class Plan:
    """What a folder is filled with; the same whenever it goes on."""

    clips: tuple[Clip, ...]
    names: tuple[str, ...]
    provenance: Provenance

    @cached_property
    def by_shard(self) -> dict[str, list[int]]:
        """Name of a shard -> numbers of its clips."""
        by_shard: dict[str, list[int]] = {}
        for number, clip in enumerate(self.clips):
            by_shard.setdefault(clip.shard, []).append(number)
        return by_shard


def to_json(plan: Plan) -> dict[str, Any]:
    """Plain JSON values."""
    return {
        "version": _VERSION,
        "provenance": plan.provenance.to_json(),
        "names": plan.names,
        "clips": [asdict(clip) for clip in plan.clips],
    }


def from_json(values: Any, *, where: str) -> Plan:
    """The reverse.

    Raises:
        DataError: names `where`: the provenance was changed.
        ValueError, TypeError, KeyError, AttributeError: it is no plan of this version.
    """
    if values["version"] != _VERSION:
        raise ValueError(f"version {values['version']!r}, wanted {_VERSION}")
    return Plan(
        clips=tuple(Clip(**{**clip, "labels": tuple(clip["labels"])}) for clip in values["clips"]),
        names=tuple(values["names"]),
        provenance=Provenance.from_json(values["provenance"], where=where),
    )


def check_same(folder: str, old: Plan, new: Plan) -> None:
    """Refuses to go on with other videos, labels or settings.

    Raises:
        UsageError: with what was and what is.
    """
    advice = f"Give the same as before, or {ADVICE[0].lower()}{ADVICE[1:]}."
    if old.provenance != new.provenance:
        streams = sorted({*old.provenance.streams, *new.provenance.streams})
        different = [
            name for name in streams if old.provenance.fingerprint(name) != new.provenance.fingerprint(name)
        ]
        table = compared(old.provenance, new.provenance, different, ("then", "now"))
        raise UsageError(f"{folder}: was begun with features made in another way.\n{table}\n{advice}")
    if old.names != new.names:
        raise UsageError(
            f"{folder}: was begun with {len(old.names):,} labels, now there are {len(new.names):,}: "
            f"{_difference(old.names, new.names)}. {advice}"
        )
    before, now = ({clip.video_id: clip for clip in plan.clips} for plan in (old, new))
    if before.keys() != now.keys():
        raise UsageError(
            f"{folder}: was begun with {len(before):,} clips, now there are {len(now):,}: "
            f"{_difference(before, now)}. {advice} New videos can go to a folder of their own; `nextvlad "
            "train` takes several."
        )
    for video_id, clip in before.items():
        if replace(clip, path="") != replace(now[video_id], path=""):  # the folder may have moved
            changed = ", ".join(
                f"{name} {getattr(clip, name)!r} then, {getattr(now[video_id], name)!r} now"
                for name in ("labels", "shard", "start_seconds", "end_seconds")
                if getattr(clip, name) != getattr(now[video_id], name)
            )
            raise UsageError(f"{folder}: {video_id} has changed since this was begun: {changed}. {advice}")


def _difference(old: Any, new: Any) -> str:
    gone, added = sorted(set(old) - set(new)), sorted(set(new) - set(old))
    parts = [
        f"{names[0]!r}{f' and {len(names) - 1:,} more' if len(names) > 1 else ''} {what}"
        for names, what in ((gone, "was there then and is not now"), (added, "is there now and was not then"))
        if names
    ]
    return "; ".join(parts) or "in another order"
