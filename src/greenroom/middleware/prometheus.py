"""Metrics for Prometheus, under the names and labels that dashboards for Dramatiq expect. Extra: ``prometheus``.

Importing this module switches ``prometheus_client`` to its multi-process mode, which has to happen before anything
imports that: each process then writes its values to a file of its own in a folder that the processes of a worker
program share, and the command line runs one more process that serves them all. Where there is no such process, in a
program that runs a ``Worker`` itself, whichever has the port serves them. Metrics of your own are served with ours. If
``prometheus_client`` was imported before, or is told otherwise, each process has its own values, and serves only those.

Variables, also as ``dramatiq_...``: ``greenroom_prom_host`` (127.0.0.1), ``greenroom_prom_port`` (9191) and
``greenroom_prom_db``, the folder.
"""

from __future__ import annotations

import heapq
import os
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import context
from ..core.suspects import TOO_MANY_CRASHES
from ..errors import StaleLease
from ..logging import get_logger
from ..settings import getenv, getenv_int, setenv_default
from .middleware import Middleware

if TYPE_CHECKING:
    from ..ports.nouns import BrokerLike, WorkerLike

__all__ = ["Prometheus"]

DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 9191
#: Seconds between two attempts to get a port that another process has.
PORT_INTERVAL_S = 5.0
#: A process counts no more delayed messages than this: each costs memory until it is due.
MAX_DELAYED = 10_000
BUCKETS_MS = (
    5, 10, 25, 50, 75, 100, 250, 500, 750, 1000, 2500, 5000, 7500, 10_000, 30_000, 60_000, 600_000, 900_000,
    float("inf"),
)  # fmt: skip
_LABELS = ("queue_name", "actor_name")


def _default_folder() -> Path:
    """A folder that the worker processes of one program share, because they have the same parent.

    Only this user may write to it. Folders of programs that have ended are removed.
    """
    root = Path(tempfile.gettempdir(), f"greenroom-prometheus-{os.getuid() if hasattr(os, 'getuid') else 'user'}")
    root.mkdir(mode=0o700, exist_ok=True)
    status = root.lstat()
    if root.is_symlink() or (hasattr(os, "getuid") and status.st_uid != os.getuid()):
        return Path(tempfile.mkdtemp(prefix="greenroom-prometheus-"))  # somebody else was here first
    for folder in root.iterdir():
        if folder.name.isdigit() and not _is_alive(int(folder.name)):
            shutil.rmtree(folder, ignore_errors=True)
    return root / str(os.getppid())


def _is_alive(pid: int) -> bool:
    if sys.platform == "win32":  # where signal 0 is not a question
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it is there, and somebody else's
        return True
    return True


def _choose_folder() -> str | None:
    """The folder of the multi-process mode, made if need be; None if ``prometheus_client`` cannot be switched to it."""
    configured = getenv("PROMETHEUS_MULTIPROC_DIR") or getenv("prometheus_multiproc_dir")
    if configured is None and "prometheus_client" in sys.modules:
        return None
    folder = configured or getenv("dramatiq_prom_db") or str(_default_folder())
    os.makedirs(folder, mode=0o700, exist_ok=True)
    for name in ("PROMETHEUS_MULTIPROC_DIR", "prometheus_multiproc_dir"):
        setenv_default(name, folder)
    return folder


#: Set before the imports below, which look for it.
_FOLDER = _choose_folder()

try:
    import prometheus_client as client
    from prometheus_client import multiprocess
except ImportError as e:
    raise ImportError(
        "The Prometheus middleware needs prometheus-client. Install it with: pip install 'greenroom[prometheus]'",
        name="prometheus_client",
    ) from e


class Prometheus(Middleware):
    """Counts what worker processes do, and serves it over HTTP, at any path.

    Parameters:
      host: The address to serve at; ``greenroom_prom_host``, or else 127.0.0.1, so that only this host sees it.
      port: The port; ``greenroom_prom_port``, or else 9191. While another process has it, that one serves.

    What a gauge counts is kept by message, so that it comes back to 0 whatever happens to the message, and the gauges
    of a process that was killed are forgotten.
    """

    def __init__(self, *, host: str | None = None, port: int | None = None) -> None:
        self.logger = get_logger(__name__, type(self))
        self.host = host or getenv("dramatiq_prom_host") or DEFAULT_HOST
        self.port: int = port if port is not None else getenv_int("dramatiq_prom_port", DEFAULT_PORT) or DEFAULT_PORT
        self._metrics: _Metrics | None = None
        self._server: _Server | None = None

    @property
    def forks(self) -> list[Callable[[], int]]:
        return [] if _FOLDER is None else [self.serve]

    def serve(self) -> int:
        """Serves the values of all processes until this one is ended: what the command line runs beside the workers."""
        _Server(self.host, self.port, _Everything(), self.logger).run()
        return 0

    def after_process_boot(self, broker: BrokerLike) -> None:
        self._metrics = metrics = _Metrics(broker)
        if _FOLDER is None or not context.has_forks:
            self._server = _Server(self.host, self.port, metrics, self.logger)
            self._server.thread.start()

    def after_worker_shutdown(self, broker: BrokerLike, worker: WorkerLike) -> None:
        if self._server is not None:
            self._server.stop()
            self._server = None
        if self._metrics is not None:
            self._metrics.forget_all()
            self._metrics = None

    # --- the life of a message. Before a process has booted (in a program that only sends) these count nothing.

    def before_process_message(self, broker: BrokerLike, message: Any) -> None:
        if self._metrics is not None:
            self._metrics.began(message)

    def after_process_message(
        self, broker: BrokerLike, message: Any, *, result: Any = None, exception: BaseException | None = None
    ) -> None:
        if self._metrics is not None:
            self._metrics.ended(message, failed=exception is not None)

    def after_skip_message(self, broker: BrokerLike, message: Any) -> None:
        if self._metrics is not None:
            self._metrics.ended(message, failed=False)

    def after_nack(self, broker: BrokerLike, message: Any) -> None:
        if self._metrics is not None:
            self._metrics.rejected(message)

    def after_stale_lease(self, broker: BrokerLike, message: Any, error: StaleLease) -> None:
        if self._metrics is not None:
            self._metrics.came_too_late(message)

    def after_enqueue(self, broker: BrokerLike, message: Any, delay: int | None) -> None:
        if self._metrics is not None and "retries" in message.options:
            self._metrics.retried(message)

    def before_delay_message(self, broker: BrokerLike, message: Any) -> None:
        if self._metrics is not None:
            self._metrics.delayed(message)


class _Metrics:
    """What one process counts. Any thread may call any method."""

    def __init__(self, broker: BrokerLike) -> None:
        self.registry = client.CollectorRegistry()
        self._clock = broker.clock
        counter = partial(client.Counter, labelnames=_LABELS, registry=self.registry)
        gauge = partial(client.Gauge, labelnames=_LABELS, registry=self.registry)
        self._total = counter("dramatiq_messages_total", "The total number of messages processed.")
        self._errors = counter("dramatiq_message_errors_total", "The total number of errored messages.")
        self._retries = counter("dramatiq_message_retries_total", "The total number of retried messages.")
        self._rejects = counter("dramatiq_message_rejects_total", "The total number of dead-lettered messages.")
        self._crashes = counter(
            "dramatiq_message_crashes_total",
            "The number of messages that came back because a worker died while it ran them.",
        )
        self._stale_leases = counter(
            "dramatiq_stale_leases_total", "The number of messages that were settled too late, and so were not."
        )
        self._inprogress = gauge(
            "dramatiq_messages_inprogress", "The number of messages in progress.", multiprocess_mode="livesum"
        )
        self._delayed = gauge(
            "dramatiq_delayed_messages_inprogress",
            "The number of messages that this process has delayed, or held back, and that are not due yet.",
            multiprocess_mode="liveall",
        )
        self._duration = client.Histogram(
            "dramatiq_message_duration_milliseconds",
            "The time spent processing messages.",
            labelnames=_LABELS,
            registry=self.registry,
            buckets=BUCKETS_MS,
        )
        #: By identity: what runs, and since when. The message is kept, so that its identity stays its own.
        self._running: dict[int, tuple[Any, float]] = {}
        #: By message id, of what is delayed: its labels and when it is due; and all due times, the first one first.
        self._waiting: dict[str, tuple[tuple[str, str], int]] = {}
        self._due: list[tuple[int, str]] = []
        self._lock = threading.Lock()  # guards: a gauge is what the three above hold

    def began(self, message: Any) -> None:
        if _has_crashed(message):
            self._crashes.labels(*_labels(message)).inc()
        with self._lock:
            self._no_longer_delayed(message.message_id)
            if id(message) not in self._running:
                self._running[id(message)] = (message, self._clock.monotonic())
                self._inprogress.labels(*_labels(message)).inc()

    def ended(self, message: Any, *, failed: bool) -> None:
        with self._lock:
            self._no_longer_delayed(message.message_id)
            self._stopped(message)
        self._total.labels(*_labels(message)).inc()
        if failed:
            self._errors.labels(*_labels(message)).inc()

    def _stopped(self, message: Any) -> None:
        _, started_s = self._running.pop(id(message), (None, None))
        if started_s is not None:  # else an earlier middleware skipped it
            self._inprogress.labels(*_labels(message)).dec()
            self._duration.labels(*_labels(message)).observe((self._clock.monotonic() - started_s) * 1000)

    def rejected(self, message: Any) -> None:
        with self._lock:
            self._no_longer_delayed(message.message_id)
        self._rejects.labels(*_labels(message)).inc()
        error = getattr(message, "error", None)
        if error is not None and error.type == TOO_MANY_CRASHES:  # so it has not begun once more
            self._crashes.labels(*_labels(message)).inc()

    def came_too_late(self, message: Any) -> None:
        self._stale_leases.labels(*_labels(message)).inc()

    def retried(self, message: Any) -> None:
        self._retries.labels(*_labels(message)).inc()

    def delayed(self, message: Any) -> None:
        self.forget_due()
        eta = message.options.get("eta")
        due_ms = eta if isinstance(eta, int) else self._clock.now_ms()
        with self._lock:
            self._no_longer_delayed(message.message_id)
            if len(self._due) >= MAX_DELAYED:
                return
            self._waiting[message.message_id] = (_labels(message), due_ms)
            heapq.heappush(self._due, (due_ms, message.message_id))
            self._delayed.labels(*_labels(message)).inc()

    def forget_due(self) -> None:
        """What is due is no longer delayed: whichever process runs it does not tell this one."""
        now_ms = self._clock.now_ms()
        with self._lock:
            while self._due and self._due[0][0] <= now_ms:
                due_ms, message_id = heapq.heappop(self._due)
                if self._waiting.get(message_id, (None, None))[1] == due_ms:  # else it was delayed again since
                    self._no_longer_delayed(message_id)

    def forget_all(self) -> None:
        """The worker has stopped: nothing runs any more."""
        with self._lock:
            for message_id in list(self._waiting):
                self._no_longer_delayed(message_id)
            for message, _ in list(self._running.values()):
                self._inprogress.labels(*_labels(message)).dec()
            self._running.clear()
            self._due.clear()

    def _no_longer_delayed(self, message_id: str) -> None:
        """Under the lock."""
        labels, _ = self._waiting.pop(message_id, (None, None))
        if labels is not None:
            self._delayed.labels(*labels).dec()

    def collect(self) -> Iterable[Any]:
        """For the server: the values of all processes, or without the folder those of this one."""
        self.forget_due()
        if _FOLDER is None:
            return [*self.registry.collect(), *client.REGISTRY.collect()]
        return _Everything().collect()


class _Everything:
    """The values of all processes, for the server."""

    def collect(self) -> Iterable[Any]:
        assert _FOLDER is not None
        for pid in _pids_of_gauges(_FOLDER):
            if not _is_alive(pid):
                multiprocess.mark_process_dead(pid, _FOLDER)  # type: ignore[no-untyped-call]  # its own
        collected: Iterable[Any] = multiprocess.MultiProcessCollector(None, _FOLDER).collect()  # type: ignore[no-untyped-call]  # its own
        return collected

    def forget_due(self) -> None:
        """Nothing: each process sees to its own."""


def _labels(message: Any) -> tuple[str, str]:
    return message.queue_name, message.actor_name


def _has_crashed(message: Any) -> bool:
    """True if the worker that ran this message last has died. A retry inherits the crashes, and is a new delivery."""
    delivery = getattr(message, "delivery", None)
    return delivery is not None and bool(delivery.crashes) and delivery.redelivered


def _pids_of_gauges(folder: str) -> set[int]:
    pids = (path.stem.rpartition("_")[2] for path in Path(folder).glob("gauge_live*_*.db"))
    return {int(pid) for pid in pids if pid.isdigit()}


class _Server:
    """Serves metrics. Owns its thread, which waits for the port, and then for the end; or runs in its caller's."""

    def __init__(self, host: str, port: int, metrics: _Metrics | _Everything, logger: Any) -> None:
        self._address = (host, port)
        self._metrics = metrics
        self._logger = logger
        self._stopped = threading.Event()
        #: Set once it serves; ``port`` is the real one then.
        self.serves = threading.Event()
        self.port = port
        self.thread = threading.Thread(target=self.run, name="prometheus", daemon=True)

    def stop(self) -> None:
        """Any thread: frees the port."""
        self._stopped.set()
        self.thread.join(PORT_INTERVAL_S)

    def run(self) -> None:
        """Waits for the port, serves, and returns after ``stop``."""
        has_told = False
        while not self._stopped.is_set():
            try:
                self._serve()
            except OSError as e:
                log = self._logger.debug if has_told else self._logger.warning
                log("Metrics are not served at %s:%d by this process: %s", *self._address, e)
                has_told = True
                self._metrics.forget_due()
                self._stopped.wait(PORT_INTERVAL_S)

    def _serve(self) -> None:
        host, port = self._address
        registry = client.CollectorRegistry()
        registry.register(self._metrics)
        server, thread = client.start_http_server(port, host, registry)
        self.port = server.server_port
        self._logger.info("Metrics are served at http://%s:%d/", host, self.port)
        self.serves.set()
        self._stopped.wait()
        server.shutdown()
        server.server_close()
        thread.join()
