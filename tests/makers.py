"""Small made-up data sets, written with the project's own writer in milliseconds, and ways to run on them."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from nextvlad.data.batch import FrameBatch
from nextvlad.data.tfrecord import RecordWriter
from nextvlad.data.video_record import VideoRecord, serialize_video_record
from nextvlad.data.window import Compression

SIZES = {"rgb": 12, "audio": 6}


def make_record(
    number: int, num_classes: int, sizes: Mapping[str, int] = SIZES, *, labelled: bool = True
) -> VideoRecord:
    """A video whose frames lean towards a pattern of its one or two labels, so that it can be learnt."""
    numbers = np.random.default_rng(number)
    labels = numbers.choice(num_classes, size=numbers.integers(1, 3), replace=False)
    streams = {}
    for name, size in sizes.items():
        patterns = np.random.default_rng(99).integers(0, 256, (num_classes, size))
        num_frames = int(numbers.integers(1, 8))
        frames = patterns[numbers.choice(labels, num_frames)] + numbers.integers(-40, 41, (num_frames, size))
        streams[name] = np.clip(frames, 0, 255).astype(np.uint8)
    return VideoRecord(
        video_id=f"v{number:04d}",
        labels=labels.astype(np.int64) if labelled else np.empty(0, np.int64),
        streams=streams,
        context={},
    )


def make_data(
    folder: Path,
    name: str,
    *,
    num_videos: int,
    num_shards: int = 2,
    num_classes: int = 5,
    first: int = 0,
    make: Callable[..., VideoRecord] = make_record,
    **more: Any,
) -> str:
    """Writes shards of what `make` makes, and returns the glob that finds them."""
    folder.mkdir(parents=True, exist_ok=True)
    for shard in range(num_shards):
        with RecordWriter(folder / f"{name}-{shard}.tfrecord") as writer:
            for number in range(first + shard, first + num_videos, num_shards):
                writer.write(serialize_video_record(make(number, num_classes, **more)))
    return str(folder / f"{name}-*.tfrecord")


def write_records(
    path: Path, records: Iterable[VideoRecord | bytes], compression: Compression | None = None
) -> str:
    """One file of these records, or of payloads as they are; its path."""
    with RecordWriter(path, compression) as writer:
        for record in records:
            writer.write(record if isinstance(record, bytes) else serialize_video_record(record))
    return str(path)


def values_of(batches: Iterable[FrameBatch]) -> list[Any]:
    """Batches as plain values that compare: ids, labels, and of each stream its frames and offsets."""
    return [
        (
            batch.video_ids,
            batch.labels.tolist(),
            {name: (f.values.tolist(), f.offsets.tolist()) for name, f in batch.streams.items()},
        )
        for batch in batches
    ]


def nextvlad(*arguments: object, timeout: float = 120, **more: Any) -> subprocess.CompletedProcess[str]:
    """The real command line, in a process of its own."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "nextvlad", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        **more,
    )


def free_port() -> int:
    """A port for the processes of one test to meet at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def make_rated_record(
    number: int,
    num_classes: int,
    sizes: Mapping[str, int] = SIZES,
    *,
    num_segments: int = 4,
    num_rated: int = 2,
) -> VideoRecord:
    """A video whose every five seconds lean towards the pattern of one class, rated for that and one other.

    The last segment is three seconds long. No labels of the whole video.
    """
    numbers = np.random.default_rng(number)
    present = numbers.integers(num_classes, size=num_segments)
    times = np.repeat(np.arange(num_segments), 5)[:-2]
    patterns = {
        name: np.random.default_rng(99).integers(0, 256, (num_classes, size)) for name, size in sizes.items()
    }
    streams = {
        name: np.clip(
            pattern[present[times]] + numbers.integers(-40, 41, (len(times), pattern.shape[1])), 0, 255
        )
        for name, pattern in patterns.items()
    }
    context: dict[str, list[Any]] = {
        f"segment_{name}": [] for name in ("start_times", "end_times", "labels", "scores")
    }
    for segment in sorted(numbers.choice(num_segments, num_rated, replace=False).tolist()):
        other = int((present[segment] + numbers.integers(1, num_classes)) % num_classes)
        for label, score in ((int(present[segment]), 1.0), (other, 0.0)):
            for name, value in zip(context, (5 * segment, 5 * segment + 5, label, score), strict=True):
                context[name].append(value)
    return VideoRecord(
        video_id=f"v{number:04d}",
        labels=np.empty(0, np.int64),
        streams={name: values.astype(np.uint8) for name, values in streams.items()},
        context=context,
    )


def make_rated_data(folder: Path, name: str, **more: Any) -> str:
    """`make_data` with videos of `make_rated_record`."""
    return make_data(folder, name, make=make_rated_record, **more)
