"""The data inside the package: complete, in the wheel, and what scripts/make_demo_data.py makes."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import zipfile
from importlib.resources import as_file, files
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from nextvlad.data import usual_records
from nextvlad.data.sources import read
from nextvlad.data.video_record import VideoRecord
from nextvlad.data.vocabulary import Vocabulary

ROOT = Path(__file__).resolve().parents[1]
MADE = [f"{split}-{shard:04d}-of-0002.tfrecord" for split in ("train", "test") for shard in (0, 1)]
MADE.append("vocabulary.csv")


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_demo_data", ROOT / "scripts" / "make_demo_data.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def records_of(split: str) -> list[VideoRecord]:
    with as_file(files("nextvlad") / "demo_data") as folder:
        return list(read([f"{folder}/{split}-*.tfrecord"]))


@pytest.mark.parametrize(
    ("split", "a_speaker", "longest"),
    [("train", [30] * 9, 26), ("test", [31, 35, 88, 44, 29, 24, 40, 50, 29], 29)],
)
def test_the_published_split_is_whole(split: str, a_speaker: list[int], longest: int) -> None:
    records = records_of(split)
    assert sorted(r.video_id for r in records) == [f"{split}-{i:04d}" for i in range(sum(a_speaker))]
    assert np.bincount([int(label) for r in records for label in r.labels]).tolist() == a_speaker
    assert all(r.labels.shape == (1,) and list(r.streams) == ["lpc"] for r in records)
    frames = [r.streams["lpc"] for r in records]
    assert {(f.shape[1], f.dtype) for f in frames} == {(12, np.dtype(np.uint8))}
    assert (min(map(len, frames)), max(map(len, frames))) == (7, longest)


def test_every_shard_has_every_speaker() -> None:
    with as_file(files("nextvlad") / "demo_data") as folder:
        for shard in sorted(folder.glob("*.tfrecord")):
            assert {int(r.labels[0]) for r in read([shard])} == set(range(9))


def test_the_vocabulary_names_the_nine_speakers() -> None:
    with as_file(files("nextvlad") / "demo_data" / "vocabulary.csv") as path:
        assert Vocabulary.load(path).names == tuple(f"speaker {i}" for i in range(1, 10))


def test_the_data_is_small_and_says_where_it_is_from() -> None:
    folder = files("nextvlad") / "demo_data"
    assert sum(len(item.read_bytes()) for item in folder.iterdir()) < 400_000
    readme = (folder / "README.md").read_text(encoding="utf-8")
    for said in ("CC BY 4.0", "Kudo", "Toyama", "Shimbo", "10.24432/C5NS47"):
        assert said in readme


def test_the_script_makes_the_same_bytes(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if script.find_source() is None:
        pytest.skip("aeon is not installed: pip install --no-deps aeon==1.6.0")
    script.main([str(tmp_path)])
    for name in MADE:
        assert (tmp_path / name).read_bytes() == (files("nextvlad") / "demo_data" / name).read_bytes(), name
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(MADE)
    assert "119,532 values, 5 clipped" in capsys.readouterr().out


def test_the_quantiser_takes_the_nearest_level_and_clips(script: ModuleType) -> None:
    levels = script.dequantise(np.arange(256, dtype=np.uint8))
    values = np.linspace(-2.5, 2.5, 4001)
    nearest = np.abs(values[:, None] - levels).argmin(axis=1)
    chosen = script.quantise(values)
    np.testing.assert_allclose(np.abs(levels[chosen] - values), np.abs(levels[nearest] - values), atol=1e-12)
    assert script.quantise(levels).tolist() == list(range(256))


def test_a_ts_file_is_read_as_written(script: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "two.ts"
    path.write_text("#comment\n@dimensions 2\n@data\n1,2,3:4,5,6:9\n0.5:-0.5:1\n", encoding="utf-8")
    first, second = script.read_ts(path)
    assert first.frames.tolist() == [[1, 4], [2, 5], [3, 6]]
    assert (first.speaker, second.speaker, second.frames.shape) == (9, 1, (1, 2))


def test_without_a_source_the_script_says_what_to_install(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(script, "find_source", lambda: None)
    with pytest.raises(SystemExit):
        script.main([str(tmp_path)])
    assert "pip install --no-deps aeon" in capsys.readouterr().err


def test_the_wheel_carries_the_data_and_what_is_compiled(tmp_path: Path) -> None:
    source = tmp_path / "source"  # since building leaves things behind
    shutil.copytree(ROOT / "src", source / "src", ignore=shutil.ignore_patterns("*.egg-info", "*.so"))
    for name in ["pyproject.toml", "setup.py", "README.md", "LICENSE"]:
        shutil.copy(ROOT / name, source)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", str(tmp_path)]
    subprocess.run([*command, str(source)], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    inside = set(zipfile.ZipFile(wheel).namelist())
    wanted = {f"nextvlad/demo_data/{name}" for name in [*MADE, "README.md"]}
    assert wanted | {"nextvlad/py.typed", "nextvlad/report_page.css", "nextvlad/tag_report.js"} <= inside
    if usual_records.compiled is not None:
        assert any(name.startswith("nextvlad/data/_usual_records.") for name in inside)
