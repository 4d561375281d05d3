"""Messages as people and programs get to see them. Bodies may be anything, so nothing here raises."""

from __future__ import annotations

import base64
from datetime import UTC, datetime
from typing import Any

from ..core.durations import human_duration
from ..errors import DecodeError
from ..logging import one_line
from ..message import Message
from ..ports.admin import DeadLetter, Peeked
from ..ports.transport import ErrorText, Incident

#: So much of a message, or of an error, stands in a table.
_CELL = 60


def decoded(body: bytes) -> Message[Any] | None:
    """The message, or None if the bytes are none."""
    try:
        return Message.decode(body)
    except DecodeError:
        return None


def actor_of(message: Message[Any] | None) -> str:
    """The name of the actor; ``?`` if the body is no message."""
    return "?" if message is None else message.actor_name


def call_of(body: bytes, limit: int = _CELL) -> str:
    """The call that a message stands for, cut short."""
    message = decoded(body)
    return f"{len(body)} bytes that are not a message" if message is None else one_line(message, limit)


def error_of(error: ErrorText | None, limit: int = _CELL) -> str:
    """An error on one line, cut short; nothing if there is none."""
    return "" if error is None else one_line(f"{error.type}: {error.message}".removesuffix(": "), limit)


def moment(ms: int) -> str:
    """UNIX milliseconds as a date and a time in UTC."""
    return datetime.fromtimestamp(ms / 1000, tz=UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def ago(ms: int, now_ms: int) -> str:
    """How long a moment is past."""
    return f"{human_duration(max(0, now_ms - ms))} ago"


def waiting_ms(peeked: Peeked, now_ms: int) -> int | None:
    """How long a ready message has been waiting since it could have been run; None if its body does not tell."""
    message = decoded(peeked.body)
    if message is None:
        return None
    eta = message.options.get("eta")
    since_ms = max(message.message_timestamp, eta if isinstance(eta, int) else 0)
    return max(0, now_ms - since_ms)


# --- for programs


def message_fields(body: bytes, *, with_arguments: bool) -> dict[str, Any]:
    """What a body holds. All keys are there, also where the body is no message."""
    message = decoded(body)
    fields: dict[str, Any] = {
        "message_id": None if message is None else message.message_id,
        "actor": None if message is None else message.actor_name,
        "sent_ms": None if message is None else message.message_timestamp,
    }
    if with_arguments:
        fields |= {
            "args": None if message is None else message.args,
            "kwargs": None if message is None else message.kwargs,
            "options": None if message is None else message.options,
            "body_base64": base64.b64encode(body).decode() if message is None else None,
        }
    return fields


def peeked_fields(peeked: Peeked) -> dict[str, Any]:
    """A message in its queue."""
    return {
        "id": peeked.id,
        "queue": peeked.queue,
        "state": peeked.state,
        "priority": peeked.priority,
        "due_ms": peeked.due_ms,
        "attempt": peeked.attempt,
        "crashes": peeked.crashes,
        "owner": peeked.owner or None,
        "last": None if peeked.last is None else incident_fields(peeked.last),
        **message_fields(peeked.body, with_arguments=True),
    }


def letter_fields(letter: DeadLetter, *, in_full: bool) -> dict[str, Any]:
    """A dead letter; ``in_full`` with arguments, tracebacks and history."""
    fields = {
        "id": letter.id,
        "queue": letter.queue,
        "died_ms": letter.died_ms,
        "attempt": letter.attempt,
        "crashes": letter.crashes,
        "error": _error_fields(letter.error, in_full=in_full),
        **message_fields(letter.body, with_arguments=in_full),
    }
    if in_full:
        fields["history"] = [incident_fields(incident) for incident in letter.history]
    return fields


def incident_fields(incident: Incident) -> dict[str, Any]:
    """What befell a message."""
    return {
        "at_ms": incident.at_ms,
        "attempt": incident.attempt,
        "error": _error_fields(incident.error, in_full=True),
    }


def _error_fields(error: ErrorText | None, *, in_full: bool) -> dict[str, Any] | None:
    if error is None:
        return None
    fields = {"type": error.type, "message": error.message}
    return {**fields, "traceback": error.traceback} if in_full else fields
