"""The fused kernels against the plain steps: on a GPU where there is one, else by Triton's interpreter."""

from __future__ import annotations

import os

import pytest
import torch
from torch import Tensor

from nextvlad.data.batch import Frames
from nextvlad.models import kernels, weighing
from test_branch_sums import LENGTHS, assert_alike, frames_of, in_training, plainly
from test_branch_sums import branch as made_branch

HAS_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if HAS_GPU else "cpu")

if not HAS_GPU:
    os.environ["TRITON_INTERPRET"] = "1"  # asked for whenever Triton or a kernel is imported
pytest.importorskip("triton", reason="Triton is not installed")


DTYPES = [(torch.float32, 1e-5), (torch.bfloat16, 1e-2), (torch.float16, 2e-3)]
# The interpreter multiplies the bits of bfloat16 as integers.
FACTORS = DTYPES if HAS_GPU else [DTYPES[0], DTYPES[2]]


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape))).to(DEVICE)


def close(found: Tensor, wanted: Tensor, tolerance: float) -> None:
    assert found.shape == wanted.shape
    assert found.dtype == wanted.dtype
    difference = (found.double() - wanted.double()).norm() / wanted.double().norm().clamp(min=1e-30)
    assert float(difference) < tolerance


def test_nothing_is_wrong_here() -> None:
    assert kernels.find_fault(DEVICE, FACTORS[1][0]) is None


@pytest.mark.parametrize("columns", [1, 40, 130])
@pytest.mark.parametrize("rows", [1, 31, 300])
def test_moments(rows: int, columns: int) -> None:
    wide = draw(rows, columns + 3) + 50
    for z in (wide[:, :columns], wide[:, :columns].bfloat16()):  # rows that are apart, and side by side
        for found, wanted in zip(kernels.moments(z), weighing.moments(z), strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


SIZES = [(1, 1, 1), (3, 2, 5), (40, 3, 112)]


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize(("frames", "groups", "clusters"), SIZES)
def test_weigh_and_its_gradients(
    frames: int, groups: int, clusters: int, dtype: torch.dtype, tolerance: float
) -> None:
    columns = groups * clusters
    both = (3 * draw(frames, columns + groups)).to(dtype)
    z, attention = both[:, :columns], both[:, columns:]  # parts of one product, as in inference
    scale, shift, mean = (draw(columns, seed=seed) for seed in (1, 2, 3))
    close(
        kernels.weigh(z, scale, shift, attention),
        weighing.weigh(z, scale, shift, attention),
        tolerance,
    )
    grad_a = draw(frames, groups, clusters, seed=4).to(dtype)
    for centre in (None, mean):
        found = kernels.weigh_backward(grad_a, z, scale, shift, attention, centre)
        wanted = weighing.weigh_backward(grad_a, z, scale, shift, attention, centre)
        for mine, theirs in zip(found, wanted, strict=True):
            if clusters > 1:
                close(mine, theirs, tolerance)
            else:  # a softmax of one: no gradient but rounding
                torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=1e-2)


def test_more_frames_than_one_program_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "_PROGRAMS", 6)
    frames, groups, clusters = 500, 3, 9
    z, attention = draw(frames, groups * clusters), draw(frames, groups)
    scale, shift = draw(27, seed=1), draw(27, seed=2)
    grad_a = draw(frames, groups, clusters, seed=3)
    found = kernels.weigh_backward(grad_a, z, scale, shift, attention)
    for mine, theirs in zip(found, weighing.weigh_backward(grad_a, z, scale, shift, attention), strict=True):
        close(mine, theirs, 1e-5)


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize("columns", [1, 40, 300])
def test_blend(columns: int, dtype: torch.dtype, tolerance: float) -> None:
    wide = draw(33, columns + 3)
    x, y = wide[:, :columns], draw(33, columns, seed=1).to(dtype)
    a, b, c = (draw(columns, seed=seed) for seed in (2, 3, 4))
    values = torch.randint(0, 256, (33, columns), device=DEVICE).byte()
    close(kernels.blend(values, a, c, dtype=dtype), weighing.blend(values, a, c, dtype=dtype), tolerance)
    for first, second in ((x, y), (y, x)):
        wanted = weighing.blend(first, a, c, second, b, dtype=dtype)
        close(kernels.blend(first, a, c, second, b, dtype=dtype), wanted, tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), FACTORS)
@pytest.mark.parametrize(("groups", "clusters", "size"), [(1, 3, 5), (2, 130, 20), (3, 16, 140)])
def test_sums_over_the_frames_of_videos(
    groups: int, clusters: int, size: int, dtype: torch.dtype, tolerance: float
) -> None:
    offsets = torch.tensor([0, 0, 1, 70, 71, 71, 140, 140], device=DEVICE)
    a, e = draw(140, groups, clusters).to(dtype), draw(140, groups * size).to(dtype)
    for mine, theirs in zip(
        kernels.weighted_sums(a, e, offsets), weighing.weighted_sums(a, e, offsets), strict=True
    ):
        close(mine, theirs, tolerance)
    grad_sums, grad_mass = draw(7, clusters, size, seed=1), draw(7, clusters, seed=2)
    found = kernels.weighted_sums_backward(grad_sums, grad_mass, a, e, offsets)
    wanted = weighing.weighted_sums_backward(grad_sums, grad_mass, a, e, offsets)
    for mine, theirs in zip(found, wanted, strict=True):
        close(mine, theirs, tolerance)


def test_frames_behind_the_last_video_count_nowhere() -> None:
    offsets = torch.tensor([0, 20, 30], device=DEVICE)
    a, e = draw(50, 2, 16).half(), draw(50, 40).half()
    a[30:], e[30:] = float("nan"), float("nan")
    found = kernels.weighted_sums(a, e, offsets)
    wanted = weighing.weighted_sums(a[:30], e[:30], offsets)
    for mine, theirs in zip(found, wanted, strict=True):
        close(mine, theirs, 1e-2)


def test_no_frames() -> None:
    nothing, factor = torch.empty(0, 6, device=DEVICE), torch.ones(6, device=DEVICE)
    attention, offsets = torch.empty(0, 2, device=DEVICE), torch.zeros(3, dtype=torch.int64, device=DEVICE)
    assert not torch.stack(kernels.moments(nothing)).any()
    assert kernels.weigh(nothing, factor, factor, attention).shape == (0, 2, 3)
    gradients = kernels.weigh_backward(nothing.view(0, 2, 3), nothing, factor, factor, attention)
    assert not gradients.sum_y.any()
    half = nothing.bfloat16()
    for sums in kernels.weighted_sums(half.view(0, 2, 3), half, offsets):
        assert sums.shape[0] == 2
        assert not sums.any()


def test_float64_takes_the_plain_steps() -> None:
    z, factor = draw(5, 6).double(), draw(6).double()
    attention = draw(5, 2).double()
    assert kernels.moments(z)[0].dtype == torch.float64
    found = kernels.weigh(z, factor, factor, attention)
    torch.testing.assert_close(found, weighing.weigh(z, factor, factor, attention))


def test_the_cpu_takes_the_plain_steps() -> None:
    assert not kernels.available(torch.device("cpu"))


def test_a_wrong_kernel_is_told_and_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "find_fault", lambda device: f"moments differ on {device}")
    with pytest.warns(RuntimeWarning, match="moments differ on cuda:3.*plain"):
        assert not kernels._works.__wrapped__(3)

    def breaks(device: torch.device) -> None:
        raise RuntimeError("no compiler")

    monkeypatch.setattr(kernels, "find_fault", breaks)
    with pytest.warns(RuntimeWarning, match="RuntimeError: no compiler"):
        assert not kernels._works.__wrapped__(3)


@pytest.mark.parametrize("folded", [True, False])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float16, 0.01)])
def test_a_branch_in_training(
    folded: bool, dtype: torch.dtype, tolerance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames = frames_of(LENGTHS)
    plain = plainly(frames)
    monkeypatch.setattr(kernels, "available", lambda device: True)
    if HAS_GPU:
        monkeypatch.setattr("test_branch_sums.branch", lambda: made_branch().to(DEVICE))
        frames = Frames(frames.values.to(DEVICE), frames.offsets.to(DEVICE))
    found = in_training(frames, folded=folded, dtype=dtype)
    assert_alike({name: tensor.cpu() for name, tensor in found.items()}, plain, tolerance)
