"""Durations as people write them: `90s`, `15m`, `4h`, `2d`, `1h 30m`."""

from __future__ import annotations

import re

from autocompress.errors import InvalidInput

_SECONDS = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0}
_DURATION = re.compile(r"\s*(?:\d+(?:\.\d+)?\s*[dhms]\s*)+")
_PART = re.compile(r"(\d+(?:\.\d+)?)\s*([dhms])")


def parse_duration(text: str) -> float:
    """Seconds of a duration.

    >>> parse_duration("15m"), parse_duration("1h 30m"), parse_duration("1.5h")
    (900.0, 5400.0, 5400.0)

    Raises:
        InvalidInput: If the text is no duration, or none longer than 0.
    """
    if not _DURATION.fullmatch(text.lower()):
        raise InvalidInput(f"duration {text!r}: expected a number and a unit, like 90s, 15m, 4h, 2d or 1h30m")
    seconds = sum(float(number) * _SECONDS[unit] for number, unit in _PART.findall(text.lower()))
    if seconds <= 0:
        raise InvalidInput(f"duration {text!r}: expected more than 0, like 90s, 15m, 4h or 2d")
    return seconds


def format_duration(seconds: float) -> str:
    """A duration by its two largest units, rounded to seconds.

    >>> format_duration(12.3), format_duration(200), format_duration(5400), format_duration(183600)
    ('12s', '3m 20s', '1h 30m', '2d 3h')
    """
    rest = round(max(seconds, 0.0))
    parts = []
    for unit, size in _SECONDS.items():
        count, rest = divmod(rest, int(size))
        parts.append((count, unit))
    first = next((index for index, (count, _) in enumerate(parts) if count), len(parts) - 1)
    return " ".join(f"{count}{unit}" for count, unit in parts[first : first + 2] if count) or "0s"
