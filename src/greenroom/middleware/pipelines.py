"""What follows when a part of a composition has ended: the next stage of a pipeline, the completion of a group."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..core.ending import Outcome
from ..core.graph import MARKS, PIPE_TARGET
from ..message import Message
from .composing import Composing, depart, departure_of, with_result
from .middleware import Middleware

if TYPE_CHECKING:
    from ..core.ending import Ending
    from ..ports.nouns import ActorLike, BrokerLike


class Pipelines(Middleware):
    """Sends the next stage of a pipeline, with the result appended as its last positional argument unless that message
    or its actor says ``pipe_ignore``; and tells groups of the ends of their members.

    Where the broker has an engine of ours that is one step with settling the message, so it happens if and only if that
    does. On a broker of a user's own the next stage is enqueued before the message is acked.
    """

    @property
    def actor_options(self) -> set[str]:
        return {"pipe_ignore", "pipe_target"}

    def idle_hooks(self, actor: ActorLike) -> frozenset[str]:
        return frozenset({"after_process_message", "ending"})  # all that matters are options of the message

    def ending(self, broker: BrokerLike, ending: Ending) -> None:
        message = ending.message
        if message is None or MARKS.isdisjoint(message.options):
            return
        departure = departure_of(message.options) if ending.outcome is Outcome.DONE else None
        if departure is not None and broker.composition_store is not None:
            depart(broker, ending, (departure,))
            return
        if ending.outcome.is_final and broker.transport is not None:
            Composing(broker, ending).conclude()

    def after_process_message(
        self, broker: BrokerLike, message: Any, *, result: Any = None, exception: BaseException | None = None
    ) -> None:
        if broker.transport is not None or exception is not None or message.failed:
            return
        target = message.options.get(PIPE_TARGET)
        if target is None:
            return
        next_message = with_result(broker, Message(**target), result)
        broker.enqueue(next_message, delay=next_message.options.get("delay"))
