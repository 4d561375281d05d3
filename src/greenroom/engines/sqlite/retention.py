"""Dead letters that are too old or too many are deleted in steps."""

from __future__ import annotations

import sqlite3

from ...ports.retention import Retention

#: So many are deleted in one step.
CHUNK = 1000

_EXPIRED = f"select seq from dead where died_ms < ? order by died_ms limit {CHUNK}"
_SURPLUS = f"select seq from dead order by died_ms desc, seq desc limit {CHUNK} offset ?"


def retain(retention: Retention, connection: sqlite3.Connection, now_ms: int) -> bool:
    """One step, inside a transaction: deletes dead letters that are too old or too many; True if there may be more of
    them."""
    deleted = 0
    if retention.ttl_ms is not None:
        deleted = _delete(connection, _EXPIRED, now_ms - retention.ttl_ms)
    if retention.limit is not None and deleted < CHUNK:
        deleted = max(deleted, _delete(connection, _SURPLUS, retention.limit))
    return deleted >= CHUNK


def _delete(connection: sqlite3.Connection, chosen: str, value: int) -> int:
    return connection.execute(f"delete from dead where seq in ({chosen})", (value,)).rowcount
