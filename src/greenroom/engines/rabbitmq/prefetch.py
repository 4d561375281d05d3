"""How many messages of a queue the broker hands to this process before they are settled.

AMQP knows one number a consumer, and reads it when the consumer begins. To raise it one begins anew; to lower it one
gives back what has not started, too. So it goes in few steps, and downwards seldom.
"""

from __future__ import annotations

#: The largest step, but for processes that run more than that at a time.
MAX_PREFETCH = 1000
#: What may wait here to be claimed, in bytes of bodies, by the mean size of late.
MAX_WAITING_BYTES = 64 * 1024 * 1024
#: Seconds between two steps down.
DOWN_EVERY_S = 2.0

#: AMQP has two bytes for it.
_AMQP_MAX = 65_535


class Prefetch:
    """The steps of one process. Owned by its consumer.

    Without ``places`` it is what is asked for, no more: a consumer without a board serves programs that take message by
    message.
    """

    def __init__(self) -> None:
        self._steps: tuple[int, ...] = ()
        self._mean_body = 0.0

    def set_places(self, places: int) -> None:
        """Says how many messages the process runs at a time: the first step."""
        ladder = {places, 8 * places, 500, MAX_PREFETCH}
        most = max(MAX_PREFETCH, places)
        self._steps = tuple(sorted(min(step, _AMQP_MAX) for step in ladder if places <= step <= most))

    def saw(self, count: int, size: int) -> None:
        """Notes that ``count`` messages came, of ``size`` bytes together."""
        mean = size / count
        self._mean_body = mean if not self._mean_body else (self._mean_body + mean) / 2

    def step_for(self, wanted: int) -> int:
        """The step at which ``wanted`` messages can be held."""
        step = next((step for step in self._steps if step >= wanted), self._steps[-1]) if self._steps else wanted
        if step * self._mean_body > MAX_WAITING_BYTES:
            step = min(step, max(self._steps[0] if self._steps else 1, int(MAX_WAITING_BYTES / self._mean_body)))
        return max(1, min(step, _AMQP_MAX))
