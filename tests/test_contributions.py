"""What each second contributes, against models that get the video without it; intervals of known truth."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from nextvlad import contributions
from nextvlad.config import MeanPoolConfig, MixtureConfig, MoEConfig, NeXtVLADConfig, StreamConfig
from nextvlad.contributions import LEAST_CONTRIBUTION, Seconds, intervals
from nextvlad.data.batch import collate
from nextvlad.data.video_record import VideoRecord
from nextvlad.errors import UsageError
from nextvlad.models import Model, build_model, for_inference
from nextvlad.models.nextvlad import Branch, NeXtVLAD

STREAMS = (StreamConfig(name="rgb", size=16), StreamConfig(name="audio", size=8, clusters=3, groups=2))
NEXTVLAD: dict[str, Any] = {
    "streams": STREAMS,
    "num_classes": 5,
    "clusters": 4,
    "groups": 4,
    "hidden_size": 16,
    "gating_reduction": 4,
}
CONFIGS = [
    NeXtVLADConfig(**NEXTVLAD),
    MixtureConfig(**NEXTVLAD, num_members=2),
    MeanPoolConfig(streams=STREAMS, num_classes=5),
    MoEConfig(streams=STREAMS, num_classes=5),
]
Streams = dict[str, NDArray[Any]]

every_model = pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.kind)


def make(config: Any) -> Model:
    torch.manual_seed(5)
    return build_model(config).eval()


def frames(rgb: int, audio: int, seed: int = 0) -> Streams:
    numbers = np.random.default_rng(seed)
    return {
        "rgb": numbers.integers(0, 256, (rgb, 16)).astype(np.uint8),
        "audio": numbers.integers(0, 256, (audio, 8)).astype(np.uint8),
    }


def logits(model: Model, streams: Streams) -> NDArray[np.float32]:
    """The model's own answer, in the paper's steps."""
    record = VideoRecord("v", labels=np.empty(0, np.int64), streams=streams, context={})
    with torch.no_grad():
        answer: NDArray[np.float32] = model(collate([record], streams=STREAMS, num_classes=5))[0].numpy()
    return answer


def without(streams: Streams, second: int, rates: dict[str, float]) -> Streams:
    """The frames that are shown outside of [second, second + 1)."""
    kept = {}
    for name, values in streams.items():
        times = np.arange(len(values)) / rates[name]
        kept[name] = values[(times < second) | (times >= second + 1)]
    return kept


@every_model
@pytest.mark.parametrize("folded", [False, True])
@pytest.mark.parametrize(("rgb", "audio"), [(9, 9), (7, 5), (4, 11), (6, 0), (1, 1), (3, 1)])
def test_contributions_are_those_of_leaving_a_second_out(
    config: Any, folded: bool, rgb: int, audio: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contributions, "STEPS_AT_A_TIME", 4)
    model, streams = make(config), frames(rgb, audio)
    seconds = Seconds(for_inference(model) if folded else model, streams)
    whole = logits(model, streams)
    np.testing.assert_allclose(seconds.logits, whole, atol=1e-5)
    assert seconds.num_steps == max(rgb, audio)
    assert seconds.step_seconds == 1.0
    found = seconds.contributions([3, 0])
    assert found.shape == (2, max(rgb, audio))
    rates = {"rgb": 1.0, "audio": 1.0}
    for second in range(seconds.num_steps):
        wanted = (whole - logits(model, without(streams, second, rates)))[[3, 0]]
        np.testing.assert_allclose(found[:, second], wanted, atol=3e-5)


@every_model
def test_a_second_takes_the_frames_of_every_rate(config: Any) -> None:
    model, streams, rates = make(config), frames(15, 7), {"rgb": 3.0, "audio": 1.5}
    seconds = Seconds(for_inference(model), streams, rates_hz=rates)
    assert seconds.num_steps == 5
    whole = logits(model, streams)
    found = seconds.contributions(range(5))
    for second in range(5):
        wanted = whole - logits(model, without(streams, second, rates))
        np.testing.assert_allclose(found[:, second], wanted, atol=3e-5)


def test_steps_are_as_long_as_the_longest_frame() -> None:
    model, streams = make(CONFIGS[0]), frames(4, 8)
    seconds = Seconds(model, streams, rates_hz={"rgb": 0.5, "audio": 1.0})
    assert (seconds.step_seconds, seconds.num_steps) == (2.0, 4)
    rest = {"rgb": streams["rgb"][1:], "audio": streams["audio"][2:]}
    wanted = logits(model, streams) - logits(model, rest)
    np.testing.assert_allclose(seconds.contributions(range(5))[:, 0], wanted, atol=3e-5)
    alone = Seconds(model, frames(4, 0), rates_hz={"rgb": 4.0, "audio": 0.1})
    assert (alone.step_seconds, alone.num_steps) == (1.0, 1)  # a stream without frames does not stretch it


@pytest.mark.parametrize("rate", [0.07, 0.1, 1 / 3, 0.3, 1.0, 2.997, 7.0, 29.97])
def test_no_frame_is_lost_to_rounding(rate: float) -> None:
    """Frames and seconds stay in step for hours."""
    num_frames = 20_000
    seconds = Seconds(make(CONFIGS[2]), {"rgb": np.zeros((num_frames, 16), np.uint8)}, rates_hz=rate)
    bounds = seconds._bounds["rgb"]
    assert bounds[0] == 0
    assert bounds[-1] == num_frames
    of_full_steps = np.diff(bounds)[:-1]
    usual = rate * seconds.step_seconds
    assert of_full_steps.min() == np.floor(usual + 1e-6)
    assert of_full_steps.max() == np.ceil(usual - 1e-6)


def test_a_second_that_owns_a_cluster_leaves_no_rounding_behind() -> None:
    """Descriptors are normalised, so what is left of a cluster counts however little it is."""
    model = make(NeXtVLADConfig(**NEXTVLAD | {"groups": 1, "clusters": 16}))
    assert isinstance(model, NeXtVLAD)
    branch = model.branches["rgb"]
    assert isinstance(branch, Branch)
    with torch.no_grad():
        branch.assignment.weight.mul_(20.0)  # nearly hard assignments; float32 sums are wrong by 1e-3 then
    streams = frames(6, 6)
    seconds = Seconds(model, streams)
    whole = logits(model, streams)
    found = seconds.contributions(range(5))
    for second in range(6):
        rest = without(streams, second, {"rgb": 1.0, "audio": 1.0})
        np.testing.assert_allclose(found[:, second], whole - logits(model, rest), atol=1e-5)


def test_attention_is_the_models_weights_summed() -> None:
    """Against the paper's equations, written out."""
    model, streams = make(CONFIGS[0]), frames(6, 4)
    seconds = Seconds(for_inference(model), streams)
    assert isinstance(model, NeXtVLAD)
    for name in ("rgb", "audio"):
        branch = model.branches[name]
        assert isinstance(branch, Branch)
        with torch.no_grad():
            e = branch.expansion(branch.preprocess(torch.from_numpy(streams[name])))
            alpha = torch.sigmoid(branch.attention(e)).numpy()
        wanted = np.zeros(6)
        wanted[: len(alpha)] = alpha.sum(1)  # assignments sum to 1 over the clusters of a group
        np.testing.assert_allclose(seconds.attention[name], wanted, rtol=1e-5)


def test_attention_of_a_mixture_is_its_members_and_of_a_mean_none() -> None:
    streams = frames(5, 5)
    mixture = make(CONFIGS[1])
    seconds = Seconds(mixture, streams)
    assert sorted(seconds.attention) == ["audio", "rgb"]
    assert (seconds.attention["rgb"] > 0).all()
    assert (seconds.attention["rgb"] < 4 * 2).all()
    assert Seconds(make(CONFIGS[2]), streams).attention == {}


@every_model
def test_logits_of_chosen_seconds(config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contributions, "STEPS_AT_A_TIME", 4)
    model, streams = make(config), frames(9, 6)
    seconds = Seconds(for_inference(model), streams)
    chosen = np.array([[1, 0, 0, 1, 1, 0, 1, 0, 1], [1] * 9, [0] * 9], bool)
    found = seconds.logits_of(chosen)
    assert found.shape == (3, 5)
    rest = {"rgb": streams["rgb"][chosen[0]], "audio": streams["audio"][chosen[0][:6]]}
    np.testing.assert_allclose(found[0], logits(model, rest), atol=1e-5)
    np.testing.assert_allclose(found[1], seconds.logits, atol=1e-6)
    np.testing.assert_allclose(found[2], logits(model, frames(0, 0)), atol=1e-5)
    assert seconds.logits_of(chosen[:0]).shape == (0, 5)


def test_a_video_without_frames_has_no_seconds() -> None:
    model = make(CONFIGS[0])
    seconds = Seconds(model, {})
    assert seconds.num_steps == 0
    assert seconds.contributions([1]).shape == (1, 0)
    np.testing.assert_allclose(seconds.logits, logits(model, frames(0, 0)), atol=1e-5)


def test_what_does_not_fit_is_refused() -> None:
    model = make(CONFIGS[0])
    with pytest.raises(UsageError, match=r"stream rgb: got shape \[3, 5\], wanted \[frames, 16\]"):
        Seconds(model, {"rgb": np.zeros((3, 5), np.uint8)})
    with pytest.raises(UsageError, match=r"stream audio: rate 0 Hz, wanted a number above 0"):
        Seconds(model, frames(3, 3), rates_hz={"rgb": 1, "audio": 0})
    with pytest.raises(UsageError, match="evaluation"):
        Seconds(model.train(), frames(3, 3))
    assert Seconds(model.eval(), frames(3, 3) | {"depth": np.zeros((9, 2))}).num_steps == 3


def test_memory_does_not_grow_with_the_film(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums of seconds are 10 to 100 times their frames; only `STEPS_AT_A_TIME` of them are there at once."""
    model = make(CONFIGS[0])
    largest = 0
    aggregate = model.aggregate

    def watched(batch: Any, *more: Any) -> Any:
        nonlocal largest
        largest = max(largest, batch.num_videos)
        return aggregate(batch, *more)

    monkeypatch.setattr(model, "aggregate", watched)
    seconds = Seconds(model, frames(1000, 1000))
    seconds.contributions([0])
    assert largest == contributions.STEPS_AT_A_TIME


def step_curve(length: int, stretches: list[tuple[int, int]], *, height: float, rest: float) -> NDArray[Any]:
    curve = np.full(length, rest)
    for first, end in stretches:
        curve[first:end] = height
    return curve


@given(
    st.lists(st.tuples(st.integers(1, 40), st.integers(6, 60)), min_size=1, max_size=6),
    st.integers(0, 9),
    st.floats(0.01, 20),
    st.floats(0, 0.02),
)
@settings(max_examples=200, deadline=None)
def test_stretches_of_a_step_curve_are_found_to_the_second(
    parts: list[tuple[int, int]], start: int, height: float, rest: float
) -> None:
    """What speaks for a label for 1 to 40 seconds, 6 or more apart, even if the rest says a little."""
    stretches, place = [], start
    for length, gap in parts:
        stretches.append((place, place + length))
        place += length + gap
    curve = step_curve(place, stretches, height=height, rest=rest * height)
    assert intervals(curve) == stretches


@given(st.integers(0, 9), st.integers(5, 40), st.integers(6, 60), st.floats(-3, 0))
@settings(max_examples=100, deadline=None)
def test_what_speaks_against_it_all_around_moves_no_ends(
    start: int, length: int, gap: int, rest: float
) -> None:
    stretches = [(start, start + length), (start + length + gap, start + 2 * length + gap)]
    assert intervals(step_curve(start + 3 * length + gap, stretches, height=1.0, rest=rest)) == stretches


def test_noise_moves_ends_by_little() -> None:
    numbers = np.random.default_rng(1)
    for _ in range(50):
        first = int(numbers.integers(0, 60))
        end = first + int(numbers.integers(10, 40))
        curve = step_curve(100, [(first, end)], height=1.0, rest=-0.3) + numbers.normal(0, 0.3, 100)
        found = np.zeros(100, bool)
        for a, b in intervals(curve):
            found[a:b] = True
        true = np.zeros(100, bool)
        true[first:end] = True
        assert (found & true).sum() / (found | true).sum() > 0.75


def test_one_odd_second_does_not_hide_the_others() -> None:
    curve = step_curve(300, [(50, 150)], height=1.0, rest=-0.1)
    curve[250] = 15.0
    assert intervals(curve) == [(50, 150), (250, 251)]


def test_a_short_event_in_a_long_film_stands_alone() -> None:
    curve = np.abs(np.random.default_rng(2).normal(0, 0.005, 10_000))
    curve[7000:7004] = 1.0
    assert intervals(curve) == [(7000, 7004)]


def test_small_gaps_are_bridged() -> None:
    curve = step_curve(20, [(5, 9), (11, 15)], height=1.0, rest=0.0)
    assert intervals(curve) == [(5, 15)]


@pytest.mark.parametrize(
    "curve",
    [[], [0.0] * 5, [-1.0, -2.0], [LEAST_CONTRIBUTION / 2] * 9],
    ids=["no seconds", "nothing", "against", "rounding"],
)
def test_no_stretch_where_nothing_speaks_for_the_label(curve: list[float]) -> None:
    assert intervals(np.array(curve)) == []


def test_a_label_that_is_there_throughout() -> None:
    assert intervals(np.ones(30)) == [(0, 30)]
    assert intervals(np.array([0.4])) == [(0, 1)]


@given(st.lists(st.floats(-10, 10, width=32), max_size=60))
@settings(max_examples=200, deadline=None)
def test_stretches_are_in_order_and_within(values: list[float]) -> None:
    found = intervals(np.array(values, np.float32))
    flat = [edge for stretch in found for edge in stretch]
    assert flat == sorted(set(flat)) or not flat
    assert not flat or (flat[0] >= 0 and flat[-1] <= len(values))
    for first, end in found:  # both ends speak for the label by themselves
        assert values[first] > 0
        assert values[end - 1] > 0
