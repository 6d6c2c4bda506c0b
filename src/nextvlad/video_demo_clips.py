"""The clips of `nextvlad demo --video`: planned, drawn, encoded and labelled by themselves.

They are synthetic, and look it: drawn subjects float over drawn backdrops, and computed sounds play. What
makes them videos all the same are real containers and codecs, several labels a clip, each there only part of
the time, shapes and sounds that no label is for, and chance in everything else: colour, size, place, motion,
camera, backdrop, noise, tempo, pitch, loudness, length, format. Each clip has numbers of its own, so a clip
held out shares none with those trained on.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal, NamedTuple

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from nextvlad.data.file_processes import each_file
from nextvlad.files import NewFile, write_json
from nextvlad.progress import ProgressBar
from nextvlad.video_demo_drawings import (
    DISTRACTORS,
    SUBJECTS,
    choose_palette,
    draw_background,
    draw_distractor,
    draw_subject,
)
from nextvlad.video_demo_sounds import DISTRACTING_SOUNDS, SOUNDS, Samples, fade

Split = Literal["train", "valid", "test"]

VISUAL = tuple(SUBJECTS)
"""Labels that are seen."""
HEARD = tuple(SOUNDS)
"""Labels that are heard."""

_SIZES = ((256, 192), (224, 160), (256, 144), (208, 208), (176, 240))  # width, height; the last is upright
_RATES_HZ = (Fraction(6), Fraction(15, 2), Fraction(8))


class Format(NamedTuple):
    """A container and what is in it, in FFmpeg's names; options are for speed."""

    suffix: str
    video: str
    video_options: dict[str, str]
    audio: str
    audio_options: dict[str, str]
    audio_rate_hz: int


_H264 = {"preset": "ultrafast", "crf": "23"}
_VP9 = {"deadline": "realtime", "cpu-used": "8", "crf": "34", "b": "0"}
_FAST_AAC = {"aac_coder": "fast", "b": "64000"}

FORMATS = (
    Format(".mp4", "libx264", _H264, "aac", _FAST_AAC, 44_100),
    Format(".mkv", "libx264", _H264, "flac", {}, 22_050),
    Format(".webm", "libvpx-vp9", _VP9, "libopus", {"b": "48000", "compression_level": "2"}, 48_000),
    Format(".mov", "mpeg4", {"b": "500000"}, "aac", _FAST_AAC, 32_000),
    Format(".avi", "mpeg4", {"b": "400000"}, "libmp3lame", {"b": "64000", "compression_level": "9"}, 24_000),
)
_FALLBACK = Format(".mp4", "mpeg4", {"b": "500000"}, "aac", _FAST_AAC, 44_100)  # in every build of FFmpeg


@dataclass(frozen=True)
class Event:
    """A label, and when it is to be seen or heard.

    Attributes:
        label: of VISUAL or HEARD.
        start_seconds: from the clip's beginning.
        end_seconds: from the clip's beginning, exclusive.
        seed: of everything about it that is left to chance.
    """

    label: str
    start_seconds: float
    end_seconds: float
    seed: int


@dataclass(frozen=True)
class ClipPlan:
    """Everything that decides a clip.

    Attributes:
        name: of the file.
        split: "train", "valid" or "test".
        seconds: its length.
        events: the truth about it.
        seed: of backdrop, camera, noise and what distracts.
        silent: without a sound track.
        format: container and codecs.
    """

    name: str
    split: Split
    seconds: float
    events: tuple[Event, ...]
    seed: int
    silent: bool
    format: Format

    @property
    def labels(self) -> tuple[str, ...]:
        """Each label once."""
        return tuple(dict.fromkeys(event.label for event in self.events))


def plan_clips(*, num_train: int, num_valid: int, num_test: int, seed: int = 0) -> list[ClipPlan]:
    """What to draw; nothing is drawn yet. The same arguments give the same clips.

    Args:
        num_train: clips to train on.
        num_valid: clips to choose the checkpoint by.
        num_test: clips to score.
        seed: 0 or more.
    """
    plans = []
    formats = [entry for entry in FORMATS if _can_encode(entry)] or [_FALLBACK]
    counts: dict[Split, int] = {"train": num_train, "valid": num_valid, "test": num_test}
    for part, (split, count) in enumerate(counts.items()):
        numbers = np.random.default_rng([seed, part])
        seen, heard = _deck(numbers, VISUAL), _deck(numbers, HEARD)
        for index in range(count):
            seconds = round(float(numbers.uniform(6.5, 9.0)), 1)
            silent = index % 12 == 11
            num_seen = int(numbers.choice([0, 1, 2], p=[0.1, 0.55, 0.35])) if not silent else 1
            num_heard = int(numbers.choice([0, 1, 2], p=[0.1, 0.65, 0.25])) if not silent else 0
            if num_seen + num_heard == 0:
                num_seen = 1
            labels = _deal(seen, num_seen), _deal(heard, num_heard)
            format_ = formats[index % len(formats)]
            plans.append(
                ClipPlan(
                    name=f"{split}_{index:04d}{format_.suffix}",
                    split=split,
                    seconds=seconds,
                    events=tuple(event for kind in labels for event in _events(numbers, kind, seconds)),
                    seed=int(numbers.integers(2**62)),
                    silent=silent,
                    format=format_,
                )
            )
    return plans


def _deck(numbers: np.random.Generator, labels: Sequence[str]) -> Iterator[str]:
    """Labels without end, each as often as the others."""
    while True:
        for index in numbers.permutation(len(labels)):
            yield labels[index]


def _deal(deck: Iterator[str], count: int) -> list[str]:
    """The next `count` labels that differ; one that comes twice is passed over."""
    dealt: list[str] = []
    while len(dealt) < count:
        label = next(deck)
        if label not in dealt:
            dealt.append(label)
    return dealt


def _events(numbers: np.random.Generator, labels: Sequence[str], clip_seconds: float) -> Iterator[Event]:
    """One label, or two: each there for a part of the time, the first of two early and the other late."""
    for number, label in enumerate(labels):
        length = numbers.uniform(2.5, 5.0 if len(labels) == 1 else 0.55 * clip_seconds)
        place = numbers.random()  # 0: as early as it can be; 1: as late
        if len(labels) == 2:
            place = 0.3 * place if number == 0 else 1.0 - 0.3 * place
        start = round(float(place * (clip_seconds - length)), 1)
        end = round(min(start + length, clip_seconds), 1)
        yield Event(label, start, end, int(numbers.integers(2**62)))


def _can_encode(format_: Format) -> bool:
    try:
        return bool(av.codec.Codec(format_.video, "w") and av.codec.Codec(format_.audio, "w"))
    except ValueError:  # a build of FFmpeg without it
        return False


def make_clips(plans: Sequence[ClipPlan], out: Path, *, workers: int | None = None) -> None:
    """Draws and encodes the clips into `out`, with labels.csv and truth.json.

    labels.csv is what `nextvlad extract --labels` reads: path, labels joined by ";", split. truth.json has
    the seconds of every label of every clip besides.

    Args:
        plans: of `plan_clips`.
        out: the folder; made if it is not there.
        workers: processes; 0: this one; None: one a processor, at most 8.

    Raises:
        NextvladError: a file cannot be written.
    """
    out.mkdir(parents=True, exist_ok=True)
    files = [(number, str(out / plan.name)) for number, plan in enumerate(plans)]
    with ProgressBar("Drawing", total=len(plans), unit="clips") as bar:
        for _ in each_file(files, _Encoder(tuple(plans)), workers=workers, on_bytes=lambda count: None):
            bar.advance(1)
    write_json(out / "truth.json", {plan.name: _truth(plan) for plan in plans})
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["path", "labels", "split"])
    writer.writerows([plan.name, ";".join(plan.labels), plan.split] for plan in plans)
    with NewFile(out / "labels.csv") as file:
        file.write(table.getvalue().encode())


def _truth(plan: ClipPlan) -> list[dict[str, Any]]:
    return [
        {"label": event.label, "start_seconds": event.start_seconds, "end_seconds": event.end_seconds}
        for event in plan.events
    ]


class _Encoder:
    """Work on one file, in a process of its own."""

    def __init__(self, plans: tuple[ClipPlan, ...]) -> None:
        self.plans = plans

    def __call__(self, number: int, path: str, on_bytes: Callable[[int], None]) -> None:
        del on_bytes
        encode(self.plans[number], Path(path))


def encode(plan: ClipPlan, path: Path) -> None:
    """One clip, drawn and written aside, then renamed."""
    format_ = plan.format
    sound = None if plan.silent else render_sound(plan, format_.audio_rate_hz)
    buffer = io.BytesIO()
    with av.open(
        buffer, "w", format=_container(format_.suffix), options={"fflags": "+bitexact"}
    ) as container:
        scene = _Scene(plan)
        video: Any = container.add_stream(format_.video, rate=scene.rate_hz, options=format_.video_options)
        video.width, video.height, video.pix_fmt = scene.width, scene.height, "yuv420p"
        video.thread_count = 1  # the same bytes on every machine with the same FFmpeg
        audio: Any = None
        if sound is not None:
            audio = container.add_stream(
                format_.audio, rate=format_.audio_rate_hz, options=format_.audio_options, layout="mono"
            )
        heard = 0
        for index in range(scene.num_pictures):
            frame = av.VideoFrame.from_ndarray(scene.picture(index), format="rgb24")
            frame.pts, frame.time_base = index, 1 / scene.rate_hz
            container.mux(video.encode(frame))
            if sound is not None:  # about as much as was shown, so that a reader finds both together
                until = min(len(sound), int((index + 1) / scene.rate_hz * format_.audio_rate_hz))
                container.mux(_encode_sound(audio, sound, heard, until, format_.audio_rate_hz))
                heard = until
        container.mux(video.encode(None))
        if sound is not None:
            container.mux(_encode_sound(audio, sound, heard, len(sound), format_.audio_rate_hz))
            container.mux(audio.encode(None))
    with NewFile(path) as file:
        file.write(buffer.getvalue())


def _container(suffix: str) -> str:
    return {".mkv": "matroska"}.get(suffix, suffix[1:])


def _encode_sound(stream: Any, sound: Samples, start: int, end: int, rate_hz: int) -> list[Any]:
    if end <= start:
        return []
    frame = av.AudioFrame.from_ndarray(sound[None, start:end], format="fltp", layout="mono")
    frame.sample_rate, frame.pts, frame.time_base = rate_hz, start, Fraction(1, rate_hz)
    packets: list[Any] = stream.encode(frame)
    return packets


def render_pictures(plan: ClipPlan) -> Iterator[NDArray[np.uint8]]:
    """The pictures of a clip before they are encoded, [H, W, 3]."""
    scene = _Scene(plan)
    for index in range(scene.num_pictures):
        yield scene.picture(index)


def picture_times(plan: ClipPlan) -> list[float]:
    """Seconds at which these pictures are shown."""
    scene = _Scene(plan)
    return [float(index / scene.rate_hz) for index in range(scene.num_pictures)]


def render_sound(plan: ClipPlan, rate_hz: int) -> Samples:
    """The sound of a clip before it is encoded: float32 mono in [-1, 1], [seconds x rate_hz]."""
    numbers = np.random.default_rng([plan.seed, 1])
    num_samples = int(plan.seconds * rate_hz)
    noise = numbers.standard_normal(num_samples).astype(np.float32)
    mixed: Samples = noise * np.float32(_loudness(numbers.uniform(-55.0, -38.0)))
    if numbers.random() < 0.5:
        distraction = DISTRACTING_SOUNDS[int(numbers.integers(len(DISTRACTING_SOUNDS)))]
        loudness = np.float32(_loudness(numbers.uniform(-26.0, -16.0)))
        mixed += loudness * fade(distraction(numbers, num_samples, rate_hz), rate_hz)
    for event in plan.events:
        if event.label in SOUNDS:
            own = np.random.default_rng(event.seed)
            start, end = int(event.start_seconds * rate_hz), int(event.end_seconds * rate_hz)
            samples = fade(SOUNDS[event.label](own, end - start, rate_hz), rate_hz)
            mixed[start:end] += np.float32(_loudness(own.uniform(-12.0, -5.0))) * samples
    return np.clip(mixed, -1.0, 1.0)


def _loudness(decibels: float) -> float:
    return float(10.0 ** (decibels / 20.0))


class _Flight(NamedTuple):
    """A drawn thing on its way through the picture.

    Places are shares of the frame, sizes of its shorter side.
    """

    phases: list[Image.Image]
    start_seconds: float
    end_seconds: float
    places: tuple[float, float, float, float]  # x and y at the start, x and y at the end
    sizes: tuple[float, float]  # at the start and at the end
    rounds_a_second: float
    bob: float  # up and down, a share of the frame


class _Scene:
    """Draws the pictures of one clip."""

    def __init__(self, plan: ClipPlan) -> None:
        numbers = np.random.default_rng([plan.seed, 0])
        self.width, self.height = _SIZES[int(numbers.integers(len(_SIZES)))]
        self.rate_hz = _RATES_HZ[int(numbers.integers(len(_RATES_HZ)))]
        self.num_pictures = round(plan.seconds * self.rate_hz)
        self._margin = self.width // 8  # what the camera may wander
        self._backdrop = draw_background(numbers, self.width + self._margin, self.height + self._margin)
        self._wander = numbers.uniform(0.0, math.tau, 2), numbers.uniform(0.1, 0.9, 2)
        grain = numbers.uniform(0.0, 9.0) * numbers.standard_normal((self.height + 16, self.width + 16))
        self._noise = np.repeat(grain.astype(np.int16)[..., None], 3, axis=2)
        self._numbers = np.random.default_rng([plan.seed, 2])
        self._flights = [
            *(self._shape(numbers, plan.seconds) for _ in range(int(numbers.integers(0, 4)))),
            *(self._subject(event) for event in plan.events if event.label in VISUAL),
        ]

    def _shape(self, numbers: np.random.Generator, clip_seconds: float) -> _Flight:
        corners = DISTRACTORS[int(numbers.integers(len(DISTRACTORS)))]
        phases = draw_distractor(corners, choose_palette(numbers))
        start = numbers.uniform(0.0, clip_seconds / 2)
        return self._fly(
            numbers, phases, start, start + numbers.uniform(2.0, 6.0), numbers.uniform(0.1, 0.25)
        )

    def _subject(self, event: Event) -> _Flight:
        numbers = np.random.default_rng(event.seed)
        phases = draw_subject(event.label, choose_palette(numbers))
        return self._fly(numbers, phases, event.start_seconds, event.end_seconds, numbers.uniform(0.4, 0.7))

    def _fly(
        self, numbers: np.random.Generator, phases: list[Image.Image], start: float, end: float, size: float
    ) -> _Flight:
        places = numbers.uniform(0.25, 0.75, 4)
        if places[2] < places[0]:  # subjects look where they go
            phases = [ImageOps.mirror(phase) for phase in phases]
        tilt = numbers.uniform(-14.0, 14.0)
        turned = [phase.rotate(tilt, Image.Resampling.BILINEAR) for phase in phases]
        grown = size * numbers.uniform(0.8, 1.25)
        speed = numbers.uniform(0.4, 1.2)
        return _Flight(turned, start, end, tuple(places), (size, grown), speed, numbers.uniform(0.0, 0.04))

    def picture(self, index: int) -> NDArray[np.uint8]:
        """[H, W, 3]; pictures are asked for in order."""
        seconds = float(index / self.rate_hz)
        (phase_x, phase_y), (speed_x, speed_y) = self._wander
        left = round(self._margin * (0.5 + 0.5 * math.sin(phase_x + speed_x * seconds)))
        top = round(self._margin * (0.5 + 0.5 * math.sin(phase_y + speed_y * seconds)))
        canvas = self._backdrop.crop((left, top, left + self.width, top + self.height))
        for flight in self._flights:
            if flight.start_seconds <= seconds < flight.end_seconds:
                self._place(canvas, flight, seconds)
        down, right = self._numbers.integers(0, 16, 2)
        noise = self._noise[down : down + self.height, right : right + self.width]
        finished: NDArray[np.uint8] = np.clip(noise + np.asarray(canvas), 0, 255).astype(np.uint8)
        return finished

    def _place(self, canvas: Image.Image, flight: _Flight, seconds: float) -> None:
        share = (seconds - flight.start_seconds) / (flight.end_seconds - flight.start_seconds)
        turn = flight.rounds_a_second * (seconds - flight.start_seconds)
        first_x, first_y, last_x, last_y = flight.places
        first_size, last_size = flight.sizes
        side = round(min(self.width, self.height) * (first_size + share * (last_size - first_size)))
        x = self.width * (first_x + share * (last_x - first_x))
        y = self.height * (first_y + share * (last_y - first_y) + flight.bob * math.sin(math.tau * turn))
        phase = flight.phases[int(turn * len(flight.phases)) % len(flight.phases)]
        sprite = phase.resize((side, side), Image.Resampling.BILINEAR)
        canvas.paste(sprite, (round(x - side / 2), round(y - side / 2)), sprite)
