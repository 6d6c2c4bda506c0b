"""Small result files."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

from nextvlad.errors import OutputError


def write_json(path: Path, values: object) -> None:
    """A JSON file, written aside and renamed.

    Raises:
        OutputError: it cannot be written; what was there before is untouched.
    """
    aside = path.with_name(f".{path.name}.incomplete")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
        aside.replace(path)
    except OSError as error:
        with suppress(OSError):
            aside.unlink()
        raise OutputError(f"{path}: cannot be written ({why(error)}). Choose another place.") from error


def why(error: OSError) -> str:
    """The system's reason, where it is clear without the path that it is about."""
    if isinstance(error, FileExistsError | NotADirectoryError):
        return "a file is where a folder should be"
    return error.strerror or str(error)
