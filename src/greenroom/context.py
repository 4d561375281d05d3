"""The messages that run in this context: a thread or a coroutine of its own sees its own."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar
from typing import Any

#: Kept by the ``CurrentMessage`` middleware. The last one runs; those before it wait for it, where an actor is run by
#: another one in the same context.
running_messages: ContextVar[tuple[Any, ...]] = ContextVar("greenroom_running_messages", default=())


class _Interruptible(threading.local):
    """What this thread needs so that interrupts spare library code; set by worker threads only."""

    #: The slot whose actor runs on this thread.
    slot: Any = None
    #: Makes a shield against interrupts.
    shield: Callable[[], AbstractContextManager[None]] = nullcontext


interruptible = _Interruptible()
