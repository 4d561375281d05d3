"""What to do with a message whose actor nobody here knows: during a rolling deploy another worker may."""

from __future__ import annotations

FIRST_WAIT_MS = 5_000
LONGEST_WAIT_MS = 60_000
#: How long such a message is tried before it is dead-lettered, in milliseconds.
DEFAULT_TTL_MS = 900_000


def released_until_ms(met_ms: int, now_ms: int, ttl_ms: int) -> int | None:
    """When to try again a message that a worker first met at ``met_ms``, or None once ``ttl_ms`` of waiting are used
    up.

    Waits double from 5 s to a minute.
    """
    waited_ms = max(0, now_ms - met_ms)
    if waited_ms >= ttl_ms:
        return None
    return now_ms + _next_wait_ms(waited_ms)


def waited_ms(attempt: int) -> int:
    """How long a message has waited before its ``attempt``-th claim (from 1), if all its claims were in vain. For
    engines that keep no history."""
    waited = 0
    for _ in range(1, attempt):
        waited += _next_wait_ms(waited)
    return waited


def _next_wait_ms(waited_ms: int) -> int:
    return min(LONGEST_WAIT_MS, waited_ms + FIRST_WAIT_MS)
