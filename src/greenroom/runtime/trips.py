"""Trips to the engine: each is made again as it was until it is answered, or until no waiting can mend it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from ..backoff import full_jitter_s
from ..core.run import Run
from ..errors import BrokerCorrupt, BrokerError, BrokerFull, SchemaMismatch
from ..logging import get_logger
from ..ports.passing import says_how_it_went
from ..ports.transport import MAX_TRIP, Consumer, ConsumerClosed, Exchange, Settlement

logger = get_logger("greenroom.worker", "Pump")

#: The errors that are permanent. All others are transient.
PERMANENT = (BrokerCorrupt, SchemaMismatch, ConsumerClosed)


def fitting(runs: Sequence[Run]) -> Sequence[Run]:
    """The first of these whose settlements push no more than a trip carries, at least one."""
    pushes = 0
    for count, run in enumerate(runs):
        pushes += len(run.settlement.push)
        if pushes > MAX_TRIP and count:
            return runs[:count]
    return runs


class Trips:
    """Owned by the pump's thread.

    Parameters:
      consumer: Makes them.
      pause: Waits for so many seconds, or until somebody wants something of the pump.
    """

    def __init__(self, consumer: Consumer, pause: Callable[[float], None]) -> None:
        #: When to give up, on the monotonic clock; None for never.
        self.deadline_s: float | None = None
        self._consumer = consumer
        self._pause = pause
        self._failures = 0

    def make(self, settle: Sequence[Settlement], limit: int, skip: frozenset[str]) -> Exchange | None:
        """Makes a trip until it is answered. None if it was given up first: at the deadline, or as soon as there is one
        if the trip tells nobody how a run went. What was only claimed is given back by the end of the owner."""
        while True:
            try:
                exchange = self._consumer.exchange(settle, limit, skip)
            except PERMANENT:
                raise
            except BrokerError as e:
                if isinstance(e, BrokerFull):
                    limit = 0  # settling is what makes room
                self.failed(e)
                if self._gives_up(settle):
                    return None
            else:
                if self._failures:
                    logger.info("The broker answers again.")
                self._failures = 0
                return exchange

    def _gives_up(self, settle: Sequence[Settlement]) -> bool:
        if self.deadline_s is None:
            return False
        return time.monotonic() >= self.deadline_s or not says_how_it_went(settle)

    def failed(self, error: BrokerError) -> None:
        """Waits after a failure, each time longer."""
        delay_s = full_jitter_s(self._failures)
        self._failures += 1
        logger.warning("A trip to the broker failed, trying again in %.1f s: %s", delay_s, error)
        self._pause(delay_s)
