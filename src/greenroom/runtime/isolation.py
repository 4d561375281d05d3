"""Suspects run alone: nothing else is claimed while there is one, what is held finishes and is settled, then one of
them starts.

If what is held takes too long, the suspects are given back, so that an idle process may take them and the threads here
go on. Which of them and when is decided by ``core.suspects``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..core.run import Run
from ..core.suspects import Suspects, given_back_for_ms
from ..core.verdict import Verdict
from ..logging import get_logger, one_line
from ..ports.transport import Settlement
from .intake import Intake
from .lanes import Lane

logger = get_logger("greenroom.worker", "Pump")


class Isolation:
    """Owned by the pump's thread."""

    def __init__(self, broker: Any, intake: Intake, threads: Lane, loop: Lane) -> None:
        self._clock = broker.clock
        self._intake = intake
        self._threads = threads
        self._loop = loop
        self._suspects = Suspects()
        self._one_runs = False
        #: True while a suspect waits or runs: nothing may be claimed.
        self.is_on = False

    def add(self, runs: Sequence[Run]) -> None:
        """Puts suspects aside."""
        now_s = self._clock.monotonic()
        for run in runs:
            if self._suspects.add(run, now_s):
                logger.warning("Nothing is claimed until message %s has run alone.", one_line(run.message_id, 255))
        self.is_on = self.is_on or bool(runs)

    def step(self, *, all_settled: bool) -> list[Settlement]:
        """Starts the next suspect if it is alone now, and all that has finished is settled: it may take the process
        along. Returns settlements that give back those whose patience is over: they are not held any more."""
        now_s = self._clock.monotonic()
        others = self._threads.held + self._loop.held
        stuck = self._threads.executor.count_stuck() if others else 0
        if others <= stuck:
            self._one_runs = False  # or it is stuck itself
        starts = all_settled and not self._one_runs
        if starts and (run := self._suspects.take(others, stuck, now_s)) is not None:
            self._one_runs = True
            self._intake.feed_alone(run)
        given_up = self._suspects.give_up(now_s) if others else []
        if given_up:
            logger.info("%d messages that are to run alone are given back: %d others still run.", len(given_up), others)
        self.is_on = self._one_runs or bool(self._suspects)
        return [self._give_back(run) for run in given_up]

    def _give_back(self, run: Run) -> Settlement:
        due_ms = self._clock.now_ms() + given_back_for_ms()
        logger.debug("Message %s is given back.", one_line(run.message_id, 255))
        return Settlement(run.delivery, Verdict.RELEASE, due_ms=due_ms)

    def wait_s(self, longest_s: float) -> float:
        """How long the pump may wait before the next step."""
        return min(longest_s, self._suspects.patience_left_s(self._clock.monotonic()))

    def drain(self) -> list[Run]:
        """Takes out those that have not started."""
        return self._suspects.drain()
