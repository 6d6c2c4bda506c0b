from __future__ import annotations

import errno
import gc
import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from makers import values_of, write_records
from nextvlad.config import StreamConfig
from nextvlad.data import processes
from nextvlad.data.batch import FrameBatch
from nextvlad.data.loader import FrameLoader, count_examples, peek_streams
from nextvlad.data.paddle_pickle import PickleWriter
from nextvlad.data.reader import Reader, ReaderPlan, ReaderState
from nextvlad.data.tfrecord import RecordWriter
from nextvlad.data.video_record import VideoRecord
from nextvlad.errors import ConfigError, DataError, RecordError, UsageError, WorkerError

STREAMS = (StreamConfig(name="rgb", size=3), StreamConfig(name="audio", size=2))
CLASSES = 5

linux = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


def video(shard: int, number: int, **changes: Any) -> VideoRecord:
    """Everything about it follows from its id."""
    key = 7 * shard + number
    fields: dict[str, Any] = {
        "video_id": f"{shard}-{number}",
        "labels": np.array([key % CLASSES], np.int64),
        "streams": {
            "rgb": np.full((key % 4, 3), key % 256, np.uint8),
            "audio": np.full((key % 3, 2), key % 251, np.uint8),
        },
    }
    return VideoRecord(**(fields | changes))


def write_shards(folder: Path, sizes: Sequence[int], compression: Any = None) -> list[str]:
    return [
        write_records(folder / f"{shard}.tfrecord", [video(shard, n) for n in range(size)], compression)
        for shard, size in enumerate(sizes)
    ]


def ids(sizes: Sequence[int]) -> list[str]:
    return [f"{shard}-{number}" for shard, size in enumerate(sizes) for number in range(size)]


@pytest.fixture
def shards(tmp_path: Path) -> list[str]:
    return write_shards(tmp_path, (9, 0, 5, 12))


@pytest.fixture(autouse=True)
def _no_process_is_left() -> Iterator[None]:
    yield
    gc.collect()
    assert multiprocessing.active_children() == []


def loader(data: Sequence[str], **changes: Any) -> FrameLoader:
    arguments: dict[str, Any] = {"streams": STREAMS, "num_classes": CLASSES, "batch_size": 4}
    return FrameLoader(data, **(arguments | changes))


def names(batches: Iterable[FrameBatch]) -> list[str]:
    return [name for batch in batches for name in batch.video_ids]


def plans(data: Sequence[str], readers: int, **changes: Any) -> list[ReaderPlan]:
    arguments: dict[str, Any] = {
        "shards": tuple(data),
        "streams": STREAMS,
        "num_classes": CLASSES,
        "batch_size": 4,
        "max_frames": 300,
        "shuffle": True,
        "shuffle_buffer": 3,
        "seed": 0,
        "epochs": 1,
        "num_readers": readers,
        "skip_damaged": False,
    }
    return [ReaderPlan(**(arguments | changes), reader=reader) for reader in range(readers)]


# What a reader gives


sizes_of_shards = st.lists(st.integers(0, 9), min_size=1, max_size=5)
few = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@few
@given(
    sizes=sizes_of_shards,
    readers=st.integers(1, 6),
    batch_size=st.integers(1, 7),
    buffer=st.integers(1, 8),
    shuffle=st.booleans(),
    epochs=st.integers(1, 3),
    seed=st.integers(0, 3),
)
def test_every_video_once_an_epoch(
    tmp_path: Path,
    sizes: list[int],
    readers: int,
    batch_size: int,
    buffer: int,
    shuffle: bool,
    epochs: int,
    seed: int,
) -> None:
    data = write_shards(tmp_path, sizes)
    per_epoch: list[list[str]] = [[] for _ in range(epochs)]
    options = {"batch_size": batch_size, "shuffle": shuffle, "shuffle_buffer": buffer, "seed": seed}
    of_one_epoch = [
        {epoch: _share(plan, epoch) for epoch in range(epochs)}
        for plan in plans(data, readers, epochs=epochs, **options)
    ]
    for plan, shares in zip(plans(data, readers, epochs=epochs, **options), of_one_epoch, strict=True):
        batches = [item.batch for item in Reader(plan)]
        assert batches.pop() is None
        filled = [batch.video_ids for batch in batches if batch is not None]
        assert all(len(batch) == batch_size for batch in filled[:-1])
        given_out = [name for batch in filled for name in batch]
        for epoch, count in shares.items():  # an epoch's videos come before those of the next
            part, given_out = given_out[:count], given_out[count:]
            per_epoch[epoch] += part
        assert given_out == []
    for epoch in range(epochs):
        assert sorted(per_epoch[epoch]) == sorted(ids(sizes))


def _share(plan: ReaderPlan, epoch: int) -> int:
    """How many videos a reader gives in one epoch."""
    return sum(1 for _ in Reader(plan)._one_epoch(epoch))


@few
@given(
    sizes=sizes_of_shards,
    readers=st.integers(1, 3),
    batch_size=st.integers(1, 5),
    buffer=st.integers(1, 6),
    compression=st.sampled_from([None, "gzip"]),
)
def test_a_reader_goes_on_after_any_batch(
    tmp_path: Path, sizes: list[int], readers: int, batch_size: int, buffer: int, compression: str | None
) -> None:
    data = write_shards(tmp_path, sizes, compression)
    for plan in plans(data, readers, batch_size=batch_size, shuffle_buffer=buffer, epochs=2):
        whole = list(Reader(plan))
        for index, delivery in enumerate(whole):
            state = ReaderState.from_json(json.loads(json.dumps(delivery.state.to_json())))
            rest = list(Reader(plan, state))
            assert len(rest) == max(len(whole) - index - 1, 1)
            for again, before in zip(rest, whole[index + 1 :], strict=False):
                assert again.state == before.state
                if before.batch is not None:
                    assert again.batch is not None
                    assert values_of([again.batch.batch()]) == values_of([before.batch.batch()])


def test_records_are_shared_out_where_there_are_fewer_shards_than_readers(tmp_path: Path) -> None:
    data = write_shards(tmp_path, (10, 10))
    shares = [_share(plan, 0) for plan in plans(data, 5)]
    assert shares == [4, 4, 4, 4, 4]


def test_no_reader_always_gets_one_shard_more(tmp_path: Path) -> None:
    data = write_shards(tmp_path, (1,) * 5)
    shares = [sum(_share(plan, epoch) for epoch in range(3)) for plan in plans(data, 3, epochs=3)]
    assert shares == [5, 5, 5]


# What the loader gives


def test_without_shuffling_videos_come_in_file_order(shards: list[str]) -> None:
    batches = list(loader(shards))
    assert names(batches) == ids((9, 0, 5, 12))
    assert [batch.num_videos for batch in batches] == [4, 4, 4, 4, 4, 4, 2]
    expected = video(3, 2)
    last = batches[4]  # 3-2 is the first of it
    assert last.video_ids[0] == "3-2"
    assert last.labels[0].nonzero().flatten().tolist() == expected.labels.tolist()
    end = int(last.streams["rgb"].offsets[1])
    assert last.streams["rgb"].values[:end].numpy().tolist() == expected.streams["rgb"].tolist()


def test_batches_are_cut_without_regard_to_epochs(shards: list[str]) -> None:
    batches = list(loader(shards, epochs=3, batch_size=16))
    assert [batch.num_videos for batch in batches] == [16, 16, 16, 16, 14]
    assert names(batches) == 3 * ids((9, 0, 5, 12))


def test_shuffling_follows_from_the_seed(shards: list[str]) -> None:
    orders = [names(loader(shards, shuffle=True, shuffle_buffer=8, seed=seed)) for seed in (1, 1, 2)]
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[0]) == sorted(orders[2]) == sorted(ids((9, 0, 5, 12)))
    two = names(loader(shards, shuffle=True, shuffle_buffer=8, epochs=2))
    assert two[:26] != two[26:]


@pytest.mark.parametrize("workers", [0, 1])
def test_memory_used_again_is_not_mixed_up(tmp_path: Path, workers: int) -> None:
    big = [
        video(0, n, streams={"rgb": np.full((40 + 7 * (n % 9), 999), n, np.uint8)}) for n in range(40)
    ]  # fmt: skip
    data = [write_records(tmp_path / "big", big)]
    wide = (StreamConfig(name="rgb", size=999),)
    seen = []
    for batch in loader(data, streams=wide, workers=workers, shuffle=True, shuffle_buffer=6, epochs=2):
        offsets = batch.streams["rgb"].offsets.tolist()
        for index, name in enumerate(batch.video_ids):
            number = int(name.partition("-")[2])
            frames = batch.streams["rgb"].values[offsets[index] : offsets[index + 1]]
            assert frames.shape[0] == 40 + 7 * (number % 9)
            assert bool((frames == number).all())
            seen.append(number)
    assert sorted(seen) == sorted(2 * list(range(40)))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_batch_that_grows_moves_all_streams_whole(tmp_path: Path, workers: int) -> None:
    """The last video has a first stream that is too long for the room that the others made seem enough."""
    streams = tuple(StreamConfig(name=name, size=size) for name, size in (("a", 4), ("b", 20), ("c", 20)))
    numbers = np.random.default_rng(1)
    videos = [
        video(0, n, streams={s.name: numbers.integers(0, 256, (count, s.size), np.uint8) for s in streams})
        for n, count in enumerate([10, *[11] * 14])
    ]
    lengths = {"a": 100, "b": 11, "c": 11}
    last = {s.name: numbers.integers(0, 256, (lengths[s.name], s.size), np.uint8) for s in streams}
    videos.append(video(0, 15, streams=last))
    (batch,) = loader(
        [write_records(tmp_path / "x", videos)], streams=streams, workers=workers, batch_size=16
    )
    for stream in streams:
        wanted = np.concatenate([one.streams[stream.name] for one in videos])
        assert batch.streams[stream.name].values.tolist() == wanted.tolist()


def test_only_the_first_frames_are_used(shards: list[str]) -> None:
    for batch in loader(shards, max_frames=1):
        assert int(batch.streams["rgb"].offsets.diff().max()) <= 1


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_ranks_and_workers_share_the_data(shards: list[str], workers: int) -> None:
    options: dict[str, Any] = {"shuffle": True, "shuffle_buffer": 5, "workers": workers, "world_size": 2}
    found = [name for rank in range(2) for name in names(loader(shards, rank=rank, **options))]
    assert sorted(found) == sorted(ids((9, 0, 5, 12)))


def test_readers_take_turns_until_they_end(tmp_path: Path) -> None:
    data = write_shards(tmp_path, (1, 5, 3))
    order = names(loader(data, workers=3, batch_size=1))
    assert order == ["0-0", "1-0", "2-0", "1-1", "2-1", "1-2", "2-2", "1-3", "1-4"]


def test_one_process_gives_what_none_gives(shards: list[str]) -> None:
    options: dict[str, Any] = {"shuffle": True, "shuffle_buffer": 5, "epochs": 2}
    assert values_of(loader(shards, workers=1, **options)) == values_of(loader(shards, **options))


def test_spawned_processes_give_what_forked_ones_give(shards: list[str]) -> None:
    options: dict[str, Any] = {"shuffle": True, "shuffle_buffer": 5, "workers": 1}
    spawned = values_of(loader(shards, start_method="spawn", **options))
    assert spawned == values_of(loader(shards, start_method="fork", **options))


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_a_loader_goes_on_after_any_batch(shards: list[str], workers: int) -> None:
    options: dict[str, Any] = {
        "shuffle": True, "shuffle_buffer": 6, "workers": workers, "epochs": 2, "batch_size": 7
    }  # fmt: skip
    whole, places = [], []
    first = loader(shards, **options)
    places.append(first.position())
    for batch in first:
        whole += values_of([batch])
        places.append(first.position())
    for index, place in enumerate(places):
        again = loader(shards, position=json.loads(json.dumps(place)), **options)
        assert again.position() == place
        assert values_of(again) == whole[index:]


def test_iterating_again_goes_on(shards: list[str]) -> None:
    stream = loader(shards, workers=2, prefetch=3)
    whole = values_of(loader(shards, workers=2))
    found = []
    for _ in range(len(whole)):
        for batch in stream:
            found += values_of([batch])
            break
    assert found == whole
    assert list(stream) == []


def test_the_data_may_have_moved_as_a_whole(tmp_path: Path, shards: list[str]) -> None:
    first = loader(shards)
    next(iter(first))
    (tmp_path / "moved").mkdir()
    moved = [str(Path(path).rename(tmp_path / "moved" / Path(path).name)) for path in shards]
    assert names(loader(moved, position=first.position())) == ids((9, 0, 5, 12))[4:]


def test_a_place_of_something_else_is_refused(tmp_path: Path, shards: list[str]) -> None:
    place = loader(shards, workers=2, shuffle=True, shuffle_buffer=8).position()
    options: dict[str, Any] = {"workers": 2, "shuffle": True, "shuffle_buffer": 8, "position": place}
    changes: list[tuple[str, Any, Any]] = [
        ("batch_size", 4, 5),
        ("workers", 2, 3),
        ("seed", 0, 1),
        ("shuffle", True, False),
        ("shuffle_buffer", 8, 9),
        ("world_size", 1, 2),
    ]
    for name, then, now in changes:
        with pytest.raises(
            ConfigError, match=f"{name}: got {now}, but the run to resume had {then}; the ord"
        ):
            loader(shards, **(options | {name: now}))
    with pytest.raises(ConfigError, match=r"is not that of the run to resume: 3 files of .* now, 4 files of"):
        loader(shards[1:], **options)
    os.rename(shards[0], tmp_path / "other.tfrecord")
    with pytest.raises(ConfigError, match=r"4 files of .* bytes then, under other names or of other sizes"):
        loader([str(tmp_path)], **options)
    with pytest.raises(ConfigError, match=r"version 7, wanted 2\. Start without --resume\."):
        loader(shards[1:], position=place | {"version": 7})


def test_damaged_states_are_refused() -> None:
    with pytest.raises(ConfigError, match="the place in the data is not one this version saved"):
        ReaderState.from_json({"epoch": 1})


def test_resuming_notices_that_a_record_is_gone(tmp_path: Path) -> None:
    data = write_shards(tmp_path, (9,))
    options: dict[str, Any] = {"shuffle": True, "shuffle_buffer": 8, "batch_size": 1}
    first = loader(data, **options)
    next(iter(first))
    flip(data[0], record_starts(data[0])[6] + 20)
    with pytest.raises(DataError, match=r"0\.tfrecord: record 6 cannot be read any more"):
        list(loader(data, position=first.position(), **options))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 0}, "batch_size: got 0, wanted 1 or more"),
        ({"batch_size": 1 << 40}, "batch_size: got 1099511627776, wanted at most 2147483647 videos"),
        ({"seed": -1}, "seed: got -1, wanted 0 or more"),
        ({"rank": 2, "world_size": 2}, r"rank: got 2, wanted 0\.\.1"),
        ({"start_method": "thread"}, "start_method: got 'thread', wanted fork, spawn or None"),
    ],
)
def test_arguments_out_of_range(shards: list[str], changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        loader(shards, **changes)


# Damage


def record_starts(path: str) -> list[int]:
    data = Path(path).read_bytes()
    starts, at = [], 0
    while at < len(data):
        starts.append(at)
        at += 16 + int.from_bytes(data[at : at + 8], "little")
    return starts


def flip(path: str, at: int) -> None:
    data = bytearray(Path(path).read_bytes())
    data[at] ^= 255
    Path(path).write_bytes(data)


@pytest.fixture
def damaged(tmp_path: Path) -> list[str]:
    """Eight faults in four files; 0-0 0-2 1-0 1-1 2-1 2-5 are whole."""
    nothing = np.zeros((0, 3), np.uint8)
    data = [
        write_records(tmp_path / "0.tfrecord", [video(0, n) for n in range(3)]),
        write_records(tmp_path / "1.tfrecord", [video(1, n) for n in range(4)]),
        write_records(
            tmp_path / "2.tfrecord",
            [
                video(2, 0, labels=np.array([CLASSES])),
                video(2, 1),
                video(2, 2, streams={"rgb": np.zeros((1, 4), np.uint8)}),
                video(2, 3, streams={"pictures": np.zeros((1, 9), np.uint8), "audio": nothing}),
                video(2, 5),
            ],
        ),
    ]
    flip(data[0], record_starts(data[0])[1] + 20)  # payload
    flip(data[1], record_starts(data[1])[2] + 9)  # checksum of the length: the rest is lost
    with RecordWriter(tmp_path / "3.tfrecord") as writer:
        writer.write(b"\xff\xff")
    return [*data, str(tmp_path / "3.tfrecord")]


WHOLE = ["0-0", "0-2", "1-0", "1-1", "2-1", "2-5"]


@pytest.mark.parametrize("workers", [0, 2])
def test_damage_is_skipped_and_listed(damaged: list[str], workers: int) -> None:
    stream = loader(damaged, skip_damaged=True, workers=workers, epochs=2, batch_size=2)
    assert sorted(names(stream)) == sorted(2 * WHOLE)
    listed = {(Path(e.place.path).name, e.place.number): str(e) for e in stream.damage if e.place}
    assert len(stream.damage) == len(listed) == 6  # each once, in spite of two epochs
    assert "payload CRC" in listed["0.tfrecord", 1]
    assert "length CRC" in listed["1.tfrecord", 2]
    assert "byte 0, record 0 (video 2-0): label 5, wanted 0..4 for 5 classes" in listed["2.tfrecord", 0]
    assert "(video 2-2): stream rgb has 4 values a frame, wanted 3" in listed["2.tfrecord", 2]
    assert "(video 2-3): found streams pictures (9), audio (0); the" in listed["2.tfrecord", 3]
    assert ("3.tfrecord", 0) in listed


def test_damage_in_shared_shards_is_listed_once(damaged: list[str]) -> None:
    every = [loader(damaged, skip_damaged=True, rank=rank, world_size=7) for rank in range(7)]
    assert sorted(name for stream in every for name in names(stream)) == sorted(WHOLE)
    assert sum(len(stream.damage) for stream in every) == 6


def test_going_on_amid_damage(damaged: list[str]) -> None:
    options: dict[str, Any] = {
        "skip_damaged": True, "batch_size": 1, "epochs": 2, "shuffle": True, "shuffle_buffer": 2
    }  # fmt: skip
    whole = values_of(loader(damaged, **options))
    for index in range(len(whole)):
        first = loader(damaged, **options)
        iterator = iter(first)
        for _ in range(index):
            next(iterator)
        assert values_of(loader(damaged, position=first.position(), **options)) == whole[index:]


@pytest.mark.parametrize("shard", [0, 1, 2, 3])
def test_without_skipping_the_first_damage_raises_alike_in_any_process(
    damaged: list[str], shard: int
) -> None:
    said = []
    for workers in (0, 1):
        stream = loader(damaged[shard:], workers=workers)
        with pytest.raises(RecordError) as caught:
            list(stream)
        assert type(caught.value) is RecordError
        assert caught.value.place is not None
        said.append((str(caught.value), caught.value.place, caught.value.framing_lost))
    assert said[0] == said[1]
    assert f"{shard}.tfrecord, byte " in said[0][0]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_file_that_went_away(shards: list[str], workers: int) -> None:
    stream = loader(shards, workers=workers)
    os.unlink(shards[2])
    with pytest.raises(UsageError, match=r"2\.tfrecord: no such file") as caught:
        list(stream)
    assert type(caught.value) is UsageError


def test_no_memory_for_a_batch_is_no_death_of_a_process(
    shards: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(carrier: socket.socket, size: int) -> None:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr(processes, "_receive_memory", refuse)
    with pytest.raises(MemoryError, match="cannot be mapped"):
        list(loader(shards, workers=1))


def test_a_process_without_memory_says_so(shards: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def hungry(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr("nextvlad.data.packer.Packer.add", hungry)
    with pytest.raises(
        WorkerError, match=r"reader process 0 ran out of memory\. Use a smaller batch"
    ) as caught:
        list(loader(shards, workers=1, start_method="fork"))
    assert "Traceback" not in str(caught.value)


def test_a_bug_in_a_process_shows_its_traceback(shards: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("nextvlad.data.packer.Packer.add", broken)
    with pytest.raises(
        WorkerError, match=r"(?s)reader process 0 failed unexpectedly.*ZeroDivisionError: a bug"
    ):
        list(loader(shards, workers=1, start_method="fork"))  # what is spawned has no such bug


# Processes


def test_a_killed_process_is_an_error_that_says_so(shards: list[str]) -> None:
    def kill_on_the_way() -> None:
        for _ in loader(shards, workers=1, prefetch=1, batch_size=1):
            for process in multiprocessing.active_children():
                process.kill()

    with pytest.raises(WorkerError) as caught:
        kill_on_the_way()
    assert "was killed by signal 9 (SIGKILL). Most likely the machine" in str(caught.value)
    assert "data.workers=0" in str(caught.value)


def test_a_process_that_ends_is_an_error_that_says_so(
    shards: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nextvlad.data.packer.Packer.add", lambda *_, **__: os._exit(3))
    with pytest.raises(WorkerError, match=r"reader process 0 \(pid \d+\) ended with exit status 3\."):
        list(loader(shards, workers=1))


def test_processes_end_with_the_loop(shards: list[str]) -> None:
    def running() -> int:
        return len(multiprocessing.active_children())

    stream = loader(shards, workers=2)
    for _ in stream:
        assert running() == 2
        break
    assert running() == 0

    def fail_on_the_way() -> None:
        for _ in stream:
            raise KeyError

    with pytest.raises(KeyError):
        fail_on_the_way()
    gc.collect()
    assert running() == 0
    with stream:
        iterator = iter(stream)
        next(iterator)
        assert running() == 2
    assert running() == 0
    assert list(iterator) == []
    iterator = iter(loader(shards, workers=2))
    next(iterator)
    del iterator
    gc.collect()
    assert running() == 0


def test_batches_outlive_their_process(shards: list[str]) -> None:
    kept = list(loader(shards, workers=2))
    assert sorted(names(kept)) == sorted(ids((9, 0, 5, 12)))
    assert values_of(kept) == values_of(loader(shards, workers=2))
    kept[0].labels.zero_()  # ours to change


_CONSUMER = """
import multiprocessing, sys, time
import torch
from nextvlad.config import StreamConfig
from nextvlad.data.loader import FrameLoader
streams = [StreamConfig(name="rgb", size=3), StreamConfig(name="audio", size=2)]
stream = FrameLoader(sys.argv[2:], streams=streams, num_classes=5, batch_size=1, workers=2)
for batch in stream:
    print(*(process.pid for process in multiprocessing.active_children()), flush=True)
    if sys.argv[1] == "exit":
        kept = iter(FrameLoader(sys.argv[2:], streams=streams, num_classes=5, batch_size=1, workers=1))
        next(kept)
        sys.exit(0)
    time.sleep(60)
"""


def _is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@linux
@pytest.mark.parametrize("end", ["SIGINT", "SIGTERM", "SIGKILL", "exit"])
def test_no_process_outlives_its_parent(shards: list[str], end: str) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", _CONSUMER, end, *shards],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as parent:
        assert parent.stdout is not None
        assert parent.stderr is not None
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(pids) == 2
        if end == "SIGINT":
            os.killpg(parent.pid, signal.SIGINT)  # Ctrl-C reaches the whole group
        elif end != "exit":
            parent.send_signal(signal.Signals[end])
        said = parent.stderr.read()
        parent.wait()
    patience = time.monotonic() + 20
    while any(map(_is_running, pids)) and time.monotonic() < patience:
        time.sleep(0.02)
    assert not any(map(_is_running, pids))
    assert said.count("Traceback") == (1 if end == "SIGINT" else 0)  # the parent's own


@linux
def test_a_signal_to_the_group_leaves_processes_at_work(shards: list[str]) -> None:
    whole = values_of(loader(shards, workers=2))
    found = []
    for batch in loader(shards, workers=2):
        found += values_of([batch])
        for process in multiprocessing.active_children():
            assert process.pid is not None
            os.kill(process.pid, signal.SIGTERM)
            os.kill(process.pid, signal.SIGINT)
    assert found == whole


@pytest.mark.skipif(not torch.cuda.is_available(), reason="page-locked memory needs CUDA")
@pytest.mark.parametrize("workers", [0, 2])
def test_pinned_batches(shards: list[str], workers: int) -> None:
    stream = loader(shards, workers=workers, pin_memory=True)
    found = []
    for batch in stream:
        assert batch.labels.is_pinned()
        place = stream.position()
        found += values_of([batch])
        if len(found) == 3:
            break
    plain = values_of(loader(shards, workers=workers))
    assert found + values_of(loader(shards, workers=workers, pin_memory=True, position=place)) == plain


@pytest.mark.parametrize("workers", [0, 2])
def test_one_ahead_in_a_thread(shards: list[str], workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The path of pinned batches, without a GPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr("nextvlad.data.batch.PackedBatch.pin_memory", lambda packed: packed)
    plain = values_of(loader(shards, workers=workers))
    stream = loader(shards, workers=workers, pin_memory=True)
    assert values_of(stream) == plain
    stream = loader(shards, workers=workers, pin_memory=True)
    found = []
    for batch in stream:
        found += values_of([batch])
        place = stream.position()
        if len(found) == 3:
            break
    assert found + values_of(loader(shards, workers=workers, position=place)) == plain
    iterator = iter(loader(shards, workers=workers, pin_memory=True))
    next(iterator)
    stream = loader(shards, workers=workers, pin_memory=True)
    iterator = iter(stream)
    next(iterator)
    stream.close()
    assert len(list(iterator)) <= (1 if workers else len(plain))
    stream = loader(shards, workers=workers, pin_memory=True)
    os.unlink(shards[2])
    with pytest.raises(UsageError, match="no such file"):
        list(stream)
    assert not [thread for thread in threading.enumerate() if thread is not threading.main_thread()]


# Helpers


def test_counting(tmp_path: Path, shards: list[str], damaged: list[str]) -> None:
    assert count_examples([str(tmp_path / "?.tfrecord")], skip_damaged=True) > 0
    data = write_shards(tmp_path, (9, 0, 5, 12))
    assert count_examples(data) == 26
    flip(data[2], record_starts(data[2])[2] + 9)
    with pytest.raises(RecordError, match=r"2\.tfrecord, byte"):
        count_examples(data)
    assert count_examples(data, skip_damaged=True) == 23


def test_streams_of_the_first_videos(tmp_path: Path) -> None:
    silent = video(0, 0, streams={"rgb": np.zeros((1, 3), np.uint8)})
    data = write_records(tmp_path / "a", [video(0, 0), silent, video(0, 5)])
    assert peek_streams([data]) == STREAMS
    nothing = write_records(tmp_path / "b", [video(0, 0)])
    with pytest.raises(DataError, match="b: no record has frames; wanted videos with frame features"):
        peek_streams([nothing])
    with pytest.raises(DataError, match="c: no record has frames"):
        peek_streams([write_records(tmp_path / "c", [])])


# Pickles


@pytest.fixture
def pickles(tmp_path: Path) -> list[str]:
    """The videos of `shards`, in PaddleVideo's format."""
    folder = tmp_path / "pickles"
    folder.mkdir()
    for shard, size in enumerate((9, 0, 5, 12)):
        with PickleWriter(folder / f"{shard}.pkl") as writer:
            for number in range(size):
                writer.write(video(shard, number))
    return [str(folder / f"{shard}.pkl") for shard in range(4)]


@pytest.mark.parametrize("workers", [0, 1, 6])
def test_pickles_give_the_batches_of_records(shards: list[str], pickles: list[str], workers: int) -> None:
    for options in ({}, {"shuffle": True, "shuffle_buffer": 6, "epochs": 2, "max_frames": 1}):
        wanted = values_of(loader(shards, workers=workers, **options))
        assert values_of(loader(pickles, workers=workers, **options)) == wanted


def test_pickles_resume_at_every_place(pickles: list[str]) -> None:
    options: dict[str, Any] = {"shuffle": True, "shuffle_buffer": 5, "epochs": 2}
    whole = loader(pickles, **options)
    batches, places = [], [whole.position()]
    for batch in whole:
        batches.append(batch)
        places.append(whole.position())
    for number, place in enumerate(places):
        rest = loader(pickles, position=json.loads(json.dumps(place)), **options)
        assert values_of(rest) == values_of(batches[number:])


def test_pickles_and_records_mix(shards: list[str], pickles: list[str]) -> None:
    assert names(loader([shards[0], pickles[2]])) == ids((9, 0, 0)) + [f"2-{n}" for n in range(5)]
    assert count_examples([shards[0], *pickles]) == 9 + 26
    assert {stream.name for stream in peek_streams(pickles)} == {"rgb", "audio"}


def test_damage_in_pickles_has_its_place(tmp_path: Path) -> None:
    path = tmp_path / "odd.pkl"
    with PickleWriter(path) as writer:
        writer.write(video(0, 1))
        writer.write(video(0, 2, streams={"rgb": np.zeros((2, 7), np.uint8)}))
        writer.write(video(0, 3, labels=np.array([99])))
        writer.write(video(0, 4))
    with pytest.raises(RecordError, match=r"odd\.pkl, byte \d+, record 1 \(video 0-2\): stream rgb has 7"):
        list(loader([str(path)]))
    skipping = loader([str(path)], skip_damaged=True)
    assert names(skipping) == ["0-1", "0-4"]
    assert [error.place.number for error in skipping.damage if error.place] == [1, 2]
    path.write_bytes(path.read_bytes()[:-40])
    cut = loader([str(path)], skip_damaged=True)
    assert names(cut) == ["0-1"]
    assert "cut short" in str(cut.damage[-1])


def test_batches_of_processes_that_are_kept_stay_as_they_are(tmp_path: Path) -> None:
    data = write_shards(tmp_path, [40])
    kept = list(loader(data, workers=1, batch_size=2, prefetch=1))  # more than memories that are used again
    assert values_of(kept) == values_of(loader(data, batch_size=2))


def test_processes_use_memory_again() -> None:
    memory = processes._SharedMemory(1)
    assert [memory.allocate(100).shape, memory.number] == [(100,), 0]
    memory.allocate(200)  # without sending it, since it was too small
    assert memory._kept[memory.number][1].shape == (250,)  # a quarter more than asked for
    ours, theirs = socket.socketpair()
    with ours, theirs:
        number = memory.number
        memory.send(ours)
        processes._receive_memory(theirs, 200).close()
        memory.allocate(150)
        assert memory.number != number
        memory.send(ours)
        memory.reuse([number])
        memory.allocate(150)
        assert memory.number == number
    for descriptor, _ in memory._kept.values():
        os.close(descriptor)
