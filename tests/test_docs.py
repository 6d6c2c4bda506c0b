"""The documents keep to the facts: commands parse, files exist, names and numbers are those of the code.

In a fenced block marked `sh` every `nextvlad` command is parsed by the command line itself, values
included, with the work behind it replaced. A `python` block below `<!-- runnable -->` is run; the
blocks of one page share their names. Other `python` blocks must compile and import what exists.
"""

from __future__ import annotations

import ast
import importlib
import re
import shlex
import tomllib
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

import pytest

from nextvlad import commands
from nextvlad.config import ModelConfig
from nextvlad.metrics import MetricAccumulator
from nextvlad.recipes import RECIPES
from nextvlad.run_config import DataConfig, OptimConfig, TrainConfig

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "examples" / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
FENCE = re.compile(r"^(<!-- runnable -->\n)?```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
FOLDERS = (
    "src/",
    "tests/",
    "docs/",
    "examples/",
    "scripts/",
    "benchmarks/",
    "data/",
    "models/",
    "importers/",
)

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def blocks(page: Path, *languages: str) -> list[tuple[bool, str]]:
    """(marked runnable, content) of the fenced blocks in one of these languages."""
    return [
        (bool(mark), body) for mark, language, body in FENCE.findall(text_of(page)) if language in languages
    ]


def shell_commands(page: Path) -> list[list[str]]:
    """Each command of `sh` and indented blocks as words, continued lines joined and comments left out."""
    found = []
    indented = re.findall(
        r"^ {4}((?:nextvlad|make|python|pip) (?:.*\\\n)*.*)", FENCE.sub("", text_of(page)), re.MULTILINE
    )
    for body in [*(body for _, body in blocks(page, "sh", "bash", "shell", "console")), *indented]:
        for line in body.replace("\\\n", " ").splitlines():
            words = shlex.split(line.removeprefix("$ "), comments=True)
            if words:
                found.append(words)
    return found


def inline_code(page: Path) -> list[str]:
    return re.findall(r"`([^`\n]+)`", FENCE.sub("", text_of(page)))


class Called(Exception):
    """A verb got as far as its work."""


@pytest.fixture
def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """The verbs parse their options and then raise `Called`."""

    def stop(*arguments: Any, **options: Any) -> None:
        raise Called

    for verb in (*commands.VERBS, "evaluate_predictions"):  # which is what `evaluate --predictions` runs
        name = "import_checkpoint" if verb == "import" else verb  # `import` can be no module's name
        monkeypatch.setattr(importlib.import_module(f"nextvlad.{name}"), name, stop)


def parse(words: list[str]) -> None:
    """Runs `nextvlad` on these words up to its work; fails where it would be refused."""
    if words[0] not in commands.VERBS:
        assert words in (["--help"], ["--version"]), f"no verb {words[0]!r}"
        return
    verb, arguments = commands.VERBS[words[0]], words[1:]
    if words[0] == "train" and arguments and arguments[0].endswith(".json"):
        arguments[0] = "small"  # any file that a run has written
    try:
        verb(arguments)
    except Called:
        return
    except SystemExit as stopped:
        if stopped.code:
            pytest.fail(f"nextvlad {' '.join(words)}: refused")
    assert "--help" in words, f"nextvlad {' '.join(words)}: did nothing"


@every_page
def test_commands_parse(page: Path, no_work: None, capsys: pytest.CaptureFixture[str]) -> None:
    for words in shell_commands(page):
        if "nextvlad" in words:
            parse(words[words.index("nextvlad") + 1 :])


@pytest.mark.parametrize(
    "line",
    [
        "trian small",
        "train small --out run --optim.learning-rate 1",
        "train small --out run --optim.lr fast",
        "train small",
        "evaluate run data --top 3",
        "predict run data",
    ],
)
def test_a_wrong_command_is_noticed(line: str, no_work: None, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        parse(line.split())


def all_options() -> set[str]:
    """Every option that any verb has, from the help texts and the configuration's fields."""
    models: tuple[Any, ...] = get_args(ModelConfig)
    groups: list[tuple[str, Any]] = [("", TrainConfig), ("data.", DataConfig), ("optim.", OptimConfig)]
    groups += [("model.", model) for model in models]
    names = {prefix + field.name for prefix, kind in groups for field in fields(kind)}
    options = {f"--{name.replace('_', '-')}" for name in names}
    return options | {
        f"--{'.no-'.join(name.rsplit('.', 1))}".replace("_", "-") for name in names if "." in name
    }


def verb_options(capsys: pytest.CaptureFixture[str]) -> set[str]:
    found = set()
    for verb in commands.VERBS:
        arguments = ["small", "--help"] if verb == "train" else ["--help"]
        with pytest.raises(SystemExit):
            commands.VERBS[verb](arguments)
        found |= set(re.findall(r"--[a-z][a-z0-9.-]*", capsys.readouterr().out))
    return found


@every_page
def test_options_named_in_the_text_exist(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    known = all_options() | verb_options(capsys) | {"--version", "--nproc-per-node", "--constraint"}
    for code in inline_code(page):
        for option in re.findall(r"(?<![\w-])--[a-z][a-z0-9._-]*", code):
            assert option in known, f"{page.name}: {code}"


@every_page
def test_settings_named_in_the_text_exist(page: Path) -> None:
    kinds = {"data": (DataConfig,), "optim": (OptimConfig,), "model": get_args(ModelConfig)}
    for code in inline_code(page):
        match = re.fullmatch(r"(data|optim|model)\.([a-z_0-9]+)", code)
        if match and match[2] != "py":
            known = {field.name for kind in kinds[match[1]] for field in fields(kind)}
            assert match[2] in known or match[1] == "model", f"{page.name}: {code}"


@every_page
def test_links_lead_to_files(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", text_of(page)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        place = page.parent / path if path else page
        assert place.exists(), f"{page.name}: {target}"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", text_of(place), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings}, target


@every_page
def test_files_named_in_the_text_exist(page: Path) -> None:
    named = [code for code in inline_code(page) if re.fullmatch(r"[\w./-]+", code)]
    named += [word for words in shell_commands(page) for word in words]
    for name in named:
        name = name.replace("_X.py", "_docs.py")  # X stands for any
        if name.startswith(FOLDERS) and ("." in name.rsplit("/", 1)[-1] or name.endswith("/")):
            found = any((root / name).exists() for root in (ROOT, ROOT / "src" / "nextvlad"))
            assert found or (name.startswith("data/") and not name.endswith(".py")), f"{page.name}: {name}"


@every_page
def test_make_targets_and_extras_exist(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", text_of(ROOT / "Makefile"), re.MULTILINE))
    extras = tomllib.loads(text_of(ROOT / "pyproject.toml"))["project"]["optional-dependencies"]
    for words in [*shell_commands(page), *(code.split() for code in inline_code(page))]:
        if "make" in words:
            asked = [word for word in words[words.index("make") + 1 :] if re.fullmatch(r"[a-z-]+", word)]
            assert set(asked) <= targets, f"{page.name}: {' '.join(words)}"
    for extra in re.findall(r"nextvlad\[([a-z,]+)\]", text_of(page)):
        assert set(extra.split(",")) <= set(extras), f"{page.name}: nextvlad[{extra}]"


@pytest.fixture
def demo_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with what `nextvlad demo` leaves in it, as far as the blocks need it."""
    from nextvlad import NeXtVLADConfig, StreamConfig, Vocabulary, build_model
    from nextvlad.checkpoint import save

    config = NeXtVLADConfig(
        streams=(StreamConfig(name="lpc", size=12),), num_classes=9, clusters=2, groups=2, hidden_size=8
    )
    vocabulary = Vocabulary.load(ROOT / "src" / "nextvlad" / "demo_data" / "vocabulary.csv")
    save(tmp_path / "demo-run" / "nextvlad", build_model(config), vocabulary=vocabulary)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@every_page
def test_runnable_python_runs(page: Path, demo_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {"__name__": "__main__"}
    for runnable, body in blocks(page, "python"):
        if runnable:
            exec(compile(body, str(page), "exec"), names)


@every_page
def test_python_compiles_and_imports_what_exists(page: Path) -> None:
    for _, body in blocks(page, "python"):
        for node in ast.walk(ast.parse(body)):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    importlib.import_module(alias.name)
            elif isinstance(node, ast.ImportFrom) and node.module:
                module = importlib.import_module(node.module)
                for alias in node.names:
                    assert hasattr(module, alias.name), f"{page.name}: {node.module}.{alias.name}"


def test_every_page_is_in_the_list() -> None:
    index = text_of(ROOT / "docs" / "index.md")
    for page in (ROOT / "docs").glob("*.md"):
        assert page.name == "index.md" or f"({page.name})" in index, page.name


def test_every_metric_of_a_valid_row_is_named() -> None:
    page = text_of(ROOT / "docs" / "training.md")
    for key in MetricAccumulator(5).compute():
        assert f"`{key}`" in page, key


def test_every_recipe_is_described() -> None:
    page = text_of(ROOT / "docs" / "training.md")
    for name in RECIPES:
        assert f"| `{name}` |" in page


def test_recipes_have_the_numbers_that_the_page_tells() -> None:
    rows = dict(
        re.findall(
            r"^\| `(\w+)` \| [^|]+ \| ([^|]+) \|$", text_of(ROOT / "docs" / "training.md"), re.MULTILINE
        )
    )
    letters = {"K": "clusters", "G": "groups", "H": "hidden_size"}
    for name, settings in rows.items():
        if name not in RECIPES:
            continue
        config = RECIPES[name].config
        for letter, value in re.findall(r"\b([KGH]) (\d+)", settings):
            assert getattr(config.model, letters[letter]) == int(value), f"{name}: {letter} {value}"
        for value in re.findall(r"(\d+) epochs", settings):
            assert config.epochs == int(value), name
        for value in re.findall(r"batch (\d+)", settings):
            assert config.data.batch_size == int(value), name
