"""Exponential backoff: one formula for reconnecting and polling. (The formula for retries is ``core/retry.py``.)"""

from __future__ import annotations

import random


def compute_backoff(
    attempts: int, *, factor: int = 5, jitter: bool = True, max_backoff: int = 2000, max_exponent: int = 32
) -> tuple[int, int]:
    """Returns ``(attempts + 1, backoff in milliseconds)``, as ``dramatiq.common.compute_backoff`` does.

    Without jitter the backoff is ``min(factor * 2**attempts, max_backoff)``; with jitter it is between a half of that
    and the whole.
    """
    exponent = min(attempts, max_exponent)
    backoff = min(factor * 2**exponent, max_backoff)
    if jitter:
        half = backoff / 2
        backoff = int(half + random.uniform(0, half))
    return attempts + 1, backoff


def full_jitter_s(
    attempt: int, *, base_s: float = 0.05, cap_s: float = 15.0, rng: random.Random | None = None
) -> float:
    """Seconds to wait before reconnect ``attempt`` (0 is the first): uniform in (0, min(cap, base * 2**attempt)).

    Full jitter keeps a fleet from reconnecting in step (AWS Architecture Blog, "Exponential Backoff And Jitter").
    """
    ceiling = min(cap_s, base_s * 2.0 ** min(attempt, 32))
    return (rng.random() if rng else random.random()) * ceiling
