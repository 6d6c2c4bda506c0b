from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nextvlad.config import NeXtVLADConfig, StreamConfig
from nextvlad.data.batch import Frames
from nextvlad.models import branch_sums
from nextvlad.models.nextvlad import Branch

STREAM = StreamConfig(name="rgb", size=12)
CONFIG = NeXtVLADConfig(
    streams=(STREAM,), num_classes=3, clusters=5, groups=4, hidden_size=8, gating_reduction=4
)
LENGTHS = [3, 3, 0, 7, 1, 12, 12, 12, 0, 5]


def branch(seed: int = 0) -> Branch:
    """In training mode, every number away from its initial value."""
    torch.manual_seed(seed)
    made = Branch(CONFIG, STREAM)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return made.train()


def frames_of(lengths: list[int], *, floats: bool = False, seed: int = 0) -> Frames:
    numbers = torch.Generator().manual_seed(seed)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), torch.tensor(lengths).cumsum(0)])
    shape = (int(offsets[-1]), STREAM.size)
    if floats:
        return Frames(torch.randn(shape, generator=numbers), offsets)
    return Frames(torch.randint(0, 256, shape, dtype=torch.uint8, generator=numbers), offsets)


def outcome(made: Branch, sums: Tensor, mass: Tensor, *, start: int = 0) -> dict[str, Tensor]:
    """The sums, the gradients of some function of them, and the running statistics.

    A video adds to the function what it would as video number `start` and on of a larger batch.
    """
    weight, other = (
        torch.stack([_draw(x.shape[1:], number) for number in range(start, start + len(x))]).to(x.device)
        for x in (sums, mass)
    )
    made.zero_grad()
    ((sums * weight).sum() + (mass * other).sum()).backward()
    gradients = {name: p.grad.clone() for name, p in made.named_parameters() if p.grad is not None}
    norm = made.assignment_norm
    found = {"sums": sums, "mass": mass, "mean": norm.running_mean, "var": norm.running_var}
    return {name: tensor.detach().clone() for name, tensor in found.items()} | gradients


def _draw(shape: tuple[int, ...], number: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(number))


def plainly(frames: Frames) -> dict[str, Tensor]:
    made = branch()
    return outcome(made, *made.aggregate_plainly(frames.values, frames.offsets))


def in_training(
    frames: Frames,
    *,
    folded: bool | None,
    dtype: torch.dtype = torch.float32,
    made: Branch | None = None,
    start: int = 0,
) -> dict[str, Tensor]:
    made = made or branch()
    found = branch_sums.branch_sums(
        frames.values,
        frames.offsets,
        made.preprocess,
        made.weights(),
        epsilon=made.assignment_norm.epsilon,
        dtype=dtype,
        folded=folded,
    )
    made.assignment_norm.remember(found.mean, found.var, found.num_frames)
    return outcome(made, found.sums, found.mass, start=start)


def assert_alike(ours: dict[str, Tensor], plain: dict[str, Tensor], tolerance: float) -> None:
    assert ours.keys() == plain.keys()
    for name, expected in plain.items():
        # of the largest entry: entries near 0 are differences of larger numbers
        allowed = tolerance * max(float(expected.abs().max()), 1e-3) if expected.numel() else 0.0
        torch.testing.assert_close(
            ours[name], expected, rtol=0, atol=allowed, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("folded", [True, False])
@pytest.mark.parametrize("floats", [True, False])
@pytest.mark.parametrize("rows", [1, 4, 1024])
def test_sums_gradients_and_statistics_are_those_of_the_plain_equations(
    folded: bool, floats: bool, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(branch_sums, "_ROWS_CPU", rows)
    frames = frames_of(LENGTHS, floats=floats)
    assert_alike(in_training(frames, folded=folded), plainly(frames), 1e-5)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=8), st.booleans(), st.integers(0, 1000))
def test_any_lengths(lengths: list[int], folded: bool, seed: int) -> None:
    frames = frames_of(lengths, seed=seed)
    # Of one frame, or two alike, the variance is (nearly) 0, and its gradient rounding noise.
    if sum(lengths) >= 3:
        assert_alike(in_training(frames, folded=folded), plainly(frames), 2e-4)


@pytest.mark.parametrize("folded", [True, False])
@pytest.mark.parametrize("lengths", [[0], [0, 0], [1], [0, 1]])
def test_no_frame_and_one_frame(lengths: list[int], folded: bool) -> None:
    found = in_training(frames_of(lengths), folded=folded)
    assert all(bool(tensor.isfinite().all()) for tensor in found.values())
    plain = plainly(frames_of(lengths))
    for name in ("sums", "mass", "mean", "var"):
        torch.testing.assert_close(found[name], plain[name], rtol=1e-4, atol=1e-5)


def test_half_precision_is_near(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(branch_sums, "_ROWS_CPU", 16)  # rows are filled up to a multiple of 128
    frames = frames_of(LENGTHS)
    assert_alike(in_training(frames, folded=True, dtype=torch.bfloat16), plainly(frames), 0.06)
    assert_alike(in_training(frames, folded=False, dtype=torch.bfloat16), plainly(frames), 0.06)


def test_the_model_takes_this_way_in_training_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    frames = frames_of(LENGTHS)
    made, other = branch(), branch()
    found = outcome(made, *made.aggregate(frames))
    assert_alike(found, outcome(other, *other.aggregate_plainly(frames.values, frames.offsets)), 1e-5)

    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError("not in evaluation")

    monkeypatch.setattr("nextvlad.models.nextvlad.branch_sums", refuse)
    made.eval().aggregate(frames)
    with pytest.raises(AssertionError, match="not in evaluation"):
        made.train().aggregate(frames)


def test_a_gradient_to_the_frames_takes_the_plain_way() -> None:
    frames = frames_of(LENGTHS, floats=True)
    frames.values.requires_grad_()
    sums, _ = branch().aggregate(frames)
    sums.square().sum().backward()
    assert frames.values.grad is not None
    assert float(frames.values.grad.abs().sum()) > 0


def test_ranks_with_many_and_with_few_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two ranks, as threads, are one process with all frames, also where alone one would fold and one not."""
    own, meet = threading.local(), threading.Barrier(2)
    sent: dict[int, Tensor] = {}

    def sum_over_ranks(values: Tensor) -> Tensor:
        sent[own.rank] = values.clone()
        meet.wait(10)
        values.copy_(sent[0] + sent[1])
        meet.wait(10)
        return values

    lengths = [[9, 0, 8, 5], [4, 2]]
    assert [branch_sums.folding_pays(sum(of_rank), STREAM.size, 2 * STREAM.size) for of_rank in lengths] == [
        True,
        False,
    ]
    branches = [branch(), branch()]

    def one(rank: int) -> dict[str, Tensor]:
        own.rank = rank
        frames = frames_of([*lengths[0], *lengths[1]])
        first = 0 if rank == 0 else sum(lengths[0])
        bounds = torch.tensor([0, *lengths[rank]]).cumsum(0)
        part = Frames(frames.values[first : first + int(bounds[-1])], bounds)
        start = 0 if rank == 0 else len(lengths[0])
        return in_training(part, folded=None, made=branches[rank], start=start)

    wanted = in_training(frames_of([*lengths[0], *lengths[1]]), folded=True)
    monkeypatch.setattr(branch_sums.distributed, "is_distributed", lambda: True)
    monkeypatch.setattr(branch_sums.distributed, "world_size", lambda: 2)
    monkeypatch.setattr(branch_sums.distributed, "rank", lambda: own.rank)
    monkeypatch.setattr(branch_sums.distributed, "sum_over_ranks", sum_over_ranks)
    with ThreadPoolExecutor(2) as pool:
        ranks = list(pool.map(one, range(2)))
    for name in ("mean", "var"):
        torch.testing.assert_close(ranks[0][name], ranks[1][name], rtol=0, atol=1e-6)
    found = {name: ranks[0][name] + ranks[1][name] for name in wanted.keys() - {"sums", "mass"}}
    found |= {name: ranks[0][name] for name in ("mean", "var")}
    found |= {name: torch.cat([rank[name] for rank in ranks]) for name in ("sums", "mass")}
    assert_alike(found, wanted, 1e-5)


def test_the_same_twice() -> None:
    frames = frames_of([300, 200, 250])
    first, second = (in_training(frames, folded=None) for _ in range(2))
    assert all(bool((first[name] == second[name]).all()) for name in first)


def test_folding_is_cheaper_where_it_is_said_to_be() -> None:
    """Against multiplications counted one by one."""
    size, expanded, outputs = 16, 32, 24

    def count(num_frames: int, folded: bool) -> int:
        forward = num_frames * outputs * (size if folded else expanded)
        to_weights = forward
        to_expanded = 0 if folded else num_frames * outputs * expanded
        fold = 3 * outputs * expanded * size if folded else 0  # the product and its two gradients
        return forward + to_weights + to_expanded + fold

    for num_frames in range(1, 60):
        cheaper = count(num_frames, True) < count(num_frames, False)
        assert branch_sums.folding_pays(num_frames, size, expanded) == cheaper
