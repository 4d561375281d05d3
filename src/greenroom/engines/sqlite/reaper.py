"""Giving back what owners that have died had claimed.

An owner whose byte of the lock file is free has died. What it ran is charged with a crash, and the evidence goes into
its history (``host.deaths``). All else that it held is given back as if nothing had happened.

All of it happens inside the caller's transaction, which is also what decides between two that look at the same time:
whoever comes second does not find the owner any more. So it may be done by anybody, and is done by all.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Collection
from typing import NamedTuple

import msgspec

from ... import failpoints
from ...clock import Clock
from ...host.deaths import EVIDENCE_STEP_S, Death, Inquest, worker_name
from ...host.liveness import LockFile
from ...logging import get_logger
from ...ports.transport import CRASH, ErrorText, Incident
from .rows import CLAIMED, FREE, LONGER_HISTORY, READY, entry_of, leases_of, owner_of
from .share import ProcessShare

#: No more than this many messages of an owner are given back in one trip.
CHUNK = 1000

_CHUNK_OF = f"select seq from message where state = {CLAIMED} and lease between ? and ? limit {CHUNK}"
_GIVE_BACK = f"update message set state = {READY}, lease = {FREE} where seq in ({_CHUNK_OF})"
_WITH_CRASH = LONGER_HISTORY.replace("json(?)", "json_set(?, '$.attempt', attempt)")
_CHARGE = (
    f"update message set state = {READY}, lease = {FREE}, crashes = crashes + 1, history = {_WITH_CRASH}"
    f" where seq in (select value from json_each(?)) and state = {CLAIMED} and lease between ? and ?"
)
_NEXT_CLAIMED = f"select min(lease) from message where state = {CLAIMED} and lease > ?"

logger = get_logger(__name__)
_encode = msgspec.json.Encoder().encode


class OwnerRow(NamedTuple):
    """An owner as the file has it."""

    number: int
    name: str
    pid: int
    slot: int
    started_ms: int


class Reaped(NamedTuple):
    """What came of a look."""

    #: How many messages are ready now that were not.
    released: int
    #: After how many seconds to look again, if that is sooner than usual.
    again_s: float | None


class Reaper:
    """Owned by its consumer's thread.

    Parameters:
      share: What this process has open of the file.
      locks: Its lock file.
      clock: When something happened, and how long it takes.
    """

    def __init__(self, share: ProcessShare, locks: LockFile, clock: Clock) -> None:
        self._share = share
        self._locks = locks
        self._clock = clock
        self._inquest = Inquest(clock)

    def reap(self, connection: sqlite3.Connection) -> Reaped:
        """Looks at all owners, and gives back what those held that have died."""
        rows = connection.execute("select id, name, pid, slot, started_ms from owner").fetchall()
        owners = [OwnerRow(*row) for row in rows]
        released = 0
        again_s = None
        for owner in owners:
            if self._locks.is_alive(owner.slot) or self._locks.may_follow(owner.started_ms):
                continue
            worker = worker_name(owner.name, owner.pid)
            death = self._inquest.death_of(owner.number, worker, self._share.board_path(owner.slot))
            if death is None:
                again_s = EVIDENCE_STEP_S
                continue
            count, is_done = self._bury(connection, owner, death)
            released += count
            if not is_done:
                again_s = 0.0
        orphans = self._adopt(connection, {owner.number for owner in owners})
        if orphans >= CHUNK:
            again_s = 0.0
        return Reaped(released + orphans, again_s)

    # --- giving back

    def _bury(self, connection: sqlite3.Connection, owner: OwnerRow, death: Death) -> tuple[int, bool]:
        """Gives back what the owner held, and forgets it; how many that were, and whether it was all."""
        charged = self._charge(connection, owner, death) if death.charged else 0
        failpoints.hit("reap.mid_batch")
        others = connection.execute(_GIVE_BACK, leases_of(owner.number)).rowcount
        is_done = others < CHUNK
        if is_done:
            connection.execute("delete from owner where id = ?", (owner.number,))
            self._share.wake.clear(owner.slot)
        death.tell(charged, others)
        return charged + others, is_done

    def _charge(self, connection: sqlite3.Connection, owner: OwnerRow, death: Death) -> int:
        """Gives back what ran, with a crash more. What was settled but stands on the board yet is not held any more."""
        incident = Incident(self._clock.now_ms(), 0, ErrorText(CRASH, death.evidence))
        marks = _encode(sorted(death.charged)).decode()
        values = (entry_of(incident), marks, *leases_of(owner.number))
        return connection.execute(_CHARGE, values).rowcount

    def _adopt(self, connection: sqlite3.Connection, owners: Collection[int]) -> int:
        """Gives back what is claimed by owners that are not there: one that was taken for dead by mistake may have
        claimed more before it noticed, and died then. Jumps from owner to owner in the index."""
        released = 0
        lease = 0
        while released < CHUNK and (found := connection.execute(_NEXT_CLAIMED, (lease,)).fetchone()[0]) is not None:
            owner = owner_of(found)
            leases = leases_of(owner)
            lease = leases[1]
            if owner not in owners:
                released += connection.execute(_GIVE_BACK, leases).rowcount
        if released:
            logger.warning("%d messages were claimed by nobody that is known: they are given back.", released)
        return released
