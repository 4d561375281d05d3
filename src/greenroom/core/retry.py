"""Whether a failed message is tried again, and after how long: Dramatiq's rules as pure functions."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

from .options import MAX_DELAY_MS

#: Milliseconds. Seven days is also the hard ceiling of ``max_backoff``.
DEFAULT_MIN_BACKOFF = 15_000
DEFAULT_MAX_BACKOFF = 7 * 24 * 60 * 60 * 1000
DEFAULT_MAX_RETRIES = 20

_MAX_EXPONENT = 32


def is_expected(exception: BaseException, throws: Any) -> bool:
    """True if ``throws``, a class or a tuple of classes, names the exception. What came in a message's JSON is neither,
    and names nothing."""
    return isinstance(throws, (type, tuple)) and isinstance(exception, throws)


def is_exhausted(
    retries: int,
    exception: BaseException | None,
    *,
    max_retries: int | None,
    retry_when: Callable[[int, BaseException | None], bool] | None,
) -> bool:
    """True if a message that has been retried ``retries`` times is to be given up.

    ``retry_when(retries, exception)`` overrides ``max_retries``; ``max_retries=None`` means for ever.
    """
    if retry_when is not None:
        return not retry_when(retries, exception)
    return max_retries is not None and retries >= max_retries


def retry_delay_ms(
    retries: int, *, min_backoff: int, max_backoff: int, uniform: Callable[[float, float], float] = random.uniform
) -> int:
    """Milliseconds to wait before the next attempt.

    ``b = min_backoff * 2**min(retries, 32) * U(1, 2)``; if that exceeds ``max_backoff`` (itself at most seven days),
    ``b = max_backoff * U(0.5, 1)``. Source: the behaviour of Dramatiq 2.2's ``Retries``.
    """
    ceiling = min(max_backoff, DEFAULT_MAX_BACKOFF)
    backoff = int(min_backoff * 2 ** min(retries, _MAX_EXPONENT) * uniform(1, 2))
    if backoff > ceiling:
        backoff = int(ceiling * uniform(0.5, 1))
    return backoff


def wanted_delay_ms(delay: Any) -> int | None:
    """The delay that a ``Retry`` asks for, in milliseconds; None if it asks for none, or for what is no time.

    It never raises, for the message would be lost: what lies in the past is due at once, what is absurd comes late.
    """
    if not isinstance(delay, (int, float)) or isinstance(delay, bool) or math.isnan(delay):
        return None
    return int(min(max(delay, 0), MAX_DELAY_MS))
