"""The models, and the one place that builds one from its configuration."""

from __future__ import annotations

from nextvlad.config import MeanPoolConfig, MixtureConfig, ModelConfig, MoEConfig, NeXtVLADConfig
from nextvlad.errors import ConfigError
from nextvlad.models.baselines import MeanPool, MixtureOfExperts
from nextvlad.models.mixture import Mixture
from nextvlad.models.nextvlad import NeXtVLAD

Model = NeXtVLAD | Mixture | MeanPool | MixtureOfExperts


def build_model(config: ModelConfig) -> Model:
    """A fresh model with random weights, in training mode.

    Raises:
        ConfigError: the streams or the number of classes are not stated.
    """
    if not config.streams:
        raise ConfigError("model.streams: none given; wanted the feature streams, as in rgb:1024 audio:128.")
    if config.num_classes < 1:
        raise ConfigError("model.num_classes: got 0; wanted the number of classes, 1 or more.")
    match config:
        case NeXtVLADConfig():
            return NeXtVLAD(config)
        case MixtureConfig():
            return Mixture(config)
        case MeanPoolConfig():
            return MeanPool(config)
        case MoEConfig():
            return MixtureOfExperts(config)


def count_parameters(model: Model) -> int:
    """Trainable values of a model."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
