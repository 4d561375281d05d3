"""One place of an executor: what its message's policies say about the clock, and whether the actor may be struck.

Interrupts strike only while the actor's own code runs. The protocol between a slot's thread and the ticker:

* the ticker, under the slot's lock: sets ``armed``, then looks at ``in_user``; only if that is set it sends the
  interrupt, else ``armed`` is again what it was;
* the thread, when the actor has returned or raised: clears ``in_user``, then looks at ``armed``; if that is set it
  takes the lock and recalls what may be on its way.

Whichever comes second sees the other's mark, so no interrupt reaches library code. Between the end of the actor and
the thread's last look there is no call and no backward jump, so CPython delivers nothing there either.
"""

from __future__ import annotations

import threading
from typing import Any


class Slot:
    """Owned by the thread or task that runs in it. The ticker reads it, and writes ``armed``, ``strikes``,
    ``notify_shutdown``, ``owed`` and ``abandoned`` under ``lock``; ``interrupt`` belongs to the loop.

    ``shielded`` is True while the actor is in library code that must not be interrupted; ``owed`` is what has to be
    raised at its end, and in which run.

    ``index`` is its cell of the board, among those of its executor.

    ``deadline`` is on the monotonic clock, 0.0 for none. ``busy_s`` and ``runs`` are sums since the start, from which
    the pump computes the mean run time.
    """

    __slots__ = (
        "abandoned",
        "armed",
        "busy_s",
        "deadline",
        "in_user",
        "index",
        "interrupt",
        "lock",
        "notify_shutdown",
        "owed",
        "run",
        "runs",
        "shielded",
        "strikes",
        "task",
        "thread_id",
    )

    def __init__(self, index: int) -> None:
        self.index = index
        self.lock = threading.Lock()  # guards: an interrupt is sent, or recalled, never half of each
        self.thread_id = 0
        self.task: Any = None
        self.run: Any = None
        self.deadline = 0.0
        self.notify_shutdown = False
        self.in_user = False
        self.shielded = False
        self.owed: tuple[Any, type[BaseException]] | None = None
        self.armed = False
        self.interrupt: type[BaseException] | None = None
        self.strikes = 0
        self.abandoned = False
        self.runs = 0
        self.busy_s = 0.0

    def forget_policies(self) -> None:
        """Forgets what the hooks have said of a message that is over, or was not run after all."""
        self.deadline = 0.0
        self.notify_shutdown = False
