"""Settling: what becomes of claimed messages, inside a transaction.

A settlement is a compare-and-delete on (seq, lease). Messages that are done go in bulk; if the count tells that not all
of them were held any more, the transaction is rolled back and made again one by one, to learn which.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

import msgspec

from ... import failpoints
from ...clock import Clock
from ...core.verdict import Verdict
from ...errors import MessageTooLarge
from ...ports.checks import check_park
from ...ports.transport import Incident, Settlement
from .errors import Refused
from .rows import CLAIMED, DELAYED, FREE, LONGER_HISTORY, READY, check_body, entry_of, row_of
from .writes import Writes

# Looking a member up takes longer than all else that is done for a message that succeeded.
_ACK = Verdict.ACK
_DEAD = Verdict.DEAD
_encode = msgspec.json.Encoder().encode

_HELD = f" from message where seq = ? and lease = ? and state = {CLAIMED}"
_DELETE = "delete" + _HELD
_DELETE_MANY = "delete from message where seq in (select value from json_each(?)) and lease = ?"
_BURY = (
    "insert into dead (id, queue, attempt, crashes, history, died_ms, error_type, error_message, error_traceback, body)"
    " select id, queue, attempt, crashes, history, ?, ?, ?, ?, body" + _HELD
)
_REPLACE = (
    "insert into message (id, queue, priority, state, due_ms, body, crashes, history)"
    f" select ?, ?, ?, ?, ?, ?, crashes, {LONGER_HISTORY}{_HELD}"
)
_NOTE = f"update message set history = {LONGER_HISTORY} where seq = ? and lease = ? and state = {CLAIMED}"
_RELEASE = f"update message set state = ?, due_ms = ?, lease = {FREE} where seq = ? and lease = ? and state = {CLAIMED}"


class NotAllHeld(Exception):
    """A bulk settlement found fewer messages than it named."""


#: What says that a settlement can never be applied, however often it is tried. All else is transient.
IMPOSSIBLE = (MessageTooLarge, Refused, ValueError, OverflowError, sqlite3.DataError, sqlite3.IntegrityError)


def _check_possible(s: Settlement, max_body: int) -> None:
    """Raises one of ``IMPOSSIBLE`` for what SQLite itself would take but nobody should ask for."""
    check_park(s)
    if s.verdict is Verdict.RETRY and s.retry is None:
        raise ValueError("A RETRY settlement carries the envelope to be retried.")
    for envelope in s.push if s.retry is None else (*s.push, s.retry):
        check_body(envelope, max_body)


class Settler:
    """Applies settlements. Owned by its consumer.

    Parameters:
      clock: When something happened.
      max_body: The largest body in bytes.
      leases: The first and the last lease of the owner; what was claimed under another one is not held.
    """

    def __init__(self, clock: Clock, max_body: int, leases: tuple[int, int]) -> None:
        self.leases = leases
        self._clock = clock
        self._max_body = max_body

    def settle_in_bulk(self, connection: sqlite3.Connection, settle: Sequence[Settlement], writes: Writes) -> None:
        """Applies all, or raises: ``NotAllHeld``, or one of ``IMPOSSIBLE``. ``writes`` is what the store is to do in
        the same transaction."""
        done: dict[int, list[int]] = {}  # by lease, that is by the trip that claimed them: nearly always one or two
        numbers: list[int] = []
        dead: list[tuple[object, ...]] = []
        last = 0
        for s in settle:
            if (s.verdict is _ACK or s.verdict is _DEAD) and not s.push:
                if s.verdict is _DEAD:
                    dead.append(self._death(s))
                seq, lease = s.delivery.token
                if lease != last:
                    last = lease
                    numbers = done.setdefault(lease, [])
                numbers.append(seq)
                if s.writes:
                    writes.later(s.writes)
            elif not self._settle_one(connection, s, writes):
                raise NotAllHeld
        if dead:
            failpoints.hit("dlq.before")
            connection.executemany(_BURY, dead)
            failpoints.hit("dlq.after")
        for lease, numbers in done.items():
            if not self._is_ours(lease):
                raise NotAllHeld
            if connection.execute(_DELETE_MANY, (_encode(numbers).decode(), lease)).rowcount != len(numbers):
                raise NotAllHeld
        writes.flush()

    def settle_one_by_one(
        self, connection: sqlite3.Connection, settle: Sequence[Settlement], writes: Writes
    ) -> tuple[list[Settlement], list[tuple[Settlement, Exception]]]:
        """Each behind a savepoint of its own: one that is impossible does not take the others along. Returns those
        whose messages are not held any more, and those that are impossible."""
        missing: list[Settlement] = []
        refused: list[tuple[Settlement, Exception]] = []
        for s in settle:
            connection.execute("savepoint one")
            try:
                if not self._settle_one(connection, s, writes):
                    missing.append(s)
                writes.flush()
            except IMPOSSIBLE as e:
                connection.execute("rollback to one")
                writes.forget()
                refused.append((s, e))
            connection.execute("release one")
        return missing, refused

    def _settle_one(self, connection: sqlite3.Connection, s: Settlement, writes: Writes) -> bool:
        """Applies one settlement; False if its message is not held any more, and then nothing was changed. What it
        writes is done at the next flush."""
        key = s.delivery.token
        if not self._is_ours(key[1]):
            return False
        _check_possible(s, self._max_body)
        if s.verdict is Verdict.RELEASE:
            found = self._release(connection, s, writes)
        else:
            if s.verdict is Verdict.DEAD:
                failpoints.hit("dlq.before")
                connection.execute(_BURY, self._death(s))
                failpoints.hit("dlq.after")
            elif s.verdict is Verdict.RETRY and s.retry is not None:
                failpoints.hit("retry.before_schedule")
                connection.execute(_REPLACE, (*row_of(s.retry), self._incident(s), *key))
                failpoints.hit("retry.mid")
            found = connection.execute(_DELETE, key).rowcount == 1
        if found:
            writes.insert(s.push)
            if s.retry is not None:
                writes.later(s.retry.writes)
            writes.later(s.writes)
        return found

    def _death(self, s: Settlement) -> tuple[object, ...]:
        """The parameters of ``_BURY``."""
        error = s.error
        texts = (None, None, None) if error is None else (error.type, error.message, error.traceback)
        return (self._clock.now_ms(), *texts, *s.delivery.token)

    def _release(self, connection: sqlite3.Connection, s: Settlement, writes: Writes) -> bool:
        key = s.delivery.token
        if s.error is not None:
            connection.execute(_NOTE, (self._incident(s), *key))
        if s.park is not None:
            return writes.park(s.park, key)
        state = READY if s.due_ms is None else DELAYED
        return connection.execute(_RELEASE, (state, s.due_ms, *key)).rowcount == 1

    def _is_ours(self, lease: int) -> bool:
        first, last = self.leases
        return first <= lease <= last

    def _incident(self, s: Settlement) -> str:
        return entry_of(Incident(self._clock.now_ms(), s.delivery.attempt, s.error))
