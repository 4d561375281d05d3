"""The thread executor: N threads that take ready runs, run them, and put them into the outbox."""

from __future__ import annotations

import sys
import threading
import time
import traceback
from collections.abc import Sequence
from typing import Any

from .. import failpoints
from ..context import interruptible
from ..core.outbox import NOT_WAITING, Outbox
from ..core.ready import ReadyRuns
from ..core.run import Run
from ..logging import get_logger, one_line
from ..middleware.shutdown import Shutdown
from ..middleware.time_limit import TimeLimitExceeded
from ..threading import register_greenlet
from .interrupts import Shield, abandon, strike
from .slot import Slot
from .steps import compile_steps, run_sync

logger = get_logger("greenroom.worker", "WorkerThread")

#: Seconds after its time limit, and after the interrupts that did not end it, that a thread counts as stuck.
STUCK_AFTER_S = 5.0
#: Seconds between two interrupts of the same actor.
STRIKE_EVERY_S = 1.0


class WorkerThread(threading.Thread):
    """One worker thread, also as middleware sees it. Owns its slot and the run that it runs."""

    def __init__(self, executor: ThreadExecutor, slot: Slot) -> None:
        super().__init__(daemon=True, name=f"worker-{slot.index}")
        self.broker = executor.broker
        self.slot = slot
        self._executor = executor

    def run(self) -> None:
        """The thread's life."""
        self.slot.thread_id = threading.get_ident()
        interruptible.slot = self.slot
        interruptible.shield = Shield
        register_greenlet()
        self.broker.emit_after("worker_thread_boot", self)
        try:
            self._loop()
        finally:
            self.broker.emit_before("worker_thread_shutdown", self)

    def _loop(self) -> None:
        broker, slot = self.broker, self.slot
        ready, outbox, clock = self._executor.ready, self._executor.outbox, time.perf_counter
        cells, place = self._executor.cells, slot.index
        append, tell, empty = outbox.append, outbox.tell, ready.empty
        pop = failpoints.after("start.before_attempt_persist", ready.pop)
        steps = compile_steps(broker)
        while (run := pop()) is not None:
            run.slot = slot
            slot.run = run
            cells[place] = run.delivery.mark  # from here on a crash is charged to it
            if steps.hooks is not broker._hooks:  # its middleware was changed
                steps = compile_steps(broker)
            run_sync(steps, run, clock)
            cells[place] = 0  # before it can be settled: its mark may then be another's
            slot.run = None
            append(run)
            run = None
            if outbox.ring_at < NOT_WAITING:
                tell(empty())
            if slot.abandoned:  # another thread has taken this one's place
                return


class ThreadExecutor:
    """Runs sync actors, ``count`` at a time. ``slots``, ``threads`` and ``stuck`` are changed by the ticker only.

    Parameters:
      broker: The broker.
      count: How many threads.
      outbox: Where finished runs go.
      cells: ``places(count)`` of the board's. A thread that takes the place of a stuck one has a cell of its own.
    """

    def __init__(self, broker: Any, count: int, outbox: Outbox, cells: memoryview) -> None:
        self.broker = broker
        self.count = count
        self.outbox = outbox
        self.cells = cells
        self.ready = ReadyRuns()
        self.slots = [Slot(index) for index in range(count)]
        self.threads = [WorkerThread(self, slot) for slot in self.slots]
        self.stuck: list[WorkerThread] = []
        self._stops = False

    @staticmethod
    def places(count: int) -> int:
        """How many cells of the board ``count`` threads need. Those of stuck threads are not used again: the worker
        gives up when half of them are stuck."""
        return 2 * count

    def start(self) -> None:
        """Starts the threads."""
        for thread in self.threads:
            thread.start()

    def feed(self, runs: Sequence[Run], priority: int) -> None:
        """Pump: hands runs of one priority over."""
        self.ready.push(runs, priority)

    def drain(self) -> list[Run]:
        """Takes back what has not started."""
        return self.ready.drain()

    @property
    def idle(self) -> bool:
        """True if nothing waits for a thread."""
        return self.ready.empty()

    @property
    def waiting(self) -> int:
        """How many runs wait for a thread."""
        return len(self.ready)

    def how_stuck(self) -> tuple[int, int]:
        """How many threads were given up, of how many."""
        return len(self.stuck), self.count

    def count_stuck(self) -> int:
        """Any thread: how many runs are in threads that were given up, and may never end."""
        return sum(thread.slot.run is not None for thread in list(self.stuck))

    # --- called by the ticker

    def tick(self, now_s: float) -> None:
        """Strikes what runs over its time limit, each second anew, and replaces threads that are stuck."""
        for index, slot in enumerate(self.slots):
            if self._stops:
                self._tell_of_shutdown(slot)
            deadline = slot.deadline
            if not deadline or now_s < deadline:
                continue
            run = slot.run
            if run is None or slot.deadline != deadline:  # it has returned meanwhile
                continue
            if now_s - deadline >= STUCK_AFTER_S and slot.strikes:
                self._replace(index, slot, run)
            elif now_s - deadline >= slot.strikes * STRIKE_EVERY_S:
                self._strike(slot, run)

    def _strike(self, slot: Slot, run: Run) -> None:
        """Logs afterwards: writing a line takes long enough for another message to begin there."""
        is_first = not slot.strikes
        if strike(slot, run, TimeLimitExceeded) and is_first:
            logger.warning("Time limit exceeded. Raising exception in worker thread %r.", slot.thread_id)

    def _replace(self, index: int, slot: Slot, run: Run) -> None:
        """Gives up on a thread. Its message stays claimed until the function returns, and has failed then."""
        if len(self.stuck) == self.count or not abandon(slot, run):
            return
        stuck = self.threads[index]
        frame = sys._current_frames().get(slot.thread_id)
        stack = "".join(traceback.format_stack(frame)) if frame is not None else "(no stack)\n"
        logger.error(
            "Worker thread %r is stuck in message %s: interrupts do not end it. Another one takes its place.\n%s",
            slot.thread_id,
            one_line(run),
            stack,
        )
        self.slots[index] = Slot(self.count + len(self.stuck))
        self.stuck.append(stuck)
        self.threads[index] = WorkerThread(self, self.slots[index])
        self.threads[index].start()

    def notify_shutdown(self) -> None:
        """Interrupts the actors that asked to be told of a shutdown; ``tick`` does so with those that begin yet."""
        self._stops = True
        for slot in self.slots:
            self._tell_of_shutdown(slot)

    def _tell_of_shutdown(self, slot: Slot) -> None:
        run = slot.run
        if run is not None and slot.notify_shutdown and strike(slot, run, Shutdown):
            logger.info("Worker shutdown notification. Raising exception in worker thread %r.", slot.thread_id)

    # --- the end

    def stop(self) -> None:
        """Tells the threads to end after what they run now."""
        for _ in self.threads:
            self.ready.stop_one()

    def join(self, deadline_s: float) -> bool:
        """Waits for the threads until ``deadline_s`` on the monotonic clock; True if all have ended."""
        for thread in self.threads:
            if thread.ident is not None:  # it was started
                thread.join(max(0.0, deadline_s - time.monotonic()))
        return not any(thread.is_alive() for thread in self.threads)
