"""Options: the near name for a misspelt one, and bounds."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from datetime import timedelta
from typing import Any

MIN_PRIORITY = -1000
MAX_PRIORITY = 1000

#: No delay is longer than this: ten years, in milliseconds.
MAX_DELAY_MS = 10 * 366 * 24 * 60 * 60 * 1000


def undefined_options_error(unknown: Iterable[str], known: Iterable[str]) -> str:
    """The text of the error about actor options that no middleware defines, with the near names."""
    unknown, known = sorted(unknown), sorted(known)
    hints = []
    for name in unknown:
        if near := near_name(name, known):
            hints.append(f"did you mean {near!r} instead of {name!r}?")
    hint = " " + " ".join(hints) if hints else " Did you forget to add a middleware to your Broker?"
    return f"The following actor options are undefined: {', '.join(unknown)}.{hint}"


def near_name(name: str, known: Iterable[str]) -> str | None:
    """The name in ``known`` that ``name`` is probably a misspelling of, or None."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.75)
    return near[0] if near and near[0] != name else None


def check_priority(priority: Any) -> int:
    """Returns ``priority``; raises ``ValueError`` unless it is an integer from -1000 to 1000 (lower runs sooner)."""
    if not isinstance(priority, int) or isinstance(priority, bool) or not MIN_PRIORITY <= priority <= MAX_PRIORITY:
        raise ValueError(f"priority must be an integer from {MIN_PRIORITY} to {MAX_PRIORITY}, not {priority!r}.")
    return priority


def delay_to_ms(delay: float | timedelta | None) -> int | None:
    """A delay in milliseconds, or None.

    Raises:
      ValueError: For negative and absurd ones.
      TypeError: For other types.
    """
    if delay is None:
        return None
    if isinstance(delay, timedelta):
        delay_ms = int(delay.total_seconds() * 1000)
    elif isinstance(delay, (int, float)) and not isinstance(delay, bool):
        delay_ms = int(delay)
    else:
        raise TypeError(f"delay must be milliseconds or a timedelta, not {type(delay).__name__}.")
    if not 0 <= delay_ms <= MAX_DELAY_MS:
        raise ValueError(f"delay must be from 0 to {MAX_DELAY_MS} milliseconds, not {delay_ms}.")
    return delay_ms
