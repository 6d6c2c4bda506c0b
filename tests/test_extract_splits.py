from __future__ import annotations

from collections import defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nextvlad.errors import UsageError
from nextvlad.extract_clips import Draft
from nextvlad.extract_splits import SplitOptions, split_groups, with_splits
from nextvlad.video_files import VideoFile


def draft(name: str, *, split: str | None = None, group: str | None = None) -> Draft:
    return Draft(VideoFile(f"/clips/{name}", name), name, ("a",), split, group, None, None, f"line of {name}")


_GROUPS = st.lists(st.text(max_size=3), min_size=1, max_size=60)
_FRACTIONS = st.sampled_from(
    [(0.8, 0.1, 0.1), (0.5, 0.5, 0.0), (0.0, 0.5, 0.5), (0.34, 0.33, 0.33), (1.0, 0.0, 0.0)]
)


@settings(deadline=None)
@given(_GROUPS, _FRACTIONS)
def test_a_group_is_never_parted(groups: list[str], fractions: tuple[float, float, float]) -> None:
    splits, moved = split_groups(groups, fractions)
    where = defaultdict(set)
    for group, split in zip(groups, splits, strict=True):
        where[group].add(split)
    assert all(len(found) == 1 for found in where.values())
    wanted = {split for split, share in zip(("train", "valid", "test"), fractions, strict=True) if share}
    assert set(splits) <= wanted
    if len(where) >= len(wanted):
        assert set(splits) == wanted  # none empty
    if not moved:  # then more videos move none of those that were there
        again, helped = split_groups([*groups, "another", "one more"], fractions)
        if not helped:
            assert again[: len(groups)] == splits


def test_shares_come_near_the_fractions() -> None:
    splits, moved = split_groups([f"video {number}" for number in range(4000)], (0.7, 0.2, 0.1))
    assert not moved
    assert splits.count("train") == pytest.approx(2800, abs=120)
    assert splits.count("valid") == pytest.approx(800, abs=100)


def test_a_hash_that_stays() -> None:
    # Written down: a change of it would move videos of people who extract again.
    assert split_groups(["a", "b", "c", "d", "e", "f"], (0.5, 0.25, 0.25))[0] == HASHED


# By the first byte of SHA-256: a 0.79, b 0.24, c 0.18, d 0.09, e 0.25 (nearest to valid), f 0.14.
HASHED = ["test", "train", "train", "train", "valid", "train"]


def test_what_the_labels_say_wins() -> None:
    found, how = with_splits(
        [draft("a", split="test"), draft("b", split="train")], SplitOptions(), labelled=True
    )
    assert [one.split for one in found] == ["test", "train"]
    assert how == "as the labels say"
    with pytest.raises(UsageError, match=r"line of b: no split, but line of a has one \(test\)"):
        with_splits([draft("a", split="test"), draft("b")], SplitOptions(), labelled=True)


def test_a_group_in_two_splits_is_refused() -> None:
    drafts = [draft("a", split="test", group="tape"), draft("b", split="train", group="tape")]
    with pytest.raises(UsageError, match=r"group 'tape' is in test \(line of a\) and in train \(line of b\)"):
        with_splits(drafts, SplitOptions(), labelled=True)


def test_groups_by_a_pattern() -> None:
    drafts = [draft(f"tape{tape}_{number}.mp4") for tape in range(20) for number in range(5)]
    found, how = with_splits(drafts, SplitOptions(group_pattern=r"^(tape\d+)_"), labelled=True)
    assert "each group's name" in how
    where = defaultdict(set)
    for one in found:
        assert one.group == one.file.name.split("_")[0]
        where[one.group].add(one.split)
    assert all(len(splits) == 1 for splits in where.values())
    assert {one.split for one in found} == {"train", "valid", "test"}
    with pytest.raises(UsageError, match=r"finds nothing in 1 of 101 names, first 'x.mp4'"):
        with_splits([*drafts, draft("x.mp4")], SplitOptions(group_pattern="tape"), labelled=True)
    with pytest.raises(UsageError, match="not a regular expression"):
        with_splits(drafts, SplitOptions(group_pattern="("), labelled=True)


def test_folders_called_like_splits() -> None:
    drafts = [draft(f"{split}/dog/{split}.mp4") for split in ("train", "val", "test")]
    found, how = with_splits(drafts, SplitOptions(), labelled=True)
    assert [one.split for one in found] == ["train", "valid", "test"]
    assert how == "as the folders are called"
    # The folder of a label may be called so, and all being in one says nothing.
    for names in (["train/1.mp4", "test/2.mp4"], ["train/dog/1.mp4", "train/cat/2.mp4"]):
        assert "hash" in with_splits([draft(name) for name in names], SplitOptions(), labelled=True)[1]


def test_without_labels_all_is_test() -> None:
    found, how = with_splits([draft("a"), draft("b")], SplitOptions(), labelled=False)
    assert {one.split for one in found} == {"test"}
    assert "no labels" in how


@pytest.mark.parametrize("fractions", [(0.5, 0.5, 0.5), (1.2, -0.2, 0.0), (0.0, 0.0, 0.0)])
def test_fractions_that_are_none(fractions: tuple[float, float, float]) -> None:
    with pytest.raises(UsageError, match="--fractions"):
        SplitOptions(fractions)


def test_help_for_an_empty_split_is_told() -> None:
    splits, moved = split_groups(["x", "y", "z"], (0.98, 0.01, 0.01))
    assert sorted(splits) == ["test", "train", "valid"]
    assert moved == ["valid", "test"]
