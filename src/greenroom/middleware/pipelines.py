"""The next stage of a pipeline is sent when a stage has succeeded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..message import Message
from .middleware import Middleware

if TYPE_CHECKING:
    from ..ports.nouns import ActorLike, BrokerLike


class Pipelines(Middleware):
    """Sends what ``pipe_target`` holds, with the result appended as its last positional argument unless that message
    or its actor says ``pipe_ignore``."""

    @property
    def actor_options(self) -> set[str]:
        return {"pipe_ignore", "pipe_target"}

    def idle_hooks(self, actor: ActorLike) -> frozenset[str]:
        return frozenset({"after_process_message"})  # a target is an option of the message

    def after_process_message(
        self, broker: BrokerLike, message: Any, *, result: Any = None, exception: BaseException | None = None
    ) -> None:
        if exception is not None or message.failed:
            return
        target = message.options.get("pipe_target")
        if target is None:
            return
        next_message: Message[Any] = Message(**target)
        actor = broker.get_actor(next_message.actor_name)
        if not next_message.options.get("pipe_ignore", actor.options.get("pipe_ignore", False)):
            next_message = next_message.copy(args=(*next_message.args, result))
        broker.enqueue(next_message, delay=next_message.options.get("delay"))
