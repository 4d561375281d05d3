"""Messages that have become too old are not run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..core.options import check_options
from ..logging import get_logger
from .middleware import Middleware, SkipMessage

if TYPE_CHECKING:
    from ..ports.nouns import ActorLike, BrokerLike


class AgeLimit(Middleware):
    """Dead-letters messages that are older than ``max_age`` when their turn comes.

    Age counts from ``message_timestamp``, so delays and backoffs are part of it.

    Parameters:
      max_age: Milliseconds; None (the default) for no limit. 0 expires every message.
    """

    def __init__(self, *, max_age: int | None = None) -> None:
        check_options({"max_age": max_age})
        self.logger = get_logger(__name__, type(self))
        self.max_age = max_age

    @property
    def actor_options(self) -> set[str]:
        return {"max_age"}

    def idle_hooks(self, actor: ActorLike) -> frozenset[str]:
        limited = actor.options.get("max_age", self.max_age) is not None
        return frozenset() if limited else frozenset({"before_process_message"})

    def before_process_message(self, broker: BrokerLike, message: Any) -> None:
        max_age = message.options.get("max_age")
        if max_age is None:
            max_age = broker.actors[message.actor_name].options.get("max_age", self.max_age)
            if max_age is None:
                return
        if broker.clock.now_ms() - message.message_timestamp >= max_age:
            self.logger.warning("Message %r has exceeded its age limit.", message.message_id)
            message.fail()
            raise SkipMessage("Message age limit exceeded")
