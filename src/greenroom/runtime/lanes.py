"""Lanes: how much each kind of executor holds and may hold. Threads are one lane, the event loop is another."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from ..core.prefetch import MAX_CLAIM, claim_limit, hold_target
from ..core.run import Run
from ..ports.transport import Delivery, Settlement

#: A lane that had a smaller part of the last claims does not bound the next one.
_LEAST_SHARE = 0.02


class Lane:
    """Owned by the pump. ``held`` counts what was handed to the executor and has not come back."""

    __slots__ = ("_busy_s", "_runs", "executor", "held", "share", "target")

    def __init__(self, executor: Any) -> None:
        self.executor = executor
        self.held = 0
        self.target: int = executor.count
        #: The part of the last claims, about, that was of this kind.
        self.share = 0.5
        self._runs = 0
        self._busy_s = 0.0

    @property
    def is_in_use(self) -> bool:
        """True unless the last claims hardly brought anything of this kind."""
        return self.share > _LEAST_SHARE

    @property
    def is_busy(self) -> bool:
        """True if runs wait for a place in the executor."""
        return not self.executor.idle

    def limit(self) -> int:
        """How many messages of this kind may be claimed now."""
        return claim_limit(self.target, self.held, busy=not self.executor.idle)

    def surplus(self, count: int) -> int:
        """How many of ``count`` runs are better given back: beyond the target, and behind a whole round of others."""
        room: int = self.executor.count - self.executor.waiting
        return max(0, count - max(0, room, self.target - self.held))

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


def joint_limit(lanes: Sequence[Lane], round_size: int) -> int:
    """How many messages to claim for several lanes at once, of which nobody knows beforehand whose they are.

    As many as every lane has room for if the next messages are mixed like the last ones. If a lane that is in use is
    full, no more than ``round_size``: what comes along for it may wait a round, the rest is given back.
    """
    limits = [lane.limit() for lane in lanes]
    if not any(limits):
        return 0
    in_use = [(lane, limit) for lane, limit in zip(lanes, limits, strict=True) if lane.is_in_use]
    if not all(limit for _, limit in in_use):
        return min(max(limits), round_size)
    return min(MAX_CLAIM, *(int(limit / lane.share) for lane, limit in in_use))


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

    def claimed(self, deliveries: Sequence[Delivery]) -> None:
        """These were claimed."""
        self._held.update(delivery.queue for delivery in deliveries)

    def decided(self, settlements: Sequence[Settlement]) -> None:
        """These were decided without having run: they are not held any more."""
        self._held.subtract(settlement.delivery.queue for settlement in settlements)

    def returned(self, runs: Sequence[Run]) -> None:
        """These have finished."""
        self._held.subtract(run.delivery.queue for run in runs)
