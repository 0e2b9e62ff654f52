"""Plotly figures as JSON in the page; a script of the page draws them in the reader's colors."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, Literal

Height = Literal["low", "usual", "tall"]


def figure(
    traces: Sequence[Mapping[str, Any]], layout: Mapping[str, Any], *, label: str, height: Height = "usual"
) -> str:
    """The HTML of one figure.

    Args:
        traces: As `data` of a Plotly figure; text in them is HTML, so it has to be escaped already.
        layout: Plotly's layout; colors of text and grid are left to the page.
        label: What the figure shows, for those who can't see it.
        height: Of the figure.
    """
    data = json.dumps(finite({"data": list(traces), "layout": dict(layout)}), ensure_ascii=False)
    safe = data.replace("<", "\\u003c")
    return (
        f'<figure class="plot {height}" role="img" aria-label="{escape(label)}">'
        f'<script type="application/json">{safe}</script></figure>'
    )


def finite(data: Any) -> Any:
    """The same data with null for numbers that JSON does not know."""
    if isinstance(data, float):
        return data if math.isfinite(data) else None
    if isinstance(data, Mapping):
        return {key: finite(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [finite(value) for value in data]
    return data
