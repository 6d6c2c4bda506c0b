from __future__ import annotations

import io
import json
import os
import pickle
import re
import shutil
import tarfile
from contextlib import suppress
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from conftest import shared_path
from makers import nextvlad
from nextvlad import checkpoint
from nextvlad.cli import main
from nextvlad.config import MixtureConfig, NeXtVLADConfig, StreamConfig
from nextvlad.data.batch import FrameBatch
from nextvlad.data.tfrecord import RecordWriter
from nextvlad.data.video_record import VideoRecord, serialize_video_record
from nextvlad.errors import CheckpointError, UsageError
from nextvlad.import_checkpoint import import_checkpoint
from nextvlad.models.inputs import read_whitening_factors
from nextvlad.models.mixture import Mixture
from nextvlad.recipes import RECIPES
from nextvlad.train import train
from originals import author_batch, pack, paddle_batch
from test_mixture import random_mixture
from test_nextvlad import compare_with_paddle
from test_tensorflow_files import HEADER, entry, save


@pytest.mark.parametrize("source", ["v1.5_train_dir", "v1.6_combined.pdparams", "v1.8_pickle.pdparams"])
def test_paddle_predictions_after_the_round_trip(golden: Path, tmp_path: Path, source: str) -> None:
    import_checkpoint(golden / "paddle" / source, tmp_path / "ours")
    model = checkpoint.load(tmp_path / "ours")
    with torch.no_grad():
        found = torch.sigmoid(model(paddle_batch(golden))).numpy()
    expected = np.load(golden / "paddle" / "forward.npz")["out/pred"]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("whitened", [True, False])
def test_author_predictions_after_the_round_trip(golden: Path, tmp_path: Path, whitened: bool) -> None:
    eigenvalues = shared_path("data/yt8m/eigenvals.npy") if whitened else None
    import_checkpoint(golden / "tensorflow" / "checkpoint", tmp_path / "ours", eigenvalues=eigenvalues)
    model = checkpoint.load(tmp_path / "ours")
    with torch.no_grad():
        found = torch.sigmoid(model(author_batch(golden))).numpy()
    key = "predictions" if whitened else "predictions_unscaled_input"
    expected = np.load(golden / "tensorflow" / "forward.npz")[key]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_the_command_line_tells_what_it_did(golden: Path, tmp_path: Path) -> None:
    done = nextvlad("import", golden / "paddle" / "v1.6_combined.pdparams", tmp_path / "ours")
    assert done.returncode == 0, done.stderr
    assert re.search(r"^hidden1_fc_weights +\d+x64  hidden\.weight$", done.stdout, re.MULTILINE)
    assert re.search(r"^eigen_param +1024  preprocessing of rgb$", done.stdout, re.MULTILINE)
    assert "42 variables mapped, 0 ignored" in done.stderr
    again = nextvlad("import", golden / "paddle" / "v1.6_combined.pdparams", tmp_path / "ours")
    assert again.returncode == 2
    assert "exists already" in again.stderr


def test_nothing_is_written_for_a_bad_source(golden: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        import_checkpoint(tmp_path / "nothing", tmp_path / "ours")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"\xff\xd8\xff")
    with pytest.raises(CheckpointError):
        import_checkpoint(tmp_path / "photos", tmp_path / "ours")
    cut = tmp_path / "cut.pdparams"
    cut.write_bytes((golden / "paddle" / "v1.6_combined.pdparams").read_bytes()[:-7])
    with pytest.raises(CheckpointError, match=r"cut\.pdparams"):
        import_checkpoint(cut, tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


def test_missing_and_left_over_variables_are_named(golden: Path, tmp_path: Path) -> None:
    folder = tmp_path / "paddle"
    shutil.copytree(golden / "paddle" / "v1.5_train_dir", folder)
    folder.chmod(0o755)
    shutil.copyfile(folder / "logits_clf_bias", folder / "stray_weights")
    with pytest.raises(CheckpointError, match="stray_weights"):
        import_checkpoint(folder, tmp_path / "ours")
    (folder / "stray_weights").unlink()
    (folder / "hidden1_fc_weights").unlink()
    with pytest.raises(CheckpointError, match="hidden1_fc_weights is missing"):
        import_checkpoint(folder, tmp_path / "ours")


def golden_records(golden: Path, path: Path, ids: list[int]) -> str:
    """Videos of Paddle's golden steps as a data set."""
    z = np.load(golden / "paddle" / "forward.npz")
    with RecordWriter(path) as writer:
        for i in ids:
            labels = np.flatnonzero(z["labels"][i] > 0)
            streams = {"rgb": z[f"rgb_{i}"], "audio": z[f"audio_{i}"]}
            writer.write(serialize_video_record(VideoRecord(f"v{i}", labels, streams, {})))
    return str(path)


def test_fine_tuning_goes_on_as_paddle_would(golden: Path, tmp_path: Path, capfd: Any) -> None:
    """A whole `train --init` of three steps, rate falling before the third: Paddle's losses and weights."""
    z = np.load(golden / "paddle" / "train3steps.npz")
    import_checkpoint(golden / "paddle" / "v1.6_combined.pdparams", tmp_path / "imported")
    batch = z["ids_per_step"].shape[1]
    recipe = RECIPES["yt8m_paddle"].config
    config = replace(
        recipe,
        # The rest of the model is the checkpoint's.
        model=replace(recipe.model, dropout=0.0, num_classes=50),
        data=replace(
            recipe.data,
            train=(golden_records(golden, tmp_path / "three", z["ids_per_step"].ravel().tolist()),),
            batch_size=batch,
            shuffle_buffer=1,
            workers=0,
        ),
        optim=replace(recipe.optim, decay_examples=2 * batch),
        epochs=1,
        log_every=1,
        threads=1,
    )
    train(config, tmp_path / "run", init=tmp_path / "imported")
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["lr"] for row in rows] == pytest.approx([float(z[f"step{i}/lr"][0]) for i in range(3)])
    losses = [float(z[f"step{i}/loss"][0]) for i in range(3)]
    assert [row["loss"] for row in rows] == pytest.approx(losses, rel=1e-4)
    compare_with_paddle(z, checkpoint.load(tmp_path / "run").state_dict())
    assert "rgb is used as stored" not in capfd.readouterr().err  # the whitening came with the checkpoint


def test_a_second_round_trip_changes_no_bit(golden: Path, tmp_path: Path) -> None:
    eigenvalues = shared_path("data/yt8m/eigenvals.npy")
    first = import_checkpoint(golden / "tensorflow" / "checkpoint", tmp_path / "a", eigenvalues=eigenvalues)
    checkpoint.save(tmp_path / "b", checkpoint.load(tmp_path / "a"))
    second = checkpoint.load(tmp_path / "b")
    assert second.config == first.config
    assert all(torch.equal(tensor, second.state_dict()[name]) for name, tensor in first.state_dict().items())
    with torch.no_grad():
        found = torch.sigmoid(second(author_batch(golden))).numpy()
    expected = np.load(golden / "tensorflow" / "forward.npz")["predictions"]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


# The mixture. No real checkpoint of it is at hand: these are written here, under the names that the author's
# code gives its variables.

MEMBER = NeXtVLADConfig(
    streams=(StreamConfig(name="rgb", size=8), StreamConfig(name="audio", size=4, clusters=2, groups=2)),
    num_classes=5,
    clusters=4,
    groups=4,
    hidden_size=8,
    gating_reduction=2,
)
MIXTURE = MixtureConfig(
    **{field.name: getattr(MEMBER, field.name) for field in fields(MEMBER) if field.name != "kind"},
    mixing_frames=300,
)
AUTHORS_LAYERS = {
    "expansion": "fully_connected",
    "attention": "fully_connected_1",
    "hidden": "hidden1",
    "gate.reduce": "gating_weights_1",
    "gate.expand": "gating_weights_2",
    "classifier": "fully_connected",
    "mixing": "mix_weights",
}
AUTHORS_NORMS = {
    "assignment_norm": "cluster_bn",
    "descriptor_norm": "vlad_bn",
    "hidden_norm": "hidden1_bn",
    "gate.norm": "gating_bn",
    "mixing_norm": "mix_weights_bn",
}
AUTHORS_STATISTICS = {
    "weight": "gamma",
    "bias": "beta",
    "running_mean": "moving_mean",
    "running_var": "moving_variance",
}


def author_name(name: str) -> str:
    """Our name of a tensor of the mixture -> the author's variable."""
    name = re.sub(r"^members\.(\d+)\.", r"branch_\1/", name)
    name = name.replace("branches.rgb.", "video_vlad/").replace("branches.audio.", "audio_vlad/")
    scope, _, rest = name.rpartition("/")
    layer, _, part = rest.rpartition(".")
    if layer in AUTHORS_NORMS:
        rest = f"{AUTHORS_NORMS[layer]}/{AUTHORS_STATISTICS[part]}"
    elif rest == "assignment.weight":
        rest = "cluster_weights"
    elif rest == "centers":
        rest = "cluster_weights2"
    elif layer.startswith("gate."):
        rest = AUTHORS_LAYERS[layer]
    elif layer == "hidden":
        rest = "hidden1_weights"
    else:
        rest = f"{AUTHORS_LAYERS[layer]}/{'weights' if part == 'weight' else 'biases'}"
    return f"tower/{scope}/{rest}" if scope else f"tower/{rest}"


def author_arrays(model: Mixture) -> dict[str, np.ndarray[Any, Any]]:
    arrays = {}
    for name, tensor in model.state_dict().items():
        if "preprocess" in name:
            continue
        array = tensor.numpy()
        if name.endswith("centers"):
            array = array.T[None]
        elif array.ndim == 2:
            array = array.T
        arrays[author_name(name)] = np.ascontiguousarray(array)
    return arrays


def save_tensorflow(folder: Path, arrays: dict[str, np.ndarray[Any, Any]]) -> Path:
    """In TensorFlow's format, with what training keeps beside the variables."""
    slots = {f"{name}/Adam": array * 0 for name, array in arrays.items() if "moving" not in name}
    scalars = {"beta1_power": np.float32(0.9), "beta2_power": np.float32(0.999), "global_step": np.int64(7)}
    everything = arrays | slots | {name: np.asarray(value) for name, value in scalars.items()}
    data, items = b"", [HEADER]
    for name in sorted(everything):
        code = 9 if name == "global_step" else 1
        items.append((name.encode(), entry(everything[name], len(data), code)))
        data += everything[name].tobytes()
    return save(folder, items, data)


@pytest.fixture
def mixture() -> Mixture:
    return random_mixture(MIXTURE)


def small_batch() -> FrameBatch:
    numbers = np.random.default_rng(0)
    videos = [
        {
            "rgb": numbers.integers(0, 256, (t, 8), np.uint8),
            "audio": numbers.integers(0, 256, (t, 4), np.uint8),
        }
        for t in (1, 7, 300)
    ]
    return pack(videos, np.zeros((3, 5), bool))


def test_mixture_of_the_author(tmp_path: Path, mixture: Mixture, capfd: Any) -> None:
    save_tensorflow(tmp_path / "theirs", author_arrays(mixture))
    np.save(tmp_path / "eigenvalues.npy", np.linspace(2, 1, 8))
    import_checkpoint(tmp_path / "theirs", tmp_path / "ours", eigenvalues=tmp_path / "eigenvalues.npy")
    model = checkpoint.load(tmp_path / "ours")
    told = capfd.readouterr()
    assert "tower/branch_2/audio_vlad/cluster_weights2" in told.out
    assert re.search(r"^tower/mix_weights/weights +12x3  mixing.weight$", told.out, re.MULTILINE)
    assert "ignored, optimizer state: beta1_power" in told.out
    assert "ignored, counter of steps: global_step" in told.out
    assert "129 variables mapped, 94 ignored. Mixture of 3; " in told.err
    streams = tuple(replace(s, clusters=s.clusters or 4, groups=s.groups or 4) for s in MIXTURE.streams)
    assert model.config == replace(MIXTURE, streams=streams)
    for name, tensor in mixture.state_dict().items():
        if "preprocess" not in name:
            assert torch.equal(tensor, model.state_dict()[name]), name
    mixture.preprocessing("rgb").undo_whitening(np.sqrt(np.linspace(2, 1, 8)) + 1e-4)
    with torch.no_grad():
        torch.testing.assert_close(model(small_batch()), mixture(small_batch()))


@pytest.mark.parametrize("scope", ["", "model/tower/"])
def test_other_scopes(tmp_path: Path, mixture: Mixture, scope: str) -> None:
    arrays = {scope + name.removeprefix("tower/"): value for name, value in author_arrays(mixture).items()}
    import_checkpoint(save_tensorflow(tmp_path / "theirs", arrays), tmp_path / "ours")
    assert isinstance(checkpoint.load(tmp_path / "ours"), Mixture)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tower/mix_weights/biases": None}, "variable tower/mix_weights/biases is missing"),
        ({"tower/mix_weights/weights": None}, "variable tower/mix_weights/weights is missing"),
        ({"tower/branch_1/hidden1_weights": None}, "variable tower/branch_1/hidden1_weights is missing"),
        ({"tower/branch_7/hidden1_weights": np.zeros((28, 8))}, "branch_3/.* is missing"),
        ({"tower/stray": np.zeros(3)}, r"1 variable of no NeXtVLAD: tower/stray\. Is it another model"),
        ({"tower/mix_weights/weights": np.zeros((12, 2))},
         r"tower/mix_weights/weights has shape \[12, 2\], wanted \[12, 3\]"),
        ({"tower/branch_2/video_vlad/cluster_weights": np.zeros((16, 12))},
         r"branch_2/video_vlad/cluster_weights has shape \[16, 12\], wanted \[16, 16\]"),
        ({"tower/branch_2/video_vlad/cluster_weights2": np.zeros((1, 4, 5))},
         r"branch_2/video_vlad/cluster_weights2 has shape \[1, 4, 5\], wanted \[1, 4, 4\]"),
        ({"tower/branch_0/video_vlad/cluster_weights2": np.zeros((2, 4, 4))}, r"wanted \[1, E/G, K\]"),
        ({"tower/branch_0/hidden1_weights": np.zeros(4)}, r"float32 \[4\]; wanted floats of 2 dimension"),
        ({"tower/branch_0/hidden1_weights": np.zeros((0, 8))}, r"float32 \[0, 8\]; wanted floats"),
        ({"tower/branch_0/fully_connected/biases": np.full(5, np.nan)}, "not finite: this training had div"),
        ({"tower/branch_0/gating_weights_1": np.zeros((8, 3))},
         r"branch_0/gating_weights_1 has shape \[8, 3\], wanted \[8, 4\]"),
        ({"tower/branch_0/video_vlad/fully_connected_1/weights": np.zeros((16, 3))},
         "its shapes are those of no NeXtVLAD: groups of stream rgb"),
    ],
)  # fmt: skip
def test_a_mixture_that_does_not_fit(
    tmp_path: Path, mixture: Mixture, change: dict[str, Any], message: str
) -> None:
    arrays = author_arrays(mixture)
    for name, value in change.items():
        if value is None:
            del arrays[name]
        else:
            arrays[name] = value.astype(np.float32)
    source = save_tensorflow(tmp_path / "theirs", arrays)
    with pytest.raises(CheckpointError, match=message):
        import_checkpoint(source, tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


def test_a_mixture_of_too_many(tmp_path: Path, mixture: Mixture) -> None:
    arrays = author_arrays(mixture)
    first = "tower/branch_0/"
    for name in [name for name in arrays if name.startswith(first)]:
        for branch in range(65):
            arrays[f"tower/branch_{branch}/{name.removeprefix(first)}"] = arrays[name]
    source = save_tensorflow(tmp_path / "theirs", arrays)
    with pytest.raises(
        CheckpointError, match=r"theirs.*no mixture of ours: num_members: got 65, wanted 1 to 64"
    ):
        import_checkpoint(source, tmp_path / "ours")


def test_eigenvalues_in_place_of_the_checkpoints_own(golden: Path, tmp_path: Path, capfd: Any) -> None:
    np.save(tmp_path / "ones.npy", np.ones(1024))
    source = golden / "paddle" / "v1.8_pickle.pdparams"
    model = import_checkpoint(source, tmp_path / "ours", eigenvalues=tmp_path / "ones.npy")
    torch.testing.assert_close(model.preprocessing("rgb").scale, torch.full((1024,), 4 / 255 * (1 + 1e-4)))
    assert re.search(r"ignored, .*ones\.npy given instead: eigen_param", capfd.readouterr().out)


# What is no checkpoint, through the command line: its message, its exit status, and nothing written.


class Malicious:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("executed",)


def bad_sources(folder: Path, golden: Path) -> dict[str, tuple[Path, int, str]]:
    """What -> (source, exit status, words of the message)."""
    stream = (golden / "paddle" / "v1.6_combined.pdparams").read_bytes()
    whole_pickle = (golden / "paddle" / "v1.8_pickle.pdparams").read_bytes()
    files = {
        "empty": b"",
        "text": b"not a model",
        "trailing": stream + bytes(9),
        "malicious.pdparams": pickle.dumps({"hidden1_fc_weights": Malicious()}, protocol=2),
        "bomb.pdparams": pickle.dumps({"a": [np.zeros(1000)] * 3}),
        "cut.pdparams": whole_pickle[:-1000],
        "other.pdparams": pickle.dumps({"conv1.weight": np.zeros((3, 3), np.float32)}, protocol=2),
    }
    for name, content in files.items():
        (folder / name).write_bytes(content)
    (folder / "photos").mkdir()
    (folder / "photos" / "cat.jpg").write_bytes(b"\xff\xd8\xff")
    (folder / "nothing in it").mkdir()
    archive, inside = io.BytesIO(), io.BytesIO(stream)
    with tarfile.open(fileobj=archive, mode="w:gz") as tar:
        header = tarfile.TarInfo("../../escaped")
        header.size = len(stream)
        tar.addfile(header, inside)
    (folder / "escaping.tar.gz").write_bytes(archive.getvalue())
    shutil.copytree(golden / "tensorflow" / "checkpoint", folder / "tf")
    (folder / "tf").chmod(0o755)
    data = folder / "tf" / "model.ckpt-3.data-00000-of-00001"
    data.chmod(0o644)
    os.truncate(data, 5_000_000)
    return {
        "missing": (folder / "missing", 2, "no such file or folder"),
        "empty": (folder / "empty", 1, "nothing at all"),
        "text": (folder / "text", 1, "no Paddle checkpoint: begins with"),
        "trailing": (folder / "trailing", 1, "trailing, byte"),
        "malicious": (folder / "malicious.pdparams", 1, "mkdir"),
        "bomb": (folder / "bomb.pdparams", 1, "bomb.pdparams"),
        "cut": (folder / "cut.pdparams", 1, "cut.pdparams"),
        "other": (folder / "other.pdparams", 1, "video_fc_expansion_w is missing"),
        "photos": (folder / "photos", 1, "cat.jpg"),
        "nothing in it": (folder / "nothing in it", 1, "no Paddle checkpoint"),
        "escaping": (folder / "escaping.tar.gz", 1, "leads out of the archive"),
        "cut TensorFlow": (folder / "tf", 1, "cut short"),
    }


def test_what_is_no_checkpoint(golden: Path, tmp_path: Path, monkeypatch: Any, capfd: Any) -> None:
    monkeypatch.chdir(tmp_path)
    for what, (source, status, words) in bad_sources(tmp_path, golden).items():
        with pytest.raises(SystemExit) as left:
            main(["import", str(source), str(tmp_path / "ours")])
        told = capfd.readouterr().err
        assert left.value.code == status, (what, told)
        assert words in told, what
        assert source.name in told, what
        assert not (tmp_path / "ours").exists(), what
    assert not (tmp_path / "executed").exists()
    assert not [path.name for path in tmp_path.iterdir() if ".incomplete" in path.name]
    assert nextvlad("import", tmp_path / "empty", tmp_path / "ours").returncode == 1


@pytest.mark.parametrize("kind", ["folder", "stream", "pickle", "tensorflow index", "tensorflow data"])
def test_cut_at_many_lengths(golden: Path, tmp_path: Path, mixture: Mixture, kind: str) -> None:
    if kind.startswith("tensorflow"):
        source = save_tensorflow(tmp_path / "theirs", author_arrays(mixture)).parent
        suffix = "index" if kind.endswith("index") else "data-00000-of-00001"
        path = source / f"model.ckpt-7.{suffix}"
    elif kind == "folder":
        source = tmp_path / "theirs"
        shutil.copytree(golden / "paddle" / "v1.5_train_dir", source)
        path = source / "logits_clf_weights"
        source.chmod(0o755)
        path.chmod(0o644)
    else:
        name = "v1.6_combined.pdparams" if kind == "stream" else "v1.8_pickle.pdparams"
        source = path = tmp_path / name
        path.write_bytes((golden / "paddle" / name).read_bytes())
    size = path.stat().st_size
    for length in [*sorted(np.random.default_rng(0).integers(0, size, 12).tolist(), reverse=True), 0]:
        os.truncate(path, length)
        with pytest.raises(CheckpointError, match=re.escape(path.name)):
            import_checkpoint(source, tmp_path / "ours")
        assert not (tmp_path / "ours").exists()


def pickled(folder: Path, golden: Path, **changed: np.ndarray[Any, Any]) -> Path:
    """A real pickle of Paddle with some variables replaced."""
    path = folder / "changed.pdparams"
    content = pickle.loads((golden / "paddle" / "v1.8_pickle.pdparams").read_bytes(), encoding="latin1")
    path.write_bytes(pickle.dumps(content | changed, protocol=2))
    return path


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("logits_clf_bias", np.full(50, 1e300), "logits_clf_bias holds values that are not finite"),
        ("batch_norm_4.w_2", np.full(64, -0.5, np.float32), "batch_norm_4.w_2 holds -0.5, wanted 0 or more"),
        ("eigen_param", np.full(1024, np.nan, np.float32), "eigen_param holds nan to nan"),
        (
            "eigen_param",
            np.zeros(1024, np.float32),
            "eigen_param holds 0 to 0, wanted finite numbers above 0",
        ),
        ("eigen_param", np.full(1024, 1e300), "eigen_param holds"),
    ],
)
def test_values_that_no_trained_model_has(
    golden: Path, tmp_path: Path, name: str, value: np.ndarray[Any, Any], message: str
) -> None:
    source = pickled(tmp_path, golden, **{name: value})
    with pytest.raises(CheckpointError, match=re.escape(message)):
        import_checkpoint(source, tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


def test_eigenvalues_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "eigenvals.npy"
    for values in (
        np.full(8, np.inf),
        np.full(8, 1e300),
        np.zeros(8),
        np.ones(8, complex),
        np.ones(7),
        np.arange(1, 9),
    ):
        np.save(path, values)
        with pytest.raises(UsageError, match=r"eigenvals\.npy"):
            read_whitening_factors(path, 8)
    whole = path.read_bytes()
    for place in range(6, len(whole)):
        path.write_bytes(whole[:place] + b"((" + whole[place + 2 :])
        with suppress(UsageError):
            read_whitening_factors(path, 7)
    header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000000,), }".ljust(117) + b"\n"
    path.write_bytes(b"\x93NUMPY\x01\x00v\x00" + header)
    with pytest.raises(UsageError, match=r"eigenvals\.npy: cannot be read as a .npy array"):
        read_whitening_factors(path, 8)


def test_a_device_and_an_enormous_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="/dev/zero: a device, wanted a file or folder"):
        import_checkpoint(Path("/dev/zero"), tmp_path / "ours")
    path = tmp_path / "sparse"
    path.touch()
    os.truncate(path, 1 << 36)
    with pytest.raises(CheckpointError, match="sparse: 68,719,476,736 bytes, more than any NeXtVLAD has"):
        import_checkpoint(path, tmp_path / "ours")
