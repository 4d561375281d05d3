"""One owner of claimed messages in a SQLite file.

A trip is one transaction: settle, reap, promote, claim. A settlement is a compare-and-delete on (seq, lease).
Messages that are settled as done go in bulk; if the count tells that not all of them were held any more, the trip is
rolled back and made again one by one, to learn which.

A trip either was committed or was rolled back. If its caller loses the answer all the same it makes the trip again,
and what the consumer remembers of its last trip as applied is answered as settled, not as lost.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Collection, Sequence
from collections.abc import Set as AbstractSet
from functools import lru_cache, partial
from typing import Any

import msgspec

from ...clock import Clock
from ...core.verdict import Verdict
from ...errors import ConnectionClosed, MessageTooLarge
from ...logging import get_logger
from ...ports.transport import MAX_TRIP, Delivery, ErrorText, Exchange, Settlement
from .rows import CLAIMED, DELAYED, FREE, READY, check_body, insert, lease_of, leases_of, ring, row_of
from .share import ProcessShare
from .wake import Waiter

logger = get_logger(__name__)

#: No more than this many delayed messages are promoted in one trip.
PROMOTE_CHUNK = 1000
#: Seconds between two looks for owners that have died.
REAP_INTERVAL_S = 1.0
#: How many failed attempts a message's history holds.
HISTORY_LENGTH = 25

_encode = msgspec.json.Encoder().encode
_ACK = Verdict.ACK  # looking a member up takes longer than all else that is done for a message that succeeded
#: seq, id, queue, attempt, crashes, bytes of the body
_Row = tuple[int, str, str, int, int, int]
_decode_rows = msgspec.json.Decoder(list[_Row]).decode

_HELD = f" from message where seq = ? and lease = ? and state = {CLAIMED}"
_DELETE = "delete" + _HELD
_DELETE_MANY = "delete from message where seq in (select value from json_each(?)) and lease = ?"
_BURY = (
    "insert into dead (id, queue, attempt, crashes, history, died_ms, error_type, error_message, error_traceback, body)"
    " select id, queue, attempt, crashes, history, ?, ?, ?, ?, body" + _HELD
)
_REPLACE = (
    "insert into message (id, queue, priority, state, due_ms, body, crashes, history)"
    " select ?, ?, ?, ?, ?, ?, crashes, json_insert("
    f"case when json_array_length(history) >= {HISTORY_LENGTH} then json_remove(history, '$[0]')"
    " else coalesce(history, '[]') end, '$[#]', json(?))" + _HELD
)
_RELEASE = f"update message set state = ?, due_ms = ?, lease = {FREE} where seq = ? and lease = ? and state = {CLAIMED}"
_GIVE_BACK = f"update message set state = {READY}, lease = {FREE} where state = {CLAIMED} and lease between ? and ?"
_PROMOTE = (
    f"update message set state = {READY}, due_ms = null where seq in"
    f" (select seq from message where state = {DELAYED} and due_ms <= ? order by due_ms limit ?)"
)
_NEXT_DUE = f"select min(due_ms) from message where state = {DELAYED}"
_ANY_READY = f"select 1 from message where state = {READY} and queue = ? limit 1"
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


class _NotAllHeld(Exception):
    """A bulk settlement found fewer messages than it named."""


#: What says that a settlement can never be applied, however often it is tried. All else is transient.
_IMPOSSIBLE = (MessageTooLarge, ValueError, OverflowError, sqlite3.DataError, sqlite3.IntegrityError)


def _check_possible(s: Settlement, max_body: int) -> None:
    """Raises one of ``_IMPOSSIBLE`` for what SQLite itself would take but nobody should ask for."""
    if s.writes or s.park is not None:
        raise ValueError("This engine keeps no results and no limits.")
    if s.verdict is Verdict.RETRY and s.retry is None:
        raise ValueError("A RETRY settlement carries the envelope to be retried.")
    for envelope in s.push if s.retry is None else (*s.push, s.retry):
        check_body(envelope, max_body)


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


class SqliteConsumer:
    """Owned by the pump's thread; only ``wake`` may be called by others. Belongs to the process that made it."""

    def __init__(self, share: ProcessShare, name: str, *, clock: Clock, max_body: int) -> None:
        self._share = share
        self._clock = clock
        self._max_body = max_body
        self._database = self._share.database
        self._pid = os.getpid()
        self._queues: list[str] = []
        self._paused: set[str] = set()
        self._skip: AbstractSet[str] = frozenset()  # of the last trip: what it left out is not waited for
        self._trip = 0
        self._applied: Sequence[Settlement] = ()
        self._reap_at = 0.0
        self._closed = False
        self._locks = self._share.open_locks()
        self.owner, self.slot = self._register(name)
        self._first_lease, self._last_lease = leases_of(self.owner)
        share.consumers.add(self)
        self._waiter = Waiter(self._share.wake, self.slot)

    def _register(self, name: str) -> tuple[int, int]:
        """Takes a free slot: a row in the file and the lock on a byte. Owners that have died make room first."""
        with self._database.transaction() as connection:
            self._reap(connection)
            taken = {slot for (slot,) in connection.execute("select slot from owner")}
            slot = 0
            while slot in taken or not self._locks.try_lock(slot):
                slot += 1
            owner = connection.execute(
                "insert into owner (name, pid, slot, started_ms) values (?, ?, ?, ?)",
                (name, self._pid, slot, self._clock.now_ms()),
            ).lastrowid
            assert owner is not None
            return owner, slot

    def subscribe(self, queues: Collection[str]) -> None:
        """Adds queues to claim from; ends a pause of theirs."""
        self._check_usable()
        self._queues += [queue for queue in queues if queue not in self._queues]
        self._paused.difference_update(queues)

    def pause(self, queues: Collection[str]) -> None:
        """Stops claiming from these queues."""
        self._check_usable()
        self._paused.update(queues)

    def _active(self, skip: AbstractSet[str] = frozenset()) -> list[str]:
        if not self._paused and not skip:
            return self._queues
        return [queue for queue in self._queues if queue not in self._paused and queue not in skip]

    # --- the trip

    def exchange(self, settle: Sequence[Settlement], limit: int, skip: AbstractSet[str] = frozenset()) -> Exchange:
        """One transaction: settles, promotes what is due, claims up to ``limit``. See the port."""
        self._check_usable()
        if len(settle) > MAX_TRIP:
            raise ValueError(f"A trip carries at most {MAX_TRIP} settlements, not {len(settle)}.")
        self._trip += 1
        refused: list[tuple[Settlement, Exception]] = []
        try:
            claimed, promoted, missing = self._transact(settle, limit, skip, self._settle_in_bulk)
        except (_NotAllHeld, *_IMPOSSIBLE):
            one_by_one = partial(self._settle_one_by_one, refused=refused)
            claimed, promoted, missing = self._transact(settle, limit, skip, one_by_one)
        if refused:
            gone = {id(s) for s, _error in refused}
            settle = [s for s in settle if id(s) not in gone]
        settled, lost = self._sort_out(settle, missing)
        self._applied = settled
        self._skip = skip
        self._ring_for(settled)
        deliveries = self._deliveries(*claimed)
        return Exchange(
            deliveries,
            settled,
            lost,
            refused,
            (limit > 0 and len(deliveries) == limit) or promoted == PROMOTE_CHUNK,
        )

    def _ring_for(self, settled: Sequence[Settlement]) -> None:
        """Wakes others for what has become ready or delayed by these settlements."""
        for s in settled:
            if s.verdict is _ACK and not s.push:
                continue
            if s.verdict is Verdict.RELEASE:
                self._share.wake.ring(s.due_ms)
            ring(self._share.wake, s.push if s.retry is None else (*s.push, s.retry))

    def _transact(self, settle: Sequence[Settlement], limit: int, skip: AbstractSet[str], settler: Any) -> Any:
        with self._database.transaction() as connection:
            missing = settler(connection, settle) if settle else ()
            now = self._clock.monotonic()
            if now >= self._reap_at:
                self._reap_at = now + REAP_INTERVAL_S
                self._reap(connection)
            promoted = connection.execute(_PROMOTE, (self._clock.now_ms(), PROMOTE_CHUNK)).rowcount
            queues = self._active(skip) if limit > 0 else ()
            claimed = self._claim(connection, queues, limit) if queues else ((), b"")
        return claimed, promoted, missing

    def _claim(self, connection: sqlite3.Connection, queues: Sequence[str], limit: int) -> tuple[list[_Row], bytes]:
        listed, bodies = connection.execute(_read_statement(len(queues)), (*queues, limit)).fetchone()
        rows = _decode_rows(listed)
        if rows:
            numbers = _encode([row[0] for row in rows]).decode()
            connection.execute(_MARK, (lease_of(self.owner, self._trip), numbers))
        return rows, bodies

    def _deliveries(self, rows: Sequence[_Row], bodies: bytes) -> list[Delivery]:
        lease = lease_of(self.owner, self._trip)
        deliveries = []
        start = 0
        for seq, id, queue, claims, crashes, size in rows:
            body = bodies[start : start + size]
            start += size
            deliveries.append(Delivery(queue, id, body, (seq, lease), claims + 1, crashes, claims > 0))
        return deliveries

    def _settle_in_bulk(self, connection: sqlite3.Connection, settle: Sequence[Settlement]) -> Sequence[Settlement]:
        done: dict[int, list[int]] = {}  # by lease, that is by the trip that claimed them: nearly always one or two
        numbers: list[int] = []
        last = 0
        for s in settle:
            if s.verdict is _ACK and not s.push and not s.writes:
                seq, lease = s.delivery.token
                if lease != last:
                    last = lease
                    numbers = done.setdefault(lease, [])
                numbers.append(seq)
            elif not self._settle_one(connection, s):
                raise _NotAllHeld
        for lease, numbers in done.items():
            if not self._first_lease <= lease <= self._last_lease:
                raise _NotAllHeld
            if connection.execute(_DELETE_MANY, (_encode(numbers).decode(), lease)).rowcount != len(numbers):
                raise _NotAllHeld
        return ()

    def _settle_one_by_one(
        self,
        connection: sqlite3.Connection,
        settle: Sequence[Settlement],
        *,
        refused: list[tuple[Settlement, Exception]],
    ) -> Sequence[Settlement]:
        """Each behind a savepoint of its own: one that is impossible does not take the others along."""
        missing = []
        for s in settle:
            connection.execute("savepoint one")
            try:
                if not self._settle_one(connection, s):
                    missing.append(s)
            except _IMPOSSIBLE as e:
                connection.execute("rollback to one")
                refused.append((s, e))
            connection.execute("release one")
        return missing

    def _settle_one(self, connection: sqlite3.Connection, s: Settlement) -> bool:
        """Applies one settlement; False if its message is not held any more, and then nothing was changed."""
        key = s.delivery.token
        if not self._first_lease <= key[1] <= self._last_lease:
            return False
        _check_possible(s, self._max_body)
        if s.verdict is Verdict.RELEASE:
            state = READY if s.due_ms is None else DELAYED
            found = connection.execute(_RELEASE, (state, s.due_ms, *key)).rowcount == 1
        else:
            if s.verdict is Verdict.DEAD:
                error = s.error or ErrorText("", "")
                texts = (error.type, error.message, error.traceback) if s.error else (None, None, None)
                connection.execute(_BURY, (self._clock.now_ms(), *texts, *key))
            elif s.verdict is Verdict.RETRY and s.retry is not None:
                connection.execute(_REPLACE, (*row_of(s.retry), self._history_entry(s), *key))
            found = connection.execute(_DELETE, key).rowcount == 1
        if found and s.push:
            insert(connection, s.push)
        return found

    def _history_entry(self, s: Settlement) -> str:
        entry: dict[str, Any] = {"at_ms": self._clock.now_ms(), "attempt": s.delivery.attempt}
        if s.error is not None:
            entry |= {"type": s.error.type, "message": s.error.message, "traceback": s.error.traceback}
        return _encode(entry).decode()

    def _sort_out(
        self, settle: Sequence[Settlement], missing: Sequence[Settlement]
    ) -> tuple[Sequence[Settlement], Sequence[Settlement]]:
        """Of those that were not found: what the last trip has applied is settled, the others are lost."""
        if not missing:
            return settle, ()
        applied = {s.delivery.token for s in self._applied}
        lost = [s for s in missing if s.delivery.token not in applied]
        gone = {id(s) for s in lost}
        return [s for s in settle if id(s) not in gone], lost

    # --- the dead

    def _reap(self, connection: sqlite3.Connection) -> None:
        """Gives back what owners that have died had claimed, inside a transaction."""
        for owner, name, pid, slot in connection.execute("select id, name, pid, slot from owner").fetchall():
            if self._locks.is_alive(slot):
                continue
            released = connection.execute(_GIVE_BACK, leases_of(owner)).rowcount
            connection.execute("delete from owner where id = ?", (owner,))
            self._share.wake.clear(slot)
            logger.warning("Worker %s (PID %d) has died: %d messages are given back.", name, pid, released)

    # --- waiting

    def wait(self, timeout_s: float) -> None:
        """Returns when something may be ready, at the next due time, after ``wake`` or after ``timeout_s``."""
        self._check_usable()
        self._waiter.announce(None)  # first announce, then look: what is pushed in between rings
        try:
            ready, due_ms = self._database.run(self._look)
            if ready:
                return
            if due_ms is not None:
                self._waiter.announce(due_ms)
                timeout_s = min(timeout_s, (due_ms - self._clock.now_ms()) / 1000)
            self._waiter.wait(timeout_s)
        finally:
            self._waiter.withdraw()

    def _look(self, connection: sqlite3.Connection) -> tuple[bool, int | None]:
        for queue in self._active(self._skip):
            if connection.execute(_ANY_READY, (queue,)).fetchone() is not None:
                return True, None
        return False, connection.execute(_NEXT_DUE).fetchone()[0]

    def wake(self) -> None:
        """Any thread, signal-safe: ends a wait, or the next one."""
        self._waiter.ring()

    def extend(self) -> None:
        """Nothing to do: a live lock is a live lease."""

    # --- the end

    def close(self) -> None:
        """Gives back what was claimed and not settled, and ends the owner."""
        if self._closed or os.getpid() != self._pid:
            return
        self._closed = True
        self._share.consumers.discard(self)
        try:
            with self._database.transaction() as connection:
                connection.execute(_GIVE_BACK, leases_of(self.owner))
                connection.execute("delete from owner where id = ?", (self.owner,))
        finally:  # without the lock another process gives back what could not be given back here
            self._waiter.close()
            self._locks.unlock(self.slot)
            self._share.close_locks(self._locks)
        self._share.wake.ring(None)

    def _check_usable(self) -> None:
        if self._closed:
            raise ConnectionClosed("This consumer was closed.")
        if os.getpid() != self._pid:
            raise ConnectionClosed("This consumer belongs to the process that made it, not to its fork.")
