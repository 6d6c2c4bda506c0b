"""A backbone of the user's own: ONNX, torch.export, or a Python callable, with a JSON file beside it.

An ONNX file is data. A file of torch.export and a callable are programs of whoever made them: use only
those that you trust.
"""

from __future__ import annotations

import importlib
import logging
import math
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict

from nextvlad.config_json import read_json, validate
from nextvlad.errors import ConfigError, DataError, UsageError
from nextvlad.video.audio import log_mel
from nextvlad.video.backbone import Backbone, Run, check_shape, file_sha256
from nextvlad.video.picture import Fit
from nextvlad.video.quantise import Quantiser
from nextvlad.video.sound import SAMPLE_RATE_HZ

_SUFFIXES = {".onnx": "ONNX", ".pt2": "torch.export"}
_Network = Callable[[NDArray[Any]], Any]


@dataclass(frozen=True, kw_only=True)
class BackboneFile:
    """What stands in the JSON file of a backbone."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    stream: Literal["rgb", "audio"]
    """Whether it is fed pictures or sound."""
    name: str
    """As provenance tells it; another name means other features."""
    size: int
    """D, numbers a row."""
    image_size: int = 224
    """Pictures: S, they are [n, 3, S, S] or [n, S, S, 3]."""
    fit: Fit = "crop"
    """Pictures: how they become squares."""
    mean: tuple[float, ...] = (0.0,)
    """Pictures: (byte / 255 - mean) / std, a number for each channel in the order of `channels`, or one."""
    std: tuple[float, ...] = (1.0,)
    channels: Literal["rgb", "bgr"] = "rgb"
    """Pictures: their order."""
    layout: Literal["nchw", "nhwc"] = "nchw"
    """Pictures: where the channels stand. Log-mel: nchw gives [n, 1, windows, 64], nhwc without the 1."""
    dtype: Literal["float32", "float16", "uint8"] = "float32"
    """Of the input; uint8: pictures as they are, without mean and std."""
    sound: Literal["samples", "log-mel"] = "samples"
    """Sound: [n, samples] at 16 kHz, in [-1, 1]; or log-mel windows of 25 ms every 10 ms, as VGGish's."""
    window_seconds: float = 1.0
    """Sound: how much a row gets, from its second on."""
    output: str | None = None
    """Which output of several: its name (ONNX, or the key of a dictionary); None: the first."""
    batch_size: int | None = None
    """Rows that go in at once, where the network has a fixed number."""
    centre: tuple[float, ...] = (0.0,)
    """(value - centre) x scale should lie in [-2, 2], which is what becomes bytes. Without a PCA."""
    scale: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        wrong = [
            name
            for name, good in {
                "name": bool(self.name),
                "size": 1 <= self.size <= 1 << 20,
                "image_size": 1 <= self.image_size <= 4096,
                "mean": len(self.mean) in (1, 3) and all(map(math.isfinite, self.mean)),
                "std": len(self.std) in (1, 3) and all(0 < value < math.inf for value in self.std),
                "window_seconds": 0.025 <= self.window_seconds <= 60,
                "batch_size": self.batch_size is None or self.batch_size >= 1,
                "centre": bool(self.centre) and self.size % len(self.centre) == 0,
                "scale": bool(self.scale) and self.size % len(self.scale) == 0 and min(self.scale) > 0,
            }.items()
            if not good
        ]
        if wrong:
            raise ConfigError(
                f"{wrong[0]}: {getattr(self, wrong[0])!r} is out of range; docs/features.md says what may "
                "stand there"
            )


def own_backbone(spec: str, stream: Literal["rgb", "audio"], device: str = "cpu") -> Backbone:
    """The backbone that `spec` names, with what its JSON file says; tried once, on two rows of noise.

    Args:
        spec: path of an .onnx or .pt2 file, or `package.module:callable`.
        stream: what it is wanted for; its JSON file must say the same.
        device: for torch.export.

    Raises:
        UsageError: it, its JSON file, or a package it needs is not there.
        ConfigError: the JSON file is wrong.
        DataError: the file is damaged, or the network fails, or gives something else than the JSON file says.
    """
    path = Path(spec)
    if path.suffix.lower() in _SUFFIXES:
        side, sha = path.with_suffix(".json"), file_sha256(path)
        settings = _settings(side, spec, stream)
        network = (
            _onnx(path, settings) if path.suffix.lower() == ".onnx" else _exported(path, settings, device)
        )
    elif ":" in spec and not path.exists():
        function, side, source = _imported(spec)
        settings, sha = _settings(side, spec, stream), file_sha256(source)
        network = _picked(function, settings)
    else:
        raise UsageError(
            f"{spec}: not a backbone; wanted an .onnx or .pt2 file, package.module:callable, or the name of "
            "the default."
        )
    backbone = Backbone(
        name=settings.name,
        size=settings.size,
        weights_sha256=sha,
        preprocessing=_preprocessing(settings),
        quantiser=Quantiser(settings.centre, settings.scale),
        run=_running(network, settings),
        image_size=settings.image_size if stream == "rgb" else None,
        fit=settings.fit if stream == "rgb" else None,
        sound_window_seconds=settings.window_seconds if stream == "audio" else None,
    )
    # What does not fit is told before hours of decoding, and once, not for every video.
    backbone.embed(_noise(settings))
    return backbone


def _noise(settings: BackboneFile) -> NDArray[Any]:
    """Two rows as the network will get them."""
    random = np.random.default_rng(0)
    if settings.stream == "rgb":
        return random.integers(0, 256, (2, settings.image_size, settings.image_size, 3), np.uint8)
    return random.normal(0, 0.1, (2, round(settings.window_seconds * SAMPLE_RATE_HZ))).astype(np.float32)


def _settings(side: Path, spec: str, stream: str) -> BackboneFile:
    if not side.is_file():
        raise UsageError(
            f"{spec}: there is no {side}, which must say how its input is made (docs/features.md)."
        )
    settings: BackboneFile = validate(BackboneFile, read_json(side), str(side))
    if settings.stream != stream:
        raise ConfigError(f"{side}: stream is {settings.stream!r}, but it was given for {stream!r}.")
    return settings


def _preprocessing(settings: BackboneFile) -> dict[str, Any]:
    """What changes the features, as JSON values."""
    values = asdict(settings)
    pictures = ("image_size", "fit", "mean", "std", "channels", "layout")
    sound = ("sound", "window_seconds")
    kept = (*(pictures if settings.stream == "rgb" else sound), "dtype", "output")
    return {key: list(values[key]) if isinstance(values[key], tuple) else values[key] for key in kept}


def _running(network: _Network, settings: BackboneFile) -> Run:
    """The network behind its preprocessing, in batches of its size where that is fixed."""
    prepare = _prepared_pictures if settings.stream == "rgb" else _prepared_sound

    def run(rows: NDArray[Any]) -> NDArray[np.float32]:
        step = settings.batch_size or len(rows)
        parts = []
        for first in range(0, len(rows), step):
            part = rows[first : first + step]
            short = step - len(part)
            if short:  # a fixed batch is filled up with its last row
                part = np.concatenate([part, np.repeat(part[-1:], short, axis=0)])
            try:
                values = _floats(network(prepare(part, settings)))
            except (Exception, SystemExit) as error:
                raise DataError(
                    f"{settings.name}: failed on an input of shape {list(prepare(part, settings).shape)} "
                    f"({type(error).__name__}: {_short(error)}). Check its JSON file."
                ) from error
            if values.ndim > 2 and values.size == len(part) * settings.size:
                values = values.reshape(len(part), settings.size)  # [n, D, 1, 1]
            check_shape(settings.name, values, (len(part), settings.size))
            parts.append(values[: step - short])
        return np.concatenate(parts)

    return run


def _floats(values: Any) -> NDArray[np.float32]:
    """As float32; what is too large for it becomes infinite, and is refused as such."""
    if np.iscomplexobj(values):
        raise TypeError("complex numbers")
    with np.errstate(over="ignore"):
        return np.asarray(values, dtype=np.float32)


def _short(error: BaseException) -> str:
    """What an error says, on one line."""
    return " ".join(str(error).split())[:300]


def _prepared_pictures(rows: NDArray[Any], settings: BackboneFile) -> NDArray[Any]:
    """[n, S, S, 3] uint8 -> what the network wants."""
    if settings.channels == "bgr":
        rows = rows[..., ::-1]
    if settings.dtype != "uint8":
        mean, std = (np.asarray(values, dtype=np.float32) for values in (settings.mean, settings.std))
        rows = ((rows.astype(np.float32) / np.float32(255) - mean) / std).astype(settings.dtype)
    if settings.layout == "nchw":
        rows = rows.transpose(0, 3, 1, 2)
    return np.ascontiguousarray(rows)


def _prepared_sound(rows: NDArray[Any], settings: BackboneFile) -> NDArray[Any]:
    """[n, samples] float32 -> the same, or log-mel windows [n, 1, w, 64] or [n, w, 64]."""
    if settings.sound == "log-mel":
        rows = np.stack([log_mel(row) for row in rows])
        if settings.layout == "nchw":
            rows = rows[:, None]
    return rows.astype(settings.dtype)


def _onnx(path: Path, settings: BackboneFile) -> _Network:
    try:
        onnxruntime: Any = importlib.import_module("onnxruntime")
    except ImportError as error:
        raise UsageError(
            f"{path}: running ONNX files needs onnxruntime, which does not import ({error}); "
            "pip install 'nextvlad[onnx]'."
        ) from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    providers = [
        name
        for name in ("CUDAExecutionProvider", "CPUExecutionProvider")
        if name in onnxruntime.get_available_providers()
    ]
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=providers)
    except Exception as error:
        raise DataError(f"{path}: onnxruntime cannot load it ({_short(error)}).") from error
    names = [output.name for output in session.get_outputs()]
    wanted = settings.output if settings.output is not None else names[0]
    if wanted not in names:
        raise ConfigError(
            f"{path.with_suffix('.json')}: no output {wanted!r}; the file has {', '.join(names)}."
        )
    if len(session.get_inputs()) != 1:
        raise UsageError(f"{path}: has {len(session.get_inputs())} inputs; wanted one.")
    feed = session.get_inputs()[0].name
    return lambda x: session.run([wanted], {feed: x})[0]


def _exported(path: Path, settings: BackboneFile, device: str) -> _Network:
    import torch

    logger = logging.getLogger("torch.export")
    level = logger.level
    try:
        logger.setLevel(logging.CRITICAL)  # it logs a traceback where it then raises
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module = torch.export.load(path).module().to(device)
    except Exception as error:
        raise DataError(f"{path}: torch.export cannot load it ({_short(error)}).") from error
    finally:
        logger.setLevel(level)

    def run(x: NDArray[Any]) -> Any:
        with torch.inference_mode():
            return _array(_output(module(torch.from_numpy(x).to(device)), settings))

    return run


def _imported(spec: str) -> tuple[Callable[..., Any], Path, Path]:
    """The callable, where its JSON file should be, and the file of its module."""
    module_name, _, attribute = spec.partition(":")
    try:
        module = importlib.import_module(module_name)
        function = getattr(module, attribute)
    except (Exception, SystemExit) as error:  # of whatever the module does
        kind = "" if isinstance(error, ImportError | AttributeError) else f"{type(error).__name__}: "
        raise UsageError(
            f"{spec}: cannot be imported ({kind}{_short(error)}); wanted package.module:callable, installed "
            "or in PYTHONPATH."
        ) from error
    if not callable(function) or not getattr(module, "__file__", None):
        raise UsageError(f"{spec}: not something to call in a module that is a file.")
    source = Path(str(module.__file__))
    return function, source.with_name(f"{attribute}.json"), source


def _picked(function: Callable[..., Any], settings: BackboneFile) -> _Network:
    return lambda x: _array(_output(function(x), settings))


def _output(result: Any, settings: BackboneFile) -> Any:
    """The one array of what a network returned."""
    if isinstance(result, dict):
        return result[settings.output] if settings.output is not None else next(iter(result.values()))
    if isinstance(result, tuple | list):
        return result[0]
    return result


def _array(values: Any) -> NDArray[Any]:
    """NumPy's, of NumPy's or torch's."""
    if hasattr(values, "detach"):
        values = values.detach().float().cpu().numpy()
    return np.asarray(values)
