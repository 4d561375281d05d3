"""Calling a sync actor so that interrupts strike it alone, and shielding library code that it calls."""

from __future__ import annotations

from functools import partial
from itertools import starmap
from types import TracebackType
from typing import Any

from ..context import interruptible
from ..core.run import Run
from ..core.slot import Slot
from ..errors import Interrupt
from ..middleware.time_limit import TimeLimitExceeded
from ..threading import raise_thread_exception, recall_thread_exception


def call_actor(run: Run) -> tuple[Any, BaseException | None]:
    """Calls the actor of ``run``; returns what it returned, or what it raised.

    If the function returned, the attempt has succeeded, wherever an interrupt lands. A plain call can lose the result:
    CPython looks for interrupts after a call and before its value is stored. An iteration stores what it yields first
    and looks when it goes back for more; so the call is made by an iterator, in C.
    """
    slot: Slot = run.slot
    message = run._message
    function = run.actor.run
    result: Any = None
    failure: BaseException | None = None
    returned = False
    try:
        calls = starmap(partial(function, **message.kwargs) if message.kwargs else function, (message.args,))
        slot.in_user = True
        for result in calls:  # noqa: B007  # once
            returned = True
    except BaseException as e:  # noqa: BLE001  # whatever an actor raises is its failure
        failure = e
    slot.in_user = False
    while slot.armed:
        try:
            disarm(slot)
        except Interrupt:
            continue
    slot.deadline = 0.0
    slot.notify_shutdown = False
    if slot.abandoned:
        return None, TimeLimitExceeded("The actor ran on after it was interrupted.")
    return (result, None) if returned else (None, failure)


def strike(slot: Slot, interrupt: type[BaseException]) -> bool:
    """Ticker: sends ``interrupt`` to the slot's thread if the actor's own code runs there; True if it was sent."""
    with slot.lock:
        slot.armed = True
        if slot.in_user:
            slot.strikes += 1
            raise_thread_exception(slot.thread_id, interrupt)
            return True
        slot.armed = False
        return False


def disarm(slot: Slot) -> None:
    """The slot's thread, outside the actor: recalls an interrupt that may be on its way."""
    with slot.lock:
        recall_thread_exception(slot.thread_id)
        slot.armed = False
        slot.strikes = 0


class Shield:
    """Around library code that an actor calls, such as sending a message: what strikes meanwhile strikes later, at the
    ticker's next round. Nothing to do on threads that are not a worker's."""

    __slots__ = ("_slot", "_was_in_user")

    def __enter__(self) -> None:
        slot = self._slot = interruptible.slot
        if slot is None:
            return
        self._was_in_user = slot.in_user
        slot.in_user = False
        while slot.armed:
            try:
                disarm(slot)
            except Interrupt:
                continue

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._slot is not None:
            self._slot.in_user = self._was_in_user
