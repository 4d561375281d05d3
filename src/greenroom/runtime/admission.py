"""From a delivery to a run: decoding, and finding the actor. What cannot be run is decided here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..core.options import check_priority
from ..core.run import Run
from ..core.unknown_actor import released_until_ms
from ..core.verdict import Verdict
from ..errors import ActorNotFound, DecodeError, InvalidMessage
from ..logging import get_logger, one_line
from ..message import Message, decode_message
from ..ports.transport import Delivery, ErrorText, Settlement

logger = get_logger("greenroom.worker", "Intake")


class Admission:
    """Owned by the pump's thread, or by whoever runs messages without one."""

    def __init__(self, broker: Any) -> None:
        self._broker = broker

    def admit(self, deliveries: Sequence[Delivery]) -> tuple[list[Run], list[Settlement]]:
        """The runs of deliveries, in their order, and the settlements of those that cannot be run, or not yet."""
        actors = self._broker.actors
        runs: list[Run] = []
        decided: list[Settlement] = []
        for delivery in deliveries:
            try:
                message = decode_message(delivery.body)
            except DecodeError as e:
                decided.append(self._undecodable(delivery, e))
                continue
            actor = actors.get(message.actor_name)
            if actor is None:
                decided.append(self._unknown(delivery, message))
            elif message.options and (error := _check_options(message.options)) is not None:
                decided.append(self._undecodable(delivery, InvalidMessage(error, delivery.body)))
            else:
                runs.append(Run(message, delivery, actor))
        return runs, decided

    def _undecodable(self, delivery: Delivery, error: DecodeError) -> Settlement:
        logger.error("Message %s of queue %r is dead-lettered: %s", delivery.id, delivery.queue, one_line(error, 500))
        reason = ErrorText(type(error).__name__, one_line(error, 4096))
        return Settlement(delivery, Verdict.DEAD, error=reason)

    def _unknown(self, delivery: Delivery, message: Message[Any]) -> Settlement:
        due_ms = released_until_ms(delivery.attempt, self._broker.clock.now_ms(), self._broker.unknown_actor_ttl_ms)
        name = one_line(message.actor_name, 255)
        if due_ms is None:
            logger.error(
                "Message %s is dead-lettered: no actor named %r is known.", one_line(message.message_id, 255), name
            )
            reason = ErrorText(ActorNotFound.__name__, f"no actor named {name!r} is known to this worker")
            return Settlement(delivery, Verdict.DEAD, error=reason)
        logger.warning(
            "Message %s waits for a worker that knows the actor %r.", one_line(message.message_id, 255), name
        )
        return Settlement(delivery, Verdict.RELEASE, due_ms=due_ms)


def _check_options(options: dict[str, Any]) -> str | None:
    """Takes out what has served its purpose; says what is wrong with the rest, if anything is."""
    options.pop("eta", None)
    try:
        check_priority(options.get("priority", 0))
    except ValueError as e:
        return str(e)
    return None
