"""One run over the packets of an open file, and what comes out of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from nextvlad.errors import UsageError, VideoError
from nextvlad.video.files import Opened, pyav
from nextvlad.video.lookahead import CODECS, Lookahead
from nextvlad.video.picture import Fit, square
from nextvlad.video.sound import SAMPLE_RATE_HZ, SoundLine
from nextvlad.video.timeline import Clock, RowPicker, rows_of

if TYPE_CHECKING:
    from av import Packet, VideoFrame

SEEK_MARGIN_SECONDS = 2.0
"""Jump this much before the start, so that codecs that need their past (sound) have it."""
_MOST_HELD = 64
"""Pieces that wait for the other stream after a jump before the file is read from its start instead."""
_MOST_FAILURES = 1000
"""Packets in a row that fail before the rest of a file is given up."""


@dataclass(frozen=True)
class ReadOptions:
    """What to read of a file. Plain values, so that it travels to worker processes."""

    rate_hz: float = 1.0
    """Rows a second, of pictures and of sound."""
    image_size: int = 224
    """S: pictures are [S, S, 3]."""
    fit: Fit = "crop"
    start_seconds: float | None = None
    """Where the clip begins in the file; None for its start."""
    end_seconds: float | None = None
    """Where it ends (not included); None for the end."""
    pictures: bool = True
    sound: bool = True
    sound_window_seconds: float | None = None
    """None: sound becomes log-mel rows. Otherwise rows of so many seconds of samples from their start on."""
    threads: int = 0
    """For decoding pictures; 0: as many as FFmpeg likes. 1 where several files are read side by side."""

    def __post_init__(self) -> None:
        if not 0 < self.rate_hz <= 1000:
            raise UsageError(f"rate {self.rate_hz} Hz; wanted more than 0, up to 1000.")
        if not 1 <= self.image_size <= 4096:
            raise UsageError(f"image size {self.image_size}; wanted 1 to 4096.")
        if self.sound_window_seconds is not None and not 0 < self.sound_window_seconds <= 60:
            raise UsageError(f"sound windows of {self.sound_window_seconds} seconds; wanted up to 60.")
        start, end = self.start_seconds or 0.0, self.end_seconds
        if not 0 <= start < float("inf") or (end is not None and not start < end):
            raise UsageError(f"a clip from {start:g} to {end} seconds; wanted 0 <= start < end.")


@dataclass(frozen=True)
class Picture:
    """The picture of one row."""

    seconds: float
    """When the frame is first shown, from the start of the clip; below the row's middle."""
    rgb: NDArray[np.uint8]
    """[S, S, 3]."""


@dataclass(frozen=True)
class Sound:
    """The next samples; the first ones begin at the clip's second 0, and none is left out between them."""

    samples: NDArray[np.float32]
    """[n], mono, 16,000 a second, about in [-1, 1]."""


class SeekMissed(Exception):
    """A jump landed behind the start of the clip."""


@dataclass
class _Counts:
    broken_packets: int = 0
    broken_frames: int = 0
    failures_in_a_row: int = 0
    gave_up: bool = False


class Reading:
    """One run over the packets of an open file."""

    def __init__(self, opened: Opened, options: ReadOptions, *, seek: bool) -> None:
        self.opened = opened
        self.options = options
        self.seek = seek
        self.counts = _Counts()
        self.start_seconds = options.start_seconds or 0.0
        self.saw_any = False
        span = None if options.end_seconds is None else options.end_seconds - self.start_seconds
        self.span_seconds = span
        self.picker: RowPicker[VideoFrame] = RowPicker(
            options.rate_hz, None if span is None else rows_of(span, options.rate_hz)
        )
        self.sound_line = SoundLine(None if span is None else round(span * SAMPLE_RATE_HZ))
        self.picture_end_seconds: float | None = None
        self.sound_end_seconds: float | None = None
        self._converted: tuple[VideoFrame, NDArray[np.uint8]] | None = None
        self._zero_seconds = _zero_of(opened)
        self._clocks: dict[int, Clock] = {}
        self._lookahead: Lookahead | None = None
        if opened.media.video_codec in CODECS and self._zero_seconds is not None:
            self._lookahead = Lookahead(self._zero_seconds + self.start_seconds, options.rate_hz)
        self._skipping: Literal["DEFAULT", "NONREF"] = "DEFAULT"
        self._proven = {"video": opened.video is None, "audio": opened.audio is None}

    def held_until_proven(self) -> Iterator[Picture | Sound]:
        """Like iterating, but gives nothing before every stream has shown that the jump landed well."""
        held: list[Picture | Sound] = []
        for piece in self:
            held.append(piece)
            if len(held) > _MOST_HELD:
                raise SeekMissed
            if all(self._proven.values()):
                yield from held
                held.clear()
        if not all(self._proven.values()):
            raise SeekMissed
        yield from held

    def __iter__(self) -> Iterator[Picture | Sound]:
        video, audio = self.opened.video, self.opened.audio
        if video is not None:
            video.codec_context.thread_count = self.options.threads
            video.codec_context.thread_type = "AUTO"
        if self.seek:
            self._jump()
        for packet in self._packets():
            if video is not None and packet.stream_index == video.index:
                yield from self._looked_ahead(packet)
            elif audio is not None and packet.stream_index == audio.index and not self.sound_line.is_done:
                yield from self._sound_of(packet)
            if (video is None or self._pictures_done) and (audio is None or self.sound_line.is_done):
                break
        yield from self._finish()

    def _looked_ahead(self, packet: Packet[Any]) -> Iterator[Picture]:
        """Decodes what is decided by now; frames that nothing needs are left out."""
        if self._lookahead is None:
            yield from self._pictures_of(packet)
            return
        is_end = packet.size == 0
        ready = self._lookahead.finish() if is_end else self._lookahead.add(packet)
        for earlier, is_wanted in ready:
            self._skip("DEFAULT" if is_wanted else "NONREF")
            yield from self._pictures_of(earlier)
        if is_end:
            yield from self._pictures_of(packet)

    def _skip(self, frames: Literal["DEFAULT", "NONREF"]) -> None:
        if frames != self._skipping:
            assert self.opened.video is not None
            self.opened.video.codec_context.skip_frame = frames
            self._skipping = frames

    @property
    def _pictures_done(self) -> bool:
        return self.picker.is_done

    def _jump(self) -> None:
        av = pyav()
        second = self.start_seconds - SEEK_MARGIN_SECONDS + (self._zero_seconds or 0.0)
        try:
            self.opened.container.seek(round(second * 1e6))
        except av.FFmpegError as error:
            raise SeekMissed from error

    def _packets(self) -> Iterator[Packet[Any]]:
        """The packets of the streams wanted; damaged places are passed over."""
        av = pyav()
        streams = [s for s in (self.opened.video, self.opened.audio) if s is not None]
        if not streams:
            return
        packets = self.opened.container.demux(streams)
        while not self.counts.gave_up:
            try:
                packet = next(packets)
            except StopIteration:
                return
            except (av.FFmpegError, IndexError):  # IndexError: of a stream that was not announced
                self._failed()
                packets = self.opened.container.demux(streams)  # a generator that raised is at its end
                continue
            yield packet

    def _failed(self) -> None:
        self.counts.broken_packets += 1
        self.counts.failures_in_a_row += 1
        self.counts.gave_up = self.counts.failures_in_a_row >= _MOST_FAILURES

    def _decode(self, packet: Packet[Any], kind: type) -> list[Any]:
        """The frames of a packet; of damaged files, a stream may change what it is on the way."""
        av = pyav()
        try:
            frames = packet.decode()
        except av.EOFError:  # a decoder that has been flushed already
            return []
        except (av.FFmpegError, ValueError):
            self._failed()
            return []
        if frames:
            self.counts.failures_in_a_row = 0
        return [frame for frame in frames if isinstance(frame, kind)]

    def _clock(self, stream: Any, frame: Any) -> Clock:
        clock = self._clocks.get(stream.index)
        if clock is None:
            rate = getattr(stream, "average_rate", None) or getattr(stream, "guessed_rate", None)
            if self._zero_seconds is None:
                self._zero_seconds = _time_of(frame) or 0.0
            file_seconds = self.opened.media.duration_seconds
            clock = Clock(self._zero_seconds, file_seconds, 1.0 / float(rate) if rate else 0.04)
            self._clocks[stream.index] = clock
        return clock

    def _pictures_of(self, packet: Packet[Any]) -> Iterator[Picture]:
        if self._pictures_done:
            return
        for frame in self._decode(packet, pyav().VideoFrame):
            self.counts.broken_frames += bool(frame.is_corrupt)
            self.saw_any = True
            clock = self._clock(self.opened.video, frame)
            duration = float(frame.duration * frame.time_base) if frame.duration and frame.time_base else None
            seconds = clock.place(_time_of(frame), duration) - self.start_seconds
            self._prove("video", seconds)
            if self.span_seconds is not None and seconds >= self.span_seconds:
                yield from self._shown(self.picker.finish(self.span_seconds))
                self.picker.num_rows = self.picker.next_row
                return
            yield from self._shown(self.picker.offer(seconds, frame))

    def _shown(self, rows: Iterator[tuple[float, VideoFrame]]) -> Iterator[Picture]:
        """Converts the frames of rows; one that stands for several rows, once."""
        for seconds, frame in rows:
            if self._converted is None or self._converted[0] is not frame:
                assert self.opened.video is not None
                aspect = float(self.opened.video.sample_aspect_ratio or 1) or 1.0
                self._converted = (frame, self._square(frame, aspect))
            yield Picture(seconds, self._converted[1])

    def _square(self, frame: VideoFrame, pixel_aspect: float) -> NDArray[np.uint8]:
        av = pyav()
        try:
            return square(frame, self.options.image_size, self.options.fit, pixel_aspect)
        except (av.FFmpegError, ValueError, MemoryError) as error:
            raise VideoError(
                f"{self.opened.media.path}: a picture of {frame.width} x {frame.height} pixels in format "
                f"{frame.format.name} cannot be converted ({error}). Convert the file with another program."
            ) from error

    def _sound_of(self, packet: Packet[Any]) -> Iterator[Sound]:
        for frame in self._decode(packet, pyav().AudioFrame):
            self.saw_any = True
            clock = self._clock(self.opened.audio, frame)
            duration = frame.samples / frame.sample_rate if frame.sample_rate else None
            seconds = clock.place(_time_of(frame), duration) - self.start_seconds
            self._prove("audio", seconds)
            for samples in self.sound_line.add(frame, seconds):
                yield Sound(samples)

    def _prove(self, kind: str, seconds: float) -> None:
        if self.seek and not self._proven[kind]:
            if seconds > 0:
                raise SeekMissed
            self._proven[kind] = True

    def _finish(self) -> Iterator[Picture | Sound]:
        video, audio = self.opened.video, self.opened.audio
        if video is not None and video.index in self._clocks:
            end = self._clocks[video.index].end_seconds - self.start_seconds
            end = end if self.span_seconds is None else min(end, self.span_seconds)
            if end > 0:
                self.picture_end_seconds = end
                if not self._pictures_done:
                    yield from self._shown(self.picker.finish(end))
        if audio is not None and audio.index in self._clocks:
            for samples in self.sound_line.finish():
                yield Sound(samples)
            if self.sound_line.num_samples:
                self.sound_end_seconds = self.sound_line.num_samples / SAMPLE_RATE_HZ

    def all_notes(self) -> list[str]:
        """What went wrong on the way, in sentences without a full stop."""
        counts = self.counts
        notes = []
        if counts.broken_packets:
            notes.append(f"{_count(counts.broken_packets, 'broken packet')} passed over")
        if counts.gave_up:
            notes.append("the rest of the file was given up after too many broken packets")
        if counts.broken_frames:
            notes.append(f"{_count(counts.broken_frames, 'damaged frame')} used as they came out")
        missing = sum(clock.num_missing for clock in self._clocks.values())
        jumps = sum(clock.num_jumps for clock in self._clocks.values())
        if missing:
            notes.append(f"{_count(missing, 'frame')} without a timestamp, counted on from the frame before")
        if jumps:
            notes.append(f"timestamps jump at {_count(jumps, 'place')}; frames there were taken to follow")
        if self.opened.video is not None and self.picture_end_seconds is None:
            notes.append("none of its pictures could be decoded")
        if self.opened.audio is not None and self.sound_end_seconds is None:
            notes.append("none of its sound could be decoded")
        return notes + self.sound_line.notes() + self._cut_short()

    def _cut_short(self) -> list[str]:
        """Whether less came than the file, or the caller, said."""
        promised, media = self.span_seconds, self.opened.media
        if promised is None and media.duration_seconds is not None:
            promised = media.duration_seconds - self.start_seconds
        ends = [end for end in (self.picture_end_seconds, self.sound_end_seconds) if end is not None]
        if promised is None or not ends or promised - max(ends) < max(1.0, 0.02 * promised):
            return []
        return [f"it ends after {max(ends):.1f} seconds, {promised:.1f} were to be expected"]


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _time_of(frame: Any) -> float | None:
    """A frame's timestamp in seconds, if it has one."""
    if frame.time_base is None:
        return None
    stamp = frame.pts if frame.pts is not None else frame.dts
    return None if stamp is None else float(stamp * frame.time_base)


def _zero_of(opened: Opened) -> float | None:
    """The timestamp that is second 0: where the first of the streams read begins."""
    starts = [
        float(stream.start_time * stream.time_base)
        for stream in (opened.video, opened.audio)
        if stream is not None and stream.start_time is not None and stream.time_base is not None
    ]
    if starts:
        return min(starts)
    whole = opened.container.start_time
    return None if whole is None else whole / 1e6
