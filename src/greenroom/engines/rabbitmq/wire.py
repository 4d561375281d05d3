"""What stands on the wire beside a body: our own metadata, in properties that Dramatiq does not read.

``message_id`` is the storage id. The header ``greenroom`` is JSON, and there only if it says something: what is sent
for the first time has none. What Dramatiq sent has neither.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec
from msgspec.structs import replace
from pika import BasicProperties

from ...names import new_storage_id
from ...ports.transport import ErrorText, Incident

#: The header that holds ``Meta``.
HEADER = "greenroom"
#: AMQP: this message is written to disk.
PERSISTENT = 2
#: How many incidents are kept.
HISTORY_LIMIT = 25
#: All properties of a message have to fit into one frame, of 128 KiB if nothing else was agreed.
_MOST_META = 64 * 1024


class Meta(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """What a message carries along.

    ``attempt`` is how often its earlier copies were claimed; ``crashes`` and ``history`` are those of its past.
    ``error`` and ``died_ms`` are a dead letter's. ``rest_ms`` is a delay that is still to be served when it arrives:
    the levels do not reach that far (``delays.py``).
    """

    attempt: int = 0
    crashes: int = 0
    history: tuple[Incident, ...] = ()
    error: ErrorText | None = None
    died_ms: int = 0
    rest_ms: int = 0


NO_META = Meta()

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Meta).decode


class Publication(NamedTuple):
    """A message on its way: where it is published to, and which queues and levels have to be declared for that."""

    exchange: str
    key: str
    body: bytes
    properties: BasicProperties
    needs: tuple[str, ...]


def properties_of(
    id: str, meta: Meta = NO_META, priority: int = 0, headers: dict[str, Any] | None = None
) -> BasicProperties:
    """The properties of a message.

    Parameters:
      id: Its storage id.
      meta: What it carries along.
      priority: As in an envelope: below 0 runs sooner. AMQP counts the other way round, from 0 to 255.
      headers: More of them.
    """
    if meta is not NO_META and meta != NO_META:
        headers = {**(headers or {}), HEADER: _text(meta)}
    return BasicProperties(
        delivery_mode=PERSISTENT,
        message_id=id,
        priority=min(-priority, 255) if priority < 0 else None,
        headers=headers,
    )


def _text(meta: Meta) -> str:
    """The metadata as JSON. If it is too much, the oldest incidents lose their tracebacks, then go."""
    text = _encode(meta)
    for shorten in (_without_old_tracebacks, _without_tracebacks, _without_history):
        if len(text) <= _MOST_META:
            break
        text = _encode(shorten(meta))
    return text.decode()


def _without_old_tracebacks(meta: Meta) -> Meta:
    *old, last = meta.history or (Incident(0, 0),)
    return replace(meta, history=(*map(_brief, old), last))


def _without_tracebacks(meta: Meta) -> Meta:
    error = meta.error and ErrorText(meta.error.type, meta.error.message[:1000])
    return replace(meta, history=tuple(map(_brief, meta.history)), error=error)


def _without_history(meta: Meta) -> Meta:
    return replace(_without_tracebacks(meta), history=())


def _brief(incident: Incident) -> Incident:
    error = incident.error and ErrorText(incident.error.type, incident.error.message[:1000])
    return replace(incident, error=error)


def read(properties: BasicProperties) -> tuple[str, Meta]:
    """The storage id and the metadata of a message; a fresh one and nothing, where it has none."""
    headers = properties.headers
    text = headers.get(HEADER) if headers else None
    meta = NO_META
    if text is not None:
        try:
            meta = _decode(text)
        except (msgspec.DecodeError, TypeError):  # somebody else's header: the body is what counts
            meta = NO_META
    return properties.message_id or new_storage_id(), meta


def priority_of(properties: BasicProperties) -> int:
    """The priority as an envelope has it."""
    return -(properties.priority or 0)
