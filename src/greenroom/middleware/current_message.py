"""The message that an actor runs for, for code that was not handed it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..context import running_messages
from .middleware import Middleware

if TYPE_CHECKING:
    from ..ports.nouns import BrokerLike


class CurrentMessage(Middleware):
    """Makes ``CurrentMessage.get_current_message()`` answer inside actors, on threads and on the event loop alike."""

    @classmethod
    def get_current_message(cls) -> Any:
        """The message that the calling actor runs for; None outside of actors."""
        messages = running_messages.get()
        return messages[-1] if messages else None

    def before_process_message(self, broker: BrokerLike, message: Any) -> None:
        running_messages.set((*running_messages.get(), getattr(message, "_message", message)))

    def after_process_message(
        self, broker: BrokerLike, message: Any, *, result: Any = None, exception: BaseException | None = None
    ) -> None:
        self.after_skip_message(broker, message)

    def after_skip_message(self, broker: BrokerLike, message: Any) -> None:
        message = getattr(message, "_message", message)
        messages = running_messages.get()
        for depth, running in enumerate(messages):
            if running is message:  # if an earlier middleware skipped it, it never was there
                running_messages.set(messages[:depth])
                return
