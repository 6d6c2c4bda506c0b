"""Named whole training configurations: `nextvlad train NAME`, changed by a few dotted overrides.

Each says what it is for and what to expect of it. A JSON file written by a run (`config.json`) can
stand where a name stands.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from nextvlad.config import MeanPoolConfig, MixtureConfig, MoEConfig, NeXtVLADConfig, StreamConfig
from nextvlad.config_json import read_json, train_config_from_json
from nextvlad.errors import UsageError
from nextvlad.run_config import DataConfig, OptimConfig, TrainConfig


@dataclass(frozen=True)
class Recipe:
    """A configuration and what to know of it before choosing it."""

    summary: str
    config: TrainConfig


_YT8M_AUTHOR = NeXtVLADConfig(
    streams=(
        StreamConfig(name="rgb", size=1024),
        StreamConfig(name="audio", size=128, clusters=64, groups=4),
    ),
    num_classes=3862,
)

_YT8M_PADDLE = replace(
    _YT8M_AUTHOR,
    streams=(StreamConfig(name="rgb", size=1024), StreamConfig(name="audio", size=128)),
    batch_norm_epsilon=1e-5,
    batch_norm_weight=0.1,
    dropout_scaling="evaluation",
    unbiased_gate_variance=False,
)

_AUDIOSET = NeXtVLADConfig(
    streams=(StreamConfig(name="audio_embedding", size=128),),
    num_classes=527,
    clusters=64,
    hidden_size=1024,
)

_AUDIOSET_TUNED = OptimConfig(lr=1e-3, schedule="cosine", warmup=0.05, weight_decay=0.2, mixup=0.5)

_YT8M_MIXTURE = MixtureConfig(
    streams=(
        StreamConfig(name="rgb", size=1024),
        StreamConfig(name="audio", size=128, clusters=56, groups=4),
    ),
    num_classes=3862,
    clusters=112,
    gating_reduction=16,
)

_YT8M_VIDEO_LEVEL = (StreamConfig(name="mean_rgb", size=1024), StreamConfig(name="mean_audio", size=128))

_STARTER_CODE = OptimConfig(
    lr=0.01, decay_factor=0.95, decay_examples=4_000_000, l2=1e-8, clip="per_variable"
)

_ANY_STREAMS = NeXtVLADConfig(clusters=32, groups=4, hidden_size=256, batch_norm_weight=0.1)

_OWN = MixtureConfig(clusters=8, groups=4, expansion=1, hidden_size=128, batch_norm_weight=0.1, pooled=True)

RECIPES: dict[str, Recipe] = {
    "yt8m_paper": Recipe(
        "YouTube-8M, the paper's single model and its author's settings (published GAP 0.8723).",
        TrainConfig(model=_YT8M_AUTHOR, optim=OptimConfig(clip="per_variable"), epochs=5),
    ),
    "yt8m_paddle": Recipe(
        "YouTube-8M, as PaddleVideo v1.5.1 trains it (published: Hit@1 0.8960, PERR 0.8132, GAP 0.8709).",
        TrainConfig(model=_YT8M_PADDLE, optim=OptimConfig(clip="none"), epochs=6),
    ),
    "yt8m_mixture": Recipe(
        "YouTube-8M, the paper's mixture of three with distillation (published local GAP 0.8798).",
        TrainConfig(model=_YT8M_MIXTURE, optim=OptimConfig(clip="per_variable"), epochs=5),
    ),
    "yt8m_segments": Recipe(
        "YouTube-8M 2019, rated segments: for --init with a model of whole videos; its author's settings.",
        TrainConfig(
            model=replace(_YT8M_AUTHOR, dropout=0.75),
            data=DataConfig(batch_size=512, segments=True),
            optim=OptimConfig(decay_examples=1_000_000, l2=1e-4, clip="per_variable"),
            epochs=10,
        ),
    ),
    "video_level_logistic": Recipe(
        "YouTube-8M's video-level files: logistic regression, the starter code's settings.",
        TrainConfig(
            model=MeanPoolConfig(streams=_YT8M_VIDEO_LEVEL, num_classes=3862),
            data=DataConfig(batch_size=1024),
            optim=_STARTER_CODE,
        ),
    ),
    "video_level_moe": Recipe(
        "YouTube-8M's video-level files: two logistic experts a class, the starter code's settings.",
        TrainConfig(
            model=MoEConfig(streams=_YT8M_VIDEO_LEVEL, num_classes=3862),
            data=DataConfig(batch_size=1024),
            optim=_STARTER_CODE,
        ),
    ),
    "audioset": Recipe(
        "AudioSet balanced, the author's settings: GAP 0.384, mAP 0.262, minutes on 2 cores.",
        TrainConfig(model=_AUDIOSET, optim=OptimConfig(clip="per_variable"), epochs=28, eval_every=500),
    ),
    "audioset_tuned": Recipe(
        "AudioSet balanced, tuned (cosine, AdamW, mixup): GAP 0.404, mAP 0.277, minutes.",
        TrainConfig(
            model=replace(_AUDIOSET, batch_norm_weight=0.01),
            optim=_AUDIOSET_TUNED,
            epochs=20,
            eval_every=500,
        ),
    ),
    "audioset_mixture": Recipe(
        "AudioSet balanced, a mixture of three with distillation: GAP 0.422, mAP 0.295, minutes.",
        TrainConfig(
            model=MixtureConfig(
                streams=_AUDIOSET.streams,
                num_classes=527,
                clusters=64,
                hidden_size=1024,
                batch_norm_weight=0.01,
            ),
            optim=_AUDIOSET_TUNED,
            epochs=20,
            eval_every=500,
        ),
    ),
    "audioset_mean_pool": Recipe(
        "AudioSet balanced, the baseline: logistic regression on the mean frame. GAP 0.344.",
        TrainConfig(
            model=MeanPoolConfig(streams=_AUDIOSET.streams, num_classes=527),
            optim=OptimConfig(lr=0.02, schedule="cosine", weight_decay=0.01, l2=0.0, clip="none"),
            epochs=16,
            eval_every=500,
        ),
    ),
    "small": Recipe(
        "Any streams, a small model for CPUs and small data; streams and classes are taken from the data.",
        TrainConfig(
            model=_ANY_STREAMS,
            data=DataConfig(batch_size=16),
            optim=OptimConfig(lr=2e-3, schedule="cosine", warmup=0.05, weight_decay=0.05, mixup=0.2),
            epochs=40,
        ),
    ),
    "own": Recipe(
        "Your own videos, 100 to 100,000: three small NeXtVLADs mixed, short and well regularised training.",
        TrainConfig(
            model=_OWN,
            data=DataConfig(batch_size=32),
            optim=OptimConfig(lr=2e-3, schedule="cosine", warmup=0.05, weight_decay=0.05, mixup=1.0),
            epochs=12,
            log_every=10,
            best_by="loss",
        ),
    ),
    "small_mean_pool": Recipe(
        "Any streams, the baseline beside `small`: logistic regression on the mean frame.",
        TrainConfig(
            model=MeanPoolConfig(),
            data=DataConfig(batch_size=16),
            optim=OptimConfig(lr=0.1, schedule="cosine", l2=0.0, clip="none"),
            epochs=100,
            eval_every=200,
        ),
    ),
}
"""By name, for the command line."""


def find_recipe(name: str) -> TrainConfig:
    """The configuration of a recipe's name, or of a JSON file (a run's `config.json` included).

    Raises:
        UsageError: neither a recipe nor a file.
        ConfigError: the file has an unknown key or a wrong value.
    """
    if name in RECIPES:
        return RECIPES[name].config
    path = Path(name)
    if path.suffix != ".json" and not path.is_file():
        raise UsageError(
            f"{name}: no such recipe; wanted one of {', '.join(RECIPES)}, or a config .json file."
        )
    values = read_json(path)
    if isinstance(values, dict) and values.get("format") == "nextvlad-checkpoint":
        values = values.get("training") or {}
    return train_config_from_json(values, where=str(path))
