"""Settling on a broker that can change no message: what replaces one is published and confirmed first, and only then is
the old one acknowledged.

So there may be two for a moment, and one start too many if somebody dies in it; none is ever lost. The publications
leave by another connection, which the broker stops when it runs short of memory; acknowledgements go on meanwhile.
Whether a publication arrived is known some trips later: until then its settlement is open.

A settlement whose token belongs to an earlier channel is never sent: the number may be another message by now. It is
lost, and counted.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from time import monotonic
from typing import Any

import msgspec

from ... import failpoints
from ...backoff import full_jitter_s
from ...core.verdict import Verdict
from ...errors import BrokerError, MessageTooLarge
from ...logging import get_logger
from ...ports.checks import check_park
from ...ports.transport import Delivery, Envelope, Exchange, Incident, Settlement
from .errors import QueueMismatch
from .line import Line
from .reading import Past, short, with_incident
from .wire import Meta, Publication, priority_of, read

# Looking a member up takes longer than all else that is done for a message that succeeded.
_ACK = Verdict.ACK
#: Errors of a publication that no waiting mends. That a queue takes nothing now is none: a quorum queue that was just
#: made refuses what comes before it is ready.
_PERMANENT = (MessageTooLarge, QueueMismatch)
#: How many trips that settled something are remembered, in case that one is made again.
_REMEMBERED_TRIPS = 4
#: What a header may hold, in bytes: it has to fit into one frame of 128 KiB.
MAX_HEADER = 80_000

logger = get_logger(__name__)


class Open:
    """A message that is not acknowledged before its publications are confirmed.

    Parameters:
      tag: Its delivery tag.
      publications: What is not confirmed yet.
      settlement: Whose it is; None for one that the engine itself moves.
    """

    __slots__ = ("publications", "requeues", "settlements", "tag")

    def __init__(self, tag: int, publications: Sequence[Publication], settlement: Settlement | None) -> None:
        self.tag = tag
        self.publications = publications
        #: The same one may be asked for again, by a trip whose answer was lost.
        self.settlements = [] if settlement is None else [settlement]
        #: True if the message itself goes back into its queue then.
        self.requeues = False


class Settler:
    """Owned by its consumer.

    Parameters:
      transport: Has the publisher, the routes and the clock.
      line: The channel to settle on.
      wake: Called by any thread when a publication is confirmed.
      returned: Called with each message that goes back into its queue as it is.
    """

    def __init__(
        self, transport: Any, line: Line, wake: Callable[[], None], returned: Callable[[Delivery], object]
    ) -> None:
        self._transport = transport
        self._line = line
        self._wake = wake
        self._returned = returned
        self._settled: list[Settlement] = []
        self._lost: list[Settlement] = []
        self._refused: list[tuple[Settlement, Exception]] = []
        self._remembered: deque[Sequence[Settlement]] = deque(maxlen=_REMEMBERED_TRIPS)
        self._open: dict[int, Open] = {}
        self._parcels: list[tuple[Any, list[Open]]] = []
        self._later: list[tuple[float, list[Open]]] = []
        self._failures = 0
        #: How many settlements came with a token of an earlier channel.
        self.stale = 0
        self._stale_told = 0

    @property
    def is_busy(self) -> bool:
        """Whether something was published and is not known to have arrived."""
        return bool(self._open)

    def answers(self, deliveries: Sequence[Delivery], *, more: bool, reset: bool) -> Exchange:
        """What a trip answers: all that is known since the last one."""
        settled, lost, refused = self._settled, self._lost, self._refused
        self._settled, self._lost, self._refused = [], [], []
        if self.stale > self._stale_told:
            count, self._stale_told = self.stale - self._stale_told, self.stale
            text = "%d messages were settled after their connection had ended and are handed out again. (stale_ack: %d)"
            logger.warning(text, count, self.stale)
        if settled:
            self._remembered.append(settled)
        return Exchange(deliveries, settled, lost, refused, more, reset)

    @property
    def has_answers(self) -> bool:
        """Whether there is something to answer."""
        return bool(self._settled or self._lost or self._refused)

    # --- a trip's settlements

    def settle(self, settle: Sequence[Settlement]) -> None:
        """Applies what can be applied at once, and opens the rest."""
        epoch, unacked = self._line.epoch, self._line.unacked
        opened = self._open
        done: list[int] = []
        others: list[Settlement] = []
        settled = self._settled
        for s in settle:
            owner, tag = s.delivery.token
            if owner is not epoch or tag not in unacked:
                self._missing(s, is_stale=owner is not epoch)
            elif opened and tag in opened:
                self._again(opened[tag], s)
            elif s.verdict is _ACK and not s.push and not s.writes:
                del unacked[tag]
                done.append(tag)
                settled.append(s)
            else:
                others.append(s)
        if done:
            self._line.ack(done)
        if others:
            self._settle_others(others)

    def _missing(self, s: Settlement, *, is_stale: bool) -> None:
        token = s.delivery.token
        if any(token == known.delivery.token for trip in self._remembered for known in trip) or any(
            token == known.delivery.token for known in self._settled
        ):
            self._settled.append(s)
            return
        self._lost.append(s)
        if is_stale and s.verdict is not Verdict.RELEASE:
            self.stale += 1

    @staticmethod
    def _again(entry: Open, s: Settlement) -> None:
        if not any(known is s for known in entry.settlements):
            entry.settlements.append(s)

    def _settle_others(self, others: Sequence[Settlement]) -> None:
        opened: list[Open] = []
        for s in others:
            tag = s.delivery.token[1]
            if tag not in self._line.unacked or tag in self._open:  # settled twice in this very trip
                self.settle((s,))
                continue
            try:
                self._check(s)
            except (ValueError, MessageTooLarge) as e:
                self._refused.append((s, e))
                continue
            entry = Open(tag, self._publications(s), s)
            entry.requeues = s.verdict is Verdict.RELEASE and not self._replaces(s)
            if not entry.publications:
                self._apply(entry)
                continue
            self._open[tag] = entry
            opened.append(entry)
        self._submit([entry for entry in opened if self._is_open(entry)])

    def _is_open(self, entry: Open) -> bool:
        """Whether it is still to be acknowledged: its channel may have ended while another one was applied."""
        return self._open.get(entry.tag) is entry

    def _check(self, s: Settlement) -> None:
        """Raises for what can never be applied here."""
        check_park(s)
        if s.verdict is Verdict.RETRY and s.retry is None:
            raise ValueError("A RETRY settlement carries the envelope to be retried.")
        envelopes = s.push if s.retry is None else (*s.push, s.retry)
        if s.park is not None or s.writes or any(envelope.writes for envelope in envelopes):
            raise ValueError("RabbitMQ has no store that is one with it.")
        for envelope in envelopes:
            self._transport.check_size(envelope)

    # --- what is published

    def move(self, moved: Mapping[int, Publication]) -> None:
        """Publishes what takes the place of messages, by their tags, and acknowledges them then: for what is not handed
        out here."""
        entries = [Open(tag, [publication], None) for tag, publication in moved.items()]
        self._open.update((entry.tag, entry) for entry in entries)
        self._submit(entries)

    def _past(self, delivery: Delivery) -> Past:
        kept = self._line.unacked[delivery.token[1]]
        return kept if isinstance(kept, Past) else Past(kept, read(kept)[1])

    def _replaces(self, s: Settlement) -> bool:
        """Whether a released message is sent anew: only so it can change."""
        return s.due_ms is not None or s.error is not None or s.delivery.crashes > self._past(s.delivery).meta.crashes

    def _publications(self, s: Settlement) -> list[Publication]:
        found: list[Publication] = []
        if s.verdict is Verdict.RETRY and s.retry is not None:
            failpoints.hit("retry.before_schedule")
            found.append(self._route(s.retry, self._meta(s, attempt=0)))
        elif s.verdict is Verdict.DEAD:
            failpoints.hit("dlq.before")
            found.append(self._dead(s))
        elif s.verdict is Verdict.RELEASE and self._replaces(s):
            found.append(self._released(s))
        found += [self._route(envelope) for envelope in s.push]
        return found

    def _route(self, envelope: Envelope, meta: Meta | None = None) -> Publication:
        now_ms = self._transport.clock.now_ms()
        publication: Publication = self._transport.routes.of(envelope, now_ms, meta or Meta())
        return publication

    def _dead(self, s: Settlement) -> Publication:
        d = s.delivery
        past = self._past(d)
        meta = Meta(d.attempt, d.crashes, past.history, s.error, self._transport.clock.now_ms())
        publication: Publication = self._transport.routes.dead(d.queue, d.id, d.body, fitting(meta))
        return publication

    def _released(self, s: Settlement) -> Publication:
        d = s.delivery
        delay_ms = 0 if s.due_ms is None else max(0, s.due_ms - self._transport.clock.now_ms())
        meta = self._meta(s, attempt=d.attempt)
        priority = priority_of(self._past(d).properties)
        publication: Publication = self._transport.routes.to(
            d.queue, d.id, d.body, meta, priority=priority, delay_ms=delay_ms
        )
        return publication

    def _meta(self, s: Settlement, *, attempt: int) -> Meta:
        """What the next copy carries along: its crashes, and what befell it, this attempt included."""
        d = s.delivery
        history = self._past(d).history
        if s.error is not None or s.verdict is Verdict.RETRY:
            incident = Incident(self._transport.clock.now_ms(), d.attempt, s.error)
            history = with_incident(history, incident)
        return fitting(Meta(attempt, d.crashes, history))

    # --- parcels

    def _submit(self, entries: list[Open]) -> None:
        if entries:
            publications = [publication for entry in entries for publication in entry.publications]
            self._parcels.append((self._transport.publisher.submit(publications, self._wake), entries))

    def collect(self) -> float | None:
        """Settles what is confirmed by now. Returns the seconds until something is to be tried again, if anything."""
        if not self._open:
            return None
        parcels, self._parcels = self._parcels, []
        for parcel, entries in parcels:
            if parcel.done:
                self._finish(parcel, entries)
            elif any(map(self._is_open, entries)):
                self._parcels.append((parcel, entries))
            else:
                parcel.cancel()
        return self._try_again()

    def _finish(self, parcel: Any, entries: list[Open]) -> None:
        failed = set(parcel.failed) if parcel.error is not None else ()
        start = 0
        again: list[Open] = []
        for entry in entries:
            end = start + len(entry.publications)
            left = [entry.publications[i - start] for i in range(start, end) if i in failed] if failed else []
            start = end
            if not self._is_open(entry):
                continue
            if left:
                entry.publications = left
                again.append(entry)
            else:
                self._confirmed(entry)
        if again:
            self._failed(again, parcel.error)

    def _failed(self, entries: list[Open], error: BrokerError) -> None:
        """What can never be published is found by publishing each by itself; what may work later is tried later."""
        if isinstance(error, _PERMANENT):
            if len(entries) == 1:
                self._refuse(entries[0], error)
            for entry in entries if len(entries) > 1 else ():
                self._submit([entry])
            return
        delay_s = full_jitter_s(self._failures)
        log = logger.debug if self._failures else logger.warning  # there may be hundreds
        log("What settles %d messages was not published, trying again: %s", len(entries), error)
        self._failures += 1
        self._later.append((monotonic() + delay_s, entries))

    def _try_again(self) -> float | None:
        now_s = monotonic()
        later, self._later = self._later, []
        for at_s, entries in later:
            if at_s <= now_s:
                self._submit([entry for entry in entries if self._is_open(entry)])
            else:
                self._later.append((at_s, entries))
        return min((at_s for at_s, _ in self._later), default=now_s) - now_s if self._later else None

    def _refuse(self, entry: Open, error: BrokerError) -> None:
        del self._open[entry.tag]
        dies = not entry.settlements or entry.settlements[0].verdict is Verdict.DEAD
        if dies:  # the broker's own way to the dead letters remains
            del self._line.unacked[entry.tag]
            self._line.reject(entry.tag)
            self._settled += entry.settlements
            logger.error("A dead letter loses what is known of its end: %s", error)
            return
        self._refused += [(s, error) for s in entry.settlements]

    def _confirmed(self, entry: Open) -> None:
        self._failures = 0
        del self._open[entry.tag]
        failpoints.hit("retry.mid")
        self._apply(entry)

    def _apply(self, entry: Open) -> None:
        del self._line.unacked[entry.tag]
        s = entry.settlements[0] if entry.settlements else None
        if s is not None and s.verdict is Verdict.RELEASE and s.due_ms is None:
            epoch = self._line.epoch
            self._line.stop(s.delivery.queue)  # else it comes straight back to us
            if self._line.epoch is not epoch:  # it was handed out again
                self._lose(entry)
                return
        if entry.requeues and s is not None:
            self._returned(s.delivery)
            self._line.give_back(entry.tag)
        else:
            self._line.ack([entry.tag])
        self._settled += entry.settlements

    def forget(self) -> None:
        """The channel has ended: what is open is lost, and what was not published need not be."""
        for parcel, _ in self._parcels:
            parcel.cancel()
        for entry in self._open.values():
            self._lose(entry)
        self._open.clear()
        self._parcels.clear()
        self._later.clear()

    def _lose(self, entry: Open) -> None:
        """It is handed out again. For what was only given back that is nothing too late."""
        self._lost += entry.settlements
        self.stale += sum(s.verdict is not Verdict.RELEASE for s in entry.settlements)


def fitting(meta: Meta) -> Meta:
    """The metadata as a header has room for it: of the history, as much of its end as fits."""
    history = tuple(map(short, meta.history))
    sizes = [len(msgspec.json.encode(incident)) for incident in history]
    room = MAX_HEADER - (len(msgspec.json.encode(meta.error)) if meta.error is not None else 0)
    while sizes and sum(sizes) > room:
        del sizes[0]
    return msgspec.structs.replace(meta, history=history[len(history) - len(sizes) :])
