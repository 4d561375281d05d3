"""The one wait of the parent: descriptors with a callback each, and moments at which something is due."""

from __future__ import annotations

import heapq
import selectors
from collections.abc import Callable, Iterable
from itertools import count
from typing import Protocol

from ..clock import SYSTEM_CLOCK, Clock


class Source(Protocol):
    """Something to wait for. Objects and not numbers, so that a forked child can close what it has inherited."""

    def fileno(self) -> int: ...

    def close(self) -> None: ...


class ParentLoop:
    """Waits, then calls back. Owned by the parent's main thread, where all callbacks run."""

    def __init__(self, clock: Clock = SYSTEM_CLOCK) -> None:
        self.clock = clock
        # Not epoll: a forked child would share it, and would keep closed descriptors alive in it.
        self._selector = selectors.PollSelector()
        self._callbacks: dict[Source, Callable[[], object]] = {}
        self._moments: list[tuple[float, int, Callable[[], object]]] = []
        self._ties = count()

    @property
    def sources(self) -> Iterable[Source]:
        """What is waited for now."""
        return tuple(self._callbacks)

    def add(self, source: Source, callback: Callable[[], object], *, writes: bool = False) -> None:
        """From now on, calls ``callback`` whenever something can be read from ``source`` (or written to it, if it
        ``writes``), or it has ended."""
        self._selector.register(source, selectors.EVENT_WRITE if writes else selectors.EVENT_READ)
        self._callbacks[source] = callback

    def remove(self, source: Source) -> None:
        """Waits for ``source`` no more; to be called before it is closed. Does nothing the second time."""
        if self._callbacks.pop(source, None) is not None:
            self._selector.unregister(source)

    def call_at(self, when_s: float, callback: Callable[[], object]) -> None:
        """Calls ``callback`` once, at a moment of the monotonic clock. It cannot be taken back: a callback looks
        whether there is still something to do."""
        heapq.heappush(self._moments, (when_s, next(self._ties), callback))

    def wait(self) -> None:
        """Waits until something can be read or is due, and calls back for all of it."""
        timeout_s = None if not self._moments else max(0.0, self._moments[0][0] - self.clock.monotonic())
        for key, _events in self._selector.select(timeout_s):
            callback = self._callbacks.get(key.fileobj)  # type: ignore[call-overload]  # only sources are registered
            if callback is not None:  # else a callback before it has removed it
                callback()
        while self._moments and self._moments[0][0] <= self.clock.monotonic():
            heapq.heappop(self._moments)[2]()
