"""Giving back what owners that have died had claimed.

* **Of this host**: the kernel frees the byte of a dead owner, and its file says who it was. That is seen each second
  without a word to the server, and its board says what it ran (``host.deaths``).
* **Of another host, or of another container**: its lease has ended, and it has said what it runs when it renewed it
  last. So that nobody is taken for dead because it was the server that was away, or whose clock was set, or because
  this process itself stood still: the same end of a lease has to be seen for half a lease, by looks without a gap.

All of it is done by one script, which is also what decides between two that look at the same time: whoever comes second
does not find the owner any more. So it may be done by anybody, and is done by all.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from ... import failpoints
from ...clock import SYSTEM_CLOCK, Clock
from ...host.deaths import EVIDENCE_STEP_S, Death, Inquest, worker_name
from ...ports.transport import CRASH, ErrorText
from .connection import Argument
from .history import entry_of
from .scripts import load
from .share import ProcessShare

if TYPE_CHECKING:  # who only looks or sends needs no locks on files, which not every system has
    from .run_place import RunPlace

#: No more than this many messages of an owner are given back in one step: three milliseconds.
CHUNK = 1000
#: Seconds between two trips of an idle process, and a little more: no gap.
LONGEST_GAP_S = 3.0

_REAP = load("reap", "history")


class OwnerInfo(msgspec.Struct, frozen=True):
    """What the server knows of an owner. ``place`` says in which folder it is seen to be alive; ``queues`` are those
    that it may have claimed of."""

    name: str
    pid: int
    place: str
    queues: tuple[str, ...] = ()


_encode = msgspec.json.Encoder().encode
#: What the server knows of an owner, out of its text.
info_of = msgspec.json.Decoder(OwnerInfo).decode


class Given(NamedTuple):
    """What one step of ``reap.lua`` answers."""

    status: str
    charged: int = 0
    others: int = 0


class Row(NamedTuple):
    """An owner as the server has it."""

    text: bytes
    info: OwnerInfo


class Reaped(NamedTuple):
    """What came of a look."""

    #: How many messages are ready now that were not.
    released: int = 0
    #: After how many seconds to look again, if that is sooner than usual.
    again_s: float | None = None


class Reaper:
    """Owned by its consumer's thread.

    Parameters:
      share: What this process has open to the server.
      clock: The time that scripts are told, and how long it takes.
      lease_ms: How long an owner may be silent.
    """

    def __init__(self, share: ProcessShare, clock: Clock, lease_ms: int) -> None:
        self._share = share
        self._clock = clock
        self._inquest = Inquest(clock)
        self._patience_s = lease_ms / 2000
        self._expired: dict[str, tuple[float, float]] = {}  # owner: end of its lease, when that was first seen
        self._seen_s = 0.0

    # --- of this host

    def look(self, place: RunPlace) -> Reaped:
        """Gives back what the dead of this host held, a step of each."""
        released, again_s = 0, None
        for id, neighbour in place.dead():
            worker = worker_name(neighbour.name, neighbour.pid)
            death = self._inquest.death_of(id, worker, place.board_path(id))
            if death is None:
                again_s = EVIDENCE_STEP_S
                continue
            row = self._row_of(id)
            count, is_done = (0, True) if row is None else self._bury(id, row, death)
            released += count
            if is_done:
                place.withdraw(id)
            else:
                again_s = 0.0
        return Reaped(released, again_s)

    # --- by their leases

    def note_expired(self, told: Sequence[bytes]) -> Collection[str]:
        """Takes down whose leases have ended; returns whom that makes dead. To be called after each trip.

        Parameters:
          told: Owners, each with the end of its lease, as the server tells them.
        """
        now_s = self._clock.monotonic()
        if now_s - self._seen_s > max(self._patience_s, LONGEST_GAP_S):
            self._expired.clear()
        self._seen_s = now_s
        if not told:
            self._expired.clear()
            return ()
        known = self._expired
        self._expired = {}
        for owner, end in zip(told[::2], told[1::2], strict=True):
            id = owner.decode()
            before = known.get(id)
            self._expired[id] = before if before is not None and before[0] == float(end) else (float(end), now_s)
        return [id for id, (_, first_s) in self._expired.items() if now_s - first_s >= self._patience_s]

    def reap_expired(self, ids: Collection[str], place: RunPlace, found: Reaped) -> Reaped:
        """Gives back what the lost held, a step of each; what came of that and of what was ``found`` before."""
        released, again_s = found
        for id in ids:
            row = self._row_of(id)
            if row is None:
                continue
            count, is_done = self._bury(id, row, self._death_of(id, row.info, place), lease=self._expired[id][0])
            released += count
            if is_done:
                self._expired.pop(id, None)
            else:
                again_s = 0.0
        return Reaped(released, again_s)

    def _death_of(self, id: str, info: OwnerInfo, place: RunPlace) -> Death:
        worker = worker_name(info.name, info.pid)
        if info.place == place.word and place.is_alive(id):  # it stands still: nothing has crashed
            return Death(f"{worker} lives, but has not renewed its lease in time")
        marks = self._share.call("HGET", self._share.keys.running, id) or b""
        return Death(f"{worker} has not been heard of, and its lease has ended", frozenset(map(int, marks.split())))

    # --- giving back

    def _row_of(self, id: str) -> Row | None:
        found = self._share.call("HGET", self._share.keys.owners, id) or self._row_again(id)
        return None if found is None else Row(found, info_of(found))

    def _row_again(self, id: str) -> bytes | None:
        """A row for an owner that has a lease and none, since somebody has deleted it: it may have claimed of any
        queue."""
        keys = self._share.keys
        if self._share.call("ZSCORE", keys.leases, id) is None:
            return None
        queues = sorted(name.decode() for name in self._share.call("SMEMBERS", keys.queues))
        text = _encode(OwnerInfo("?", 0, "", tuple(queues)))
        self._share.call("HSET", keys.owners, id, text)
        return text

    def _bury(self, id: str, row: Row, death: Death, *, lease: float | None = None) -> tuple[int, bool]:
        """Gives back some of what an owner held, and forgets it when that was all; how many messages that were, and
        whether there is nothing more to do.

        Parameters:
          lease: The end that its lease must have; None to take it for dead whatever that is.
        """
        status, *counts = self.give_back(id, row, death, lease)
        failpoints.hit("reap.mid_batch")
        if status == "gone":
            return 0, True
        if status == "other":
            return 0, lease is not None
        charged, others = counts
        death.tell(charged, others)
        if status == "done" and self._share.also_bury is not None:
            now = "" if self._clock is SYSTEM_CLOCK else self._clock.now_ms()
            self._share.also_bury(id, row.info.queues, death, now)
        return charged + others, status == "done"

    def give_up(self, id: str) -> None:
        """Gives back all that an owner of ours holds, uncharged, and forgets it."""
        row = self._row_of(id)
        while row is not None and self.give_back(id, row).status == "more":
            pass

    def give_back(self, id: str, row: Row, death: Death | None = None, lease: float | None = None) -> Given:
        """One step of ``reap.lua``. Without a ``death`` nobody is charged."""
        keys = self._share.keys
        names = [keys.owners, keys.leases, keys.running, keys.trip(id)]
        for queue in row.info.queues:
            of = keys.of(queue)
            names += (of.ready, of.extras, of.incidents, keys.held(id, queue), of.wake)
        incident = b""
        marks: tuple[int, ...] = ()
        if death is not None and death.charged:
            incident = entry_of(0, ErrorText(CRASH, death.evidence)).partition(b"0")[2]
            marks = tuple(death.charged)
        now = "" if self._clock is SYSTEM_CLOCK else self._clock.now_ms()
        args: list[Argument] = [now, id, row.text, "" if lease is None else lease, CHUNK, incident, *marks]
        status, *counts = self._share.run(_REAP, names, args)
        return Given(status.decode(), *counts)
