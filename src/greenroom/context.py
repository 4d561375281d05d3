"""The message that runs in this context: a thread of its own or a coroutine of its own sees its own message."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any

#: Set by the executors only when a middleware asks for it (``CurrentMessage``).
current_message: ContextVar[Any] = ContextVar("greenroom_current_message", default=None)
