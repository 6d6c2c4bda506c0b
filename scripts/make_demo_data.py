"""Make src/nextvlad/demo_data: JapaneseVowels as frame TFRecords, the same bytes every time.

    pip install --no-deps aeon==1.6.0
    python scripts/make_demo_data.py            # writes src/nextvlad/demo_data
    python scripts/make_demo_data.py OUT        # writes somewhere else

The set is 640 utterances of nine speakers, each 7 to 29 frames of 12 coefficients, with a published
split: 270 to train, 370 to test. `aeon` only carries the two text files; nothing of it is imported.
Values become bytes with YouTube-8M's quantiser, so that they are read like any other frame features.
"""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from nextvlad.data.tfrecord import RecordWriter
from nextvlad.data.video_record import VideoRecord, serialize_video_record

STREAM = "lpc"
NUM_SHARDS = 2
SPEAKERS = 9
LARGEST = 255 * 4 / 255 + 4 / 512 - 2
"""The largest value a byte can stand for; the smallest is 4/512 - 2."""


class Utterance(NamedTuple):
    """One recording: frames [T, 12] float64, and its speaker, 1 to 9."""

    frames: NDArray[np.float64]
    speaker: int


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the shards and the vocabulary, and print what the quantiser cost."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default_out = Path(__file__).resolve().parents[1] / "src" / "nextvlad" / "demo_data"
    parser.add_argument("out", nargs="?", type=Path, default=default_out, help="folder to write to")
    parser.add_argument("--source", type=Path, help="folder with the two .ts files; default: inside aeon")
    options = parser.parse_args(arguments)
    source = options.source or find_source()
    if source is None:
        parser.error("aeon is not installed: pip install --no-deps aeon==1.6.0, or pass --source FOLDER")
    options.out.mkdir(parents=True, exist_ok=True)
    splits = {
        "train": read_ts(source / "JapaneseVowels_TRAIN.ts"),
        "test": read_ts(source / "JapaneseVowels_TEST.ts"),
    }
    for split, utterances in splits.items():
        write_shards(options.out, split, utterances)
    rows = [f"{index},speaker {index + 1}\n" for index in range(SPEAKERS)]
    (options.out / "vocabulary.csv").write_text("index,name\n" + "".join(rows), encoding="utf-8", newline="")
    print(quantisation_report(np.concatenate([u.frames for split in splits.values() for u in split])))


def find_source() -> Path | None:
    """The folder of the .ts files inside the installed `aeon`, found without importing it."""
    spec = importlib.util.find_spec("aeon")
    if spec is None or spec.origin is None:
        return None
    return Path(spec.origin).parent / "datasets" / "data" / "JapaneseVowels"


def read_ts(path: Path) -> list[Utterance]:
    """Every utterance of a .ts file, in its order.

    After the @data line each line is one utterance: coefficients separated by `:`, each a comma-separated
    series over time, and the speaker last.
    """
    lines = path.read_text(encoding="utf-8").splitlines()
    utterances = []
    for line in lines[lines.index("@data") + 1 :]:
        *series, speaker = line.split(":")
        frames = np.array([one.split(",") for one in series], dtype=np.float64).T  # [T, 12]
        utterances.append(Utterance(frames, int(speaker)))
    return utterances


def quantise(values: NDArray[np.float64]) -> NDArray[np.uint8]:
    """The byte whose dequantised value q x 4/255 + 4/512 - 2 is nearest; values out of range are clipped."""
    return np.clip(np.rint((values + 2 - 4 / 512) * 255 / 4), 0, 255).astype(np.uint8)


def dequantise(bytes_: NDArray[np.uint8]) -> NDArray[np.float64]:
    """What a model makes of the bytes."""
    return bytes_.astype(np.float64) * (4 / 255) + (4 / 512 - 2)


def write_shards(out: Path, split: str, utterances: list[Utterance]) -> None:
    """Utterance i goes to shard i mod NUM_SHARDS: the source is sorted by speaker, the shards are mixed."""
    for shard in range(NUM_SHARDS):
        with RecordWriter(out / f"{split}-{shard:04d}-of-{NUM_SHARDS:04d}.tfrecord") as writer:
            for index in range(shard, len(utterances), NUM_SHARDS):
                utterance = utterances[index]
                record = VideoRecord(
                    video_id=f"{split}-{index:04d}",
                    labels=np.array([utterance.speaker - 1], dtype=np.int64),
                    streams={STREAM: quantise(utterance.frames)},
                    context={},
                )
                writer.write(serialize_video_record(record))


def quantisation_report(values: NDArray[np.float64]) -> str:
    """One line for README.md: clipped values, the largest and the typical error, [frames, 12] in."""
    error = dequantise(quantise(values)) - values
    inside = (values >= 4 / 512 - 2) & (values <= LARGEST)
    return (
        f"{values.size:,} values, {np.count_nonzero(~inside)} clipped "
        f"(largest {values.max():.3f} -> {LARGEST:.3f}); "
        f"error of the others at most {np.abs(error[inside]).max():.4f}, "
        f"root mean square {np.sqrt(np.mean(error**2)):.4f} where the values' own is {values.std():.3f}"
    )


if __name__ == "__main__":
    main()
