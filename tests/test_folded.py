"""The model put into inference against the model in the paper's steps, and videos that come in pieces."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nextvlad.config import MeanPoolConfig, MixtureConfig, MoEConfig, NeXtVLADConfig, StreamConfig
from nextvlad.data.batch import FrameBatch, Frames
from nextvlad.errors import UsageError
from nextvlad.models import Model, build_model, byte_linear, cpu, folded, for_inference, layers
from nextvlad.models.byte_linear import Products
from nextvlad.models.folded import FoldedBranch, chunks
from nextvlad.models.nextvlad import NeXtVLAD

STREAMS = (
    StreamConfig(name="rgb", size=24),
    StreamConfig(name="audio", size=8, clusters=3, groups=2),
)
NEXTVLAD: dict[str, Any] = {
    "streams": STREAMS,
    "num_classes": 7,
    "clusters": 5,
    "groups": 4,
    "hidden_size": 16,
    "gating_reduction": 4,
}
CONFIGS = [
    NeXtVLADConfig(**NEXTVLAD),
    NeXtVLADConfig(**NEXTVLAD, dropout_scaling="evaluation", batch_norm_epsilon=1e-5),
    MixtureConfig(**NEXTVLAD),
    MixtureConfig(**NEXTVLAD, mixing_frames=300),
    MeanPoolConfig(streams=STREAMS, num_classes=7),
    MoEConfig(streams=STREAMS, num_classes=7),
    MixtureConfig(**NEXTVLAD, pooled=True),
]


def name_of(config: Any) -> str:
    return str(config.kind)


def make(config: Any) -> Model:
    """With statistics and preprocessing that differ from the neutral ones."""
    torch.manual_seed(3)
    model = build_model(config).eval()
    for name, tensor in model.state_dict().items():
        if name.endswith(("running_mean", "norm.bias", "offset")):
            tensor.add_(torch.randn(tensor.shape) * 0.1)
        elif name.endswith(("running_var", "norm.weight", "scale")):
            tensor.mul_(torch.rand(tensor.shape) + 0.5)
    return model


def batch_of(lengths: list[tuple[int, int]], *, floats: bool = False, seed: int = 0) -> FrameBatch:
    """Videos of these numbers of rgb and audio frames."""
    numbers = np.random.default_rng(seed)
    streams = {}
    for stream, counts in zip(STREAMS, zip(*lengths, strict=True), strict=True):
        values = numbers.integers(0, 256, (sum(counts), stream.size), dtype=np.uint8)
        content = torch.from_numpy(values)
        offsets = torch.tensor([0, *np.cumsum(counts).tolist()])
        streams[stream.name] = Frames((content.float() / 64 - 2) if floats else content, offsets)
    labels = torch.zeros(len(lengths), 7, dtype=torch.bool)
    return FrameBatch([f"v{number}" for number in range(len(lengths))], labels, streams)


@pytest.fixture(
    params=[Products(127, tiles=True), Products(64, tiles=False), None], ids=["tiles", "pairwise", "floats"]
)
def products(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """All ways of multiplying that this machine has, and half precision even where it is slow."""
    wanted: Products | None = request.param
    here = byte_linear.integer_products()
    if wanted is not None and (here is None or here.largest < wanted.largest):
        pytest.skip("this CPU has no such products of bytes")
    for module in (byte_linear, folded, cpu):
        monkeypatch.setattr(module, "integer_products", lambda: wanted)
    monkeypatch.setattr(cpu, "multiplies", lambda half: True)
    return iter(())


@torch.no_grad()
def differ(found: Tensor, wanted: Tensor) -> float:
    assert found.shape == wanted.shape
    assert found.dtype == torch.float32
    return float((found - wanted).abs().max())


@pytest.mark.usefixtures("products")
@pytest.mark.parametrize("floats", [False, True])
@pytest.mark.parametrize("config", CONFIGS, ids=name_of)
def test_the_same_logits(config: Any, floats: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folded, "_CHUNK_CPU", 16)
    monkeypatch.setattr(layers, "_ROWS_OF_FRAMES_CPU", 16)
    model = make(config)
    batch = batch_of([(5, 7), (0, 0), (40, 1), (3, 0), (0, 9), (3, 3)], floats=floats)
    with torch.no_grad():
        wanted = model(batch)
    assert differ(for_inference(model)(batch), wanted) < 1e-5
    assert differ(for_inference(model, "bf16")(batch), wanted) < 0.1


@pytest.mark.usefixtures("products")
@pytest.mark.parametrize("half", [True, False], ids=["half", "float32"])
@pytest.mark.parametrize("config", CONFIGS[:3], ids=name_of)
def test_int8_is_close(config: Any, half: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "multiplies", lambda dtype: half)
    model = make(config)
    batch = batch_of([(12, 12), (30, 29)])
    with torch.no_grad():
        wanted = torch.sigmoid(model(batch))
    assert differ(torch.sigmoid(for_inference(model, "int8")(batch)), wanted) < 0.05


@settings(max_examples=30, deadline=None)
@given(
    lengths=st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), min_size=1, max_size=6),
    chunk=st.integers(1, 50),
)
def test_any_lengths_in_chunks_of_any_size(lengths: list[tuple[int, int]], chunk: int) -> None:
    model = make(CONFIGS[0])
    batch = batch_of(lengths)
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(folded, "_CHUNK_CPU", chunk)
        assert differ(for_inference(model)(batch), model(batch)) < 1e-5


@pytest.mark.usefixtures("products")
@pytest.mark.parametrize("chunk", [10, 1000])
def test_neighbours_of_equal_length(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folded, "_CHUNK_CPU", chunk)
    model = make(CONFIGS[0])
    for lengths in ([(4, 2), (4, 2), (4, 3), (0, 3), (0, 0), (7, 0), (7, 5), (7, 5)], [(3, 0)] * 5):
        batch = batch_of(lengths)
        with torch.no_grad():
            wanted = model(batch)
        assert differ(for_inference(model)(batch), wanted) < 1e-5
        assert differ(for_inference(model, "bf16")(batch), wanted) < 0.1


def test_which_sums_are_one_product(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "multiplies", lambda half: True)
    model = make(CONFIGS[0])

    def products_of(precision: Any, bounds: list[int]) -> list[tuple[int, int, int, int]]:
        found = for_inference(model, precision).branches["rgb"]._products_of(bounds)
        return [(videos.start, videos.stop, frames.start, frames.stop) for videos, frames in found]

    several = [0, 4, 8, 8, 8, 15, 22, 23]
    assert products_of("fp32", several) == [(0, 2, 0, 8), (4, 6, 8, 22), (6, 7, 22, 23)]
    assert products_of("bf16", several) == [
        (0, 1, 0, 4), (1, 2, 4, 8), (4, 5, 8, 15), (5, 6, 15, 22), (6, 7, 22, 23)
    ]  # fmt: skip
    assert products_of("bf16", [0, 37, 39]) == [(0, 1, 0, 32), (0, 1, 32, 37), (1, 2, 37, 39)]
    for precision in ("fp32", "bf16"):
        assert products_of(precision, [0, 4, 8, 12]) == [(0, 3, 0, 12)]
        assert products_of(precision, [0, 0, 0]) == []


@given(
    lengths=st.lists(st.integers(0, 9), min_size=1, max_size=8), size=st.integers(1, 12), equal=st.booleans()
)
def test_chunks_cover_all_frames_once(lengths: list[int], size: int, equal: bool) -> None:
    lengths = [lengths[0]] * len(lengths) if equal else lengths
    offsets = [0, *np.cumsum(lengths).tolist()]
    found = list(chunks(offsets, size))
    assert [frame for start, stop in found for frame in range(start, stop)] == list(range(offsets[-1]))
    assert all(0 < stop - start <= size for start, stop in found)
    if equal and 0 < lengths[0] <= size:  # whole videos
        assert all(start in offsets and stop in offsets for start, stop in found)


def test_a_cpu_without_half_precision_computes_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "multiplies", lambda half: False)
    model = make(CONFIGS[0])
    batch = batch_of([(12, 12), (30, 29)])
    fast = for_inference(model, "bf16")
    assert fast.precision == "fp32"
    assert torch.equal(fast(batch), for_inference(model)(batch))


@pytest.mark.usefixtures("products")
@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
@pytest.mark.parametrize("config", CONFIGS, ids=name_of)
def test_what_is_no_number_stays_none(config: Any, precision: Any) -> None:
    """In features and in weights, in all precisions: verbs refuse such results, so they must be seen."""
    model = make(config)
    batch = batch_of([(5, 7), (9, 2)], floats=True)
    batch.streams["rgb"].values[2, 3] = float("nan")
    assert for_inference(model, precision)(batch).isfinite().all(1).tolist() == [False, True]
    with torch.no_grad():
        next(iter(model.class_layers().values())).weight[0, 0] = float("nan")
    assert not for_inference(model, precision)(batch_of([(5, 7)])).isfinite().all()
    if not isinstance(model, NeXtVLAD):
        return
    model = make(config)
    with torch.no_grad():
        model.get_parameter("branches.rgb.expansion.weight")[0, 0] = float("nan")
    assert not for_inference(model, precision)(batch_of([(5, 7)])).isfinite().any()


@pytest.mark.parametrize("config", CONFIGS, ids=name_of)
def test_what_changes_later_does_not_matter(config: Any) -> None:
    model = make(config)
    batch = batch_of([(5, 7), (9, 2)])
    fast = for_inference(model)
    before = fast(batch)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    model.train()
    statistics = {name: tensor.clone() for name, tensor in model.named_buffers()}
    assert torch.equal(fast(batch), before)
    assert all(torch.equal(tensor, statistics[name]) for name, tensor in model.named_buffers())


def test_not_in_training() -> None:
    model = build_model(CONFIGS[0])
    with pytest.raises(UsageError, match="in training mode"):
        for_inference(model)
    with pytest.raises(UsageError, match=r"model\.eval\(\) first"):
        model.begin()


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("config", CONFIGS, ids=name_of)
def test_frames_as_they_come(config: Any, inference: bool) -> None:
    """Fed second by second, streams out of step, a video ends where it ends when read whole."""
    own = make(config)
    model = for_inference(own) if inference else own
    batch = batch_of([(11, 6)])
    rgb, audio = batch.streams["rgb"].values, batch.streams["audio"].values
    state = model.begin()
    half = nothing = model.predict(state)
    assert half.shape == (7,)
    for second in range(11):
        frames = {"rgb": rgb[second : second + 1]}
        if second % 3 == 2:
            frames["audio"] = audio[second // 3 * 2 : second // 3 * 2 + 2].numpy()
        model.update(state, frames)
        if second == 5:
            half = model.predict(state)
    with torch.no_grad():
        wanted = torch.sigmoid(own(batch))[0]
    assert differ(model.predict(state), wanted) < 1e-5
    assert differ(half, wanted) > 1e-4
    with torch.inference_mode():  # a state begun in one mode goes on in the other
        other = model.begin()
    snapshot = dict(other)
    model.update(other, {"rgb": rgb[:3]})
    assert not torch.equal(model.predict(other), nothing)
    assert torch.equal(model.predict(snapshot), nothing)
    assert torch.equal(model.predict(state), model.predict(state))


def test_what_cannot_be_fed() -> None:
    model = make(CONFIGS[0])
    state = model.begin()
    with pytest.raises(UsageError, match=r"stream sound: the model has rgb, audio"):
        model.update(state, {"sound": np.zeros((1, 8), np.uint8)})
    with pytest.raises(UsageError, match=r"stream audio: got shape \[8\], wanted \[frames, 8\]"):
        model.update(state, {"audio": np.zeros(8, np.uint8)})
    with pytest.raises(
        UsageError, match=r"stream audio: got torch.int64, wanted bytes \(torch.uint8\) or floats"
    ):
        model.update(state, {"audio": np.zeros((1, 8), np.int64)})


def test_frames_as_records_hold_them() -> None:
    """Which is read-only; torch would warn, and warnings are errors."""
    model = make(CONFIGS[0])
    frames = np.full((2, 24), 77, np.uint8)
    states = [model.begin(), model.begin()]
    model.update(states[0], {"rgb": frames})
    frames.flags.writeable = False
    model.update(states[1], {"rgb": frames})
    assert torch.equal(model.predict(states[0]), model.predict(states[1]))


def test_a_long_video_passes_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 100,000 frames no more than a chunk is expanded at a time."""
    seen: list[int] = []
    transform = FoldedBranch._transform

    def watched(branch: FoldedBranch, values: Tensor) -> tuple[Tensor, Tensor]:
        seen.append(len(values))
        return transform(branch, values)

    monkeypatch.setattr(FoldedBranch, "_transform", watched)
    assert torch.isfinite(for_inference(make(CONFIGS[0]))(batch_of([(100_000, 0)]))).all()
    assert max(seen) <= folded._CHUNK_CPU
    assert sum(seen) >= 100_000
