"""Endings: middleware is asked what is to happen besides, and the answer travels with the settlement."""

from __future__ import annotations

from typing import Any

import msgspec

from ..core.ending import Ending
from ..message import Message
from ..ports.transport import Settlement


def ask(ending: Ending, hooks: Any) -> None:
    """Calls the hooks ``ending``. One that fails must keep neither the others nor the message."""
    broker = ending.broker
    for hook in hooks:
        try:
            hook(broker, ending)
        except Exception:  # noqa: BLE001  # see above
            broker._hook_failed("at", "ending", hook)


def sealed(ending: Ending) -> Settlement:
    """The settlement with all that travels with it."""
    s: Settlement = ending.settlement
    if not (ending.writes or ending.push):
        return s
    push, writes = (*s.push, *ending.push), (*s.writes, *ending.writes)
    # Half the time of `msgspec.structs.replace`, and this is done for every message that stores a result.
    return Settlement(s.delivery, s.verdict, s.retry, s.due_ms, s.park, push, writes, s.error)


class _Readable(msgspec.Struct):
    """What has to be there of a message so that others can be told of its end."""

    message_id: str
    queue_name: str = ""
    actor_name: str = ""
    options: dict[str, Any] = {}


_decode = msgspec.json.Decoder(_Readable).decode


def readable_part(body: bytes) -> Message[Any] | None:
    """What can be made out of a body that is no valid message: its id, names and options; None if nothing can."""
    try:
        found = _decode(body)
    except (ValueError, RecursionError):
        return None
    return Message(found.queue_name, found.actor_name, (), {}, found.options, found.message_id, 0)
