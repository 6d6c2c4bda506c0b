from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("av")

from nextvlad.errors import DataError
from nextvlad.extract_decoding import Decoders, Event, Failure, Job, decode
from nextvlad.extract_embedding import embed_all
from nextvlad.video.clip import ClipPart
from nextvlad.video.decode import ReadOptions
from nextvlad.video.extractor import Extractor, ExtractorOptions
from videos import encode, tone

OPTIONS = ReadOptions(pictures=False, threads=1)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("clips")
    return [
        encode(folder / f"{number}.mp4", sound=tone(3 + 40 * number, rate_hz=16_000), sound_rate_hz=16_000)
        for number in range(3)
    ]


def rows(events: list[Event]) -> dict[int, int]:
    """Rows of sound by clip."""
    found: dict[int, int] = {}
    for number, part in events:
        assert isinstance(part, ClipPart)
        found[number] = found.get(number, 0) + len(part.sound)
    return found


def test_as_in_one_process(clips: list[Path]) -> None:
    jobs = [Job(number, str(path)) for number, path in enumerate(clips)]
    with Decoders(jobs, OPTIONS, 2) as decoders:
        events = list(decoders)
    assert rows(events) == {0: 3, 1: 43, 2: 83}
    assert sum(part.is_last for _, part in events if isinstance(part, ClipPart)) == 3
    assert rows([event for job in jobs for event in decode(job, OPTIONS)]) == rows(events)


def test_left_early_no_process_stays(clips: list[Path]) -> None:
    jobs = [Job(number, str(clips[2])) for number in range(10)]
    with Decoders(jobs, OPTIONS, 2) as decoders:
        next(iter(decoders))
        pids = [process.pid for process in decoders._processes.values()]
    for pid in pids:
        assert pid is not None
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_a_process_that_dies_costs_one_clip(clips: list[Path]) -> None:
    jobs = [Job(number, str(clips[2])) for number in range(5)]
    with Decoders(jobs, OPTIONS, 1) as decoders:
        events = iter(decoders)
        first = next(events)
        (process,) = decoders._processes.values()
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        rest = [first, *events]
    failures = {number: part for number, part in rest if isinstance(part, Failure)}
    (reason,) = (failure.reason for failure in failures.values())
    assert reason.startswith(f"{clips[2]}: the process that decoded it was killed by signal 9.")
    last = {number for number, part in rest if isinstance(part, ClipPart) and part.is_last}
    assert last | failures.keys() == set(range(5))
    assert len(last) == 4


def test_an_error_of_the_decoder_is_that_clips(clips: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(path: str, options: ReadOptions) -> None:
        raise ValueError("odd")

    monkeypatch.setattr("nextvlad.extract_decoding.read_clip", broken)
    assert list(decode(Job(4, "a.mp4"), OPTIONS)) == [
        (4, Failure("a.mp4: cannot be decoded (ValueError: odd)."))
    ]


def test_nothing_to_do() -> None:
    with Decoders([], OPTIONS, 2) as decoders:
        assert list(decoders) == []


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_is_bounded_whatever_the_length(tmp_path: Path) -> None:
    """Ten minutes of sound wait in their process until somebody takes them."""
    path = encode(
        tmp_path / "long.wav",
        sound=np.zeros((1, 8000 * 600), np.float32),
        sound_codec="pcm_u8",
        sound_rate_hz=8000,
    )
    with Decoders([Job(0, str(path))], OPTIONS, 1) as decoders:
        events = iter(decoders)
        _, first = next(events)
        assert isinstance(first, ClipPart)
        (process,) = decoders._processes.values()
        seen = len(first.sound)
        for _, part in events:
            assert isinstance(part, ClipPart)
            assert len(part.sound) <= 64
            seen += len(part.sound)
            if seen < 300:
                status = Path(f"/proc/{process.pid}/status").read_text()
                peak = int(status.split("VmHWM:")[1].split()[0])
    assert seen == 600
    assert peak < 400_000  # kB


def extractor(monkeypatch: pytest.MonkeyPatch, sizes: list[int]) -> Extractor:
    made = Extractor(ExtractorOptions(visual=None, batch_size=10))
    real = made.embed_sound

    def noted(sound: np.ndarray) -> np.ndarray:
        sizes.append(len(sound))
        if (sound[:, 0] == -1000).any():
            raise DataError("features that are NaN")
        return real(sound)

    monkeypatch.setattr(made, "embed_sound", noted)
    return made


def test_batches_go_across_clips(clips: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = [Job(number, str(clips[0])) for number in range(9)] + [Job(9, str(clips[1]))]
    events = [event for job in jobs for event in decode(job, OPTIONS)]
    sizes: list[int] = []
    made = extractor(monkeypatch, sizes)
    found = {features.number: features for features in embed_all(events, made)}
    assert sizes == [10] * 7  # 9 x 3 + 43
    for number, features in found.items():
        alone = Extractor(ExtractorOptions(visual=None)).extract(jobs[number].path).streams["audio"]
        assert np.array_equal(features.streams["audio"], alone)
        assert features.failure is None


def test_a_clip_that_the_backbone_refuses(clips: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    events = [event for number in range(3) for event in decode(Job(number, str(clips[1])), OPTIONS)]
    bad = next(part for number, part in events if number == 1)
    assert isinstance(bad, ClipPart)
    bad.sound[5, 0] = -1000
    found = list(embed_all(events, extractor(monkeypatch, [])))
    assert sorted(features.number for features in found) == [0, 1, 2]
    assert {features.number: features.failure for features in found} == {
        0: None,
        1: "features that are NaN",
        2: None,
    }
    assert [len(f.streams["audio"]) for f in found if f.failure is None] == [43, 43]
