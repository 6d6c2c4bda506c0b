from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nextvlad.config import StreamConfig
from nextvlad.data.batch import FrameBatch, collate, pack
from nextvlad.data.video_record import VideoRecord
from nextvlad.errors import RecordError

RGB, AUDIO = StreamConfig(name="rgb", size=4), StreamConfig(name="audio", size=2)
STREAMS = (RGB, AUDIO)


def frames(count: int, size: int, start: int = 0) -> np.ndarray[Any, Any]:
    return (np.arange(start, start + count * size) % 256).astype(np.uint8).reshape(count, size)


def record(name: str = "v", labels: tuple[int, ...] = (), **streams: np.ndarray[Any, Any]) -> VideoRecord:
    return VideoRecord(name, np.array(labels, np.int64), streams)


def three() -> list[VideoRecord]:
    wide = frames(3, 9)[:, 2:6]  # strided, as the parser gives it
    return [
        record("one", (2, 0, 2), rgb=wide, audio=frames(2, 2, 50)),
        record("two", (), rgb=frames(1, 4, 100)),
        record("three", (1,), rgb=np.zeros((0, 0), np.uint8), audio=frames(4, 2, 80)),
    ]


def same(left: FrameBatch, right: FrameBatch) -> bool:
    return (
        left.video_ids == right.video_ids
        and torch.equal(left.labels, right.labels)
        and left.streams.keys() == right.streams.keys()
        and all(
            torch.equal(left.streams[name].values, right.streams[name].values)
            and torch.equal(left.streams[name].offsets, right.streams[name].offsets)
            for name in left.streams
        )
    )


def test_frames_of_all_videos_lie_one_behind_the_other() -> None:
    batch = collate(three(), streams=STREAMS, num_classes=3)
    assert batch.num_videos == 3
    assert batch.video_ids == ["one", "two", "three"]
    assert batch.labels.tolist() == [[True, False, True], [False, False, False], [False, True, False]]
    rgb, audio = batch.streams["rgb"], batch.streams["audio"]
    assert rgb.offsets.tolist() == [0, 3, 4, 4]
    assert audio.offsets.tolist() == [0, 2, 2, 6]
    assert rgb.values.dtype == torch.uint8
    assert rgb.offsets.dtype == torch.int64
    assert rgb.values.tolist() == [*frames(3, 9)[:, 2:6].tolist(), *frames(1, 4, 100).tolist()]
    assert audio.values.tolist() == [*frames(2, 2, 50).tolist(), *frames(4, 2, 80).tolist()]


def test_the_batch_is_a_copy() -> None:
    values = frames(2, 4)
    batch = collate([record(rgb=values)], streams=[RGB], num_classes=1)
    values[:] = 9
    assert batch.streams["rgb"].values.tolist() == frames(2, 4).tolist()


def test_an_empty_batch_has_all_streams() -> None:
    batch = FrameBatch.empty(STREAMS, 5)
    assert batch.num_videos == 0
    assert batch.labels.shape == (0, 5)
    assert batch.streams["audio"].values.shape == (0, 2)
    assert batch.streams["audio"].offsets.tolist() == [0]
    assert batch.split(3) == []
    assert batch.padded("rgb")[0].shape == (0, 0, 4)


def test_float_streams_stay_float() -> None:
    values = frames(2, 4).astype(np.float32) / 3
    batch = collate([record(rgb=values), record()], streams=[RGB], num_classes=1)
    assert batch.streams["rgb"].values.dtype == torch.float32
    assert torch.equal(batch.streams["rgb"].values, torch.from_numpy(values))


def test_padding_and_mask() -> None:
    batch = collate(three(), streams=STREAMS, num_classes=3)
    values, mask = batch.padded("audio")
    assert values.shape == (3, 4, 2)
    assert mask.tolist() == [[True, True, False, False], [False] * 4, [True] * 4]
    assert torch.equal(values[mask], batch.streams["audio"].values)
    assert not values[~mask].any()


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 3)), max_size=7), st.integers(1, 9), st.data())
def test_parts_of_a_batch_are_batches(
    lengths: list[tuple[int, int]], parts: int, data: st.DataObject
) -> None:
    records = [
        record(str(index), (index % 3,), rgb=frames(rgb, 4, index), audio=frames(audio, 2, 3 * index))
        for index, (rgb, audio) in enumerate(lengths)
    ]
    batch = collate(records, streams=STREAMS, num_classes=3)
    start = data.draw(st.integers(0, len(records)))
    stop = data.draw(st.integers(0, len(records)))
    assert same(batch[start:stop], collate(records[start:stop], streams=STREAMS, num_classes=3))
    pieces = batch.split(parts)
    assert len(pieces) == min(parts, len(records))
    assert [name for piece in pieces for name in piece.video_ids] == batch.video_ids
    assert all(piece.num_videos for piece in pieces)
    if records:
        assert max(p.num_videos for p in pieces) - min(p.num_videos for p in pieces) <= 1


def test_only_neighbours_and_at_least_one_part() -> None:
    batch = collate(three(), streams=STREAMS, num_classes=3)
    with pytest.raises(ValueError, match="got step 2, wanted neighbouring videos"):
        batch[::2]
    with pytest.raises(ValueError, match="got 0 parts, wanted 1 or more"):
        batch.split(0)


def test_moves_as_a_whole() -> None:
    batch = collate(three(), streams=STREAMS, num_classes=3)
    assert same(batch.to("cpu"), batch)
    moved = batch.to("meta", non_blocking=True)
    assert moved.labels.device.type == moved.streams["rgb"].offsets.device.type == "meta"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="page-locked memory needs CUDA")
def test_pinned_batches_are_equal() -> None:
    packed = pack(three(), STREAMS, 3)
    for pinned in (packed.pin_memory().batch(), packed.batch().pin_memory()):
        assert same(pinned, packed.batch())
        assert pinned.labels.is_pinned()
        assert pinned.streams["audio"].values.is_pinned()


@pytest.mark.parametrize(
    ("video", "message"),
    [
        (
            record("x", rgb=frames(2, 3)),
            "video x: stream rgb has 3 values a frame, wanted 4. Take data of that size, or train a model "
            "with --model.streams rgb:3.",
        ),
        (record("x", (0, 3), rgb=frames(1, 4)), "video x: label 3, wanted 0..2 for 3 classes. Take"),
        (record("x", (-1,), rgb=frames(1, 4)), "video x: label -1, wanted 0..2"),
        (
            record("x", a=frames(1, 128), b=frames(1, 64)),
            "video x: found streams a (128), b (64); the model wants rgb (4), audio (2). Take data that has "
            "them, or train a model of these with --model.streams a:128 b:64.",
        ),
        (record("x", rgb=frames(1, 4), sound=frames(1, 2)), "found streams rgb (4), sound (2); the model"),
        (record("x", rgb=frames(1, 4).astype(np.int64)), "stream rgb holds int64, wanted bytes (uint8) or"),
    ],
)
def test_faults_name_the_video(video: VideoRecord, message: str) -> None:
    with pytest.raises(RecordError) as caught:
        collate([*three(), video], streams=STREAMS, num_classes=3)
    assert message in str(caught.value)


def test_two_kinds_of_values_do_not_mix() -> None:
    mixed = [record("x", rgb=frames(1, 4)), record("y", rgb=frames(1, 4).astype(np.float32))]
    with pytest.raises(RecordError, match="video y: stream rgb holds float32, that of video x holds uint8"):
        collate(mixed, streams=[RGB], num_classes=1)


def test_a_surplus_stream_alone_is_left_out() -> None:
    batch = collate([record(rgb=frames(1, 4), depth=frames(5, 7))], streams=[RGB], num_classes=1)
    assert list(batch.streams) == ["rgb"]
