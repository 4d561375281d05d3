"""Values, counters and windows of the store, as rows. Everything happens inside a transaction of the caller's."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from itertools import islice
from operator import attrgetter
from typing import Any

from ...ports.store import Add, Bump, Delete, Get, GetParts, Grant, Put, PutIf

_ALIVE = " and (end_ms is null or end_ms > ?)"
_GET = "select value from value where key = ? and part = ?" + _ALIVE
_GET_PARTS = "select part, value from value where key = ? and part >= ?" + _ALIVE + " order by part limit ?"
_INTO = "insert into value (key, part, value, end_ms) values "
_INSTEAD = " on conflict (key, part) do update set value = excluded.value, end_ms = excluded.end_ms"
# Many rows a statement, as for messages: binding them in one go takes half the time of `executemany`.
_PUTS = tuple((rows, _INTO + ", ".join(["(?, ?, ?, ?)"] * rows) + _INSTEAD) for rows in (100, 10, 1))
_PUT_ONE = _PUTS[-1][1]
_KEY = attrgetter("key")
_DELETE = "delete from value where key = ?"
_DELETE_PART = "delete from value where key = ? and part = ?"

_LAST_GRANT = "select part, value from value where key = ? order by part desc limit 1"
_GRANT_BEFORE = "select value from value where key = ? and part = ?"
_HEAL = "update value set value = ?, end_ms = ? where key = ? and value > ?"
_FORGET_GRANTS = "delete from value where key = ? and part <= ? and end_ms <= ?"


def _end(now_ms: int, ttl_ms: int | None) -> int | None:
    return None if ttl_ms is None else now_ms + ttl_ms


def get(connection: sqlite3.Connection, op: Get, now_ms: int) -> Any:
    """The value, or None."""
    row = connection.execute(_GET, (op.key, op.part, now_ms)).fetchone()
    return None if row is None else row[0]


def get_parts(connection: sqlite3.Connection, op: GetParts, now_ms: int) -> list[tuple[int, Any]]:
    """The parts that are there."""
    return connection.execute(_GET_PARTS, (op.key, op.start, now_ms, op.limit)).fetchall()


def put_many(connection: sqlite3.Connection, ops: Sequence[Put], now_ms: int) -> None:
    """All at once; of two for one part the later one stays."""
    left = len(ops)
    # In the order of the tree, a row goes where the last one went: 2.6 us a row, unsorted 3.7.
    rows = iter(sorted(ops, key=_KEY) if left > 1 else ops)
    for size, statement in _PUTS:
        while left >= size:
            parameters: list[Any] = []
            for op in islice(rows, size):
                ttl_ms = op.ttl_ms
                parameters += (op.key, op.part, op.value, None if ttl_ms is None else now_ms + ttl_ms)
            connection.execute(statement, parameters)
            left -= size


def put_if(connection: sqlite3.Connection, op: PutIf, now_ms: int) -> bool:
    """Whether it was put."""
    if get(connection, Get(op.key), now_ms) != op.expect:
        return False
    _write(connection, op.key, op.value, _end(now_ms, op.ttl_ms))
    return True


def delete(connection: sqlite3.Connection, op: Delete, now_ms: int) -> bool:
    """What had expired is deleted as well, and was not there."""
    part = op.part
    condition, key = ("", (op.key,)) if part is None else (" and part = ?", (op.key, part))
    seen = f"select 1 from value where key = ?{condition}{_ALIVE} limit 1"
    was_there = connection.execute(seen, (*key, now_ms)).fetchone() is not None
    connection.execute(_DELETE if part is None else _DELETE_PART, key)
    return was_there


def add(connection: sqlite3.Connection, op: Add, now_ms: int) -> bool:
    """Whether the counter was made."""
    if get(connection, Get(op.key), now_ms) is not None:
        return False
    _write(connection, op.key, op.value, _end(now_ms, op.ttl_ms))
    return True


def bump(connection: sqlite3.Connection, op: Bump, now_ms: int) -> int | None:
    """The new value, or None for a refusal."""
    found = get(connection, Get(op.key), now_ms)
    if op.only_existing if found is None else not isinstance(found, int):
        return None
    value: int = (found or 0) + op.amount
    others = [get(connection, Get(key), now_ms) for key in {*op.also} - {op.key}]
    judged = value + sum([other for other in others if isinstance(other, int)])
    if (op.high is not None and judged > op.high) or (op.low is not None and judged < op.low):
        return None
    _write(connection, op.key, value, _end(now_ms, op.ttl_ms))
    return value


def _write(connection: sqlite3.Connection, key: str, value: bytes | int, end_ms: int | None, part: int = 0) -> None:
    connection.execute(_PUT_ONE, (key, part, value, end_ms))


def grant(connection: sqlite3.Connection, op: Grant, now_ms: int) -> int:
    """0 if it was granted, else when to ask again."""
    return _grant_sliding(connection, op, now_ms) if op.sliding else _grant_in_bucket(connection, op, now_ms)


def _grant_in_bucket(connection: sqlite3.Connection, op: Grant, now_ms: int) -> int:
    """A counter for each window that begins at a multiple of its length, in the part of its number."""
    window = now_ms // op.window_ms
    end_ms = (window + 1) * op.window_ms
    granted = get(connection, Get(op.key, window), now_ms) or 0
    if granted >= op.limit:
        return end_ms
    _write(connection, op.key, granted + 1, end_ms, window)
    return 0


def _grant_sliding(connection: sqlite3.Connection, op: Grant, now_ms: int) -> int:
    """Grants are numbered, and each is a part that holds its time. There is room if the grant that was made ``limit``
    grants ago, if there was one, has left the window: one look, however large the limit is."""
    if op.limit <= 0:
        return now_ms + op.window_ms
    number, at_ms = connection.execute(_LAST_GRANT, (op.key,)).fetchone() or (0, 0)
    if at_ms > now_ms:  # the clock was set back; else nothing would be granted until it is that late again
        connection.execute(_HEAL, (now_ms, now_ms + op.window_ms, op.key, now_ms))
    before = connection.execute(_GRANT_BEFORE, (op.key, number + 1 - op.limit)).fetchone()
    if before is not None and before[0] + op.window_ms > now_ms:
        return int(before[0]) + op.window_ms
    _write(connection, op.key, now_ms, now_ms + op.window_ms, number + 1)
    connection.execute(_FORGET_GRANTS, (op.key, number + 1 - op.limit, now_ms))
    return 0


def purge(connection: sqlite3.Connection, limit: int, now_ms: int) -> int:
    """Deletes up to ``limit`` rows that have expired."""
    ended = "select key, part from value where end_ms <= ? order by end_ms limit ?"
    statement = f"delete from value where (key, part) in ({ended})"
    return connection.execute(statement, (now_ms, limit)).rowcount
