"""What a message does whose limit was reached, if its actor says ``limit_policy="wait"``."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

#: ``limit_policy``: count a retry, as for any failure; or give the message back until there is room.
POLICIES = ("raise", "wait")

#: How long a message waits for a slot whose line is not kept where the messages are: whoever gives it back cannot wake
#: the message, so it looks again, in milliseconds.
LOOK_AGAIN_MS = (1_000, 5_000)


def due_ms(
    retry_at_ms: int | None, now_ms: int, *, is_slot: bool, uniform: Callable[[float, float], float] = random.uniform
) -> int:
    """When a message that was refused is tried again, in UNIX milliseconds: exactly when there is room, if the limit
    knows that; a slot may be given back long before it ends, so there the message looks again after a while."""
    look_again_ms = now_ms + int(uniform(*LOOK_AGAIN_MS))
    if retry_at_ms is None:
        return look_again_ms
    return min(retry_at_ms, look_again_ms) if is_slot else retry_at_ms


def check_policy(name: str, value: Any) -> None:
    """Raises unless ``value`` is a policy."""
    if value not in POLICIES:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, POLICIES))}: {value!r:.100}.")
