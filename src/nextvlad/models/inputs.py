"""What a model is fed: bytes to floats, and the mixing of pairs of videos.

Letters: B videos, N frames of all videos of a batch one after another, D input size of a stream.
"""

from __future__ import annotations

from pathlib import Path
from tokenize import TokenError
from typing import NamedTuple
from zipfile import BadZipFile

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from nextvlad.errors import UsageError

QUANTISATION_STEP = 4.0 / 255.0
"""A byte q stands for q x 4/255 + 4/512 - 2 (YouTube-8M's quantiser, range [-2, 2])."""
QUANTISATION_SHIFT = 4.0 / 512.0 - 2.0

_NO_ARRAY = (  # all that np.load raises on damaged files
    *(OSError, ValueError, EOFError, SyntaxError, TokenError),
    *(MemoryError, RecursionError, OverflowError, TypeError, KeyError, BadZipFile),
)

MOST_FACTOR = 1e30
"""Whitening factors are below this, so that what they multiply stays finite; real ones are below 10."""


class Mixup(NamedTuple):
    """Each frame becomes weight x itself + (1 - weight) x the frame of another video at the same time."""

    partner: Tensor
    """[B] int64, the other video."""
    weight: Tensor
    """[B, 1] float32 in [0, 1]."""


def mix_frames(x: Tensor, offsets: Tensor, mixup: Mixup) -> Tensor:
    """Mixes the frames of each video with those of its partner, second by second.

    A shorter partner starts again from its beginning; a video without frames, or whose partner has
    none, stays as it is.

    Args:
        x: [N, D] float frames of B videos.
        offsets: [B + 1].
        mixup: partners and weights of the B videos.

    Returns:
        [N, D].
    """
    lengths = offsets.diff()  # [B]
    video = torch.repeat_interleave(lengths, output_size=len(x))  # [N]; a GPU is not asked for its size
    time = torch.arange(len(x), device=x.device) - offsets[video]  # [N]
    partner = mixup.partner[video]  # [N]
    has_frames = lengths[partner] > 0
    other = offsets[partner] + time % lengths[partner].clamp(min=1)
    other = torch.where(has_frames, other, torch.arange(len(x), device=x.device))
    return torch.lerp(x[other], x, mixup.weight[video])


class Preprocessing(nn.Module):
    """Bytes -> floats, one scale and one offset a dimension; kept in the checkpoint.

    Starts as plain dequantisation; `undo_whitening` adds the originals' treatment of rgb. Streams of
    floats pass unchanged.
    """

    scale: Tensor
    offset: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("scale", torch.full((size,), QUANTISATION_STEP))
        self.register_buffer("offset", torch.full((size,), QUANTISATION_SHIFT))

    @property
    def is_plain(self) -> bool:
        """Whether this is dequantisation and nothing more."""
        return bool((self.scale == QUANTISATION_STEP).all() and (self.offset == QUANTISATION_SHIFT).all())

    def undo_whitening(self, factors: NDArray[np.floating]) -> None:
        """From now on (dequantised - 4/512) x factors, as both originals feed rgb.

        Args:
            factors: [D] float; sqrt(eigenvalue) + 1e-4 of the PCA that made the features.
        """
        wide = torch.from_numpy(np.asarray(factors, dtype=np.float64))
        self.scale.copy_(QUANTISATION_STEP * wide)
        self.offset.copy_((QUANTISATION_SHIFT - 4.0 / 512.0) * wide)

    def forward(self, values: Tensor) -> Tensor:
        """[N, D] uint8 (or float, returned as float32) -> [N, D] float32."""
        if values.dtype != torch.uint8:
            return values.float()
        return torch.addcmul(self.offset, values.float(), self.scale)


def read_whitening_factors(path: Path, size: int) -> NDArray[np.float64]:
    """What reverse whitening multiplies each dimension by: sqrt(eigenvalue) + 1e-4.

    Args:
        path: .npy of at least `size` eigenvalues of YouTube-8M's PCA, largest first (eigenvals.npy).
        size: D of the rgb stream.

    Returns:
        [size] float64.

    Raises:
        UsageError: not a .npy file, or too few, non-positive or rising values.
    """
    try:
        loaded = np.load(path, allow_pickle=False)
        if not isinstance(loaded, np.ndarray) or loaded.dtype.kind not in "fiu":
            raise ValueError("it holds no numbers, or several arrays")
        values = loaded.astype(np.float64).ravel()
    except _NO_ARRAY as error:
        raise UsageError(f"{path}: cannot be read as a .npy array ({error}).") from error
    if len(values) < size or not ((values[:size] > 0) & (values[:size] < MOST_FACTOR)).all():
        raise UsageError(
            f"{path}: {len(values)} values; wanted at least {size} eigenvalues, finite and positive."
        )
    if (np.diff(values[:size]) > 0).any():
        raise UsageError(
            f"{path}: the values rise; wanted eigenvalues, largest first, not mean.npy or others."
        )
    factors: NDArray[np.float64] = np.sqrt(values[:size]) + 1e-4
    return factors
