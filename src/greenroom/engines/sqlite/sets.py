"""Sets of the store, as rows: who is missing, and what happens when nobody is."""

from __future__ import annotations

import sqlite3
from collections.abc import Collection
from itertools import islice
from typing import Any

import msgspec

from ...ports.store import Progress, SetAdd

_encode = msgspec.json.Encoder().encode

_FIND = "select id, total, missing, failed, plan from gathering where key = ? and (end_ms is null or end_ms > ?)"
_MAKE = "insert into gathering (key, plan, end_ms) values (?, ?, ?) returning id, total, missing, failed, plan"
_JOIN = "insert or ignore into member (gathering, name) values "
_JOINS = tuple((rows, _JOIN + ", ".join(["(?, ?)"] * rows)) for rows in (100, 10, 1))
_GROW = "update gathering set total = total + ?, missing = missing + ? where id = ?"
_LEAVE = (
    "update member set outcome = ? where gathering = ? and outcome = 0 and name in (select value from json_each(?))"
)
_SHRINK = "update gathering set missing = missing - ?, failed = failed + ? where id = ?"
_DROP = "update gathering set key = null, end_ms = 0 where key = ?"
_ENDED = "select id from gathering where end_ms <= ? limit 1"
_FORGET = "delete from member where gathering = ? and name in (select name from member where gathering = ? limit ?)"
_FORGET_SET = "delete from gathering where id = ?"

DONE, FAILED = 1, 2


class Plan(msgspec.Struct, frozen=True, array_like=True):
    """What the completion of a set does. See ``SetAdd``."""

    then: tuple[bytes, ...] = ()
    then_ok: tuple[bytes, ...] = ()
    parent: tuple[str, str] | None = None


_encode_plan = msgspec.msgpack.Encoder().encode
_decode_plan = msgspec.msgpack.Decoder(Plan).decode

#: A set's number, progress and plan.
Found = tuple[int, int, int, int, bytes | None]


def look(connection: sqlite3.Connection, key: str, now_ms: int) -> Progress | None:
    """How far the set is, if there is one."""
    found = _find(connection, key, now_ms)
    return None if found is None else Progress(*found[1:4])


def add(connection: sqlite3.Connection, op: SetAdd, now_ms: int) -> tuple[Progress, Plan | None]:
    """How far the set is, and its plan if that has made it complete: it was made, and is empty."""
    found = _find(connection, op.key, now_ms)
    made = found is None
    if found is None:
        connection.execute(_DROP, (op.key,))  # one that has expired
        end_ms = None if op.ttl_ms is None else now_ms + op.ttl_ms
        found = connection.execute(_MAKE, (op.key, _encode_plan(_plan_of(op)), end_ms)).fetchone()
    number, total, missing, failed, _plan = found
    if made or missing:
        more = _join(connection, number, op.members)
        if more:
            connection.execute(_GROW, (more, more, number))
            total, missing = total + more, missing + more
    return Progress(total, missing, failed), _plan_of(op) if made and not missing else None


def remove(
    connection: sqlite3.Connection, key: str, done: Collection[str], failed: Collection[str], now_ms: int
) -> tuple[Progress | None, int, Plan | None]:
    """How far the set is, how many of ``failed`` were removed now, and its plan if that has completed it."""
    found = _find(connection, key, now_ms)
    if found is None:
        return None, 0, None
    number, total, missing, failures, plan = found
    gone = _leave(connection, number, done, DONE)
    now_failed = _leave(connection, number, failed, FAILED)
    gone += now_failed
    if gone:
        connection.execute(_SHRINK, (gone, now_failed, number))
    progress = Progress(total, missing - gone, failures + now_failed)
    return progress, now_failed, _decode_plan(plan) if gone and progress.is_complete and plan else None


def drop(connection: sqlite3.Connection, key: str, now_ms: int) -> bool:
    """Forgets the set at once; its members are deleted by the purge."""
    was_there = _find(connection, key, now_ms) is not None
    connection.execute(_DROP, (key,))
    return was_there


def purge(connection: sqlite3.Connection, limit: int, now_ms: int) -> int:
    """Deletes up to ``limit`` members of sets that have expired or were dropped, and sets without members."""
    deleted = 0
    while deleted < limit and (row := connection.execute(_ENDED, (now_ms,)).fetchone()) is not None:
        members = connection.execute(_FORGET, (row[0], row[0], limit - deleted)).rowcount
        deleted += members + 1
        if deleted <= limit:
            connection.execute(_FORGET_SET, row)
    return min(deleted, limit)


def _find(connection: sqlite3.Connection, key: str, now_ms: int) -> Found | None:
    found: Found | None = connection.execute(_FIND, (key, now_ms)).fetchone()
    return found


def _plan_of(op: SetAdd) -> Plan:
    return Plan(op.then, op.then_ok, op.parent)


def _join(connection: sqlite3.Connection, number: int, members: Collection[str]) -> int:
    """Adds members; how many are new."""
    rows = iter(members)
    left = len(members)
    added = 0
    for size, statement in _JOINS:
        while left >= size:
            parameters: list[Any] = []
            for member in islice(rows, size):
                parameters += (number, member)
            added += connection.execute(statement, parameters).rowcount
            left -= size
    return added


def _leave(connection: sqlite3.Connection, number: int, members: Collection[str], outcome: int) -> int:
    """Removes members; how many were still there."""
    if not members:
        return 0
    names = _encode(list(members)).decode()
    return connection.execute(_LEAVE, (outcome, number, names)).rowcount
