"""Durations are read as people write them, and nothing else is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autocompress.duration import format_duration, parse_duration
from autocompress.errors import InvalidInput


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("15m", 900), ("4h", 14400), ("2d", 172800), ("1h30m", 5400), ("1h 30m", 5400), (" 0.5H ", 1800)],
)
def test_units_are_seconds_minutes_hours_and_days(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "90", "4 hours", "-5m", "1e3s", "nan", "m", "5m later", "inf s", "4h,30m"])
def test_a_text_that_is_no_duration_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(InvalidInput, match=r"expected a number and a unit, like 90s, 15m, 4h"):
        parse_duration(text)


def test_no_time_at_all_is_refused() -> None:
    with pytest.raises(InvalidInput, match="more than 0"):
        parse_duration("0m")


@given(st.integers(min_value=1, max_value=10**7))
def test_what_is_formatted_can_be_read_and_is_right_to_its_second_unit(seconds: int) -> None:
    read = parse_duration(format_duration(seconds))
    assert read <= seconds
    assert seconds - read < (3600 if seconds >= 86400 else 60 if seconds >= 3600 else 1)


@pytest.mark.parametrize(("seconds", "text"), [(0, "0s"), (-3, "0s"), (59.6, "1m"), (60, "1m"), (90061, "1d 1h")])
def test_formatting_keeps_the_two_largest_units(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text
