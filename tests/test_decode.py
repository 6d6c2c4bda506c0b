"""Files of many kinds, encoded here, decoded once: what comes out, what is told, what is refused."""

from __future__ import annotations

import pickle
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("av")

from nextvlad.errors import UsageError, VideoError
from nextvlad.video import lookahead
from nextvlad.video.clip import ClipPart, read_clip
from nextvlad.video.decode import Clip, Picture, ReadOptions, probe
from videos import encode, level_of, plain, tone


def read(path: Path, **options: Any) -> ClipPart:
    """All rows of a short clip."""
    (part,) = read_clip(path, ReadOptions(image_size=32, **options))
    return part


def greys(part: ClipPart) -> list[float]:
    return [float(value) for value in part.pictures.mean(axis=(1, 2, 3))]


@pytest.mark.parametrize(
    ("name", "codec", "pix_fmt", "sound_codec"),
    [
        ("a.mp4", "libx264", "yuv420p", "aac"),
        ("a.mp4", "libx264", "yuv444p", "aac"),
        ("a.mov", "libx265", "yuv420p10le", "aac"),
        ("a.mkv", "ffv1", "bgr0", "flac"),
        ("a.mkv", "ffv1", "gray", "libopus"),
        ("a.avi", "mpeg4", "yuv420p", "libmp3lame"),
        ("a.webm", "libvpx-vp9", "yuv420p", "libopus"),
        ("a.mpg", "mpeg2video", "yuv420p", "mp2"),
        ("a.ts", "libx264", "yuv420p", "aac"),
        ("a.mov", "prores", "yuv422p10le", "pcm_s16le"),
    ],
)
def test_codecs_and_containers(tmp_path: Path, name: str, codec: str, pix_fmt: str, sound_codec: str) -> None:
    import av

    if codec not in av.codecs_available or sound_codec not in av.codecs_available:
        pytest.skip(f"this PyAV has no {codec} or no {sound_codec}")
    fps = 25 if codec == "mpeg2video" else 9
    path = encode(
        tmp_path / name,
        frames=3 * fps,
        fps=fps,
        codec=codec,
        pix_fmt=pix_fmt,
        options={"x265-params": "log-level=none", "preset": "ultrafast"} if "26" in codec else {},
        sound=tone(3.0, rate_hz=48_000, channels=2),
        sound_codec=sound_codec,
        sound_rate_hz=48_000,
    )
    # These two write the first frame twice, or the sound 10 ms earlier: another frame is at the middle.
    off = 14 if name in ("a.avi", "a.mpg") else 0
    part = read(path)
    assert part.pictures.shape == (3, 32, 32, 3)
    assert part.sound.shape == (3, 128)
    np.testing.assert_allclose(greys(part), [level_of(fps * t + fps // 2) for t in range(3)], atol=6 + off)
    np.testing.assert_allclose(part.level_db, -9.03, atol=0.6)  # a sine of 0.5
    assert part.notes == ()


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a%d.png"])
def test_a_still_image_is_one_picture(tmp_path: Path, name: str) -> None:
    from PIL import Image

    Image.fromarray(np.full((40, 60, 3), 90, dtype=np.uint8)).save(tmp_path / name)
    part = read(tmp_path / name)
    assert greys(part) == pytest.approx([90.0], abs=1)
    assert part.notes == ("a still image: one picture", "no sound")
    assert probe(tmp_path / name).is_still


def test_a_gif_and_odd_sizes(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.gif", frames=16, fps=8, codec="gif", pix_fmt="rgb8", draw=plain(33, 17))
    assert len(read(path).pictures) == 2
    path = encode(tmp_path / "a.mkv", frames=16, fps=8, codec="ffv1", pix_fmt="yuv420p", draw=plain(33, 17))
    np.testing.assert_allclose(greys(read(path)), [level_of(4), level_of(12)], atol=6)


def quarters(width: int, height: int) -> Any:
    """Four colours in the four quarters, so that turning and cutting show."""
    picture = np.zeros((height, width, 3), dtype=np.uint8)
    picture[: height // 2, : width // 2, 0] = 240
    picture[: height // 2, width // 2 :, 1] = 240
    picture[height // 2 :, : width // 2, 2] = 240
    return lambda number: picture


@pytest.mark.parametrize("degrees", [90, -90, 180])
def test_rotation(tmp_path: Path, degrees: int) -> None:
    def stored(angle: int) -> Path:
        return encode(
            tmp_path / f"{angle}.mp4", frames=8, draw=quarters(64, 64), rotation=angle, codec="libx264"
        )

    upright = read(stored(0)).pictures[0].astype(int)
    path = stored(degrees)
    turned = read(path).pictures[0].astype(int)
    assert probe(path).rotation_degrees % 360 == degrees % 360
    assert np.abs(turned - np.rot90(upright, degrees // 90)).mean() < 3
    assert np.abs(turned - upright).mean() > 50


def test_crop_pad_and_stretch(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.mkv", frames=8, codec="ffv1", pix_fmt="bgr0", draw=plain(128, 32))
    grey = level_of(4)
    assert (np.abs(read(path, fit="crop").pictures[0].astype(int) - grey) <= 1).all()
    assert (np.abs(read(path, fit="stretch").pictures[0].astype(int) - grey) <= 1).all()
    padded = read(path, fit="pad").pictures[0]
    assert (padded[:12] == 0).all()
    assert (padded[20:] == 0).all()
    assert (np.abs(padded[12:20].astype(int) - grey) <= 1).all()
    strip = encode(tmp_path / "b.mkv", frames=1, codec="ffv1", pix_fmt="bgr0", draw=plain(2, 3000))
    assert read(strip).pictures.shape == (1, 32, 32, 3)


def test_variable_rate_shows_the_frame_at_the_middle(tmp_path: Path) -> None:
    times = [0.0, 0.4, 0.6, 3.2, 3.45, 3.6]
    path = encode(tmp_path / "a.mkv", frames=6, times=times, codec="ffv1", pix_fmt="bgr0")
    part = read(path)
    # Middles 0.5, 1.5, 2.5, 3.5.
    assert part.seconds.tolist() == pytest.approx([0.4, 0.6, 0.6, 3.45])
    assert greys(part) == pytest.approx([level_of(n) for n in (1, 2, 2, 4)], abs=1)


def test_times_that_start_above_zero(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.mkv", frames=3, times=[100.0, 100.9, 101.9], codec="ffv1", pix_fmt="bgr0")
    assert read(path).seconds.tolist() == pytest.approx([0.0, 0.9])


def test_no_timestamps_at_all(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.h264", frames=50, fps=25, codec="libx264", pix_fmt="yuv420p", format="h264")
    part = read(path)
    assert len(part.pictures) == 2
    assert any("without a timestamp" in note for note in part.notes)


@pytest.mark.parametrize("rate_hz", [0.5, 1.0, 4.0])
def test_rows_follow_the_rate(tmp_path: Path, rate_hz: float) -> None:
    path = encode(tmp_path / "a.mp4", frames=48, sound=tone(6.0))
    part = read(path, rate_hz=rate_hz)
    assert len(part.pictures) == len(part.sound) == 6 * rate_hz
    middles = (np.arange(6 * rate_hz) + 0.5) / rate_hz
    assert ((part.seconds <= middles) & (part.seconds > middles - 1 / 8)).all()


def test_frames_left_out_by_the_decoder_change_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = encode(
        tmp_path / "a.mp4", frames=100, fps=25, codec="libx264", pix_fmt="yuv420p", options={"bf": "3"}
    )
    skipped = [read(path, rate_hz=rate, threads=threads) for rate in (1.0, 3.0) for threads in (1, 3)]
    asked: list[bool] = []
    monkeypatch.setattr(lookahead.Lookahead, "_is_passed", lambda self, seconds: bool(asked.append(True)))
    whole = [read(path, rate_hz=rate, threads=threads) for rate in (1.0, 3.0) for threads in (1, 3)]
    assert len(asked) == 400
    for one, other in zip(skipped, whole, strict=True):
        np.testing.assert_array_equal(one.pictures, other.pictures)
        np.testing.assert_array_equal(one.seconds, other.seconds)


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.ts"])
def test_a_cut_is_the_same_as_those_rows_of_the_whole(tmp_path: Path, name: str) -> None:
    path = encode(
        tmp_path / name,
        frames=15 * 8,
        codec="libx264",
        pix_fmt="yuv420p",
        options={"g": "24", "bf": "2"},
        sound=tone(15.0),
    )
    whole = read(path)
    cut = read(path, start_seconds=9.0, end_seconds=12.0)
    np.testing.assert_array_equal(cut.pictures, whole.pictures[9:12])
    assert cut.seconds.tolist() == pytest.approx((whole.seconds[9:12] - 9.0).tolist(), abs=1e-6)
    np.testing.assert_allclose(cut.sound[1], whole.sound[10], atol=0.1)
    assert cut.notes == ()


def test_a_jump_that_misses_is_read_from_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = encode(tmp_path / "a.mp4", frames=96, sound=tone(12.0), options={"g": "8"})
    wanted = read(path, start_seconds=9.0)
    monkeypatch.setattr("nextvlad.video.reading.SEEK_MARGIN_SECONDS", -2.0)  # lands behind the start
    np.testing.assert_array_equal(read(path, start_seconds=9.0).pictures, wanted.pictures)


def test_a_cut_behind_the_end(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.mp4", frames=16, sound=tone(2.0))
    with pytest.raises(VideoError, match=r"a\.mp4: nothing from second 7 to 9; it is 2\.\d+ seconds long"):
        read(path, start_seconds=7, end_seconds=9)
    assert read(path, start_seconds=1, end_seconds=9).notes == (
        "it ends after 1.0 seconds, 8.0 were to be expected",
    )


def test_sound_or_pictures_alone(tmp_path: Path) -> None:
    silent = read(encode(tmp_path / "a.mp4", frames=16))
    assert silent.sound.shape == (0, 128)
    assert silent.notes == ("no sound",)
    heard = read(encode(tmp_path / "a.wav", sound=tone(2.2), sound_codec="pcm_s16le"))
    assert heard.pictures.shape == (0, 32, 32, 3)
    assert heard.sound.shape == (2, 128)
    assert heard.notes == ("no pictures",)
    with pytest.raises(VideoError, match=r"no pictures in it, and nothing else is asked for"):
        read(tmp_path / "a.wav", sound=False)


@pytest.mark.parametrize(
    ("rate_hz", "channels", "codec"),
    [
        (8000, 1, "pcm_u8"),
        (22_050, 2, "pcm_f32le"),
        (48_000, 6, "pcm_s24le"),
        (44_100, 8, "pcm_s16le"),
        (16_000, 16, "pcm_s16le"),
    ],
)
def test_sound_of_other_rates_and_formats(tmp_path: Path, rate_hz: int, channels: int, codec: str) -> None:
    sound = tone(2.0, rate_hz=rate_hz, channels=channels)
    part = read(encode(tmp_path / "a.wav", sound=sound, sound_codec=codec, sound_rate_hz=rate_hz))
    assert part.sound.shape == (2, 128)
    np.testing.assert_allclose(part.level_db, -9.03, atol=0.2)


def test_streams_of_other_lengths_are_told(tmp_path: Path) -> None:
    part = read(encode(tmp_path / "a.mp4", frames=48, sound=tone(3.0)))
    assert (len(part.pictures), len(part.sound)) == (6, 3)
    assert part.notes == ("the sound ends 3.0 seconds before the pictures",)
    together = read(encode(tmp_path / "b.mp4", frames=40, sound=tone(5.7)))
    assert (len(together.pictures), len(together.sound)) == (5, 5)
    late = read(encode(tmp_path / "c.mkv", frames=40, sound=tone(2.0), sound_start_seconds=3.0))
    assert len(late.sound) == 5
    assert (late.level_db[:2] == -100).all()
    assert late.notes == ("3.0 seconds of its sound are missing, taken as silence",)


def test_many_rows_come_in_parts(tmp_path: Path) -> None:
    sound = tone(70.0, rate_hz=8000)
    path = encode(tmp_path / "a.mp4", frames=140, fps=2, draw=plain(16, 16), sound=sound, sound_rate_hz=8000)
    parts = list(read_clip(path, ReadOptions(image_size=8)))
    assert len(parts) >= 2
    assert max(max(len(part.pictures), len(part.sound)) for part in parts) < 70
    assert sum(len(part.pictures) for part in parts) == sum(len(part.sound) for part in parts) == 70
    assert [part.is_last for part in parts] == [False] * (len(parts) - 1) + [True]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.mp4", b"", "is empty"),
        ("a.mp4", bytes(range(256)) * 20, "no video or sound format"),
        ("a.m3u8", b"#EXTM3U\nhttp://127.0.0.1/a.ts\n", "is a playlist"),
        ("a.ffconcat", b"ffconcat version 1.0\nfile '/etc/passwd'\n", "is a playlist"),
        ("a.txt", b"labels of my videos\n" * 50, "no "),
    ],
)
def test_what_is_no_video(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    for call in (probe, Clip, lambda p: list(read_clip(p))):
        with pytest.raises(VideoError, match=message) as caught:
            call(path)
        assert str(path) in str(caught.value)
        assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_paths_that_are_no_files(tmp_path: Path) -> None:
    import os

    os.mkfifo(tmp_path / "fifo")
    for path, message in (
        (tmp_path, "not a file"),
        (tmp_path / "fifo", "not a file"),
        (tmp_path / "no", "No such"),
    ):
        with pytest.raises(VideoError, match=message):
            probe(path)


def test_a_file_that_was_cut_off(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (80, 48, 64, 3), dtype=np.uint8)
    path = encode(tmp_path / "a.mkv", frames=80, draw=lambda n: noise[n], sound=tone(10.0))
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    part = read(path)
    assert 2 <= len(part.pictures) <= 8
    assert any("were to be expected" in note for note in part.notes)
    path.write_bytes(content[:300])
    with pytest.raises(VideoError):
        read(path)


def test_broken_packets_are_passed_over_and_told(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (80, 48, 64, 3), dtype=np.uint8)
    path = encode(tmp_path / "a.avi", frames=80, draw=lambda n: noise[n], options={"g": "4"})
    content = bytearray(path.read_bytes())
    for place in np.random.default_rng(1).integers(8000, len(content) - 8000, 400):
        content[place] ^= 0xFF
    path.write_bytes(content)
    part = read(path)
    assert 8 <= len(part.pictures) <= 10
    assert any("broken packet" in note or "damaged frame" in note for note in part.notes)
    assert capfd.readouterr() == ("", "")  # FFmpeg's own complaints stay away from the terminal


def test_any_damage_ends_in_rows_or_in_a_message(tmp_path: Path) -> None:
    whole = encode(
        tmp_path / "a.mp4", frames=16, codec="libx264", pix_fmt="yuv420p", sound=tone(2.0)
    ).read_bytes()
    generator = np.random.default_rng(3)
    ends = {"rows": 0, "message": 0}
    for _ in range(40):
        content = bytearray(whole)
        for place in generator.integers(0, len(content), 8):
            content[place] = generator.integers(0, 256)
        (tmp_path / "b.mp4").write_bytes(content[: generator.integers(len(content) // 2, len(content))])
        try:
            list(read_clip(tmp_path / "b.mp4", ReadOptions(image_size=8)))
            ends["rows"] += 1
        except VideoError:
            ends["message"] += 1
    assert sum(ends.values()) == 40


def test_probe_tells_what_is_there(tmp_path: Path) -> None:
    media = probe(encode(tmp_path / "a.mp4", frames=16, sound=tone(2.0, channels=2)))
    assert (media.width, media.height, media.frame_rate_hz) == (64, 48, 8.0)
    assert (media.video_codec, media.audio_codec) == ("mpeg4", "aac")
    assert (media.audio_rate_hz, media.audio_channels) == (44_100, 2)
    assert media.duration_seconds == pytest.approx(2.0, abs=0.1)
    assert (media.has_video, media.has_audio, media.is_still, media.notes) == (True, True, False, ())


def test_clip_gives_pictures_and_sound(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.mp4", frames=16, sound=tone(2.0))
    with Clip(path, ReadOptions(image_size=16)) as clip:
        pieces = list(clip)
    assert sum(isinstance(piece, Picture) for piece in pieces) == 2
    samples = np.concatenate([piece.samples for piece in pieces if not isinstance(piece, Picture)])
    assert samples.dtype == np.float32
    assert len(samples) == pytest.approx(32_000, abs=1500)
    assert clip.picture_end_seconds == pytest.approx(2.0)


def test_a_cover_picture_is_no_video(tmp_path: Path) -> None:
    import av
    from av.stream import Disposition
    from PIL import Image

    Image.fromarray(np.zeros((32, 32, 3), dtype=np.uint8)).save(tmp_path / "cover.png")
    plain_sound = encode(tmp_path / "a.mp3", sound=tone(2.0), sound_codec="libmp3lame")
    with av.open(str(tmp_path / "b.mp3"), "w") as out:
        inputs = [av.open(str(plain_sound)), av.open(str(tmp_path / "cover.png"))]
        streams = [out.add_stream_from_template(source.streams[0]) for source in inputs]
        streams[1].disposition = Disposition.attached_pic
        for source, stream in zip(inputs, streams, strict=True):
            for packet in source.demux(source.streams[0]):
                if packet.dts is not None:
                    packet.stream = stream
                    out.mux(packet)
            source.close()
    part = read(tmp_path / "b.mp3")
    assert len(part.pictures) == 0
    assert len(part.sound) == 2
    assert "its cover picture is not taken for a video" in part.notes


@pytest.mark.parametrize(
    "wrong",
    [
        {"rate_hz": 0.0},
        {"image_size": 0},
        {"start_seconds": -1.0},
        {"start_seconds": 5.0, "end_seconds": 5.0},
        {"sound_window_seconds": 0.0},
    ],
)
def test_options_out_of_range(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="wanted"):
        ReadOptions(**wrong)


def test_a_missing_pyav_says_what_to_install() -> None:
    code = (
        "import sys; sys.modules['av'] = None\n"
        "from nextvlad.video.decode import probe\n"
        "from nextvlad.errors import UsageError\n"
        "try: probe('a.mp4')\n"
        "except UsageError as error: print(error)\n"
    )
    import sys

    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "pip install 'nextvlad[video]'" in told
