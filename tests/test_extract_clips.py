from __future__ import annotations

import os
import unicodedata
from pathlib import Path
from typing import Literal

import pytest

from nextvlad.errors import UsageError
from nextvlad.extract_clips import Draft, all_files, match_rows, with_ids
from nextvlad.extract_labels import read_table
from nextvlad.video_files import expand_videos, shown

Form = Literal["NFC", "NFD"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """clips/ with files in it, nothing of which is looked at here; the current folder is above it."""
    for name in (
        "dog/1.mp4",
        "dog/2.MKV",
        "cat/1.mp4",
        "cat/_x-1_000020_000030.mp4",
        "whole.webm",
        "dog/.hidden.mp4",
        "dog/notes.txt",
        ".cache/3.mp4",
    ):
        path = tmp_path / "clips" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def names(*given: str) -> list[str]:
    return [file.name for file in expand_videos(given)]


def test_a_link_that_leads_nowhere_stops_no_others(folder: Path) -> None:
    (folder / "clips/dog/0.mp4").symlink_to("gone.mp4")
    (folder / "clips/dog/00.mp4").symlink_to("00.mp4")
    (folder / "clips/dog/3.mp4").symlink_to("1.mp4")  # the same file as dog/1.mp4
    assert names("clips/dog") == ["0.mp4", "00.mp4", "1.mp4", "2.MKV"]


def drafts(folder: Path, table: str, *given: str) -> list[Draft]:
    (folder / "labels.csv").write_text(table)
    rows, _ = read_table(folder / "labels.csv")
    return with_ids(match_rows(expand_videos(given or ("clips",)), rows).drafts)


def test_what_names_videos(folder: Path) -> None:
    all_of_them = ["whole.webm", "cat/1.mp4", "cat/_x-1_000020_000030.mp4", "dog/1.mp4", "dog/2.MKV"]
    assert names("clips") == all_of_them
    assert names("clips/dog") == ["1.mp4", "2.MKV"]
    assert names("clips/*/1.mp4") == ["cat/1.mp4", "dog/1.mp4"]
    assert names("clips/dog/notes.txt") == ["notes.txt"]  # named, so taken
    (folder / "some.list").write_text("# two\nclips/dog/1.mp4\nclips/cat\n")
    assert names("some.list") == ["1.mp4", "1.mp4", "_x-1_000020_000030.mp4"]
    os.link("clips/whole.webm", "clips/again.webm")
    assert names("clips/whole.webm", "clips", "clips/dog/../whole.webm").count("whole.webm") == 1
    assert len(names("clips", "clips/whole.webm")) == len(all_of_them)


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ("none.mp4", "no such file"),
        ("clips/.cache/..", ""),
        ("clips/*.avi", "no file matches"),
        ("empty", "no videos in this folder"),
    ],
)
def test_what_names_no_videos(given: str, reason: str, folder: Path) -> None:
    (folder / "empty").mkdir()
    if reason:
        with pytest.raises(UsageError, match=reason):
            names(given)
    else:
        assert names(given)


def test_folders_as_labels(folder: Path) -> None:
    found = all_files(expand_videos(["clips"]), folders_are_labels=True, given=["clips/"])
    assert [draft.labels for draft in found.drafts] == [("cat",), ("cat",), ("dog",), ("dog",)]
    assert [file.name for file in found.without_labels] == ["whole.webm"]
    assert [draft.video_id for draft in with_ids(found.drafts)] == [
        "cat/1",
        "_x-1_000020_000030",
        "dog/1",
        "2",
    ]
    with pytest.raises(UsageError, match="lie directly in the folder"):
        all_files(expand_videos(["clips/dog"]), folders_are_labels=True, given=["clips/dog"])
    by_glob = all_files(expand_videos(["clips/*/*.mp4"]), folders_are_labels=True, given=["clips/*/*.mp4"])
    assert {draft.labels for draft in by_glob.drafts} == {("cat",), ("dog",)}


@pytest.mark.parametrize(
    "path", ["clips/dog/1.mp4", "dog/1.mp4", "dog/1", "{folder}/clips/dog/1.mp4", "./clips/dog/../dog/1.mp4"]
)
def test_ways_to_name_a_file_in_a_table(path: str, folder: Path) -> None:
    (draft,) = drafts(folder, f"{path.format(folder=folder)},good\n")
    assert draft.file.name == "dog/1.mp4"
    assert draft.labels == ("good",)


def test_a_name_alone_or_without_suffix(folder: Path) -> None:
    assert [draft.file.name for draft in drafts(folder, "2.MKV,a\nwhole,b\n")] == ["whole.webm", "dog/2.MKV"]


def test_a_table_beside_the_videos(folder: Path) -> None:
    (folder / "clips" / "labels.csv").write_text("dog/1.mp4,good\n")
    rows, _ = read_table(folder / "clips" / "labels.csv")
    assert len(match_rows(expand_videos(["clips/dog/1.mp4"]), rows).drafts) == 1


def test_what_does_not_come_together(folder: Path) -> None:
    (folder / "labels.csv").write_text("dog/1.mp4,a\ndog/9.mp4,b\nmouse/1.mp4,c\n")
    rows, _ = read_table(folder / "labels.csv")
    found = match_rows(expand_videos(["clips"]), rows)
    assert [row.video for row in found.missing] == ["dog/9.mp4", "mouse/1.mp4"]  # no 1.mp4 of another folder
    assert len(found.without_labels) == 4
    with pytest.raises(
        UsageError, match=r"labels.csv, line 1: 'x.mp4' is none of the 5 videos.*'whole.webm'"
    ):
        drafts(folder, "x.mp4,a\ny.mp4,b\n")


def test_a_name_of_several_files(folder: Path) -> None:
    with pytest.raises(
        UsageError, match=r"line 1: '1.mp4' may be any of 2 files: clips/cat/1.mp4, clips/dog/1.mp4"
    ):
        drafts(folder, "1.mp4,a\n")


def test_rows_of_one_video(folder: Path) -> None:
    table = "path,labels,split\ndog/1.mp4,a,train\nwhole.webm,c,train\ndog/1.mp4,b;a,train\n"
    assert [draft.labels for draft in drafts(folder, table)] == [("c",), ("a", "b")]
    with pytest.raises(
        UsageError, match=r"line 3: 'dog/1.mp4' a second time, with split 'test', after .*line 2 with 'train'"
    ):
        drafts(folder, "path,labels,split\ndog/1.mp4,a,train\ndog/1.mp4,b,test\n")


def test_parts_of_one_file(folder: Path) -> None:
    table = "path,labels,start,end\nwhole.webm,b,10,20\nwhole.webm,a,0,10\nwhole.webm,c,20.5,\n"
    found = drafts(folder, table)
    assert [(draft.video_id, draft.labels) for draft in found] == [
        ("whole_0_10", ("a",)),
        ("whole_10_20", ("b",)),
        ("whole_20.5_", ("c",)),
    ]


def test_ids(folder: Path) -> None:
    with pytest.raises(UsageError, match=r"line 2: the id 'x' a second time, after .*line 3"):
        drafts(folder, "path,labels,id\ndog/1.mp4,a,x\ncat/1.mp4,b,x\n")
    (folder / "clips" / "dog" / "1.mkv").write_bytes(b"x")
    found = drafts(folder, "dog/1.mp4,a\ndog/1.mkv,a\ncat/1.mp4,a\n")
    assert [draft.video_id for draft in found] == ["cat/1", "dog/1.mkv", "dog/1.mp4"]


def test_kinetics_files(folder: Path) -> None:
    table = (
        "label,youtube_id,time_start,time_end,split\n"
        "a,_x-1,20,30,train\n"  # cut already
        "b,whole,5,15,train\n"  # the whole video: to be cut
        "c,gone,0,10,val\n"
    )
    cut, whole = sorted(drafts(folder, table), key=lambda draft: draft.video_id)
    assert (cut.file.name, cut.start_seconds, cut.video_id) == (
        "cat/_x-1_000020_000030.mp4",
        None,
        "_x-1_000020_000030",
    )
    assert (whole.file.name, whole.start_seconds, whole.end_seconds) == ("whole.webm", 5, 15)
    assert whole.video_id == "whole_000005_000015"


def test_names_that_are_not_text(folder: Path) -> None:
    path = os.fsencode(str(folder / "clips" / "dog")) + b"/caf\xe9 \n\xc3\xa9.mp4"
    try:
        with open(path, "wb") as file:
            file.write(b"x")
    except OSError:
        pytest.skip("this file system takes names in UTF-8 only")
    found = with_ids(
        all_files(expand_videos(["clips/dog"]), folders_are_labels=False, given=["clips/dog"]).drafts
    )
    (draft,) = (draft for draft in found if draft.video_id.startswith("caf"))
    assert draft.video_id == "caf\\xe9 \\x0a\xe9"
    assert shown(draft.file.path).encode()


def test_names_cannot_move_the_cursor_of_a_terminal() -> None:
    assert shown("a\nb \x1b[31m \x9b é 日") == "a\\x0ab \\x1b[31m \\x9b é 日"


@pytest.mark.parametrize("on_disk", ["NFC", "NFD"])
@pytest.mark.parametrize("in_table", ["NFC", "NFD"])
def test_letters_with_accents_and_slashes_of_windows(on_disk: Form, in_table: Form, folder: Path) -> None:
    name, label = "caf\xe9.mp4", "caf\xe9"
    (folder / "clips" / "dog" / unicodedata.normalize(on_disk, name)).write_bytes(b"coffee")
    (draft,) = drafts(folder, unicodedata.normalize(in_table, f"dog\\{name},{label}\n"))
    assert os.path.basename(draft.file.path) == unicodedata.normalize(on_disk, name)
    assert draft.labels == (label,)
