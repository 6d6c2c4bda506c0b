"""Models of the mean frame: mean pooling and the mixture of experts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from makers import make_data
from nextvlad import checkpoint
from nextvlad.config import MeanPoolConfig, MoEConfig, StreamConfig
from nextvlad.config_json import model_config_from_json, to_json
from nextvlad.data.batch import FrameBatch, Frames
from nextvlad.data.vocabulary import Vocabulary
from nextvlad.errors import ConfigError
from nextvlad.fine_tuning import initialise
from nextvlad.models.baselines import MeanPool, MixtureOfExperts
from nextvlad.run_config import DataConfig, OptimConfig, TrainConfig
from nextvlad.train import train
from reference_model import binary_cross_entropy, dequantised, expert_probabilities
from test_nextvlad import batch_of, random_video

STREAMS = (StreamConfig(name="rgb", size=12), StreamConfig(name="audio", size=6))
CONFIG = MoEConfig(streams=STREAMS, num_classes=7, num_experts=3)


def random_experts(config: MoEConfig = CONFIG, scale: float = 0.5) -> MixtureOfExperts:
    torch.manual_seed(0)
    model = MixtureOfExperts(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=scale)
    return model.eval()


@pytest.mark.parametrize("num_experts", [1, 2, 5])
def test_experts_equal_the_starter_codes(num_experts: int) -> None:
    model = random_experts(replace(CONFIG, num_experts=num_experts))
    videos = [random_video(3, 2, 0), random_video(4, 4, 1)]
    weights = {name: tensor.double().numpy() for name, tensor in model.state_dict().items()}
    labels = np.random.default_rng(0).integers(0, 2, (2, 7)).astype(np.float64)
    expected = np.stack(
        [
            expert_probabilities(
                np.concatenate([dequantised(video[s]).mean(axis=0) for s in ("rgb", "audio")]), weights, 7
            )
            for video in videos
        ]
    )
    batch = batch_of(videos)
    with torch.no_grad():
        found = torch.sigmoid(model(batch)).numpy()
        loss = float(model.loss(batch, torch.from_numpy(labels).float()))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
    assert loss == pytest.approx(binary_cross_entropy(expected, labels), rel=1e-5)


@given(scale=st.sampled_from([1.0, 30.0, 1000.0]), seed=st.integers(0, 2**16))
@settings(deadline=None, max_examples=30)
def test_experts_stay_finite_far_from_zero(scale: float, seed: int) -> None:
    """Where a probability rounds to 0 or 1 in float32, logit and gradient are still right."""
    model = random_experts()
    torch.manual_seed(seed)
    x = (torch.randn(4, 18) * scale).requires_grad_()
    logits = model.classify(x)
    wide = random_experts().double()
    gates = wide.gates(x.detach().double()).unflatten(1, (7, -1))
    experts = wide.experts(x.detach().double()).unflatten(1, (7, -1))
    share = torch.log_softmax(gates, 2)
    yes = torch.logsumexp(share[..., :-1] + torch.nn.functional.logsigmoid(experts), 2)
    assert logits.isfinite().all()
    torch.testing.assert_close(
        torch.nn.functional.logsigmoid(logits.double()), yes, rtol=1e-4, atol=1e-4 * scale
    )
    logits.sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()


def test_the_one_that_says_no() -> None:
    model = random_experts(replace(CONFIG, num_experts=1))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        # Gates equal, the expert undecided: half of one half.
        found = torch.sigmoid(model(batch_of([random_video(3, 2, 0)])))
    torch.testing.assert_close(found, torch.full((1, 7), 0.25))


def test_fine_tuning_matches_classes_by_name(tmp_path: Path) -> None:
    model = random_experts()
    checkpoint.save(tmp_path / "c", model, vocabulary=Vocabulary(tuple("abcdefg")))
    other = MixtureOfExperts(replace(CONFIG, num_classes=3))
    fresh = other.gates.weight.detach().clone()
    report = initialise(other, tmp_path / "c", Vocabulary(("g", "new", "b")))
    assert report.classes_matched == 2
    assert not report.fresh
    assert not report.skipped
    mine, theirs = other.gates.weight.unflatten(0, (3, 4)), model.gates.weight.unflatten(0, (7, 4))
    torch.testing.assert_close(mine[0], theirs[6])
    torch.testing.assert_close(mine[2], theirs[1])
    torch.testing.assert_close(mine[1], fresh.unflatten(0, (3, 4))[1])
    biases = other.experts.bias.unflatten(0, (3, 3)), model.experts.bias.unflatten(0, (7, 3))
    torch.testing.assert_close(biases[0][0], biases[1][6])
    more = MixtureOfExperts(replace(CONFIG, num_experts=4))  # rows a class differ: nothing to match
    assert initialise(more, tmp_path / "c", Vocabulary(tuple("abcdefg"))).fresh == [
        "gates.weight",
        "experts.weight",
        "experts.bias",
    ]


def test_video_level_floats(tmp_path: Path) -> None:
    """One frame of floats a stream is its own mean, and is used as it is."""
    numbers = np.random.default_rng(0).normal(size=(3, 6)).astype(np.float32)
    frames = Frames(torch.from_numpy(numbers), torch.arange(4))
    batch = FrameBatch(["a", "b", "c"], torch.zeros(3, 4).bool(), {"mean_audio": frames})
    streams = (StreamConfig(name="mean_audio", size=6),)
    for model in (
        MeanPool(MeanPoolConfig(streams=streams, num_classes=4)),
        MixtureOfExperts(MoEConfig(streams=streams, num_classes=4)),
    ):
        with torch.no_grad():
            torch.testing.assert_close(model.describe(model.aggregate(batch)), torch.from_numpy(numbers))
            assert model(batch).shape == (3, 4)


def test_configuration() -> None:
    assert model_config_from_json(to_json(CONFIG), where="test") == CONFIG
    with pytest.raises(ConfigError, match="num_experts: got 0, wanted 1 to 1024"):
        MoEConfig(num_experts=0)


def test_experts_learn_and_load(tmp_path: Path) -> None:
    data = make_data(tmp_path, "train", num_videos=90), make_data(tmp_path, "v", num_videos=40, first=1000)
    config = TrainConfig(
        model=MoEConfig(),
        data=DataConfig(train=(data[0],), valid=(data[1],), batch_size=16, shuffle_buffer=20, workers=0),
        optim=OptimConfig(lr=0.1, mixup=0.2),
        epochs=12,
        threads=1,
    )
    assert train(config, tmp_path / "run")["hit_at_one"] > 0.8
    assert isinstance(checkpoint.load(tmp_path / "run"), MixtureOfExperts)
