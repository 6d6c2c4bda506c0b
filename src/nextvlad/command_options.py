"""What the verbs' modules share: how options are read, shown in help and refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, get_args, get_origin

import tyro

from nextvlad.config import StreamConfig
from nextvlad.errors import UsageError
from nextvlad.run_config import BatchSize, InferenceOptions


def option(metavar: str, hint: str = "") -> Any:
    """How an option without a default is shown; "None" would not help anybody."""
    return tyro.conf.arg(metavar=metavar, help_behavior_hint=hint)


# The kinds of options that several verbs have.
Checkpoint = Annotated[Path, tyro.conf.Positional, option("CHECKPOINT")]
Data = Annotated[tuple[str, ...], tyro.conf.Positional, option("DATA...")]
File = Annotated[Path | None, option("FILE")]
Count = Annotated[int | None, option("INT")]
Options = Annotated[InferenceOptions, tyro.conf.arg(name="")]
DEFAULTS = InferenceOptions()


def parse(function: Any, arguments: list[str], verb: str, **options: Any) -> Any:
    """Calls `function` with what `arguments` say; help and errors are spelled as `nextvlad verb`."""
    return tyro.cli(
        function,
        args=arguments,
        prog=f"nextvlad {verb}",
        config=(tyro.conf.FlagCreatePairsOff, tyro.conf.AvoidSubcommands),
        registry=_registry(),
        **options,
    )


def _registry() -> tyro.constructors.ConstructorRegistry:
    """How values are read from the command line and shown in help, where tyro's own way reads badly."""
    registry = tyro.constructors.ConstructorRegistry()

    @registry.primitive_rule
    def several(info: tyro.constructors.PrimitiveTypeInfo) -> Any:
        read: dict[Any, tuple[str, Callable[[str], Any]]] = {
            (str, Ellipsis): ("DATA...", str),
            (StreamConfig, Ellipsis): ("NAME:SIZE...", StreamConfig.parse),
        }
        # For a default of two values tyro makes typing's own Tuple of it, which is not equal to tuple.
        if get_origin(info.type) is not tuple or get_args(info.type) not in read:
            return None
        metavar, from_text = read[get_args(info.type)]
        return tyro.constructors.PrimitiveConstructorSpec(
            nargs="*",
            metavar=metavar,
            instance_from_str=lambda texts: tuple(map(from_text, texts)),
            is_instance=lambda value: isinstance(value, tuple),
            str_from_instance=lambda values: [str(value) for value in values] or ["none"],
        )

    @registry.primitive_rule
    def optional(info: tyro.constructors.PrimitiveTypeInfo) -> Any:
        kinds = [kind for kind in get_args(info.type) if kind is not NoneType]
        if NoneType not in get_args(info.type) or kinds not in ([int], [str], [Path]):
            return None
        kind = kinds[0]
        return tyro.constructors.PrimitiveConstructorSpec(
            nargs=1,
            metavar=f"{kind.__name__.upper()}|None",
            instance_from_str=lambda texts: None if texts[0] == "None" else kind(texts[0]),
            is_instance=lambda value: value is None or isinstance(value, kind),
            str_from_instance=lambda value: [str(value)],
        )

    @registry.primitive_rule
    def number_or_auto(info: tyro.constructors.PrimitiveTypeInfo) -> Any:
        if info.type != BatchSize:
            return None
        return tyro.constructors.PrimitiveConstructorSpec(
            nargs=1,
            metavar="INT|auto",
            instance_from_str=lambda texts: "auto" if texts[0] == "auto" else int(texts[0]),
            is_instance=lambda value: value == "auto" or isinstance(value, int),
            str_from_instance=lambda value: [str(value)],
        )

    return registry


def given(data: tuple[str, ...]) -> tuple[str, ...]:
    """`data`, unless nothing was given."""
    if not data:
        raise UsageError("no DATA given; wanted files, directories, quoted globs or .list files.")
    return data
