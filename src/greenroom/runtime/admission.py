"""From a delivery to a run: decoding, and finding the actor. What cannot be run is decided here."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from itertools import takewhile
from typing import Any

import msgspec

from ..composition.built_in import built_in
from ..core.options import MESSAGE_CHECKED, message_option_error
from ..core.run import Run
from ..core.suspects import TOO_MANY_CRASHES, max_crashes_of
from ..core.unknown_actor import released_until_ms, waited_ms
from ..core.verdict import Verdict
from ..errors import ActorNotFound, DecodeError, InvalidMessage, MessageTooLarge
from ..logging import get_logger, one_line
from ..message import decode_message
from ..ports.transport import CRASH, Delivery, ErrorText, Incident, Settlement
from .complaints import Complaints

logger = get_logger("greenroom.worker", "Intake")

#: Asks the engine what befell a delivery before.
History = Callable[[Delivery], Sequence[Incident]]


class Admitted(msgspec.Struct):
    """What has become of the deliveries of one claim, each kind in their order."""

    runs: list[Run] = []
    #: They ran while a worker crashed: each of them is to run alone.
    suspects: list[Run] = []
    #: Runs that never start: their settlement is that of a dead letter.
    condemned: list[Run] = []
    #: What is settled and nobody is told of.
    decided: list[Settlement] = []


class Admission:
    """Owned by the pump's thread, or by whoever runs messages without one.

    Parameters:
      broker: Knows the actors.
      history: Asks the engine what befell a delivery before; None for one that keeps no history.
    """

    def __init__(self, broker: Any, history: History | None) -> None:
        self._broker = broker
        self._history = history
        self._complaints = Complaints(logger, broker.clock)
        #: Says what of the log was left out; to be called now and then.
        self.catch_up = self._complaints.catch_up

    def admit(self, deliveries: Sequence[Delivery]) -> Admitted:
        """Decides which deliveries are run, and how; what cannot be run, or not yet, is settled."""
        actors = self._broker.actors
        most_bytes = self._broker.max_message_bytes
        admitted = Admitted()
        runs = admitted.runs
        for delivery in deliveries:
            if len(delivery.body) > most_bytes:
                admitted.decided.append(self._refused(delivery, _too_large(delivery.body, most_bytes)))
                continue
            try:
                message = decode_message(delivery.body)
            except DecodeError as e:
                admitted.decided.append(self._refused(delivery, e))
                continue
            actor = actors.get(message.actor_name)
            if actor is None and (actor := built_in(self._broker, message)) is None:
                self._unknown(Run(message, delivery, None), admitted)
            elif message.options and (error := _check_options(message.options, delivery.body)) is not None:
                admitted.decided.append(self._refused(delivery, error))
            elif delivery.crashes:
                self._suspected(Run(message, delivery, actor), admitted)
            else:
                runs.append(Run(message, delivery, actor))
        return admitted

    def _refused(self, delivery: Delivery, error: DecodeError | MessageTooLarge) -> Settlement:
        """Dead-letters the bytes as they are."""
        reason = one_line(error, 4096)
        self._complaints.say(
            logging.ERROR,
            "that cannot be read were dead-lettered",
            "Message %s of queue %r is dead-lettered: %s",
            delivery.id,
            delivery.queue,
            reason[:500],
        )
        return Settlement(delivery, Verdict.DEAD, error=ErrorText(type(error).__name__, reason))

    # --- crashes

    def _suspected(self, run: Run, admitted: Admitted) -> None:
        crashes = run.delivery.crashes
        most = max_crashes_of(run.options, run.actor.options, self._broker.max_crashes)
        if most is None or crashes < most:
            logger.warning("Message %s ran while a worker crashed, %s: it runs alone.", _name(run), _times(crashes))
            admitted.suspects.append(run)
        else:
            text = f"it crashed its worker {_times(crashes)}; last: {self._evidence(run.delivery)}"
            admitted.condemned.append(_condemned(run, ErrorText(TOO_MANY_CRASHES, text)))

    def _evidence(self, delivery: Delivery) -> str:
        """How the worker died that ran the message last, as far as it is known."""
        crashes = [i.error.message for i in self._incidents(delivery) if i.error is not None and i.error.type == CRASH]
        return crashes[-1] if crashes else "nothing is known of it"

    # --- unknown actors

    def _unknown(self, run: Run, admitted: Admitted) -> None:
        now_ms = self._broker.clock.now_ms()
        name = one_line(run.actor_name, 255)
        reason = ErrorText(ActorNotFound.__name__, f"no actor named {name!r} is known to this worker")
        met_ms = self._met_ms(run.delivery, now_ms)
        first_met_ms = now_ms if met_ms is None else met_ms
        due_ms = released_until_ms(first_met_ms, now_ms, self._broker.unknown_actor_ttl_ms)
        if due_ms is None:
            admitted.condemned.append(_condemned(run, reason))
            return
        self._complaints.say(
            logging.WARNING,
            "wait for workers that know their actors",
            "Message %s waits for a worker that knows the actor %r.",
            _name(run),
            name,
        )
        error = reason if met_ms is None else None  # the first one stays in the history: its time is what counts
        admitted.decided.append(Settlement(run.delivery, Verdict.RELEASE, due_ms=due_ms, error=error))

    def _met_ms(self, delivery: Delivery, now_ms: int) -> int | None:
        """When a worker that does not know its actor first met the message since it last ran; None if that is now."""
        if self._history is None:
            return now_ms - waited_ms(delivery.attempt)
        latest = takewhile(_is_unknown_actor, reversed(self._incidents(delivery)))
        return min((incident.at_ms for incident in latest), default=None)

    def _incidents(self, delivery: Delivery) -> Sequence[Incident]:
        return () if self._history is None else self._history(delivery)


def _is_unknown_actor(incident: Incident) -> bool:
    return incident.error is not None and incident.error.type == ActorNotFound.__name__


def _condemned(run: Run, reason: ErrorText) -> Run:
    """The run as one that has failed for good."""
    logger.error("Message %s is dead-lettered: %s: %s", _name(run), reason.type, reason.message)
    run.fail()
    run.error = reason
    run.settlement = Settlement(run.delivery, Verdict.DEAD, error=reason)
    return run


def _name(run: Run) -> str:
    return one_line(run.message_id, 255)


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


def _check_options(options: dict[str, Any], body: bytes) -> InvalidMessage | None:
    """Takes out what has served its purpose; says what is wrong with the rest, if anything is."""
    options.pop("eta", None)
    if MESSAGE_CHECKED.isdisjoint(options):
        return None
    for name, value in options.items():
        if (error := message_option_error(name, value)) is not None:
            return InvalidMessage(error, body, field=f"options.{name}")
    return None


def _too_large(body: bytes, limit: int) -> MessageTooLarge:
    size = len(body)
    return MessageTooLarge(f"It has {size} bytes; at most {limit} are allowed.", size=size, limit=limit)
