"""Lanes: how much each kind of executor holds and may hold. Threads are one lane, the event loop is another."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from ..core.prefetch import claim_limit, hold_target
from ..core.run import Run
from ..ports.transport import Delivery, Settlement


class Lane:
    """Owned by the pump. ``held`` counts what was handed to the executor and has not come back."""

    __slots__ = ("_busy_s", "_runs", "executor", "held", "target")

    def __init__(self, executor: Any) -> None:
        self.executor = executor
        self.held = 0
        self.target: int = executor.count
        self._runs = 0
        self._busy_s = 0.0

    @property
    def is_busy(self) -> bool:
        """True if runs wait for a place in the executor."""
        return not self.executor.idle

    def limit(self) -> int:
        """How many messages of this kind may be claimed now."""
        return claim_limit(self.target, self.held, busy=not self.executor.idle)

    def surplus(self, count: int) -> int:
        """How many of ``count`` runs would wait behind a whole round of others, and are better given back."""
        room: int = self.executor.count - self.executor.waiting
        return max(0, count - max(0, room))

    def adjust(self, mean_body: float) -> None:
        """Sets the target by the mean run time since the last time."""
        runs = busy_s = 0.0
        for slot in self.executor.slots:
            runs += slot.runs
            busy_s += slot.busy_s
        new_runs, new_busy_s = runs - self._runs, busy_s - self._busy_s
        if new_runs < self.executor.count:
            return
        self._runs, self._busy_s = int(runs), busy_s
        self.target = hold_target(
            self.target, slots=self.executor.count, mean_run_s=max(0.0, new_busy_s) / new_runs, mean_body=mean_body
        )


class QueueCap:
    """Owned by the pump: no more than ``cap`` messages of a queue are held by this process (``queue_prefetch``).

    One trip claims from several queues and cannot bound each; so it claims no more than the fullest open queue has room
    for, and leaves the full ones out.
    """

    def __init__(self, cap: int) -> None:
        self._cap = cap
        self._held: Counter[str] = Counter()

    def bound(self, limit: int, skip: frozenset[str]) -> tuple[int, frozenset[str]]:
        """The limit and the queues to leave out of the next claim."""
        full = {queue for queue, held in self._held.items() if held >= self._cap}
        fullest = max((held for held in self._held.values() if held < self._cap), default=0)
        return min(limit, self._cap - fullest), skip | full

    def claimed(self, deliveries: Sequence[Delivery], decided: Sequence[Settlement]) -> None:
        """These were claimed; those that were decided at once are not held."""
        self._held.update(delivery.queue for delivery in deliveries)
        self._held.subtract(settlement.delivery.queue for settlement in decided)

    def returned(self, runs: Sequence[Run]) -> None:
        """These have finished."""
        self._held.subtract(run.delivery.queue for run in runs)
