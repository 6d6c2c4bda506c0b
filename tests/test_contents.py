from __future__ import annotations

from pathlib import Path

import numpy as np

from nextvlad.data.contents import Contents, Copies
from nextvlad.data.paddle_pickle import PickleWriter
from nextvlad.data.tfrecord import RecordWriter
from nextvlad.data.video_record import VideoRecord, serialize_video_record
from nextvlad.errors import RecordPlace


def test_both_kinds_of_files_from_any_record_on(tmp_path: Path) -> None:
    streams = {"rgb": np.ones((2, 3), np.uint8), "audio": np.ones((2, 2), np.uint8)}
    videos = [VideoRecord(str(number), np.array([number]), streams) for number in range(4)]
    with RecordWriter(tmp_path / "records") as records:
        for video in videos:
            records.write(serialize_video_record(video))
    with PickleWriter(tmp_path / "pickle") as pickled:
        for video in videos:
            pickled.write(video)
    for name in ("records", "pickle"):
        path, offset = str(tmp_path / name), 0
        for number in range(4):
            with Contents(path, RecordPlace(path, offset, number), None) as contents:
                assert (contents.file is None) == (name == "pickle")
                found = contents.read()
                assert found is not None
                content, place, offset = found
                assert place.number == number
                if isinstance(content, VideoRecord):
                    assert content.video_id == str(number)
                else:
                    assert content.tobytes() == serialize_video_record(videos[number])
        with Contents(path, RecordPlace(path, offset, 4), None) as contents:
            assert contents.read() is None


def test_copies_use_memory_again() -> None:
    copies = Copies(1)
    payload = np.arange(1 << 17, dtype=np.uint32).view(np.uint8)
    first, second = copies.of(payload), copies.of(payload)
    assert first.tobytes() == second.tobytes() == payload.tobytes()
    place = first.ctypes.data
    copies.done(first)
    copies.done(second)  # one more than are kept
    assert copies.of(payload[1:]).ctypes.data == place
    copies.done(copies.of(payload[:9]))  # an allocator has these at hand
    copies.done(None)
    assert not copies._free
