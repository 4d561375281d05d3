"""What to do with a message whose actor nobody here knows: during a rolling deploy another worker may."""

from __future__ import annotations

FIRST_WAIT_MS = 5_000
LONGEST_WAIT_MS = 60_000
#: How long such a message is tried before it is dead-lettered, in milliseconds.
DEFAULT_TTL_MS = 900_000


def released_until_ms(attempt: int, now_ms: int, ttl_ms: int) -> int | None:
    """When to try again after the ``attempt``-th claim (from 1), or None once ``ttl_ms`` of waiting are used up.

    Waits double from 5 s to a minute.
    """
    waited_ms = sum(_wait_ms(earlier) for earlier in range(1, attempt))
    if waited_ms >= ttl_ms:
        return None
    return now_ms + _wait_ms(attempt)


def _wait_ms(attempt: int) -> int:
    return min(LONGEST_WAIT_MS, FIRST_WAIT_MS << min(attempt - 1, 10))
