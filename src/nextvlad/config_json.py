"""Settings as JSON and back; an unknown key or a value of the wrong type is refused by its key."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

from nextvlad.config import ModelConfig
from nextvlad.errors import ConfigError
from nextvlad.run_config import TrainConfig


def to_json(config: ModelConfig | TrainConfig) -> dict[str, Any]:
    """A configuration as plain JSON values."""
    plain: dict[str, Any] = json.loads(json.dumps(asdict(config)))
    return plain


def model_config_from_json(values: object, *, where: str) -> ModelConfig:
    """The reverse of `to_json` for a model.

    Raises:
        ConfigError: names `where`, the key, and what is wrong with it.
    """
    model: ModelConfig = validate(Annotated[ModelConfig, Field(discriminator="kind")], values, where)
    return model


def train_config_from_json(values: object, *, where: str) -> TrainConfig:
    """The reverse of `to_json` for a training run; raises ConfigError likewise."""
    config: TrainConfig = validate(TrainConfig, values, where)
    return config


def read_json(path: Path) -> object:
    """The content of a JSON file, or a ConfigError that names it."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror or error}).") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not valid JSON ({error}).") from error


def validate(kind: Any, values: object, where: str) -> Any:
    """JSON values as a dataclass of this kind; a ConfigError names `where`, the key, and what is wrong."""
    try:
        return TypeAdapter(kind).validate_python(_tuples(values), strict=False)
    except ConfigError as error:  # raised by a __post_init__
        raise ConfigError(f"{where}: {error}") from error
    except ValidationError as error:
        problems = "; ".join(_describe(item) for item in error.errors(include_url=False))
        raise ConfigError(f"{where}: {problems}.") from error


def shortened(value: object) -> str:
    """A setting as one line of a report shows it."""
    text = " ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if text else "-"


def _describe(item: Any) -> str:
    key = ".".join(str(part) for part in item["loc"])
    if item["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        return f"unknown key {key}; remove it or check its spelling"
    return f"{key}: {item['msg']} (got {item['input']!r})" if key else f"{item['msg']}"


def _tuples(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_tuples(item) for item in value)
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    return value
