"""Small pieces of HTML that the sections of a report are made of."""

from __future__ import annotations

import math
from html import escape


def card(title: str, content: str) -> str:
    """A framed part with a heading; `title` is text, `content` HTML."""
    return f'<div class="card"><h3>{escape(title)}</h3>{content}</div>'


def meter(share: float, kind: str = "") -> str:
    """A bar, filled to `share` of 1; `kind` "good" or "bad" colours it."""
    return f'<span class="meter {kind}"><i style="width:{100 * share:.0f}%"></i></span>'


def decimal(value: float | None, digits: int = 3) -> str:
    """A number to read; a dash where there is none."""
    return "–" if value is None or math.isnan(value) else f"{value:.{digits}f}"


def small(value: float) -> str:
    """A score that may be nearly 0."""
    return f"{value:.3f}" if value >= 0.001 else f"{value:.1g}"


def cell(value: float | None, text: str) -> str:
    """A cell that sorts by `value`; one without a value goes last."""
    key = "" if value is None or math.isnan(value) else f"{value:.6g}"
    return f'<td class="n" data-v="{key}">{text}</td>'
