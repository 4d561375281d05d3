"""The ticker: one thread that looks at the executors' clocks, and says that the process lives."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from ..board import Board
from ..errors import BrokerError
from ..logging import get_logger
from ..ports.transport import Consumer

logger = get_logger("greenroom.worker", "Ticker")

#: Seconds between two rounds, at the most; a ``TimeLimit`` with a shorter interval makes it shorter.
LONGEST_INTERVAL_S = 0.5
#: Seconds between two renewals of the owner's lease.
EXTEND_EVERY_S = 1.0


class Heartbeat:
    """Owned by the ticker's thread. Says on the board, and to the engine, that the process lives.

    Parameters:
      on_cut_off: Called in each round in which the engine has not heard it for too long.
    """

    def __init__(self, broker: Any, consumer: Consumer, board: Board, on_cut_off: Callable[[], None]) -> None:
        self._clock = broker.clock
        self._consumer = consumer
        self._board = board
        self._on_cut_off = on_cut_off
        self._extend_at_s = 0.0

    def beat(self) -> None:
        """Beats. What the engine answers to a renewal is not decisive: settling tells what is still ours.

        Raises:
          Exception: It cannot be said any more that the process lives.
        """
        self._board.beat(self._clock.now_ms())
        if self._consumer.is_cut_off():
            self._on_cut_off()
        now_s = time.monotonic()
        if now_s < self._extend_at_s:
            return
        self._extend_at_s = now_s + EXTEND_EVERY_S
        try:
            self._consumer.extend()
        except BrokerError as e:
            logger.debug("The lease could not be renewed: %s", e)


class Ticker:
    """Each round it beats, and has every executor look at its slots.

    Parameters:
      after_round: Called at the end of each round.
      on_failure: Called once, if the heartbeat has failed for good. Others will take this process for dead: end it.
    """

    def __init__(
        self,
        broker: Any,
        executors: Sequence[Any],
        heartbeat: Heartbeat,
        *,
        after_round: Callable[[], None],
        on_failure: Callable[[], None],
    ) -> None:
        self._broker = broker
        self._executors = executors
        self._heartbeat = heartbeat
        self._after_round = after_round
        self._on_failure = on_failure
        self._has_failed = False
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._main, name="ticker", daemon=True)
        intervals_ms = [m.interval for m in broker.middleware if hasattr(m, "time_limit") and hasattr(m, "interval")]
        self._interval_s = min([LONGEST_INTERVAL_S, *(ms / 1000 for ms in intervals_ms)])

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread."""
        self._ended.set()
        if self._thread.ident is not None:  # it was started
            self._thread.join(5.0)

    def _main(self) -> None:
        self._beat()
        while not self._ended.wait(self._interval_s):
            self._beat()
            now_s = self._broker.clock.monotonic()
            for executor in self._executors:
                _try(executor.tick, now_s)
            self._after_round()

    def _beat(self) -> None:
        if self._has_failed:
            return
        try:
            self._heartbeat.beat()
        except Exception:
            self._has_failed = True
            logger.critical("The heartbeat has failed: others will take this process for dead.", exc_info=True)
            self._on_failure()


def _try(action: Callable[..., None], *args: Any) -> None:
    try:
        action(*args)
    except Exception:
        logger.exception("A round of the ticker failed.")
