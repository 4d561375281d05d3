"""The ticker: one thread that looks at the executors' clocks."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

from ..logging import get_logger

logger = get_logger("greenroom.worker", "Ticker")

#: Seconds between two rounds, at the most; a ``TimeLimit`` with a shorter interval makes it shorter.
LONGEST_INTERVAL_S = 0.5


class Ticker:
    """Owns no state but its thread: each round it has every executor look at its slots."""

    def __init__(self, broker: Any, executors: Sequence[Any], *, after_round: Callable[[], None]) -> None:
        self._broker = broker
        self._executors = executors
        self._after_round = after_round
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
        self._thread.join(5.0)

    def _main(self) -> None:
        while not self._ended.wait(self._interval_s):
            now_s = self._broker.clock.monotonic()
            for executor in self._executors:
                try:
                    executor.tick(now_s)
                except Exception:
                    logger.exception("A round of the ticker failed.")
            self._after_round()
