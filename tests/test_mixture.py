"""The mixture with distillation: against NumPy float64, its gradient, and a whole run."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from makers import make_data, nextvlad
from nextvlad import checkpoint
from nextvlad.config import MixtureConfig, NeXtVLADConfig, StreamConfig
from nextvlad.config_json import model_config_from_json, to_json
from nextvlad.data.batch import FrameBatch, Frames
from nextvlad.data.vocabulary import Vocabulary
from nextvlad.errors import ConfigError
from nextvlad.fine_tuning import initialise
from nextvlad.models import build_model, count_parameters
from nextvlad.models.inputs import Mixup
from nextvlad.models.mixture import Mixture, distillation, mix
from nextvlad.recipes import RECIPES
from nextvlad.run_config import DataConfig, OptimConfig, TrainConfig
from nextvlad.train import train
from reference_model import logits as reference_logits
from reference_model import member_weights, mixture_loss
from test_nextvlad import batch_of, random_video
from test_train import run_two_processes

SMALL = MixtureConfig(
    streams=(StreamConfig(name="rgb", size=12), StreamConfig(name="audio", size=6, clusters=3, groups=2)),
    num_classes=7,
    clusters=5,
    groups=4,
    hidden_size=16,
    gating_reduction=4,
    dropout=0.0,
)


def random_mixture(config: MixtureConfig = SMALL, seed: int = 0) -> Mixture:
    """A model whose every number, running statistics included, is away from its initial value."""
    torch.manual_seed(seed)
    model = Mixture(config)
    for name, tensor in model.state_dict().items():
        if name.endswith("running_var"):
            tensor.copy_(torch.rand_like(tensor) + 0.5)
        elif not name.endswith("weight") and "preprocess" not in name:
            tensor.copy_(torch.randn_like(tensor) * 0.3)
    return model.eval()


def answers_of_reference(
    model: Mixture, video: dict[str, np.ndarray[Any, Any]]
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """One video's member weights [M] and logits [M, C] in NumPy float64."""
    weights = {name: tensor.double().numpy() for name, tensor in model.state_dict().items()}
    members = []
    for m in range(model.config.num_members):
        prefix = f"members.{m}."
        own = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
        for stream in ("rgb", "audio"):
            for part in ("scale", "offset"):
                own[f"branches.{stream}.preprocess.{part}"] = weights[f"preprocess.{stream}.{part}"]
        members.append(
            reference_logits(
                video, own, groups={"rgb": 4, "audio": 2}, clusters={"rgb": 5, "audio": 3}, epsilon=1e-3
            )
        )
    gate = member_weights(
        video, weights, ("rgb", "audio"), epsilon=1e-3, padded_to=model.config.mixing_frames
    )
    return gate, np.stack(members)


@pytest.mark.parametrize("mixing_frames", [None, 4, 300])
@pytest.mark.parametrize("lengths", [(3, 2), (6, 5), (5, 0)])
def test_equals_the_equations_written_out(lengths: tuple[int, int], mixing_frames: int | None) -> None:
    model = random_mixture(replace(SMALL, mixing_frames=mixing_frames))
    video = random_video(*lengths, seed=1)
    gate, members = answers_of_reference(model, video)
    with torch.no_grad():
        found_gate, found_members = model.answers(batch_of([video]))
        found = model(batch_of([video]))
    np.testing.assert_allclose(found_gate[0].numpy(), gate, rtol=0, atol=1e-5)
    np.testing.assert_allclose(found_members[0].numpy(), members, rtol=0, atol=2e-5)
    np.testing.assert_allclose(found[0].numpy(), gate @ members, rtol=0, atol=2e-5)


@pytest.mark.parametrize(("weight", "temperature"), [(9.0, 3.0), (1.0, 1.0), (0.5, 20.0)])
def test_loss_equals_the_one_written_out(weight: float, temperature: float) -> None:
    model = random_mixture(replace(SMALL, distillation_weight=weight, temperature=temperature))
    videos = [random_video(3, 2, seed=1), random_video(5, 4, seed=2)]
    labels = np.random.default_rng(0).integers(0, 2, (2, 7)).astype(np.float32)
    expected = 0.0
    for video, row in zip(videos, labels, strict=True):
        gate, members = answers_of_reference(model, video)
        expected += mixture_loss(gate @ members, members, row, weight=weight, temperature=temperature)
    found = float(model.loss(batch_of(videos), torch.from_numpy(labels)).detach())
    assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("change", [{"temperature": 0.0}, {"distillation_weight": 0.0}])
def test_no_distillation(change: dict[str, float]) -> None:
    model = random_mixture(replace(SMALL, **change))
    batch, labels = batch_of([random_video(3, 2, seed=1)]), torch.ones(1, 7)
    _, logits = model.answers(batch)
    expected = sum(
        functional.binary_cross_entropy_with_logits(answer, labels, reduction="sum")
        for answer in (model(batch), *logits.unbind(1))
    )
    torch.testing.assert_close(model.loss(batch, labels), expected)


def naive_distillation(mixed: torch.Tensor, logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """As the author's code writes it, but for the 1e-8 he adds to each probability."""
    teacher = torch.softmax(mixed / temperature, -1)[:, None]
    students = torch.softmax(logits / temperature, -1)
    return (teacher * (torch.log(teacher) - torch.log(students))).sum()


@given(seed=st.integers(0, 2**16), temperature=st.floats(0.5, 20.0))
@settings(deadline=None, max_examples=30)
def test_distillation_and_its_gradient(seed: int, temperature: float) -> None:
    numbers = torch.Generator().manual_seed(seed)
    mixed = torch.randn(3, 11, generator=numbers, dtype=torch.float64).requires_grad_()
    logits = torch.randn(3, 2, 11, generator=numbers, dtype=torch.float64).requires_grad_()
    ours, theirs = distillation(mixed, logits, temperature), naive_distillation(mixed, logits, temperature)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    assert float(ours.detach()) >= -1e-12
    for mine, naive in zip(
        torch.autograd.grad(ours, (mixed, logits)), torch.autograd.grad(theirs, (mixed, logits)), strict=True
    ):
        torch.testing.assert_close(mine, naive, rtol=1e-9, atol=1e-9)


def test_distillation_of_far_logits_is_finite() -> None:
    mixed = torch.tensor([[200.0, -200.0]], requires_grad=True)
    logits = torch.tensor([[[-200.0, 200.0], [200.0, -200.0]]], requires_grad=True)
    value = distillation(mixed, logits, 1.0)
    value.backward()
    assert float(value.detach()) == pytest.approx(400.0)
    assert mixed.grad is not None
    assert mixed.grad.isfinite().all()


def test_pooled_are_means_and_deviations() -> None:
    model = random_mixture(replace(SMALL, pooled=True))
    video, silent = random_video(5, 3, seed=1), random_video(4, 0, seed=2)
    found = model.pooled(model.aggregate(batch_of([video, silent])))
    assert model.pooled_norm is not None
    assert found is not None
    norm = {name: tensor.double().numpy() for name, tensor in model.pooled_norm.state_dict().items()}
    for one, row in zip((video, silent), found.detach().numpy(), strict=True):
        frames = []
        for stream in ("rgb", "audio"):
            part = model.preprocessing(stream)
            x = one[stream] * part.scale.double().numpy() + part.offset.double().numpy()
            frames.append(x if len(x) else np.zeros((1, x.shape[1])))
        deviations = [np.sqrt(x.var(0) + (4 / 255) ** 2) for x in frames]
        raw = np.concatenate([*(x.mean(0) for x in frames), *deviations])
        scale = norm["weight"] / np.sqrt(norm["running_var"] + SMALL.batch_norm_epsilon)
        expected = (raw - norm["running_mean"]) * scale + norm["bias"]
        np.testing.assert_allclose(row, expected, rtol=0, atol=1e-5)


def test_pooled_is_all_that_tells_still_from_moving_frames() -> None:
    """What a member sees of a frame knows nothing of the other frames; the deviation does."""
    model = random_mixture(replace(SMALL, pooled=True))
    middle = np.full((2, 12), 120, np.uint8)
    still = {"rgb": middle, "audio": np.zeros((0, 6), np.uint8)}
    moving = {"rgb": middle + np.array([[-20], [20]]).astype(np.uint8), "audio": still["audio"]}
    pooled = model.pooled(model.aggregate(batch_of([still, moving])))
    assert pooled is not None
    difference = (pooled[1] - pooled[0]).detach()
    assert float(difference[:18].abs().max()) < 1e-4  # means
    assert float(difference[18:30].abs().min()) > 0.05  # deviations of rgb
    assert float(difference[30:].abs().max()) == 0.0  # of no sound


def test_streams_have_equal_shares_of_what_is_pooled_at_first() -> None:
    norm = Mixture(replace(SMALL, pooled=True)).pooled_norm
    assert norm is not None
    power = norm.weight.detach().square()  # rgb 12 and audio 6: means, then deviations
    assert power.sum() == pytest.approx(36.0, rel=1e-6)
    assert (power[:12].sum() + power[18:30].sum()) == pytest.approx(18.0, rel=1e-6)
    alone = Mixture(replace(SMALL, pooled=True, streams=SMALL.streams[:1])).pooled_norm
    assert alone is not None
    assert alone.weight.detach().tolist() == [1.0] * 24


def test_members_without_it_are_as_before() -> None:
    plain, pooled = (Mixture(replace(SMALL, pooled=choice)).state_dict() for choice in (False, True))
    assert set(pooled) - set(plain) == {
        f"pooled_norm.{name}" for name in ("weight", "bias", "running_mean", "running_var")
    }
    wider = {name for name in plain if plain[name].shape != pooled[name].shape}
    assert wider == {f"members.{m}.hidden.weight" for m in range(3)}
    assert pooled["members.0.hidden.weight"].shape[1] - plain["members.0.hidden.weight"].shape[1] == 36


@pytest.mark.parametrize("pooled", [False, True])
@given(lengths=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=5))
@settings(deadline=None, max_examples=20)
def test_companions_change_nothing_and_gradients_are_finite(
    pooled: bool, lengths: list[tuple[int, int]]
) -> None:
    model = random_mixture(replace(SMALL, pooled=pooled))
    videos = [random_video(rgb, audio, i) for i, (rgb, audio) in enumerate(lengths)]
    with torch.no_grad():
        alone = torch.cat([model(batch_of([video])) for video in videos])
        torch.testing.assert_close(model(batch_of(videos)), alone, rtol=0, atol=1e-5)
    model.train().loss(batch_of(videos), torch.zeros(len(videos), 7)).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_no_videos() -> None:
    """What a rank computes that has no data left: nothing, with a gradient for every parameter."""
    model = random_mixture().train()
    loss = model.loss(FrameBatch.empty(SMALL.streams, 7), torch.zeros(0, 7))
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_mixup_reaches_gate_and_members() -> None:
    model = random_mixture()
    batch = batch_of([random_video(3, 3, 0), random_video(3, 3, 1)])
    swap = torch.tensor([1, 0])
    with torch.no_grad():
        one = model.answers(batch, Mixup(swap, torch.ones(2, 1)))
        none = model.answers(batch, Mixup(swap, torch.zeros(2, 1)))
        plain = model.answers(batch)
        labels = torch.eye(7)[:2]
        mixed_loss = model.loss(batch, labels, mixup=Mixup(swap, torch.zeros(2, 1)))
        torch.testing.assert_close(mixed_loss, model.loss(batch, labels))  # both change places
    for mine, first, second in zip(one, plain, none, strict=True):
        torch.testing.assert_close(mine, first)
        torch.testing.assert_close(second, first[swap])


def test_only_rated_classes_count() -> None:
    model = random_mixture(replace(SMALL, distillation_weight=0.0))
    batch, labels = batch_of([random_video(3, 2, 0), random_video(2, 2, 1)]), torch.zeros(2, 7)
    rated = torch.zeros(2, 7).bool()
    rated[0, 3] = rated[1, 5] = True
    batch.rated = rated
    first = float(model.loss(batch, labels).detach())
    labels[0, 4] = 1.0  # not rated: changes nothing
    assert float(model.loss(batch, labels).detach()) == first
    labels[0, 3] = 1.0
    assert float(model.loss(batch, labels).detach()) != first
    with torch.no_grad():
        mixed = model(batch)
        _, answers = model.answers(batch)
        expected = sum(
            functional.binary_cross_entropy_with_logits(x[rated], labels[rated], reduction="sum")
            for x in (mixed, *answers.unbind(1))
        )
    torch.testing.assert_close(model.loss(batch, labels).detach(), expected)


def test_each_of_two_mixed_videos_counts_where_it_is_rated() -> None:
    model = random_mixture(replace(SMALL, distillation_weight=0.0))
    batch = batch_of([random_video(3, 2, 0), random_video(2, 2, 1)])
    batch.rated = torch.tensor([[True] * 3 + [False] * 4, [True] * 2 + [False] * 3 + [True] * 2])
    swap, weight = torch.tensor([1, 0]), torch.tensor([[0.3], [0.8]])
    labels = torch.eye(7)[[2, 1]]
    with torch.no_grad():
        loss = model.loss(batch, labels, mixup=Mixup(swap, weight))
        mixing, answers = model.answers(batch, Mixup(swap, weight))
    expected = torch.tensor(0.0)
    for logits in (mix(mixing, answers), *answers.unbind(1)):
        for truth, rated, share in (
            (labels, batch.rated, weight),
            (labels[swap], batch.rated[swap], 1 - weight),
        ):
            terms = functional.binary_cross_entropy_with_logits(logits, truth, reduction="none")
            expected += (share * terms * rated).sum()
    torch.testing.assert_close(loss, expected)


def test_parameters_of_the_paper() -> None:
    """Three members of K 112, r 16 (without the gate's norm, 1,152 x 3 + 3 weights mix them)."""
    config = RECIPES["yt8m_mixture"].config.model
    assert isinstance(config, MixtureConfig)
    with torch.device("meta"):
        one, all_three = count_parameters(build_model(config.member())), count_parameters(build_model(config))
    assert all_three == 3 * one + 2 * 1152 + 3 * 1152 + 3


def test_configuration_round_trip_and_bounds() -> None:
    assert model_config_from_json(to_json(SMALL), where="test") == SMALL
    assert isinstance(SMALL.member(), NeXtVLADConfig)
    assert SMALL.member().clusters == 5
    for change, message in (
        ({"num_members": 0}, "num_members: got 0, wanted 1 to 64"),
        ({"temperature": -1.0}, "temperature: got -1.0, wanted 0 or more"),
        ({"distillation_weight": float("nan")}, "distillation_weight: got nan"),
        ({"mixing_frames": 0}, "mixing_frames: got 0, wanted 1 or more"),
        ({"groups": 5}, "groups of stream rgb: got 5, wanted a divisor"),
    ):
        with pytest.raises(ConfigError, match=message):
            replace(SMALL, **change)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"unknown key .*num_experts"):
        model_config_from_json(to_json(SMALL) | {"num_experts": 2}, where="test")


def test_checkpoint_round_trip_and_classes_by_name(tmp_path: Path) -> None:
    model = random_mixture()
    names = Vocabulary(tuple("abcdefg"))
    checkpoint.save(tmp_path / "c", model, vocabulary=names)
    again = checkpoint.load(tmp_path / "c")
    batch = batch_of([random_video(3, 2, 0)])
    with torch.no_grad():
        assert torch.equal(again(batch), model(batch))
    other = build_model(replace(SMALL, num_classes=2))
    assert isinstance(other, Mixture)
    report = initialise(other, tmp_path / "c", Vocabulary(("f", "a")))
    assert (report.classes_matched, report.fresh, report.skipped) == (2, [], [])
    for mine, theirs in zip(other.members, model.members, strict=True):
        torch.testing.assert_close(mine.classifier.weight, theirs.classifier.weight[[5, 0]])


def test_a_whole_run_on_the_command_line(tmp_path: Path) -> None:
    data = {
        "train": make_data(tmp_path, "train", num_videos=90, num_shards=3),
        "valid": make_data(tmp_path, "valid", num_videos=40, first=1000),
    }
    done = nextvlad(
        "train", "yt8m_mixture", "--data.train", data["train"], "--data.valid", data["valid"],
        "--data.batch-size", 16, "--data.workers", 0, "--threads", 1, "--epochs", 8, "--optim.lr", "1e-2",
        "--model.streams", "rgb:12", "audio:6", "--model.num-classes", 5, "--model.clusters", 4,
        "--model.groups", 2, "--model.hidden-size", 16, "--model.gating-reduction", 4,
        "--model.num-members", 2, "--model.batch-norm-weight", 0.1, "--out", tmp_path / "run",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    done = nextvlad("predict", tmp_path / "run", data["valid"], "--out", tmp_path / "p.jsonl", "--workers", 0)
    assert done.returncode == 0, done.stderr
    scores = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert scores[-1]["hit_at_one"] > 0.8
    assert len((tmp_path / "p.jsonl").read_text().splitlines()) == 40


def test_resuming_and_fine_tuning(tmp_path: Path) -> None:
    data = make_data(tmp_path, "train", num_videos=60)
    config = TrainConfig(
        model=replace(SMALL, num_classes=5, dropout=0.5),
        data=DataConfig(train=(data,), batch_size=16, shuffle_buffer=20, workers=0),
        optim=OptimConfig(lr=1e-3, mixup=0.3),
        epochs=2,
        threads=1,
    )
    train(config, tmp_path / "whole")
    train(replace(config, steps=3), tmp_path / "parts")
    train(config, tmp_path / "parts", resume=True)
    first, second = (checkpoint.load(tmp_path / run).state_dict() for run in ("whole", "parts"))
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
    softer = replace(config, model=replace(config.model, temperature=5.0, num_members=2), steps=1)
    train(softer, tmp_path / "tuned", init=tmp_path / "whole")
    tuned = checkpoint.load(tmp_path / "tuned").config
    assert isinstance(tuned, MixtureConfig)
    assert (tuned.num_members, tuned.temperature) == (3, 5.0)  # the architecture theirs, the training ours


def test_two_processes_compute_what_one_does(tmp_path: Path) -> None:
    """Two gloo ranks with uneven shares of the data, and one process: the same losses and weights."""
    config = TrainConfig(
        model=replace(SMALL, num_classes=5, batch_norm_weight=0.1),
        data=DataConfig(
            train=(make_data(tmp_path, "train", num_videos=21, num_shards=3),),
            batch_size=42,
            shuffle_buffer=20,
            workers=0,
        ),
        optim=OptimConfig(lr=1e-3),
        epochs=2,
        log_every=1,
        threads=1,
    )
    train(config, tmp_path / "one")
    run_two_processes(config, tmp_path / "two")
    one, two = ((tmp_path / run / "metrics.jsonl").read_text().splitlines() for run in ("one", "two"))
    assert len(one) == len(two)
    for mine, theirs in zip(map(json.loads, one), map(json.loads, two), strict=True):
        assert theirs["loss"] == pytest.approx(mine["loss"], rel=1e-4)
    first, second = (checkpoint.load(tmp_path / run).state_dict() for run in ("one", "two"))
    for name, tensor in first.items():
        torch.testing.assert_close(tensor, second[name], rtol=1e-3, atol=4e-4, msg=name)


def test_help_names_the_settings() -> None:
    text = nextvlad("train", "yt8m_mixture", "--help").stdout
    for option in ("--model.num-members", "--model.temperature", "--model.clusters", "--model.mixing-frames"):
        assert option in text


def test_frames_of_floats_pass_unchanged() -> None:
    model = random_mixture()
    bytes_batch = batch_of([random_video(3, 2, 0)])
    streams = {
        name: Frames(model.preprocessing(name)(frames.values), frames.offsets)
        for name, frames in bytes_batch.streams.items()
    }
    floats = FrameBatch(bytes_batch.video_ids, bytes_batch.labels, streams)
    with torch.no_grad():
        torch.testing.assert_close(model(floats), model(bytes_batch))
