"""Videos a second through a model put into inference, against the equations written out on padded batches.

Random weights of the paper's model, YouTube-8M's streams, 120 to 300 frames a video. Each round takes
another batch, as in real use (oneDNN compiles a product for each new shape, and a batch seen before would
hide that).
"""

from __future__ import annotations

import argparse

import naive_nextvlad
import torch
from batches import in_turn, made_up_batch
from measure import Comparison, compare, finish, parser

from nextvlad.config import NeXtVLADConfig, Precision, StreamConfig
from nextvlad.models import InferenceModel, for_inference
from nextvlad.models.byte_linear import integer_products
from nextvlad.models.nextvlad import NeXtVLAD
from nextvlad.recipes import RECIPES

_WANTED: dict[Precision, float] = {"fp32": 4.0, "bf16": 7.5, "int8": 8.5}
_EQUATIONS = "equations, padded"


def main() -> None:
    options = _options()
    if options.threads:
        torch.set_num_threads(options.threads)
    model = _model(options.quick)
    fast = {precision: for_inference(model, precision) for precision in _WANTED}
    finish(
        "inference",
        [
            _compare(model, fast, precision, size, options)
            for size in options.batch_sizes
            for precision in _WANTED
        ],
        options,
    )


def _options() -> argparse.Namespace:
    options = parser(__doc__, rounds=7)
    options.add_argument("--batch-sizes", type=int, nargs="+", default=[32, 80], help="videos a batch")
    given = options.parse_args()
    if given.quick:
        given.batch_sizes, given.rounds = [3], 2
    return given


def _model(quick: bool) -> NeXtVLAD:
    config = RECIPES["yt8m_paper"].config.model
    assert isinstance(config, NeXtVLADConfig)
    if quick:
        streams = (StreamConfig(name="rgb", size=16),)
        config = NeXtVLADConfig(streams=streams, num_classes=50, clusters=4, groups=2, hidden_size=8)
    torch.manual_seed(0)
    model = NeXtVLAD(config).eval()
    for name, tensor in model.state_dict().items():  # statistics as after some training, not 0 and 1
        if name.endswith("running_mean"):
            tensor.normal_(0, 0.1)
        elif name.endswith("running_var"):
            tensor.uniform_(0.5, 1.5)
    return model


@torch.inference_mode()
def _compare(
    model: NeXtVLAD,
    fast: dict[Precision, InferenceModel],
    precision: Precision,
    size: int,
    options: argparse.Namespace,
) -> Comparison:
    rounds = options.rounds + options.warmup
    batches = [made_up_batch(model.config.streams, size, seed) for seed in range(rounds)]

    wanted, found = naive_nextvlad.logits(model, batches[0]), fast[precision](batches[0])
    best, ours = wanted.topk(min(20, wanted.shape[1])).indices, found.topk(min(20, wanted.shape[1])).indices
    overlap = sum(
        len(set(a) & set(b)) / len(a) for a, b in zip(best.tolist(), ours.tolist(), strict=True)
    ) / len(best)
    return compare(
        f"inference {precision}, batch {size}",
        {
            precision: in_turn(fast[precision], batches),
            _EQUATIONS: in_turn(lambda batch: naive_nextvlad.logits(model, batch), batches),
        },
        unit="videos",
        rounds=options.rounds,
        warmup=options.warmup,
        wanted={_EQUATIONS: _WANTED[precision]},
        facts={
            "threads": torch.get_num_threads(),
            "computed in": fast[precision].precision,
            "integer products": _products(),
            "largest difference of a logit": float(f"{(found - wanted).abs().max():.1e}"),
            "of a probability": float(f"{(found.sigmoid() - wanted.sigmoid()).abs().max():.1e}"),
            "top-20 overlap": round(overlap, 4),
        },
    )


def _products() -> str:
    """Of bytes, on this CPU."""
    found = integer_products()
    if found is None:
        return "none"
    return f"of integers to {found.largest}, {'in tiles' if found.tiles else 'no tiles'}"


if __name__ == "__main__":
    main()
