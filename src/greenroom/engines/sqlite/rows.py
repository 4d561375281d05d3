"""Envelopes and leases as rows and columns. The numbers are explained in ``schema.sql``."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from itertools import islice
from typing import Any

import msgspec

from ...errors import MessageTooLarge
from ...ports.transport import Envelope, ErrorText, Incident
from .wake import WakeFolder

READY, DELAYED, CLAIMED = 2, 3, 4

#: When a parked message is due: it is delayed until somebody wakes it.
NEVER_MS = 2**62

#: The lease of a message that nobody has claimed.
FREE = 2**62
_TRIP_BITS = 40
_LEASE_BASE = 2**61


def lease_of(owner: int, trip: int) -> int:
    """The lease of what ``owner`` claims in its ``trip``. Fits for two million owners of 10**12 trips each."""
    return _LEASE_BASE + (owner << _TRIP_BITS) + trip


def leases_of(owner: int) -> tuple[int, int]:
    """The first and the last lease that ``owner`` can have."""
    return lease_of(owner, 0), lease_of(owner + 1, 0) - 1


def owner_of(lease: int) -> int:
    """Whose ``lease`` it is."""
    return (lease - _LEASE_BASE) >> _TRIP_BITS


_COLUMNS = "insert into message (id, queue, priority, state, due_ms, body) values "
# Many rows a statement: binding a hundred rows in one go costs 2.2 us a message, `executemany` 3.5; JSON through
# `json_each` 2.2 to 3.8, and it cannot carry bodies that are not UTF-8.
_INSERTS = tuple((rows, _COLUMNS + ", ".join(["(?, ?, ?, ?, ?, ?)"] * rows)) for rows in (100, 10, 1))
INSERT_ONE = _INSERTS[-1][1]


def check_body(envelope: Envelope, max_body: int) -> None:
    """Raises ``MessageTooLarge`` for a body of more than ``max_body`` bytes."""
    size = len(envelope.body)
    if size > max_body:
        raise MessageTooLarge(f"A body of {size} bytes is over the limit of {max_body}.", size=size, limit=max_body)


def row_of(envelope: Envelope) -> tuple[Any, ...]:
    """An envelope as the columns of ``INSERT_ONE``."""
    state = READY if envelope.due_ms is None else DELAYED
    return (envelope.id, envelope.queue, envelope.priority, state, envelope.due_ms, envelope.body)


def insertions(batch: Sequence[Envelope]) -> list[tuple[str, list[Any]]]:
    """The statements that insert envelopes, with their parameters. Made before the transaction, which holds a lock."""
    rows = iter(batch)
    left = len(batch)
    statements = []
    for size, statement in _INSERTS:
        while left >= size:
            parameters: list[Any] = []
            for e in islice(rows, size):
                parameters += (e.id, e.queue, e.priority, READY if e.due_ms is None else DELAYED, e.due_ms, e.body)
            statements.append((statement, parameters))
            left -= size
    return statements


def insert(connection: sqlite3.Connection, batch: Sequence[Envelope]) -> None:
    """Inserts envelopes inside a transaction."""
    for statement, parameters in insertions(batch):
        connection.execute(statement, parameters)


def ring(wake: WakeFolder, batch: Sequence[Envelope]) -> None:
    """Wakes those who wait for any of this."""
    due_ms: int | None = None
    for envelope in batch:
        if envelope.due_ms is None:
            wake.ring(None)
            return
        if due_ms is None or envelope.due_ms < due_ms:
            due_ms = envelope.due_ms
    if due_ms is not None:
        wake.ring(due_ms)


class _Entry(msgspec.Struct, frozen=True, omit_defaults=True):
    """An incident as it lies in the column ``history``."""

    at_ms: int
    attempt: int
    type: str | None = None
    message: str = ""
    traceback: str = ""


#: How many incidents a history holds, the last ones.
HISTORY_LENGTH = 25
#: A history with one more entry, whose JSON is the parameter.
LONGER_HISTORY = (
    "json_insert(case when history is null or not json_valid(history) then '[]'"
    f" when json_array_length(history) >= {HISTORY_LENGTH} then json_remove(history, '$[0]')"
    " else history end, '$[#]', json(?))"
)

_encode_entry = msgspec.json.Encoder().encode
_decode_entries = msgspec.json.Decoder(list[_Entry]).decode


def entry_of(incident: Incident) -> str:
    """An incident as one element of the column ``history``."""
    error = incident.error
    texts = () if error is None else (error.type, error.message, error.traceback)
    return _encode_entry(_Entry(incident.at_ms, incident.attempt, *texts)).decode()


def incidents_of(history: Any) -> list[Incident]:
    """The column ``history``, the oldest first. If it is damaged that is the one thing which is known of it."""
    try:
        entries = _decode_entries(history or "[]")
    except (msgspec.MsgspecError, TypeError, UnicodeError):
        return [Incident(0, 0, ErrorText("HistoryDamaged", "what befell this message before cannot be read"))]
    return [
        Incident(e.at_ms, e.attempt, None if e.type is None else ErrorText(e.type, e.message, e.traceback))
        for e in entries
    ]
