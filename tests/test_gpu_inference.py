"""What a GPU does in inference, done here by the plain steps and by Triton's interpreter; on a GPU itself."""

from __future__ import annotations

import os

import pytest
import torch

from nextvlad.models import for_inference, gpu_inference, kernels
from nextvlad.models.folded import FoldedBranch, FoldedNeXtVLAD, _Affine
from test_folded import CONFIGS, batch_of, make

HAS_GPU = torch.cuda.is_available()
LENGTHS = [(0, 0), (5, 7), (40, 1), (3, 0), (0, 9), (3, 3), (0, 0)]


def branch_of(precision: str) -> FoldedBranch:
    folded = for_inference(make(CONFIGS[0]), precision)  # type: ignore[arg-type]
    assert isinstance(folded, FoldedNeXtVLAD)
    return folded.branches["rgb"]


@pytest.mark.parametrize("fused", [False, True], ids=["plain", "fused"])
@pytest.mark.parametrize("chunk", [1 << 17, 16])
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-5), ("fp16", 1e-2)])
def test_the_sums_of_a_branch(
    precision: str, tolerance: float, chunk: int, fused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if fused and not HAS_GPU:
        os.environ["TRITON_INTERPRET"] = "1"  # as in test_kernels
        pytest.importorskip("triton", reason="Triton is not installed")
    monkeypatch.setattr(kernels, "available", lambda device: fused and not HAS_GPU)
    monkeypatch.setattr(gpu_inference, "_FRAMES", chunk)
    branch, frames = branch_of(precision), batch_of(LENGTHS).streams["rgb"]
    found = gpu_inference.aggregate(frames, branch._products, branch.groups, branch.clusters)
    for mine, theirs in zip(found, branch.aggregate(frames), strict=True):
        assert mine.dtype == torch.float32
        torch.testing.assert_close(mine, theirs, rtol=tolerance, atol=tolerance)


def test_no_frames_at_all() -> None:
    branch, frames = branch_of("fp32"), batch_of([(0, 0), (0, 0)]).streams["rgb"]
    sums, mass = gpu_inference.aggregate(frames, branch._products, branch.groups, branch.clusters)
    assert not sums.any()
    assert not mass.any()
    assert (sums.shape, mass.shape) == ((2, 5, branch.size), (2, 5))


def test_outputs_that_fill_a_row_up_change_nothing() -> None:
    layer = _Affine(torch.randn(5, 3), torch.randn(5))
    filled = layer.filled_up(16)
    x = torch.randn(4, 3)
    torch.testing.assert_close(filled(x)[:, :5], layer(x))
    assert filled(x).shape == (4, 16)
    assert not filled(x)[:, 5:].any()


@pytest.mark.skipif(not HAS_GPU, reason="no GPU")
@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.kind)
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16", "int8"])
@pytest.mark.parametrize("fused", [False, True], ids=["plain", "fused"])
def test_logits_on_a_gpu(
    config: object, precision: str, fused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = torch.device("cuda", 0)
    if fused:
        assert kernels.available(device) or not _has_triton()
    else:
        monkeypatch.setattr(kernels, "available", lambda device: False)
    model, batch = make(config), batch_of(LENGTHS)
    with torch.no_grad():
        wanted = model(batch)
    found = for_inference(model.to(device), precision)(batch.to(device))  # type: ignore[arg-type]
    assert float((found.cpu() - wanted).abs().max()) < (1e-4 if precision == "fp32" else 0.1)


def _has_triton() -> bool:
    from nextvlad.models import triton_kernels

    return triton_kernels.triton is not None
