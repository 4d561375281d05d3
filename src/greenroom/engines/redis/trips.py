"""Trips to the server, made so that an answer may be lost.

A trip is one script: settle, promote, claim. It has a number, and the server keeps the answer to the last one. So a
trip whose answer was lost is asked for once more under its number, before anything else is done: it was applied once,
what it has settled is known, and what it has claimed is not leaked.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from ... import failpoints
from ...clock import SYSTEM_CLOCK, Clock
from ...errors import BrokerError
from ...ports.passing import says_how_it_went
from ...ports.transport import Delivery, Settlement
from .connection import Argument
from .dramatiq_rider import Rider
from .errors import is_unknown
from .key_table import KeyTable
from .share import ProcessShare
from .trip import Answer, Trip, deliveries

if TYPE_CHECKING:
    from .owner import Owner


class Brought(NamedTuple):
    """What one trip has brought. No answer: its owner was taken for dead."""

    deliveries: list[Delivery]
    settled: Sequence[Settlement]
    lost: Sequence[Settlement]
    #: What was claimed and has no body.
    missing: Sequence[Delivery] = ()
    answer: Answer | None = None


class _Made(NamedTuple):
    """A trip that was sent, and what its answer has to be read by."""

    trip: Trip
    limit: int
    queues: Sequence[str]


class Trips:
    """Belongs to a consumer.

    Parameters:
      share: What this process has open to the server.
      clock: The time that scripts are told.
      owner: Whose trips they are.
      max_body: The largest body in bytes.
    """

    def __init__(self, share: ProcessShare, clock: Clock, owner: Owner, max_body: int) -> None:
        self._share = share
        self._clock = clock
        self._owner = owner
        self._max_body = max_body
        self._connection = share.connector.new()
        self._number = 0
        self._unanswered: _Made | None = None
        self._keys_by_queue: dict[str, tuple[bytes, ...]] = {}
        self._keys_of_owner = ""
        #: What the last trips have applied: settled, if it is asked for again.
        self.applied: Sequence[Settlement] = ()
        #: What looks at Dramatiq's layout on the way of a trip, if anything does.
        self.rider: Rider | None = None

    @property
    def is_in_doubt(self) -> bool:
        """Whether there is a trip of which nobody knows what came of it."""
        return self._unanswered is not None

    def make(
        self,
        settle: Sequence[Settlement],
        limit: int,
        queues: Sequence[str],
        refused: list[tuple[Settlement, Exception]],
    ) -> Brought:
        """One script. Settlements that can never be applied are added to ``refused``.

        Raises:
          BrokerError: Nothing was applied, or it is not known: ``is_in_doubt``.
        """
        self._number += 1
        head = (time_of(self._clock), self._owner.id, self._owner.lease_ms, self._number)
        table = KeyTable(self._fixed_keys(), self._keys_of)
        trip = Trip(head, queues, table, self._share.keys, self._max_body)
        trip.settle(settle)
        refused += trip.refused
        return self._send(_Made(trip, limit, queues))

    def ask_again(self) -> Brought:
        """Learns what came of a trip whose answer was lost; if it never arrived, that is made now, and is not made when
        it arrives after all. Raises as ``make``."""
        assert self._unanswered is not None
        self._unanswered.trip.ask_again(time_of(self._clock))
        brought = self._send(self._unanswered)
        self.applied = [*self.applied, *brought.settled]
        return brought

    def close(self) -> None:
        """Closes the connection."""
        self._connection.close()

    def _send(self, made: _Made) -> Brought:
        """Sends a trip, for the first time or again, and reads its answer."""
        trip = made.trip
        if failpoints.armed:
            settles = says_how_it_went(trip.order)
            self._connection.point = "ack.after_send_before_reply" if settles else "claim.after_cmd_before_register"
        try:
            reply = trip.run(self._connection, made.limit, self.rider)
            if trip.pushes:
                self._share.replicas.wait(self._connection)
        except BrokerError as e:
            if is_unknown(e):
                self._unanswered = made
            elif type(e) is BrokerError:  # the script itself has failed: that is an answer
                self._unanswered = None
            raise  # else this time nothing was done: what came of an earlier time is as unknown as before
        except BaseException:
            self._unanswered = made
            raise
        self._unanswered = None
        if reply[0] == b"lost":
            self._owner.register_again()
            return Brought([], *self._sort_out(trip.order, range(len(trip.order))))
        if reply[0] != b"ok":
            raise BrokerError(f"Trip {self._number} of {self._owner.id} was overtaken by a later one.")
        answer = Answer(*reply[1:])
        settled, lost = self._sort_out(trip.order, answer.lost)
        claimed, missing = deliveries(answer.claimed, made.queues, self._owner.id)
        return Brought(claimed, settled, lost, missing, answer)

    def _sort_out(
        self, order: list[Settlement], missing: Sequence[int]
    ) -> tuple[Sequence[Settlement], Sequence[Settlement]]:
        """Of those that were not held: what an earlier trip has applied is settled, the others are lost."""
        if not missing:
            return order, ()
        applied = {_key(s) for s in self.applied}
        lost = {number for number in missing if _key(order[number]) not in applied}
        return [s for number, s in enumerate(order) if number not in lost], [order[number] for number in sorted(lost)]

    def _fixed_keys(self) -> tuple[bytes, ...]:
        keys = self._share.keys
        return (keys.leases, keys.trip(self._owner.id), keys.paused, keys.seq, keys.queues, keys.ends)

    def _keys_of(self, queue: str) -> tuple[bytes, ...]:
        owner = self._owner.id
        if owner != self._keys_of_owner:
            self._keys_by_queue, self._keys_of_owner = {}, owner
        found = self._keys_by_queue.get(queue)
        if found is None:
            of = self._share.keys.of(queue)
            found = self._keys_by_queue[queue] = (*of[:6], self._share.keys.held(owner, queue), *of[6:])
        return found


def time_of(clock: Clock) -> Argument:
    """The time as scripts are told it. If the server's counts, it is the time of this host, which due times were chosen
    by, for the script to put them right."""
    return f"@{clock.now_ms()}" if clock is SYSTEM_CLOCK else clock.now_ms()


def _key(s: Settlement) -> tuple[str, int, object]:
    return s.delivery.id, s.delivery.attempt, s.delivery.token
