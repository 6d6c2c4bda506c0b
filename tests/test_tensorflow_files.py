"""The TensorFlow checkpoint reader: a real checkpoint, made-up ones, and every way to damage them."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path

import google_crc32c
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nextvlad.errors import CheckpointError, UsageError
from nextvlad.importers.tensorflow_files import (
    is_optimizer_state,
    is_tensorflow_checkpoint,
    read_tensorflow,
)

# The functions below write the format from its description, so that they can also write it wrongly.


def varint(value: int) -> bytes:
    out = b""
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


def crc(raw: bytes) -> int:
    value = google_crc32c.value(raw)
    return ((value >> 15 | value << 17) + 0xA282EAD8) & 0xFFFFFFFF


def field(number: int, value: int | bytes) -> bytes:
    if isinstance(value, bytes):
        return varint(number << 3 | 2) + varint(len(value)) + value
    return varint(number << 3) + varint(value)


def block(items: list[tuple[bytes, bytes]], *, compression: int = 0) -> bytes:
    out, before = b"", b""
    for key, value in items:
        shared = 0
        while shared < min(len(key), len(before)) and key[shared] == before[shared]:
            shared += 1
        out += varint(shared) + varint(len(key) - shared) + varint(len(value)) + key[shared:] + value
        before = key
    out += bytes(4) + (1).to_bytes(4, "little") + bytes([compression])
    return out + crc(out).to_bytes(4, "little")


def table(items: list[tuple[bytes, bytes]], *, compression: int = 0) -> bytes:
    data = block(items, compression=compression)
    meta = block([])
    index = block([(b"z", varint(0) + varint(len(data) - 5))])
    handles = varint(len(data)) + varint(len(meta) - 5)
    handles += varint(len(data) + len(meta)) + varint(len(index) - 5)
    return data + meta + index + handles.ljust(40, b"\0") + bytes.fromhex("57fb808b247547db")


def entry(array: np.ndarray, offset: int, dtype_code: int = 1, extra: bytes = b"", shard: int = 0) -> bytes:
    shape = b"".join(field(2, field(1, size)) for size in array.shape)
    raw = array.tobytes()
    out = field(1, dtype_code) + field(2, shape) + field(3, shard) + field(4, offset) + field(5, len(raw))
    return out + b"\x35" + crc(raw).to_bytes(4, "little") + extra


HEADER = (b"", field(1, 1) + field(3, field(1, 1)))
WEIGHTS = np.arange(6, dtype=np.float32).reshape(2, 3)


def save(folder: Path, items: list[tuple[bytes, bytes]], data: bytes, **options: int) -> Path:
    folder.mkdir(exist_ok=True)
    prefix = folder / "model.ckpt-7"
    (folder / "model.ckpt-7.index").write_bytes(table(items, **options))
    (folder / "model.ckpt-7.data-00000-of-00001").write_bytes(data)
    return prefix


def save_good(folder: Path) -> Path:
    steps = np.array(7, np.int64)
    items = [HEADER, (b"a/steps", entry(steps, 24, 9)), (b"a/weights", entry(WEIGHTS, 0))]
    return save(folder, items, WEIGHTS.tobytes() + steps.tobytes())


def test_real_checkpoint_by_folder_prefix_and_file(golden: Path) -> None:
    folder = golden / "tensorflow/checkpoint"
    tensors = read_tensorflow(folder)
    assert len(tensors) == 96
    assert list(tensors) == sorted(tensors)
    model = {name: array for name, array in tensors.items() if not is_optimizer_state(name)}
    assert len(model) == 42
    assert model["tower/video_VLAD/cluster_weights2"].shape == (1, 256, 16)
    assert model["tower/audio_VLAD/cluster_weights2"].shape == (1, 64, 8)
    assert model["tower/hidden1_weights"].shape == (4608, 64)
    assert model["tower/fully_connected/weights"].shape == (64, 50)
    assert {array.dtype for array in model.values()} == {np.dtype("f4"), np.dtype("i4")}
    assert all(array.flags.writeable and array.flags.aligned for array in model.values())
    for source in ("model.ckpt-3", "model.ckpt-3.index", "model.ckpt-3.data-00000-of-00001"):
        again = read_tensorflow(folder / source, keep=lambda name: not is_optimizer_state(name))
        assert again.keys() == model.keys()
        assert all(np.array_equal(again[name], model[name]) for name in model)


def test_real_checkpoint_with_a_flipped_byte_names_the_variable(golden: Path, tmp_path: Path) -> None:
    for source in (golden / "tensorflow/checkpoint").iterdir():
        shutil.copy(source, tmp_path)
        (tmp_path / source.name).chmod(0o644)
    data = tmp_path / "model.ckpt-3.data-00000-of-00001"
    with data.open("r+b") as file:
        file.seek(5_000_000)
        byte = file.read(1)[0]
        file.seek(5_000_000)
        file.write(bytes([byte ^ 1]))
    with pytest.raises(
        CheckpointError, match=r"byte \d+: variable tower/\S+: CRC [0-9a-f]{8}, the index says"
    ):
        read_tensorflow(tmp_path)


def test_optimizer_state_is_told_apart() -> None:
    for name in ("w/Adam", "w/Adam_1", "beta1_power", "tower/beta2_power_1", "w/Momentum"):
        assert is_optimizer_state(name)
    for name in ("w", "global_step", "Adam_layer/w", "cluster_bn/beta"):
        assert not is_optimizer_state(name)


def test_made_up_checkpoint_reads(tmp_path: Path) -> None:
    prefix = save_good(tmp_path)
    tensors = read_tensorflow(prefix)
    assert np.array_equal(tensors["a/weights"], WEIGHTS)
    assert tensors["a/steps"] == 7
    assert tensors["a/steps"].shape == ()
    assert list(read_tensorflow(tmp_path, keep=lambda name: "steps" in name)) == ["a/steps"]
    assert is_tensorflow_checkpoint(tmp_path)
    assert is_tensorflow_checkpoint(prefix)
    assert not is_tensorflow_checkpoint(tmp_path / "other")


def test_two_data_files(tmp_path: Path) -> None:
    header = (b"", field(1, 2))
    items = [header, (b"a", entry(WEIGHTS, 0)), (b"b", entry(WEIGHTS + 1, 4, shard=1))]
    (tmp_path / "m.index").write_bytes(table(items))
    (tmp_path / "m.data-00000-of-00002").write_bytes(WEIGHTS.tobytes())
    with pytest.raises(CheckpointError, match=r"m.data-00001-of-00002: not there, but the index says 1 var"):
        read_tensorflow(tmp_path)
    (tmp_path / "m.data-00001-of-00002").write_bytes(bytes(4) + (WEIGHTS + 1).tobytes())
    assert np.array_equal(read_tensorflow(tmp_path)["b"], WEIGHTS + 1)


def test_folder_says_which_checkpoint(tmp_path: Path) -> None:
    save_good(tmp_path)
    state = tmp_path / "checkpoint"
    state.write_text('model_checkpoint_path: "/trained/elsewhere/model.ckpt-7"\n')
    assert "a/steps" in read_tensorflow(tmp_path)
    state.write_text('all_model_checkpoint_paths: "model.ckpt-7"\n')
    with pytest.raises(CheckpointError, match="no line model_checkpoint_path"):
        read_tensorflow(tmp_path)
    state.write_text('model_checkpoint_path: "model.ckpt-8"\n')
    with pytest.raises(CheckpointError, match=r"names model.ckpt-8, but .* it holds model.ckpt-7.index"):
        read_tensorflow(tmp_path)
    state.unlink()
    shutil.copy(tmp_path / "model.ckpt-7.index", tmp_path / "model.ckpt-9.index")
    with pytest.raises(CheckpointError, match="2 checkpoints"):
        read_tensorflow(tmp_path)


def test_what_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such checkpoint"):
        read_tensorflow(tmp_path / "nothing")
    with pytest.raises(CheckpointError, match=r"no TensorFlow checkpoint: no .index file among no files"):
        read_tensorflow(tmp_path)
    (tmp_path / "model.ckpt").write_bytes(b"old")
    with pytest.raises(CheckpointError, match=r"before TensorFlow 0\.12"):
        read_tensorflow(tmp_path / "model.ckpt")
    (tmp_path / "model.ckpt.index").write_bytes(b"hello")
    with pytest.raises(CheckpointError, match="ends in 68656c6c6f"):
        read_tensorflow(tmp_path)


@pytest.mark.parametrize(
    ("items", "options", "message"),
    [
        ([], {}, "without TensorFlow's header"),
        ([(b"", field(2, 1) + field(1, 1))], {}, "big-endian"),
        ([(b"", b"")], {}, "0 data files"),
        ([(b"", b"\xff")], {}, "damaged header: the bytes end inside a number"),
        ([HEADER], {"compression": 1}, r"compressed by method 1 \(1 is Snappy\)"),
        ([HEADER, (b"w", entry(WEIGHTS, 0, extra=field(7, b"")))], {}, "variable w: saved in slices"),
        ([HEADER, (b"w", entry(WEIGHTS, 0, 7))], {}, "variable w has TensorFlow's data type 7"),
        ([HEADER, (b"w", entry(WEIGHTS, 0, 2))], {}, "variable w: 24 bytes .* wanted 48 bytes"),
        ([HEADER, (b"w", entry(WEIGHTS, 9))], {}, "byte 9: variable w needs 24 bytes, .* byte 24"),
        ([HEADER, (b"w", entry(WEIGHTS, 0, shard=1))], {}, "in data file 1 of 1"),
        ([HEADER, (b"w", entry(WEIGHTS, 0)), (b"x", entry(WEIGHTS, 0))], {}, "variable x overlaps another"),
        ([HEADER, (b"w", b""), (b"w", b"")], {}, "lists b'w' twice"),
        ([HEADER, (b"w", field(1, 1) + field(2, field(3, 1)))], {}, "variable w: has no shape"),
        ([HEADER, (b"w", field(1, 1) + field(2, field(2, field(1, 1 << 50))))], {}, "has the shape"),
        ([HEADER, (b"w", field(1, b"x"))], {}, "holds bytes where a number"),
        ([HEADER, (b"w", field(2, 1))], {}, "holds a number where bytes"),
        ([HEADER, (b"w", b"\x0b")], {}, "unknown wire type 3"),
    ],
)
def test_refusals(
    tmp_path: Path, items: list[tuple[bytes, bytes]], options: dict[str, int], message: str
) -> None:
    prefix = save(tmp_path, items, WEIGHTS.tobytes(), **options)
    with pytest.raises(CheckpointError, match=message):
        read_tensorflow(prefix)


def test_object_graph_is_left_out(tmp_path: Path) -> None:
    items = [HEADER, (b"_CHECKPOINTABLE_OBJECT_GRAPH", field(1, 7)), (b"w", entry(WEIGHTS, 0))]
    assert list(read_tensorflow(save(tmp_path, items, WEIGHTS.tobytes()))) == ["w"]


@pytest.mark.parametrize("suffix", ["index", "data-00000-of-00001"])
def test_cut_anywhere(tmp_path: Path, suffix: str) -> None:
    prefix = save_good(tmp_path)
    path = tmp_path / f"model.ckpt-7.{suffix}"
    whole = path.read_bytes()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match=path.name):
            read_tensorflow(prefix)


@pytest.mark.parametrize("suffix", ["index", "data-00000-of-00001"])
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_flipped_bytes(tmp_path: Path, suffix: str, data: st.DataObject) -> None:
    prefix = save_good(tmp_path)
    path = tmp_path / f"model.ckpt-7.{suffix}"
    raw = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(raw)
    try:
        tensors = read_tensorflow(prefix)
    except CheckpointError:
        pass
    else:  # a byte nobody looks at, or two flips that undo each other: then the values are right
        assert np.array_equal(tensors["a/weights"], WEIGHTS)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(value=st.binary(max_size=60), header=st.one_of(st.just(HEADER[1]), st.binary(max_size=20)))
def test_entries_of_any_bytes(tmp_path: Path, value: bytes, header: bytes) -> None:
    prefix = save(tmp_path, [(b"", header), (b"w", value)], WEIGHTS.tobytes())
    with contextlib.suppress(CheckpointError):
        read_tensorflow(prefix)
