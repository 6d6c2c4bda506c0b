"""Videos that tests encode: frame n is of one grey level, so a decoded frame tells its number."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

Draw = Callable[[int], NDArray[np.uint8]]


def level_of(number: int) -> int:
    """The grey of frame `number`; 16 frames apart is the same."""
    return 20 + 14 * (number % 16)


def plain(width: int = 64, height: int = 48) -> Draw:
    """Frames of one grey level each."""
    return lambda number: np.full((height, width, 3), level_of(number), dtype=np.uint8)


def tone(
    seconds: float, *, hz: float = 440.0, rate_hz: int = 44_100, channels: int = 1
) -> NDArray[np.float32]:
    """[channels, n] float32, a sine of amplitude 0.5."""
    time = np.arange(round(seconds * rate_hz)) / rate_hz
    wave = (0.5 * np.sin(2 * np.pi * hz * time)).astype(np.float32)
    return np.repeat(wave[None], channels, axis=0)


def encode(
    path: Path,
    *,
    frames: int = 0,
    fps: int = 8,
    draw: Draw | None = None,
    times: Iterable[float] | None = None,
    codec: str = "mpeg4",
    pix_fmt: str | None = None,
    options: dict[str, str] | None = None,
    sound: NDArray[np.float32] | None = None,
    sound_codec: str = "aac",
    sound_rate_hz: int = 44_100,
    sound_start_seconds: float = 0.0,
    rotation: int = 0,
    format: str | None = None,
    container_options: dict[str, str] | None = None,
) -> Path:
    """Writes a video of `frames` frames and, or, sound [channels, n]; `times` are those of the frames."""
    with av.open(str(path), "w", format=format, options=container_options or {}) as container:
        video: Any = None
        if frames:
            pictures = draw or plain()
            first = pictures(0)
            video = container.add_stream(codec, rate=fps, options=options or {})
            video.width, video.height = first.shape[1], first.shape[0]
            video.pix_fmt = pix_fmt or video.codec.video_formats[0].name
            if times is not None:
                video.codec_context.time_base = Fraction(1, 1000)
            if rotation:
                video.set_display_rotation(rotation)
        audio: Any = None
        if sound is not None:
            layout = {1: "mono", 2: "stereo", 6: "5.1", 8: "octagonal", 16: "hexadecagonal"}[len(sound)]
            audio = container.add_stream(sound_codec, rate=sound_rate_hz, layout=layout)
        if video is not None:
            stamps = [round(t * 1000) for t in times] if times is not None else list(range(frames))
            for number, stamp in zip(range(frames), stamps, strict=True):
                frame = av.VideoFrame.from_ndarray(pictures(number), format="rgb24")
                frame.pts = stamp
                frame.time_base = Fraction(1, 1000) if times is not None else Fraction(1, fps)
                container.mux(video.encode(frame))
            container.mux(video.encode())
        if audio is not None and sound is not None:
            frame_size = 1024
            for first_sample in range(0, sound.shape[1], frame_size):
                piece = sound[:, first_sample : first_sample + frame_size].T.reshape(1, -1)  # packed
                part = av.AudioFrame.from_ndarray(np.ascontiguousarray(piece), format="flt", layout=layout)
                part.sample_rate = sound_rate_hz
                part.time_base = Fraction(1, sound_rate_hz)
                part.pts = first_sample + round(sound_start_seconds * sound_rate_hz)
                container.mux(audio.encode(part))
            container.mux(audio.encode())
    return path
