from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from nextvlad.data.sources import expand, read, read_file
from nextvlad.data.tfrecord import RecordWriter, read_records
from nextvlad.data.video_record import VideoRecord, serialize_video_record
from nextvlad.errors import RecordError, UsageError


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to stand in: b, a, .hidden, deep/c and an empty folder."""
    for name in ("b", "a", ".hidden", "deep/c"):
        path = tmp_path / f"{name}.tfrecord"
        path.parent.mkdir(exist_ok=True)
        path.touch()
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.usefixtures("folder")
def test_files_folders_and_globs() -> None:
    assert expand(["b.tfrecord", Path("a.tfrecord")]) == ["b.tfrecord", "a.tfrecord"]
    assert expand(".") == ["./a.tfrecord", "./b.tfrecord"]
    assert expand(["*.tfrecord"]) == ["a.tfrecord", "b.tfrecord"]
    assert expand(["**/*.tfrecord"]) == ["a.tfrecord", "b.tfrecord", "deep/c.tfrecord"]
    assert expand(["*"]) == ["a.tfrecord", "b.tfrecord"]
    assert expand(Path("deep")) == ["deep/c.tfrecord"]


def test_each_file_once(folder: Path) -> None:
    assert expand(["a.tfrecord", "*.tfrecord", str(folder / "b.tfrecord"), "./a.tfrecord"]) == [
        "a.tfrecord",
        "b.tfrecord",
    ]


def test_home_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder))
    assert expand(["~/deep/*"]) == [str(folder / "deep" / "c.tfrecord")]


@pytest.mark.usefixtures("folder")
def test_a_name_with_brackets_is_a_file_first() -> None:
    Path("part[1].tfrecord").touch()
    assert expand(["part[1].tfrecord"]) == ["part[1].tfrecord"]


@pytest.mark.usefixtures("folder")
def test_list_files() -> None:
    Path("deep/train.list").write_bytes(
        b"\xef\xbb\xbf# training\r\n\r\nc.tfrecord\r\n../*.tfrecord\r\n  ../b.tfrecord  \r\ninner.list\r\n"
    )
    Path("deep/inner.list").write_text(f"{Path('a.tfrecord').absolute()}\n")
    assert expand(["deep/train.list"]) == ["deep/c.tfrecord", "deep/../a.tfrecord", "deep/../b.tfrecord"]
    assert expand(["deep/inn*.list"]) == [str(Path("a.tfrecord").absolute())]


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "no data given; name files, folders"),
        (["nowhere.tfrecord"], "nowhere.tfrecord: no such file or folder"),
        (["no*where"], r"no\*where: no file matches. Check the pattern, and quote it"),
        (["dee*"], "no file matches"),
        (["empty"], "empty: no files in this folder. For files in subfolders give 'empty/\\*\\*/"),
        (["missing.list"], "missing.list, line 2: gone.tfrecord: no such file.* relative to its folder"),
        (["blank.list"], "blank.list: names no files; wanted one path a line"),
        (["loop.list"], "loop.list, line 1: loop.list: this .list file leads back to itself"),
    ],
)
def test_what_is_not_there(data: list[str], message: str) -> None:
    Path("missing.list").write_text("a.tfrecord\ngone.tfrecord\n")
    Path("blank.list").write_text("# nothing\n\n")
    Path("loop.list").write_text("loop.list\n")
    with pytest.raises(UsageError, match=message):
        expand(data)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_no_permission(folder: Path) -> None:
    (folder / "x.list").touch(mode=0)
    with pytest.raises(UsageError, match=r"x.list: cannot be read \(Permission denied"):
        expand([folder / "x.list"])
    (folder / "empty").chmod(0)
    with pytest.raises(UsageError, match=r"empty: cannot be listed \(Permission denied"):
        expand([folder / "empty"])


def write_videos(path: Path, *frame_counts: int, wrong: int | None = None) -> None:
    with RecordWriter(path) as writer:
        for number, count in enumerate(frame_counts):
            frames = np.full((count, 3), number, np.uint8)
            payload = serialize_video_record(VideoRecord(f"v{number}", np.array([number]), {"rgb": frames}))
            writer.write(payload[:-2] if number == wrong else payload)


def test_read_gives_copies_that_last(tmp_path: Path) -> None:
    write_videos(tmp_path / "a", 1, 4, 2)
    write_videos(tmp_path / "b", 5)
    videos = list(read([tmp_path / "a", tmp_path / "b"], max_frames=3))
    assert [video.video_id for video in videos] == ["v0", "v1", "v2", "v0"]
    assert [video.streams["rgb"].tolist() for video in videos] == [
        [[0, 0, 0]],
        [[1, 1, 1]] * 3,
        [[2, 2, 2]] * 2,
        [[0, 0, 0]] * 3,
    ]
    for video in videos:
        assert video.streams["rgb"].flags.owndata
        assert video.streams["rgb"].flags.writeable
        assert video.streams["rgb"].flags.c_contiguous


def test_damaged_content_is_told_with_its_place(tmp_path: Path) -> None:
    write_videos(tmp_path / "a", 1, 4, 2, wrong=1)
    place = [record.place for record in read_records(tmp_path / "a")][1]
    with pytest.raises(RecordError, match="the record is not a SequenceExample") as caught:
        list(read(tmp_path / "a"))
    assert caught.value.place == place
    errors: list[RecordError] = []
    assert [video.video_id for video in read(tmp_path / "a", on_damage=errors.append)] == ["v0", "v2"]
    assert [error.place for error in errors] == [place]


def test_damaged_frames_are_told_with_the_video(tmp_path: Path) -> None:
    record = VideoRecord("v0", np.array([0]), {"rgb": np.zeros((2, 3), np.uint8)})
    payload = serialize_video_record(record).replace(
        b"\x0a\x07\x0a\x05\x0a\x03\0\0\0", b"\x0a\x07\x12\x05\x0a\x03\0\0\0", 1
    )
    with RecordWriter(tmp_path / "a") as writer:
        writer.write(payload)
    with pytest.raises(RecordError, match=r"a, byte 0, record 0 \(video v0\): "):
        list(read(tmp_path / "a"))


def test_read_file_goes_on_where_it_was(tmp_path: Path) -> None:
    write_videos(tmp_path / "a", 1, 4, 2)
    places = [place for place, _ in read_file(tmp_path / "a")]
    rest = [record.video_id for _, record in read_file(tmp_path / "a", start=places[1], streams=[])]
    assert rest == ["v1", "v2"]


def test_nothing_of_the_call_is_taken_for_damage(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        list(read(tmp_path / "nowhere", on_damage=lambda error: None))
