"""A queue of the memory engine, as a ``queue.Queue`` of encoded messages."""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

from .transport import MemoryTransport


class QueueView(queue.Queue[bytes]):
    """What is ready in a queue of a transport, or what is delayed in it. Any thread may use it.

    It has no contents of its own: what is put into it is pushed to the engine, what is got from it is taken out of the
    engine, and its counts are the engine's.

    Parameters:
      transport: The engine.
      name: The queue.
      delayed: Whether to show what is delayed instead of what is ready.
      push: Pushes encoded bytes to this side of the queue.
    """

    def __init__(
        self, transport: MemoryTransport, name: str, *, delayed: bool, push: Callable[[bytes], object]
    ) -> None:
        # Not the base's: everything that it would set up is answered by the engine.
        self.maxsize = 0
        self._transport = transport
        self._name = name
        self._delayed = delayed
        self._push = push
        self._got = 0  # under the engine's lock: got, and not reported by task_done yet

    def __repr__(self) -> str:
        return f"<{self._name}{'.DQ' if self._delayed else ''}: {self.qsize()} messages>"

    # Whoever waits on these conditions by hand, as `common.join_queue` does, is told of every change of the engine.

    @property
    def mutex(self) -> Any:  # type: ignore[override]  # an attribute of the base
        return self._transport.changed

    @property
    def all_tasks_done(self) -> threading.Condition:  # type: ignore[override]  # an attribute of the base
        return self._transport.changed

    not_empty = not_full = all_tasks_done

    @property
    def queue(self) -> deque[bytes]:
        """The encoded messages, in the order in which they are run. A copy."""
        with self._transport.changed:
            return deque(self._transport.waiting_bodies(self._name, delayed=self._delayed))

    @property
    def unfinished_tasks(self) -> int:  # type: ignore[override]  # an attribute of the base
        """How many messages are here, are run by a worker, or were got and not reported by ``task_done``."""
        with self._transport.changed:
            counts = self._transport.counts([self._name])[self._name]
            return self._got + (counts.delayed if self._delayed else counts.ready + counts.claimed)

    def qsize(self) -> int:
        counts = self._transport.counts([self._name])[self._name]
        return counts.delayed if self._delayed else counts.ready

    def empty(self) -> bool:
        return not self.qsize()

    def full(self) -> bool:
        """Never."""
        return False

    def put(self, item: bytes, block: bool = True, timeout: float | None = None) -> None:
        """Pushes an encoded message, or any bytes, as they are."""
        self._push(item)

    def get(self, block: bool = True, timeout: float | None = None) -> bytes:
        """Takes the next encoded message out of the engine.

        Raises:
          queue.Empty: If there was none within ``timeout`` seconds, or none at once if not ``block``.
        """
        if timeout is not None and timeout < 0:
            raise ValueError("'timeout' must be a non-negative number")
        changed = self._transport.changed
        with changed:
            body = self._take()
            if body is None and block:
                changed.wait_for(lambda: self.qsize() > 0, timeout)
                body = self._take()
        if body is None:
            raise queue.Empty
        return body

    def _take(self) -> bytes | None:
        body = self._transport.take_body(self._name, delayed=self._delayed)
        self._got += body is not None
        return body

    def task_done(self) -> None:
        """Reports that what was got is done.

        Raises:
          ValueError: If that was reported for all that was got.
        """
        changed = self._transport.changed
        with changed:
            if not self._got:
                raise ValueError("task_done() called too many times")
            self._got -= 1
            changed.notify_all()

    def join(self) -> None:
        """Waits until ``unfinished_tasks`` is 0."""
        changed = self._transport.changed
        with changed:
            changed.wait_for(lambda: not self.unfinished_tasks)
