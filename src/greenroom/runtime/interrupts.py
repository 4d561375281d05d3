"""Calling a sync actor so that interrupts strike it alone, and shielding library code that it calls."""

from __future__ import annotations

from functools import partial
from itertools import starmap
from types import TracebackType
from typing import Any

from ..context import interruptible
from ..core.run import Run
from ..errors import Interrupt
from ..middleware.time_limit import TimeLimitExceeded
from ..threading import land_thread_exception, raise_thread_exception, recall_thread_exception
from .slot import Slot


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
        try:
            calls = starmap(partial(function, **message.kwargs) if message.kwargs else function, (message.args,))
            slot.in_user = True
            for result in calls:  # noqa: B007  # once
                returned = True
        except BaseException as e:  # noqa: BLE001  # whatever an actor raises is its failure
            failure = e
        slot.in_user = False
    except Interrupt:  # from Python 3.12 on the handler above ends with a jump backward, where one may still land
        slot.in_user = False
    while slot.armed:
        try:
            disarm(slot)
        except Interrupt:
            continue
    slot.deadline = 0.0
    slot.notify_shutdown = False
    if not returned and failure is None:  # an iterator takes this one for its end
        failure = StopIteration("The actor raised StopIteration.")
    if slot.abandoned:
        return None, TimeLimitExceeded("The actor ran on after it was interrupted.")
    if returned:
        return result, None
    try:
        return None, failure
    finally:
        del failure  # or its traceback would keep this frame, and all that it refers to, in a cycle


def strike(slot: Slot, run: Run, interrupt: type[BaseException]) -> bool:
    """Ticker: sends ``interrupt`` to the slot's thread if the code of ``run``'s actor runs there, and not another's by
    now; True if it was sent. A shield raises it at its end."""
    with slot.lock:
        was_armed, slot.armed = slot.armed, True
        if slot.in_user and slot.run is run:  # in this order: if the first look met ``run``, it cannot end meanwhile
            if interrupt is TimeLimitExceeded:
                slot.strikes += 1
            else:
                slot.notify_shutdown = False  # said once
            raise_thread_exception(slot.thread_id, interrupt)
            return True
        slot.armed = was_armed  # what was sent before may still be on its way
        if slot.shielded and slot.run is run:
            slot.strikes += interrupt is TimeLimitExceeded
            slot.owed = (run, interrupt)
            return True
        return False


def abandon(slot: Slot, run: Run) -> bool:
    """Ticker: marks the slot as given up, as ``strike`` does it: only while ``run`` runs there. What has returned has
    succeeded, and what comes next is not at fault."""
    with slot.lock:
        was_armed, slot.armed = slot.armed, True
        if slot.in_user and slot.run is run:
            slot.abandoned = True
            return True
        slot.armed = was_armed
        return False


def let_land(slot: Slot) -> None:
    """The slot's thread, outside the actor: lets an interrupt that may be on its way land here."""
    with slot.lock:  # the ticker has sent it, or it has not
        slot.armed = False
    land_thread_exception(slot.thread_id)


def disarm(slot: Slot) -> None:
    """The slot's thread, outside the actor: recalls an interrupt that may be on its way."""
    with slot.lock:
        recall_thread_exception(slot.thread_id)
        slot.armed = False
        slot.strikes = 0


class Shield:
    """Around library code that an actor calls, such as sending a message. What was sent before it strikes before it
    begins; what would strike meanwhile strikes at its end. Nothing to do on threads that are not a worker's."""

    __slots__ = ("_slot", "_was_in_user")

    def __enter__(self) -> None:
        slot = self._slot = interruptible.slot
        if slot is None:
            return
        was_in_user = self._was_in_user = slot.in_user
        slot.in_user = False
        try:
            while slot.armed:
                let_land(slot)
        except Interrupt:
            slot.in_user = was_in_user
            raise
        if was_in_user:  # else this is inside of another shield
            slot.shielded = True

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        slot = self._slot
        if slot is None or not self._was_in_user:
            return
        slot.shielded = False
        slot.in_user = True
        owed, slot.owed = slot.owed, None
        if owed is not None and owed[0] is slot.run:
            if owed[1] is not TimeLimitExceeded:
                slot.notify_shutdown = False
            raise owed[1]
