"""How long dead letters are kept, and how many."""

from __future__ import annotations

import sqlite3

import msgspec

#: Seven days.
DEAD_LETTER_TTL_MS = 7 * 24 * 60 * 60 * 1000
#: So many are deleted in one step.
CHUNK = 1000

_EXPIRED = f"select seq from dead where died_ms < ? order by died_ms limit {CHUNK}"
_SURPLUS = f"select seq from dead order by died_ms desc, seq desc limit {CHUNK} offset ?"


class Retention(msgspec.Struct, frozen=True):
    """How long dead letters are kept, in milliseconds, and how many, the newest; None for no end.

    It is kept by whoever consumes: where workers of one file were told different things, the strictest wins.
    """

    ttl_ms: int | None = DEAD_LETTER_TTL_MS
    limit: int | None = None

    def purge(self, connection: sqlite3.Connection, now_ms: int) -> bool:
        """One step, inside a transaction: deletes dead letters that are too old or too many; True if there may be more
        of them."""
        deleted = 0
        if self.ttl_ms is not None:
            deleted = _delete(connection, _EXPIRED, now_ms - self.ttl_ms)
        if self.limit is not None and deleted < CHUNK:
            deleted = max(deleted, _delete(connection, _SURPLUS, self.limit))
        return deleted >= CHUNK


def _delete(connection: sqlite3.Connection, chosen: str, value: int) -> int:
    return connection.execute(f"delete from dead where seq in ({chosen})", (value,)).rowcount
