"""What the pump tells its worker: counted, logged, and handed on to middleware."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from ..core.run import Run
from ..core.throttle import Throttle
from ..errors import StaleLease
from ..logging import get_logger
from ..ports.transport import Settlement
from .hook_thread import HookThread

logger = get_logger("greenroom.worker", "Pump")

#: So many stale leases are logged in a second, each in a line of its own.
LOGGED_PER_S = 10


class Accounts:
    """A ``PumpListener``. Written by the pump's thread, read by any.

    Parameters:
      hook_thread: Runs the hooks.
      gave_up: Called when the pump has failed.
    """

    def __init__(self, hook_thread: HookThread, gave_up: Callable[[], None]) -> None:
        #: How many runs have been settled.
        self.finished = 0
        #: How many settlements came too late.
        self.stale_leases = 0
        #: What the pump has failed with.
        self.fatal_error: Exception | None = None
        self._hook_thread = hook_thread
        self._gave_up = gave_up
        self._log_of_stale = Throttle(LOGGED_PER_S)

    def settled(self, runs: Sequence[Run]) -> None:
        self.finished += len(runs)
        self._hook_thread.settled(runs)

    def lost(self, settlements: Sequence[Settlement], runs: Sequence[Run]) -> None:
        self.stale_leases += len(settlements)
        for settlement in settlements:
            self._log_stale(settlement)
        for run in runs:
            self._hook_thread.lost(run, stale_lease(run.settlement))

    def _log_stale(self, settlement: Settlement) -> None:
        unlogged = self._log_of_stale.ask(time.monotonic())
        if unlogged is None:
            return
        if unlogged:
            logger.warning("%d more messages were no longer ours.", unlogged)
        logger.warning("%s", stale_lease(settlement))

    def failed(self, error: Exception) -> None:
        self.fatal_error = error
        self._gave_up()


def stale_lease(settlement: Settlement) -> StaleLease:
    """What the engine's answer means, as an error."""
    return StaleLease(
        f"Message {settlement.delivery.id} is no longer ours: its {settlement.verdict.name} was not applied."
    )
