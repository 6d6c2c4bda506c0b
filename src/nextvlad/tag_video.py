"""One video file, tagged: read once, made features of, classified, and explained second by second."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from nextvlad.contributions import Seconds, intervals
from nextvlad.errors import UsageError
from nextvlad.inference import check_finite
from nextvlad.models import InferenceModel
from nextvlad.video.clip import read_clip
from nextvlad.video.extractor import AUDIO, VISUAL, Extractor
from nextvlad.video.files import Media
from nextvlad.video_files import shown

MOST_THUMBNAILS = 96
"""Of a video; between half of it and all of it are kept, whatever its length."""
THUMBNAIL_SIZE = 112
"""Pixels a side: what the backbone is shown, made smaller."""

_JPEG_QUALITY = 80


@dataclass(frozen=True, kw_only=True)
class Tag:
    """One label of a video.

    Attributes:
        label: class index.
        name: its name; the index as text where no vocabulary is known.
        score: probability that the model gives it for the whole video.
        threshold: the score from which it counts; None: every score does.
        contributions: [T] float32: the label's logit minus that without each second; see
            `nextvlad.contributions`.
        intervals: [start, end) in seconds of the stretches that speak for it, in order.
        score_without: what the score would be without those stretches; None where there are none.
    """

    label: int
    name: str
    score: float
    threshold: float | None
    contributions: NDArray[np.float32]
    intervals: list[tuple[float, float]]
    score_without: float | None


@dataclass(frozen=True, kw_only=True)
class TaggedVideo:
    """A video and its labels.

    Attributes:
        video_id: the file's name without folder and ending.
        path: the file, as text (`nextvlad.video_files.shown`).
        tags: best first; those that reach their threshold.
        duration_seconds: of its steps together; up to half a row more or less than what the file says.
        step_seconds: how long a step of `contributions` is; 1.0 for features of one row a second or more.
        attention: name of a stream -> [T] float64, see `Seconds.attention`; empty for models without it.
        level_db: [m] float32, loudness of each row of sound in dBFS; empty where there is no sound.
        level_step_seconds: how long such a row is.
        thumbnails: (second, JPEG) of pictures spread evenly over the video; empty unless asked for.
        facts: what the file says of itself, in words: name of a fact -> value.
        notes: what was unusual, in sentences without a full stop.
    """

    video_id: str
    path: str
    tags: list[Tag]
    duration_seconds: float
    step_seconds: float
    attention: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    level_db: NDArray[np.float32] = field(default_factory=lambda: np.empty(0, np.float32))
    level_step_seconds: float = 1.0
    thumbnails: list[tuple[float, bytes]] = field(default_factory=list)
    facts: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Which labels of a video are wanted.

    Attributes:
        top_k: at most so many, the best ones.
        thresholds: [C] scores that labels must reach; None: all do.
        names: of the C classes; None: they are called by their index.
    """

    top_k: int
    thresholds: NDArray[np.float32] | None = None
    names: Sequence[str] | None = None


@dataclass(frozen=True)
class Footage:
    """What was read of a video: its features, and what people want to see of it."""

    streams: dict[str, NDArray[np.uint8]]
    level_db: NDArray[np.float32]
    thumbnails: list[tuple[float, bytes]]
    media: Media
    notes: tuple[str, ...]


def tag_video(
    model: InferenceModel,
    extractor: Extractor,
    path: str,
    choice: Choice,
    *,
    video_id: str,
    max_rows: int | None = None,
    thumbnails: bool = False,
    on_rows: Callable[[int], None] | None = None,
) -> TaggedVideo:
    """Reads one video and tags it, all of it, however long.

    Args:
        model: in fp32.
        extractor: makes the features that the model was trained on.
        path: the file.
        choice: which labels are wanted.
        video_id: its name in results.
        max_rows: how many rows of a stream the model saw in training; a longer video gets a note.
        thumbnails: keep small pictures too.
        on_rows: called now and then with the number of rows (seconds) read since.

    Raises:
        VideoError: the file cannot be read.
        DataError: its features, or what the model makes of them, are not finite.
    """
    footage = read_footage(extractor, path, thumbnails=thumbnails, on_rows=on_rows)
    rate = extractor.options.rate_hz
    seconds = Seconds(model, footage.streams, rates_hz=rate)
    check_finite(seconds.logits[None], [path])
    num_rows = max((len(rows) for rows in footage.streams.values()), default=0)
    notes = footage.notes
    if max_rows is not None and num_rows > max_rows:
        notes = (
            *notes,
            f"{num_rows:,} rows, all of them used; the model saw at most {max_rows:,} in training",
        )
    return TaggedVideo(
        video_id=video_id,
        path=shown(path),
        tags=_tags(seconds, choice),
        duration_seconds=num_rows / rate,
        step_seconds=seconds.step_seconds,
        attention=seconds.attention,
        level_db=footage.level_db,
        level_step_seconds=1.0 / rate,
        thumbnails=footage.thumbnails,
        facts=_facts(footage.media, rate),
        notes=notes,
    )


def read_footage(
    extractor: Extractor,
    path: str,
    *,
    thumbnails: bool = False,
    on_rows: Callable[[int], None] | None = None,
) -> Footage:
    """One pass over a file. Memory: the features, and at most `MOST_THUMBNAILS` small pictures.

    Raises:
        VideoError: the file cannot be read.
    """
    rows: dict[str, list[NDArray[np.uint8]]] = {name: [] for name in extractor.sizes}
    levels: list[NDArray[np.float32]] = []
    kept = _Thumbnails()
    for part in read_clip(path, extractor.read_options):
        if VISUAL in rows:
            rows[VISUAL].append(extractor.embed_pictures(part.pictures))
        if AUDIO in rows:
            rows[AUDIO].append(extractor.embed_sound(part.sound))
        levels.append(part.level_db)
        if thumbnails:
            kept.add(part.pictures)
        if on_rows is not None:
            on_rows(max(len(part.pictures), len(part.sound)))
        media, notes = part.media, part.notes
    rate = extractor.options.rate_hz
    return Footage(
        streams={name: np.concatenate(parts) for name, parts in rows.items()},
        level_db=np.concatenate(levels),
        thumbnails=[((row + 0.5) / rate, jpeg) for row, jpeg in kept.jpegs],
        media=media,
        notes=notes,
    )


class _Thumbnails:
    """Every so manieth picture; every other one of them is dropped whenever they become too many."""

    def __init__(self) -> None:
        self.jpegs: list[tuple[int, bytes]] = []
        self._every, self._seen = 1, 0

    def add(self, pictures: NDArray[np.uint8]) -> None:
        for picture in pictures:
            if self._seen % self._every == 0:
                if len(self.jpegs) == MOST_THUMBNAILS:
                    self.jpegs = self.jpegs[::2]
                    self._every *= 2
                if self._seen % self._every == 0:
                    self.jpegs.append((self._seen, thumbnail(picture)))
            self._seen += 1


def thumbnail(picture: NDArray[np.uint8]) -> bytes:
    """A picture [S, S, 3] as a small JPEG.

    Raises:
        UsageError: Pillow is not installed.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise UsageError(
            f"thumbnails need Pillow, which does not import ({error}); pip install 'nextvlad[video]'."
        ) from error
    out = io.BytesIO()
    image = Image.fromarray(picture).resize((THUMBNAIL_SIZE, THUMBNAIL_SIZE), Image.Resampling.LANCZOS)
    image.save(out, "JPEG", quality=_JPEG_QUALITY, optimize=True)
    return out.getvalue()


def _tags(seconds: Seconds, choice: Choice) -> list[Tag]:
    scores, order = torch.sort(torch.sigmoid(seconds.logits), descending=True, stable=True)
    found = [
        (label, score)
        for label, score in zip(order[: choice.top_k].tolist(), scores.tolist(), strict=False)
        if choice.thresholds is None or score >= choice.thresholds[label]
    ]
    labels = [label for label, _ in found]
    curves = seconds.contributions(labels)
    stretches = [intervals(curve) for curve in curves]
    without = torch.sigmoid(seconds.logits_of(_outside(stretches, seconds.num_steps)))
    step = seconds.step_seconds
    return [
        Tag(
            label=label,
            name=choice.names[label] if choice.names else str(label),
            score=score,
            threshold=None if choice.thresholds is None else float(choice.thresholds[label]),
            contributions=curves[row],
            intervals=[(first * step, end * step) for first, end in stretches[row]],
            score_without=without[row, label].item() if stretches[row] else None,
        )
        for row, (label, score) in enumerate(found)
    ]


def _outside(stretches: list[list[tuple[int, int]]], num_steps: int) -> NDArray[np.bool_]:
    """For each label [T], True outside of its stretches."""
    rest = np.ones((len(stretches), num_steps), bool)
    for row, of_label in enumerate(stretches):
        for first, end in of_label:
            rest[row, first:end] = False
    return rest


def _facts(media: Media, rate_hz: float) -> dict[str, str]:
    """What the file says of itself, for people."""
    picture = [
        f"{media.width} x {media.height}" if media.width else "",
        f"{media.frame_rate_hz:.4g} Hz" if media.frame_rate_hz else "",
        media.video_codec or "",
    ]
    sound = [
        media.audio_codec or "",
        f"{media.audio_rate_hz / 1000:g} kHz" if media.audio_rate_hz else "",
        {None: "", 1: "mono", 2: "stereo"}.get(media.audio_channels, f"{media.audio_channels} channels"),
    ]
    return {
        "length": _length(media.duration_seconds),
        "picture": ", ".join(filter(None, picture)) if media.has_video else "none",
        "sound": ", ".join(filter(None, sound)) if media.has_audio else "none",
        "rows": f"{rate_hz:g} a second",
    }


def _length(seconds: float | None) -> str:
    if seconds is None:
        return ""
    minutes, rest = divmod(seconds, 60)
    return f"{seconds:.1f} s" if seconds < 60 else f"{minutes:.0f} min {rest:.0f} s"
