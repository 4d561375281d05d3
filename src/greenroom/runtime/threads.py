"""The thread executor: N threads that take ready runs, run them, and put them into the outbox."""

from __future__ import annotations

import threading
import time
from typing import Any

from ..core.outbox import NOT_WAITING, Outbox
from ..core.ready import ReadyRuns
from ..core.slot import Slot
from ..logging import get_logger
from .steps import Steps, run_sync

logger = get_logger("greenroom.worker", "WorkerThread")


class WorkerThread(threading.Thread):
    """One worker thread, also as middleware sees it. Owns its slot and the run that it runs."""

    def __init__(self, executor: ThreadExecutor, slot: Slot) -> None:
        super().__init__(daemon=True, name=f"worker-{slot.index}")
        self.broker = executor.broker
        self.slot = slot
        self._executor = executor

    def run(self) -> None:
        self.slot.thread_id = threading.get_ident()
        self.broker.emit_after("worker_thread_boot", self)
        try:
            self._loop()
        finally:
            self.broker.emit_before("worker_thread_shutdown", self)

    def _loop(self) -> None:
        broker, slot = self.broker, self.slot
        ready, outbox, clock = self._executor.ready, self._executor.outbox, time.perf_counter
        pop, append, tell, empty = ready.pop, outbox.append, outbox.tell, ready.empty
        steps = Steps(broker)
        while (run := pop()) is not None:
            run.slot = slot
            if steps.hooks is not broker._hooks:  # its middleware was changed
                steps = Steps(broker)
            run_sync(steps, run, clock)
            append(run)
            run = None
            if outbox.ring_at < NOT_WAITING:
                tell(empty())


class ThreadExecutor:
    """Runs sync actors, ``count`` at a time."""

    def __init__(self, broker: Any, count: int, outbox: Outbox) -> None:
        self.broker = broker
        self.count = count
        self.outbox = outbox
        self.ready = ReadyRuns()
        self.slots = [Slot(index) for index in range(count)]
        self.threads = [WorkerThread(self, slot) for slot in self.slots]

    def start(self) -> None:
        """Starts the threads."""
        for thread in self.threads:
            thread.start()

    def stop(self) -> None:
        """Tells the threads to end after what they run now."""
        for _ in self.threads:
            self.ready.stop_one()

    def join(self, deadline_s: float) -> bool:
        """Waits for the threads until ``deadline_s`` on the monotonic clock; True if all have ended."""
        for thread in self.threads:
            thread.join(max(0.0, deadline_s - time.monotonic()))
        return not any(thread.is_alive() for thread in self.threads)
