"""From deliveries to ready runs, each in the lane of its kind."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..core.run import Run
from ..core.verdict import Verdict
from ..ports.transport import Delivery, Settlement
from .admission import Admission, Admitted, History
from .lanes import Lane


class Intake:
    """Owned by the pump's thread."""

    def __init__(self, broker: Any, threads: Lane, loop: Lane, history: History | None) -> None:
        admission = Admission(broker, history)
        self._admit = admission.admit
        self.catch_up = admission.catch_up
        self._threads = threads
        self._loop = loop
        self._skipped: dict[str, Lane] = {}

    def feed(self, deliveries: Sequence[Delivery]) -> Admitted:
        """Hands deliveries over; returns what was admitted, with settlements for what cannot be run here and now."""
        threads, loop = self._threads, self._loop
        admitted = self._admit(deliveries)
        batches: dict[tuple[Lane, int], list[Run]] = {}
        same: Any = None  # the actor whose messages go where the last one went: nearly always that one again
        for run in admitted.runs:
            actor = run.actor
            options = run._message.options
            has_own = "priority" in options
            if has_own or actor is not same:
                lane = loop if actor.is_async else threads
                batch = batches.setdefault((lane, options.get("priority", actor.priority)), [])
                same = None if has_own else actor
            batch.append(run)
        self._learn_shares(batches)
        for key in sorted(batches, key=_priority) if len(batches) > 1 else batches:
            admitted.decided += self._hand_over(*key, batches[key])
        return admitted

    def feed_alone(self, run: Run) -> None:
        """Hands over a run while nothing else is held."""
        lane = self._loop if run.actor.is_async else self._threads
        lane.held += 1
        lane.executor.feed((run,), 0)

    def _learn_shares(self, batches: dict[tuple[Lane, int], list[Run]]) -> None:
        """Notes how the kinds are mixed of late; the older half of the memory fades with every claim."""
        on_loop = sum(len(runs) for (lane, _), runs in batches.items() if lane is self._loop)
        total = sum(map(len, batches.values()))
        if total:
            self._loop.share = (self._loop.share + on_loop / total) / 2
            self._threads.share = 1.0 - self._loop.share

    def _hand_over(self, lane: Lane, priority: int, runs: list[Run]) -> list[Settlement]:
        """Feeds the lane with what it has room for, or may at least wait a round; gives back the rest."""
        released: list[Settlement] = []
        if surplus := lane.surplus(len(runs)):
            for run in runs[-surplus:]:
                released.append(Settlement(run.delivery, Verdict.RELEASE))
                self._skipped[run.delivery.queue] = lane
            del runs[-surplus:]
        if runs:
            lane.held += len(runs)
            lane.executor.feed(runs, priority)
        return released

    def skip(self) -> frozenset[str]:
        """The queues to leave out of a claim: something of theirs was given back, and its lane still has no room."""
        if not self._skipped:
            return frozenset()
        self._skipped = {queue: lane for queue, lane in self._skipped.items() if lane.held >= lane.target}
        return frozenset(self._skipped)


def _priority(key: tuple[Lane, int]) -> int:
    return key[1]
