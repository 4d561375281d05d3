"""A first-in first-out gate in front of the one connection of a process."""

from __future__ import annotations

import threading
from collections import deque
from typing import Any


class FifoGate:
    """A mutual exclusion that is granted in the order of asking.

    A plain lock lets the thread that just left come in again; beside a bulk sender a single send then waits for the
    whole bulk (measured: worse than a p99 of 100 ms, against 6 ms). Held for one bounded transaction: with its
    namesake for RabbitMQ the only lock of the library that is held across I/O.
    """

    __slots__ = ("_busy", "_lock", "_waiting")

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards: _busy and _waiting change together; never held while waiting
        self._busy = False
        self._waiting: deque[Any] = deque()

    def acquire(self) -> None:
        with self._lock:
            if not self._busy:
                self._busy = True
                return
            turn = threading.Lock()
            turn.acquire()
            self._waiting.append(turn)
        turn.acquire()

    def release(self) -> None:
        with self._lock:
            if self._waiting:
                self._waiting.popleft().release()  # the gate is handed over without being opened
            else:
                self._busy = False

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *_exc: object) -> None:
        self.release()
