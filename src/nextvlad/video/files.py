"""Opening a video file: what is in it, and what to tell where it does not open."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from nextvlad.errors import UsageError, VideoError
from nextvlad.files import why

if TYPE_CHECKING:
    from av import AudioStream, VideoStream
    from av.container import InputContainer

    from nextvlad.video.decode import ReadOptions

_STILL_FORMATS = ("image2", "_pipe")
_PLAYLISTS = (b"#EXTM3U", b"ffconcat", b"<MPD", b"[playlist]")
"""What files begin with that only name others: they may lead anywhere, and wait for it for ever."""
_TIMEOUT_SECONDS = 60.0  # of one read; a disk that sleeps is slower than one would think


@dataclass(frozen=True)
class Media:
    """What a file says of itself, before anything is decoded."""

    path: str
    format: str
    """FFmpeg's name of the container."""
    duration_seconds: float | None
    """None where the file does not say, and for still images."""
    has_video: bool
    has_audio: bool
    is_still: bool
    width: int = 0
    """As stored, before rotation."""
    height: int = 0
    frame_rate_hz: float | None = None
    rotation_degrees: int = 0
    """How far the stored picture must be turned counterclockwise to stand upright."""
    video_codec: str | None = None
    audio_codec: str | None = None
    audio_rate_hz: int | None = None
    audio_channels: int | None = None
    notes: tuple[str, ...] = field(default=())
    """What is unusual, in sentences without a full stop."""


@dataclass
class Opened:
    """An open file and the streams that are read."""

    container: InputContainer
    video: VideoStream | None
    audio: AudioStream | None
    media: Media


def pyav() -> Any:
    """The module `av`, or what to install.

    Raises:
        UsageError: it is not installed.
    """
    try:
        import av
    except ImportError as error:
        raise UsageError(
            f"reading videos needs PyAV, which does not import ({error}); pip install 'nextvlad[video]'."
        ) from error
    return av


def open_media(path: str | os.PathLike[str], options: ReadOptions) -> Opened:
    """Opens a file and chooses its streams; the caller closes `container`.

    Raises:
        UsageError: PyAV is not installed.
        VideoError: there is no such file, it is empty, of no known format, or holds nothing to decode.
    """
    av = pyav()
    name = os.fspath(path)
    _check_file(name)
    try:
        container: InputContainer = av.open(
            f"file:{name}",
            metadata_errors="replace",
            container_options={"protocol_whitelist": "file", "pattern_type": "none"},
            timeout=_TIMEOUT_SECONDS,
        )
    except (av.FFmpegError, ValueError) as error:
        raise VideoError(
            f"{name}: no video or sound format that FFmpeg knows, or damaged at its start "
            f"({_reason(error)}). Check that the file is complete; `ffprobe` tells more."
        ) from error
    try:
        return _choose(container, name, options)
    except BaseException:
        container.close()
        raise


def _check_file(name: str) -> None:
    try:
        status = os.stat(name)
    except OSError as error:
        raise VideoError(f"{name}: cannot be opened ({why(error)}). Check the path.") from error
    if not stat.S_ISREG(status.st_mode):
        raise VideoError(f"{name}: not a file; wanted a video file.")
    if status.st_size == 0:
        raise VideoError(f"{name}: is empty (0 bytes). Fetch it again.")
    try:
        with open(name, "rb") as file:
            start = file.read(4096)
    except OSError as error:
        raise VideoError(f"{name}: cannot be opened ({why(error)}).") from error
    if start.lstrip().startswith(_PLAYLISTS) or b"<MPD" in start:
        raise VideoError(f"{name}: is a playlist, not a video; give the files that it names.")


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def _choose(container: InputContainer, name: str, options: ReadOptions) -> Opened:
    from av.stream import Disposition

    notes: list[str] = []
    pictures = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    if len(pictures) < len(container.streams.video):
        notes.append("its cover picture is not taken for a video")
    video = _best(container, "video", pictures, notes)
    audio = _best(container, "audio", list(container.streams.audio), notes)
    if container.format.name == "tty" or (video is None and audio is None):  # text, drawn as ANSI art
        raise VideoError(
            f"{name}: no pictures and no sound that can be decoded"
            f"{' (' + '; '.join(notes) + ')' if notes else ''}; format {container.format.name}. "
            "Convert it with another program first."
        )
    still = video is not None and any(part in container.format.name for part in _STILL_FORMATS)
    if still:
        notes.append("a still image: one picture")
    elif video is None:
        notes.append("no pictures")
    if audio is None:
        notes.append("no sound")
    media = _media(container, name, video, audio, still, tuple(notes))
    return Opened(container, video if options.pictures else None, audio if options.sound else None, media)


def _best(
    container: InputContainer, kind: Literal["video", "audio"], streams: list[Any], notes: list[str]
) -> Any:
    """The stream that players would choose, of those with a decoder."""
    word = {"video": "pictures", "audio": "sound"}[kind]
    known = [stream for stream in streams if stream.codec_context is not None]
    if len(known) < len(streams):
        notes.append(f"some {word} in a codec that FFmpeg has no decoder for")
    if not known:
        return None
    best: Any = container.streams.best(kind)
    chosen = best if best in known else known[0]
    if len(known) > 1:
        notes.append(f"{len(known)} tracks of {word}; track {chosen.index} is read")
    return chosen


def _media(
    container: InputContainer, name: str, video: Any, audio: Any, still: bool, notes: tuple[str, ...]
) -> Media:
    duration = None if still or not container.duration else container.duration / 1e6
    rate = (video.average_rate or video.guessed_rate) if video is not None and not still else None
    return Media(
        path=name,
        format=container.format.name,
        duration_seconds=duration if duration is None or duration > 0 else None,
        has_video=video is not None,
        has_audio=audio is not None,
        is_still=still,
        width=video.codec_context.width if video is not None else 0,
        height=video.codec_context.height if video is not None else 0,
        frame_rate_hz=float(rate) if rate else None,
        video_codec=video.codec_context.name if video is not None else None,
        audio_codec=audio.codec_context.name if audio is not None else None,
        audio_rate_hz=audio.codec_context.sample_rate if audio is not None else None,
        audio_channels=audio.codec_context.channels if audio is not None else None,
        notes=notes,
    )
