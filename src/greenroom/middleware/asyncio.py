"""Accepted so that Dramatiq programs run as they are."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..asyncio import get_event_loop_thread, set_event_loop_thread, start_event_loop_thread
from .middleware import Middleware

if TYPE_CHECKING:
    from ..ports.nouns import BrokerLike, WorkerLike


class AsyncIO(Middleware):
    """Starts the event loop thread with the worker, and stops it with it.

    Not needed: async actors run on the worker's own loop, and ``async_to_sync`` starts the thread when it is needed.
    """

    def before_worker_boot(self, broker: BrokerLike, worker: WorkerLike) -> None:
        start_event_loop_thread()

    def after_worker_shutdown(self, broker: BrokerLike, worker: WorkerLike) -> None:
        thread = get_event_loop_thread()
        if thread is not None:
            set_event_loop_thread(None)
            thread.stop()
