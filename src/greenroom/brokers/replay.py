"""How a dead letter becomes a message that can run again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ..core.options import check_priority
from ..message import Message
from ..names import new_storage_id
from ..ports.admin import DeadLetter
from ..ports.store import StoreOp
from ..ports.transport import Envelope

#: Options that tell of past attempts. With them a message would be out of retries at once.
_OF_THE_PAST = frozenset(("eta", "requeue_timestamp", "retries", "traceback"))


def envelope_of(
    letter: DeadLetter,
    actors: Mapping[str, Any],
    now_ms: int,
    writes_of: Callable[[Message[Any]], tuple[StoreOp, ...]] = lambda message: (),
) -> Envelope:
    """What replaces a dead letter: the same message, as if it had just been sent for the first time.

    It keeps its id, its arguments and its other options. Its timestamp is now, or ``max_age`` would expire it at once.
    What cannot be decoded or encoded goes back as the bytes that it is.

    Parameters:
      letter: The dead letter.
      actors: Those known here, for the priority of messages that name none.
      now_ms: UNIX milliseconds.
      writes_of: What the store is to do in one step with sending a message.
    """
    try:
        message = Message.decode(letter.body)
        options = {name: value for name, value in message.options.items() if name not in _OF_THE_PAST}
        message = message._replace(options=options, message_timestamp=now_ms)
        body = message.encode()
    except Exception:  # noqa: BLE001  # an encoder of a user's own may raise anything
        return Envelope(letter.queue, new_storage_id(), letter.body)
    actor = actors.get(message.actor_name)
    priority = _checked(options.get("priority", actor.priority if actor is not None else 0))
    return Envelope(letter.queue, new_storage_id(), body, priority, None, writes_of(message))


def _checked(priority: Any) -> int:
    try:
        return check_priority(priority)
    except ValueError:  # a worker tells what is wrong with it
        return 0
