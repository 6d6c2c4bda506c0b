"""Videos to features: the whole chain against the slower of decoding alone and the backbone alone.

Made-up clips of two kinds: small ones, as datasets of clips keep them, where the backbone is slower, and
ones as cameras take them, where decoding is. Decoding alone is the same processes, started anew, whose parts
nobody uses; the backbone alone gets the same pictures from memory, with the same threads. The whole chain has
both at once and writes records. With processes and threads for more processors than there are it cannot come
near the slower of the two: by default each gets half.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from measure import Comparison, compare, finish, parser

from nextvlad.extract_decoding import Decoders, Failure, Job

# A process that decodes loads this file as well: what imports torch is imported in functions.
if TYPE_CHECKING:
    from nextvlad.video.extractor import Extractor

WANTED = 0.85
KINDS = {"small clips": (340, 256, 24), "camera clips": (1280, 720, 12)}  # width, height, clips
SECONDS, FRAME_RATE_HZ, SOUND_RATE_HZ = 10, 25, 44_100


def make_clip(path: Path, width: int, height: int, seconds: int, seed: int) -> None:
    """A moving texture with noise and a tone: H.264 and AAC in MP4."""
    import av

    random = np.random.default_rng(seed)
    coarse = random.integers(0, 256, (height // 16 + 8, width // 16 + 8, 3), np.uint8)
    texture = np.kron(coarse, np.ones((16, 16, 1), np.uint8)) // 2
    texture += random.integers(0, 60, texture.shape, np.uint8)
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=FRAME_RATE_HZ, options={"preset": "veryfast"})
        video.width, video.height, video.pix_fmt = width, height, "yuv420p"
        audio = container.add_stream("aac", rate=SOUND_RATE_HZ, layout="mono")
        for number in range(seconds * FRAME_RATE_HZ):
            x, y = number % 64, number % 48
            picture = np.ascontiguousarray(texture[y : y + height, x : x + width])
            container.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(video.encode())
        time = np.arange(seconds * SOUND_RATE_HZ) / SOUND_RATE_HZ
        wave = np.sin(2 * np.pi * (200 + 50 * (seed % 8)) * time).astype(np.float32)
        for first in range(0, len(wave), 1024):
            part = av.AudioFrame.from_ndarray(wave[None, first : first + 1024], format="fltp", layout="mono")
            part.sample_rate, part.time_base, part.pts = SOUND_RATE_HZ, Fraction(1, SOUND_RATE_HZ), first
            container.mux(audio.encode(part))
        container.mux(audio.encode())


class Chain:
    """One kind of clips, and the three ways to go through them; each returns how many rows it made."""

    def __init__(self, paths: Sequence[Path], extractor: Extractor, workers: int) -> None:
        self.paths, self.extractor, self.workers = paths, extractor, workers
        self.jobs = [Job(number, str(path)) for number, path in enumerate(paths)]
        self.pictures: list[np.ndarray] = []
        self.sound: list[np.ndarray] = []
        self.decoding_alone(keep=True)

    def decoders(self) -> Decoders:
        """As `extract` starts them."""
        return Decoders(self.jobs, replace(self.extractor.read_options, threads=1), self.workers)

    def decoding_alone(self, *, keep: bool = False) -> float:
        """Only the processes; `keep` keeps what they give."""
        rows = 0
        with self.decoders() as decoders:
            for _, part in decoders:
                if isinstance(part, Failure):
                    raise SystemExit(part.reason)
                rows += len(part.pictures)
                if keep:
                    self.pictures.append(part.pictures)
                    self.sound.append(part.sound)
        return rows

    def backbone_alone(self) -> float:
        """What was kept, from memory."""
        pictures = np.concatenate(self.pictures)
        self.extractor.embed_pictures(pictures)
        self.extractor.embed_sound(np.concatenate(self.sound))
        return len(pictures)

    def together(self) -> float:
        """As `nextvlad extract` does it, records written and all."""
        from nextvlad.extract import provenance_of
        from nextvlad.extract_embedding import embed_all
        from nextvlad.extract_plan import Clip, Plan
        from nextvlad.extract_store import Store

        clips = tuple(Clip(str(path), path.stem, (0,), "train-00000") for path in self.paths)
        plan = Plan(clips, ("texture",), provenance_of(self.extractor))
        rows = 0
        with (
            tempfile.TemporaryDirectory() as folder,
            Store(folder, plan) as store,
            self.decoders() as decoders,
        ):
            for features in embed_all(decoders, self.extractor):
                store.add(features)
                rows += len(features.streams["rgb"])
        return rows


def with_wanted(comparison: Comparison) -> Comparison:
    """What is wanted is a share of the slower of the two."""
    slower = min(list(comparison.timings)[1:], key=lambda name: comparison.timings[name].rate)
    return replace(comparison, wanted={slower: WANTED})


@contextmanager
def made(kind: str, *, quick: bool) -> Iterator[tuple[list[Path], str]]:
    """Clips of a kind, for as long as the block lasts, and their size."""
    width, height, count = KINDS[kind]
    count, seconds = (2, 2) if quick else (count, SECONDS)
    if quick:
        width, height = 160, 120
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder, f"clip{number:03d}.mp4") for number in range(count)]
        for number, path in enumerate(paths):
            make_clip(path, width, height, seconds, number)
        yield paths, f"{width}x{height}"


def measured(
    kind: str, extractor: Extractor, workers: int, threads: int, options: argparse.Namespace
) -> Comparison:
    """One kind of clips."""
    with made(kind, quick=options.quick) as (paths, size):
        chain = Chain(paths, extractor, workers)
        comparison = compare(
            f"extraction, {kind}",
            {
                "together": chain.together,
                "decoding alone": chain.decoding_alone,
                "backbone alone": chain.backbone_alone,
            },
            unit="rows",
            rounds=1 if options.quick else options.rounds,
            warmup=0 if options.quick else options.warmup,
            facts={
                "clips": len(paths),
                "size": size,
                "frames_a_second": FRAME_RATE_HZ,
                "decoding_processes": workers,
                "backbone_threads": threads,
            },
        )
    return with_wanted(comparison)


def main() -> None:
    """Measures, prints, keeps."""
    import torch

    from nextvlad.extract import share_processors
    from nextvlad.video.extractor import Extractor

    options = parser(__doc__, rounds=5)
    options.add_argument("--workers", type=int, help="processes that decode; default: half of the processors")
    given = options.parse_args()
    workers, threads = share_processors(given.workers, given.threads)
    torch.set_num_threads(threads)
    extractor = Extractor()
    finish("extraction", [measured(kind, extractor, workers, threads, given) for kind in KINDS], given)


if __name__ == "__main__":
    main()
