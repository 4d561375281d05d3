"""Renewing a lease where no trip does it: on a thread and a connection of their own, which nothing else holds up.

A trip renews the lease for nothing, so in most processes the thread is never started. It is where a process makes no
trip for a while: its executors are busy, or the server is slow; or where what it runs has changed: whoever takes a lost
host for dead charges what it said it ran.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Collection

from ...clock import SYSTEM_CLOCK
from ...errors import BrokerError
from ...logging import get_logger
from .connection import Argument, Connection
from .keys import Keys
from .scripts import load
from .share import ProcessShare

#: Something short that is done on the thread, with its connection.
Task = Callable[[Connection], object]

_EXTEND = load("extend")

logger = get_logger(__name__)


class Pulse:
    """Belongs to an owner. ``began`` and ``renewed`` are called by its consumer's thread, ``beat`` by the ticker's.

    Parameters:
      share: What this process has open to the server.
      lease_ms: How long the owner may be silent.
      now: The time that scripts are told.
    """

    def __init__(self, share: ProcessShare, lease_ms: int, now: Callable[[], Argument]) -> None:
        self._keys: Keys = share.keys
        self._lease_ms = lease_ms
        self._now = now
        self._late_s = lease_ms / 3000
        # A server that says nothing for a third of a lease has to be asked again, in time.
        self._connection = share.connector.new(socket_timeout=self._late_s, socket_connect_timeout=self._late_s)
        self._renewed_s = 0.0
        self._id = ""
        self._marks = b""
        self._told = b""  # the marks that the server knows
        self._tasks: deque[Task] = deque()
        self._wanted = threading.Event()
        self._thread: threading.Thread | None = None
        self._ended = False
        self._failure: Exception | None = None
        #: False once the server has said that the owner was taken for dead.
        self.is_good = True

    def began(self, id: str) -> None:
        """The owner has this id from now on."""
        self._id, self._told, self.is_good = id, b"", True
        self.renewed()

    def renewed(self) -> None:
        """A trip has renewed the lease."""
        self._renewed_s = SYSTEM_CLOCK.monotonic()

    def is_cut_off(self) -> bool:
        """Any thread: True if the lease has not been renewed for so long that it may end before it can be. What is
        renewed was so some time before its answer came, at most as long as a renewal is waited for."""
        return SYSTEM_CLOCK.monotonic() - self._renewed_s >= 2 * self._late_s

    def beat(self, marks: Collection[int]) -> None:
        """Has the lease renewed if that is due, or if what runs has changed.

        Parameters:
          marks: What runs.

        Raises:
          RuntimeError: The thread that renews it has died.
        """
        if self._failure is not None:
            raise RuntimeError("The thread that renews the lease has died.") from self._failure
        self._marks = b" ".join([b"%d" % mark for mark in sorted(marks)])
        is_late = SYSTEM_CLOCK.monotonic() - self._renewed_s >= self._late_s
        if not (is_late or self._marks != self._told) or self._ended:
            return
        self.do(self._extend)

    def do(self, task: Task) -> None:
        """Has the thread do something, once, if it has not yet done it since it was asked to."""
        if self._ended:
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._main, name="lease", daemon=True)
            self._thread.start()
        if task not in self._tasks:
            self._tasks.append(task)
        self._wanted.set()

    def end(self) -> None:
        """No renewals any more."""
        self._ended = True
        self._wanted.set()

    # --- its own thread

    def _main(self) -> None:
        while self._wanted.wait() and not self._ended:
            self._wanted.clear()
            try:
                while self._tasks:
                    self._do_next()
            except Exception as e:  # noqa: BLE001  # the next beat raises it
                self._failure = e
                break
        self._connection.close()

    def _do_next(self) -> None:
        try:
            self._tasks.popleft()(self._connection)
        except BrokerError as e:  # it is asked for again
            logger.debug("The lease could not be renewed: %s", e)

    def _extend(self, connection: Connection) -> None:
        id, marks = self._id, self._marks
        keys = [self._keys.leases, self._keys.running]
        is_good = _EXTEND.run(connection, keys, [self._now(), id, self._lease_ms, marks])
        if id == self._id:
            self._told = marks
            self.is_good = bool(is_good)
            if is_good:
                self.renewed()
