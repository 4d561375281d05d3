"""Actors that ask for it are told when their worker stops."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..errors import Interrupt
from .middleware import Middleware

if TYPE_CHECKING:
    from ..ports.nouns import ActorLike, BrokerLike


class Shutdown(Interrupt):
    """Raised inside an actor that asked to be told of its worker's shutdown."""


class ShutdownNotifications(Middleware):
    """Marks the messages whose actors want to be told.

    Parameters:
      notify_shutdown: What holds for actors that do not say; False by default.
    """

    def __init__(self, notify_shutdown: bool = False) -> None:
        self.notify_shutdown = notify_shutdown

    @property
    def actor_options(self) -> set[str]:
        return {"notify_shutdown"}

    def should_notify(self, actor: Any, message: Any) -> bool:
        """True if the actor of ``message`` is to be interrupted when the worker stops."""
        notify = message.options.get("notify_shutdown")
        if notify is None:
            notify = actor.options.get("notify_shutdown")
        return self.notify_shutdown if notify is None else bool(notify)

    def idle_hooks(self, actor: ActorLike) -> frozenset[str]:
        notify = actor.options.get("notify_shutdown")
        notify = self.notify_shutdown if notify is None else notify
        return frozenset() if notify else frozenset({"before_process_message"})

    def before_process_message(self, broker: BrokerLike, message: Any) -> None:
        slot = message.slot  # cleared by the executor when the actor has returned
        if slot is not None and self.should_notify(broker.actors[message.actor_name], message):
            slot.notify_shutdown = True
