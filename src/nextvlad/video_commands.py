"""The verbs that begin at videos, as the command line offers them; those of features are in `commands`.

PyAV and torch are imported only inside a verb, once its options are known to be good.
"""

from __future__ import annotations

from collections.abc import Callable

VIDEO_VERBS: dict[str, Callable[[list[str]], int]] = {}
"""By name, in the order a user meets them."""
