"""Classify videos from frame-level features with NeXtVLAD.

The public names below are loaded on first use, so that `import nextvlad` and `nextvlad --help` need
no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "FrameBatch": "nextvlad.data.batch",
    "FrameLoader": "nextvlad.data.loader",
    "NeXtVLADConfig": "nextvlad.config",
    "NextvladError": "nextvlad.errors",
    "StreamConfig": "nextvlad.config",
    "VideoRecord": "nextvlad.data.video_record",
    "Vocabulary": "nextvlad.data.vocabulary",
    "build_model": "nextvlad.models",
    "collate": "nextvlad.data.batch",
    "for_inference": "nextvlad.models",
    "load": "nextvlad.checkpoint",
    "read": "nextvlad.data.sources",
}

__all__ = [*_HOMES, "__version__", "metrics"]

if TYPE_CHECKING:
    from nextvlad import metrics as metrics
    from nextvlad.checkpoint import load as load
    from nextvlad.config import NeXtVLADConfig as NeXtVLADConfig
    from nextvlad.config import StreamConfig as StreamConfig
    from nextvlad.data.batch import FrameBatch as FrameBatch
    from nextvlad.data.batch import collate as collate
    from nextvlad.data.loader import FrameLoader as FrameLoader
    from nextvlad.data.sources import read as read
    from nextvlad.data.video_record import VideoRecord as VideoRecord
    from nextvlad.data.vocabulary import Vocabulary as Vocabulary
    from nextvlad.errors import NextvladError as NextvladError
    from nextvlad.models import build_model as build_model
    from nextvlad.models import for_inference as for_inference


def __getattr__(name: str) -> Any:
    if name == "metrics":
        return import_module("nextvlad.metrics")
    if name not in _HOMES:
        raise AttributeError(f"module 'nextvlad' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
