"""Imports point one way only, and reading data or asking for help never loads torch."""

from __future__ import annotations

import ast
import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# A module imports only from lines above its own, or from its own line; `importers` stands for all of its
# files. The first lines go without torch.
WITHOUT_TORCH = [
    "errors",
    "config",
    "run_config",
    "config_json",
    "recipes plots progress files",
    "torchrun",
    "memory journal",
    "provenance",
    "data.window data.protobuf",
    "data.usual_layout",
    "data.tfrecord",
    "data.video_record",
    "data.segments data.pickle_values data.pickle_opcodes",
    "data.pickle_machine",
    "data.safe_pickle",
    "data.paddle_pickle",
    "data.sources data.vocabulary",
    "data.ratings",
    "data.origins",
    "data.file_processes",
    "data.survey data.conversion",
    "video_files",
    "extract_labels",
    "extract_clips",
    "extract_outcome extract_plan",
    "extract_splits",
    "check check_report convert_manifest",
    "convert",
    "metrics",
    "report_numbers report_mistakes report_charts report_parts",
    "report_findings",
    "report_labels",
    "report_page",
    "predictions",
    "ensemble",
    "video_demo_drawings video_demo_sounds",
    "video_demo_clips",
    "cli",
]
ORDER = [
    "data.__init__ __init__",
    *WITHOUT_TORCH[:-1],
    "distributed",
    "data.batch",
    "data.packer",
    "data._usual_records data.usual_records",
    "data.contents",
    "data.reader",
    "data.processes",
    "data.loader",
    "data.device_batches",
    "batch_size split_batches",
    "models",
    "contributions",
    "importers",
    "checkpoint",
    "fine_tuning run_folder",
    "optim",
    "inference",
    "evaluate",
    "evaluate_predictions validation",
    "start",
    "run_log stopping train_step",
    "resuming",
    "train predict import_checkpoint",
    "bench_report",
    "bench",
    "video",
    "report_pictures",
    "report",
    "extract_decoding",
    "extract_embedding",
    "extract_store",
    "extract_report",
    "extract",
    "tag_extractor tag_video",
    "tag_report",
    "tag",
    "demo video_demo",
    "command_options",
    "file_commands model_commands video_commands",
    "commands",
    "cli",
    "__main__",
]
PACKAGE = Path(str(importlib.util.find_spec("nextvlad").origin)).parent
FILES = sorted(PACKAGE.rglob("*.py"))


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


def rank(module: str) -> int:
    for number, line in enumerate(ORDER):
        if any(module == name or module.startswith(name + ".") for name in line.split()):
            return number
    pytest.fail(f"nextvlad.{module} has no place in the order of imports: name it in tests/test_layers.py")


def imports(tree: ast.Module) -> Iterator[str]:
    """Modules of the package that are imported anywhere in a file, also inside functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            top, _, module = name.partition(".")
            if top == "nextvlad" and module:
                yield next((m for m in (module, module.rpartition(".")[0]) if is_module(m)), "__init__")


def is_module(module: str) -> bool:
    path = PACKAGE.joinpath(*module.split("."))
    files = path.with_suffix(".py"), path.with_suffix(".pyi"), path / "__init__.py"
    return bool(module) and any(file.exists() for file in files)


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_a_module_imports_only_what_stands_above_it(path: Path) -> None:
    module = module_of(path)
    if module == "__init__":  # the public names, loaded on first use, come from everywhere
        return
    for imported in imports(ast.parse(path.read_text(encoding="utf-8"))):
        assert rank(imported) <= rank(module), (
            f"nextvlad.{module} imports nextvlad.{imported}, which builds on it"
        )


def test_modules_below_the_tensors_do_not_load_torch() -> None:
    modules = [f"nextvlad.{name}" for line in WITHOUT_TORCH for name in line.split()]
    code = f"import sys, nextvlad, {', '.join(modules)}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
