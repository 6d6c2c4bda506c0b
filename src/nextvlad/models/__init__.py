"""The models, and the one place that builds one from its configuration."""

from __future__ import annotations

from nextvlad.config import MeanPoolConfig, MixtureConfig, ModelConfig, MoEConfig, NeXtVLADConfig, Precision
from nextvlad.errors import ConfigError, UsageError
from nextvlad.models import kernels
from nextvlad.models.base import InferenceModel
from nextvlad.models.baselines import AsItIs, MeanPool, MixtureOfExperts
from nextvlad.models.folded import FoldedMixture, FoldedNeXtVLAD
from nextvlad.models.graphs import Graphs
from nextvlad.models.mixture import Mixture
from nextvlad.models.nextvlad import NeXtVLAD

__all__ = ["InferenceModel", "Model", "build_model", "count_parameters", "for_inference"]

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


def for_inference(model: Model, precision: Precision = "fp32") -> InferenceModel:
    """A model in evaluation mode, put into inference: the same answers, faster.

    NeXtVLAD and the mixture are folded (`nextvlad.models.folded`): several times the speed, logits within
    1e-5 of the model's in fp32, and memory that does not grow with the longest video. On a GPU, batches of
    shapes that come often are replayed as CUDA graphs (`nextvlad.models.graphs`).

    Args:
        model: on the device where it is to work; later changes of its weights do not reach the result.
        precision: "fp32", "bf16", "fp16" or "int8". A CPU that would only be slower in it takes another, and
            the result's `precision` says which.

    Raises:
        UsageError: the model is in training mode.
    """
    if model.training:
        raise UsageError("for_inference: the model is in training mode; call model.eval() first.")
    fast = _in_inference(model, precision)
    # The plain steps of what is folded ask the GPU how long the videos are, which a graph cannot.
    if model.device.type == "cuda" and (isinstance(fast, AsItIs) or kernels.available(model.device)):
        fast.graphs = Graphs(model.device)
    return fast


def _in_inference(model: Model, precision: Precision) -> InferenceModel:
    match model:
        case NeXtVLAD():
            return FoldedNeXtVLAD(model, precision)
        case Mixture():
            return FoldedMixture(model, precision)
        case _:
            return AsItIs(model, precision)


def count_parameters(model: Model) -> int:
    """Trainable values of a model."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
