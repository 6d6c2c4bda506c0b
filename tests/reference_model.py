"""NeXtVLAD written out slowly in NumPy float64, one video at a time: what the fast model is held against.

Equations of the paper (arXiv 1811.05014, section 3.2 and 3.3), evaluation mode.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def sigmoid(x: Array) -> Array:
    return 1.0 / (1.0 + np.exp(-x))


def batch_norm(x: Array, weights: Mapping[str, Array], name: str, epsilon: float) -> Array:
    normal = (x - weights[f"{name}.running_mean"]) / np.sqrt(weights[f"{name}.running_var"] + epsilon)
    return normal * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def describe(
    frames: NDArray[np.uint8],
    weights: Mapping[str, Array],
    stream: str,
    groups: int,
    clusters: int,
    epsilon: float,
) -> Array:
    """[T, D] uint8 -> descriptor [E/G K] before its batch norm."""
    w = {
        key.removeprefix(f"branches.{stream}."): value
        for key, value in weights.items()
        if f".{stream}." in key
    }
    size = w["centers"].shape[1]
    v = np.zeros((clusters, size))
    for q in frames.astype(np.float64):
        x = q * w["preprocess.scale"] + w["preprocess.offset"]
        e = w["expansion.weight"] @ x + w["expansion.bias"]
        alpha = sigmoid(w["attention.weight"] @ e + w["attention.bias"])
        z = batch_norm(w["assignment.weight"] @ e, w, "assignment_norm", epsilon)
        for g in range(groups):
            scores = np.exp(z[g * clusters : (g + 1) * clusters])
            a = scores / scores.sum()
            for k in range(clusters):
                v[k] += alpha[g] * a[k] * (e[g * size : (g + 1) * size] - w["centers"][k])
    norms = np.sqrt((v**2).sum(axis=1, keepdims=True))
    v = v / np.maximum(norms, 1e-6)
    return batch_norm(v.T.reshape(-1), w, "descriptor_norm", epsilon)


def logits(
    video: Mapping[str, NDArray[np.uint8]],
    weights: Mapping[str, Array],
    *,
    groups: Mapping[str, int],
    clusters: Mapping[str, int],
    epsilon: float,
    descriptor_factor: float = 1.0,
) -> Array:
    """One video's streams (in the model's order) -> logits [C]."""
    parts = [describe(video[s], weights, s, groups[s], clusters[s], epsilon) for s in groups]
    d = np.concatenate(parts) * descriptor_factor
    h = batch_norm(weights["hidden.weight"] @ d, weights, "hidden_norm", epsilon)
    squeezed = batch_norm(weights["gate.reduce.weight"] @ h, weights, "gate.norm", epsilon)
    h = h * sigmoid(weights["gate.expand.weight"] @ np.maximum(squeezed, 0.0))
    return weights["classifier.weight"] @ h + weights["classifier.bias"]
