"""One message on its way through a worker."""

from __future__ import annotations

import warnings
from typing import Any


class MessageProxy:
    """What middleware sees of a message that runs: its fields, and whether it failed.

    ``fail()`` sends it to the dead letters once the hooks have run. Owned by the thread that runs the message.
    """

    # Class attributes are the values of a fresh proxy: making one then costs three stores instead of fifteen.
    _exception: BaseException | None = None
    failed = False

    def __init__(self, message: Any) -> None:
        self._message = message

    @property
    def queue_name(self) -> str:
        """The queue that the message is in."""
        return self._message.queue_name  # type: ignore[no-any-return]  # a Message

    @property
    def actor_name(self) -> str:
        """The actor to run."""
        return self._message.actor_name  # type: ignore[no-any-return]  # a Message

    @property
    def args(self) -> tuple[Any, ...]:
        """Positional arguments."""
        return self._message.args  # type: ignore[no-any-return]  # a Message

    @property
    def kwargs(self) -> dict[str, Any]:
        """Keyword arguments."""
        return self._message.kwargs  # type: ignore[no-any-return]  # a Message

    @property
    def options(self) -> dict[str, Any]:
        """The options; what is written into them travels with a retry."""
        return self._message.options  # type: ignore[no-any-return]  # a Message

    @property
    def message_id(self) -> str:
        """The message's own id."""
        return self._message.message_id  # type: ignore[no-any-return]  # a Message

    def fail(self) -> None:
        """Marks this message as failed for good."""
        self.failed = True

    def stuff_exception(self, exception: BaseException) -> None:
        """Attaches the exception that the actor raised."""
        self._exception = exception

    def clear_exception(self) -> None:
        """Drops the exception, so that its frames can be collected."""
        self._exception = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._message, name)

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
