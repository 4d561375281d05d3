"""What programs and middleware see of a worker under the names that Dramatiq's parts have."""

from __future__ import annotations

from typing import Any

from ..core.ready import ReadyRuns


class ConsumerThread:
    """A view of the consumption of one queue. There is no such thread here: one pump consumes all queues.

    Parameters:
      broker: The worker's broker.
      queue_name: The queue.
      prefetch: How many of its messages the process may hold.
    """

    def __init__(self, *, broker: Any, queue_name: str, prefetch: int) -> None:
        self.broker = broker
        self.queue_name = queue_name
        self.prefetch = prefetch
        #: True while the worker does not claim from this queue.
        self.paused = False

    def __repr__(self) -> str:
        return f"ConsumerThread({self.queue_name!r}, prefetch={self.prefetch}, paused={self.paused})"


class WorkQueue:
    """A view of the messages that were claimed and wait for a thread."""

    def __init__(self, ready: ReadyRuns | None) -> None:
        self._ready = ready

    def qsize(self) -> int:
        """How many wait; right for the moment."""
        return 0 if self._ready is None else len(self._ready)

    def empty(self) -> bool:
        """True if none waits."""
        return self.qsize() == 0
