"""Spans of time as people write them: ``"1h30m"`` to milliseconds, and milliseconds to ``"1 h 30 min"``."""

from __future__ import annotations

import re
from datetime import timedelta

_UNITS_MS = {
    "ms": 1,
    "s": 1_000,
    "m": 60_000,
    "h": 3_600_000,
    "d": 86_400_000,
    "w": 604_800_000,
}
_NAMES = {
    "millisecond": "ms",
    "sec": "s",
    "second": "s",
    "min": "m",
    "minute": "m",
    "hour": "h",
    "day": "d",
    "week": "w",
}
_PART = re.compile(r"\s*(?P<number>\d+(?:\.\d+)?)\s*(?P<unit>[a-z]+)\s*(?:,|and\b)?\s*", re.IGNORECASE)
_SHOWN = (("d", 86_400_000), ("h", 3_600_000), ("min", 60_000), ("s", 1_000))


def duration_ms(duration: str | timedelta | float) -> int:
    """A duration in milliseconds.

    Parameters:
      duration: Milliseconds, a timedelta, or text such as ``"90s"``, ``"1h30m"``, ``"30 days"``, ``"2 weeks"``.

    Raises:
      ValueError: If the text is not a duration, or the duration is negative.
      TypeError: For other types.
    """
    if isinstance(duration, str):
        return _parse_ms(duration)
    if isinstance(duration, timedelta):
        ms = duration // timedelta(milliseconds=1)
    elif isinstance(duration, (int, float)) and not isinstance(duration, bool):
        ms = int(duration)
    else:
        kind = type(duration).__name__
        raise TypeError(f"a duration is milliseconds, a timedelta, or text such as '1h30m', not {kind}.")
    if ms < 0:
        raise ValueError(f"a duration must not be negative: {duration!r}.")
    return ms


def _parse_ms(text: str) -> int:
    total_ms, position = 0.0, 0
    while position < len(text) or not text:
        part = _PART.match(text, position)
        unit_ms = _UNITS_MS.get(_unit(part["unit"])) if part else None
        if part is None or unit_ms is None:
            raise ValueError(
                f"{text!r} is not a duration: write '90s', '1h30m', '30 days' or milliseconds as a number."
            )
        total_ms += float(part["number"]) * unit_ms
        position = part.end()
    return round(total_ms)


def _unit(word: str) -> str:
    word = word.lower()
    if word in _UNITS_MS:
        return word
    return _NAMES.get(word.removesuffix("s"), word)


def human_duration(ms: int) -> str:
    """Milliseconds for people, in at most two units: ``"250 ms"``, ``"15.2 s"``, ``"3 h 20 min"``."""
    if ms < 1_000:
        return f"{ms} ms"
    if ms < 60_000:
        return f"{ms / 1_000:.1f}".removesuffix(".0") + " s"
    parts: list[str] = []
    for name, unit_ms in _SHOWN:
        number, ms = divmod(ms, unit_ms)
        if number:
            parts.append(f"{number} {name}")
        if len(parts) == 2 or (parts and not number):
            break
    return " ".join(parts)
