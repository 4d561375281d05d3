"""The hook thread: runs what middleware wants to know after the engine has said that a message is settled.

Lazy: without a middleware that overrides ``after_ack``, ``after_nack`` or ``after_enqueue`` it is never started.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from queue import SimpleQueue
from typing import Any

from ..core.run import Run
from ..core.verdict import Verdict
from ..logging import get_logger

logger = get_logger("greenroom.worker", "HookThread")


class HookThread:
    """Owns nothing but its queue. ``settled`` is called by the pump, ``stop`` by the worker."""

    def __init__(self, broker: Any) -> None:
        self._broker = broker
        self._queue: SimpleQueue[Sequence[Run] | threading.Event | None] = SimpleQueue()
        self._thread: threading.Thread | None = None

    def settled(self, runs: Sequence[Run]) -> None:
        """Pump: these runs are settled. Costs three attribute reads if nobody wants to know."""
        hooks = self._broker.hooks
        if not (hooks.after_ack or hooks.after_nack or hooks.after_enqueue):
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._main, name="hooks", daemon=True)
            self._thread.start()
        self._queue.put(runs)

    def catch_up(self, timeout_s: float) -> None:
        """Any thread: waits until the hooks of all that was settled so far have run."""
        if self._thread is not None:
            done = threading.Event()
            self._queue.put(done)
            done.wait(timeout_s)

    def stop(self) -> None:
        """Runs what is left and ends."""
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join(10.0)
            self._thread = None

    def _main(self) -> None:
        while (runs := self._queue.get()) is not None:
            if isinstance(runs, threading.Event):
                runs.set()
                continue
            for run in runs:
                self.tell(run)

    def tell(self, run: Run) -> None:
        """Runs the hooks for one run that is settled, in the calling thread."""
        settlement = run.settlement
        if settlement.verdict is Verdict.DEAD:
            self._broker.emit_after("nack", run)
            return
        if settlement.verdict is Verdict.RETRY:
            self._broker.emit_after("enqueue", run._message, run.retry_delay_ms)
        self._broker.emit_after("ack", run)
