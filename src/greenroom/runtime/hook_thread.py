"""The hook thread: runs what middleware wants to know after the engine has said what became of a message.

Lazy: without a middleware that overrides ``after_ack``, ``after_nack``, ``after_enqueue`` or ``after_stale_lease`` it
is never started.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import partial
from queue import SimpleQueue
from typing import Any

from ..core.run import Run
from ..core.verdict import Verdict
from ..errors import StaleLease
from ..logging import get_logger

logger = get_logger("greenroom.worker", "HookThread")


class HookThread:
    """Owns nothing but its queue. ``settled`` and ``lost`` are called by the pump, ``stop`` by the worker."""

    def __init__(self, broker: Any) -> None:
        self._broker = broker
        self._queue: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None

    def settled(self, runs: Sequence[Run]) -> None:
        """Pump: these runs are settled. Costs three attribute reads if nobody wants to know."""
        hooks = self._broker.hooks
        if hooks.after_ack or hooks.after_nack or hooks.after_enqueue:
            self._put(partial(self._tell_all, runs))

    def lost(self, run: Run, error: StaleLease) -> None:
        """Pump: this run was not settled, because its message was given to somebody else."""
        if self._broker.hooks.after_stale_lease:
            self._put(partial(self._broker.emit_after, "stale_lease", run, error))

    def _put(self, action: Callable[[], None]) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._main, name="hooks", daemon=True)
            self._thread.start()
        self._queue.put(action)

    def catch_up(self, timeout_s: float) -> None:
        """Any thread: waits until the hooks of all that was settled so far have run."""
        if self._thread is not None:
            done = threading.Event()
            self._queue.put(done.set)
            done.wait(timeout_s)

    def stop(self) -> None:
        """Runs what is left and ends."""
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join(10.0)
            self._thread = None

    def _main(self) -> None:
        while (action := self._queue.get()) is not None:
            try:
                action()
            except BaseException:  # a hook's SystemExit must not cost the hooks of other messages
                logger.critical("A hook has raised what no hook should raise.", exc_info=True)

    def _tell_all(self, runs: Sequence[Run]) -> None:
        for run in runs:
            self.tell(run)

    def tell(self, run: Run) -> None:
        """Runs the hooks for one run that is settled, in the calling thread."""
        settlement = run.settlement
        for message, delay in run.sent:
            self._broker.emit_after("enqueue", message, delay)
        if settlement.verdict is Verdict.DEAD:
            self._broker.emit_after("nack", run)
            return
        if settlement.verdict is Verdict.RELEASE:  # it has not come to an end
            return
        if settlement.verdict is Verdict.RETRY:
            self._broker.emit_after("enqueue", run._message, run.retry_delay_ms)
        self._broker.emit_after("ack", run)
