"""The Paddle checkpoint readers: three real formats of the same weights, made-up ones, and damage."""

from __future__ import annotations

import contextlib
import gzip
import io
import pickle
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nextvlad.errors import CheckpointError, UsageError
from nextvlad.importers.paddle_files import read_paddle
from nextvlad.importers.paddle_names import SHAPES, known_lists, why_ignored

FIXTURE_REUSED = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def varint(value: int) -> bytes:
    out = b""
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


def tensor_bytes(array: np.ndarray, *, code: int = 5, levels: tuple[bytes, ...] = ()) -> bytes:
    """A LoDTensor, written from the description of the format."""
    description = b"\x08" + varint(code) + b"".join(b"\x10" + varint(size) for size in array.shape)
    out = bytes(4) + len(levels).to_bytes(8, "little")
    out += b"".join(len(level).to_bytes(8, "little") + level for level in levels)
    return out + bytes(4) + len(description).to_bytes(4, "little") + description + array.tobytes()


def small_weights() -> dict[str, np.ndarray]:
    """A whole NeXtVLAD of a few values a variable: G=2, K=3, H=4, R=2, C=5."""
    sizes = {"H": 4, "R": 2, "C": 5, "KE/G": 3 * 4 + 3 * 2}
    for letter, depth in (("v", 4), ("a", 2)):
        expanded = 2 * depth
        sizes |= {"D" + letter: depth, "E" + letter: expanded, "G" + letter: 2, "K" + letter: 3}
        sizes |= {"GK" + letter: 6, "E/G" + letter: expanded // 2, "KE/G" + letter: 3 * expanded // 2}
    rng = np.random.default_rng(0)
    return {
        name: rng.normal(size=[sizes[size] for size in shape]).astype(np.float32)
        for name, shape in SHAPES.items()
    }


def with_training_state(weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What `save_persistables` adds."""
    out = dict(weights)
    for name, array in weights.items():
        if not name.endswith((".w_1", ".w_2")) and name != "eigen_param":
            out |= {f"{name}_moment{i}_0": array * 0 for i in (1, 2)}
            out |= {f"{name}_beta{i}_pow_acc_0": np.ones(1, np.float32) for i in (1, 2)}
    return out | {
        "@LR_DECAY_COUNTER@": np.ones(1, np.float32),
        "learning_rate": np.ones(1, np.float32),
    }


def stream_bytes(weights: dict[str, np.ndarray]) -> bytes:
    return b"".join(tensor_bytes(weights[name]) for name in sorted(weights))


def write_folder(folder: Path, weights: dict[str, np.ndarray]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in weights.items():
        (folder / name).write_bytes(tensor_bytes(array))
    return folder


def assert_same(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> None:
    assert list(found) == sorted(wanted)
    for name, array in wanted.items():
        assert found[name].dtype == array.dtype
        assert found[name].shape == array.shape
        assert np.array_equal(found[name], array), name
        assert found[name].flags.writeable


@pytest.fixture(scope="module")
def weights() -> dict[str, np.ndarray]:
    return small_weights()


def test_the_three_real_formats_hold_the_same_weights(golden: Path) -> None:
    folder = read_paddle(golden / "paddle/v1.5_train_dir")
    stream = read_paddle(golden / "paddle/v1.6_combined.pdparams")
    pickled = read_paddle(golden / "paddle/v1.8_pickle.pdparams")
    assert (folder.kind, stream.kind, pickled.kind) == ("folder", "stream", "pickle")
    assert len(folder.tensors) == 42
    assert folder.tensors.keys() == SHAPES.keys()
    assert_same(stream.tensors, folder.tensors)
    assert_same(pickled.tensors, folder.tensors)
    assert len(folder.ignored) == 115
    assert not stream.ignored
    assert folder.ignored["learning_rate"] == "learning-rate schedule"
    assert folder.ignored["mean_0.tmp_0"] == "an intermediate result"
    assert folder.ignored["audio_fc_expansion_b_moment1_0"] == "optimizer state"
    assert folder.tensors["hidden1_fc_weights"].shape == (4608, 64)
    assert folder.tensors["video_cluster_weights2"].shape == (16, 256)


def test_a_real_folder_in_an_archive(golden: Path, tmp_path: Path) -> None:
    path = tmp_path / "nextvlad_youtube8m.tar.gz"
    with tarfile.open(path, "w:gz", compresslevel=1) as archive:
        archive.add(golden / "paddle/v1.5_train_dir", "nextvlad_youtube8m")
    plain = read_paddle(golden / "paddle/v1.5_train_dir")
    found = read_paddle(path)
    assert found.kind == "folder"
    assert_same(found.tensors, plain.tensors)
    assert found.ignored == plain.ignored


def test_folder(tmp_path: Path, weights: dict[str, np.ndarray]) -> None:
    folder = write_folder(tmp_path / "run", with_training_state(weights))
    (folder / "train_label").write_bytes(b"never looked at")
    (folder / ".DS_Store").write_bytes(b"nor this")
    (folder / "my_own").write_bytes(tensor_bytes(np.ones(2, np.float64), code=6, levels=(b"12345678",)))
    for source in (folder, tmp_path):
        found = read_paddle(source)
        assert found.kind == "folder"
        assert np.array_equal(found.tensors.pop("my_own"), [1.0, 1.0])
        assert_same(found.tensors, weights)
        assert "train_label" in found.ignored


@pytest.mark.parametrize("left_out", [(), ("eigen_param",)])
@pytest.mark.parametrize("trained", [False, True])
def test_stream(
    tmp_path: Path, weights: dict[str, np.ndarray], left_out: tuple[str, ...], trained: bool
) -> None:
    kept = {name: array for name, array in weights.items() if name not in left_out}
    path = tmp_path / "final.pdparams"
    path.write_bytes(stream_bytes(with_training_state(kept) if trained else kept))
    found = read_paddle(path)
    assert found.kind == "stream"
    assert_same(found.tensors, kept)
    assert bool(found.ignored) == trained


def test_known_lists_differ_in_length() -> None:
    lists = list(known_lists())
    assert {len(names) for names in lists} >= {42, 41, 160, 159}
    assert all(len(names) == len(set(names)) for names in lists)
    assert all(name in SHAPES or why_ignored(name) for names in lists for name in names)


def as_pickled_by(writer: str, weights: dict[str, np.ndarray]) -> bytes:
    match writer:
        case "paddle 2":
            named = {name: array for name, array in weights.items()}
            named["StructuredToParameterName@@"] = {"fc": "fc_0.w_0"}
            return pickle.dumps(named, 4)
        case "tuples":  # how Paddle 2 writes a tensor outside a state dictionary
            return pickle.dumps({name: (name, array) for name, array in weights.items()}, 2)
        case "numpy 2":
            raw = pickle.dumps(weights, 2)
            return raw.replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")
        case _:
            return pickle.dumps(weights, int(writer))


@pytest.mark.parametrize("writer", ["1", "2", "3", "4", "5", "paddle 2", "tuples", "numpy 2"])
def test_pickle(tmp_path: Path, weights: dict[str, np.ndarray], writer: str) -> None:
    path = tmp_path / "final.pdparams"
    path.write_bytes(as_pickled_by(writer, weights))
    found = read_paddle(path)
    assert found.kind == "pickle"
    assert_same(found.tensors, weights)
    assert list(found.ignored) == (["StructuredToParameterName@@"] if writer == "paddle 2" else [])


def test_pickle_of_python_2(tmp_path: Path) -> None:
    """`cPickle.dumps({'w': np.float32([1, 2])}, 2)` of Python 2, byte for byte."""
    raw = (
        b"\x80\x02}q\x01U\x01wcnumpy.core.multiarray\n_reconstruct\nq\x02cnumpy\nndarray\nq\x03K\x00\x85U\x01b\x87R"
        b"q\x04(K\x01K\x02\x85cnumpy\ndtype\nq\x05U\x02f4K\x00K\x01\x87Rq\x06(K\x03U\x01<NNNJ\xff\xff\xff\xffJ"
        b"\xff\xff\xff\xffK\x00tb\x89U\x08\x00\x00\x80?\x00\x00\x00@tbs."
    )
    path = tmp_path / "final.pdparams"
    path.write_bytes(raw)
    assert read_paddle(path).tensors["w"].tolist() == [1.0, 2.0]


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz", ".tgz"])
def test_archive_of_one_file_beside_others(
    tmp_path: Path, weights: dict[str, np.ndarray], suffix: str
) -> None:
    path = tmp_path / f"checkpoint{suffix}"
    with tarfile.open(path, "w" if suffix == ".tar" else "w:gz") as archive:
        for name, raw in {
            "./model/final.pdopt": b"state",
            "./model/._final.pdparams": b"a shadow file",
            "./model/final.pdparams": pickle.dumps(weights, 2),
            "./model/README": b"text",
        }.items():
            member = tarfile.TarInfo(name)
            member.size = len(raw)
            archive.addfile(member, io.BytesIO(raw))
    found = read_paddle(path)
    assert_same(found.tensors, weights)
    assert found.ignored["final.pdopt"] == "no parameters"


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("folder", ["run", "a" * 60 + "/" + "b" * 60, "mod\u00e8le " + "c" * 60])
def test_archive_formats_and_long_names(
    tmp_path: Path, weights: dict[str, np.ndarray], form: int, folder: str
) -> None:
    write_folder(tmp_path / "run", weights)
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w", format=form) as archive:
        archive.add(tmp_path / "run", folder)
    assert_same(read_paddle(path).tensors, weights)
    path.write_bytes(path.read_bytes()[:-10_240])
    with pytest.raises(CheckpointError, match=r"cut short at byte \d+|no header of a file at byte"):
        read_paddle(path)


def test_archive_with_a_damaged_header(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    write_tar(path, tar_member("logits_clf_bias"), tar_member("x" * 150), tar_member("logits_clf_weights"))
    raw = bytearray(path.read_bytes())
    raw[512] ^= 1
    path.write_bytes(raw)
    with pytest.raises(CheckpointError, match="no header of a file at byte 512 of the tar"):
        read_paddle(path)


def write_tar(path: Path, *members: tarfile.TarInfo) -> None:
    with tarfile.open(path, "w") as archive:
        for member in members:
            archive.addfile(member, io.BytesIO(bytes(member.size)))


def tar_member(name: str, kind: bytes = tarfile.REGTYPE) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, "/etc/passwd"
    return member


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("../../escape", tarfile.REGTYPE, "leads out of the archive"),
        ("/etc/logits_clf_bias", tarfile.REGTYPE, "leads out of the archive"),
        ("logits_clf_bias", tarfile.SYMTYPE, "is a link, a device"),
        ("logits_clf_bias", tarfile.LNKTYPE, "is a link, a device"),
        ("logits_clf_bias", tarfile.CHRTYPE, "is a link, a device"),
    ],
)
def test_unsafe_archives(tmp_path: Path, name: str, kind: bytes, message: str) -> None:
    write_tar(tmp_path / "x.tar", tar_member(name, kind))
    with pytest.raises(CheckpointError, match=message):
        read_paddle(tmp_path / "x.tar")
    assert [path.name for path in tmp_path.iterdir()] == ["x.tar"]


def test_archive_bomb(tmp_path: Path) -> None:
    path = tmp_path / "bomb.tar.gz"
    path.write_bytes(gzip.compress(bytes(100 << 20), 9))
    with pytest.raises(CheckpointError, match="unpacks to more than"):
        read_paddle(path)


def test_archive_with_a_million_extended_attributes(tmp_path: Path) -> None:
    records = b"10 a=bbbb\n" * (1 << 20)
    header = tar_member("extended", tarfile.XHDTYPE)
    header.size = len(records)
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        archive.addfile(header, io.BytesIO(records))
        archive.addfile(tar_member("nothing"))
    with pytest.raises(CheckpointError, match=r"x\.tar/nothing: no Paddle checkpoint"):  # soon, above all
        read_paddle(tmp_path / "x.tar")


def test_damaged_archives(tmp_path: Path, weights: dict[str, np.ndarray]) -> None:
    write_folder(tmp_path / "run", weights)
    path = tmp_path / "x.tgz"
    with tarfile.open(path, "w:gz") as archive:
        archive.add(tmp_path / "run", "run")
    whole = path.read_bytes()
    for size in range(0, len(whole), 97):
        path.write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match=path.name):
            read_paddle(path)
    path.write_bytes(gzip.compress(b"not a tar"))
    with pytest.raises(CheckpointError, match="compressed, but no tar inside"):
        read_paddle(path)
    write_tar(path, tar_member("logits_clf_bias"), tar_member("logits_clf_bias"))
    with pytest.raises(CheckpointError, match="'logits_clf_bias' is there twice"):
        read_paddle(path)
    write_tar(path, tar_member("logits_clf_bias"), tar_member("other/logits_clf_bias"))
    with pytest.raises(CheckpointError, match="holds logits_clf_bias and other/logits_clf_bias"):
        read_paddle(path)


def test_what_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file or folder"):
        read_paddle(tmp_path / "nothing")
    with pytest.raises(CheckpointError, match="holds no parameters"):
        read_paddle(tmp_path)
    for name in "abcdef":
        (tmp_path / f"{name}.txt").write_bytes(b"text")
    with pytest.raises(
        CheckpointError, match=r"holds a.txt, b.txt, c.txt, d.txt and 2 more\. Wanted one file"
    ):
        read_paddle(tmp_path)
    with pytest.raises(CheckpointError, match=r"a.txt: no Paddle checkpoint: begins with 74657874"):
        read_paddle(tmp_path / "a.txt")
    (tmp_path / "zip").write_bytes(b"PK\x03\x04")
    with pytest.raises(CheckpointError, match="a zip file"):
        read_paddle(tmp_path / "zip")
    (tmp_path / "empty").write_bytes(b"")
    with pytest.raises(CheckpointError, match="no bytes, nothing at all"):
        read_paddle(tmp_path / "empty")


def test_a_folder_with_a_wrong_file(tmp_path: Path, weights: dict[str, np.ndarray]) -> None:
    folder = write_folder(tmp_path, weights)
    bias = folder / "logits_clf_bias"
    bias.write_bytes(bias.read_bytes() + b"\0\0")
    with pytest.raises(CheckpointError, match=r"logits_clf_bias, byte 44: the tensor ends .* 2 more bytes"):
        read_paddle(folder)
    bias.write_bytes(b"\1" + bias.read_bytes()[1:])
    with pytest.raises(
        CheckpointError, match=r"logits_clf_bias, byte 0: version 1 where a Paddle tensor has 0"
    ):
        read_paddle(folder)


@pytest.mark.parametrize(
    ("description", "message"),
    [
        (b"\x08\x16\x10\x01", "data type 22, wanted one of"),
        (b"\x10\x01", "data type None"),
        (b"\x08\x05\x10\x00", r"shape \[0\], wanted"),
        (b"\x08\x05" + b"\x10\x01" * 9, "wanted at most 8 sizes"),
        (b"\x08\x05\x10" + varint(1 << 62), "wanted at most 8 sizes"),
        (b"\x08\x05\x12\x01\x05", "packed sizes"),
        (b"\x08", "the bytes end inside a number"),
        (b"\x08" + b"\xff" * 11, "longer than 64 bits"),
        (b"\x12\x7f", "field 2 runs 127 bytes past the end"),
    ],
)
def test_damaged_descriptions(tmp_path: Path, description: bytes, message: str) -> None:
    head = bytes(16) + len(description).to_bytes(4, "little")
    (tmp_path / "logits_clf_bias").write_bytes(head + description + bytes(8))
    with pytest.raises(CheckpointError, match="logits_clf_bias, byte 20: damaged description .*" + message):
        read_paddle(tmp_path)


def test_huge_claims_take_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "logits_clf_bias"
    path.write_bytes(bytes(4) + b"\xff" * 8 + bytes(100))
    with pytest.raises(CheckpointError, match="cut short"):
        read_paddle(tmp_path)
    big = bytes(16) + (8).to_bytes(4, "little") + b"\x08\x05\x10" + varint(1 << 34)
    path.write_bytes(big + bytes(9))
    with pytest.raises(CheckpointError, match="wanted 68719476736 bytes of a tensor of shape"):
        read_paddle(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"video_cluster_weights": (8, 7)}, "video_cluster_weights has shape|batch_norm_0.* has shape"),
        ({"video_cluster_weights2": (3, 5)}, "video_cluster_weights2 has 5 columns, not 8 / 2"),
        ({"audio_fc_expansion_b": (4, 1)}, r"audio_fc_expansion_b has shape \[4, 1\], wanted 1 sizes"),
        ({"logits_clf_bias": (6,)}, r"logits_clf_bias has shape \[6\], but logits_clf_weights has \[4, 5\]"),
        ({"hidden1_fc_weights": (19, 4)}, r"hidden1_fc_weights has 19 rows, not 12 \+ 6"),
        (
            {f"batch_norm_3.{part}": (7,) for part in ("b_0", "w_0", "w_1", "w_2")},
            r"batch_norm_3\.w_0 has 7 values, not 3 x 4 / 2",
        ),
        (
            {"audio_cluster_weights": (4, 9)}
            | {f"batch_norm_2.{part}": (9,) for part in ("b_0", "w_0", "w_1", "w_2")},
            "audio_cluster_weights has 9 columns, not 2 x 3",
        ),
    ],
)
def test_stream_of_another_model(
    tmp_path: Path, weights: dict[str, np.ndarray], change: dict[str, tuple[int, ...]], message: str
) -> None:
    path = tmp_path / "final.pdparams"
    changed = weights | {name: np.zeros(shape, np.float32) for name, shape in change.items()}
    path.write_bytes(stream_bytes(changed))
    with pytest.raises(CheckpointError, match=rf"final.pdparams, byte \d+: ({message}).*of another model"):
        read_paddle(path)


def test_stream_with_wrong_state_or_types(tmp_path: Path, weights: dict[str, np.ndarray]) -> None:
    path = tmp_path / "final.pdparams"
    state = with_training_state(weights)
    path.write_bytes(stream_bytes(state | {"learning_rate": np.zeros(2, np.float32)}))
    with pytest.raises(CheckpointError, match=r"learning_rate has shape \[2\], wanted \[1\]"):
        read_paddle(path)
    path.write_bytes(stream_bytes(state | {"logits_clf_bias_moment2_0": np.zeros(2, np.float32)}))
    with pytest.raises(CheckpointError, match=r"logits_clf_bias_moment2_0 has shape \[2\], wanted \[5\]"):
        read_paddle(path)
    raw = b"".join(
        tensor_bytes(array.astype(np.int32), code=2) if name == "eigen_param" else tensor_bytes(array)
        for name, array in sorted(weights.items())
    )
    path.write_bytes(raw)
    with pytest.raises(CheckpointError, match="eigen_param is of type int32, wanted floats"):
        read_paddle(path)


def test_stream_of_a_wrong_count(tmp_path: Path, weights: dict[str, np.ndarray]) -> None:
    path = tmp_path / "final.pdparams"
    one = tensor_bytes(np.zeros(3, np.float32))
    path.write_bytes(one)
    with pytest.raises(CheckpointError, match="one file of a folder with one file a variable"):
        read_paddle(path)
    path.write_bytes(one * 7)
    with pytest.raises(CheckpointError, match=r"a stream of 7 tensors without names; .* one of \[41, 42, 43"):
        read_paddle(path)
    path.write_bytes(one * 200)
    with pytest.raises(CheckpointError, match="more bytes after 160 tensors, the most a NeXtVLAD has"):
        read_paddle(path)
    path.write_bytes(stream_bytes(weights) + b"\0")
    with pytest.raises(CheckpointError, match="wanted 4 bytes of a tensor's version, but the file ends"):
        read_paddle(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([{"video": "a"}], "a pickled list, wanted a dictionary"),
        ({"w": 3}, "w is a int, wanted an array"),
        ({"learning_rate": np.ones(1)}, "no parameters in it"),
        ({"w": np.ones(1), b"w": np.ones(1)}, "w is there twice"),
        ({"w": np.array([None])}, "an array of Python objects"),
        ({"w": Path("x")}, r"byte \d+: wants 'pathlib"),
    ],
)
def test_pickles_of_something_else(tmp_path: Path, content: object, message: str) -> None:
    path = tmp_path / "final.pdparams"
    path.write_bytes(pickle.dumps(content, 2))
    with pytest.raises(CheckpointError, match=rf"final.pdparams.*{message}"):
        read_paddle(path)


def test_pickle_that_repeats_an_array(tmp_path: Path) -> None:
    array = np.zeros(1000)
    path = tmp_path / "final.pdparams"
    path.write_bytes(pickle.dumps({f"w{index}": array for index in range(2000)}, 2))
    with pytest.raises(CheckpointError, match="pickle bomb"):
        read_paddle(path)
    path.write_bytes(pickle.dumps({"a": array, "b": array, "c": array}, 2))
    with pytest.raises(CheckpointError, match="larger than the file"):
        read_paddle(path)


def every_format(folder: Path, weights: dict[str, np.ndarray]) -> dict[str, bytes]:
    """A few variables are enough where the others add nothing but time."""
    few = {name: weights[name] for name in ("eigen_param", "logits_clf_bias", "batch_norm_5.w_0")}
    return {
        "stream": stream_bytes(weights),
        "pickle2": pickle.dumps(few, 2),
        "pickle4": pickle.dumps(few, 4),
        "pickle5": pickle.dumps(few, 5),
    }


@pytest.mark.parametrize("kind", ["stream", "pickle2", "pickle4", "pickle5"])
def test_cut_anywhere(tmp_path: Path, weights: dict[str, np.ndarray], kind: str) -> None:
    path = tmp_path / "final.pdparams"
    whole = every_format(tmp_path, weights)[kind]
    for size in range(0, len(whole), 3 if kind == "stream" else 1):
        path.write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match=path.name):
            read_paddle(path)


def test_cut_variable_file(tmp_path: Path, weights: dict[str, np.ndarray]) -> None:
    folder = write_folder(tmp_path, {"hidden1_fc_weights": weights["hidden1_fc_weights"]})
    path = folder / "hidden1_fc_weights"
    whole = path.read_bytes()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match=r"hidden1_fc_weights, byte \d+: .*(wanted|damaged)"):
            read_paddle(folder)


@pytest.mark.parametrize("kind", ["stream", "pickle2", "pickle4", "pickle5", "tar", "tgz"])
@FIXTURE_REUSED
@given(data=st.data())
def test_flipped_bytes_raise_nothing_else(
    tmp_path: Path, weights: dict[str, np.ndarray], kind: str, data: st.DataObject
) -> None:
    path = tmp_path / "final.pdparams"
    if kind in ("tar", "tgz"):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w" if kind == "tar" else "w:gz") as archive:
            member = tarfile.TarInfo("logits_clf_bias")
            raw = tensor_bytes(weights["logits_clf_bias"])
            member.size = len(raw)
            archive.addfile(member, io.BytesIO(raw))
        whole = bytearray(buffer.getvalue()[: 1536 if kind == "tar" else None])
    else:
        whole = bytearray(every_format(tmp_path, weights)[kind])
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(whole)
    with contextlib.suppress(CheckpointError):
        read_paddle(path)


def test_unreadable_file(tmp_path: Path, weights: dict[str, np.ndarray]) -> None:
    folder = write_folder(tmp_path / "run", weights)
    (folder / "logits_clf_bias").unlink()
    (folder / "logits_clf_bias").symlink_to(folder)
    assert (
        "logits_clf_bias" not in read_paddle(folder).tensors
    )  # a folder is no variable; the mapping says it lacks
    shutil.rmtree(folder)
    folder.write_bytes(b"\x80")
    folder.chmod(0)
    try:
        folder.read_bytes()
    except OSError:
        with pytest.raises(CheckpointError, match="cannot be read"):
            read_paddle(folder)
