"""The worker: runs a broker's messages in this process."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterable, Sequence
from typing import Any

from .broker import Broker
from .core.outbox import Outbox
from .core.run import Run
from .logging import get_logger
from .runtime.hook_thread import HookThread
from .runtime.intake import Intake
from .runtime.pump import Pump
from .runtime.threads import ThreadExecutor, WorkerThread
from .settings import getenv_int

__all__ = ["Worker", "WorkerThread"]

DEFAULT_WORKER_TIMEOUT_MS = 1000
DEFAULT_WORKER_THREADS = 8
DEFAULT_STOP_TIMEOUT_MS = 600_000


class Worker:
    """Claims messages of a broker's queues and runs them on threads.

    Parameters:
      broker: The broker.
      queues: Names of the queues to serve; None for all, also those declared later.
      worker_timeout: Milliseconds that a wait for messages may last; 1 000 by default (``greenroom_worker_timeout``).
      worker_threads: How many sync actors run at a time; 8 by default.
    """

    def __init__(
        self,
        broker: Broker,
        *,
        queues: Iterable[str] | None = None,
        worker_timeout: int | None = None,
        worker_threads: int = DEFAULT_WORKER_THREADS,
    ) -> None:
        if worker_threads < 1:
            raise ValueError(f"worker_threads must be at least 1, not {worker_threads}.")
        if worker_timeout is None:
            worker_timeout = getenv_int("dramatiq_worker_timeout", DEFAULT_WORKER_TIMEOUT_MS)
        self.logger = get_logger(__name__, type(self))
        self.broker: Any = broker
        self.queues = None if queues is None else set(queues)
        self.worker_timeout: int = worker_timeout or DEFAULT_WORKER_TIMEOUT_MS
        self.worker_threads = worker_threads
        self._pump: Pump | None = None
        self._executor: ThreadExecutor | None = None
        self._hook_thread: HookThread | None = None

    @property
    def is_running(self) -> bool:
        """True between ``start`` and ``stop``."""
        return self._pump is not None

    def start(self) -> None:
        """Starts the pump and the threads.

        Raises:
          RuntimeError: If the worker runs already.
          BrokerError: If the broker cannot be reached or opened.
        """
        if self._pump is not None:
            raise RuntimeError("This worker runs already.")
        broker = self.broker
        consumer = broker.transport.consumer(f"{socket.gethostname()}:{os.getpid()}")
        broker.emit_before("worker_boot", self)
        self._hook_thread = HookThread(broker)
        outbox = Outbox(self._ring)
        self._executor = executor = ThreadExecutor(broker, self.worker_threads, outbox)
        self._pump = Pump(
            consumer,
            Intake(broker, executor.ready),
            executor,
            outbox,
            wait_s=self.worker_timeout / 1000,
            settled=self._settled,
        )
        consumer.subscribe(sorted(self._served(broker.get_declared_queues())))
        broker.queue_listeners.append(self._queue_declared)
        executor.start()
        self._pump.thread.start()
        broker.emit_after("worker_boot", self)
        self.logger.debug("The worker has started.")

    def stop(self, timeout: int = DEFAULT_STOP_TIMEOUT_MS) -> None:
        """Stops claiming, gives back what has not started, and waits for what runs.

        Parameters:
          timeout: Milliseconds; what still runs then is left to run and is given back when the process ends.
        """
        pump, executor, hook_thread = self._pump, self._executor, self._hook_thread
        if pump is None or executor is None or hook_thread is None:
            return
        broker = self.broker
        broker.emit_before("worker_shutdown", self)
        broker.queue_listeners.remove(self._queue_declared)
        deadline_s = time.monotonic() + timeout / 1000
        pump.stop(deadline_s)
        executor.stop()
        if not executor.join(deadline_s):
            self.logger.warning("Messages still ran after %d ms; they are given back when this process ends.", timeout)
        pump.thread.join(max(1.0, deadline_s - time.monotonic()))
        hook_thread.stop()
        self._pump = self._executor = self._hook_thread = None
        broker.emit_after("worker_shutdown", self)

    def pause(self) -> None:
        """Stops claiming; what was claimed already is run."""
        pump = self._running()
        queues = self._served(self.broker.get_declared_queues())
        pump.order(lambda: pump.consumer.pause(queues))

    def resume(self) -> None:
        """Ends a pause."""
        pump = self._running()
        queues = self._served(self.broker.get_declared_queues())
        pump.order(lambda: pump.consumer.subscribe(queues))

    def join(self) -> None:
        """Waits until all served queues are empty and nothing runs. Messages may come in meanwhile."""
        for queue_name in self._served(self.broker.get_declared_queues()):
            self.broker.wait_for_worker(queue_name)

    def _running(self) -> Pump:
        if self._pump is None:
            raise RuntimeError("This worker does not run.")
        return self._pump

    def _served(self, queue_names: Iterable[str]) -> set[str]:
        return set(queue_names) if self.queues is None else {name for name in queue_names if name in self.queues}

    def _queue_declared(self, queue_name: str) -> None:
        pump = self._pump
        if pump is not None and self._served([queue_name]):
            pump.order(lambda: pump.consumer.subscribe([queue_name]))

    def _ring(self) -> None:
        if self._pump is not None:
            self._pump.ring()

    def _settled(self, runs: Sequence[Run]) -> None:
        if self._hook_thread is not None:
            self._hook_thread.settled(runs)
