"""One message on its way through a worker."""

from __future__ import annotations

import warnings
from operator import attrgetter
from typing import Any


def _of_message(name: str, text: str) -> Any:
    """A property of a proxy: what its message has under that name."""
    return property(attrgetter(f"_message.{name}"), doc=text)


class MessageProxy:
    """What middleware sees of a message that runs: its fields, and whether it failed.

    ``fail()`` sends it to the dead letters once the hooks have run. Owned by the thread that runs the message.
    """

    # Class attributes are the values of a fresh proxy: making one then costs three stores instead of fifteen.
    _exception: BaseException | None = None
    failed = False

    def __init__(self, message: Any) -> None:
        self._message = message

    # Properties, and no ``__getattr__``: a class that has one makes each read of any attribute half as slow again, and
    # a message on its way through a worker is read twenty times.
    queue_name: str = _of_message("queue_name", "The queue that the message is in.")
    actor_name: str = _of_message("actor_name", "The actor to run.")
    args: tuple[Any, ...] = _of_message("args", "Positional arguments.")
    kwargs: dict[str, Any] = _of_message("kwargs", "Keyword arguments.")
    options: dict[str, Any] = _of_message("options", "The options; what is written into them travels with a retry.")
    message_id: str = _of_message("message_id", "The message's own id.")
    message_timestamp: int = _of_message("message_timestamp", "When it was made, in UNIX milliseconds.")
    message_datetime: Any = _of_message("message_datetime", "The same as a datetime in UTC.")
    asdict: Any = _of_message("asdict", "The message's own method.")
    copy: Any = _of_message("copy", "The message's own method.")
    encode: Any = _of_message("encode", "The message's own method.")
    decode: Any = _of_message("decode", "The message's own method.")
    get_result: Any = _of_message("get_result", "The message's own method.")
    aget_result: Any = _of_message("aget_result", "The message's own method.")
    _asdict: Any = _of_message("_asdict", "The message's own method.")
    _replace: Any = _of_message("_replace", "The message's own method.")
    _fields: Any = _of_message("_fields", "The names of its fields.")

    def fail(self) -> None:
        """Marks this message as failed for good."""
        self.failed = True

    def stuff_exception(self, exception: BaseException) -> None:
        """Attaches the exception that the actor raised."""
        self._exception = exception

    def clear_exception(self) -> None:
        """Drops the exception, so that its frames can be collected."""
        self._exception = None

    def __str__(self) -> str:
        return str(self._message)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._message!r})"

    def __eq__(self, other: object) -> bool:
        if isinstance(other, MessageProxy):
            return bool(self._message == other._message)
        return bool(self._message == other)

    __hash__ = object.__hash__

    def __lt__(self, other: Any) -> bool:
        warnings.warn("Comparing message proxies is deprecated: compare messages.", DeprecationWarning, stacklevel=2)
        return bool(self._message < getattr(other, "_message", other))


class Run(MessageProxy):
    """A claimed message, its actor and what was decided about it.

    Owned by the pump until it is handed to an executor, then by that executor until it is in the outbox, then by the
    pump again.
    """

    retry_delay_ms: int | None = None
    error: Any = None
    settlement: Any = None
    slot: Any = None
    #: The hooks that it passes, once it has begun.
    course: Any = None
    #: The ``RateLimitExceeded`` for whose end it waits, if it is given back because of that.
    refused_by: Any = None
    #: By key, how many slots of a limit it has taken so far, less one.
    slots_taken: Any = None
    #: True if a hook has skipped it.
    skipped = False
    #: The delay of its retry, if that was sent as a message of its own.
    sent_again_ms: int | None = None
    #: What the actor has returned, for endings.
    result: Any = None
    #: Its ending, if there is something to be done before it can be settled.
    ending: Any = None
    #: What is sent in one step with its settlement, for those who want to know: messages, with their delays.
    sent: Any = ()

    def __init__(self, message: Any, delivery: Any, actor: Any) -> None:
        self._message = message
        self.delivery = delivery
        self.actor = actor

    def plan_retry(self, delay_ms: int) -> None:
        """Decides that this message, with its options as after the last hook, runs again after ``delay_ms``."""
        self.retry_delay_ms = delay_ms
