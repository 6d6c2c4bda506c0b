"""NeXtVLAD written out slowly in NumPy float64, one video at a time: what the fast model is held against.

Equations of the paper (arXiv 1811.05014, section 3.2 and 3.3), evaluation mode.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

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


def dequantised(frames: NDArray[np.uint8]) -> Array:
    return frames.astype(np.float64) * 4 / 255 + 4 / 512 - 2


def softmax(x: Array) -> Array:
    powers = np.exp(x - x.max())
    return powers / powers.sum()


def member_weights(
    video: Mapping[str, NDArray[np.uint8]],
    weights: Mapping[str, Array],
    streams: Sequence[str],
    *,
    epsilon: float,
    padded_to: int | None = None,
) -> Array:
    """What a mixture's gate makes of one video: [M], from the mean frame; padding is 0.0, as the author's."""
    means = []
    for stream in streams:
        frames = dequantised(video[stream])
        missing = max((padded_to or 0) - len(frames), 0)
        frames = np.concatenate([frames, np.zeros((missing, frames.shape[1]))])
        means.append(frames.sum(axis=0) / max(len(frames), 1))
    normal = batch_norm(np.concatenate(means), weights, "mixing_norm", epsilon)
    return softmax(weights["mixing.weight"] @ normal + weights["mixing.bias"])


def expert_probabilities(descriptor: Array, weights: Mapping[str, Array], num_classes: int) -> Array:
    """The starter code's mixture of experts for one video: [D] -> [C]."""
    gates = (weights["gates.weight"] @ descriptor).reshape(num_classes, -1)
    experts = sigmoid(weights["experts.weight"] @ descriptor + weights["experts.bias"])
    experts = experts.reshape(num_classes, -1)
    return np.array([softmax(gates[c])[:-1] @ experts[c] for c in range(num_classes)])


def binary_cross_entropy(probabilities: Array, labels: Array) -> float:
    return float(-(labels * np.log(probabilities) + (1 - labels) * np.log(1 - probabilities)).sum())


def mixture_loss(mixed: Array, members: Array, labels: Array, *, weight: float, temperature: float) -> float:
    """One video's loss from the logits of the mixture [C] and of its members [M, C], as the author has it."""
    loss = binary_cross_entropy(sigmoid(mixed), labels)
    teacher = softmax(mixed / temperature)
    for answer in members:
        student = softmax(answer / temperature)
        divergence = (teacher * (np.log(teacher) - np.log(student))).sum()
        loss += binary_cross_entropy(sigmoid(answer), labels) + weight * divergence
    return loss
