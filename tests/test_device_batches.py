"""Batches on a device, with copies that a fake makes; on a GPU with real ones."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from makers import SIZES, make_data
from nextvlad.config import StreamConfig
from nextvlad.data import device_batches
from nextvlad.data.batch import FrameBatch
from nextvlad.data.device_batches import DeviceBatch, DeviceBatches
from nextvlad.data.loader import FrameLoader
from nextvlad.errors import RecordError

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


class FakeCopier:
    """Notes what happens to which batch; a copy that is not finished holds no ids."""

    events: list[str]

    def __init__(self, device: torch.device) -> None:
        assert device == CUDA

    def start(self, batch: FrameBatch) -> Any:
        self.events.append(f"start {batch.video_ids[0]}")
        return device_batches._Started(batch, FrameBatch([], batch.labels, batch.streams), None)  # type: ignore[arg-type]

    def finish(self, started: Any) -> FrameBatch:
        self.events.append(f"finish {started.host.video_ids[0]}")
        return FrameBatch(started.host.video_ids, started.here.labels, started.here.streams)


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr(FakeCopier, "events", [], raising=False)
    monkeypatch.setattr(device_batches, "_Copier", FakeCopier)
    return FakeCopier.events


@pytest.fixture
def data(tmp_path: Path) -> str:
    return make_data(tmp_path, "some", num_videos=23, num_shards=3)


def loader(data: str, **changes: Any) -> FrameLoader:
    streams = [StreamConfig(name=name, size=size) for name, size in SIZES.items()]
    arguments: dict[str, Any] = {"streams": streams, "num_classes": 5, "batch_size": 4, "epochs": 2}
    return FrameLoader([data], **(arguments | changes))


def ids(batches: Sequence[FrameBatch]) -> list[list[str]]:
    return [batch.video_ids for batch in batches]


def test_on_the_cpu_a_batch_is_the_loaders(data: str) -> None:
    found = list(DeviceBatches(loader(data), CPU))
    assert ids([batch.host for batch in found]) == ids(list(loader(data)))
    for host, here in found:
        assert here.labels.data_ptr() == host.labels.data_ptr()


def test_the_next_copy_starts_before_a_batch_is_handed_out(data: str, events: list[str]) -> None:
    batches = iter(DeviceBatches(loader(data, epochs=1), CUDA))
    next(batches)
    first, second = (batch.video_ids[0] for batch in list(loader(data))[:2])
    assert events == [f"start {first}", f"start {second}", f"finish {first}"]
    rest = [batch.host.video_ids for batch in batches]
    assert rest == ids(list(loader(data, epochs=1)))[1:]


@pytest.mark.parametrize("device", [CPU, CUDA], ids=str)
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.usefixtures("events")
def test_the_position_is_that_of_the_batches_handed_out(
    data: str, workers: int, device: torch.device
) -> None:
    options: dict[str, Any] = {"shuffle": True, "shuffle_buffer": 6, "workers": workers}
    whole, places = [], []
    with loader(data, **options) as first:
        batches = DeviceBatches(first, device)
        places.append(batches.position())
        for batch, here in batches:
            assert here.video_ids == batch.video_ids
            whole.append(batch.video_ids)
            places.append(batches.position())
        assert batches.position() == first.position()
    for index, place in enumerate(places):
        with loader(data, position=json.loads(json.dumps(place)), **options) as again:
            assert ids([batch.host for batch in DeviceBatches(again, device)]) == whole[index:]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.usefixtures("events")
def test_leaving_the_loop_loses_no_batch(data: str, workers: int) -> None:
    wanted = ids(list(loader(data, workers=workers)))
    stream = loader(data, workers=workers)
    found: list[list[str]] = []
    for _ in range(len(wanted)):
        for batch, _ in DeviceBatches(stream, CUDA):
            found.append(batch.video_ids)
            break
    assert found == wanted
    assert list(DeviceBatches(stream, CUDA)) == []


@pytest.mark.usefixtures("events")
def test_damage_is_told_after_the_batches_before_it(data: str) -> None:
    file = Path(data.replace("*", "1"))
    content = bytearray(file.read_bytes())
    content[-20] ^= 255
    file.write_bytes(content)
    before = until_damage(loader(data, batch_size=2))
    assert len(before) > 2
    copied = DeviceBatches(loader(data, batch_size=2), CUDA)
    assert until_damage(batch for batch, _ in copied) == before


def until_damage(batches: Iterable[FrameBatch]) -> list[list[str]]:
    found = []
    try:
        for batch in batches:
            found.append(batch.video_ids)
    except RecordError:
        return found
    pytest.fail("no damage was told")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("workers", [0, 2])
def test_copies_on_a_gpu_are_the_batches(data: str, workers: int) -> None:
    wanted = list(loader(data, workers=workers, batch_size=1, epochs=20))
    batches: list[DeviceBatch] = []
    checks = []
    for batch, here in DeviceBatches(
        loader(data, workers=workers, batch_size=1, epochs=20, pin_memory=True), torch.device("cuda", 0)
    ):
        # On the stream of the model, without waiting on the host; the batch is let go of at once.
        torch.cuda._sleep(1_000_000)
        checks.append({name: frames.values.double().sum() for name, frames in here.streams.items()})
        batches.append(DeviceBatch(batch, FrameBatch([], here.labels, {})))
    for sums, batch, expected in zip(checks, batches, wanted, strict=True):
        assert torch.equal(batch.here.labels.cpu(), expected.labels)
        for name, total in sums.items():
            assert float(total) == float(expected.streams[name].values.double().sum())
