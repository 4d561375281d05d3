"""The worker: runs a broker's messages in this process."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

from .board import MAX_PLACES, Board
from .broker import Broker
from .core.outbox import Outbox
from .logging import get_logger
from .names import q_name
from .ports.transport import Consumer
from .runtime.accounts import Accounts
from .runtime.bridge import BridgeTransport
from .runtime.hook_thread import HookThread
from .runtime.loop import LoopExecutor
from .runtime.pump import Pump
from .runtime.store_writer import StoreWriters
from .runtime.threads import ThreadExecutor, WorkerThread
from .runtime.ticker import Heartbeat, Ticker
from .runtime.views import ConsumerThread, WorkQueue
from .settings import getenv_int

__all__ = ["ConsumerThread", "Worker", "WorkerThread"]

_ConsumerThread = ConsumerThread
_WorkerThread = WorkerThread

DEFAULT_WORKER_TIMEOUT_MS = 1000
DEFAULT_WORKER_THREADS = 8
DEFAULT_CONCURRENCY = 100
DEFAULT_STOP_TIMEOUT_MS = 600_000
#: Seconds that a start which has failed waits for what had begun to run.
UNDO_TIMEOUT_S = 10.0
#: Seconds that ``join`` waits for hooks.
HOOKS_TIMEOUT_S = 10.0
#: The longest wait before a user's consumer that failed is made anew.
DEFAULT_RESTART_DELAY_MS = 3000
MAX_PREFETCH = 65_535


class Worker:
    """Claims messages of a broker's queues and runs them on threads.

    Parameters:
      broker: The broker.
      queues: Names of the queues to serve; None for all, also those declared later.
      worker_timeout: Milliseconds that a wait for messages may last; 1 000 by default (``greenroom_worker_timeout``).
      worker_threads: How many sync actors run at a time; 8 by default.
      concurrency: How many async actors run at a time, on one event loop; 100 by default.
    """

    def __init__(
        self,
        broker: Broker,
        *,
        queues: Iterable[str] | None = None,
        worker_timeout: int | None = None,
        worker_threads: int = DEFAULT_WORKER_THREADS,
        concurrency: int = DEFAULT_CONCURRENCY,
    ) -> None:
        if worker_threads < 1:
            raise ValueError(f"worker_threads must be at least 1, not {worker_threads}.")
        if concurrency < 1:
            raise ValueError(f"concurrency must be at least 1, not {concurrency}.")
        if ThreadExecutor.places(worker_threads) + concurrency > MAX_PLACES:
            raise ValueError(f"{worker_threads} threads and {concurrency} coroutines are too many for one process.")
        if worker_timeout is None:
            worker_timeout = getenv_int("dramatiq_worker_timeout", DEFAULT_WORKER_TIMEOUT_MS)
        self.logger = get_logger(__name__, type(self))
        self.broker: Any = broker
        self.queues = None if queues is None else set(queues)
        self.worker_timeout: int = worker_timeout or DEFAULT_WORKER_TIMEOUT_MS
        self.worker_threads = worker_threads
        self.concurrency = concurrency
        #: What a user-written consumer may hand out of a queue, and of its delayed side.
        self.queue_prefetch = _prefetch("dramatiq_queue_prefetch", 2 * worker_threads)
        self.delay_prefetch = _prefetch("dramatiq_delay_queue_prefetch", 1000 * worker_threads)
        #: While it runs: by queue, a view of its consumption.
        self.consumers: dict[str, ConsumerThread] = {}
        self._pump: Pump | None = None
        self._executor: ThreadExecutor | None = None
        self._loop: LoopExecutor | None = None
        self._ticker: Ticker | None = None
        self._hook_thread: HookThread | None = None
        self._accounts: Accounts | None = None
        self._writers: StoreWriters | None = None
        #: Who will say on the board how this process ended; 0 if nobody will. To be set before ``start``.
        self.parent_pid = 0
        #: What this process runs right now, once it has started.
        self.board: Board | None = None
        #: Called with the board, by ``start`` before anything runs, and by the pump if the board gets a new file.
        self.on_board: Callable[[Board], object] | None = None
        #: Called once, on any thread, when this worker has become useless: half of its threads are stuck, or it cannot
        #: say any more that it lives, or
        #: ``fatal_error`` says why nothing can be claimed or settled. Stop it then, and end the process.
        self.on_stuck: Callable[[], object] | None = None
        #: True once that has happened.
        self.is_stuck = False

    @property
    def is_running(self) -> bool:
        """True between ``start`` and ``stop``."""
        return self._pump is not None

    @property
    def fatal_error(self) -> Exception | None:
        """What has ended the worker's traffic with its broker, if anything has: ``BrokerCorrupt``, ``SchemaMismatch``,
        or an error that nothing should raise. What runs may finish, and cannot be settled."""
        return None if self._accounts is None else self._accounts.fatal_error

    @property
    def finished(self) -> int:
        """How many messages have been run and settled since the start."""
        return 0 if self._accounts is None else self._accounts.finished

    @property
    def stale_leases(self) -> int:
        """How many settlements since the start came too late: their messages had been given to somebody else."""
        return 0 if self._accounts is None else self._accounts.stale_leases

    @property
    def results_lost(self) -> int:
        """How many results since the start could not be written to a store that is not the broker's own."""
        return 0 if self._writers is None else self._writers.lost

    @property
    def consumer_whitelist(self) -> set[str] | None:
        """The names of the queues to serve; None for all."""
        return self.queues

    @property
    def workers(self) -> list[WorkerThread]:
        """The worker threads, while it runs."""
        return [] if self._executor is None else list(self._executor.threads)

    @property
    def work_queue(self) -> WorkQueue:
        """A view of what was claimed and waits for a thread."""
        return WorkQueue(None if self._executor is None else self._executor.ready)

    def start(self) -> None:
        """Starts the pump and the threads.

        Raises:
          RuntimeError: If the worker runs already.
          BrokerError: If the broker cannot be reached or opened.
        """
        if self._pump is not None:
            raise RuntimeError("This worker runs already.")
        broker = self.broker
        transport = self._transport()
        consumer = transport.consumer(f"{socket.gethostname()}:{os.getpid()}")
        try:
            self._boot(transport, consumer)
        except BaseException:
            self._undo_boot(consumer)
            raise
        broker.emit_after("worker_boot", self)
        self.logger.debug("The worker has started.")

    def _boot(self, transport: Any, consumer: Consumer) -> None:
        broker = self.broker
        broker.emit_before("worker_boot", self)
        self._hook_thread = HookThread(broker)
        self._accounts = Accounts(self._hook_thread, self._give_up)
        self.is_stuck = False
        outbox = Outbox(self._ring)
        threads = ThreadExecutor.places(self.worker_threads)
        self.board = board = consumer.board(threads + self.concurrency, parent_pid=self.parent_pid)
        if self.on_board is not None:
            self.on_board(board)
            board.on_new_file = self.on_board
        self._executor = executor = ThreadExecutor(broker, self.worker_threads, outbox, board.cells[:threads])
        self._loop = loop = LoopExecutor(broker, self.concurrency, outbox, board.cells[threads:])
        self._pump = pump = Pump(
            broker,
            consumer,
            executor,
            loop,
            wait_s=self.worker_timeout / 1000,
            keeps_history=transport.features.history,
            listener=self._accounts,
            queue_cap=getenv_int("dramatiq_queue_prefetch", 0),
        )
        heartbeat = Heartbeat(broker, consumer, board, pump.let_go)
        self._ticker = Ticker(
            broker, (executor, loop), heartbeat, after_round=self._look_after, on_failure=self._stop_claiming
        )
        self._writers = pump.writers
        served = sorted(self._served(broker.get_declared_queues()))
        consumer.subscribe(served)
        broker.queue_listeners.append(self._queue_declared)
        executor.start()
        self._pump.thread.start()
        self._ticker.start()
        for queue_name in served:
            self._consumes(queue_name)

    def _undo_boot(self, consumer: Consumer) -> None:
        """Ends what was started of a worker that cannot be."""
        pump, executor, ticker = self._pump, self._executor, self._ticker
        deadline_s = time.monotonic() + UNDO_TIMEOUT_S
        if executor is not None:
            executor.stop()
        if pump is not None:
            if self._queue_declared in self.broker.queue_listeners:
                self.broker.queue_listeners.remove(self._queue_declared)
            pump.stop(deadline_s)
            if pump.thread.ident is not None:
                pump.thread.join()
        if executor is not None:
            executor.join(deadline_s)
        if ticker is not None:
            ticker.stop()
        self._pump = self._executor = self._loop = self._ticker = self._hook_thread = None
        self.consumers = {}
        consumer.close()

    def stop(self, timeout: int = DEFAULT_STOP_TIMEOUT_MS) -> None:
        """Stops claiming, gives back what has not started, and waits for what runs.

        Parameters:
          timeout: Milliseconds; what still runs then is left to run and is given back when the process ends.
        """
        pump, executor, loop, ticker = self._pump, self._executor, self._loop, self._ticker
        hook_thread = self._hook_thread
        if pump is None or executor is None or loop is None or ticker is None or hook_thread is None:
            return
        broker = self.broker
        broker.emit_before("worker_shutdown", self)
        broker.queue_listeners.remove(self._queue_declared)
        for view in self.consumers.values():
            broker.emit_before("consumer_thread_shutdown", view)
        deadline_s = time.monotonic() + timeout / 1000
        pump.stop(deadline_s)
        executor.stop()
        executor.notify_shutdown()
        loop.notify_shutdown()
        pump.thread.join(max(1.0, deadline_s - time.monotonic()))  # until then it may still hand something out
        ended = executor.join(deadline_s)
        ended = loop.join(deadline_s) and ended
        if not ended:
            self.logger.warning("Messages still ran after %d ms; they are given back when this process ends.", timeout)
        ticker.stop()
        hook_thread.stop()
        pump.writers.stop(max(1.0, deadline_s - time.monotonic()))
        self._pump = self._executor = self._loop = self._ticker = self._hook_thread = None
        self.consumers = {}
        broker.emit_after("worker_shutdown", self)

    def pause(self) -> None:
        """Stops claiming; what was claimed already is run."""
        pump = self._running()
        queues = self._served(self.broker.get_declared_queues())
        pump.order(lambda: pump.consumer.pause(queues))
        for view in self.consumers.values():
            view.paused = True

    def resume(self) -> None:
        """Ends a pause."""
        pump = self._running()
        queues = self._served(self.broker.get_declared_queues())
        pump.order(lambda: pump.consumer.subscribe(queues))
        for view in self.consumers.values():
            view.paused = False

    def reap_soon(self) -> None:
        """Any thread: another process of this broker has died; looks at once for what it held. Nothing to do while the
        worker does not run."""
        pump = self._pump
        if pump is not None:
            pump.reap_soon()

    def join(self) -> None:
        """Waits until all served queues are empty, nothing runs, and the hooks of what ran are done. Messages may come
        in meanwhile.

        Raises:
          Exception: ``fatal_error``, if there is one: waiting would be in vain.
        """
        for queue_name in self._served(self.broker.get_declared_queues()):
            self.broker.wait_for_worker(queue_name, self._raise_fatal_error)
        pump, hook_thread = self._pump, self._hook_thread
        if pump is not None and hook_thread is not None:
            settled = threading.Event()
            pump.order(settled.set)  # it is between two trips then: what it has settled, it has told the hook thread
            settled.wait(HOOKS_TIMEOUT_S)
            hook_thread.catch_up(HOOKS_TIMEOUT_S)

    def _raise_fatal_error(self) -> None:
        error = self.fatal_error
        if error is not None:
            raise error

    def _running(self) -> Pump:
        if self._pump is None:
            raise RuntimeError("This worker does not run.")
        return self._pump

    def _served(self, queue_names: Iterable[str]) -> set[str]:
        names = {q_name(name) for name in queue_names}
        return names if self.queues is None else names & self.queues

    def _queue_declared(self, queue_name: str) -> None:
        pump = self._pump
        if pump is not None and self._served([queue_name]):
            pump.order(lambda: pump.consumer.subscribe([queue_name]))
            self._consumes(queue_name)

    def _consumes(self, queue_name: str) -> None:
        """Tells middleware, once a queue, that it is consumed."""
        view = ConsumerThread(broker=self.broker, queue_name=queue_name, prefetch=self.queue_prefetch)
        if self.consumers.setdefault(queue_name, view) is view:
            self.broker.emit_after("consumer_thread_boot", view)

    def _transport(self) -> Any:
        """The broker's engine, or a bridge to a broker of a user's own."""
        if self.broker.transport is not None:
            if getenv_int("dramatiq_delay_queue_prefetch"):
                self.logger.info("greenroom_delay_queue_prefetch does nothing: delayed messages stay in the broker.")
            return self.broker.transport
        return BridgeTransport(
            self.broker,
            queue_prefetch=self.queue_prefetch,
            delay_prefetch=self.delay_prefetch,
            timeout_ms=self.worker_timeout,
            restart_delay_ms=getenv_int("dramatiq_restart_delay", DEFAULT_RESTART_DELAY_MS) or DEFAULT_RESTART_DELAY_MS,
        )

    def _look_after(self) -> None:
        """Ticker: if half of the threads are stuck this worker has become useless: it claims nothing more."""
        executor = self._executor
        if executor is None or self.is_stuck or 2 * len(executor.stuck) < executor.count:
            return
        self.logger.critical("%d of %d worker threads are stuck; nothing is claimed any more.", *executor.how_stuck())
        self._stop_claiming()

    def _stop_claiming(self) -> None:
        """Ticker: this worker has become useless."""
        if self._pump is not None:
            self.pause()
            self._give_up()

    def _give_up(self) -> None:
        """Ticker, or pump: says so, once."""
        was_stuck, self.is_stuck = self.is_stuck, True
        if not was_stuck and self.on_stuck is not None:
            self.on_stuck()

    def _ring(self) -> None:
        if self._pump is not None:
            self._pump.ring()


def _prefetch(variable: str, default: int) -> int:
    return min(getenv_int(variable, 0) or default, MAX_PREFETCH)
