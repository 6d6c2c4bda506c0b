"""The extractor that makes for a video the features that a model was trained on, or why there is none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nextvlad.config import StreamConfig
from nextvlad.errors import DataError, UsageError
from nextvlad.provenance import Provenance, StreamProvenance, check_match
from nextvlad.video.backbone import DEFAULT_AUDIO, DEFAULT_VISUAL
from nextvlad.video.extractor import AUDIO, VISUAL, Extractor, ExtractorOptions

_DEFAULTS = {VISUAL: DEFAULT_VISUAL, AUDIO: DEFAULT_AUDIO}
_OPTIONS = {VISUAL: "visual", AUDIO: "audio"}


@dataclass(frozen=True, kw_only=True)
class FeatureOptions:
    """How features are made, where the checkpoint cannot say all of it."""

    visual: str | None = None
    """The backbone for pictures, if it is not the default: .onnx or .pt2 file, or package.module:callable."""
    audio: str | None = None
    """The backbone for sound, likewise."""
    visual_pca: Path | None = None
    """The PCA for the features of pictures, if one was used."""
    audio_pca: Path | None = None
    """The PCA for the features of sound."""
    trust_features: bool = False
    """Take this extractor for that of the training, though it is another or the training's is not known."""


def open_extractor(
    provenance: Provenance | None,
    streams: Sequence[StreamConfig],
    options: FeatureOptions,
    *,
    whose: str,
    device: str = "cpu",
) -> Extractor:
    """Makes the extractor of a model's features, and makes sure that it is the one of its training.

    Args:
        provenance: what the checkpoint says of them; None: nothing.
        streams: of the model.
        options: what the user says of them.
        whose: the checkpoint, as messages name it.
        device: for the backbones.

    Raises:
        DataError: nothing is known of the features, or they were made in another way; both sides are shown.
        UsageError: streams that no extractor makes; a backbone or PCA must be named, or is not there.
    """
    names = [stream.name for stream in streams]
    unknown = [name for name in names if name not in _OPTIONS]
    if unknown:
        raise UsageError(
            f"{whose}: its model wants the stream {unknown[0]}, which no extractor here makes (wanted "
            f"{VISUAL} or {AUDIO}). Train a model on features of `nextvlad extract`, or give features of its "
            "own kind to `nextvlad predict`."
        )
    if provenance is None and not options.trust_features:
        raise DataError(
            f"{whose}: nothing says how the features were made that its model was trained on, as with those "
            "of YouTube-8M and AudioSet, and features of another extractor would give nonsense. Train a "
            "model on features of `nextvlad extract`; or give features of its own kind to `nextvlad "
            "predict`; or, if you have the very extractor they were made with, name it (--visual, --audio, "
            "--visual-pca, --audio-pca) and add --trust-features."
        )
    known = {name: provenance.streams.get(name) if provenance else None for name in names}
    extractor = Extractor(
        ExtractorOptions(
            visual=_backbone(VISUAL, known, options.visual, whose),
            audio=_backbone(AUDIO, known, options.audio, whose),
            visual_pca=_pca(VISUAL, known, options.visual_pca, whose),
            audio_pca=_pca(AUDIO, known, options.audio_pca, whose),
            rate_hz=next((of.rate_hz for of in known.values() if isinstance(of, StreamProvenance)), 1.0),
            device=device,
        )
    )
    if not options.trust_features:
        check_match(
            provenance,
            extractor.provenance(),
            streams=names,
            wanted_by=f"the model in {whose}",
            found_in="this extractor",
        )
    for stream in streams:
        if extractor.sizes[stream.name] != stream.size:
            raise UsageError(
                f"{whose}: its model wants {stream.size} numbers a row of {stream.name}, this extractor "
                f"makes {extractor.sizes[stream.name]}. Name the one of its training with "
                f"--{_OPTIONS[stream.name]} and --{_OPTIONS[stream.name]}-pca."
            )
    return extractor


def _backbone(
    stream: str,
    known: dict[str, StreamProvenance | str | None],
    given: str | None,
    whose: str,
) -> str | None:
    """What makes the stream: as given, or the default if that is the one; None if the model has no use."""
    option = f"--{_OPTIONS[stream]}"
    if stream not in known:
        if given is not None:
            raise UsageError(f"{option} {given}: the model in {whose} has no stream {stream}. Leave it out.")
        return None
    made = known[stream]
    default = _DEFAULTS[stream]
    if given is None and isinstance(made, StreamProvenance) and made.extractor != default:
        raise UsageError(
            f"{whose}: its model was trained on {stream} features of {made.extractor!r}, not of the default "
            f"{default!r}. Name it with {option}: an .onnx or .pt2 file, or package.module:callable."
        )
    return default if given is None else given


def _pca(
    stream: str,
    known: dict[str, StreamProvenance | str | None],
    given: Path | None,
    whose: str,
) -> Path | None:
    made = known.get(stream)
    if given is None and isinstance(made, StreamProvenance) and made.pca_sha256 is not None:
        raise UsageError(
            f"{whose}: the {stream} features of its model went through a PCA (sha256 "
            f"{made.pca_sha256[:12]}...). Name its file with --{_OPTIONS[stream]}-pca."
        )
    return given
