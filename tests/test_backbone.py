"""Backbones of one's own: ONNX, torch.export, callables, and the JSON file beside them."""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from nextvlad.errors import ConfigError, DataError, UsageError
from nextvlad.video.audio import log_mel
from nextvlad.video.backbone import Backbone, audio_backbone, visual_backbone

PICTURES = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), dtype=np.uint8)
MEAN, STD = [0.48, 0.45, 0.4], [0.26, 0.25, 0.27]
VISUAL = {"stream": "rgb", "name": "colours", "size": 3, "image_size": 16, "mean": MEAN, "std": STD}


def write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values), encoding="utf-8")


class Colours(nn.Module):
    """The mean of each channel."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(dim=(2, 3))


def colours() -> np.ndarray:
    """What `Colours` must give after the preprocessing in VISUAL."""
    return ((PICTURES / 255.0).mean(axis=(1, 2)) - MEAN) / STD


def save_onnx(path: Path, shape: list[int | str], *, outputs: tuple[str, ...] = ("y",)) -> None:
    onnx = pytest.importorskip("onnx")
    helper, single = onnx.helper, onnx.TensorProto.FLOAT
    axes = helper.make_tensor("axes", onnx.TensorProto.INT64, [2], [2, 3])
    nodes = [helper.make_node("ReduceMean", ["x", "axes"], [name], keepdims=0) for name in outputs]
    graph = helper.make_graph(
        nodes,
        "colours",
        [helper.make_tensor_value_info("x", single, shape)],
        [helper.make_tensor_value_info(name, single, [shape[0], 3]) for name in outputs],
        [axes],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), str(path))


@pytest.mark.parametrize("batch", [None, 2])
def test_onnx(tmp_path: Path, batch: int | None) -> None:
    pytest.importorskip("onnxruntime")
    save_onnx(tmp_path / "a.onnx", [batch or "n", 3, 16, 16], outputs=("other", "y"))
    write_json(tmp_path / "a.json", {**VISUAL, "batch_size": batch, "output": "y"})
    backbone = visual_backbone(str(tmp_path / "a.onnx"))
    np.testing.assert_allclose(backbone.embed(PICTURES), colours(), atol=1e-5)
    assert (backbone.size, backbone.image_size, backbone.fit) == (3, 16, "crop")
    assert backbone.embed(PICTURES[:0]).shape == (0, 3)
    told = backbone.describe()
    assert told["extractor"] == "colours"
    assert len(told["weights_sha256"]) == 64
    assert told["preprocessing"]["mean"] == MEAN
    json.dumps(told)


def test_onnx_that_does_not_fit(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    path = tmp_path / "a.onnx"
    path.write_bytes(b"nothing")
    write_json(tmp_path / "a.json", VISUAL)
    with pytest.raises(DataError, match=r"a\.onnx: onnxruntime cannot load it"):
        visual_backbone(str(path))
    save_onnx(path, ["n", 3, 16, 16])
    write_json(tmp_path / "a.json", {**VISUAL, "output": "z"})
    with pytest.raises(ConfigError, match="no output 'z'; the file has y"):
        visual_backbone(str(path))
    write_json(tmp_path / "a.json", {**VISUAL, "layout": "nhwc"})
    with pytest.raises(DataError, match=r"failed on an input of shape \[2, 16, 16, 3\]"):
        visual_backbone(str(path))


def test_torch_export(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        batch = torch.export.Dim("n", min=1, max=64)
        program = torch.export.export(Colours(), (torch.zeros(2, 3, 16, 16),), dynamic_shapes=({0: batch},))
        torch.export.save(program, str(tmp_path / "a.pt2"))
    write_json(tmp_path / "a.json", VISUAL)
    np.testing.assert_allclose(visual_backbone(str(tmp_path / "a.pt2")).embed(PICTURES), colours(), atol=1e-5)
    (tmp_path / "a.pt2").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"a\.pt2: torch\.export cannot load it"):
        visual_backbone(str(tmp_path / "a.pt2"))


@pytest.fixture
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "own_networks.py").write_text(
        "import numpy as np\n"
        "def mean(x): return {'first': x[:, :2, 0, 0], 'second': x.mean(axis=(2, 3))}\n"
        "def shape(x): return np.array([x.shape[1:]] * len(x), dtype=np.float32)\n"
        "def first(x): return x.reshape(len(x), -1)[:, :4]\n"
        "def wrong(x): return x[:1, 0, 0, :3]\n"
        "def nan(x): return np.full((len(x), 3), np.nan)\n"
        "def large(x): return np.full((len(x), 3), 1e300)\n"
        "def more(x): return np.zeros((len(x) + 1, 3))\n"
        "def less(x): return np.zeros((len(x) - 2, 3))\n"
        "def number(x): return 3.0\n"
        "def nothing_at_all(x): return None\n"
        "def turned(x): return np.full((len(x), 3), 1j)\n"
        "def fails(x): raise RuntimeError('not\\ntoday')\n"
        "def leaves(x): raise SystemExit(0)\n"
        "text = 'no function'\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "own_networks", raising=False)
    return tmp_path


def own(folder: Path, name: str, settings: dict[str, Any], make: Any = visual_backbone) -> Backbone:
    write_json(folder / f"{name}.json", settings)
    backbone: Backbone = make(f"own_networks:{name}")
    return backbone


def test_a_callable(own_module: Path) -> None:
    backbone = own(own_module, "mean", {**VISUAL, "output": "second"})
    np.testing.assert_allclose(backbone.embed(PICTURES), colours(), atol=1e-5)


def test_channels_and_layout(own_module: Path) -> None:
    settings = {**VISUAL, "mean": [0.0], "std": [1.0], "channels": "bgr", "layout": "nhwc", "dtype": "uint8"}
    bgr = own(own_module, "first", {**settings, "size": 4}).embed(PICTURES)
    np.testing.assert_array_equal(bgr, PICTURES[..., ::-1].reshape(5, -1)[:, :4])


def test_sound_as_samples_and_as_vggish_wants_it(own_module: Path) -> None:
    audio = {"stream": "audio", "name": "a", "size": 4, "window_seconds": 0.975, "layout": "nhwc"}
    rows = np.random.default_rng(0).normal(0, 0.1, (2, 15_600)).astype(np.float32)
    samples = own(own_module, "first", audio, audio_backbone)
    assert samples.sound_window_seconds == 0.975
    np.testing.assert_array_equal(samples.embed(rows), rows[:, :4])
    mel = own(own_module, "first", {**audio, "sound": "log-mel"}, audio_backbone)
    np.testing.assert_allclose(mel.embed(rows), [log_mel(row)[0, :4] for row in rows], atol=1e-6)
    shaped = {**audio, "sound": "log-mel", "layout": "nchw", "size": 3}
    assert own(own_module, "shape", shaped, audio_backbone).embed(rows)[0].tolist() == [1, 96, 64]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("wrong", r"gave an array of shape \[1, 3\] for 2 rows; wanted \[2, 3\]"),
        ("more", r"gave an array of shape \[3, 3\] for 2 rows"),
        ("number", r"gave an array of shape \[\] for 2 rows"),
        ("nothing_at_all", r"gave an array of shape \[\] for 2 rows"),
        ("nan", "not finite"),
        ("large", "not finite"),
        ("turned", "TypeError: complex numbers"),
        ("fails", r"failed on an input of shape \[2, 3, 16, 16\] \(RuntimeError: not today\)"),
        ("leaves", r"\(SystemExit: 0\)"),
    ],
)
def test_results_that_are_refused(own_module: Path, name: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        own(own_module, name, VISUAL)


def test_a_fixed_batch_that_is_not_kept(own_module: Path) -> None:
    with pytest.raises(DataError, match=r"shape \[2, 3\] for 4 rows"):  # two rows, filled up to four
        own(own_module, "less", {**VISUAL, "batch_size": 4})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sizes": 3}, "unknown key sizes"),
        ({"size": "many"}, "size: "),
        ({"size": 0}, "size: 0 is out of range"),
        ({"std": [0.0]}, "std: "),
        ({"fit": "cut"}, "fit: "),
        ({"stream": "audio"}, "stream is 'audio', but it was given for 'rgb'"),
    ],
)
def test_json_that_is_refused(own_module: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        own(own_module, "mean", {**VISUAL, **change})
    assert "mean.json" in str(caught.value)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("no.onnx", "no such file"),
        ("resnet", "not a backbone"),
        ("no_such_module:call", "cannot be imported"),
        ("own_networks:nothing", "cannot be imported"),
        ("own_networks:text", "not something to call"),
        ("own_networks:shape", r"there is no .*shape\.json"),
        (".own_networks:shape", "cannot be imported"),
        ("damaged:shape", r"cannot be imported \(SyntaxError"),
        ("leaving:shape", r"cannot be imported \(SystemExit"),
    ],
)
def test_what_is_no_backbone(own_module: Path, spec: str, message: str) -> None:
    (own_module / "damaged.py").write_text("def (:")
    (own_module / "leaving.py").write_text("raise SystemExit(0)")
    with pytest.raises(UsageError, match=message):
        visual_backbone(spec)


def test_the_default_for_sound_passes_rows_on() -> None:
    rows = np.random.default_rng(0).normal(-2, 1, (3, 128)).astype(np.float32)
    backbone = audio_backbone()
    np.testing.assert_array_equal(backbone.embed(rows), rows)
    assert backbone.weights_sha256 is None
