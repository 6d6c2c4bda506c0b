from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import shared_path
from makers import nextvlad
from nextvlad import checkpoint
from nextvlad.errors import CheckpointError, UsageError
from nextvlad.import_checkpoint import import_checkpoint
from originals import author_batch, paddle_batch


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
    assert "branches.rgb.expansion.weight" in done.stdout
    assert "41 variables mapped" in done.stderr
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
