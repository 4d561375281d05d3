"""Claiming: the first ready messages of some queues are read, and marked as claimed, inside a transaction."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from functools import lru_cache

import msgspec

from ...ports.transport import Delivery
from .errors import damage
from .rows import CLAIMED, READY

# Reading first and then updating costs 2.2 us a message, `update ... returning` 3.0. What is read comes as one row: a
# list of numbers and names as JSON, and all bodies in one blob (they need not be text). sqlite3 lets go of the GIL at
# every row, and beside busy threads each of a thousand rows could wait for it.
_ONE_ROW = (
    "select json_group_array(json_array(seq, id, queue, attempt, crashes, length(body))),"
    " cast(group_concat(cast(body as text), '') as blob) from ({})"
)
_READ = "select seq, id, queue, attempt, crashes, body from message"
_READ_ONE_QUEUE = _READ + f" where state = {READY} and queue = ? order by priority, seq limit ?"
_MARK = (
    f"update message set state = {CLAIMED}, lease = ?, attempt = attempt + 1"
    " where seq in (select value from json_each(?))"
)

#: seq, id, queue, attempt, crashes, bytes of the body
_Row = tuple[int, str, str, int, int, int]
_decode_rows = msgspec.json.Decoder(list[_Row]).decode
_encode = msgspec.json.Encoder().encode

#: No claim holds more than this, unless it is of one message: whoever claims has guessed how large they are.
CLAIM_BYTES = 64 * 1024 * 1024

#: What was read, and all bodies in one.
Claimed = tuple[Sequence[_Row], bytes]
NOTHING: Claimed = ((), b"")


@lru_cache(maxsize=64)
def _read_statement(queues: int) -> str:
    """Reads the first ready messages of that many queues in one order. SQLite merges the ordered scans lazily: it reads
    no more rows than it returns, however many there are (50 queues of 4 000: 0.6 ms for 1 000 rows, 0.2 ms for ten)."""
    if queues == 1:
        return _ONE_ROW.format(_READ_ONE_QUEUE)
    one = f"select priority, seq from message where state = {READY} and queue = ?"
    first = f"select seq from ({' union all '.join([one] * queues)} order by 1, 2 limit ?)"
    # The limit below never cuts: it keeps SQLite from merging the ordered query into the one around it.
    return _ONE_ROW.format(f"{_READ} where seq in ({first}) order by priority, seq limit -1")


def claim(connection: sqlite3.Connection, queues: Sequence[str], limit: int, lease: int) -> Claimed:
    """Claims up to ``limit`` messages of these queues, in their common order, under ``lease``; fewer if they are
    large."""
    listed, bodies = _read(connection, queues, limit)
    try:
        rows = _decode_rows(listed)
    except msgspec.MsgspecError as e:  # a column holds what nobody writes into it
        raise damage(f"a message cannot be read: {e}") from e
    if rows:
        connection.execute(_MARK, (lease, _encode([row[0] for row in rows]).decode()))
    return rows, bodies


def _read(connection: sqlite3.Connection, queues: Sequence[str], limit: int) -> tuple[bytes, bytes]:
    """What ``limit`` messages hold, or as many as do not hold more than ``CLAIM_BYTES``, but at least one."""
    most = connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, CLAIM_BYTES) if limit > 1 else None
    try:
        row: tuple[bytes, bytes] = connection.execute(_read_statement(len(queues)), (*queues, limit)).fetchone()
    except sqlite3.DataError:  # larger than that, taken together
        if limit == 1:
            raise
    else:
        return row
    finally:
        if most is not None:
            connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, most)
    return _read(connection, queues, limit // 8 or 1)


def deliveries(claimed: Claimed, lease: int) -> list[Delivery]:
    """What was claimed, as the port has it; to be called when it is committed, so that nobody waits for it."""
    rows, bodies = claimed
    found = []
    start = 0
    for seq, id, queue, claims, crashes, size in rows:
        body = bodies[start : start + size]
        start += size
        found.append(Delivery(queue, id, body, (seq, lease), claims + 1, crashes, claims > 0, seq))
    return found
