"""One owner of messages in both layouts of a namespace, ours and Dramatiq's.

A trip is one on each side, Dramatiq's first. If the one on ours fails, the answer of the other is kept until the trip
is made again, and is not asked for twice.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from collections.abc import Set as AbstractSet
from typing import TYPE_CHECKING

from msgspec import structs

from ...board import Board
from ...clock import Clock
from ...core.verdict import Verdict
from ...errors import BrokerError
from ...logging import get_logger
from ...ports.transport import Delivery, Exchange, Incident, Settlement
from .dramatiq_consumer import Answer, DramatiqConsumer, Token, enqueued
from .dramatiq_layout import DramatiqLayout, Enqueued, Step
from .dramatiq_rider import Rider

if TYPE_CHECKING:
    from .consumer import RedisConsumer

#: Seconds between two looks for Dramatiq's dead letters that are not kept any longer, and between two steps while there
#: are some.
EXPIRE_INTERVAL_S = 60.0
EXPIRE_STEP_S = 0.1

logger = get_logger(__name__)


class _Half:
    """A trip that was made on Dramatiq's side, and not yet on ours."""

    def __init__(self, theirs: Answer, ours: list[Settlement]) -> None:
        self.theirs = theirs
        self.lost = list(theirs.lost)
        #: What our side has to settle.
        self.ours = ours
        #: For what stands there in place of a settlement: that settlement.
        self.callers: dict[int, Settlement] = {}
        #: What is to be moved to our side before.
        self.foreign = theirs.foreign
        #: What is to be enqueued on Dramatiq's side before.
        self.messages: list[Enqueued] = []

    def stand_in(self, stand_in: Settlement, caller: Settlement) -> None:
        """Has our side settle the one for the other."""
        self.ours.append(stand_in)
        self.callers[id(stand_in)] = caller

    def known(self, settlements: Sequence[Settlement]) -> list[Settlement]:
        """Settlements of our side as the caller knows them."""
        callers = self.callers
        return [callers.get(id(s), s) for s in settlements] if callers else list(settlements)


class TwoLayouts:
    """Owned by the pump's thread; others may call ``wake``, ``extend`` and ``reap_soon``.

    Parameters:
      ours: The owner in our layout.
      theirs: The owner in Dramatiq's.
      layout: Dramatiq's keys.
      clock: The process's.
      wire: Whether all that is written is for Dramatiq to read.
      expire: Deletes some of Dramatiq's dead letters of some queues; says whether there may be more of them.
    """

    def __init__(
        self,
        ours: RedisConsumer,
        theirs: DramatiqConsumer,
        layout: DramatiqLayout,
        *,
        clock: Clock,
        wire: bool,
        expire: Callable[[Sequence[str]], bool],
    ) -> None:
        self._ours = ours
        self._theirs = theirs
        self._layout = layout
        self._clock = clock
        self._wire = wire
        self._half: _Half | None = None
        self._turn = False
        self._expire = expire
        self._expire_at = -math.inf
        self._claimable: Sequence[str] = ()
        ours.also_close = self._close_theirs
        ours.trips.rider = Rider(layout, self._wanted, theirs.note_look)

    def subscribe(self, queues: Collection[str]) -> None:
        """Adds queues to claim from; ends a pause of theirs."""
        self._ours.subscribe(queues)
        self._theirs.look_soon()

    def pause(self, queues: Collection[str]) -> None:
        """Stops claiming from these queues."""
        self._ours.pause(queues)

    # --- the trip

    def exchange(self, settle: Sequence[Settlement], limit: int, skip: AbstractSet[str] = frozenset()) -> Exchange:
        """One trip on each side, where there is anything to be done. See the port."""
        self._ours.check_usable()  # before the other side claims
        self._claimable = self._ours.claimable(skip) if limit > 0 else ()
        if self._claimable:
            self._ours.enroll()
        half = self._half
        if half is None:
            half = self._half = self._make_half(settle, limit)
        if half.messages:
            self._layout.trip(self._theirs.name, [Step("push", half.messages[0].place, messages=half.messages)])
            half.messages = []
        if half.foreign:
            self._move(half)
        theirs = half.theirs
        exchange = self._ours.exchange(half.ours, max(0, limit - len(theirs.deliveries)), skip)
        self._half = None
        self._expire_some()
        more = theirs.more or exchange.more or (self._theirs.is_worth and bool(self._claimable))
        if not (theirs.deliveries or theirs.settled or half.lost or half.callers):
            return exchange if more == exchange.more else structs.replace(exchange, more=more)
        return structs.replace(
            exchange,
            deliveries=[*theirs.deliveries, *exchange.deliveries],
            settled=[*theirs.settled, *half.known(exchange.settled)],
            lost=[*half.lost, *half.known(exchange.lost)],
            refused=[(half.known([s])[0], error) for s, error in exchange.refused],
            more=more,
        )

    def _make_half(self, settle: Sequence[Settlement], limit: int) -> _Half:
        theirs: list[Settlement] = []
        ours = list(settle)
        if self._theirs.holds:
            theirs = [s for s in settle if type(s.delivery.token) is Token]
            ours = [s for s in settle if type(s.delivery.token) is not Token]
        self._turn = not self._turn
        share = limit // 2 + (limit & self._turn)  # neither side starves while the other is never empty
        half = _Half(self._theirs.exchange(theirs, self._claimable, share), ours)
        if self._wire:
            self._unwire(half)
        return half

    def _unwire(self, half: _Half) -> None:
        """What is left of our layout may be settled there, but what follows from it goes to Dramatiq's."""
        ours, half.ours = half.ours, []
        for s in ours:
            envelopes = s.push if s.retry is None else (s.retry, *s.push)
            if not envelopes:
                half.ours.append(s)
                continue
            half.messages += [enqueued(envelope) for envelope in envelopes]
            verdict = Verdict.ACK if s.retry is not None else s.verdict
            half.stand_in(structs.replace(s, verdict=verdict, retry=None, push=()), s)

    def _move(self, half: _Half) -> None:
        owner = self._ours.owner_id
        for s, is_ours in zip(half.foreign, self._theirs.move(half.foreign, owner), strict=True):
            if is_ours:
                delivery = structs.replace(s.delivery, token=owner)
                half.stand_in(structs.replace(s, delivery=delivery), s)
            else:
                half.lost.append(s)
        half.foreign = ()

    def _expire_some(self) -> None:
        now_s = self._clock.monotonic()
        if now_s < self._expire_at or not self._claimable:
            return
        self._expire_at = now_s + EXPIRE_INTERVAL_S  # at first: a failure must not come at every trip
        try:
            if self._expire(self._claimable):
                self._expire_at = now_s + EXPIRE_STEP_S
        except BrokerError as e:
            logger.debug("Dramatiq's old dead letters are deleted later: %s", e)

    def _wanted(self) -> Sequence[str]:
        """The queues that a cheap look should be about now."""
        return self._claimable if self._theirs.wants_look() else ()

    # --- what is as on our side

    def reap_soon(self) -> None:
        """Any thread: the next trip looks around, and a wait ends for it."""
        self._ours.reap_soon()

    def is_cut_off(self) -> bool:
        """Any thread: True if its lease in our layout may have ended; in Dramatiq's it lasts longer."""
        return self._ours.is_cut_off()

    def extend(self) -> None:
        """Any thread: renews the lease, and gives a sign of life to Dramatiq's processes."""
        self._ours.extend()
        if self._theirs.is_beat_due():
            self._ours.in_background(self._theirs.beat)

    def board(self, places: int, *, parent_pid: int = 0) -> Board:
        """Where the executors say what they run. See the port."""
        return self._ours.board(places, parent_pid=parent_pid)

    def history(self, delivery: Delivery) -> Sequence[Incident]:
        """What befell a delivery before. Dramatiq's layout tells nothing of it."""
        return () if type(delivery.token) is Token else self._ours.history(delivery)

    def wait(self, timeout_s: float) -> None:
        """Returns when something may be ready, at the next due time, after ``wake`` or after ``timeout_s``."""
        clock = self._clock
        until = clock.monotonic() + min(timeout_s, self._theirs.wake_in_s())
        self._ours.wait(until - clock.monotonic())
        if self._wire and clock.monotonic() < until:  # a token tells of both layouts
            self._theirs.look_soon()

    def wake(self) -> None:
        """Any thread, signal-safe: ends a wait, or the next one."""
        self._ours.wake()

    def close(self) -> None:
        """Gives back what was claimed and not settled, and ends the owner."""
        self._ours.close()

    def _close_theirs(self) -> None:
        try:
            self._theirs.close()
        except BrokerError as e:
            logger.warning("What this worker holds of Dramatiq's queues is put back when it seems dead: %s", e)
