"""NeXtVLAD's equations as the paper writes them, on padded batches: what a plain implementation does.

Letters: B videos, T frames they are padded to, D input size, E expanded, G groups, K clusters, C classes.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor
from torch.nn import functional

from nextvlad.data.batch import FrameBatch
from nextvlad.models.layers import BatchNorm
from nextvlad.models.nextvlad import Branch, NeXtVLAD

_FRAMES = 300  # what every video is padded to, as in both originals


def logits(model: NeXtVLAD, batch: FrameBatch) -> Tensor:
    """[B, C] from the weights of a model; in training by the batch's statistics, of real frames alone.

    Dropout and the running statistics are left out.
    """
    descriptors = []
    for name, module in model.branches.items():
        branch = cast(Branch, module)
        values, mask = batch.padded(name)  # [B, T, D], [B, T]
        missing = _FRAMES - values.shape[1]
        values, mask = functional.pad(values, (0, 0, 0, missing)), functional.pad(mask, (0, missing))
        descriptors.append(_descriptor(branch, values, mask))
    hidden = _normalised(model.hidden(torch.cat(descriptors, 1)), model.hidden_norm)
    squeezed = torch.relu(_normalised(model.gate.reduce(hidden), model.gate.norm))
    gated = hidden * torch.sigmoid(model.gate.expand(squeezed))
    result: Tensor = model.classifier(gated)
    return result


def _descriptor(branch: Branch, values: Tensor, mask: Tensor) -> Tensor:
    x = values.float() * branch.preprocess.scale + branch.preprocess.offset  # [B, T, D]
    e = branch.expansion(x)  # [B, T, E]
    attention = torch.sigmoid(branch.attention(e)) * mask[..., None]  # [B, T, G]
    z = _normalised(branch.assignment(e), branch.assignment_norm, mask)  # [B, T, G K]
    a = torch.softmax(z.unflatten(2, (branch.groups, branch.clusters)), 3) * attention[..., None]
    a = a.flatten(1, 2)  # [B, T G, K]
    parts = e.unflatten(2, (branch.groups, branch.group_size)).flatten(1, 2)  # [B, T G, E/G]
    v = torch.bmm(a.transpose(1, 2), parts) - a.sum(1)[..., None] * branch.centers  # [B, K, E/G]
    v = functional.normalize(v, dim=2, eps=1e-6)
    return _normalised(v.transpose(1, 2).flatten(1), branch.descriptor_norm)


def _normalised(x: Tensor, norm: BatchNorm, mask: Tensor | None = None) -> Tensor:
    if not norm.training:
        mean, var = norm.running_mean, norm.running_var
    elif mask is None:
        mean, var = x.mean(0), x.var(0, correction=0)
    else:
        real = mask[..., None] / mask.sum()  # [B, T, 1]
        mean = (x * real).sum((0, 1))
        var = ((x - mean).square() * real).sum((0, 1))
    return (x - mean) / torch.sqrt(var + norm.epsilon) * norm.weight + norm.bias
