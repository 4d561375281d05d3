"""From deliveries to ready runs. What cannot be run is decided here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..core.ready import ReadyRuns
from ..core.run import Run
from ..core.unknown_actor import released_until_ms
from ..core.verdict import Verdict
from ..errors import ActorNotFound, DecodeError
from ..logging import get_logger, one_line
from ..message import Message, decode_message
from ..ports.transport import Delivery, ErrorText, Settlement

logger = get_logger("greenroom.worker", "Intake")


class Intake:
    """Owned by the pump's thread. Decodes, finds the actor, and hands over to the executor's ready runs."""

    def __init__(self, broker: Any, ready: ReadyRuns) -> None:
        self._broker = broker
        self._ready = ready

    def feed(self, deliveries: Sequence[Delivery]) -> list[Settlement]:
        """Hands deliveries over; returns settlements for those that cannot be run."""
        decode, actors = decode_message, self._broker.actors
        decided: list[Settlement] = []
        by_priority: dict[int, list[Run]] = {}
        for delivery in deliveries:
            try:
                message = decode(delivery.body)
            except DecodeError as e:
                decided.append(self._undecodable(delivery, e))
                continue
            actor = actors.get(message.actor_name)
            if actor is None:
                decided.append(self._unknown(delivery, message))
                continue
            options = message.options
            priority = actor.priority
            if options:
                options.pop("eta", None)
                priority = options.get("priority", priority)
            run = Run(message, delivery, actor)
            if priority in by_priority:
                by_priority[priority].append(run)
            else:
                by_priority[priority] = [run]
        for priority, runs in by_priority.items():
            self._ready.push(runs, priority)
        return decided

    def _undecodable(self, delivery: Delivery, error: DecodeError) -> Settlement:
        logger.error("Message %s of queue %r is dead-lettered: %s", delivery.id, delivery.queue, one_line(error, 500))
        reason = ErrorText(type(error).__name__, one_line(error, 4096))
        return Settlement(delivery, Verdict.DEAD, error=reason)

    def _unknown(self, delivery: Delivery, message: Message[Any]) -> Settlement:
        due_ms = released_until_ms(delivery.attempt, self._broker.clock.now_ms(), self._broker.unknown_actor_ttl_ms)
        name = one_line(message.actor_name, 255)
        if due_ms is None:
            logger.error("Message %s is dead-lettered: no actor named %r is known.", message.message_id, name)
            reason = ErrorText(ActorNotFound.__name__, f"no actor named {name!r} is known to this worker")
            return Settlement(delivery, Verdict.DEAD, error=reason)
        logger.warning("Message %s waits for a worker that knows the actor %r.", message.message_id, name)
        return Settlement(delivery, Verdict.RELEASE, due_ms=due_ms)
