"""Actors that run too long are interrupted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..core.options import check_options
from ..errors import Interrupt
from .middleware import Middleware

if TYPE_CHECKING:
    from ..ports.nouns import BrokerLike

#: Ten minutes, in milliseconds.
DEFAULT_TIME_LIMIT = 600_000


class TimeLimitExceeded(Interrupt):
    """Raised inside an actor that has run longer than its time limit."""


class TimeLimit(Middleware):
    """Gives every message a deadline, which its executor's slot carries.

    Parameters:
      time_limit: Milliseconds; ten minutes by default, None or ``float("inf")`` for none.
      interval: Milliseconds between two looks at the deadlines; 1 000 by default.
    """

    def __init__(self, *, time_limit: float | None = DEFAULT_TIME_LIMIT, interval: int = 1000) -> None:
        check_options({"time_limit": time_limit})
        self.time_limit = time_limit
        self.interval = interval

    @property
    def actor_options(self) -> set[str]:
        return {"time_limit"}

    def before_process_message(self, broker: BrokerLike, message: Any) -> None:
        slot = message.slot  # its deadline is cleared by the executor when the actor has returned
        if slot is None:
            return
        options = message.options
        limit = options.get("time_limit") if options else None
        if limit is None:
            limit = broker.actors[message.actor_name].options.get("time_limit", self.time_limit)
        if limit is not None:
            slot.deadline = broker.clock.monotonic() + limit / 1000
