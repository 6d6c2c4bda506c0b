from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from makers import make_data, make_record, nextvlad
from nextvlad import checkpoint
from nextvlad.config import NeXtVLADConfig, StreamConfig
from nextvlad.data.loader import FrameLoader
from nextvlad.data.usual_layout import usual_layout
from nextvlad.data.video_record import VideoRecord, parse_video_record, serialize_video_record
from nextvlad.errors import CheckpointError, DataError
from nextvlad.evaluate import evaluate
from nextvlad.predict import predict
from nextvlad.provenance import (
    CONTEXT_KEY,
    Expected,
    Provenance,
    StreamProvenance,
    check_match,
    of_file,
    of_record,
)
from nextvlad.run_config import DataConfig, InferenceOptions, OptimConfig, TrainConfig
from nextvlad.train import train

RGB = StreamProvenance(
    extractor="efficientnet-lite0",
    weights_sha256="ab" * 32,
    preprocessing={"size": 224, "mean": [127.0, 127.0, 127.0], "order": "rgb"},
    rate_hz=1.0,
    size=12,
    pca_sha256=None,
    quantiser={"low": -2.0, "high": 2.0},
)
AUDIO = replace(RGB, extractor="log-mel", weights_sha256=None, preprocessing={"bands": 64}, size=6)
OURS = Provenance({"rgb": RGB, "audio": AUDIO})
OTHER = Provenance({"rgb": replace(RGB, weights_sha256="cd" * 32), "audio": AUDIO})
STREAMS = (StreamConfig(name="rgb", size=12), StreamConfig(name="audio", size=6))


def marked(provenance: Provenance | None) -> Callable[..., VideoRecord]:
    """`make_record` whose records say where their features come from."""

    def make(number: int, num_classes: int) -> VideoRecord:
        record = make_record(number, num_classes)
        if provenance:
            record.context[CONTEXT_KEY] = [provenance.token]
        return record

    return make


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Globs of data sets whose features are OURS, OTHER, or nobody knows whose."""
    folder = tmp_path_factory.mktemp("data")
    found = {}
    for name, provenance in (("ours", OURS), ("other", OTHER), ("unknown", None)):
        found[name] = make_data(folder / name, "part", num_videos=24, make=marked(provenance))
        if provenance:
            provenance.save(folder / name / "provenance.json")
    return found


def config(data: str, valid: str | None = None, **changes: Any) -> TrainConfig:
    return TrainConfig(
        model=NeXtVLADConfig(clusters=4, groups=2, hidden_size=8, gating_reduction=4),
        data=DataConfig(train=(data,), valid=(valid or data,), batch_size=8, workers=0, **changes),
        optim=OptimConfig(lr=1e-3),
        epochs=1,
        threads=1,
    )


@pytest.fixture(scope="module")
def runs(data: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Runs trained on each of the data sets but `other`."""
    folder = tmp_path_factory.mktemp("runs")
    for name in ("ours", "unknown"):
        train(config(data[name]), folder / name)
    return {name: folder / name for name in ("ours", "unknown")}


@pytest.mark.parametrize(
    "change",
    [
        {"extractor": "other"},
        {"weights_sha256": None},
        {"preprocessing": {"size": 256}},
        {"rate_hz": 2.0},
        {"size": 13},
        {"pca_sha256": "ef" * 32},
        {"quantiser": {"low": -1.0}},
    ],
)
def test_a_fingerprint_differs_where_any_field_does(change: dict[str, Any]) -> None:
    changed: StreamProvenance = replace(RGB, **change)
    assert changed.fingerprint != RGB.fingerprint
    with pytest.raises(DataError, match="in another way"):
        check_match(OURS, Provenance({"rgb": changed}), streams=["rgb"], wanted_by="the model", found_in="x")


def test_a_fingerprint_keeps_to_what_it_says() -> None:
    same = replace(RGB, preprocessing=dict(reversed(RGB.preprocessing.items())), rate_hz=1)
    assert same.fingerprint == RGB.fingerprint
    assert len(RGB.fingerprint) == 16


_TEXT = st.text(st.characters(codec="utf-8", exclude_characters=" ="), min_size=1, max_size=8).filter(
    lambda text: not any(letter.isspace() for letter in text)
)
_VALUES = st.dictionaries(_TEXT, st.one_of(_TEXT, st.integers(), st.lists(st.floats(-5, 5), max_size=3)))


@settings(deadline=None)
@given(
    st.dictionaries(
        _TEXT, st.builds(lambda name, values: replace(RGB, extractor=name, quantiser=values), _TEXT, _VALUES)
    )
)
def test_json_and_token_round_trip(streams: dict[str, StreamProvenance]) -> None:
    provenance = Provenance(streams)
    text = json.dumps(provenance.to_json())
    assert Provenance.from_json(json.loads(text), where="x") == provenance
    bare = Provenance.from_token(provenance.token)
    assert bare.streams == {name: stream.fingerprint for name, stream in streams.items()}
    assert bare.filled_from(provenance) == provenance
    check_match(bare, provenance, streams=streams, wanted_by="a", found_in="b")
    assert Provenance.from_json(bare.to_json(), where="x") == bare


def test_a_token_that_is_none_equals_nothing() -> None:
    for token in (b"\xff\xfe", b"hello", b"rgb", b"= =", b"rgb=0"):
        with pytest.raises(DataError, match="in another way"):
            check_match(OURS, Provenance.from_token(token), streams=["rgb"], wanted_by="a", found_in="b")


def test_a_changed_sidecar_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "provenance.json"
    OURS.save(path)
    text = path.read_text()
    assert Provenance.load(path) == OURS
    for wrong in (
        text.replace("lite0", "lite1"),
        text.replace('"version": 1', '"version": 2'),
        text.replace("nextvlad-features", "x"),
        text.replace('"rate_hz"', '"rate"'),
        text.replace('"streams"', '"stream"'),
        text[:-3],
        "[]",
        '{"format": "nextvlad-features", "version": 1, "streams": {"rgb": {"fingerprint": 3}}}',
    ):
        path.write_text(wrong)
        with pytest.raises(DataError, match=r"provenance\.json"):
            Provenance.load(path)
    assert Provenance.load(tmp_path / "none.json") is None


def test_a_mismatch_shows_both_sides_field_by_field() -> None:
    with pytest.raises(DataError) as caught:
        check_match(
            OURS, OTHER, streams=["rgb", "audio"], wanted_by="the model in run", found_in="a.tfrecord"
        )
    text = str(caught.value)
    assert text.startswith("a.tfrecord: its features were made in another way than those of the model in run")
    assert "* " in text
    assert "abababababab..." in text
    assert "cdcdcdcdcdcd..." in text
    assert "preprocessing.size" in text
    assert "log-mel" not in text
    assert text.count("efficientnet-lite0") == 2
    assert "--data.trust-features" in text
    marked = [line.split()[1] for line in text.splitlines() if line.startswith("  *")]
    assert marked == ["weights_sha256", "fingerprint"]


@pytest.mark.parametrize(
    ("wanted", "found", "reason"),
    [
        (OURS, None, "nothing says how its features were made"),
        (None, OURS, "made by `nextvlad extract`, and nothing says so"),
        (OURS, Provenance({"rgb": RGB}), "in another way"),  # no audio at all
        (Provenance({"rgb": RGB}), OTHER, "in another way"),
    ],
)
def test_unlike_sides_are_refused(wanted: Provenance | None, found: Provenance | None, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        check_match(wanted, found, streams=["rgb", "audio"], wanted_by="the model", found_in="a")


def test_like_sides_pass() -> None:
    for wanted, found, streams in (
        (None, None, ["rgb"]),
        (OURS, OURS, ["rgb", "audio"]),
        (OURS, OTHER, ["audio"]),
        (Provenance({"rgb": RGB}), OURS, ["rgb"]),
    ):
        check_match(wanted, found, streams=streams, wanted_by="a", found_in="b")


def test_a_record_with_it_goes_the_short_way() -> None:
    record = marked(OURS)(1, 5)
    payload = serialize_video_record(record)
    found = usual_layout(memoryview(payload))
    assert found is not None
    assert of_record(parse_video_record(payload).context) == OURS.token
    assert of_record(make_record(1, 5).context) == b"" == of_record({CONTEXT_KEY: [3]})


def test_a_shard_alone_knows_its_fingerprint(tmp_path: Path) -> None:
    alone = of_file(OURS.token, str(tmp_path / "a.tfrecord"))
    assert alone == Provenance({"audio": AUDIO.fingerprint, "rgb": RGB.fingerprint})
    with pytest.raises(DataError, match=r"not known \(no provenance.json beside it\)"):
        Expected(OTHER, ("rgb",), "the model").check(OURS.token, str(tmp_path / "a.tfrecord"))
    OTHER.save(tmp_path / "provenance.json")  # of other shards, which were there before
    assert of_file(OURS.token, str(tmp_path / "a.tfrecord")) == Provenance(
        {"rgb": RGB.fingerprint, "audio": AUDIO}
    )


@pytest.mark.parametrize("workers", [0, 1])
def test_every_record_is_looked_at(workers: int, tmp_path: Path) -> None:
    def mixed(number: int, num_classes: int) -> VideoRecord:
        return marked(OTHER if number == 5 else OURS)(number, num_classes)

    glob = make_data(tmp_path, "mixed", num_videos=10, num_shards=1, make=mixed)
    expected = Expected(OURS, ("rgb", "audio"), "the model")

    def loader(expected: Expected | None) -> FrameLoader:
        return FrameLoader(
            [glob],
            streams=STREAMS,
            num_classes=5,
            batch_size=2,
            workers=workers,
            skip_damaged=True,
            expected=expected,
        )

    with (
        loader(expected) as batches,
        pytest.raises(DataError, match="in another way than those of the model"),
    ):
        list(batches)
    for fits in (None, Expected(OURS, ("audio",), "the model")):
        with loader(fits) as batches:
            assert sum(batch.num_videos for batch in batches) == 10


def test_a_checkpoint_keeps_it(data: dict[str, str], runs: dict[str, Path]) -> None:
    assert checkpoint.load(runs["ours"]).provenance == OURS
    assert Provenance.load(runs["ours"] / "last" / "features.json") == OURS
    assert checkpoint.load(runs["unknown"]).provenance is None
    assert not (runs["unknown"] / "last" / "features.json").exists()


def test_a_damaged_features_file_is_the_checkpoints_fault(runs: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "features.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"features\.json"):
        checkpoint.read_provenance(tmp_path)


@pytest.mark.parametrize(("model", "features"), [("ours", "other"), ("ours", "unknown"), ("unknown", "ours")])
def test_model_and_features_that_do_not_belong_together(
    model: str, features: str, data: dict[str, str], runs: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=f"those of the model in .*{model}"):
        evaluate(runs[model], [data[features]])
    with pytest.raises(DataError, match=f"those of the model in .*{model}"):
        predict(runs[model], [data[features]], out=tmp_path / "p.jsonl")
    assert not list(tmp_path.iterdir())
    with pytest.raises(DataError, match=f"those of the model in .*{model}"):
        train(config(data[features]), tmp_path / "run", init=runs[model])
    trust = InferenceOptions(trust_features=True)
    assert evaluate(runs[model], [data[features]], trust)["num_videos"] == 24
    assert evaluate(runs[model], [data[model]])["num_videos"] == 24


@pytest.mark.parametrize(("one", "two"), [("ours", "other"), ("ours", "unknown"), ("unknown", "ours")])
def test_training_and_validation_data_of_one_kind(
    one: str, two: str, data: dict[str, str], tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=rf"(?s)part-0.tfrecord: .* those of .*{one}.part-0.tfrecord"):
        train(config(data[one], data[two]), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(DataError, match="those of"):
        train(replace(config(data[one]), data=DataConfig(train=(data[one], data[two]))), tmp_path / "run")


def test_trust_carries_the_provenance_on(data: dict[str, str], runs: dict[str, Path], tmp_path: Path) -> None:
    train(config(data["unknown"], trust_features=True), tmp_path / "a", init=runs["ours"])
    assert checkpoint.load(tmp_path / "a").provenance == OURS  # said to match
    train(config(data["other"], trust_features=True), tmp_path / "b", init=runs["ours"])
    assert checkpoint.load(tmp_path / "b").provenance == OTHER


def test_a_run_goes_on_with_its_own_features_only(data: dict[str, str], tmp_path: Path) -> None:
    first = config(data["ours"])
    train(replace(first, steps=1), tmp_path / "run")
    with pytest.raises(DataError, match="those of the model in"):
        train(config(data["other"]), tmp_path / "run", resume=True)
    train(first, tmp_path / "run", resume=True)
    assert checkpoint.load(tmp_path / "run").provenance == OURS


def test_the_command_line_spells_the_option_as_the_verb_does(
    data: dict[str, str], runs: dict[str, Path], tmp_path: Path
) -> None:
    done = nextvlad("evaluate", runs["unknown"], data["ours"])
    assert done.returncode == 1
    assert "say so with --trust-features." in done.stderr
    assert nextvlad("evaluate", runs["unknown"], data["ours"], "--trust-features").returncode == 0
