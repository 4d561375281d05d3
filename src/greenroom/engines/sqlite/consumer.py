"""One owner of claimed messages in a SQLite file.

A trip is one transaction: settle, reap, promote, claim. It either was committed or was rolled back. If its caller loses
the answer all the same it makes the trip again, and what the consumer remembers of its last trip as applied is answered
as settled, not as lost.

Once a second a trip looks around: whether its owner still has its place, who has died, which queues are paused.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Collection, Sequence
from collections.abc import Set as AbstractSet
from functools import partial
from typing import NamedTuple

from ... import failpoints
from ...board import Board
from ...clock import Clock
from ...core.verdict import Verdict
from ...ports.passing import pass_after, pass_before
from ...ports.retention import Retention
from ...ports.transport import MAX_TRIP, ConsumerClosed, Delivery, Exchange, Incident, Settlement
from .claims import NOTHING, Claimed, claim, deliveries
from .owner import Owner
from .queue_file import OtherFile
from .reaper import Reaped
from .retention import retain
from .rows import DELAYED, READY, incidents_of, ring
from .settling import IMPOSSIBLE, NotAllHeld, Settler
from .share import ProcessShare
from .slots import next_end_ms
from .writes import Writes, purge

#: No more than this many delayed messages are promoted in one trip.
PROMOTE_CHUNK = 1000
#: Seconds between two looks around.
LOOK_INTERVAL_S = 1.0
#: Seconds between two looks for slots that have ended, while trips follow each other: each statement of a trip lets go
#: of the GIL, and beside busy threads it is long until it has it again.
SLOTS_INTERVAL_S = 0.05
#: Seconds between two looks for dead letters that are not kept any longer, and between two steps while there are some.
PURGE_INTERVAL_S = 60.0
PURGE_STEP_S = 0.1
#: The same for what has expired in the store, and how much of it goes in a step: 2 ms.
STORE_PURGE_INTERVAL_S = 1.0
STORE_PURGE_STEP_S = 0.05
STORE_PURGE_CHUNK = 500

_ACK = Verdict.ACK  # looking a member up is slow, and this one is wanted once a message

_PROMOTE = (
    f"update message set state = {READY}, due_ms = null where seq in"
    f" (select seq from message where state = {DELAYED} and due_ms <= ? order by due_ms limit ?)"
)
_NEXT_DUE = f"select min(due_ms) from message where state = {DELAYED}"
_ANY_READY = f"select 1 from message where state = {READY} and queue = ? limit 1"


class _Trip(NamedTuple):
    """What a committed trip brought."""

    lease: int
    claimed: Claimed
    promoted: int
    missing: Sequence[Settlement]
    refused: Sequence[tuple[Settlement, Exception]]
    reaped: Reaped | None


class SqliteConsumer:
    """Owned by the pump's thread; others may call ``wake``, ``extend`` and ``reap_soon``. Belongs to the process that
    made it."""

    def __init__(self, share: ProcessShare, name: str, *, clock: Clock, max_body: int, retention: Retention) -> None:
        self._share = share
        self._clock = clock
        self._retention = retention
        self._database = self._share.database
        self._pid = os.getpid()
        self._queues: list[str] = []
        self._paused: set[str] = set()
        self._paused_for_all: set[str] = set()
        self._skip: AbstractSet[str] = frozenset()  # of the last trip: what it left out is not waited for
        self._trip = 0
        self._applied: Sequence[Settlement] = ()
        self._look_at = 0.0
        self._slots_at = 0.0
        self._purge_at = 0.0
        self._store_purge_at = 0.0
        self._closed = False
        self._owner = Owner(share, name, clock)
        self._max_body = max_body
        self._settler = Settler(clock, max_body, self._owner.leases)
        share.consumers.add(self)

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
        if not self._paused and not self._paused_for_all and not skip:
            return self._queues
        closed = self._paused | self._paused_for_all | skip
        return [queue for queue in self._queues if queue not in closed]

    # --- the trip

    def exchange(self, settle: Sequence[Settlement], limit: int, skip: AbstractSet[str] = frozenset()) -> Exchange:
        """One transaction: settles, promotes what is due, claims up to ``limit``. See the port."""
        self._check_usable()
        if len(settle) > MAX_TRIP:
            raise ValueError(f"A trip carries at most {MAX_TRIP} settlements, not {len(settle)}.")
        self._trip += 1
        if failpoints.armed:
            pass_before(settle, limit)
        trip = self._make_trip(settle, limit, skip)
        if failpoints.armed:
            pass_after(settle, trip.claimed[0])
        if trip.refused:
            gone = {id(s) for s, _error in trip.refused}
            settle = [s for s in settle if id(s) not in gone]
        settled, lost = self._sort_out(settle, trip.missing)
        self._applied = settled
        self._skip = skip
        self._ring_for(settled)
        if trip.reaped is not None:
            self._tell_of(trip.reaped)
        if lost:
            self._look_at = 0.0
        claimed = deliveries(trip.claimed, trip.lease)
        more = (limit > 0 and len(claimed) == limit) or trip.promoted == PROMOTE_CHUNK
        return Exchange(claimed, settled, lost, trip.refused, more)

    def _make_trip(self, settle: Sequence[Settlement], limit: int, skip: AbstractSet[str]) -> _Trip:
        now = self._clock.monotonic()
        looks = now >= self._look_at
        if looks:
            self._look_at = now + LOOK_INTERVAL_S  # at first: who wants another look meanwhile says so here
            self._owner.keep()
            self._settler.leases = self._owner.leases
        transact = partial(self._transact, settle, limit, skip, now, looks)
        try:
            return transact(in_bulk=True)
        except (NotAllHeld, *IMPOSSIBLE):
            return transact(in_bulk=False)
        except OtherFile:  # what was claimed in the one before is lost
            self._owner.keep()
            self._settler.leases = self._owner.leases
            return transact(in_bulk=False)

    def _transact(
        self,
        settle: Sequence[Settlement],
        limit: int,
        skip: AbstractSet[str],
        now: float,
        looks: bool,
        *,
        in_bulk: bool,
    ) -> _Trip:
        missing: Sequence[Settlement] = ()
        refused: Sequence[tuple[Settlement, Exception]] = ()
        with self._database.transaction(generation=self._owner.generation) as connection:
            writes = Writes(connection, self._clock.now_ms(), self._max_body)
            if not in_bulk:
                missing, refused = self._settler.settle_one_by_one(connection, settle, writes)
            elif settle:
                self._settler.settle_in_bulk(connection, settle, writes)
            if now >= self._slots_at:
                self._slots_at = now + SLOTS_INTERVAL_S
                writes.end_slots()
            reaped = self._look_around(connection) if looks else None
            if now >= self._purge_at:
                more = retain(self._retention, connection, self._clock.now_ms())
                self._purge_at = now + (PURGE_STEP_S if more else PURGE_INTERVAL_S)
            if now >= self._store_purge_at:
                self._store_purge_at = now + STORE_PURGE_INTERVAL_S  # at first: a failure must not come at every trip
                if purge(connection, STORE_PURGE_CHUNK, self._clock.now_ms()) == STORE_PURGE_CHUNK:
                    self._store_purge_at = now + STORE_PURGE_STEP_S
            promoted = connection.execute(_PROMOTE, (self._clock.now_ms(), PROMOTE_CHUNK)).rowcount
            if failpoints.armed and promoted:
                failpoints.hit("promote.mid_batch")
            queues = self._active(skip) if limit > 0 else ()
            lease = self._owner.leases[0] + self._trip
            claimed = claim(connection, queues, limit, lease) if queues else NOTHING
        self._share.tell(writes)
        return _Trip(lease, claimed, promoted, missing, refused, reaped)

    def _ring_for(self, settled: Sequence[Settlement]) -> None:
        """Wakes others for what has become ready or delayed by these settlements."""
        for s in settled:
            if s.verdict is _ACK and not s.push:
                continue
            if s.verdict is Verdict.RELEASE and s.park is None:
                self._share.wake.ring(s.due_ms)
            ring(self._share.wake, s.push if s.retry is None else (*s.push, s.retry))

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

    # --- looking around

    def _look_around(self, connection: sqlite3.Connection) -> Reaped:
        """Learns what is paused, and gives back what the dead held."""
        self._read_pauses(connection)
        return self._owner.reaper.reap(connection)

    def _tell_of(self, reaped: Reaped) -> None:
        """After the commit."""
        if reaped.released:
            self._share.wake.ring(None)
        if reaped.again_s is not None:
            self._look_at = min(self._look_at, self._clock.monotonic() + reaped.again_s)

    def _read_pauses(self, connection: sqlite3.Connection) -> None:
        self._paused_for_all = {queue for (queue,) in connection.execute("select queue from paused")}

    def reap_soon(self) -> None:
        """Any thread: the next trip looks around, and a wait ends for it."""
        self._look_at = 0.0
        self._owner.ring()

    def is_cut_off(self) -> bool:
        """Never: its lock is its life, and who has lost it is told by the next trip."""
        return False

    def extend(self) -> None:
        """Any thread: makes sure of the owner's lock. What else there is to do about its place, the next trip does."""
        if not self._closed and os.getpid() == self._pid and not self._owner.renew():
            self.reap_soon()

    def board(self, places: int, *, parent_pid: int = 0) -> Board:
        """Where the executors say what they run. See the port."""
        self._check_usable()
        return self._owner.make_board(places, parent_pid)

    def history(self, delivery: Delivery) -> Sequence[Incident]:
        """What befell a delivery before, the oldest first; nothing if it is not held any more."""
        self._check_usable()
        statement = "select history from message where seq = ? and lease = ?"
        row = self._database.run(lambda c: c.execute(statement, delivery.token).fetchone())
        return incidents_of(row[0] if row else None)

    # --- waiting

    def wait(self, timeout_s: float) -> None:
        """Returns when something may be ready, at the next due time, after ``wake`` or after ``timeout_s``; or when it
        is time to look around."""
        self._check_usable()
        self._slots_at = 0.0
        self._owner.announce(None)  # first announce, then look: what is pushed in between rings
        try:
            ready, due_ms = self._database.run(self._look)
            if ready:
                return
            if due_ms is not None:
                self._owner.announce(due_ms)
                timeout_s = min(timeout_s, (due_ms - self._clock.now_ms()) / 1000)
            self._owner.wait(min(timeout_s, self._look_at - self._clock.monotonic()))
        finally:
            self._owner.withdraw()

    def _look(self, connection: sqlite3.Connection) -> tuple[bool, int | None]:
        self._read_pauses(connection)
        for queue in self._active(self._skip):
            if connection.execute(_ANY_READY, (queue,)).fetchone() is not None:
                return True, None
        times = (connection.execute(_NEXT_DUE).fetchone()[0], next_end_ms(connection))
        return False, min([time for time in times if time is not None], default=None)

    def wake(self) -> None:
        """Any thread, signal-safe: ends a wait, or the next one."""
        self._owner.ring()

    # --- the end

    def close(self) -> None:
        """Gives back what was claimed and not settled, and ends the owner."""
        if self._closed or os.getpid() != self._pid:
            return
        self._closed = True
        self._share.consumers.discard(self)
        self._owner.leave()

    def _check_usable(self) -> None:
        if self._closed:
            raise ConsumerClosed("This consumer was closed.")
        if os.getpid() != self._pid:
            raise ConsumerClosed("This consumer belongs to the process that made it, not to its fork.")
