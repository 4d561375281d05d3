"""Small helpers under the names that Dramatiq programs import from ``dramatiq.common``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from queue import Empty, Queue
from threading import Thread
from time import monotonic
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from .backoff import compute_backoff
from .clock import current_millis
from .errors import QueueJoinTimeout
from .names import dq_name, q_name, xq_name
from .settings import getenv_int

if TYPE_CHECKING:
    T = TypeVar("T")

__all__ = [
    "compute_backoff",
    "current_millis",
    "dq_name",
    "getenv_int",
    "iter_queue",
    "join_all",
    "join_queue",
    "q_name",
    "xq_name",
]


class _Joinable(Protocol):
    def join(self, timeout: float | None = None) -> Any: ...


def iter_queue(queue: Queue[T]) -> Iterator[T]:
    """Yields what is in a queue now, without blocking."""
    while True:
        try:
            yield queue.get_nowait()
        except Empty:
            return


def join_queue(queue: Queue[Any], timeout: float | None = None) -> None:
    """Joins a queue.

    Parameters:
      timeout: Milliseconds; for ever if None.

    Raises:
      QueueJoinTimeout: If tasks were still unfinished then.
    """
    with queue.all_tasks_done:
        left_s = None if timeout is None else timeout / 1000
        if not queue.all_tasks_done.wait_for(lambda: not queue.unfinished_tasks, left_s):
            raise QueueJoinTimeout(f"timed out after {timeout:.2f} ms" if timeout else "timed out")


def join_all(joinables: Iterable[Thread | _Joinable], timeout: float) -> None:
    """Joins all of them within ``timeout`` milliseconds in all."""
    deadline = monotonic() + timeout / 1000
    for joinable in joinables:
        joinable.join(timeout=max(0.0, deadline - monotonic()))
