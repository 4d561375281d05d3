"""One message on its way through a worker."""

from __future__ import annotations

from typing import Any


class MessageProxy:
    """What middleware sees of a message that runs: its fields, and whether it failed.

    ``fail()`` sends it to the dead letters once the hooks have run. Owned by the thread that runs the message.
    """

    __slots__ = (
        "_exception",
        "_message",
        "actor_name",
        "args",
        "failed",
        "kwargs",
        "message_id",
        "options",
        "queue_name",
    )

    def __init__(self, message: Any) -> None:
        self._message = message
        self._exception: BaseException | None = None
        self.failed = False
        # Copied because middleware reads them several times a message, and an attribute is cheaper than a detour.
        self.queue_name: str = message.queue_name
        self.actor_name: str = message.actor_name
        self.args: tuple[Any, ...] = message.args
        self.kwargs: dict[str, Any] = message.kwargs
        self.options: dict[str, Any] = message.options
        self.message_id: str = message.message_id

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


class Run(MessageProxy):
    """A claimed message, its actor and what was decided about it.

    Owned by the pump until it is handed to an executor, then by that executor until it is in the outbox, then by the
    pump again.
    """

    __slots__ = ("actor", "delivery", "error", "retry_delay_ms", "settlement", "slot")

    def __init__(self, message: Any, delivery: Any, actor: Any) -> None:
        # MessageProxy.__init__ written out: a call less a message.
        self._message = message
        self._exception = None
        self.failed = False
        self.queue_name = message.queue_name
        self.actor_name = message.actor_name
        self.args = message.args
        self.kwargs = message.kwargs
        self.options = message.options
        self.message_id = message.message_id
        self.delivery = delivery
        self.actor = actor
        self.retry_delay_ms: int | None = None
        self.error: Any = None
        self.settlement: Any = None
        self.slot: Any = None

    def plan_retry(self, delay_ms: int) -> None:
        """Decides that this message, with its options as after the last hook, runs again after ``delay_ms``."""
        self.retry_delay_ms = delay_ms
