"""Spans of time as people write and read them."""

from __future__ import annotations

from datetime import timedelta

import pytest

from greenroom.core.durations import duration_ms, human_duration


@pytest.mark.parametrize(
    ("duration", "ms"),
    [
        ("90s", 90_000),
        ("1h30m", 5_400_000),
        ("1 h 30 min", 5_400_000),
        ("30 days", 2_592_000_000),
        ("1 day, 2 hours and 3 minutes", 93_780_000),
        ("2 weeks", 1_209_600_000),
        ("1.5 s", 1_500),
        ("250ms", 250),
        ("1 Second", 1_000),
        (" 5 m ", 300_000),
        (timedelta(minutes=2, microseconds=1500), 120_001),
        (1_500, 1_500),
        (0, 0),
        (1.9, 1),
    ],
)
def test_durations_are_read(duration: str | timedelta | float, ms: int) -> None:
    """Numbers are milliseconds; text has units, long or short, one or several."""
    assert duration_ms(duration) == ms


@pytest.mark.parametrize("text", ["", "soon", "5", "5 parsecs", "s5", "1h later", "-5s", "s"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    """The error shows how to write one."""
    with pytest.raises(ValueError, match="is not a duration: write '90s'"):
        duration_ms(text)


@pytest.mark.parametrize("duration", [-1, timedelta(seconds=-1)])
def test_a_duration_is_not_negative(duration: int | timedelta) -> None:
    """Time does not run backwards."""
    with pytest.raises(ValueError, match="must not be negative"):
        duration_ms(duration)


@pytest.mark.parametrize("duration", [None, True, b"5s"])
def test_other_types_are_refused(duration: object) -> None:
    """A boolean is not a number of milliseconds."""
    with pytest.raises(TypeError, match="a duration is milliseconds"):
        duration_ms(duration)  # type: ignore[arg-type]  # wrong on purpose


@pytest.mark.parametrize(
    ("ms", "text"),
    [
        (0, "0 ms"),
        (999, "999 ms"),
        (1_000, "1 s"),
        (15_230, "15.2 s"),
        (60_000, "1 min"),
        (61_000, "1 min 1 s"),
        (5_400_000, "1 h 30 min"),
        (3_600_000, "1 h"),
        (3_601_000, "1 h"),
        (90_061_000, "1 d 1 h"),
        (604_800_000, "7 d"),
    ],
)
def test_durations_are_shown_in_two_units(ms: int, text: str) -> None:
    """Short for people: the two largest units that follow each other."""
    assert human_duration(ms) == text
