"""A video file -> the uint8 rows that a model is fed: read, embed, reduce, quantise.

For one file, `Extractor(options).extract(path)`. For many, read with `read_clip(path,
extractor.read_options)` in other processes and give the parts of several files together to `embed_pictures`
and `embed_sound` here.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nextvlad.errors import DataError, UsageError
from nextvlad.provenance import Provenance, StreamProvenance
from nextvlad.video.audio import LogMel
from nextvlad.video.backbone import (
    DEFAULT_AUDIO,
    DEFAULT_VISUAL,
    Backbone,
    audio_backbone,
    visual_backbone,
)
from nextvlad.video.clip import ClipPart, read_clip
from nextvlad.video.decode import ReadOptions
from nextvlad.video.pca import Pca
from nextvlad.video.quantise import Quantiser

VISUAL, AUDIO = "rgb", "audio"
"""Names of the streams, as in YouTube-8M."""


@dataclass(frozen=True)
class ExtractorOptions:
    """How features are made."""

    visual: str | None = DEFAULT_VISUAL
    """The backbone for pictures: a name, a file, `package.module:callable`; None: no such stream."""
    audio: str | None = DEFAULT_AUDIO
    """The backbone for sound, likewise."""
    visual_pca: Path | None = None
    """A PCA for the features of pictures (.npz, or a folder of YouTube-8M's matrices)."""
    audio_pca: Path | None = None
    rate_hz: float = 1.0
    """Rows a second."""
    batch_size: int = 32
    """Pictures that go through the backbone together; changes no result beyond rounding."""
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.visual is None and self.audio is None:
            raise UsageError("neither pictures nor sound are asked for; leave one of the two backbones.")
        for what, backbone, pca in (
            ("pictures", self.visual, self.visual_pca),
            ("sound", self.audio, self.audio_pca),
        ):
            if backbone is None and pca is not None:
                raise UsageError(f"{pca}: a PCA for {what}, of which no features are made; leave it out.")
        if self.batch_size < 1:
            raise UsageError(f"batch size {self.batch_size}; wanted 1 or more.")


@dataclass(frozen=True)
class Extracted:
    """The features of one clip.

    Attributes:
        video_id: the file's name without folder and ending, unless another was given.
        streams: name -> [T, D] uint8; a stream that the clip lacks has T = 0.
        seconds: [T] of `rgb`: when the picture of each row is first shown, from the start of the clip.
        level_db: [T] of `audio`: loudness in dBFS.
        notes: what was unusual, in sentences without a full stop.
        thumbnails: [T, S, S, 3] uint8, the pictures that were embedded, if asked for.
    """

    video_id: str
    streams: dict[str, NDArray[np.uint8]]
    seconds: NDArray[np.float64]
    level_db: NDArray[np.float32]
    notes: tuple[str, ...]
    thumbnails: NDArray[np.uint8] | None = None


class _Stream:
    """A backbone with its PCA and quantiser."""

    def __init__(self, backbone: Backbone, pca: Path | None) -> None:
        self.backbone = backbone
        self.pca = None if pca is None else Pca.load(pca)
        if self.pca is not None and len(self.pca.mean) != backbone.size:
            raise UsageError(
                f"{pca}: a PCA for {len(self.pca.mean)} numbers a row, but {backbone.name} gives "
                f"{backbone.size}; use the one that was fitted on its features."
            )
        # Whitened components fit [-2, 2] as they are.
        self.quantiser = backbone.quantiser if self.pca is None else Quantiser()

    @property
    def size(self) -> int:
        return self.backbone.size if self.pca is None else self.pca.size

    def floats(self, rows: NDArray[Any], batch_size: int) -> NDArray[np.float32]:
        parts = [self.backbone.embed(rows[i : i + batch_size]) for i in range(0, len(rows), batch_size)]
        values = np.concatenate(parts) if parts else self.backbone.embed(rows)
        return values if self.pca is None else self.pca.apply(values)

    def describe(self, rate_hz: float) -> dict[str, Any]:
        return {
            **self.backbone.describe(),
            "size": self.size,
            "rate_hz": rate_hz,
            "pca_sha256": None if self.pca is None else self.pca.sha256,
            "quantiser": self.quantiser.describe(),
        }


class Extractor:
    """Loads the backbones once; then any number of files.

    Raises:
        UsageError: a backbone or PCA is not there, or something is not installed.
        ConfigError: the JSON file of a backbone is wrong.
        DataError: a file of weights is damaged.
    """

    def __init__(self, options: ExtractorOptions | None = None) -> None:
        self.options = options = options or ExtractorOptions()
        self._streams: dict[str, _Stream] = {}
        if options.visual is not None:
            backbone = visual_backbone(options.visual, device=options.device)
            self._streams[VISUAL] = _Stream(backbone, options.visual_pca)
        if options.audio is not None:
            backbone = audio_backbone(options.audio, device=options.device)
            self._streams[AUDIO] = _Stream(backbone, options.audio_pca)
        reading = self.read_options  # a rate that cannot be is told now, not at the first file
        if reading.sound and reading.sound_window_seconds is None:
            LogMel(reading.rate_hz)

    @property
    def sizes(self) -> dict[str, int]:
        """D of each stream."""
        return {name: stream.size for name, stream in self._streams.items()}

    @property
    def read_options(self) -> ReadOptions:
        """What `read_clip` is to read for this extractor; picklable."""
        options = ReadOptions(
            rate_hz=self.options.rate_hz, pictures=VISUAL in self._streams, sound=AUDIO in self._streams
        )
        if VISUAL in self._streams:
            backbone = self._streams[VISUAL].backbone
            assert backbone.image_size is not None
            assert backbone.fit is not None
            options = replace(options, image_size=backbone.image_size, fit=backbone.fit)
        if AUDIO in self._streams:
            window = self._streams[AUDIO].backbone.sound_window_seconds
            options = replace(options, sound_window_seconds=window)
        return options

    def embed_pictures(self, pictures: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Pictures [n, S, S, 3] uint8, of any clips -> their rows [n, D] uint8."""
        return self._quantised(VISUAL, pictures)

    def embed_sound(self, sound: NDArray[np.float32]) -> NDArray[np.uint8]:
        """Rows of `ClipPart.sound` [m, ...], of any clips -> [m, D] uint8."""
        return self._quantised(AUDIO, sound)

    def floats(self, part: ClipPart) -> dict[str, NDArray[np.float32]]:
        """Each stream's rows before quantisation (after the PCA, if there is one), to fit or to measure."""
        rows: dict[str, NDArray[Any]] = {VISUAL: part.pictures, AUDIO: part.sound}
        return {
            name: stream.floats(rows[name], self.options.batch_size) for name, stream in self._streams.items()
        }

    def quantiser(self, stream: str) -> Quantiser:
        """What makes bytes of a stream's values."""
        return self._streams[stream].quantiser

    def extract(
        self,
        path: str | os.PathLike[str],
        *,
        video_id: str | None = None,
        start_seconds: float | None = None,
        end_seconds: float | None = None,
        thumbnails: bool = False,
    ) -> Extracted:
        """The features of one file, or of a cut of it.

        Raises:
            VideoError: the file cannot be read.
        """
        options = replace(self.read_options, start_seconds=start_seconds, end_seconds=end_seconds)
        parts: dict[str, list[Any]] = {"seconds": [], "level_db": [], VISUAL: [], AUDIO: [], "pictures": []}
        notes: tuple[str, ...] = ()
        for part in read_clip(path, options):
            parts["seconds"].append(part.seconds)
            parts["level_db"].append(part.level_db)
            if VISUAL in self._streams:
                parts[VISUAL].append(self.embed_pictures(part.pictures))
            if AUDIO in self._streams:
                parts[AUDIO].append(self.embed_sound(part.sound))
            if thumbnails:
                parts["pictures"].append(part.pictures)
            notes = part.notes
        return Extracted(
            video_id=video_id if video_id is not None else Path(path).stem,
            streams={name: np.concatenate(parts[name]) for name in self._streams},
            seconds=np.concatenate(parts["seconds"]),
            level_db=np.concatenate(parts["level_db"]),
            notes=notes,
            thumbnails=np.concatenate(parts["pictures"]) if thumbnails else None,
        )

    def describe(self) -> dict[str, dict[str, Any]]:
        """How each stream is made, as JSON values; the keys are those of `StreamProvenance`."""
        return {name: stream.describe(self.options.rate_hz) for name, stream in self._streams.items()}

    def provenance(self) -> Provenance:
        """The same, as it is written beside features and compared with a model's."""
        return Provenance({name: StreamProvenance(**values) for name, values in self.describe().items()})

    def _quantised(self, name: str, rows: NDArray[Any]) -> NDArray[np.uint8]:
        stream = self._streams.get(name)
        if stream is None:
            raise UsageError(f"this extractor makes no stream {name}.")
        try:
            return stream.quantiser.quantise(stream.floats(rows, self.options.batch_size))
        except MemoryError as error:
            raise DataError("not enough memory for the backbone; lower the batch size.") from error
