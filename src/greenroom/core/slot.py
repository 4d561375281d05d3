"""One place of an executor: what its message's policies say about the clock."""

from __future__ import annotations


class Slot:
    """Owned by the executor's thread or task that runs in it; the ticker reads it and never writes.

    ``deadline`` is on the monotonic clock, 0.0 for none. ``busy_s`` and ``runs`` are sums since the start, from which
    the pump computes the mean run time.
    """

    __slots__ = ("busy_s", "deadline", "index", "notify_shutdown", "runs", "thread_id")

    def __init__(self, index: int) -> None:
        self.index = index
        self.thread_id = 0
        self.deadline = 0.0
        self.notify_shutdown = False
        self.runs = 0
        self.busy_s = 0.0
