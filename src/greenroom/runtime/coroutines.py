"""Calling an async actor so that its time limit, and a shutdown, cancel it alone."""

from __future__ import annotations

import asyncio
from typing import Any

from ..core.run import Run
from ..middleware.time_limit import TimeLimitExceeded
from .slot import Slot


async def call_async_actor(run: Run) -> Any:
    """Awaits the actor of ``run``.

    An interrupt cancels the task. The actor sees ``CancelledError``, as with ``asyncio.timeout``; from here on it is
    the interrupt that counts. The task is cancelled only while it waits inside the actor, so what has returned stays.
    """
    slot: Slot = run.slot
    message = run._message
    try:
        slot.in_user = True
        return await run.actor.run(*message.args, **message.kwargs)
    except asyncio.CancelledError as e:
        if slot.interrupt is None:
            raise
        raise slot.interrupt("The actor was cancelled.") from e
    finally:
        slot.in_user = False
        slot.deadline = 0.0
        slot.notify_shutdown = False
        if slot.interrupt is not None:
            slot.interrupt = None
            task = asyncio.current_task()
            while task is not None and task.cancelling():  # it may have been cancelled more than once
                task.uncancel()


def cancel(slot: Slot, run: Run, interrupt: type[BaseException]) -> None:
    """On the loop: cancels what runs in the slot if it is still ``run``, and still inside the actor."""
    if slot.run is run and slot.in_user and slot.task is not None:
        if interrupt is not TimeLimitExceeded:
            if not slot.notify_shutdown:
                return
            slot.notify_shutdown = False  # said once
        slot.interrupt = interrupt
        slot.task.cancel()
