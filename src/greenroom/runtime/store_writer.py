"""Store writers: one thread a store that is not the broker. Neither the pump nor an executor waits for such a store.

Its law:

* **First the store, then the settlement.** The pump settles a run that has something to be written elsewhere once it
  has been here. If this process dies meanwhile, the message is delivered again.
* **Natural batches.** What comes in while a trip is under way goes with the next one.
* **What is not strict is given up** after three tries or ten seconds, logged as ``result_lost`` and counted: a result
  must not keep a task from being done. What is strict is tried for as long as it takes.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue
from typing import Any

from ..backoff import full_jitter_s
from ..core.ending import Ending, Job
from ..core.failure import message_of, type_name
from ..errors import MessageTooLarge
from ..logging import get_logger, one_line
from ..ports.store import MAX_OPS

logger = get_logger("greenroom.worker", "StoreWriter")

MAX_TRIES = 3
#: Seconds after its first failure in which a job that is not strict may be tried.
PATIENCE_S = 10.0
#: The longest wait before the second try, and before any. Both are jittered.
FIRST_WAIT_S = 2.0
LONGEST_WAIT_S = 5.0
#: How many endings are taken at a time.
MAX_BATCH = 500
#: What no further try mends.
IMPOSSIBLE = (MessageTooLarge, ValueError)

#: Called on a writer's thread when nothing is left to be done before the settlement.
Done = Callable[[Ending], None]


class StoreWriters:
    """The writers of a worker, made when they are first needed. Any thread may call ``put``.

    Parameters:
      first_wait_s: The longest wait before the second try.
    """

    def __init__(self, first_wait_s: float = FIRST_WAIT_S) -> None:
        self.first_wait_s = first_wait_s
        #: How many jobs were given up.
        self.lost = 0
        self._writers: dict[int, _Writer] = {}
        self._lock = threading.Lock()  # guards: one writer a store
        self._stopped = threading.Event()

    def put(self, ending: Ending, done: Done) -> None:
        """Has an ending's jobs done, one after the other, then ``done(ending)``."""
        if not ending.jobs:
            done(ending)
            return
        owner = ending.jobs[0].owner
        with self._lock:
            writer = self._writers.get(id(owner))  # the writer keeps its owner, so the number is not given anew
            if writer is None:
                writer = self._writers[id(owner)] = _Writer(owner, self, self._stopped)
        writer.put(ending, done)

    def tidy(self, ending: Ending) -> None:
        """Has done what is left for after an ending's settlement."""
        ending.jobs, ending.later = ending.later, []
        self.put(ending, _nothing)

    def stop(self, timeout_s: float) -> None:
        """Ends the threads; what is still to be written then is not settled, and is delivered again."""
        self._stopped.set()
        for writer in self._writers.values():
            writer.stop(timeout_s)


class _Writer:
    """Owned by its thread, but for ``put``, which anybody may call."""

    def __init__(self, owner: Any, writers: StoreWriters, stopped: threading.Event) -> None:
        self.owner = owner
        self._writers = writers
        self._stopped = stopped
        self._queue: SimpleQueue[tuple[Ending, Done] | None] = SimpleQueue()
        self._failures = 0
        self._thread = threading.Thread(target=self._main, name="store-writer", daemon=True)
        self._thread.start()

    def put(self, ending: Ending, done: Done) -> None:
        self._queue.put((ending, done))

    def stop(self, timeout_s: float) -> None:
        self._queue.put(None)
        self._thread.join(timeout_s)

    def _main(self) -> None:
        waiting: list[tuple[Ending, Done]] = []
        while True:
            if waiting:
                self._stopped.wait(self._wait_s())
            entries = self._take(block=not waiting)
            waiting = self._write([*waiting, *entries])
            if self._stopped.is_set() and self._queue.empty():
                return

    def _wait_s(self) -> float:
        return full_jitter_s(self._failures - 1, base_s=self._writers.first_wait_s, cap_s=LONGEST_WAIT_S)

    def _take(self, *, block: bool) -> list[tuple[Ending, Done]]:
        """What has come in; waits for the first if there is nothing else to do."""
        entries = []
        try:
            entry = self._queue.get(block)
            while True:
                if entry is not None:
                    entries.append(entry)
                if len(entries) == MAX_BATCH:
                    break
                entry = self._queue.get_nowait()
        except Empty:
            pass
        return entries

    def _write(self, entries: Sequence[tuple[Ending, Done]]) -> list[tuple[Ending, Done]]:
        """Does the first job of each; returns those that have to be tried again."""
        self._apply([ending.jobs[0] for ending, _ in entries if ending.jobs[0].ops is not None])
        again = []
        for ending, done in entries:
            job = ending.jobs[0]
            if job.action is not None:
                self._try(job, job.action)
            if job.error is not None and not self._is_lost(ending, job):
                again.append((ending, done))
                continue
            ending.jobs.pop(0)
            self._writers.put(ending, done)
        self._failures = self._failures + 1 if again else 0
        return again

    def _apply(self, jobs: Sequence[Job]) -> None:
        """Applies the operations of many in as few trips as may be."""
        batch: list[Job] = []
        size = 0
        for job in jobs:
            count = len(job.ops or ())
            if batch and size + count > MAX_OPS:
                self._apply_together(batch)
                batch, size = [], 0
            batch.append(job)
            size += count
        if batch:
            self._apply_together(batch)

    def _apply_together(self, jobs: Sequence[Job]) -> None:
        ops = [op for job in jobs for op in job.ops or ()]
        try:
            answers = self.owner.apply(ops)
        except IMPOSSIBLE as e:
            if len(jobs) == 1:
                jobs[0].strict = False  # no patience helps
                jobs[0].tries = MAX_TRIES
                _note(jobs[0], e)
                return
            for job in jobs:
                self._apply_together([job])
        except Exception as e:  # noqa: BLE001  # a store may fail in any way; it is tried again, or given up
            for job in jobs:
                _note(job, e)
        else:
            for job in jobs:
                count = len(job.ops or ())
                self._tell(job, answers[:count])
                answers = answers[count:]

    def _tell(self, job: Job, answers: list[Any]) -> None:
        then = job.then
        if then is None:
            job.error = None
        else:
            self._try(job, lambda: then(answers))

    def _try(self, job: Job, action: Callable[[], Any]) -> None:
        try:
            action()
        except Exception as e:  # noqa: BLE001  # see above
            _note(job, e)
        else:
            job.error = None

    def _is_lost(self, ending: Ending, job: Job) -> bool:
        """True for what is given up; says so."""
        if job.strict or (job.tries < MAX_TRIES and time.monotonic() - job.failed_at_s < PATIENCE_S):
            return False
        self._writers.lost += 1
        _log_lost(ending, job)
        return True


def _nothing(ending: Ending) -> None:
    """When there is nothing to be settled any more."""


def write_now(ending: Ending) -> None:
    """For those who have no worker: does the jobs in the calling thread, and tries each once."""
    while ending.jobs:
        job = ending.jobs.pop(0)
        try:
            if job.ops is not None:
                answers = job.owner.apply(job.ops)
                if job.then is not None:
                    job.then(answers)
            elif job.action is not None:
                job.action()
        except Exception as e:  # noqa: BLE001  # a store may fail in any way; the message is done all the same
            _note(job, e)
            _log_lost(ending, job)


def _note(job: Job, error: Exception) -> None:
    if not job.tries:
        job.failed_at_s = time.monotonic()
    job.tries += 1
    job.error = error


def _log_lost(ending: Ending, job: Job) -> None:
    error = job.error or Exception()
    logger.error(
        "result_lost: what was to be kept of message %s could not be written: %s: %s",
        one_line(getattr(ending.message, "message_id", ending.delivery.id), 255),
        type_name(error),
        one_line(message_of(error), 500),
    )
