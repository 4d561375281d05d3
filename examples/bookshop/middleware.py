"""The shop's own middleware: which web request a task goes back to, and how long tasks take."""

from __future__ import annotations

import logging
import time
from contextvars import ContextVar
from typing import Any

from .library import dramatiq

logger = logging.getLogger("bookshop.tasks")

#: The web request that this code works for, near or far.
request_id: ContextVar[str | None] = ContextVar("request_id", default=None)


class RequestIds(dramatiq.Middleware):
    """A message carries the id of the web request that caused it, and so do all that its actor sends."""

    @property
    def message_options(self) -> set[str]:
        """Greenroom is told that this option is no misspelling; Dramatiq does not ask."""
        return {"request_id"}

    def before_enqueue(self, broker: Any, message: Any, delay: int | None) -> None:
        current = request_id.get()
        if current is not None:
            message.options.setdefault("request_id", current)

    def before_process_message(self, broker: Any, message: Any) -> None:
        # Set anew for every message, also to None; never reset, so that callbacks, which are sent afterwards, carry it.
        request_id.set(message.options.get("request_id"))


class Timing(dramatiq.Middleware):
    """Logs what each task took, and for which request."""

    def __init__(self) -> None:
        self._started_s: dict[str, float] = {}

    def before_process_message(self, broker: Any, message: Any) -> None:
        self._started_s[message.message_id] = time.perf_counter()

    def after_process_message(
        self, broker: Any, message: Any, *, result: Any = None, exception: BaseException | None = None
    ) -> None:
        started_s = self._started_s.pop(message.message_id, None)
        if started_s is None:  # another middleware's hook has failed before it came to ours
            return
        took_s = time.perf_counter() - started_s
        outcome = "failed after" if exception is not None else "took"
        logger.info("%s %s %.0f ms [request %s]", message.actor_name, outcome, took_s * 1000, request_id.get())

    def after_skip_message(self, broker: Any, message: Any) -> None:
        self._started_s.pop(message.message_id, None)
