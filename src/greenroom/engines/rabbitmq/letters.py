"""Dead letters, as they lie in a queue of RabbitMQ."""

from __future__ import annotations

import hashlib
from datetime import datetime
from typing import Any

from ...ports.admin import DeadLetter, Peeked
from ...ports.transport import ErrorText, Incident
from .control import Found
from .reading import id_of
from .wire import HISTORY_LIMIT, Meta, priority_of, read


def letter_of(queue: str, found: Found) -> DeadLetter:
    """A dead letter; also one that the broker itself, or Dramatiq, has put there."""
    _, meta = read(found.properties)
    id = id_of(found.properties, found.body)
    died_ms, error = meta.died_ms, meta.error
    if not died_ms:
        died_ms, error = _by_the_broker(found.properties.headers or {})
    place = f"{died_ms}.{_number(id)}"
    return DeadLetter(queue, id, found.body, error, meta.attempt, meta.crashes, died_ms, meta.history, place)


def _by_the_broker(headers: dict[str, Any]) -> tuple[int, ErrorText | None]:
    """When and why the broker has dead-lettered it."""
    deaths = headers.get("x-death")
    if not isinstance(deaths, list) or not deaths or not isinstance(deaths[0], dict):
        return 0, None
    reason = str(deaths[0].get("reason", "unknown"))
    time = deaths[0].get("time")
    died_ms = int(time.timestamp() * 1000) if isinstance(time, datetime) else 0
    return died_ms, ErrorText("DeadLettered", f"RabbitMQ has dead-lettered it: {reason}")


def rank(letter: DeadLetter) -> tuple[int, int]:
    """Orders letters by their deaths; no two are equal."""
    return letter.died_ms, _number(letter.id)


def _number(id: str) -> int:
    return int.from_bytes(hashlib.blake2b(id.encode("utf-8", "surrogatepass"), digest_size=7).digest(), "big")


def afterlife(letter: DeadLetter) -> Meta:
    """What the replacement of a dead letter carries along: its history, with its death."""
    death = Incident(letter.died_ms, letter.attempt, letter.error)
    return Meta(history=(*letter.history, death)[-HISTORY_LIMIT:])


def peeked(queue: str, found: Found, number: int) -> Peeked:
    """A message that is ready."""
    _, meta = read(found.properties)
    last = meta.history[-1] if meta.history else None
    priority = priority_of(found.properties)
    return Peeked(
        queue,
        id_of(found.properties, found.body),
        found.body,
        "ready",
        priority,
        attempt=meta.attempt,
        crashes=meta.crashes,
        last=last,
        place=f"1.0.{number}",
    )
