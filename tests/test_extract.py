"""`nextvlad extract` on real files that the tests encode."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("av")

from makers import nextvlad
from nextvlad.data.sources import read
from nextvlad.data.vocabulary import Vocabulary
from nextvlad.errors import DataError
from nextvlad.extract import LabelOptions, extract, provenance_of
from nextvlad.extract_splits import SplitOptions
from nextvlad.extract_store import Outcome
from nextvlad.provenance import Provenance, of_record
from nextvlad.video.extractor import Extractor, ExtractorOptions
from videos import encode, tone

SOUND = ExtractorOptions(visual=None)
"""Only the log-mel of sound, which takes no backbone and no time."""
ALL_IN_TRAIN = SplitOptions((1.0, 0.0, 0.0))


def clip(path: Path, seconds: int = 2, hz: float = 440.0, **more: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return encode(
        path,
        frames=seconds * 4,
        fps=4,
        sound=tone(seconds, hz=hz, rate_hz=16_000),
        sound_rate_hz=16_000,
        **more,
    )


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight clips in folders of two labels, and three files that cannot be read."""
    folder = tmp_path_factory.mktemp("clips")
    for number in range(4):
        clip(folder / "dog" / f"d{number}.mp4", 1 + number, 300.0 + 100 * number)
        clip(folder / "cat" / f"c{number}.mkv", 2, 900.0 + 100 * number)
    (folder / "cat" / "empty.mp4").touch()
    (folder / "dog" / "text.avi").write_text("no video at all\n" * 100)
    (folder / "dog" / "cut.mp4").write_bytes((folder / "dog" / "d3.mp4").read_bytes()[:900])
    return folder


def run(clips: Path | str, out: Path, options: ExtractorOptions = SOUND, **more: Any) -> dict[str, Outcome]:
    settings = {"labels": LabelOptions(from_folders=True), "splits": ALL_IN_TRAIN, "workers": 0, **more}
    return extract([str(clips)], out, options, **settings)


def contents(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(out.glob("t*.tfrecord"))}


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_the_records_are_those_of_the_extractor(
    clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ExtractorOptions(batch_size=5)
    outcomes = run(clips, tmp_path / "f", options, videos_per_shard=3)
    assert sorted(contents(tmp_path / "f")) == [f"train-0000{number}.tfrecord" for number in range(4)]
    records = {record.video_id: record for record in read(str(tmp_path / "f"))}
    names = Vocabulary.load(tmp_path / "f" / "vocabulary.csv").names
    assert names == ("cat", "dog")
    extractor = Extractor(options)
    assert records.keys() == {f"{letter}{number}" for letter in "cd" for number in range(4)}
    provenance = provenance_of(extractor)
    for video_id, record in records.items():
        folder = "dog" if video_id[0] == "d" else "cat"
        assert [names[label] for label in record.labels] == [folder]
        path = next((clips / folder).glob(f"{video_id}.*"))
        alone = extractor.extract(path).streams
        assert record.streams.keys() == alone.keys() == {"rgb", "audio"}
        assert record.streams["audio"].tobytes() == alone["audio"].tobytes()
        # A backbone rounds a batch of another size otherwise; a byte may fall on the other side.
        difference = record.streams["rgb"].astype(int) - alone["rgb"]
        assert record.streams["rgb"].shape == alone["rgb"].shape == (outcomes[video_id].num_rows["rgb"], 1280)
        assert np.abs(difference).max() <= 1
        assert of_record(record.context) == provenance.token
    assert Provenance.load(tmp_path / "f" / "provenance.json") == provenance
    failed = {name for name, outcome in outcomes.items() if outcome.failure}
    assert failed == {"empty", "text", "cut"}
    assert {row["video_id"] for row in table(tmp_path / "f" / "failures.csv")} == failed
    rows = {row["video_id"]: row for row in table(tmp_path / "f" / "index.csv")}
    assert len(rows) == 11
    assert rows["d2"]["status"] == "done"
    assert rows["d2"]["labels"] == "dog"
    assert rows["empty"]["status"] == "failed"
    assert "empty" in rows["empty"]["message"]
    assert not (tmp_path / "f" / ".nextvlad-extract").exists()
    text = capsys.readouterr().out
    assert "videos   8 done" in text
    assert "failed   3" in text


def test_on_the_command_line_with_processes(clips: Path, tmp_path: Path) -> None:
    arguments = ["--labels-from-folders", "--visual", "none", "--fractions", 1, 0, 0, "--workers", 2]
    done = nextvlad("extract", clips, "--out", tmp_path / "f", *arguments)
    assert done.returncode == 0, done.stderr
    run(clips, tmp_path / "same")
    assert contents(tmp_path / "f") == contents(tmp_path / "same")  # whatever the order they were finished in
    checked = nextvlad("check", tmp_path / "f")
    assert checked.returncode == 0, checked.stderr


def test_nothing_that_can_be_read(clips: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"not one of 1 clips could be read; failures\.csv"):
        extract([str(clips / "cat" / "empty.mp4")], tmp_path / "f", SOUND, workers=0)
    assert [row["video_id"] for row in table(tmp_path / "f" / "failures.csv")] == ["empty"]
    assert not contents(tmp_path / "f")
