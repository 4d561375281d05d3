"""One owner of claimed messages on a Redis server.

Each exchange is a trip, one script (``trips.py``), or none while nothing happens. Once a second it looks around:
whether its owner still has its place, and who has died.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Collection, Sequence
from collections.abc import Set as AbstractSet
from contextlib import suppress

from ... import failpoints
from ...board import Board
from ...clock import SYSTEM_CLOCK, Clock
from ...core.verdict import Verdict
from ...errors import BrokerError
from ...logging import get_logger
from ...ports.passing import pass_after, pass_before
from ...ports.retention import Retention
from ...ports.transport import MAX_TRIP, ConsumerClosed, Delivery, Exchange, Incident, Settlement
from .history import incidents_of
from .idling import Idling
from .owner import Owner
from .pulse import Task
from .retention import retain
from .share import ProcessShare
from .slots import end_slots
from .trip import Answer, parts_of
from .trips import Brought, Trips, time_of
from .waiting import Waiter

#: Seconds between two looks around.
LOOK_INTERVAL_S = 1.0
#: Seconds between two looks for dead letters that are not kept any longer, and between two steps while there are some.
PURGE_INTERVAL_S = 120.0
PURGE_STEP_S = 0.1

logger = get_logger(__name__)


class RedisConsumer:
    """Owned by the pump's thread; others may call ``wake``, ``extend`` and ``reap_soon``. Belongs to the process that
    made it."""

    def __init__(
        self, share: ProcessShare, name: str, *, clock: Clock, max_body: int, lease_ms: int, retention: Retention
    ) -> None:
        self._share = share
        self._clock = clock
        self._pid = os.getpid()
        self._queues: list[str] = []
        self._paused: set[str] = set()
        self._paused_for_all: frozenset[str] = frozenset()
        self._skip: AbstractSet[str] = frozenset()  # of the last trip: what it left out is not waited for
        self._carried: list[Delivery] = []  # claimed by a trip whose answer came late
        self._due_at = math.inf  # on the monotonic clock
        self._look_at = 0.0
        self._retention = retention
        self._purge_at = 0.0
        self._closed = False
        #: Called when it is closed, before anything is given back. Raises nothing.
        self.also_close: Callable[[], None] | None = None
        self._waiter = Waiter(share.connector.new(), share.call)
        self._owner = Owner(share, name, clock, lease_ms)
        self._idling = Idling(lease_ms)
        #: Its trips to the server.
        self.trips = Trips(share, clock, self._owner, max_body)
        share.consumers.add(self)

    def subscribe(self, queues: Collection[str]) -> None:
        """Adds queues to claim from; ends a pause of theirs."""
        self.check_usable()
        self._queues += [queue for queue in queues if queue not in self._queues]
        self._paused.difference_update(queues)
        self._idling.end()

    def pause(self, queues: Collection[str]) -> None:
        """Stops claiming from these queues."""
        self.check_usable()
        self._paused.update(queues)

    def _active(self, skip: AbstractSet[str]) -> list[str]:
        if not self._paused and not skip:
            return self._queues
        return [queue for queue in self._queues if queue not in self._paused and queue not in skip]

    def enroll(self) -> None:
        """Has the server know of its queues, before it claims of them in any layout. Raises as ``exchange``."""
        self._owner.enroll(self._queues)

    @property
    def owner_id(self) -> str:
        """The id of its owner now."""
        return self._owner.id

    def claimable(self, skip: AbstractSet[str]) -> list[str]:
        """The queues that it claims from now, as far as it knows."""
        return [queue for queue in self._active(skip) if queue not in self._paused_for_all]

    # --- the trip

    def exchange(self, settle: Sequence[Settlement], limit: int, skip: AbstractSet[str] = frozenset()) -> Exchange:
        """One script: settles, promotes what is due, claims up to ``limit``. See the port.

        What is pushed with settlements and does not go into one command (64 MiB) goes in several, each with the
        settlements that it belongs to.
        """
        self.check_usable()
        if len(settle) > MAX_TRIP:
            raise ValueError(f"A trip carries at most {MAX_TRIP} settlements, not {len(settle)}.")
        if self._clock.monotonic() >= self._look_at:
            self._look_around()
        if not settle and self._is_idle(limit, skip):
            return Exchange()
        if failpoints.armed:
            pass_before(settle, limit)
        if not limit:
            self._waiter.cancel()
        if self.trips.is_in_doubt:
            self._ask_again()
        exchange = self._make_trips(settle, min(limit, MAX_TRIP), skip)
        if exchange.deliveries:
            self._waiter.cancel()
        if self._clock.monotonic() >= self._purge_at:
            self._purge()
        if failpoints.armed:
            pass_after(settle, exchange.deliveries)
        return exchange

    def _make_trips(self, settle: Sequence[Settlement], limit: int, skip: AbstractSet[str]) -> Exchange:
        carried, self._carried = self._carried[:limit], self._carried[limit:]
        queues = self._active(skip) if limit > len(carried) else ()
        settled: list[Settlement] = []
        lost: list[Settlement] = []
        refused: list[tuple[Settlement, Exception]] = []
        try:
            if queues:
                self.enroll()
            *parts, last = parts_of(settle)
            for part in parts:
                brought = self.trips.make(part, 0, (), refused)
                self._take_in(brought)
                settled += brought.settled
                lost += brought.lost
            brought = self.trips.make(last, limit - len(carried), queues, refused)
        except BaseException:
            self._carried = carried + self._carried
            self.trips.applied = [*self.trips.applied, *settled]
            raise
        more = self._take_in(brought) or bool(self._carried)
        self._skip = skip
        self._idling.made_trip(found_nothing=bool(queues) and not brought.deliveries and not more)
        self.trips.applied = [*settled, *brought.settled] if settled else brought.settled
        if brought.answer is None:  # what came late is not ours any more either
            carried = []
        found = carried + brought.deliveries if carried else brought.deliveries
        return Exchange(found, self.trips.applied, [*lost, *brought.lost], refused, more)

    def _take_in(self, brought: Brought) -> bool:
        """Takes note of what a trip has told; whether there is more to be claimed."""
        answer = brought.answer
        if answer is None:
            self._carried = []
            return True
        self._note_due(answer)
        self._paused_for_all = frozenset([name.decode() for name in answer.paused]) if answer.paused else frozenset()
        self._owner.seen(answer.expired)
        if brought.missing:
            self._forget(brought.missing)
        more = bool(answer.more)
        if 0 <= answer.slot_end_ms <= answer.now_ms:
            more = self._end_slots() or more
        if brought.lost:
            self._look_at = 0.0
        return more

    def _ask_again(self) -> None:
        """Learns what came of a trip whose answer was lost."""
        brought = self.trips.ask_again()
        self._take_in(brought)
        self._carried += brought.deliveries

    def _forget(self, missing: Sequence[Delivery]) -> None:
        """What is claimed and has no body: somebody has deleted it, or the server has evicted it."""
        logger.error(
            "%d messages of %s are lost: their bodies are not on the server any more. Does it evict keys "
            "(maxmemory-policy), or has somebody deleted them?",
            len(missing),
            ", ".join(sorted({delivery.queue for delivery in missing})),
        )
        try:
            self.trips.make([Settlement(delivery, Verdict.ACK) for delivery in missing], 0, (), [])
        except BrokerError as e:  # they are held until this owner ends, and harm nobody
            logger.debug("Messages without bodies could not be settled: %s", e)

    def _now(self) -> int | None:
        """What time to tell the server; None if its own counts."""
        return None if self._clock is SYSTEM_CLOCK else self._clock.now_ms()

    def _note_due(self, answer: Answer) -> None:
        due_ms = min((time for time in (answer.next_due_ms, answer.slot_end_ms) if time >= 0), default=None)
        if due_ms is None:
            self._due_at = math.inf
        else:
            self._due_at = self._clock.monotonic() + (due_ms - answer.now_ms) / 1000

    def _end_slots(self) -> bool:
        """Hands on the slots that were not renewed in time; whether messages may have become ready."""
        try:
            return end_slots(self._share, self._now())
        except BrokerError:  # the next trip finds them again
            return False

    def _is_idle(self, limit: int, skip: AbstractSet[str]) -> bool:
        """Whether a trip would surely bring nothing: the server would have sent a token."""
        return (
            limit > 0
            and self._waiter.is_outstanding
            and self._clock is SYSTEM_CLOCK
            and not self.trips.is_in_doubt
            and not self._carried
            and self._idling.is_going_on
            and skip == self._skip
            and self._clock.monotonic() < self._due_at
        )

    # --- looking around

    def _look_around(self) -> None:
        """Makes sure of the owner's place, and gives back what the dead held. If that fails the trip tells why; it must
        not fail itself for that: settling may be what makes room."""
        self._look_at = self._clock.monotonic() + LOOK_INTERVAL_S
        try:
            reaped = self._owner.look_around()
        except BrokerError as e:
            logger.debug("Looking around has failed: %s", e)
            return
        if reaped.released:
            self._idling.end()
        if reaped.again_s is not None:
            self._look_at = min(self._look_at, self._clock.monotonic() + reaped.again_s)

    def _purge(self) -> None:
        """Deletes some of the dead letters that are not kept any longer."""
        self._purge_at = self._clock.monotonic() + PURGE_INTERVAL_S
        with suppress(BrokerError):  # the next time will do
            if retain(self._retention, self._share, time_of(self._clock)):
                self._purge_at = self._clock.monotonic() + PURGE_STEP_S

    def reap_soon(self) -> None:
        """Any thread: the next trip looks around, and a wait ends for it."""
        self._look_at = 0.0
        self._waiter.ring()

    def is_cut_off(self) -> bool:
        """Any thread: True if its lease may have ended."""
        return self._owner.is_cut_off()

    def extend(self) -> None:
        """Any thread: renews the lease."""
        if not self._closed and os.getpid() == self._pid and not self._owner.renew():
            self._idling.end()
            self.reap_soon()

    def in_background(self, task: Task) -> None:
        """Any thread: has the thread that renews the lease do something short."""
        if not self._closed and os.getpid() == self._pid:
            self._owner.in_background(task)

    def board(self, places: int, *, parent_pid: int = 0) -> Board:
        """Where the executors say what they run. See the port."""
        self.check_usable()
        return self._owner.make_board(places, parent_pid)

    def history(self, delivery: Delivery) -> Sequence[Incident]:
        """What befell a delivery before, the oldest first; nothing if it is not held any more."""
        self.check_usable()
        if delivery.token != self._owner.id:
            return ()
        keys = self._share.keys
        if self._share.call("HGET", keys.held(self._owner.id, delivery.queue), delivery.id) is None:
            return ()
        return incidents_of(self._share.call("HGET", keys.of(delivery.queue).incidents, delivery.id))

    # --- waiting

    def wait(self, timeout_s: float) -> None:
        """Returns when something may be ready, at the next due time, after ``wake`` or after ``timeout_s``; or when it
        is time to look around."""
        self.check_usable()
        now = self._clock.monotonic()
        until = min(now + timeout_s, self._due_at, self._look_at)
        if self._carried or self.trips.is_in_doubt:
            return
        keys = [self._share.keys.of(queue).wake for queue in self.claimable(self._skip)]
        self._idling.waited(until - now, is_news=self._waiter.wait(keys, until - now))

    def wake(self) -> None:
        """Any thread, signal-safe: ends a wait, or the next one."""
        self._waiter.ring()

    # --- the end

    def close(self) -> None:
        """Gives back what was claimed and not settled, and ends the owner."""
        if self._closed or os.getpid() != self._pid:
            return
        self._closed = True
        self._share.consumers.discard(self)
        if self.also_close is not None:
            self.also_close()
        self._waiter.close()
        self.trips.close()
        self._owner.leave()

    def check_usable(self) -> None:
        """Raises ``ConsumerClosed`` for one that was closed, or belongs to another process."""
        if self._closed:
            raise ConsumerClosed("This consumer was closed.")
        if os.getpid() != self._pid:
            raise ConsumerClosed("This consumer belongs to the process that made it, not to its fork.")
