"""Videos a second from files to packed batches, both checksums of every record verified.

Ours is the loader that training uses. Against it: Google's protobuf library doing the same (extra
`bench`), once joining the bytes of all frames of a batch, which is the fastest we know, and once making an
array of each frame and stacking these, which is what most code does; tf.data with one thread, where
TensorFlow is installed; and two reader processes against one. Beside them stands what no reader that verifies
and copies can leave out: fetching the files block by block, their checksums, and copying as many bytes as the
frames have; nothing is parsed, and no batch comes of it. Where the package was compiled, ours without the
compiled part is an alternative too. The data is made up, in the shape of YouTube-8M's frame files, and small
enough to stay in the page cache; `--data` reads real files besides.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import google_crc32c
import numpy as np
from measure import Comparison, compare, finish, parser

from nextvlad.config import StreamConfig
from nextvlad.data import usual_records
from nextvlad.data.loader import FrameLoader, count_examples, peek_streams
from nextvlad.data.sources import expand
from nextvlad.data.tfrecord import RecordWriter
from nextvlad.data.video_record import VideoRecord, serialize_video_record

_YT8M = (StreamConfig(name="rgb", size=1024), StreamConfig(name="audio", size=128))
_NUM_CLASSES = 3862
_MAX_FRAMES = 300
_BLOCK = 1 << 18  # bytes: stays in the processor's cache
_UNAVOIDABLE = "fetching, checksums and copying alone"


def main() -> None:
    options = _options()
    comparisons = []
    with made_up_data(options.videos, options.shards) as folder:
        comparisons += _comparisons("YouTube-8M, made up", [folder], options)
    if options.data:
        comparisons += _comparisons(options.name, options.data, options)
    finish("reading", comparisons, options)


def _options() -> argparse.Namespace:
    options = parser(__doc__, rounds=9)
    options.add_argument("--videos", type=int, default=1000, help="made-up videos (default %(default)s)")
    options.add_argument("--shards", type=int, default=8, help="files they are in (default %(default)s)")
    options.add_argument("--batch-size", type=int, default=80, help="videos a batch (default %(default)s)")
    options.add_argument("--passes", type=int, default=12, help="passes over the data a round, for processes")
    options.add_argument("--data", nargs="+", metavar="DATA", help="real files to read as well")
    options.add_argument("--name", default="AudioSet", help="what DATA is (default %(default)s)")
    given = options.parse_args()
    if given.quick:
        given.videos, given.shards, given.rounds, given.batch_size, given.passes = 12, 3, 2, 5, 1
    return given


def _comparisons(name: str, data: Sequence[str], options: argparse.Namespace) -> list[Comparison]:
    paths, streams = expand(data), peek_streams(data)
    size = sum(Path(path).stat().st_size for path in paths)
    facts = {"videos": count_examples(data), "MB": round(size / 1e6), "batch": options.batch_size}

    def ours(workers: int, passes: int, compiled: bool = True) -> Callable[[], float]:
        def run() -> float:
            loader = FrameLoader(
                paths,
                streams=streams,
                num_classes=_NUM_CLASSES,
                batch_size=options.batch_size,
                max_frames=_MAX_FRAMES,
                workers=workers,
                epochs=passes,
            )
            # Reader processes inherit it.
            with patch.dict(os.environ, NEXTVLAD_COMPILED=str(int(compiled))):
                return sum(batch.num_videos for batch in loader)

        return run

    def theirs(module: str, **more: Any) -> Callable[[], float]:
        reader = importlib.import_module(module)

        def run() -> float:
            settings = {
                "num_classes": _NUM_CLASSES,
                "batch_size": options.batch_size,
                "max_frames": _MAX_FRAMES,
            }
            return sum(len(batch[0]) for batch in reader.batches(paths, streams, **settings, **more))

        return run

    readers = {"ours": ours(0, 1)}
    if usual_records.available():
        readers["ours, in Python alone"] = ours(0, 1, compiled=False)
    if importlib.util.find_spec("google") and importlib.util.find_spec("google.protobuf"):
        readers["protobuf"] = theirs("protobuf_reader")
        readers["protobuf, frame by frame"] = theirs("protobuf_reader", frame_by_frame=True)
    if importlib.util.find_spec("tensorflow"):
        readers["tf.data, one thread"] = theirs("tensorflow_reader")
    readers[_UNAVOIDABLE] = lambda: _without_parsing(paths, options.batch_size, facts["videos"])
    timing = {"unit": "videos", "rounds": options.rounds, "warmup": options.warmup}
    wanted = {"protobuf": 12.0, "protobuf, frame by frame": 12.0, "tf.data, one thread": 5.0}
    processes = {name: ours(count, options.passes) for name, count in (("2 processes", 2), ("1 process", 1))}
    return [
        compare(f"{name}, one process", readers, wanted=wanted, facts=facts, **timing),
        compare(
            f"{name}, reader processes",
            processes,
            wanted={"1 process": 1.65},
            facts=facts | {"passes": options.passes},
            **timing,
        ),
    ]


def _without_parsing(paths: Sequence[str], batch_size: int, num_videos: int) -> int:
    """All bytes through memory once, as a reader has to: read, summed up, copied to where batches are."""
    size = sum(os.path.getsize(path) for path in paths)
    batch = memoryview(bytearray(max(_BLOCK, size * batch_size // num_videos)))
    block = memoryview(bytearray(_BLOCK))
    place = 0
    for path in paths:
        with open(path, "rb", buffering=0) as file:
            while count := file.readinto(block):
                google_crc32c.value(np.frombuffer(block[:count], np.uint8))
                place = 0 if place + count > len(batch) else place
                batch[place : place + count] = block[:count]
                place += count
    return num_videos


@contextmanager
def made_up_data(num_videos: int, num_shards: int) -> Iterator[str]:
    """A folder of random files in the shape of YouTube-8M's: 120 to 300 frames, 1 to 5 labels a video."""
    numbers = np.random.default_rng(0)
    with tempfile.TemporaryDirectory(prefix="nextvlad-benchmark-") as folder:
        for shard in range(num_shards):
            with RecordWriter(Path(folder) / f"train{shard:04d}.tfrecord") as writer:
                for number in range(shard, num_videos, num_shards):
                    writer.write(serialize_video_record(_made_up_video(number, numbers)))
        yield folder


def _made_up_video(number: int, numbers: np.random.Generator) -> VideoRecord:
    num_frames = int(numbers.integers(120, 301))
    return VideoRecord(
        video_id=f"v{number:03x}",
        labels=np.sort(numbers.choice(_NUM_CLASSES, numbers.integers(1, 6), replace=False)),
        streams={
            stream.name: numbers.integers(0, 256, (num_frames, stream.size), np.uint8) for stream in _YT8M
        },
    )


if __name__ == "__main__":
    main()
