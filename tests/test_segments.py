"""Segments of videos: what they are, and the loader that takes each for a video."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from nextvlad.config import StreamConfig
from nextvlad.data.batch import FrameBatch
from nextvlad.data.loader import FrameLoader
from nextvlad.data.ratings import count_segments, read_ratings
from nextvlad.data.segments import all_segments, rated_segments, segments_of
from nextvlad.data.tfrecord import RecordWriter
from nextvlad.data.video_record import VideoRecord, serialize_video_record
from nextvlad.errors import ConfigError, RecordError

STREAMS = (StreamConfig(name="rgb", size=3), StreamConfig(name="audio", size=2))
CLASSES = 6
Which = Literal["rated", "all"]
Rating = tuple[int, int, int, float]  # start, end, class, score


def video(
    ratings: Sequence[Rating] = (), *, video_id: str = "v", rgb: int = 12, audio: int = 9
) -> VideoRecord:
    """The values of frame t are t, in rgb, and 100 + t in audio."""
    names = ("segment_start_times", "segment_end_times", "segment_labels", "segment_scores")
    columns = zip(*ratings, strict=True) if ratings else ((), (), (), ())
    return VideoRecord(
        video_id=video_id,
        labels=np.array([5], np.int64),
        streams={
            "rgb": np.repeat(np.arange(rgb, dtype=np.uint8)[:, None], 3, axis=1),
            "audio": np.repeat(np.arange(100, 100 + audio, dtype=np.uint8)[:, None], 2, axis=1),
        },
        context={name: list(column) for name, column in zip(names, columns, strict=True)},
    )


def seconds(segment: VideoRecord, stream: str) -> list[int]:
    return segment.streams[stream][:, 0].tolist()


# What a segment is


def test_rated_segments() -> None:
    record = video([(5, 10, 3, 1.0), (0, 5, 2, 0.0), (5, 10, 1, 0.0), (5, 10, 4, 0.5), (10, 15, 1, 1.0)])
    first, second, third = rated_segments(record)
    assert [segment.video_id for segment in (first, second, third)] == ["v:0", "v:5", "v:10"]
    assert (first.labels.tolist(), second.labels.tolist(), third.labels.tolist()) == ([], [3, 4], [1])
    rated = [segment.rated for segment in (first, second, third)]
    assert [classes.tolist() for classes in rated if classes is not None] == [[2], [3, 1, 4], [1]]
    assert seconds(first, "rgb") == [0, 1, 2, 3, 4]
    assert seconds(second, "rgb") == [5, 6, 7, 8, 9]
    assert seconds(second, "audio") == [105, 106, 107, 108]  # the sound ends there
    assert (seconds(third, "rgb"), seconds(third, "audio")) == ([10, 11], [])
    assert third.stream_names == ("rgb", "audio")
    record.streams["rgb"][:] = 77  # the frames are copies
    assert seconds(first, "rgb") == [0, 1, 2, 3, 4]


def test_of_two_ratings_of_a_class_the_last_counts() -> None:
    (segment,) = rated_segments(video([(0, 5, 2, 1.0), (0, 5, 2, 0.0), (0, 5, 3, 0.0), (0, 5, 3, 1.0)]))
    assert segment.labels.tolist() == [3]
    assert segment.rated is not None
    assert segment.rated.tolist() == [2, 3]


def test_a_video_without_ratings_has_no_rated_segments() -> None:
    assert rated_segments(video()) == []
    record = video()
    record.context = {}
    assert rated_segments(record) == []


def test_all_segments() -> None:
    parts = all_segments(video([(0, 5, 2, 1.0)], rgb=11, audio=13))
    assert [part.video_id for part in parts] == ["v:0", "v:5", "v:10"]
    assert [seconds(part, "rgb") for part in parts] == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9], [10]]
    assert seconds(parts[2], "audio") == [110, 111, 112]
    assert all(part.labels.size == 0 and part.rated is None for part in parts)
    assert [part.video_id for part in all_segments(video(rgb=10, audio=3))] == ["v:0", "v:5"]
    assert all_segments(video(rgb=0, audio=0)) == []
    assert [len(segments_of(video([(0, 5, 2, 1.0)]), which)) for which in ("rated", "all")] == [1, 3]


def changed(name: str, value: list[Any]) -> VideoRecord:
    record = video([(0, 5, 2, 1.0), (5, 10, 3, 0.0)])
    record.context[f"segment_{name}"] = value
    return record


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (
            changed("scores", [1.0]),
            r"lists of different length \(segment_start_times 2, .*segment_scores 1\); wa",
        ),
        (changed("labels", []), r"segment_labels 0"),
        (changed("end_times", [5, 5]), r"a segment from second 5 to 5; wanted 0 <= start < end"),
        (changed("labels", [3, -7]), r"segment_labels has class -7, wanted 0 or more"),
        (changed("start_times", [-5, 5]), r"a segment from second -5 to 5"),
        (changed("start_times", [0, 0]), r"segments from 0 to 5 and to 10; wanted one end"),
        (changed("start_times", [0.0, 5.0]), r"segment_start_times are not whole numbers"),
        (changed("labels", [b"2", b"3"]), r"segment_labels are not whole numbers"),
        (changed("scores", [b"1", b"0"]), r"segment_scores are not numbers"),
        (changed("scores", [1.0, float("nan")]), r"segment_scores are not numbers"),
    ],
)
def test_damaged_ratings(record: VideoRecord, message: str) -> None:
    with pytest.raises(RecordError, match=message) as caught:
        rated_segments(record)
    assert "(video v)" in str(caught.value)


def test_frames_beyond_the_most_are_not_even_copied() -> None:
    record = video([(start, 100_000, 1, 1.0) for start in range(100)])
    record.streams = {"rgb": np.zeros((1000, 512), np.uint8)}
    tracemalloc.start()
    parts = segments_of(record, "rated", max_frames=7)
    assert tracemalloc.get_traced_memory()[1] < 2 * 100 * 7 * 512  # of 49 MB
    tracemalloc.stop()
    assert [len(part.streams["rgb"]) for part in parts] == [7] * 100
    assert [len(part.streams["rgb"]) for part in segments_of(record, "all", max_frames=2)] == [2] * 200


# The loader


def rated_video(shard: int, number: int) -> VideoRecord:
    """Between no and four rated segments; every seventh video has no frames."""
    key = 7 * shard + number
    numbers = np.random.default_rng(key)
    starts = sorted(numbers.choice(5, key % 5, replace=False).tolist())
    ratings = [
        (5 * start, 5 * start + 5, int(label), float(label % 2))
        for start in starts
        for label in numbers.choice(CLASSES, 1 + key % 3, replace=False)
    ]
    frames = 0 if key % 7 == 3 else 8 + key % 16
    return video(ratings, video_id=f"{shard}-{number}", rgb=frames, audio=max(frames - key % 4, 0))


def write(path: Path, records: Iterable[VideoRecord]) -> str:
    with RecordWriter(path) as writer:
        for record in records:
            writer.write(serialize_video_record(record))
    return str(path)


def write_shards(folder: Path, sizes: Sequence[int]) -> list[str]:
    return [
        write(folder / f"{shard}.tfrecord", [rated_video(shard, n) for n in range(size)])
        for shard, size in enumerate(sizes)
    ]


SIZES = (5, 0, 9, 4)


@pytest.fixture
def shards(tmp_path: Path) -> list[str]:
    return write_shards(tmp_path, SIZES)


def loader(data: Sequence[str], segments: Which, **changes: Any) -> FrameLoader:
    arguments: dict[str, Any] = {"streams": STREAMS, "num_classes": CLASSES, "batch_size": 3}
    return FrameLoader(data, segments=segments, **(arguments | changes))


def videos(batches: Iterable[FrameBatch]) -> list[Any]:
    """(id, labels, rated, frames of each stream) of every segment, in order."""
    found = []
    for batch in batches:
        for index, name in enumerate(batch.video_ids):
            one = batch[index : index + 1]
            rated = None if one.rated is None else one.rated[0].nonzero().flatten().tolist()
            streams = {stream: frames.values[:, 0].tolist() for stream, frames in one.streams.items()}
            found.append((name, one.labels[0].nonzero().flatten().tolist(), rated, streams))
    return found


def expected(which: Which, sizes: Sequence[int] = SIZES) -> list[Any]:
    return [
        (
            part.video_id,
            sorted(part.labels.tolist()),
            None if part.rated is None else sorted(part.rated.tolist()),
            {
                stream: seconds(part, stream) if part.streams[stream].size else []
                for stream in ("rgb", "audio")
            },
        )
        for shard, size in enumerate(sizes)
        for number in range(size)
        for part in segments_of(rated_video(shard, number), which)
    ]


both = pytest.mark.parametrize("which", ["rated", "all"])


@both
@pytest.mark.parametrize("batch_size", [1, 3, 50])
def test_segments_come_in_file_order(shards: list[str], which: Which, batch_size: int) -> None:
    batches = list(loader(shards, which, batch_size=batch_size))
    assert videos(batches) == expected(which)
    assert all(batch.num_videos == batch_size for batch in batches[:-1])
    assert all((batch.rated is None) == (which == "all") for batch in batches)


@both
@pytest.mark.parametrize(("workers", "world_size"), [(0, 1), (1, 1), (3, 1), (7, 1), (2, 2), (3, 3)])
def test_shuffled_and_shared_out_every_segment_comes_once_an_epoch(
    shards: list[str], which: Which, workers: int, world_size: int
) -> None:
    """Three of the four files hold something, so with more readers the records are shared out."""
    options: dict[str, Any] = {
        "workers": workers,
        "world_size": world_size,
        "shuffle": True,
        "shuffle_buffer": 9,
    }
    found = [
        item for rank in range(world_size) for item in videos(loader(shards, which, rank=rank, **options))
    ]
    assert sorted(found, key=lambda item: item[0]) == sorted(expected(which), key=lambda item: item[0])
    if workers < 2 and world_size == 1:
        assert found != expected(which)


@both
@pytest.mark.parametrize(
    ("workers", "shuffle", "batch_size"),
    [(0, False, 1), (0, True, 3), (1, True, 2), (2, True, 3), (5, True, 2)],
)
def test_going_on_from_every_place(
    shards: list[str], which: Which, workers: int, shuffle: bool, batch_size: int
) -> None:
    """Also from the middle of a record, and with parts of records in the shuffle buffer."""
    options: dict[str, Any] = {
        "workers": workers, "shuffle": shuffle, "shuffle_buffer": 7 if shuffle else 1,
        "batch_size": batch_size, "epochs": 2 if workers == 0 else 1,
    }  # fmt: skip
    first = loader(shards, which, **options)
    places, sizes, whole = [first.position()], [0], []
    for batch in first:
        whole += videos([batch])
        places.append(first.position())
        sizes.append(len(whole))
    inside = [state["part"] for place in places for state in json.loads(json.dumps(place))["readers"]]
    assert any(inside)
    chosen = range(len(places)) if workers < 2 else range(0, len(places), 4)
    for index in chosen:
        again = loader(shards, which, position=json.loads(json.dumps(places[index])), **options)
        assert again.position() == places[index]
        assert videos(again) == whole[sizes[index] :]


def test_a_place_among_whole_videos_is_none_among_segments(shards: list[str]) -> None:
    place = FrameLoader(shards, streams=STREAMS, num_classes=CLASSES, batch_size=3).position()
    with pytest.raises(ConfigError, match="segments: got rated, but the run to resume had None"):
        loader(shards, "rated", position=place)


@both
def test_max_frames_are_those_of_a_segment(shards: list[str], which: Which) -> None:
    for found, (_, _, _, streams) in zip(
        videos(loader(shards, which, max_frames=2)), expected(which), strict=True
    ):
        assert found[3] == {name: frames[:2] for name, frames in streams.items()}


def test_without_labels_nothing_is_rated(shards: list[str]) -> None:
    (batch,) = loader(shards, "rated", batch_size=500, num_classes=1, with_labels=False)
    assert batch.rated is None
    assert not batch.labels.any()
    assert batch.num_videos == len(expected("rated"))


def damaged_file(tmp_path: Path) -> str:
    good, bad, high = (video([(0, 5, 1, 1.0)], video_id=name) for name in ("good", "bad", "high"))
    bad.context["segment_scores"] = [1.0, 0.0]
    high.context["segment_labels"] = [CLASSES]
    after = video([(5, 10, 1, 0.0)], video_id="after")
    return write(tmp_path / "damaged.tfrecord", [good, bad, high, after])


@pytest.mark.parametrize("workers", [0, 2])
def test_damaged_ratings_have_their_place(tmp_path: Path, workers: int) -> None:
    path = damaged_file(tmp_path)
    message = r"damaged\.tfrecord, byte \d+, record 1 \(video bad\): lists of different length"
    with pytest.raises(RecordError, match=message):
        list(loader([path], "rated", workers=workers, batch_size=1))
    skipping = loader([path], "rated", workers=workers, batch_size=1, skip_damaged=True)
    assert sorted(name for name, *_ in videos(skipping)) == ["after:5", "good:0"]
    first, second = sorted(skipping.damage, key=lambda error: error.place.number if error.place else 0)
    assert "record 1 (video bad): lists of" in str(first)
    assert f"record 2 (video high:0): label {CLASSES}, wanted 0..{CLASSES - 1}" in str(second)
    names = [name for name, *_ in videos(loader([path], "all", workers=0))]  # the ratings are not looked at
    assert [name.split(":")[0] for name in names[::3]] == ["good", "bad", "high", "after"]


# Ratings without frames


def test_ratings_and_their_number(tmp_path: Path, shards: list[str]) -> None:
    found = [segment for segments in read_ratings(shards) for segment in segments]
    assert [segment.video_id for segment in found] == [name for name, *_ in expected("rated")]
    assert all(segment.streams == {} for segment in found)
    seen = []
    assert count_segments(shards, on_video=lambda: seen.append(1)) == len(found)
    assert len(seen) == sum(SIZES)
    path = damaged_file(tmp_path)
    with pytest.raises(RecordError, match=r"record 1 \(video bad\): lists of different length"):
        count_segments([path])
    errors: list[RecordError] = []
    assert count_segments([path], on_damage=errors.append) == 3
    assert len(errors) == 1
