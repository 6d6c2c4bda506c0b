from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from conftest import shared_path
from nextvlad import optim
from nextvlad.config import NeXtVLADConfig, StreamConfig
from nextvlad.data.batch import FrameBatch, Frames
from nextvlad.models import build_model, count_parameters
from nextvlad.models.inputs import Mixup, mix_frames
from nextvlad.models.nextvlad import Branch, NeXtVLAD
from nextvlad.recipes import RECIPES
from nextvlad.run_config import OptimConfig
from originals import author_batch, author_model, fine_tuned_from, paddle_batch, paddle_model
from reference_model import logits as reference_logits

SMALL = NeXtVLADConfig(
    streams=(StreamConfig(name="rgb", size=12), StreamConfig(name="audio", size=6, clusters=3, groups=2)),
    num_classes=7,
    clusters=5,
    groups=4,
    hidden_size=16,
    gating_reduction=4,
)


@pytest.fixture
def eigenvalues() -> Path:
    return shared_path("data/yt8m/eigenvals.npy")


def random_model(config: NeXtVLADConfig = SMALL, seed: int = 0) -> NeXtVLAD:
    """A model whose every number, running statistics included, is away from its initial value."""
    torch.manual_seed(seed)
    model = NeXtVLAD(config)
    for name, tensor in model.state_dict().items():
        if name.endswith("running_var"):
            tensor.copy_(torch.rand_like(tensor) + 0.5)
        elif not name.endswith("weight") and "preprocess" not in name:
            tensor.copy_(torch.randn_like(tensor) * 0.3)
    return model.eval()


def batch_of(videos: list[dict[str, np.ndarray[Any, Any]]], num_classes: int = 7) -> FrameBatch:
    streams = {}
    for name in videos[0]:
        parts = [video[name] for video in videos]
        offsets = np.concatenate([[0], np.cumsum([len(part) for part in parts])])
        streams[name] = Frames(torch.from_numpy(np.concatenate(parts)), torch.from_numpy(offsets))
    return FrameBatch(
        [str(i) for i in range(len(videos))], torch.zeros(len(videos), num_classes).bool(), streams
    )


def random_video(rgb: int, audio: int, seed: int) -> dict[str, np.ndarray[Any, Any]]:
    numbers = np.random.default_rng(seed)
    return {
        "rgb": numbers.integers(0, 256, (rgb, 12), dtype=np.uint8),
        "audio": numbers.integers(0, 256, (audio, 6), dtype=np.uint8),
    }


def test_parameter_counts_of_the_published_models() -> None:
    with torch.device("meta"):
        assert count_parameters(build_model(RECIPES["yt8m_paper"].config.model)) == 88_889_378
        assert count_parameters(build_model(RECIPES["yt8m_paddle"].config.model)) == 89_088_550


def test_author_predictions(golden: Path, eigenvalues: Path) -> None:
    model = author_model(golden, eigenvalues).eval()
    z = np.load(golden / "tensorflow" / "forward.npz")
    batch = author_batch(golden)
    with torch.no_grad():
        logits = model(batch)
    np.testing.assert_allclose(torch.sigmoid(logits).numpy(), z["predictions"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(torch.sigmoid(logits).numpy(), z["predictions_f64"], rtol=0, atol=2e-6)
    loss = functional.binary_cross_entropy_with_logits(logits, batch.labels.float(), reduction="sum") / 6
    assert float(loss) == pytest.approx(float(z["loss"]), rel=1e-5)


def test_author_predictions_without_reverse_whitening(golden: Path, eigenvalues: Path) -> None:
    model = author_model(golden, eigenvalues).eval()
    model.branches["rgb"].preprocess = Branch(model.config, model.config.streams[0]).preprocess
    expected = np.load(golden / "tensorflow" / "forward.npz")["predictions_unscaled_input"]
    with torch.no_grad():
        found = torch.sigmoid(model(author_batch(golden))).numpy()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_paddle_predictions(golden: Path) -> None:
    model = paddle_model(golden).eval()
    z = np.load(golden / "paddle" / "forward.npz")
    with torch.no_grad():
        found = torch.sigmoid(model(paddle_batch(golden))).numpy()
        alone = torch.cat([torch.sigmoid(model(paddle_batch(golden, [i]))) for i in range(12)]).numpy()
    np.testing.assert_allclose(found, z["out/pred"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(alone, z["out/pred_one_by_one"], rtol=0, atol=1e-5)


def training_step(
    model: NeXtVLAD, adam: torch.optim.AdamW, batch: FrameBatch, config: OptimConfig, step: int, lr: float
) -> tuple[float, dict[str, float]]:
    """One step as `train` makes it; loss and gradient norms before clipping."""
    model.train()
    adam.zero_grad()
    loss = model.loss(batch, batch.labels.float()) / batch.num_videos
    loss.backward()
    optim.add_l2_gradient(model.class_layers().values(), config.l2)
    norms = {name: float(p.grad.norm()) for name, p in model.named_parameters() if p.grad is not None}
    optim.clip_gradients(model.parameters(), config)
    optim.prepare_step(adam, config, step=step, lr=lr)
    adam.step()
    return loss.item(), norms


# Adam divides by the root of the second moment, so where a gradient is no more than rounding noise its
# entry moves by up to the learning rate a step, either way: three steps can part by 3 x 2e-4. All but
# such entries agree to 2e-5. Running means and variances add up thousands of entries.
ADAM_DIFFERENCE = 2e-5
NOISE_DIFFERENCE = 6e-4
STATISTICS_DIFFERENCE = 1e-4


def compare_after_training(z: Any, name: str, ours: torch.Tensor, stored: str) -> None:
    """Whole, or the golden file's 512 sampled entries of it."""
    values = ours.detach().numpy().reshape(-1)
    if stored in z.files:
        expected = z[stored].reshape(-1)
    else:
        key = stored.split("/", 1)[1].removeprefix("param/")
        values, expected = values[z[f"sample_index/{key}"]], z[f"sample_value/{key}"]
    difference = np.abs(values - expected)
    if "running" in name:
        assert difference.max() < STATISTICS_DIFFERENCE, name
    else:
        assert difference.max() < NOISE_DIFFERENCE, name
        assert np.mean(difference > ADAM_DIFFERENCE) < 0.005, name


def paddle_names() -> dict[str, str]:
    names = {}
    for index, (ours, theirs) in enumerate((("rgb", "video"), ("audio", "audio"))):
        names |= {
            f"branches.{ours}.expansion.weight": f"{theirs}_fc_expansion_w",
            f"branches.{ours}.expansion.bias": f"{theirs}_fc_expansion_b",
            f"branches.{ours}.attention.weight": f"{theirs}_fc_group_attention_w",
            f"branches.{ours}.attention.bias": f"{theirs}_fc_group_attention_b",
            f"branches.{ours}.assignment.weight": f"{theirs}_cluster_weights",
            f"branches.{ours}.centers": f"{theirs}_cluster_weights2",
            f"branches.{ours}.assignment_norm": f"batch_norm_{2 * index}",
            f"branches.{ours}.descriptor_norm": f"batch_norm_{2 * index + 1}",
        }
    return names | {
        "hidden.weight": "hidden1_fc_weights",
        "hidden_norm": "batch_norm_4",
        "gate.reduce.weight": "gating_fc1_weights",
        "gate.norm": "batch_norm_5",
        "gate.expand.weight": "gating_fc2_weights",
        "classifier.weight": "logits_clf_weights",
        "classifier.bias": "logits_clf_bias",
    }


def original_layout(name: str, tensor: torch.Tensor) -> torch.Tensor:
    return tensor.T if tensor.ndim == 2 and not name.endswith("centers") else tensor


@pytest.mark.parametrize("imported", [False, True])
def test_three_training_steps_of_paddle(golden: Path, tmp_path: Path, imported: bool) -> None:
    """Also through `nextvlad import`, a checkpoint of ours, and --init."""
    z = np.load(golden / "paddle" / "train3steps.npz")
    model = (
        fine_tuned_from(golden / "paddle" / "v1.8_pickle.pdparams", tmp_path, dropout=0.0)
        if imported
        else paddle_model(golden, dropout=0.0)
    )
    config = OptimConfig(clip="none")
    adam = optim.make_optimizer(model, config)
    names = paddle_names()
    for step in range(3):
        batch = paddle_batch(golden, z["ids_per_step"][step].tolist())
        loss, norms = training_step(model, adam, batch, config, step + 1, float(z[f"step{step}/lr"][0]))
        assert loss == pytest.approx(float(z[f"step{step}/loss"][0]), rel=1e-4)
        if step == 0:
            for ours, theirs in names.items():
                keys = (
                    {ours: theirs}
                    if ours in norms
                    else {f"{ours}.weight": f"{theirs}.w_0", f"{ours}.bias": f"{theirs}.b_0"}
                )
                for key, original in keys.items():
                    expected = float(z[f"step0/grad_norm/{original}"])
                    assert norms[key] == pytest.approx(expected, rel=1e-3, abs=1e-5), key
    compare_with_paddle(z, model.state_dict())


def compare_with_paddle(z: Any, state: dict[str, torch.Tensor]) -> None:
    """Weights and statistics after the three steps."""
    for ours, theirs in paddle_names().items():
        if ours in state:
            compare_after_training(z, ours, original_layout(ours, state[ours]), f"step2/param/{theirs}")
            continue
        for key, original in (
            ("weight", "w_0"),
            ("bias", "b_0"),
            ("running_mean", "w_1"),
            ("running_var", "w_2"),
        ):
            if "descriptor_norm" in ours and key == "bias":
                continue  # its true gradient is zero: the next batch norm takes it out
            compare_after_training(
                z, f"{ours}.{key}", state[f"{ours}.{key}"], f"step2/param/{theirs}.{original}"
            )


def let_padding_into_statistics(branch: Branch, padding: torch.Tensor, count: int) -> None:
    """Does to a branch what the author's code does: `count` padded frames join the batch statistics."""
    aggregate = branch.aggregate

    def with_padding(frames: Frames, mixup: Mixup | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        assert mixup is None
        values = torch.cat([branch.preprocess(frames.values), padding.expand(count, -1)])
        offsets = torch.cat([frames.offsets, torch.tensor([len(values)])])
        sums, mass = aggregate(Frames(values, offsets))  # the padding as one more video
        return sums[:-1], mass[:-1]

    branch.aggregate = with_padding  # type: ignore[method-assign]


@pytest.mark.parametrize("imported", [False, True])
def test_three_training_steps_of_the_author(
    golden: Path, eigenvalues: Path, tmp_path: Path, imported: bool
) -> None:
    """With his padded frames put back into the assignment's statistics, everything else must agree."""
    z = np.load(golden / "tensorflow" / "train3steps.npz")
    model = (
        fine_tuned_from(golden / "tensorflow" / "checkpoint", tmp_path, eigenvalues, dropout=0.0)
        if imported
        else author_model(golden, eigenvalues, dropout=0.0)
    )
    batch = author_batch(golden)
    padded = 6 * 300 - len(batch.streams["rgb"].values)
    factors = np.sqrt(np.load(eigenvalues).ravel()[:1024].astype(np.float64)) + 1e-4
    zeros = {"rgb": torch.tensor(-4 / 512 * factors).float(), "audio": torch.zeros(128)}
    for name, padding in zeros.items():
        branch = model.branches[name]
        assert isinstance(branch, Branch)
        let_padding_into_statistics(branch, padding, padded)
    config = OptimConfig(clip="per_variable")
    adam = optim.make_optimizer(model, config)
    losses = [training_step(model, adam, batch, config, step, 2e-4)[0] for step in (1, 2, 3)]
    np.testing.assert_allclose(losses, z["loss/label_loss"], rtol=1e-4)
    state = model.state_dict()
    for ours, theirs in {
        "hidden_norm": "hidden1_bn",
        "gate.norm": "gating_bn",
        "branches.rgb.assignment_norm": "video_VLAD/cluster_bn",
        "branches.audio.assignment_norm": "audio_VLAD/cluster_bn",
        "branches.rgb.descriptor_norm": "video_VLAD/vlad_bn",
        "branches.audio.descriptor_norm": "audio_VLAD/vlad_bn",
    }.items():
        for key, original in {
            "weight": "gamma",
            "bias": "beta",
            "running_mean": "moving_mean",
            "running_var": "moving_variance",
        }.items():
            if "descriptor_norm" in ours and key == "bias":
                continue
            compare_after_training(z, ours + key, state[f"{ours}.{key}"], f"after3/tower/{theirs}/{original}")
    for ours, theirs in {
        "hidden.weight": "hidden1_weights",
        "gate.reduce.weight": "gating_weights_1",
        "gate.expand.weight": "gating_weights_2",
        "classifier.weight": "fully_connected/weights",
        "classifier.bias": "fully_connected/biases",
        "branches.rgb.expansion.weight": "video_VLAD/fully_connected/weights",
        "branches.rgb.assignment.weight": "video_VLAD/cluster_weights",
        "branches.audio.attention.weight": "audio_VLAD/fully_connected_1/weights",
    }.items():
        compare_after_training(z, ours, original_layout(ours, state[ours]), f"after3/tower/{theirs}")


@pytest.mark.parametrize("lengths", [(3, 2), (1, 4), (5, 0), (0, 3)])
def test_equals_the_equations_written_out(lengths: tuple[int, int]) -> None:
    model = random_model()
    video = random_video(*lengths, seed=1)
    weights = {name: tensor.double().numpy() for name, tensor in model.state_dict().items()}
    expected = reference_logits(
        video, weights, groups={"rgb": 4, "audio": 2}, clusters={"rgb": 5, "audio": 3}, epsilon=1e-3
    )
    with torch.no_grad():
        found = model(batch_of([video]))[0].numpy()
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5)


lengths_of_a_batch = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=6)


@given(lengths=lengths_of_a_batch, seed=st.integers(0, 2**16))
@settings(deadline=None, max_examples=30)
def test_companions_and_frame_order_change_nothing(lengths: list[tuple[int, int]], seed: int) -> None:
    model = random_model()
    numbers = np.random.default_rng(seed)
    videos = [random_video(rgb, audio, seed + i) for i, (rgb, audio) in enumerate(lengths)]
    shuffled = [{name: numbers.permutation(frames) for name, frames in video.items()} for video in videos]
    with torch.no_grad():
        together = model(batch_of(videos))
        alone = torch.cat([model(batch_of([video])) for video in videos])
        reordered = model(batch_of(shuffled))
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)
    torch.testing.assert_close(together, reordered, rtol=0, atol=1e-5)
    assert together.isfinite().all()


@given(lengths=lengths_of_a_batch)
@settings(deadline=None, max_examples=20)
def test_gradients_are_finite_for_any_lengths(lengths: list[tuple[int, int]]) -> None:
    model = random_model().train()
    videos = [random_video(rgb, audio, i) for i, (rgb, audio) in enumerate(lengths)]
    model(batch_of(videos)).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_initial_weights_are_he_normal() -> None:
    torch.manual_seed(0)
    model = NeXtVLAD(
        NeXtVLADConfig(streams=(StreamConfig(name="rgb", size=256),), num_classes=100, hidden_size=256)
    )
    for name, tensor in model.state_dict().items():
        if tensor.ndim == 2:
            fan_in = tensor.shape[1]
            assert float(tensor.std()) == pytest.approx((2 / fan_in) ** 0.5, rel=0.05), name
            assert float(tensor.abs().max()) < 2.3 * (2 / fan_in) ** 0.5, name


def test_mixup_mixes_frame_by_frame() -> None:
    x = torch.arange(7.0)[:, None]  # videos of 3, 0, 2 and 2 frames
    offsets = torch.tensor([0, 3, 3, 5, 7])
    weight = torch.tensor([[0.75], [0.5], [0.5], [0.0]])
    mixed = mix_frames(x, offsets, Mixup(partner=torch.tensor([2, 0, 1, 0]), weight=weight))
    # 0: with 3, 4, 3 (the shorter one starts again); 2: its partner has no frames; 3: all of video 0
    expected = [0.75 * 0 + 0.25 * 3, 0.75 * 1 + 0.25 * 4, 0.75 * 2 + 0.25 * 3, 3, 4, 0, 1]
    torch.testing.assert_close(mixed[:, 0], torch.tensor(expected))


def test_mixup_of_weight_one_changes_nothing() -> None:
    model = random_model()
    batch = batch_of([random_video(3, 2, 0), random_video(5, 0, 1)])
    with torch.no_grad():
        mixed = model(batch, Mixup(partner=torch.tensor([1, 0]), weight=torch.ones(2, 1)))
        torch.testing.assert_close(mixed, model(batch))
