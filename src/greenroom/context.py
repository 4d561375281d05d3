"""The messages that run in this context: a thread or a coroutine of its own sees its own."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any

#: Kept by the ``CurrentMessage`` middleware. The last one runs; those before it wait for it, where an actor is run by
#: another one in the same context.
running_messages: ContextVar[tuple[Any, ...]] = ContextVar("greenroom_running_messages", default=())
