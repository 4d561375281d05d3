"""Errands: what has to be done before a message can be settled. It goes to the store writers and comes back to the pump
as an order, to be settled with the next trip.

* A run of which something is to be kept in a store that is not the broker's. Its place in the executor is free
  meanwhile; how many there may be is bounded.
* A message that ends without having run: middleware is asked about its end as about any other's, and no user code runs
  on the pump. Where no middleware wants to know, nothing of this happens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from ..core.ending import Ending, Outcome
from ..core.run import Run
from ..core.verdict import Verdict
from ..logging import get_logger
from ..ports.transport import ErrorText, Exchange, Settlement
from .admission import Admitted
from .endings import ask, readable_part, sealed
from .store_writer import StoreWriters

logger = get_logger("greenroom.worker", "Pump")


class Errands:
    """Owned by the pump's thread.

    Parameters:
      broker: Has the hooks.
      writers: Go on the errands.
      order: Has the pump call something.
      finished: Settles a run that has ended. Called by the pump.
      decided: Settles messages that never became runs. Called by the pump.
    """

    def __init__(
        self,
        broker: Any,
        writers: StoreWriters,
        order: Callable[[Callable[[], None]], None],
        finished: Callable[[Run], None],
        decided: Callable[[Sequence[Settlement]], None],
    ) -> None:
        self._broker = broker
        self._writers = writers
        self._order = order
        self._finished = finished
        self._decided = decided
        #: How many have not come back yet.
        self.waiting = 0
        #: Those of which something is left to do once they are settled, by the identity of their settlement.
        self.unfinished: dict[int, tuple[Settlement, Ending]] = {}

    def leave(self, runs: Sequence[Run]) -> Sequence[Run]:
        """Takes out, of what has finished, whatever cannot be settled yet; returns the rest."""
        if not self._broker.hooks.ending:
            return runs
        if not (left := [run for run in runs if run.ending is not None]):
            return runs
        for run in left:
            self._send(run.ending, partial(self._finish, run))
        return [run for run in runs if run.ending is None]

    def take(self, admitted: Admitted) -> None:
        """Takes out, of what was admitted, whatever middleware has to be asked about."""
        if not ((admitted.condemned or admitted.decided) and self._broker.hooks.ending):
            return
        for run in admitted.condemned:
            self._ask(run, run.settlement, partial(self._finish, run))
        admitted.condemned = []
        admitted.decided = [s for s in admitted.decided if not self.takes(s)]

    def answered(self, exchange: Exchange) -> None:
        """Has done what was left for after what is settled now."""
        for s in exchange.settled:
            if (found := self.unfinished.pop(id(s), None)) is not None:
                self._writers.tidy(found[1])
        for s in (*exchange.lost, *[s for s, _ in exchange.refused]):
            self.unfinished.pop(id(s), None)

    def refused(self, refused: Sequence[tuple[Settlement, Exception]]) -> list[Settlement]:
        """Dead-letters what the engine can never apply, with the reason. Returns those that nobody is asked about."""
        decided = []
        for s, error in refused:
            logger.error("The %s of message %s is impossible: %s", s.verdict.name, s.delivery.id, error)
            reason = ErrorText(type(error).__name__, str(error))
            dead = Settlement(s.delivery, Verdict.DEAD, error=reason)
            if s.verdict is Verdict.DEAD or not self.takes(dead):  # what is to be kept may be what is impossible
                decided.append(dead)
        return decided

    def takes(self, settlement: Settlement) -> bool:
        """Takes a settlement if it makes a dead letter and middleware has to be asked; else returns False."""
        if settlement.verdict is not Verdict.DEAD or not self._broker.hooks.ending:
            return False
        message = None
        if len(settlement.delivery.body) <= self._broker.max_message_bytes:
            message = readable_part(settlement.delivery.body)
        self._ask(message, settlement, self._decide)
        return True

    def _ask(self, message: Any, settlement: Settlement, settle: Callable[[Ending], None]) -> None:
        """Has middleware asked about a message that never ran, on a thread of its own."""
        ending = Ending(self._broker, message, settlement, Outcome.DEAD, error=settlement.error)
        ending.call(self, partial(ask, ending, self._broker.hooks.ending))
        self._send(ending, settle)

    def _send(self, ending: Ending, settle: Callable[[Ending], None]) -> None:
        self.waiting += 1
        self._writers.put(ending, lambda ending: self._order(partial(self._back, ending, settle)))

    # --- called by the pump, on its order

    def _back(self, ending: Ending, settle: Callable[[Ending], None]) -> None:
        self.waiting -= 1
        settle(ending)

    def _sealed(self, ending: Ending) -> Settlement:
        settlement = sealed(ending)
        if ending.later:
            self.unfinished[id(settlement)] = (settlement, ending)
        return settlement

    def _finish(self, run: Run, ending: Ending) -> None:
        run.settlement = self._sealed(ending)
        run.ending = run.result = None
        self._finished(run)

    def _decide(self, ending: Ending) -> None:
        self._decided([self._sealed(ending)])
