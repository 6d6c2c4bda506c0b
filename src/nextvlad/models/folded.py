"""NeXtVLAD for inference: what is constant is multiplied out once, and frames pass by in chunks.

Letters: B videos, N frames of all videos of a batch one after another, n frames of a chunk, D input size,
E = expansion x D, G groups, K clusters, S = E / G, H hidden, C classes.

Between bytes and softmax everything is linear, and so is everything between the descriptors and the gate:

- preprocessing, expansion, assignment and its batch norm are one matrix [G K, D], and attention one
  [G, D]; preprocessing and expansion, whose result is aggregated, one [E, D]
- the descriptors' batch norm, dropout's factor, the hidden layer and its batch norm are one matrix [H, V]

in float64, then rounded once. Frames are taken some hundred at a time, so that what lies between stays in the
cache and memory does not grow with the length of a video. `nextvlad.models.nextvlad` is the same model in the
paper's steps, and the reference for this one.
"""

from __future__ import annotations

import copy
from bisect import bisect_right
from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from nextvlad.config import Precision
from nextvlad.data.batch import FrameBatch, Frames
from nextvlad.models import gpu_inference
from nextvlad.models.base import InferenceModel, Sums
from nextvlad.models.byte_linear import ByteLinear, UnitLinear, integer_products
from nextvlad.models.inputs import Preprocessing
from nextvlad.models.layers import BatchNorm, sum_of_frames
from nextvlad.models.mixture import Mixture, mix
from nextvlad.models.nextvlad import Branch, NeXtVLAD

_SLICES = {"fp32": 3, "bf16": 0, "fp16": 0, "int8": 1}
_CHUNK_CPU = 1024  # frames; between 512 and 2,048 nothing changes
_FULL_ROWS = 128
"""oneDNN compiles a product for every new number of rows, so there should be few different ones."""
_FULL_FRAMES = 16
_ROWS_AT_A_TIME = 32
_BYTE_MIDDLE = 128.0  # what ByteLinear takes from each byte


class FoldedBranch:
    """One stream of a NeXtVLAD in evaluation: frames -> sums that add up over frames.

    Args:
        branch: with the weights.
        preprocess: what is done to bytes before; floats are taken as they are.
        precision: of the products.
        dtype: of what lies between them.
    """

    def __init__(
        self, branch: Branch, preprocess: Preprocessing, precision: Precision, dtype: torch.dtype
    ) -> None:
        self.groups, self.clusters, self.size = branch.groups, branch.clusters, branch.group_size
        self.precision: Precision = precision
        self.dtype = dtype
        expansion = _Affine(_wide(branch.expansion.weight), _wide(branch.expansion.bias))
        assignment = expansion.then(_Affine(_wide(branch.assignment.weight))).normalised(
            branch.assignment_norm
        )
        attention = expansion.then(_Affine(_wide(branch.attention.weight), _wide(branch.attention.bias)))
        weigh = assignment.beside(attention)
        if weigh.weight.device.type != "cpu":
            weigh = weigh.filled_up(gpu_inference.ALIGNMENT)
        self._on_floats = (expansion, weigh)
        self._rounded: list[_Affine] = []  # the same for floats, once some come
        scale = _wide(preprocess.scale)
        offset = _wide(preprocess.offset) + _BYTE_MIDDLE * scale
        self._expand, self._weigh = (
            self._on_bytes(part.of_scaled(scale, offset)) for part in self._on_floats
        )

    def _on_bytes(self, part: _Affine) -> ByteLinear:
        return ByteLinear(part.weight, part.bias, dtype=self.dtype, num_slices=_SLICES[self.precision])

    def aggregate(self, frames: Frames) -> tuple[Tensor, Tensor]:
        """Packed frames of B videos -> weighted sums of frames [B, K, S] and of weights [B, K], float32."""
        if frames.values.device.type != "cpu":
            return gpu_inference.aggregate(frames, self._products, self.groups, self.clusters)
        values, num_videos = frames.values, len(frames.offsets) - 1
        sums = torch.zeros(num_videos, self.clusters, self.size, device=values.device)
        mass = torch.zeros(num_videos, self.clusters, device=values.device)
        offsets = frames.offsets.tolist()
        for start, stop in chunks(offsets, _CHUNK_CPU):
            e, a = self._transform(_padded(values[start:stop], _FULL_ROWS))  # [n, E], [n, G, K]
            e, a = e[: stop - start], a[: stop - start]
            first = bisect_right(offsets, start) - 1
            last = bisect_right(offsets, stop - 1)
            bounds = [min(max(offset, start), stop) - start for offset in offsets[first : last + 1]]
            self._add(e, a, bounds, sums[first:last], mass[first:last])
        return sums, mass

    def _transform(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Frames [n, D] -> expanded [n, E] and weights [n, G, K], attention times assignment."""
        e, y = self._products(values)
        split = self.groups * self.clusters
        a = torch.softmax(y[:, :split].view(-1, self.groups, self.clusters), 2)
        a *= torch.sigmoid(y[:, split:])[..., None]
        return e, a

    def _products(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Frames [n, D] -> expanded [n, E] and, side by side, assignments and attentions [n, G K + G]."""
        if values.dtype == torch.uint8:
            ready = self._expand.ready(values)
            return self._expand(ready), self._weigh(ready)
        self._rounded = self._rounded or [part.rounded(self.dtype) for part in self._on_floats]
        expand, weigh = self._rounded
        return expand(values), weigh(values)

    def _add(self, e: Tensor, a: Tensor, bounds: list[int], sums: Tensor, mass: Tensor) -> None:
        """Adds the frames of a chunk, cut into videos at `bounds`, to the sums of these videos."""
        mass_of_frames = a.sum(1, dtype=torch.float32)  # [n, K]
        weights = a.flatten(0, 1)  # [n G, K]
        parts = e.reshape(-1, self.size)  # [n G, S]
        for videos, frames in self._products_of(bounds):
            shape = (videos.stop - videos.start, -1)
            rows = slice(frames.start * self.groups, frames.stop * self.groups)
            w, p = weights[rows].view(*shape, self.clusters), parts[rows].view(*shape, self.size)
            # Also for one video alone, so that its sums do not depend, in the last bit, on its neighbours.
            sums[videos] += torch.bmm(w.mT, p)
            mass[videos] += mass_of_frames[frames].view(*shape, self.clusters).sum(1)

    def _products_of(self, bounds: list[int]) -> Iterator[tuple[slice, slice]]:
        """Neighbouring videos of equal length, whose sums are one product, and their frames.

        Where each new size of product costs (see _FULL_ROWS): all videos if all are equal, else each in
        pieces of few sizes.
        """
        lengths = [end - start for start, end in pairwise(bounds)]
        places = [0, *(n for n in range(1, len(lengths)) if lengths[n] != lengths[n - 1]), len(lengths)]
        in_pieces = self.dtype != torch.float32 and len(places) > 2
        for first, last in pairwise(range(len(bounds)) if in_pieces else places):
            start, end = bounds[first], bounds[last]
            middle = start + (end - start) // _FULL_FRAMES * _FULL_FRAMES if in_pieces else end
            for piece in (slice(start, middle), slice(middle, end)):
                if piece.start < piece.stop:
                    yield slice(first, last), piece


class FoldedNeXtVLAD(InferenceModel):
    """A NeXtVLAD in evaluation, in `precision`; changes to the model do not reach it any more."""

    @torch.no_grad()
    def __init__(
        self,
        model: NeXtVLAD,
        precision: Precision = "fp32",
        preprocess: dict[str, Preprocessing] | None = None,
    ) -> None:
        super().__init__(model, precision)
        precision = self.precision
        branches = {name: cast(Branch, branch) for name, branch in model.branches.items()}
        self.branches = {
            name: FoldedBranch(
                branch,
                preprocess[name] if preprocess else model.preprocessing(name),
                precision,
                self.dtype,
            )
            for name, branch in branches.items()
        }
        self._centers = {name: branch.centers.detach().clone() for name, branch in branches.items()}
        hidden = _hidden_layer(model, list(branches.values()))
        reduce = _Affine(_wide(model.gate.reduce.weight)).normalised(model.gate.norm)
        expand = _Affine(_wide(model.gate.expand.weight))
        classify = _Affine(_wide(model.classifier.weight), _wide(model.classifier.bias))
        self._hidden: UnitLinear | _Affine
        products = integer_products() if hidden.weight.device.type == "cpu" else None
        in_units = model.num_pooled == 0  # descriptors are of length 1, what is pooled is not
        pays = products is not None and (products.tiles or precision == "int8")
        if products is not None and pays and in_units and precision != "fp16":
            full = precision == "fp32"
            self._hidden = UnitLinear(hidden.weight, hidden.bias, full=full, largest=products.largest)
        else:
            self._hidden = hidden.rounded(self.dtype)
        self._layers = [part.rounded(self.dtype) for part in (reduce, expand, classify)]

    @property
    def sum_names(self) -> list[str]:
        """What `aggregate` gives."""
        return [f"{name}.{part}" for name in self.branches for part in ("sums", "mass")]

    def aggregate(self, batch: FrameBatch) -> Sums:
        """Of each stream its `sums` [B, K, S] and `mass` [B, K], as the model's own."""
        found: Sums = {}
        for name, branch in self.branches.items():
            found[f"{name}.sums"], found[f"{name}.mass"] = branch.aggregate(batch.streams[name])
        return found

    def conclude(self, sums: Sums, pooled: Tensor | None = None) -> Tensor:
        """Logits [B, C] float32."""
        descriptors = []
        for name, centers in self._centers.items():
            v = sums[f"{name}.sums"] - sums[f"{name}.mass"][..., None] * centers  # [B, K, S]
            descriptors.append(functional.normalize(v, dim=2, eps=1e-6).flatten(1))  # [B, K S]
        if pooled is not None:
            descriptors.append(pooled)
        reduce, expand, classify = self._layers
        h = self._hidden(torch.cat(descriptors, 1)).to(self.dtype)  # [B, H]
        h = h * torch.sigmoid(expand(torch.relu(reduce(h))))
        return classify(h).float()


class FoldedMixture(InferenceModel):
    """A mixture in evaluation: its members folded, and the mean frame from sums of bytes."""

    @torch.no_grad()
    def __init__(self, model: Mixture, precision: Precision = "fp32") -> None:
        super().__init__(model, precision)
        all_but_the_members = copy.deepcopy(model, {id(model.members): nn.ModuleList()})
        self._mixture = all_but_the_members.requires_grad_(False)
        preprocess = {stream.name: model.preprocessing(stream.name) for stream in model.config.streams}
        self.members = [
            FoldedNeXtVLAD(cast(NeXtVLAD, member), precision, preprocess) for member in model.members
        ]

    def aggregate(self, batch: FrameBatch) -> Sums:
        """As the mixture's own."""
        found: Sums = {}
        for name, frames in batch.streams.items():
            counts = frames.offsets.diff()[:, None]
            preprocess = self._mixture.preprocessing(name)
            total = sum_of_frames(Tensor.float, frames.values, frames.offsets)  # [B, D]; bytes: exact to 2^24
            if frames.values.dtype == torch.uint8:
                total = total * preprocess.scale + counts * preprocess.offset
            found |= {f"{name}.sum": total, f"{name}.count": counts}
            if self._mixture.config.pooled:
                prepare = partial(_squares, preprocess)
                found[f"{name}.squares"] = sum_of_frames(prepare, frames.values, frames.offsets)
        for number, member in enumerate(self.members):
            found |= {f"{number}.{name}": sums for name, sums in member.aggregate(batch).items()}
        return found

    def conclude(self, sums: Sums) -> Tensor:
        """Logits [B, C] float32."""
        pooled = self._mixture.pooled(sums)
        answers = [
            member.conclude({name: sums[f"{number}.{name}"] for name in member.sum_names}, pooled)
            for number, member in enumerate(self.members)
        ]
        return mix(self._mixture.weigh(sums), torch.stack(answers, dim=1))


def chunks(offsets: list[int], size: int) -> Iterator[tuple[int, int]]:
    """Frames 0 to N in pieces of one size, at most `size`, the last smaller; whole videos if all are equal.

    >>> list(chunks([0, 3, 4, 14], 5)), list(chunks([0, 2, 4, 6], 5))
    ([(0, 5), (5, 10), (10, 14)], [(0, 4), (4, 6)])
    """
    lengths = {end - start for start, end in pairwise(offsets)}
    if len(lengths) == 1:
        (length,) = lengths
        size = size // length * length if 0 < length <= size else size
    for start in range(0, offsets[-1], size):
        yield start, min(start + size, offsets[-1])


def _squares(preprocess: Preprocessing, values: Tensor) -> Tensor:
    return cast(Tensor, preprocess(values)).square()


def _padded(values: Tensor, size: int) -> Tensor:
    """Rows [n, D] filled up with zeros to a multiple of `size` rows."""
    missing = -len(values) % size
    return functional.pad(values, (0, 0, 0, missing)) if missing else values


class _Affine:
    """x -> x W^T + b with weight [F, D] and bias [F]: a layer, and what becomes of several in a row."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        self.weight = weight
        self.bias = weight.new_zeros(len(weight)) if bias is None else bias

    def __call__(self, x: Tensor) -> Tensor:
        """[N, D] -> [N, F], in the precision of the weights."""
        return torch.addmm(self.bias, x.to(self.weight.dtype), self.weight.T)

    def then(self, other: _Affine) -> _Affine:
        """This layer and then another."""
        return _Affine(other.weight @ self.weight, other.weight @ self.bias + other.bias)

    def beside(self, other: _Affine) -> _Affine:
        """The outputs of both, one behind the other."""
        return _Affine(torch.cat([self.weight, other.weight]), torch.cat([self.bias, other.bias]))

    def filled_up(self, multiple: int) -> _Affine:
        """With outputs of zero behind its own, up to a multiple."""
        missing = -len(self.bias) % multiple
        return _Affine(
            functional.pad(self.weight, (0, 0, 0, missing)), functional.pad(self.bias, (0, missing))
        )

    def normalised(self, norm: nn.Module) -> _Affine:
        """This layer and then a batch norm with its running statistics."""
        scale, shift = _affine_of(cast(BatchNorm, norm))
        return _Affine(scale[:, None] * self.weight, scale * self.bias + shift)

    def of_scaled(self, scale: Tensor, offset: Tensor) -> _Affine:
        """This layer, of x scale + offset for each input."""
        return _Affine(self.weight * scale, self.weight @ offset + self.bias)

    def rounded(self, dtype: torch.dtype) -> _Affine:
        """In another precision."""
        weight = self.weight.to(dtype)
        if dtype != torch.float32:  # oneDNN reads half precision faster in this order; MKL does not care
            weight = weight.T.contiguous().T
        return _Affine(weight, self.bias.to(dtype))


@torch.no_grad()
def _hidden_layer(model: NeXtVLAD, branches: list[Branch]) -> _Affine:
    """Descriptors [B, K S] of all streams, as sums are laid out, to the normalised hidden layer; float32.

    Behind them comes what is pooled, as it is.
    """
    scales, shifts, columns, first = [], [], [], 0
    for branch in branches:
        scale, shift = _affine_of(branch.descriptor_norm)
        scales.append(scale)
        shifts.append(shift)
        # The published layout is [S, K]; sums are [K, S], and the weights' columns move instead.
        places = torch.arange(len(scale), device=scale.device).view(branch.group_size, branch.clusters)
        columns.append(first + places.T.flatten())
        first += len(scale)
    scales.append(torch.ones(model.num_pooled, dtype=torch.float64, device=scales[0].device))
    shifts.append(torch.zeros_like(scales[-1]))
    columns.append(first + torch.arange(model.num_pooled, device=scales[0].device))
    kept = 1.0 - model.config.dropout if model.config.dropout_scaling == "evaluation" else 1.0
    scale, shift, column = kept * torch.cat(scales), kept * torch.cat(shifts), torch.cat(columns)
    norm_scale, norm_shift = _affine_of(model.hidden_norm)
    weight = torch.empty_like(model.hidden.weight)
    bias = norm_shift.clone()
    # By rows: at the paper's sizes all of it in float64 would take 600 MB several times over.
    for rows in range(0, len(weight), _ROWS_AT_A_TIME):
        block = slice(rows, rows + _ROWS_AT_A_TIME)
        wide = _wide(model.hidden.weight[block]) * norm_scale[block, None]
        bias[block] += wide @ shift
        weight[block] = (wide * scale)[:, column]
    return _Affine(weight, bias)


def _affine_of(norm: BatchNorm) -> tuple[Tensor, Tensor]:
    """A batch norm with its running statistics as scale and shift [F], float64."""
    scale = _wide(norm.weight) * torch.rsqrt(_wide(norm.running_var) + norm.epsilon)
    return scale, _wide(norm.bias) - _wide(norm.running_mean) * scale


def _wide(tensor: Tensor) -> Tensor:
    return tensor.detach().double()
