from __future__ import annotations

import gc
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nextvlad.config import StreamConfig
from nextvlad.data.batch import FrameBatch, pack
from nextvlad.data.packer import Packer, ReusedMemory
from nextvlad.data.video_record import VideoRecord
from nextvlad.errors import RecordError

STREAMS = (StreamConfig(name="rgb", size=4), StreamConfig(name="audio", size=2))
NUM_CLASSES = 5


def video(name: str, lengths: dict[str, int], seed: int, **more: Any) -> VideoRecord:
    numbers = np.random.default_rng(seed)
    streams = {
        stream.name: numbers.integers(0, 256, (lengths[stream.name], stream.size), np.uint8)
        for stream in STREAMS
        if stream.name in lengths
    }
    return VideoRecord(name, numbers.integers(0, NUM_CLASSES, numbers.integers(0, 4)), streams, **more)


def contents(batch: FrameBatch) -> list[Any]:
    streams = [
        (name, frames.values.dtype, frames.values.tolist(), frames.values.shape, frames.offsets.tolist())
        for name, frames in batch.streams.items()
    ]
    rated = None if batch.rated is None else batch.rated.tolist()
    return [batch.video_ids, batch.labels.tolist(), rated, streams]


videos = st.builds(
    video,
    st.text("ab", max_size=3),
    st.dictionaries(st.sampled_from(["rgb", "audio"]), st.integers(0, 9)),
    st.integers(0, 1000),
    rated=st.sampled_from([None, None, np.array([0, 3])]),
)


@settings(deadline=None)
@given(st.lists(st.lists(videos, min_size=1, max_size=6), min_size=1, max_size=4), st.booleans())
def test_one_by_one_gives_what_all_at_once_does(batches: list[list[VideoRecord]], hold: bool) -> None:
    packer = Packer(STREAMS, NUM_CLASSES, batch_size=6)
    held = []
    for number, records in enumerate(batches):
        if number % 2:  # whole batches may hold floats
            for record in records:
                record.streams = {name: f.astype(np.float32) / 3 for name, f in record.streams.items()}
        for record in records:
            packer.add(record)
        assert len(packer) == len(records)
        packed = packer.finish()
        batch = packed.batch()
        wanted = contents(pack(records, STREAMS, NUM_CLASSES).batch())
        assert contents(batch) == wanted
        assert contents(packed.copy(lambda size: torch.empty(size, dtype=torch.uint8)).batch()) == wanted
        if hold:
            held.append((batch, contents(batch)))
    for batch, was in held:
        assert contents(batch) == was


def test_a_video_far_longer_than_those_before() -> None:
    packer = Packer(STREAMS, NUM_CLASSES, batch_size=3)
    for lengths in ([1, 1, 1], [1, 400, 2], [1]):
        records = [video("v", {"rgb": n, "audio": 2 * n}, n) for n in lengths]
        for record in records:
            packer.add(record)
        assert contents(packer.finish().batch()) == contents(pack(records, STREAMS, NUM_CLASSES).batch())


def test_two_kinds_of_values_do_not_mix() -> None:
    packer = Packer(STREAMS, NUM_CLASSES, batch_size=3)
    packer.add(video("nothing", {}, 0))
    packer.add(video("x", {"rgb": 1}, 1))
    floats = video("y", {"rgb": 1}, 2)
    floats.streams["rgb"] = floats.streams["rgb"].astype(np.float32)
    with pytest.raises(RecordError, match="video y: stream rgb holds float32, that of video x holds uint8"):
        packer.add(floats)


def test_memory_is_used_again_once_nobody_has_any_part_of_it() -> None:
    memory = ReusedMemory()
    first = memory.allocate(100)
    address = first.data_ptr()
    part = first[10:20].view(2, 5).numpy()
    del first
    gc.collect()
    second = memory.allocate(100)
    assert second.data_ptr() != address
    del part
    gc.collect()
    assert memory.allocate(90).data_ptr() == address
    assert memory.allocate(200).shape == (200,)


def test_one_long_video_does_not_ask_for_a_batch_of_such(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nextvlad.data.packer._LARGEST_GUESS", 1 << 12)
    packer = Packer(STREAMS, NUM_CLASSES, batch_size=1000)
    packer.add(video("long", {"rgb": 2000, "audio": 10}, 0))
    assert [part.room for part in packer.finish().parts] == [2000 * 4, 1 << 12]


def test_two_blocks_do_for_one_batch_in_use_and_one_in_the_making() -> None:
    packer = Packer(STREAMS, NUM_CLASSES, batch_size=2)
    seen = set()
    batch = None
    for number in range(20):
        for _ in range(2):
            packer.add(video("v", {"rgb": 20, "audio": 20}, number))
        batch = packer.finish().batch()
        if number > 4:
            seen.add(batch.streams["rgb"].values.data_ptr())
    assert len(seen) == 2


def test_room_is_that_of_the_batches_before() -> None:
    asked: list[int] = []

    def allocate(size: int) -> torch.Tensor:
        asked.append(size)
        return torch.empty(size, dtype=torch.uint8)

    packer = Packer(STREAMS, NUM_CLASSES, batch_size=8, allocate=allocate)
    for _ in range(3):
        for number in range(8):
            packer.add(video("v", {"rgb": 20, "audio": 20}, number))
        packer.finish()
    assert len(asked) == 4  # at first once for each stream, then once for all
