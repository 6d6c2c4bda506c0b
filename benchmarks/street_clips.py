"""Real clips for small_data.py: a street film cut into tiles and seconds, labelled by what moves in them.

    apt-get download opencv-doc && dpkg-deb --extract opencv-doc_*.deb .
    python benchmarks/street_clips.py usr/share/doc/opencv-doc/examples/data/vtest.avi clips
    nextvlad extract clips --labels clips/labels.csv --group-column camera --out features
    python benchmarks/small_data.py --features 'features/*.tfrecord' --group '^camera[0-9]+'

The film is OpenCV's example of people walking, seen by one camera that stands still (768 x 576, 10 frames a
second; in Debian and Ubuntu's package opencv-doc, some releases gzipped). It is cut into 3 x 4 tiles, as if
twelve cameras looked at twelve places, and each tile into clips of five seconds. No person labelled them: a
pixel is foreground where it differs from the film's median by more than 28 of 255, a clip is "busy" where at
some moment more than 2.4 % of its blocks of 8 x 8 pixels are foreground, otherwise "quiet". Half of the clips
are busy.
"""

from __future__ import annotations

import csv
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

ROWS, COLUMNS = 3, 4
CLIP_FRAMES = 50
LEAST_FRAMES = 26  # of the last clip
RATE_HZ = 10
_BUSY = 0.024
_BLOCK = 8


def main() -> None:
    """Writes clips/*.mp4 and clips/labels.csv."""
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    source, out = sys.argv[1], Path(sys.argv[2])
    with av.open(source) as container:
        film = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    share = foreground(film)
    height, width = film.shape[1] // ROWS, film.shape[2] // COLUMNS
    out.mkdir(parents=True, exist_ok=True)
    table = []
    for tile in range(ROWS * COLUMNS):
        top, left = tile // COLUMNS * height, tile % COLUMNS * width
        for number, start in enumerate(range(0, len(film) - LEAST_FRAMES + 1, CLIP_FRAMES)):
            piece = slice(start, start + CLIP_FRAMES)
            name = f"camera{tile:02d}_{number:03d}.mp4"
            encode(film[piece, top : top + height, left : left + width], out / name)
            label = "busy" if share[piece, tile].max() > _BUSY else "quiet"
            table.append([name, label, f"camera{tile:02d}"])
    with open(out / "labels.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["path", "labels", "camera"], *table])
    busy = sum(row[1] == "busy" for row in table)
    print(f"{len(table)} clips, {busy} of them busy -> {out}")


def foreground(film: NDArray[np.uint8]) -> NDArray[np.float64]:
    """[T, tiles]: the share of blocks of each tile in which something is before the background."""
    gray = film.mean(axis=3, dtype=np.float32).astype(np.int16)
    background = np.median(gray[::8], axis=0).astype(np.int16)
    moving = np.abs(gray - background) > 28  # [T, H, W]
    frames, height, width = moving.shape
    down, across = height // ROWS // _BLOCK, width // COLUMNS // _BLOCK
    blocks = moving.reshape(frames, ROWS, down, _BLOCK, COLUMNS, across, _BLOCK).mean(axis=(3, 6)) > 0.4
    share: NDArray[np.float64] = blocks.mean(axis=(2, 4)).reshape(frames, ROWS * COLUMNS)
    return share


def encode(pictures: NDArray[np.uint8], path: Path) -> None:
    """[T, H, W, 3] as H.264, nearly lossless."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(RATE_HZ), options={"crf": "12"})
        stream.height, stream.width, stream.pix_fmt = pictures.shape[1], pictures.shape[2], "yuv420p"
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))


if __name__ == "__main__":
    main()
