"""What turns pictures or sound into numbers: the defaults, or a network of the user's own.

A backbone of one's own is an ONNX file, a file of `torch.export`, or `package.module:callable`, with a JSON
file beside it that says what it wants to be fed (`BackboneFile`; docs/features.md has recipes).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nextvlad.errors import DataError
from nextvlad.video import audio, efficientnet_lite
from nextvlad.video.picture import Fit
from nextvlad.video.quantise import Quantiser

DEFAULT_VISUAL = "efficientnet-lite0"
DEFAULT_AUDIO = "log-mel"

Run = Callable[[NDArray[Any]], NDArray[np.float32]]


@dataclass(frozen=True)
class Backbone:
    """Something that embeds pictures or sound.

    Attributes:
        name: as provenance tells it.
        size: D, numbers a row.
        weights_sha256: of its file; None where it has no weights.
        preprocessing: JSON values: everything that is done to a picture or to sound before it.
        quantiser: brings its values to the range of bytes.
        image_size: S of the pictures it wants; None for sound.
        fit: how pictures become squares; None for sound.
        sound_window_seconds: of the samples that it wants a row; None for log-mel rows, and for pictures.
    """

    name: str
    size: int
    weights_sha256: str | None
    preprocessing: dict[str, Any]
    quantiser: Quantiser
    run: Run
    image_size: int | None = None
    fit: Fit | None = None
    sound_window_seconds: float | None = None

    def embed(self, rows: NDArray[Any]) -> NDArray[np.float32]:
        """Pictures [n, S, S, 3] uint8, or sound [n, ...] float32 as in `ClipPart`, -> [n, D] float32.

        Raises:
            DataError: the network fails, or gives another shape or values that are not finite.
        """
        if not len(rows):
            return np.zeros((0, self.size), dtype=np.float32)
        values = np.asarray(self.run(rows), dtype=np.float32)
        check_shape(self.name, values, (len(rows), self.size))
        if not np.isfinite(values).all():
            raise DataError(f"{self.name}: gave values that are not finite.")
        return values

    def describe(self) -> dict[str, Any]:
        """Name, hash of the weights and preprocessing as JSON values."""
        return {
            "extractor": self.name,
            "weights_sha256": self.weights_sha256,
            "preprocessing": self.preprocessing,
            "size": self.size,
        }


def check_shape(name: str, values: NDArray[Any], wanted: tuple[int, int]) -> None:
    """Raises DataError unless the network of this name gave `wanted`: [n, D]."""
    if values.shape != wanted:
        raise DataError(
            f"{name}: gave an array of shape {list(values.shape)} for {wanted[0]} rows; wanted "
            f"{list(wanted)}. Check `size` and `output` in its JSON file."
        )


def visual_backbone(spec: str = DEFAULT_VISUAL, *, device: str = "cpu") -> Backbone:
    """The backbone for pictures that `spec` names: the default's name, a file, or `package.module:callable`.

    Raises:
        UsageError: there is no such thing, or what it needs is not installed.
        ConfigError: its JSON file is wrong.
        DataError: its file is damaged.
    """
    if spec == DEFAULT_VISUAL:
        return _efficientnet_lite0(device)
    from nextvlad.video.own_backbone import own_backbone

    return own_backbone(spec, "rgb", device)


def audio_backbone(spec: str = DEFAULT_AUDIO, *, device: str = "cpu") -> Backbone:
    """Likewise for sound."""
    if spec == DEFAULT_AUDIO:
        return _log_mel()
    from nextvlad.video.own_backbone import own_backbone

    return own_backbone(spec, "audio", device)


def file_sha256(path: Path) -> str:
    """Of a file's bytes.

    Raises:
        UsageError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        from nextvlad.files import cannot_open

        raise cannot_open(str(path), error) from error


def _efficientnet_lite0(device: str) -> Backbone:
    import torch

    path = efficientnet_lite.weights_path()
    network = efficientnet_lite.load(path).to(device)

    def run(pictures: NDArray[np.uint8]) -> NDArray[np.float32]:
        with torch.inference_mode():
            x = torch.from_numpy(pictures).to(device).permute(0, 3, 1, 2)  # channels last in memory
            x = (x.float() - efficientnet_lite.MEAN) / efficientnet_lite.DEVIATION
            values: NDArray[np.float32] = network(x).cpu().numpy()
        return values

    return Backbone(
        name=DEFAULT_VISUAL,
        size=efficientnet_lite.NUM_FEATURES,
        weights_sha256=file_sha256(path),
        preprocessing={
            "image_size": efficientnet_lite.IMAGE_SIZE,
            "fit": "crop",
            "channels": "rgb",
            "mean": efficientnet_lite.MEAN,
            "deviation": efficientnet_lite.DEVIATION,
        },
        # Averages of ReLU6: half of them 0, mean 0.16, deviation 0.41 on photographs, 1 in 300 above 2.87.
        quantiser=Quantiser(centre=(0.2,), scale=(0.75,)),
        run=run,
        image_size=efficientnet_lite.IMAGE_SIZE,
        fit="crop",
    )


def _log_mel() -> Backbone:
    return Backbone(
        name=DEFAULT_AUDIO,
        size=audio.SIZE,
        weights_sha256=None,
        preprocessing=audio.describe(),
        # log(0.01) = -4.6 is silence; a full-scale tone gives about 4.6, loud music up to 3.
        quantiser=Quantiser(centre=(-0.5, 0.8), scale=(0.45, 1.2)),
        run=lambda rows: rows,
    )
