"""One owner of messages that were claimed of Dramatiq's layout.

It settles them there as Dramatiq would: what is done goes, what is to be tried again returns to the delayed list. With
``wire="dramatiq"`` that is all. Else what is to be tried again stays there only while a process of Dramatiq's lives,
and what Dramatiq has no words for moves into our layout, where the consumer of that settles it (``TwoLayouts``):
results and next stages that are written with the settlement, errors of dead letters, a place in a line.

The lists are looked at ten times a second while a process of Dramatiq's lives, since its senders wake nobody. Else a
cheap look tells whether there is anything; it rides on the trips of our own layout (``Rider``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from ...clock import Clock
from ...core.verdict import Verdict
from ...errors import BrokerError, DecodeError
from ...logging import get_logger
from ...ports.store import StoreOp
from ...ports.transport import Delivery, Envelope, Settlement
from .connection import Connection
from .dramatiq_bury import mark_of
from .dramatiq_delayed import DelayedReader
from .dramatiq_heartbeats import TakeOver
from .dramatiq_layout import Claim, DramatiqLayout, Enqueued, Look, Place, Step, Trip, rewritten

#: Seconds between two looks, while a process of Dramatiq's lives and when none does.
BUSY_LOOK_S = 0.1
IDLE_LOOK_S = 1.0
#: Seconds after which a look is made that no trip has carried: those that write results carry none.
OVERDUE_S = 3.0
#: Seconds until the next look after one that the server has refused.
REFUSED_LOOK_S = 10.0
#: Seconds between two signs of life, unless the others lose patience sooner.
BEAT_INTERVAL_S = 5.0

logger = get_logger(__name__)


class Token(NamedTuple):
    """What names a claim of Dramatiq's layout: ``number`` tells claims of one message by one owner apart."""

    place: Place
    id: str
    number: int


class Answer(NamedTuple):
    """What a trip has brought. ``foreign`` are settlements that only our own layout has words for."""

    deliveries: Sequence[Delivery]
    settled: Sequence[Settlement]
    lost: Sequence[Settlement]
    foreign: Sequence[Settlement]
    more: bool


class _Plan(NamedTuple):
    """What a trip is to do: steps and the settlements that they stand for, what is lost, what is for our own layout."""

    steps: list[Step]
    settlements: list[Settlement]
    lost: list[Settlement]
    foreign: list[Settlement]


class DramatiqConsumer:
    """Owned by the pump's thread; ``is_beat_due`` and ``beat`` may be called by any.

    Parameters:
      layout: Dramatiq's keys.
      name: What this process is called there.
      heartbeat_timeout_ms: After how long without a sign of life a process is dead.
      clock: The process's.
      wire: Whether all that is written is for Dramatiq to read.
      now_ms: For tests with a clock of their own; by default the server's decides.
    """

    def __init__(
        self,
        layout: DramatiqLayout,
        name: str,
        *,
        heartbeat_timeout_ms: int,
        clock: Clock,
        wire: bool = False,
        write: Callable[[Sequence[StoreOp]], object] = lambda ops: None,
        now_ms: Callable[[], int | None] = lambda: None,
    ) -> None:
        timeout_s = heartbeat_timeout_ms / 1000
        self.name = name
        self._layout = layout
        self._clock = clock
        self._wire = wire
        self._write = write
        self._now_ms = now_ms
        self._beat_interval_s = min(BEAT_INTERVAL_S, timeout_s / 4)
        self._take_over = TakeOver(layout, name, timeout_s)
        self._reader = DelayedReader(layout)
        self._held: dict[tuple[Place, str], int] = {}
        #: Settlements whose trip got no answer: what of them is not found any more was applied.
        self._unanswered: set[Token] = set()
        self._is_unsure = False  # whether there may be claims that we do not know of
        self._number = 0
        self._next_due_ms: int | None = None
        self._newest: tuple[int, bytes] | None = None
        self._look_at = -math.inf
        self._is_worth = True
        self._beat_at = -math.inf
        self._server_offset_ms = 0.0

    # --- what others ask

    @property
    def holds(self) -> bool:
        """Whether it has claimed anything that is not settled."""
        return bool(self._held)

    def keeps(self) -> bool:
        """Whether what is to be run again has to stay where Dramatiq's workers find it."""
        return self._wire or self._take_over.heartbeats.is_fresh(self._clock.monotonic())

    def wake_in_s(self) -> float:
        """Seconds until a wait should end for a look. While nobody of Dramatiq's lives, the trips are enough that are
        made anyway."""
        now_s = self._clock.monotonic()
        if self._is_busy(now_s):
            return self._look_at - now_s
        return math.inf if self._next_due_ms is None else (self._next_due_ms + 1 - self._server_ms(now_s)) / 1000

    @property
    def is_worth(self) -> bool:
        """Whether there is something to come back for at once."""
        return self._is_worth

    def look_soon(self) -> None:
        """Somebody has enqueued something."""
        self._come_back(True, 0.0)

    def is_beat_due(self) -> bool:
        """Any thread: whether it holds anything and has given no sign of life for long."""
        return bool(self._held) and self._clock.monotonic() >= self._beat_at + self._beat_interval_s

    def beat(self, connection: Connection) -> None:
        """Any thread: a sign of life. Raises as ``Connection.call``."""
        self._beat_at = now_s = self._clock.monotonic()
        self._layout.beat(connection, self.name, self._server_ms(now_s))

    def _server_ms(self, now_s: float) -> int:
        return int(now_s * 1000 + self._server_offset_ms)

    # --- the trip

    def exchange(self, settle: Sequence[Settlement], queues: Sequence[str], limit: int) -> Answer:
        """Settles claims of this layout, and claims up to ``limit`` of ``queues`` if it is time to look.

        What is in ``Answer.foreign`` is to be moved into our own layout, and settled there.

        Raises:
          BrokerError: As ``Consumer.exchange``: the same trip may be made again.
        """
        now_s = self._clock.monotonic()
        looks = bool(queues) and limit > 0 and self._is_look_due(now_s)
        if not settle and not looks:
            return Answer((), (), (), (), False)
        try:
            return self._exchange(settle, queues, limit, now_s, looks=looks)
        except BrokerError as e:
            if not looks or type(e) is not BrokerError:
                raise
            self._give_up_looking(e, now_s)
            if settle:  # made again, it only settles
                raise
            return Answer((), (), (), (), False)

    def _exchange(
        self, settle: Sequence[Settlement], queues: Sequence[str], limit: int, now_s: float, *, looks: bool
    ) -> Answer:
        if self._is_unsure:
            self._give_back_unknown(queues)
        plan = self._plan(settle)
        if not plan.steps and not looks:
            return Answer((), (), plan.lost, plan.foreign, False)
        trip = self._make(plan, queues if looks else (), limit)
        settled, lost = self._sort_out(plan, trip.found)  # at first: what was given back may have been claimed again
        deliveries = [self._delivery(claim) for claim in trip.claims]
        more = looks and self._look_around(trip, queues, now_s, is_full=len(deliveries) >= limit)
        return Answer(deliveries, settled, lost, plan.foreign, more)

    def _make(self, plan: _Plan, queues: Sequence[str], limit: int) -> Trip:
        self._is_unsure = True
        try:
            trip = self._layout.trip(
                self.name, plan.steps, queues=queues, limit=limit, beats=self.holds, now_ms=self._now_ms()
            )
        except BrokerError:
            self._unanswered.update(s.delivery.token for s in plan.settlements)
            raise
        self._is_unsure = False
        self._beat_at = self._clock.monotonic()
        self._server_offset_ms = trip.now_ms - self._beat_at * 1000
        return trip

    def _delivery(self, claim: Claim) -> Delivery:
        self._number += 1
        self._held[claim.place, claim.id] = self._number
        token = Token(claim.place, claim.id, self._number)
        return Delivery(claim.place.queue, claim.id, claim.body, token, 1, mark=mark_of(claim.id))

    def _give_back_unknown(self, queues: Sequence[str]) -> None:
        """Puts back what was claimed by a trip that got no answer."""
        steps = [
            Step("back", place, id_)
            for place in [Place(queue, delayed) for queue in queues for delayed in (False, True)]
            for id_ in self._layout.claimed_by(self.name, place)
            if (place, id_) not in self._held
        ]
        if steps:
            self._layout.trip(self.name, steps, now_ms=self._now_ms())
        self._is_unsure = False

    # --- looking

    def _is_look_due(self, now_s: float) -> bool:
        if now_s < self._look_at:
            return False
        return self._is_worth or self._is_busy(now_s) or now_s >= self._look_at + OVERDUE_S

    def _give_up_looking(self, error: BrokerError, now_s: float) -> None:
        """The server has refused a look, so something there is not Dramatiq's. Our own layout must not suffer."""
        logger.error("Dramatiq's queues cannot be looked at: %s", error)
        self._is_worth, self._look_at = False, now_s + REFUSED_LOOK_S

    def wants_look(self) -> bool:
        """Whether a cheap look will do next, and it is time for it."""
        now_s = self._clock.monotonic()
        return now_s >= self._look_at and not self._is_busy(now_s)

    def _is_busy(self, now_s: float) -> bool:
        return self._newest is None or self._is_unsure or self._take_over.heartbeats.is_fresh(now_s)

    def note_look(self, look: Look) -> None:
        """Notes what a cheap look has shown: whether to come back at once."""
        now_s = self._clock.monotonic()
        heartbeats, self._newest = self._newest, (look.heartbeats, look.newest)
        is_due = self._next_due_ms is not None and self._next_due_ms <= self._server_ms(now_s)
        worth = is_due or heartbeats != self._newest or self._take_over.is_due(now_s)
        worth |= any(ready or self._reader.has_news(queue, late) for queue, (ready, late) in look.lengths.items())
        self._come_back(worth, now_s)

    def _look_around(self, trip: Trip, queues: Sequence[str], now_s: float, *, is_full: bool) -> bool:
        """Learns from a trip what it can; returns whether to come back at once."""
        self._newest = self._newest or (0, b"")
        again = is_full
        try:
            self._take_over.observe(trip.heartbeats, trip.now_ms, now_s)
            again |= self._reader.read(trip.states, now_s)
            again |= self._take_over.step(queues, now_s)
        except BrokerError as e:  # the trip itself has been made
            logger.debug("Dramatiq's layout was not read to its end: %s", e)
        due = [self._reader.first_due_ms, *(state.next_due_ms for state in trip.states.values())]
        self._next_due_ms = min([due_ms for due_ms in due if due_ms is not None], default=None)
        self._come_back(again, now_s)
        return again

    def _come_back(self, at_once: bool, now_s: float) -> None:
        self._is_worth = at_once
        self._look_at = -math.inf if at_once else self._next_look(now_s)

    def _next_look(self, now_s: float) -> float:
        is_busy = self._take_over.heartbeats.is_fresh(now_s)
        wait_s = BUSY_LOOK_S if is_busy else IDLE_LOOK_S
        if self._next_due_ms is not None:
            wait_s = min(wait_s, max(0.0, (self._next_due_ms + 1 - self._server_ms(now_s)) / 1000))
        return now_s + wait_s

    # --- settling

    def _plan(self, settle: Sequence[Settlement]) -> _Plan:
        plan = _Plan([], [], [], [])
        keeps = bool(settle) and self.keeps()
        for s in settle:
            token: Token = s.delivery.token
            if self._held.get((token.place, token.id)) != token.number:
                plan.lost.append(s)
            elif (step := self._step(s, token, keeps)) is None:
                plan.foreign.append(s)
            else:
                plan.steps.append(step)
                plan.settlements.append(s)
        return plan

    def _step(self, s: Settlement, token: Token, keeps: bool) -> Step | None:
        """What a settlement is in Dramatiq's words; None if it has none."""
        place, id_ = token.place, token.id
        if s.verdict is Verdict.RETRY and s.retry is not None and keeps and (self._wire or not s.push):
            if s.writes:
                self._write(s.writes)
            return Step("done", place, id_, [enqueued(envelope) for envelope in (s.retry, *s.push)])
        if not self._wire and (s.writes or s.push or s.park is not None):
            return None
        pushes = [enqueued(envelope) for envelope in s.push]
        if s.verdict is Verdict.ACK:
            return Step("done", place, id_, pushes)
        if s.verdict is Verdict.DEAD:
            return Step("dead", place, id_, pushes) if self._wire else None
        if s.verdict is Verdict.RELEASE and s.due_ms is None:
            return Step("back", place, id_, pushes)
        if s.verdict is Verdict.RELEASE and keeps:
            later = Envelope(place.queue, id_, s.delivery.body, due_ms=s.due_ms)
            return Step("done", place, id_, [enqueued(later, anew=True), *pushes])
        return None

    def _sort_out(self, plan: _Plan, found: Sequence[bool]) -> tuple[list[Settlement], list[Settlement]]:
        settled: list[Settlement] = []
        lost = plan.lost
        for s, is_found in zip(plan.settlements, found, strict=True):
            token: Token = s.delivery.token
            (settled if is_found or token in self._unanswered else lost).append(s)
            self._forget(token)
        return settled, lost

    def _forget(self, token: Token) -> None:
        self._held.pop((token.place, token.id), None)
        self._unanswered.discard(token)

    def move(self, foreign: Sequence[Settlement], our_owner: str) -> list[bool]:
        """Moves claims into our own layout, as claimed by ``our_owner``; returns which of them were still ours.

        Raises:
          BrokerError: It may be tried again.
        """
        tokens: list[Token] = [s.delivery.token for s in foreign]
        if not tokens:
            return []
        try:
            there = self._layout.adopt(self.name, [(token.place, token.id) for token in tokens], our_owner)
        except BrokerError:
            self._unanswered.update(tokens)
            raise
        moved = [is_there or token in self._unanswered for is_there, token in zip(there, tokens, strict=True)]
        for token in tokens:
            self._forget(token)
        return moved

    # --- the end

    def close(self) -> None:
        """Puts back what was claimed and not settled.

        Raises:
          BrokerError: Then others do so when this process seems to be dead.
        """
        steps = [Step("back", place, id_) for place, id_ in self._held]
        if steps:
            self._layout.trip(self.name, steps, now_ms=self._now_ms())
        self._held.clear()
        if self._beat_at > -math.inf and not self._is_unsure:
            self._layout.forget(self.name)


def enqueued(envelope: Envelope, *, anew: bool = False) -> Enqueued:
    """An envelope as Dramatiq would have enqueued it.

    Parameters:
      envelope: What is pushed. A body that does not say its storage id as Dramatiq's do is written anew.
      anew: Write the body anew in any case.
    """
    place = Place(envelope.queue, envelope.due_ms is not None)
    body = envelope.body
    if anew or b'"redis_message_id":"' + envelope.id.encode() + b'"' not in body:
        try:
            body = rewritten(body, envelope.id, place, envelope.due_ms)
        except DecodeError:  # it goes as it is, for whoever can read it
            place = Place(envelope.queue)
    return Enqueued(place, envelope.id, body, envelope.due_ms or 0)
