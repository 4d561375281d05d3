"""What the executors have finished, on its way to the pump."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

#: What ``ring_at`` is while the pump is awake.
NOT_WAITING = 1 << 62


class Outbox:
    """Appended to by executors, emptied by the pump; a deque's operations are atomic.

    The pump announces that it waits, looks at the outbox once more, and waits; an executor appends, then looks at the
    announcement. So no wake-up is lost, and while the pump works an append costs nothing else.
    """

    __slots__ = ("_ring", "append", "items", "ring_at")

    def __init__(self, ring: Callable[[], None]) -> None:
        self.items: deque[Any] = deque()
        self.append = self.items.append
        self._ring = ring
        #: How many finished runs wake the pump; huge while it does not wait.
        self.ring_at = NOT_WAITING

    def announce(self, ring_at: int) -> None:
        """Pump: says that it is about to wait for that many runs."""
        self.ring_at = ring_at

    def withdraw(self) -> None:
        """Pump: says that it is awake."""
        self.ring_at = NOT_WAITING

    def tell(self, idle: bool) -> None:
        """Executor, after an append: wakes the pump if it waits for so many, or if there is nothing else to do."""
        ring_at = self.ring_at
        if ring_at != NOT_WAITING and (idle or len(self.items) >= ring_at):
            self.ring_at = NOT_WAITING
            self._ring()

    def take(self, limit: int) -> list[Any]:
        """Pump: up to ``limit`` of the finished runs, oldest first."""
        items = self.items
        return [items.popleft() for _ in range(min(limit, len(items)))]
