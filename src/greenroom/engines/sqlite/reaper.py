"""Giving back what owners that have died had claimed.

An owner whose byte of the lock file is free has died. What stood on its board was running: it is charged with a crash,
and the evidence goes into its history. All else that it held is given back as if nothing had happened.

All of it happens inside the caller's transaction, which is also what decides between two that look at the same time:
whoever comes second does not find the owner any more. So it may be done by anybody, and is done by all.
"""

from __future__ import annotations

import logging
import os
import sqlite3
from collections.abc import Collection
from typing import NamedTuple

import msgspec

from ... import failpoints
from ...board import Board, Fate
from ...clock import Clock
from ...logging import get_logger, one_line
from ...ports.transport import CRASH, ErrorText, Incident
from .liveness import LockFile
from .rows import CLAIMED, FREE, LONGER_HISTORY, READY, entry_of, leases_of, owner_of
from .share import ProcessShare

#: How long whoever started a process has to say how it ended, in seconds after the first look at its board.
EVIDENCE_S = 0.3
#: Seconds between two looks for that.
EVIDENCE_STEP_S = 0.02
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
        self._first_look_s: dict[int, float] = {}  # of owners whose parents are yet to say how they ended

    def reap(self, connection: sqlite3.Connection) -> Reaped:
        """Looks at all owners, and gives back what those held that have died."""
        rows = connection.execute("select id, name, pid, slot, started_ms from owner").fetchall()
        owners = [OwnerRow(*row) for row in rows]
        released = 0
        again_s = None
        for owner in owners:
            if self._locks.is_alive(owner.slot) or self._locks.may_follow(owner.started_ms):
                continue
            board = Board.open(self._share.board_path(owner.slot))
            if board is not None and self._is_evidence_due(owner, board):
                again_s = EVIDENCE_STEP_S
                continue
            count, is_done = self._bury(connection, owner, board)
            released += count
            if not is_done:
                again_s = 0.0
        orphans = self._adopt(connection, {owner.number for owner in owners})
        if orphans >= CHUNK:
            again_s = 0.0
        return Reaped(released + orphans, again_s)

    # --- evidence

    def _is_evidence_due(self, owner: OwnerRow, board: Board) -> bool:
        """True while whoever started it lives, has not said yet how it ended, and should."""
        if board.fate is Fate.UNKNOWN and any(board.cells) and _is_process(board.parent_pid):
            now_s = self._clock.monotonic()
            if now_s - self._first_look_s.setdefault(owner.number, now_s) < EVIDENCE_S:
                return True
        self._first_look_s.pop(owner.number, None)
        return False

    # --- giving back

    def _bury(self, connection: sqlite3.Connection, owner: OwnerRow, board: Board | None) -> tuple[int, bool]:
        """Gives back what the owner held, and forgets it; how many that were, and whether it was all."""
        worker = one_line(f"worker {owner.name} (PID {owner.pid})", 300)
        evidence = f"{worker} has died, and it had no board" if board is None else board.evidence(worker)
        charged = 0
        if board is not None and board.fate is not Fate.ENDED_ON_PURPOSE:
            charged = self._charge(connection, owner, board, evidence)
        failpoints.hit("reap.mid_batch")
        others = connection.execute(_GIVE_BACK, leases_of(owner.number)).rowcount
        is_done = others < CHUNK
        if is_done:
            connection.execute("delete from owner where id = ?", (owner.number,))
            self._share.wake.clear(owner.slot)
        level = logging.INFO if board is not None and board.fate is Fate.ENDED_ON_PURPOSE else logging.WARNING
        text = "%s. %d messages are charged with the crash, %d more are given back."
        logger.log(level, text, evidence, charged, others)
        return charged + others, is_done

    def _charge(self, connection: sqlite3.Connection, owner: OwnerRow, board: Board, evidence: str) -> int:
        """Gives back what ran, with a crash more. What was settled but stands on the board yet is not held any more."""
        incident = Incident(self._clock.now_ms(), 0, ErrorText(CRASH, evidence))
        marks = _encode(sorted(board.running())).decode()
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


def _is_process(pid: int) -> bool:
    """True if there is such a process. It may be another one that has got the number: then a wait is in vain, once."""
    if pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except (ProcessLookupError, OverflowError):
        return False
    return True
