from __future__ import annotations

import csv
import json
import pickle
import pickletools
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from makers import make_data, make_record
from nextvlad import checkpoint
from nextvlad.config import NeXtVLADConfig, StreamConfig
from nextvlad.data import safe_pickle
from nextvlad.data.batch import collate
from nextvlad.data.sources import read
from nextvlad.data.tfrecord import RecordWriter
from nextvlad.data.video_record import VideoRecord, serialize_video_record
from nextvlad.data.vocabulary import Vocabulary
from nextvlad.errors import ConfigError, DataError, OutputError, RecordError, UsageError
from nextvlad.models import build_model
from nextvlad.predict import predict, predict_batch
from nextvlad.predictions import Prediction, write_predictions
from nextvlad.predictions.writers import ParquetWriter
from nextvlad.run_config import InferenceOptions

HERE = InferenceOptions(workers=0)
SUFFIXES = [".jsonl", ".csv", ".parquet", ".pkl"]
NAMES = Vocabulary(("cat, tame", 'the "dog"', "Glück", "鳥", "e"))
ROWS = [
    Prediction("v0", [2, 0], [0.75, 0.25]),
    Prediction('odd, "id"\n', [1, 4], [1.0, 1e-9]),
    Prediction("vidéo 3", [3, 0], [0.5, 0.1234567]),
]
Row = tuple[str, list[int], list[float]]


def small_model(seed: int = 0) -> Any:
    streams = (StreamConfig(name="rgb", size=12), StreamConfig(name="audio", size=6))
    config = NeXtVLADConfig(
        streams=streams, num_classes=5, clusters=4, groups=2, hidden_size=16, gating_reduction=4
    )
    torch.manual_seed(seed)
    return build_model(config).eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """named/ and plain/: one model, with and without class names; test-*.tfrecord: 23 videos."""
    folder = tmp_path_factory.mktemp("predict")
    checkpoint.save(folder / "named", small_model(), vocabulary=NAMES)
    checkpoint.save(folder / "plain", small_model())
    make_data(folder, "test", num_videos=23, num_shards=2)
    return folder


def load_rows(path: Path) -> list[Row]:
    match path.suffix:
        case ".jsonl":
            lines = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]
            return [(line["video_id"], line["labels"], line["scores"]) for line in lines]
        case ".csv":
            with path.open(newline="", encoding="utf-8") as file:
                header, *lines = list(csv.reader(file))
            assert header == ["VideoId", "LabelConfidencePairs"]
            pairs = [(name, text.split()) for name, text in lines]
            return [(name, [int(x) for x in p[::2]], [float(x) for x in p[1::2]]) for name, p in pairs]
        case ".parquet":
            parquet = pytest.importorskip("pyarrow.parquet")
            lines = parquet.read_table(path).to_pylist()
            return [(line["video_id"], line["labels"], line["scores"]) for line in lines]
        case _:
            return [(name, labels, scores) for name, scores, labels in pickle.loads(path.read_bytes())]


def names_in(path: Path) -> list[list[str]] | None:
    if path.suffix == ".jsonl":
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]
    else:
        lines = pytest.importorskip("pyarrow.parquet").read_table(path).to_pylist()
    return [line["names"] for line in lines] if "names" in lines[0] else None


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_format_holds_the_rows(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / "deep" / "er" / f"rows{suffix}"
    assert write_predictions(path, iter(ROWS), None) == 3
    for (name, labels, scores), row in zip(load_rows(path), ROWS, strict=True):
        assert (name, labels) == (row.video_id, row.labels)
        assert scores == pytest.approx(row.scores, abs=5e-7 if suffix == ".csv" else 1e-12, rel=1e-6)
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_no_videos_make_a_valid_file(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"rows{suffix}"
    assert write_predictions(path, iter([]), None) == 0
    assert load_rows(path) == []


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_names_where_known(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"rows{suffix}"
    write_predictions(path, iter(ROWS), NAMES)
    assert names_in(path) == [["Glück", "cat, tame"], ['the "dog"', "e"], ["鳥", "cat, tame"]]
    write_predictions(path, iter(ROWS), None)
    assert names_in(path) is None


def test_jsonl_is_as_documented(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    write_predictions(path, iter(ROWS), NAMES)
    first = path.read_text(encoding="utf-8").splitlines()[0]
    assert first == (
        '{"video_id": "v0", "labels": [2, 0], "names": ["Glück", "cat, tame"], "scores": [0.75, 0.25]}'
    )


def test_csv_is_kaggles(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    write_predictions(path, iter(ROWS[:2]), NAMES)
    assert path.read_bytes().decode() == (
        'VideoId,LabelConfidencePairs\nv0,2 0.750000 0 0.250000\n"odd, ""id""\n",1 1.000000 4 0.000000\n'
    )


def test_pickle_is_built_as_paddles(tmp_path: Path, golden: Path) -> None:
    path = tmp_path / "rows.pkl"
    write_predictions(path, iter(ROWS), None)
    theirs = safe_pickle.load(golden / "paddle" / "NEXTVLAD_infer_result.pkl")
    ours = pickle.loads(path.read_bytes())
    assert ours == safe_pickle.load(path)
    assert type(ours) is type(theirs) is list
    for result in (ours, theirs):
        for row in result:
            assert type(row) is tuple
            assert [type(item) for item in row[1:]] == [list, list]
            assert {type(score) for score in row[1]} == {float}
            assert {type(label) for label in row[2]} == {int}
            assert row[1] == sorted(row[1], reverse=True)
            assert isinstance(safe_pickle.as_text(row[0]), str)
    assert {type(row[0]) for row in ours} == {str}
    opcodes = list(pickletools.genops(path.read_bytes()))
    assert opcodes[0][1] == 2
    assert max(opcode.proto for opcode, _, _ in opcodes) <= 2
    assert not [opcode.name for opcode, _, _ in opcodes if opcode.name in ("GLOBAL", "REDUCE")]


def failing(error: BaseException, after: int = 2) -> Iterator[Prediction]:
    yield from ROWS[:after]
    raise error


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("error", [RecordError("bad"), KeyboardInterrupt(), ConnectionResetError("gone")])
def test_what_was_finished_is_kept(tmp_path: Path, capfd: Any, suffix: str, error: BaseException) -> None:
    path = tmp_path / f"rows{suffix}"
    path.write_bytes(b"of an earlier run")
    with pytest.raises(type(error)):
        write_predictions(path, failing(error), None)
    assert path.read_bytes() == b"of an earlier run"
    partial = tmp_path / f"rows{suffix}.partial"
    assert f"2 finished videos are kept in {partial}" in capfd.readouterr().err
    partial = partial.rename(tmp_path / f"kept{suffix}")
    assert [row[0] for row in load_rows(partial)] == [row.video_id for row in ROWS[:2]]


def test_nothing_is_kept_of_nothing(tmp_path: Path, capfd: Any) -> None:
    with pytest.raises(RecordError):
        write_predictions(tmp_path / "rows.jsonl", failing(RecordError("bad"), after=0), None)
    assert not list(tmp_path.iterdir())
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("count", [3, 30_000])
def test_a_full_disk(tmp_path: Path, suffix: str, count: int) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full")
    path = tmp_path / f"rows{suffix}"
    (tmp_path / f"rows{suffix}.partial").symlink_to("/dev/full")
    with pytest.raises(OutputError, match=r"rows.*cannot be written \(No space left.*after .* videos.*--out"):
        write_predictions(path, (ROWS[0] for _ in range(count)), NAMES)
    assert not list(tmp_path.iterdir())


def test_what_stands_in_the_way(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"x.txt: suffix '.txt'; wanted .jsonl, .csv"):
        write_predictions(tmp_path / "x.txt", iter(ROWS), None)
    with pytest.raises(UsageError, match=r"suffix '\(none\)'"):
        write_predictions(tmp_path / "x", iter(ROWS), None)
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(UsageError, match=r"folder.csv: is a folder"):
        write_predictions(tmp_path / "folder.csv", iter(ROWS), None)
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="a file is where a folder should be"):
        write_predictions(tmp_path / "file" / "x.csv", iter(ROWS), None)
    with pytest.raises(OutputError, match="cannot be written"):
        write_predictions(Path("/proc/nowhere/x.csv"), iter(ROWS), None)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_memory_does_not_grow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str) -> None:
    monkeypatch.setattr(ParquetWriter, "_ROWS_A_GROUP", 250)
    write_predictions(tmp_path / f"rows{suffix}", iter(ROWS), None)  # what is imported on the way

    def rows(count: int) -> Iterator[Prediction]:
        for index in range(count):
            yield Prediction(f"v{index}", list(range(20)), [index / (label + 1e4) for label in range(20)])

    peaks = []
    for count in (500, 3_000):
        tracemalloc.start()
        write_predictions(tmp_path / f"rows{suffix}", rows(count), None)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0] + 50_000  # the rows added take 3 MB


def by_hand(folder: Path, top_k: int) -> list[Row]:
    """The predictions the long way: read, collate, one forward pass, an explicit sort."""
    model = checkpoint.load(folder / "named")
    records = list(read(str(folder / "test-*.tfrecord")))
    batch = collate(records, streams=model.config.streams, num_classes=5)
    with torch.inference_mode():
        probabilities = torch.sigmoid(model(batch)).numpy()
    order = [sorted(range(5), key=lambda c, row=row: (-row[c], c))[:top_k] for row in probabilities]
    return [
        (record.video_id, classes, [float(row[c]) for c in classes])
        for record, classes, row in zip(records, order, probabilities, strict=True)
    ]


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(("batch_size", "workers"), [(1, 0), (7, 2), (256, 0)])
def test_predictions_are_those_by_hand(
    folder: Path, tmp_path: Path, suffix: str, batch_size: int, workers: int
) -> None:
    out = tmp_path / f"out{suffix}"
    count = predict(folder / "named", [str(folder / "test-*.tfrecord")],
                    InferenceOptions(batch_size=batch_size, workers=workers), out=out, top_k=3)  # fmt: skip
    assert count == 23
    got = load_rows(out)
    wanted = by_hand(folder, 3)
    if workers == 2:  # two readers take turns
        got, wanted = sorted(got), sorted(wanted)
    for (name, labels, scores), (its_name, its_labels, its_scores) in zip(got, wanted, strict=True):
        assert (name, labels) == (its_name, its_labels)
        np.testing.assert_allclose(scores, its_scores, atol=1e-6)


def test_which_names(folder: Path, tmp_path: Path) -> None:
    data = [str(folder / "test-0.tfrecord")]
    out = tmp_path / "out.jsonl"
    predict(folder / "named", data, HERE, out=out)
    assert {name for row in names_in(out) or [] for name in row} == set(NAMES.names)
    predict(folder / "plain", data, HERE, out=out)
    assert names_in(out) is None
    other = tmp_path / "other.csv"
    Vocabulary(("a", "b", "c", "d", "e")).save(other)
    for model in ("plain", "named"):
        predict(folder / model, data, HERE, out=out, vocabulary=other)
        for (_, labels, _), names in zip(load_rows(out), names_in(out) or [], strict=True):
            assert names == ["abcde"[label] for label in labels]
    Vocabulary(("a", "b")).save(other)
    with pytest.raises(ConfigError, match=r"other.csv: 2 classes, the model has 5"):
        predict(folder / "plain", data, HERE, out=out, vocabulary=other)


def test_top_k(folder: Path, tmp_path: Path) -> None:
    data, out = [str(folder / "test-0.tfrecord")], tmp_path / "out.jsonl"
    predict(folder / "plain", data, HERE, out=out)
    assert {len(labels) for _, labels, _ in load_rows(out)} == {5}  # all, as there are fewer than 20
    predict(folder / "plain", data, HERE, out=out, top_k=1)
    assert {len(labels) for _, labels, _ in load_rows(out)} == {1}
    for top_k in (0, -1, 6):
        with pytest.raises(UsageError, match=rf"--top-k: got {top_k}, wanted 1 to 5"):
            predict(folder / "plain", data, HERE, out=out, top_k=top_k)


def test_labels_are_not_needed_and_equal_scores_keep_class_order() -> None:
    model = small_model()
    torch.nn.init.zeros_(model.classifier.weight)
    model.classifier.bias.data = torch.tensor([0.0, 1.0, 0.0, 1.0, 0.0])
    records = [make_record(number, 5, labelled=False) for number in range(3)]
    batch = collate(records, streams=model.config.streams, num_classes=5)
    for row in predict_batch(model, batch, top_k=4):
        assert row.labels == [1, 3, 0, 2]


def test_a_model_that_gives_no_numbers(folder: Path, tmp_path: Path) -> None:
    model = small_model()
    model.classifier.bias.data[2] = float("nan")
    checkpoint.save(tmp_path / "broken", model)
    with pytest.raises(DataError, match=r"not finite for v0000, .*--precision fp32"):
        predict(tmp_path / "broken", [str(folder)], HERE, out=tmp_path / "out.csv")
    assert not (tmp_path / "out.csv").exists()


def test_half_precision_is_close(folder: Path, tmp_path: Path) -> None:
    data = [str(folder / "test-0.tfrecord")]
    for precision in ("fp32", "bf16"):
        predict(folder / "plain", data, replace(HERE, precision=precision), out=tmp_path / f"{precision}.pkl")
    for one, other in zip(load_rows(tmp_path / "fp32.pkl"), load_rows(tmp_path / "bf16.pkl"), strict=True):
        by_class = [dict(zip(*row[1:], strict=True)) for row in (one, other)]
        for label, score in by_class[0].items():
            assert by_class[1][label] == pytest.approx(score, abs=0.03)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_ids_that_are_not_text(folder: Path, tmp_path: Path, suffix: str) -> None:
    """Such bytes are read as \\xNN, which every format can hold."""
    payload = serialize_video_record(make_record(1, 5)).replace(b"v0001", b"v\xff\xfe01")
    with RecordWriter(tmp_path / "odd.tfrecord") as writer:
        writer.write(payload)
    out = tmp_path / f"out{suffix}"
    predict(folder / "plain", [str(tmp_path / "odd.tfrecord")], HERE, out=out)
    assert load_rows(out)[0][0] == r"v\xff\xfe01"


def test_damage_half_way(folder: Path, tmp_path: Path, capfd: Any) -> None:
    whole = (folder / "test-0.tfrecord").read_bytes()
    (tmp_path / "cut.tfrecord").write_bytes(whole[:-9])
    data, out = [str(tmp_path / "cut.tfrecord")], tmp_path / "out.jsonl"
    with pytest.raises(RecordError, match=r"cut\.tfrecord, byte"):
        predict(folder / "plain", data, replace(HERE, batch_size=1), out=out)
    assert not out.exists()
    assert "11 finished videos are kept" in capfd.readouterr().err
    assert predict(folder / "plain", data, replace(HERE, skip_damaged=True), out=out) == 11
    assert "Skipped 1 damaged record:" in capfd.readouterr().err


def test_only_the_first_frames_count(folder: Path, tmp_path: Path) -> None:
    """max_frames comes from how the checkpoint was trained, or from the call."""
    whole = make_record(5, 5)
    cut = VideoRecord(whole.video_id, whole.labels, {name: x[:1] for name, x in whole.streams.items()}, {})
    for name, record in (("whole", whole), ("cut", cut)):
        with RecordWriter(tmp_path / f"{name}.tfrecord") as writer:
            writer.write(serialize_video_record(record))
    for name, more in (("whole", {"max_frames": 1}), ("cut", {})):
        predict(
            folder / "plain",
            [str(tmp_path / f"{name}.tfrecord")],
            InferenceOptions(workers=0, **more),
            out=tmp_path / f"{name}.pkl",
        )
    assert load_rows(tmp_path / "whole.pkl") == load_rows(tmp_path / "cut.pkl")


def test_one_process_only(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(
        UsageError, match="predict runs in one process; start it without torchrun, on a share of the data"
    ):
        predict(folder / "plain", [str(folder)], out=tmp_path / "out.csv")


def test_labels_of_other_classes_do_not_matter(folder: Path, tmp_path: Path) -> None:
    data = make_data(tmp_path, "other", num_videos=6, num_classes=50)
    assert predict(folder / "plain", [data], HERE, out=tmp_path / "p.jsonl") == 6


def test_nothing_left_after_skipping_is_an_error(folder: Path, tmp_path: Path) -> None:
    data = make_data(tmp_path, "odd", num_videos=4, sizes={"rgb": 3, "audio": 6})
    with pytest.raises(DataError, match="every record was skipped"):
        predict(folder / "plain", [data], replace(HERE, skip_damaged=True), out=tmp_path / "p.jsonl")
    assert not (tmp_path / "p.jsonl").exists()
