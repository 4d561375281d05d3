"""Delayed messages whose queue was deleted before they were due."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from .control import Control, Found
from .routes import Routes
from .wire import Publication, priority_of, read

#: At most so many are sent on in one step.
_STEP = 1000


def rescue_strays(
    control: Control,
    stray: str,
    queues: Collection[str],
    publish: Callable[[Sequence[Publication]], object],
    routes: Routes,
) -> int:
    """Sends on what is in ``stray`` and belongs to one of ``queues``; returns how many.

    Raises:
      BrokerError: If that could not be done; what was not sent on is still there.
    """
    if not control.ready(stray):
        return 0
    number = 0
    with control.look(stray) as look:
        step: list[Found] = []
        for found in look.messages():
            if found.key in queues:
                step.append(found)
                number += 1
            if len(step) == _STEP:
                _send_on(step, publish, routes)
                for sent in step:
                    look.take(sent)
                step = []
        _send_on(step, publish, routes)
        for sent in step:
            look.take(sent)
    return number


def _send_on(step: Sequence[Found], publish: Callable[[Sequence[Publication]], object], routes: Routes) -> None:
    if step:
        publish([_anew(found, routes) for found in step])


def _anew(found: Found, routes: Routes) -> Publication:
    id, meta = read(found.properties)
    return routes.to(found.key, id, found.body, meta, priority=priority_of(found.properties), delay_ms=meta.rest_ms)
