"""Actors that are sent when another one succeeded or failed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .middleware import Middleware

if TYPE_CHECKING:
    from ..ports.nouns import ActorLike, BrokerLike


class Callbacks(Middleware):
    """Sends the actor named by ``on_success`` ``(message, result)`` after a success, and the one named by
    ``on_failure`` ``(message, {"type", "message"})`` after every failed attempt."""

    @property
    def actor_options(self) -> set[str]:
        return {"on_failure", "on_success"}

    def idle_hooks(self, actor: ActorLike) -> frozenset[str]:
        return frozenset() if actor.options.get("on_success") else frozenset({"after_process_message"})

    def after_process_message(
        self, broker: BrokerLike, message: Any, *, result: Any = None, exception: BaseException | None = None
    ) -> None:
        if message.failed and exception is None:
            return
        option = "on_success" if exception is None else "on_failure"
        name = message.options.get(option) or broker.actors[message.actor_name].options.get(option)
        if not name:
            return
        detail = result if exception is None else {"type": type(exception).__name__, "message": str(exception)}
        broker.get_actor(name).send(message.asdict(), detail)
