"""A decoded frame of any size, pixel format and rotation -> uint8 [S, S, 3], red green blue."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from av import VideoFrame

Fit = Literal["crop", "pad", "stretch"]
"""How a picture of another shape becomes a square: `crop` keeps its middle, `pad` puts black bars, `stretch`
changes its shape."""


def square(frame: VideoFrame, size: int, fit: Fit, pixel_aspect: float = 1.0) -> NDArray[np.uint8]:
    """Scales in one step to the size wanted, converts to RGB, turns upright, cuts or pads.

    Args:
        frame: as decoded; its own colour space and range are respected.
        size: S, the side of the square in pixels.
        fit: what happens to the longer side.
        pixel_aspect: width of a stored pixel over its height.

    Returns:
        [S, S, 3] uint8.
    """
    from av.video.reformatter import Interpolation

    width, height = _scaled_size(frame.width * pixel_aspect, frame.height, size, fit)
    scaled = frame.reformat(
        width=width, height=height, format="rgb24", interpolation=Interpolation.BILINEAR, threads=1
    )
    rgb = np.asarray(scaled.to_ndarray(), dtype=np.uint8)  # [height, width, 3]
    rgb = _upright(rgb, frame)
    return np.ascontiguousarray(_padded(rgb, size) if fit == "pad" else _middle(rgb, size))


def _upright(rgb: NDArray[np.uint8], frame: VideoFrame) -> NDArray[np.uint8]:
    """Turned as the frame's display matrix says, in quarter turns; mirroring, which is rare, is not done."""
    return np.rot90(rgb, round(frame.rotation / 90))


def _scaled_size(width: float, height: float, size: int, fit: Fit) -> tuple[int, int]:
    """Width and height to scale to before cutting or padding to the square."""
    if fit == "stretch":
        return size, size
    factor = size / (min(width, height) if fit == "crop" else max(width, height))
    wide, high = round(width * factor), round(height * factor)
    if fit == "crop":  # a strip of 1 x 10,000 pixels must not become one of 224 x 2,240,000
        return min(max(wide, size), 16 * size), min(max(high, size), 16 * size)
    return max(1, min(wide, size)), max(1, min(high, size))


def _middle(rgb: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    top, left = (rgb.shape[0] - size) // 2, (rgb.shape[1] - size) // 2
    return rgb[top : top + size, left : left + size]


def _padded(rgb: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    whole = np.zeros((size, size, 3), dtype=np.uint8)
    top, left = (size - rgb.shape[0]) // 2, (size - rgb.shape[1]) // 2
    whole[top : top + rgb.shape[0], left : left + rgb.shape[1]] = rgb
    return whole
