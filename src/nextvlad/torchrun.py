"""What torchrun tells a process in its environment."""

from __future__ import annotations

import os

from nextvlad.errors import UsageError


def read_number(name: str, otherwise: int) -> int:
    """WORLD_SIZE, RANK, LOCAL_RANK or LOCAL_WORLD_SIZE; `otherwise` where torchrun did not start us.

    Raises:
        UsageError: it is no number of 0 or more.
    """
    text = os.environ.get(name)
    if text is None:
        return otherwise
    if not text.isdecimal():
        raise UsageError(
            f"the environment says {name}={text!r}, wanted a number of 0 or more, as torchrun sets it; "
            f"start with torchrun, or unset {name}."
        )
    return int(text)
