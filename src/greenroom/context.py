"""The messages that run in this context: a thread or a coroutine of its own sees its own."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar
from typing import Any

from .forksafe import in_child

#: Kept by the ``CurrentMessage`` middleware. The last one runs; those before it wait for it, where an actor is run by
#: another one in the same context.
running_messages: ContextVar[tuple[Any, ...]] = ContextVar("greenroom_running_messages", default=())

#: True in a worker process of the command line: what middleware lists as its ``forks`` runs beside it.
has_forks = False


#: The ``Run`` whose actor this coroutine belongs to.
executing: ContextVar[Any] = ContextVar("greenroom_executing", default=None)


class _Interruptible(threading.local):
    """What this thread needs so that interrupts spare library code; set by worker threads only."""

    #: The slot whose actor runs on this thread.
    slot: Any = None
    #: Makes a shield against interrupts.
    shield: Callable[[], AbstractContextManager[None]] = nullcontext


interruptible = _Interruptible()


def current_run() -> Any:
    """The ``Run`` whose actor this thread or coroutine is in; None outside of actors that a worker runs."""
    slot = interruptible.slot
    return executing.get() if slot is None else slot.run


@in_child
def _leave_the_worker() -> None:
    """In a process that an actor has forked nobody sends interrupts."""
    interruptible.slot = None
    interruptible.shield = nullcontext
    executing.set(None)
