"""Slots of the store, and the line of messages that are parked before them, as rows.

The invariant: while somebody stands in line for a key, none of its slots is free. So whatever frees a slot, giving it
back or its end, hands it to the first in line in the same transaction (``_hand_over``), and who comes to the line asks
once more in the transaction in which it gets there.
"""

from __future__ import annotations

import sqlite3

from ...ports.store import Lease, LeaseRelease, LeaseRenew, LeaseTake
from .rows import CLAIMED, DELAYED, FREE, NEVER_MS, READY

_TAKEN = "select count(*) from slot where key = ? and end_ms > ?"
_FIRST_END = "select min(end_ms) from slot where key = ? and end_ms > ?"
_TAKE = "insert or replace into slot (key, holder, end_ms) values (?, ?, ?)"
_MINE = "select fence from slot where key = ? and holder = ? and end_ms > ?"
_EXTEND = "update slot set end_ms = ? where key = ? and holder = ? and end_ms > ?"
_GIVE_BACK = "delete from slot where key = ? and holder = ? returning end_ms"
_END = "delete from slot where key = ? and end_ms <= ?"
_ENDED_KEYS = "select distinct key from slot where end_ms <= ? limit ?"
_NEXT_END = "select min(end_ms) from slot"

_FIRST_IN_LINE = "select place, seq, holder, slots, ttl_ms from parked where key = ? order by place limit 1"
_LEAVE_LINE = "delete from parked where place = ?"
_STAND_IN_LINE = "insert or replace into parked (seq, key, holder, slots, ttl_ms) values (?, ?, ?, ?, ?)"
_WAKE = f"update message set state = {READY}, due_ms = null where seq = ? and state = {DELAYED} and due_ms = {NEVER_MS}"
_SET_ASIDE = (
    f"update message set state = {DELAYED}, due_ms = {NEVER_MS}, lease = {FREE}"
    f" where seq = ? and lease = ? and state = {CLAIMED}"
)

#: The keys whose ended slots one trip hands on.
_KEYS_A_TRIP = 100


def take(connection: sqlite3.Connection, op: LeaseTake, now_ms: int) -> tuple[Lease, int]:
    """The answer, and how many messages have become ready."""
    woken = _end_slots(connection, op.key, now_ms)
    end_ms = now_ms + op.ttl_ms
    mine = connection.execute(_MINE, (op.key, op.holder, now_ms)).fetchone()
    if mine is not None:
        connection.execute(_EXTEND, (end_ms, op.key, op.holder, now_ms))
        return Lease(mine[0], end_ms), woken
    if _is_free(connection, op.key, op.limit, now_ms):
        woken += _hand_over(connection, op.key, now_ms, op.limit)  # the limit was raised: first come, first served
        if _is_free(connection, op.key, op.limit, now_ms):
            return Lease(_fence(connection, op.key, op.holder, end_ms), end_ms), woken
    first_end_ms = connection.execute(_FIRST_END, (op.key, now_ms)).fetchone()[0]
    return Lease(0, end_ms if first_end_ms is None else first_end_ms), woken


def renew(connection: sqlite3.Connection, op: LeaseRenew, now_ms: int) -> bool:
    """Whether it is still held."""
    return connection.execute(_EXTEND, (now_ms + op.ttl_ms, op.key, op.holder, now_ms)).rowcount == 1


def release(connection: sqlite3.Connection, op: LeaseRelease, now_ms: int) -> tuple[bool, int]:
    """Whether it was held, and how many messages have become ready."""
    row = connection.execute(_GIVE_BACK, (op.key, op.holder)).fetchone()
    if row is None:
        return False, 0
    return row[0] > now_ms, _end_slots(connection, op.key, now_ms) + _hand_over(connection, op.key, now_ms)


def park(connection: sqlite3.Connection, op: LeaseTake, token: tuple[int, int], now_ms: int) -> tuple[bool, int]:
    """Releases a claimed message to where its slot lets it stand: ready, or in line. Whether it was still held, and how
    many messages have become ready."""
    seq, lease = token
    if connection.execute(_SET_ASIDE, (seq, lease)).rowcount != 1:
        return False, 0
    answer, woken = take(connection, op, now_ms)
    if answer.fence:
        connection.execute(_WAKE, (seq,))
        return True, woken + 1
    connection.execute(_STAND_IN_LINE, (seq, op.key, op.holder, op.limit, op.ttl_ms))
    return True, woken


def end_slots(connection: sqlite3.Connection, now_ms: int) -> int:
    """Ends the slots that have not been renewed in time; how many messages have become ready."""
    keys = connection.execute(_ENDED_KEYS, (now_ms, _KEYS_A_TRIP)).fetchall()
    return sum([_end_slots(connection, key, now_ms) for (key,) in keys])


def next_end_ms(connection: sqlite3.Connection) -> int | None:
    """When the next slot ends, and may be handed on."""
    end_ms: int | None = connection.execute(_NEXT_END).fetchone()[0]
    return end_ms


def _end_slots(connection: sqlite3.Connection, key: str, now_ms: int) -> int:
    if connection.execute(_END, (key, now_ms)).rowcount == 0:
        return 0
    return _hand_over(connection, key, now_ms)


def _hand_over(connection: sqlite3.Connection, key: str, now_ms: int, limit: int | None = None) -> int:
    """Gives free slots to the first in line; how many messages have become ready. ``limit``: if it is known better than
    by the line. Who was deleted meanwhile is passed over."""
    woken = 0
    while (first := connection.execute(_FIRST_IN_LINE, (key,)).fetchone()) is not None:
        place, seq, holder, slots, ttl_ms = first
        if not _is_free(connection, key, limit or slots, now_ms):
            break
        connection.execute(_LEAVE_LINE, (place,))
        if connection.execute(_WAKE, (seq,)).rowcount == 1:
            _fence(connection, key, holder, now_ms + ttl_ms)
            woken += 1
    return woken


def _is_free(connection: sqlite3.Connection, key: str, limit: int, now_ms: int) -> bool:
    taken: int = connection.execute(_TAKEN, (key, now_ms)).fetchone()[0]
    return taken < limit


def _fence(connection: sqlite3.Connection, key: str, holder: str, end_ms: int) -> int:
    """Writes down who has the slot."""
    fence = connection.execute(_TAKE, (key, holder, end_ms)).lastrowid
    assert fence is not None
    return fence
