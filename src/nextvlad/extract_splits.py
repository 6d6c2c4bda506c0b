"""Train, valid or test: by what the labels say, by folders, or by a hash that never parts a group."""

from __future__ import annotations

import bisect
import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from nextvlad.errors import UsageError
from nextvlad.extract_clips import Draft
from nextvlad.extract_labels import split_of_folder
from nextvlad.extract_plan import SPLITS
from nextvlad.video_files import shown


@dataclass(frozen=True)
class SplitOptions:
    """How clips are dealt out where the labels do not say it."""

    fractions: tuple[float, float, float] = (0.8, 0.1, 0.1)
    """Shares of the groups that go to train, valid and test."""
    group_pattern: str | None = None
    """A regular expression that finds the group in a file's name: its first (...), or all it matches."""

    def __post_init__(self) -> None:
        if min(self.fractions) < 0 or not abs(sum(self.fractions) - 1.0) < 1e-6:
            raise UsageError(
                f"--fractions: got {' '.join(map(str, self.fractions))}, wanted three numbers from 0 on "
                "whose sum is 1, for train, valid and test."
            )


def with_splits(drafts: Sequence[Draft], options: SplitOptions, *, labelled: bool) -> tuple[list[Draft], str]:
    """The clips with their splits, and one sentence about how they came to them.

    Args:
        drafts: the clips; `split` where the labels say one.
        options: for those without.
        labelled: whether labels were asked for at all; without, all go to test.

    Raises:
        UsageError: some have a split and others none; a group in two splits; a bad pattern.
    """
    drafts = _with_groups(drafts, options.group_pattern)
    given = [draft for draft in drafts if draft.split]
    if given and len(given) < len(drafts):
        missing = next(draft for draft in drafts if not draft.split)
        raise UsageError(
            f"{missing.where}: no split, but {given[0].where} has one ({given[0].split}). Give all of them "
            "one, or none."
        )
    if given:
        _check_groups(drafts)
        return list(drafts), "as the labels say"
    if not labelled:
        return [replace(draft, split="test") for draft in drafts], "all in test, since there are no labels"
    by_folder = [_split_of_path(draft.file.path) for draft in drafts]
    if all(by_folder) and len(set(by_folder)) > 1:
        found = [replace(draft, split=split) for draft, split in zip(drafts, by_folder, strict=True)]
        _check_groups(found)
        return found, "as the folders are called"
    splits, moved = split_groups([_source(draft) for draft in drafts], options.fractions)
    of_what = "group" if any(draft.group for draft in drafts) else "video"
    sentence = f"by the hash of each {of_what}'s name, {' '.join(f'{part:g}' for part in options.fractions)}"
    if moved:
        sentence += f"; {' and '.join(moved)} would have been empty and got the nearest {of_what}"
    return [replace(draft, split=split) for draft, split in zip(drafts, splits, strict=True)], sentence


def split_groups(groups: Sequence[str], fractions: Sequence[float]) -> tuple[list[str], list[str]]:
    """A split for each clip, the same for all of a group, and the splits that had to be helped.

    A group's place depends on its name alone, so that more videos do not move those that were there, but a
    split that would be empty and should not be takes the group nearest to it.

    >>> split_groups(["a", "b", "a"], [0.5, 0.5, 0])[0]
    ['valid', 'train', 'valid']
    """
    bounds = [sum(fractions[: number + 1]) for number in range(len(SPLITS))]
    places = {group: _place(group) for group in groups}
    wanted = [number for number in range(len(SPLITS)) if fractions[number] > 0]

    def natural(place: float) -> int:
        # Of two equal bounds (an empty share between) the first is not taken; rounding may leave a rest.
        return min(bisect.bisect_right(bounds, place), max(wanted))

    chosen = {group: natural(place) for group, place in places.items()}
    moved = []
    for number in wanted:
        if number in chosen.values():
            continue
        counts = [list(chosen.values()).count(other) for other in range(len(SPLITS))]
        spare = [group for group, other in chosen.items() if counts[other] > 1]
        if spare:
            low, high = bounds[number] - fractions[number], bounds[number]
            nearest = min(spare, key=lambda group: (max(low - places[group], places[group] - high), group))
            chosen[nearest] = number
            moved.append(SPLITS[number])
    return [SPLITS[chosen[group]] for group in groups], moved


def _source(draft: Draft) -> str:
    """What is not to be parted: its group, its file where it is a part of one, or itself."""
    is_part = draft.start_seconds is not None or draft.end_seconds is not None
    return draft.group or (draft.file.name if is_part else draft.video_id)


def _place(group: str) -> float:
    """In [0, 1), by the name alone."""
    return int.from_bytes(hashlib.sha256(group.encode(errors="surrogateescape")).digest()[:6]) / 2**48


def _with_groups(drafts: Sequence[Draft], pattern: str | None) -> list[Draft]:
    if pattern is None:
        return list(drafts)
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise UsageError(f"--group-pattern {pattern!r}: not a regular expression ({error}).") from error
    found, without = [], []
    for draft in drafts:
        match = compiled.search(draft.file.name)
        group = (match.group(1) if compiled.groups else match.group()) if match else None
        if not group:
            without.append(draft.file.name)
        found.append(replace(draft, group=group))
    if without:
        raise UsageError(
            f"--group-pattern {pattern!r}: finds nothing in {len(without):,} of {len(drafts):,} names, first "
            f"{shown(without[0])!r}. Each name has to have a group."
        )
    return found


def _check_groups(drafts: Sequence[Draft]) -> None:
    """Refuses a group in two splits. Kinetics' own splits are taken as they are."""
    first: dict[str, Draft] = {}
    for draft in drafts:
        if draft.group is None or draft.is_kinetics:
            continue
        other = first.setdefault(draft.group, draft)
        if other.split != draft.split:
            raise UsageError(
                f"group {shown(draft.group)!r} is in {other.split} ({other.where}) and in {draft.split} "
                f"({draft.where}), so a model would be tested on what it was trained on. Give its clips one "
                "split, or leave the split out."
            )


def _split_of_path(path: str) -> str | None:
    """That of the nearest folder called like a split, above the one that the file is in."""
    folders = os.path.dirname(os.path.abspath(path)).split(os.sep)[:-1]
    return next((split for name in reversed(folders) if (split := split_of_folder(name))), None)
