"""Batches of shapes that come often answered from graphs: on a CPU from imitations, on a GPU from real ones.

An imitation does the work again on the same tensors, and leaves its result in the same memory, as a graph.
"""

from __future__ import annotations

import gc
import inspect
import json
import os
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from makers import SIZES, make_data
from nextvlad import checkpoint, inference, models
from nextvlad.config import NeXtVLADConfig, StreamConfig
from nextvlad.data.batch import FrameBatch
from nextvlad.models import (
    InferenceModel,
    build_model,
    for_inference,
    gpu_inference,
    graphs,
    kernels,
    layers,
)
from nextvlad.models.base import Sums
from nextvlad.models.folded import FoldedBranch, FoldedNeXtVLAD
from nextvlad.models.graphs import Graphs, room_for
from nextvlad.predict import predict
from nextvlad.run_config import InferenceOptions
from nextvlad.split_batches import Halver
from test_folded import CONFIGS, STREAMS, batch_of, make, name_of

CPU = torch.device("cpu")
HAS_GPU = torch.cuda.is_available()
LENGTHS = [(5, 7), (0, 0), (40, 1), (3, 0), (0, 9), (3, 3)]
NO_MEMORY = "CUDA out of memory. Tried to allocate 20.00 MiB"


class Imitation:
    """Captures nothing; counts how often it was asked to."""

    def __init__(self) -> None:
        self.num_captured = 0

    def __call__(self, run: Callable[[], Tensor]) -> Callable[[], Tensor]:
        self.num_captured += 1
        result = run().clone()
        return lambda: result.copy_(run())


class Counter:
    """An answer that counts how often it was asked, and whether for a place of a graph."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __call__(self, batch: FrameBatch) -> Tensor:
        self.asked.append(batch.video_ids[0] if batch.video_ids else "none")
        return torch.stack([frames.offsets.diff().float() for frames in batch.streams.values()], dim=1)


def imitated(config: Any, *, after: int = 0, **more: Any) -> tuple[InferenceModel, Imitation]:
    fast, capture = for_inference(make(config)), Imitation()
    fast.graphs = Graphs(CPU, capture, after=after, **more)
    return fast, capture


# What fits in which graph.


@given(st.integers(0, 1 << 40))
def test_at_most_an_eighth_of_a_room_is_wasted(num_frames: int) -> None:
    room = room_for(num_frames)
    assert num_frames <= room
    assert room == 128 or room - num_frames < num_frames / 8
    assert room_for(room) == room


def test_there_are_few_rooms() -> None:
    assert len({room_for(number) for number in range(1 << 15)}) == 8 * 8 + 1  # eight from 128 to 256, ...
    assert len({room_for(number) for number in range(17_500, 19_500)}) <= 3  # 80 videos of YouTube-8M


# The same answers.


@pytest.mark.parametrize("floats", [False, True])
@pytest.mark.parametrize("config", CONFIGS, ids=name_of)
def test_the_same_logits(config: Any, floats: bool) -> None:
    fast, capture = imitated(config)
    plain = for_inference(make(config))
    numbers = torch.Generator().manual_seed(0)
    for seed in range(25):
        most = int(torch.randint(1, 90, (), generator=numbers))
        lengths = [tuple(pair) for pair in torch.randint(0, most, (4, 2), generator=numbers).tolist()]
        batch = batch_of(lengths, floats=floats, seed=seed)
        assert torch.equal(fast(batch), plain(batch))
    assert capture.num_captured == 0 if floats else 2 < capture.num_captured < 25


@pytest.mark.parametrize("config", CONFIGS, ids=name_of)
def test_what_others_left_in_the_buffer_counts_nowhere(config: Any) -> None:
    fast, capture = imitated(config)
    large, small = batch_of([(120, 60), (8, 60)]), batch_of([(2, 1), (0, 1)])
    for frames in large.streams.values():
        frames.values.fill_(255)
    before = fast(small)
    fast(large)
    assert capture.num_captured == 1  # so that both were in the same place
    assert torch.equal(fast(small), before)
    assert torch.equal(fast(small), for_inference(make(config))(small))


@pytest.mark.parametrize("config", [CONFIGS[0], CONFIGS[3]], ids=name_of)
def test_with_what_a_gpu_does(config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its kernels, by Triton's interpreter, on frames with more behind them."""
    if HAS_GPU:
        pytest.skip("there is a GPU, which is tested itself")
    os.environ["TRITON_INTERPRET"] = "1"  # as in test_kernels
    pytest.importorskip("triton", reason="Triton is not installed")
    fast, capture = imitated(config)
    large, batch = batch_of([(50, 70), (78, 58)] * 3), batch_of(LENGTHS)
    wanted = [for_inference(make(config))(one) for one in (large, batch)]
    monkeypatch.setattr(kernels, "available", lambda device: True)
    monkeypatch.setattr(
        FoldedBranch,
        "aggregate",
        lambda self, frames: gpu_inference.aggregate(frames, self._products, self.groups, self.clusters),
    )
    for one, logits in zip((large, batch), wanted, strict=True):
        torch.testing.assert_close(fast(one), logits, rtol=1e-5, atol=1e-5)
    assert capture.num_captured == 2


def test_frames_behind_the_last_offset_are_of_no_video() -> None:
    values, offsets = torch.randn(9, 3), torch.tensor([0, 0, 4, 4, 6])
    values[6:] = float("nan")
    found = layers.sum_of_frames(Tensor.float, values, offsets)
    wanted = torch.stack([torch.zeros(3), values[:4].sum(0), torch.zeros(3), values[4:6].sum(0)])
    torch.testing.assert_close(found, wanted)


def test_a_result_is_the_callers_own() -> None:
    fast, _ = imitated(CONFIGS[0])
    first = fast(batch_of(LENGTHS))
    kept = first.clone()
    second = fast(batch_of(LENGTHS, seed=1))
    assert torch.equal(first, kept)
    assert not torch.equal(first, second)


def test_with_and_without_inference_mode() -> None:
    fast, capture = imitated(CONFIGS[0])
    batch = batch_of(LENGTHS)
    with torch.inference_mode():
        inside = fast(batch)
    outside = fast(batch)
    with torch.inference_mode():
        again = fast(batch)
    assert capture.num_captured == 1
    assert torch.equal(inside, outside)
    assert torch.equal(outside, again)
    outside += 1  # an ordinary tensor


def test_threads_take_turns() -> None:
    inside = threading.Lock()

    def capture(run: Callable[[], Tensor]) -> Callable[[], Tensor]:
        def replay() -> Tensor:
            assert inside.acquire(blocking=False)
            time.sleep(0.001)
            inside.release()
            return run()

        return replay

    counter, served = Counter(), Graphs(CPU, capture, after=0)
    batches = [batch_of([(number, 1), (2, number)]) for number in range(40)]
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda batch: served(counter, batch), batches))
    for number, lengths in enumerate(found):
        assert lengths.tolist() == [[number, 1], [2, number]]


# Which batches are captured.


def test_a_shape_is_captured_when_it_has_come_often_enough() -> None:
    counter, capture = Counter(), Imitation()
    served = Graphs(CPU, capture, after=3)
    for number in range(5):
        served(counter, batch_of([(number, 3), (60, 3)]))
        served(counter, batch_of([(number, 3), (161, 3)]))  # more frames
        assert served.num_captured == (2 if number >= 3 else 0)
    served(counter, batch_of([(2, 3), (60, 3), (1, 1)]))  # more videos, as the last batch may have fewer
    assert capture.num_captured == served.num_captured == 2
    assert counter.asked.count("v0") == 7  # "": the place of a graph


@pytest.mark.parametrize(
    "batch",
    [
        pytest.param(batch_of(LENGTHS, floats=True), id="floats"),
        pytest.param(FrameBatch.empty(STREAMS, 7), id="no videos"),
        pytest.param(batch_of([(200, 1)]), id="large"),
        pytest.param(batch_of(LENGTHS).to("meta"), id="elsewhere"),
    ],
)
def test_what_is_never_captured(batch: FrameBatch) -> None:
    counter, capture = Counter(), Imitation()
    served = Graphs(CPU, capture, after=0, most_bytes=128 * 24 + 128 * 8)
    for _ in range(3):
        assert len(served(counter, batch)) == batch.num_videos
    assert capture.num_captured == 0
    assert len(counter.asked) == 3
    served(counter, batch_of(LENGTHS))
    assert capture.num_captured == 1


def test_videos_without_frames_are_answered_like_others() -> None:
    fast, capture = imitated(CONFIGS[0])
    batch = batch_of([(0, 0), (0, 0)])
    assert torch.equal(fast(batch), for_inference(make(CONFIGS[0]))(batch))
    assert capture.num_captured == 1


def test_the_shape_that_did_not_come_for_longest_is_forgotten() -> None:
    counter, capture = Counter(), Imitation()
    served = Graphs(CPU, capture, after=1, most_shapes=3)

    def come(num_videos: int) -> None:
        served(counter, batch_of([(1, 1)] * num_videos))

    for num_videos in (1, 1, 2, 2, 3, 3, 1, 4, 4):  # 4 in place of 2
        come(num_videos)
    assert (capture.num_captured, served.num_captured) == (4, 3)
    come(1)
    assert capture.num_captured == 4
    come(2)  # in place of 3, and counted anew
    assert (capture.num_captured, served.num_captured) == (4, 2)
    come(2)
    assert (capture.num_captured, served.num_captured) == (5, 3)


def test_streams_in_pieces_go_without_graphs() -> None:
    fast, capture = imitated(CONFIGS[0])
    state = fast.begin()
    for _ in range(3):
        fast.update(state, {"rgb": batch_of([(4, 0)]).streams["rgb"].values})
        fast.predict(state)
    assert capture.num_captured == 0


def test_another_cuda_stream_goes_without_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    counter, served = Counter(), Graphs(CPU, Imitation(), after=0)
    batch = batch_of(LENGTHS)
    for current, kernel_by_kernel in (("first", False), ("second", True), ("first", False)):
        monkeypatch.setattr(graphs, "_current_stream", lambda device, current=current: current)
        counter.asked.clear()
        assert len(served(counter, batch)) == len(LENGTHS)
        assert ("v0" in counter.asked) == kernel_by_kernel


def test_another_cuda_stream_that_waited_for_the_first_capture(monkeypatch: pytest.MonkeyPatch) -> None:
    counter, served = Counter(), Graphs(CPU, Imitation(), after=0)
    batch = batch_of(LENGTHS)
    monkeypatch.setattr(graphs, "_current_stream", lambda device: threading.current_thread().name)
    second = threading.Thread(target=lambda: served(counter, batch), name="second")
    waiting, lock = threading.Event(), served._lock

    class Lock:
        """Tells that the second thread is here; lets the first go on only then."""

        def __enter__(self) -> None:
            if threading.current_thread() is second:
                waiting.set()
                lock.acquire()
            else:
                lock.acquire()
                second.start()
                assert waiting.wait(10)

        def __exit__(self, *error: object) -> None:
            lock.release()

    monkeypatch.setattr(served, "_lock", Lock())
    served(counter, batch)
    second.join()
    assert served.num_captured == 1
    assert counter.asked == ["", "", "v0"]  # to capture and in the graph; by the second thread without


# When it does not work.


@pytest.mark.parametrize("message", ["operation not permitted when stream is capturing", NO_MEMORY])
def test_a_failed_capture_is_told_once_and_costs_nothing(message: str) -> None:
    fast = for_inference(make(CONFIGS[0]))
    attempts = []

    def fail(run: Callable[[], Tensor]) -> Callable[[], Tensor]:
        attempts.append(run)
        raise torch.OutOfMemoryError(message) if message == NO_MEMORY else RuntimeError(message)

    batch = batch_of(LENGTHS)
    wanted = fast(batch)
    fast.graphs = Graphs(CPU, fail, after=0)
    with pytest.warns(RuntimeWarning, match=f"CUDA graphs are not used on cpu from here on .*{message[:9]}"):
        assert torch.equal(fast(batch), wanted)
    assert torch.equal(fast(batch), wanted)
    assert torch.equal(fast(batch[:2]), for_inference(make(CONFIGS[0]))(batch[:2]))
    assert len(attempts) == 1


def test_want_of_memory_after_a_failed_capture_splits_the_batch() -> None:
    def no_memory(run: Callable[[], Tensor]) -> Callable[[], Tensor]:
        raise torch.OutOfMemoryError(NO_MEMORY)

    served = Graphs(CPU, no_memory, after=0)
    answer = too_large_above(3)
    halver = Halver("--batch-size")
    with pytest.warns(RuntimeWarning, match="OutOfMemoryError: CUDA out of memory"):
        found = halver.run(lambda part: served(answer, part), batch_of(LENGTHS))
    assert torch.cat(found).tolist() == [list(pair) for pair in LENGTHS]
    assert halver.num_split == 1


def test_graphs_go_before_a_batch_is_split() -> None:
    held: list[Graphs] = []

    def answer(batch: FrameBatch) -> Tensor:
        if batch.num_videos > 3 and held[0].num_captured:
            raise torch.OutOfMemoryError(NO_MEMORY)
        return Counter()(batch)

    served = Graphs(CPU, Imitation(), after=0, most_bytes=128 * 32)
    held.append(served)
    served(answer, batch_of(LENGTHS[:2]))
    assert served.num_captured == 1
    large, halver = batch_of([(200, 7)] * 4), Halver("--batch-size")
    with pytest.warns(RuntimeWarning, match="their memory is needed"):
        (found,) = halver.run(lambda part: served(answer, part), large)
    assert found.tolist() == [[200, 7]] * 4
    assert halver.num_split == served.num_captured == 0
    assert served(answer, batch_of(LENGTHS[:2])).tolist() == [[5, 7], [0, 0]]
    assert served.num_captured == 0


def test_want_of_memory_of_a_graph_itself() -> None:
    def capture(run: Callable[[], Tensor]) -> Callable[[], Tensor]:
        def replay() -> Tensor:
            raise torch.OutOfMemoryError(NO_MEMORY)

        return replay

    counter, served = Counter(), Graphs(CPU, capture, after=0)
    with pytest.warns(RuntimeWarning, match="their memory is needed"):
        assert served(counter, batch_of(LENGTHS)).tolist() == [list(pair) for pair in LENGTHS]
    assert served.num_captured == 0


def test_errors_of_the_model_pass() -> None:
    def breaks(batch: FrameBatch) -> Tensor:
        raise RuntimeError("a bug")

    served = Graphs(CPU, Imitation(), after=5)
    with pytest.raises(RuntimeError, match="a bug"):
        served(breaks, batch_of(LENGTHS))
    with pytest.raises(torch.OutOfMemoryError):  # there are no graphs to make room
        served(too_large_above(0), batch_of(LENGTHS))


def too_large_above(most: int) -> Callable[[FrameBatch], Tensor]:
    def answer(batch: FrameBatch) -> Tensor:
        if batch.num_videos > most:
            raise torch.OutOfMemoryError(NO_MEMORY)
        return Counter()(batch)

    return answer


# Whole runs.


@pytest.mark.parametrize("most", [6, 4], ids=["fits", "is split"])
def test_predictions_are_the_same(most: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    streams = tuple(StreamConfig(name=name, size=size) for name, size in SIZES.items())
    config = NeXtVLADConfig(
        streams=streams, num_classes=5, clusters=4, groups=2, hidden_size=16, gating_reduction=4
    )
    torch.manual_seed(0)
    checkpoint.save(tmp_path / "model", build_model(config))
    data = make_data(tmp_path, "some", num_videos=20)
    capture, conclude = Imitation(), FoldedNeXtVLAD.conclude

    def with_graphs(*arguments: Any) -> InferenceModel:
        fast = for_inference(*arguments)
        fast.graphs = Graphs(fast.device, capture, after=1)
        return fast

    def limited(self: FoldedNeXtVLAD, sums: Sums, pooled: Tensor | None = None) -> Tensor:
        if len(sums["rgb.mass"]) > most:
            raise torch.OutOfMemoryError(NO_MEMORY)
        return conclude(self, sums, pooled)

    def rows(name: str) -> list[dict[str, Any]]:
        options = InferenceOptions(batch_size=6, workers=0, device="cpu")
        predict(tmp_path / "model", [data], options, out=tmp_path / name)
        return [json.loads(line) for line in (tmp_path / name).read_text().splitlines()]

    wanted = rows("plain.jsonl")
    monkeypatch.setattr(inference, "for_inference", with_graphs)
    monkeypatch.setattr(FoldedNeXtVLAD, "conclude", limited)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        found = rows("graphs.jsonl")
    # Or that of halves first, and then the whole, for which memory does not do.
    assert (capture.num_captured, len(told)) == ((1, 0) if most == 6 else (2, 1))
    for mine, theirs in zip(found, wanted, strict=True):
        assert mine == theirs | {"scores": pytest.approx(theirs["scores"], abs=1e-6)}


# What a graph can hold.


class _NoKernels:
    """Starts nothing: on the meta device there are no numbers."""

    def __getattr__(self, name: str) -> _NoKernels:
        return self

    def __getitem__(self, grid: Any) -> Callable[..., None]:
        assert all(isinstance(size, int) for size in grid)
        return lambda *arguments, **more: None


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("fused", [True, False], ids=["fused", "plain"])
@pytest.mark.parametrize("config", CONFIGS, ids=name_of)
def test_the_host_never_asks_the_device(
    config: Any, fused: bool, precision: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With tensors that have shapes and no values, any question for a value is an error."""
    monkeypatch.setattr(kernels, "available", lambda device: fused)
    monkeypatch.setattr(kernels, "_kernels", _NoKernels)
    monkeypatch.setattr(torch, "autocast", lambda *arguments, **more: torch.no_grad())
    fast = for_inference(make(config).to("meta"), precision)
    batch = batch_of(LENGTHS).to("meta")
    if fused or config.kind in ("mean_pool", "moe"):
        assert fast(batch).shape == (len(LENGTHS), 7)
        assert all(sums.device.type == "meta" for sums in fast.aggregate(batch).values())
    else:  # the plain steps wait, which is why there are no graphs without kernels
        with pytest.raises((RuntimeError, NotImplementedError)):
            fast(batch)


def test_there_are_none_on_a_cpu() -> None:
    assert for_inference(make(CONFIGS[0])).graphs is None


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize(
    ("config", "needs_kernels"), [(CONFIGS[0], True), (CONFIGS[2], True), (CONFIGS[4], False)]
)
def test_where_there_are_some(
    config: Any, needs_kernels: bool, fused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    fast = for_inference(make(config))
    monkeypatch.setattr(models, "_in_inference", lambda *arguments: fast)
    monkeypatch.setattr(kernels, "available", lambda device: fused)
    on_gpu: Any = SimpleNamespace(device=torch.device("cuda", 0), training=False)
    assert (for_inference(on_gpu).graphs is not None) == (fused or not needs_kernels)


def test_a_model_and_its_graphs_go_together() -> None:
    """Each evaluation of a training has its own: they must not wait for the garbage collector."""

    def capture(run: Callable[[], Tensor]) -> Callable[[], Tensor]:
        logits = run()
        return lambda: logits

    fast = for_inference(make(CONFIGS[0]))
    fast.graphs = Graphs(CPU, capture, after=0)
    fast(batch_of(LENGTHS))
    assert fast.graphs.num_captured == 1
    references = weakref.ref(fast), weakref.ref(fast.graphs)
    gc.disable()
    try:
        del fast
        assert [reference() for reference in references] == [None, None]
    finally:
        gc.enable()


class _Cuda(SimpleNamespace):
    """Notes in which order the parts of `torch.cuda` are called, with the stream that is the current one."""

    def __init__(self, *, fails: bool = False) -> None:
        super().__init__(events=[], now="main", fails=fails)

    def note(self, what: str) -> None:
        self.events.append(f"{what} on {self.now}")

    def make_stream(self, device: torch.device) -> Any:
        return SimpleNamespace(name="side", wait_stream=lambda other: self.note("side waits"))

    def current(self, device: torch.device) -> Any:
        return SimpleNamespace(name=self.now, wait_stream=lambda other: self.note("main waits"))

    @contextmanager
    def stream(self, stream: Any) -> Iterator[None]:
        before, self.now = self.now, stream.name
        try:
            yield
        finally:
            self.now = before

    @contextmanager
    def graph(self, graph: Any, *, pool: str, stream: Any, capture_error_mode: str) -> Iterator[None]:
        assert (pool, capture_error_mode) == ("pool", "thread_local")
        self.now = stream.name
        self.note("capture")
        yield
        if self.fails:
            raise RuntimeError("operation failed due to a previous error during capture")
        self.now = "main"

    def make_graph(self) -> Any:
        return SimpleNamespace(replay=lambda: self.note("replay"))

    @contextmanager
    def device(self, device: torch.device) -> Iterator[None]:
        self.note(f"device {device.index}")
        yield


def stand_in(cuda: _Cuda, monkeypatch: pytest.MonkeyPatch) -> None:
    assert {"pool", "stream", "capture_error_mode"} <= set(inspect.signature(torch.cuda.graph).parameters)
    for name, part in (
        ("device", cuda.device),
        ("current_stream", cuda.current),
        ("Stream", cuda.make_stream),
        ("stream", cuda.stream),
        ("graph_pool_handle", lambda: "pool"),
        ("CUDAGraph", cuda.make_graph),
        ("graph", cuda.graph),
    ):
        assert hasattr(torch.cuda, name)
        monkeypatch.setattr(torch.cuda, name, part)


def test_the_order_of_a_capture(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = _Cuda()
    stand_in(cuda, monkeypatch)

    def run() -> Tensor:
        cuda.note("run")
        return torch.ones(2)

    replay = graphs._CudaCapture(torch.device("cuda", 3))(run)
    assert cuda.events == [
        "device 3 on main",
        "side waits on main",
        "run on side",
        "capture on side",
        "run on side",
        "main waits on main",
    ]
    assert replay() is replay()
    assert cuda.events[6:] == ["replay on main"] * 2


def test_a_failed_capture_leaves_the_stream_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = _Cuda(fails=True)
    stand_in(cuda, monkeypatch)
    with pytest.raises(RuntimeError, match="previous error"):
        graphs._CudaCapture(torch.device("cuda", 0))(lambda: torch.ones(2))
    assert cuda.now == "main"


# On a GPU.


@pytest.mark.skipif(not HAS_GPU, reason="no GPU")
@pytest.mark.parametrize("config", CONFIGS, ids=name_of)
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_logits_on_a_gpu(config: Any, precision: Any) -> None:
    device = torch.device("cuda", 0)
    model = make(config).to(device)
    plain, fast = for_inference(model, precision), for_inference(model, precision)
    if fast.graphs is None:
        pytest.skip("no Triton, so no graphs")
    plain.graphs, fast.graphs = None, Graphs(device, after=1)
    numbers = torch.Generator().manual_seed(0)
    for seed in range(20):
        lengths = [tuple(pair) for pair in torch.randint(0, 90, (6, 2), generator=numbers).tolist()]
        batch = batch_of(lengths, seed=seed).to(device)
        torch.testing.assert_close(
            fast(batch), plain(batch), rtol=0, atol=1e-5 if precision == "fp32" else 0.05
        )
    assert fast.graphs.num_captured > 1


@pytest.mark.skipif(not HAS_GPU, reason="no GPU")
def test_streams_on_a_gpu() -> None:
    device = torch.device("cuda", 0)
    model = make(CONFIGS[4]).to(device)  # without kernels of ours
    fast = for_inference(model)
    fast.graphs = Graphs(device, after=0)
    batches = [batch_of(LENGTHS, seed=seed).to(device) for seed in range(20)]
    wanted = [model(batch).detach() for batch in batches]
    found = [fast(batch) for batch in batches]  # queued without waiting: results must not be overwritten
    side = torch.cuda.Stream(device)
    side.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(side):
        found += [fast(batch) for batch in batches]
    torch.cuda.synchronize(device)
    assert fast.graphs.num_captured == 1
    for mine, theirs in zip(found, wanted * 2, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-5)


@pytest.mark.skipif(not HAS_GPU, reason="no GPU")
def test_a_capture_that_waits_on_a_gpu() -> None:
    device = torch.device("cuda", 0)

    def waits(batch: FrameBatch) -> Tensor:
        lengths = batch.streams["rgb"].offsets.diff()
        return lengths.float() * int(lengths.max())

    served = Graphs(device, after=0)
    batch = batch_of(LENGTHS).to(device)
    with pytest.warns(RuntimeWarning, match="CUDA graphs are not used on cuda:0 from here on"):
        assert served(waits, batch).tolist() == [200, 0, 1600, 120, 0, 120]
    assert torch.cuda.current_stream(device) == torch.cuda.default_stream(device)
    assert served(waits, batch).tolist() == [200, 0, 1600, 120, 0, 120]
