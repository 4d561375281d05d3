"""The contract of what travels: operations with settlements and pushes, and messages that are parked."""

from __future__ import annotations

import threading
import time

import pytest

from ...core.verdict import Verdict
from ...ports.admin import Counts
from ...ports.store import Bump, Get, LeaseRelease, LeaseTake, Put, Store
from ...ports.transport import MAX_TRIP, Delivery, Envelope, Settlement, Transport
from ..clock import ManualClock
from .kit import DEADLINE_S, ack, bodies, claim, claim_one, consumer_of, envelope, envelopes, nothing_comes, settle
from .store_kit import StoreKit, do, needs

VERDICTS = [Verdict.ACK, Verdict.DEAD, Verdict.RETRY, Verdict.RELEASE]


class TripsContract(StoreKit):
    """Broker and store as one engine."""

    def test_the_transport_says_so(self, store: Store, transport: Transport) -> None:
        """A transport that a store is one with declares it, and the store knows it."""
        assert transport.features.store
        assert store.is_one_with(transport)
        assert not store.is_one_with(object())

    # Operations that travel

    @pytest.mark.parametrize("verdict", VERDICTS)
    def test_a_settlement_writes(self, store: Store, transport: Transport, verdict: Verdict) -> None:
        """Whatever becomes of a message, what its settlement writes is done with it, in order."""
        transport.push(envelopes(b"1"))
        consumer = consumer_of(transport)
        instead = envelope(b"again") if verdict is Verdict.RETRY else None
        writes = (Put("r", b"first"), Put("r", b"last"), Bump("n"), Put("s", b"x"))
        settlement = Settlement(claim_one(consumer), verdict, retry=instead, writes=writes)
        assert settle(consumer, settlement).settled == [settlement]
        assert store.apply([Get("r"), Get("n"), Get("s")]) == [b"last", 1, b"x"]

    def test_a_thousand_settlements_write(self, store: Store, transport: Transport) -> None:
        """A trip may carry a thousand results."""
        transport.push(envelopes(*(b"%d" % number for number in range(MAX_TRIP))))
        consumer = consumer_of(transport)
        held = claim(consumer, MAX_TRIP)
        settle(consumer, *(ack(delivery, writes=(Put(f"r{delivery.body!r}", delivery.body),)) for delivery in held))
        assert store.apply([Get(f"r{delivery.body!r}") for delivery in held]) == bodies(held)

    def test_a_lost_message_writes_nothing(self, store: Store, transport: Transport) -> None:
        """What would be written for a message that is not held is dropped; the rest of the trip is not."""
        transport.push(envelopes(b"1", b"2"))
        consumer, stranger = consumer_of(transport), consumer_of(transport)
        first, second = claim_one(consumer), claim_one(stranger)
        lost = ack(first, envelope(b"pushed"), writes=(Put("r", b"lost"), Bump("n")))
        answer = settle(stranger, lost, ack(second, writes=(Put("o", b"other"),)))
        assert [s.delivery for s in answer.lost] == [first]
        assert store.apply([Get("r"), Get("n"), Get("o")]) == [None, None, b"other"]
        assert nothing_comes(stranger)
        settle(consumer, ack(first, writes=(Put("r", b"in time"),)))
        assert do(store, Get("r")) == b"in time"

    def test_a_refused_settlement_writes_nothing(self, store: Store, transport: Transport) -> None:
        """What can never be done takes all of its settlement along, and nothing of the others'."""
        limit = store.features.max_value
        if limit is None or limit > 2**26:
            pytest.skip("the store takes values of any size that fits into a test")
        transport.push(envelopes(b"1", b"2"))
        consumer = consumer_of(transport)
        first, second = claim(consumer, 2)
        too_large = ack(first, envelope(b"pushed"), writes=(Put("a", b"1"), Put("b", b"x" * (limit + 1))))
        answer = settle(consumer, too_large, ack(second, writes=(Put("c", b"2"),)))
        assert [s for s, _ in answer.refused] == [too_large]
        assert store.apply([Get("a"), Get("b"), Get("c")]) == [None, None, b"2"]
        assert nothing_comes(consumer)
        assert settle(consumer, ack(first)).settled

    def test_a_repeated_trip_writes_once(self, store: Store, transport: Transport) -> None:
        """A trip that is made again because its answer was lost does nothing twice."""
        transport.push(envelopes(b"1"))
        consumer = consumer_of(transport)
        settlement = ack(claim_one(consumer), writes=(Bump("n"),))
        assert settle(consumer, settlement).settled == [settlement]
        assert settle(consumer, settlement).settled == [settlement]
        assert do(store, Get("n")) == 1

    def test_a_push_writes(self, store: Store, transport: Transport) -> None:
        """What an envelope carries is done with its push: alone, among others, in a settlement, as a retry."""
        transport.push([_marked("1")])
        transport.push([envelope(b"x"), _marked("2"), _marked("3")])
        consumer = consumer_of(transport)
        first, second, third, _ = claim(consumer, 4)
        settle(consumer, ack(first, _marked("4")), Settlement(second, Verdict.RETRY, retry=_marked("5")), ack(third))
        assert store.apply([Get(f"m{number}") for number in "12345"]) == [b"pending"] * 5

    # Parking

    def test_who_is_parked_waits_for_the_slot(self, store: Store, transport: Transport) -> None:
        """A parked message cannot be claimed until the slot is given back; then it has the slot already."""
        needs(store, "leases")
        do(store, LeaseTake("a", "holder", 1, 60_000))
        transport.push(envelopes(b"1"))
        consumer = consumer_of(transport)
        settle(consumer, _park(claim_one(consumer)))
        assert nothing_comes(consumer)
        do(store, LeaseRelease("a", "holder"))
        again = claim_one(consumer)
        assert (again.body, again.attempt) == (b"1", 2)
        assert not do(store, LeaseTake("a", "newcomer", 1, 60_000)).fence
        assert do(store, _slot_of(again)).fence

    def test_a_slot_that_is_free_by_now(self, store: Store, transport: Transport) -> None:
        """If the slot was given back before the refused message was parked, nothing is lost: it comes at once."""
        needs(store, "leases")
        do(store, LeaseTake("a", "holder", 1, 60_000))
        transport.push(envelopes(b"1"))
        consumer = consumer_of(transport)
        refused = claim_one(consumer)
        do(store, LeaseRelease("a", "holder"))
        settle(consumer, _park(refused))
        assert claim_one(consumer).body == b"1"
        assert not do(store, LeaseTake("a", "newcomer", 1, 60_000)).fence

    def test_first_come_first_served(self, store: Store, transport: Transport) -> None:
        """Each slot that is given back wakes one message, in the order in which they were parked, before newcomers."""
        needs(store, "leases")
        do(store, LeaseTake("a", "holder", 1, 60_000))
        transport.push(envelopes(b"1", b"2", b"3"))
        consumer = consumer_of(transport)
        first, second, third = claim(consumer, 3)
        settle(consumer, _park(second))
        settle(consumer, _park(third), _park(first))
        do(store, LeaseRelease("a", "holder"))
        order = []
        for _ in range(3):
            (delivery,) = consumer.exchange((), MAX_TRIP).deliveries
            assert not do(store, LeaseTake("a", "newcomer", 1, 60_000)).fence
            order.append(delivery.body)
            settle(consumer, ack(delivery, writes=(LeaseRelease("a", delivery.id),)))
        assert order == [b"2", b"3", b"1"]
        assert do(store, LeaseTake("a", "newcomer", 1, 60_000)).fence

    def test_the_end_of_a_slot_wakes(self, store: Store, transport: Transport, clock: ManualClock) -> None:
        """When a holder dies, the first in line has its slot at the end of the TTL."""
        needs(store, "leases")
        do(store, LeaseTake("a", "dead", 1, 100))
        transport.push(envelopes(b"1", b"2"))
        consumer = consumer_of(transport)
        first, second = claim(consumer, 2)
        settle(consumer, _park(first, ttl_ms=50), _park(second))
        clock.advance_ms(99)
        assert nothing_comes(consumer)
        clock.advance_ms(1)
        assert bodies(claim(consumer, 1)) == [b"1"]
        assert nothing_comes(consumer)
        clock.advance_ms(50)
        assert bodies(claim(consumer, 1)) == [b"2"]

    def test_slots_that_end_at_different_times(self, store: Store, transport: Transport, clock: ManualClock) -> None:
        """Each slot ends at its own time, however long those last that were taken before it."""
        needs(store, "leases")
        store.apply([LeaseTake("a", "long", 2, 60_000), LeaseTake("a", "short", 2, 100)])
        transport.push(envelopes(b"1"))
        consumer = consumer_of(transport)
        settle(consumer, _park(claim_one(consumer), limit=2))
        clock.advance_ms(100)
        assert claim_one(consumer).body == b"1"

    def test_several_slots(self, store: Store, transport: Transport) -> None:
        """Hundreds that wait for three slots are claimed twice each: once to be refused, once to run."""
        needs(store, "leases")
        count = 120
        transport.push(envelopes(*(b"%d" % number for number in range(count))))
        consumer = consumer_of(transport)
        claims = 0
        running: list[Delivery] = []
        done: list[bytes] = []
        while len(done) < count:
            settlements = []
            for delivery in consumer.exchange((), 25).deliveries:
                claims += 1
                if do(store, _slot_of(delivery, limit=3)).fence:
                    running.append(delivery)
                else:
                    settlements.append(_park(delivery, limit=3))
            assert len(running) <= 3
            if running:
                finished = running.pop(0)
                done.append(finished.body)
                settlements.append(ack(finished, writes=(LeaseRelease("a", finished.id),)))
            settle(consumer, *settlements)
        assert sorted(done) == sorted(b"%d" % number for number in range(count))
        assert claims <= 2 * count

    def test_a_raised_limit_lets_the_line_in_first(self, store: Store, transport: Transport) -> None:
        """Who knows of more slots than the line does lets the line have them first."""
        needs(store, "leases")
        do(store, LeaseTake("a", "holder", 1, 60_000))
        transport.push(envelopes(b"1"))
        consumer = consumer_of(transport)
        settle(consumer, _park(claim_one(consumer)))
        assert not do(store, LeaseTake("a", "newcomer", 2, 60_000)).fence
        assert claim_one(consumer).body == b"1"
        assert do(store, LeaseTake("a", "newcomer", 3, 60_000)).fence

    def test_a_lost_message_is_not_parked(self, store: Store, transport: Transport) -> None:
        """Who does not hold a message any more parks nothing, and takes no slot for it."""
        needs(store, "leases")
        transport.push(envelopes(b"1"))
        consumer, stranger = consumer_of(transport), consumer_of(transport)
        delivery = claim_one(consumer)
        assert settle(stranger, _park(delivery)).lost
        assert do(store, LeaseTake("a", "other", 1, 100)).fence
        assert settle(consumer, ack(delivery)).settled

    def test_the_parked_are_counted_and_purged(self, store: Store, transport: Transport) -> None:
        """Parked messages count as delayed; if they are purged, the next slot passes them over."""
        needs(store, "leases")
        do(store, LeaseTake("a", "holder", 1, 60_000))
        transport.push([*envelopes(b"1"), envelope(b"2", "other")])
        consumer = consumer_of(transport, "default", "other")
        settle(consumer, *map(_park, claim(consumer, 2)))
        admin = transport
        assert admin.counts(["default"]) == {"default": Counts(delayed=1)}  # type: ignore[attr-defined]  # an Admin, too
        assert admin.purge("default") == 1  # type: ignore[attr-defined]  # an Admin, too
        do(store, LeaseRelease("a", "holder"))
        assert bodies(claim(consumer, 1)) == [b"2"]

    def test_a_wait_ends_when_a_slot_is_given_back(self, live_store: Store) -> None:
        """Who waits for messages is woken when a parked one becomes ready."""
        needs(live_store, "leases")
        transport = self._transport(live_store)
        do(live_store, LeaseTake("a", "holder", 1, 600_000))
        transport.push(envelopes(b"1"))
        consumer = consumer_of(transport)
        settle(consumer, _park(claim_one(consumer)))
        helper = threading.Timer(0.05, lambda: do(live_store, LeaseRelease("a", "holder")))
        helper.start()
        assert claim(consumer, 1, within_s=DEADLINE_S)[0].body == b"1"
        helper.join()

    def test_a_wait_ends_when_a_slot_ends(self, live_store: Store) -> None:
        """Who waits for messages waits no longer than until the slot of a dead holder ends."""
        needs(live_store, "leases")
        transport = self._transport(live_store)
        consumer = consumer_of(transport)
        quickest_s = DEADLINE_S
        for turn in "12345":
            do(live_store, LeaseTake(turn, "dead", 1, 100))
            transport.push(envelopes(b"1"))
            delivery = claim_one(consumer)
            settle(consumer, Settlement(delivery, Verdict.RELEASE, park=LeaseTake(turn, delivery.id, 1, 60_000)))
            started_s = time.monotonic()
            while not (found := consumer.exchange((), 1).deliveries):
                consumer.wait(DEADLINE_S)
            quickest_s = min(quickest_s, time.monotonic() - started_s)
            settle(consumer, ack(found[0]))
            if quickest_s < 0.6:  # a slow machine may be slow once
                return
        raise AssertionError(f"a slot of 0.1 s was waited for {quickest_s} s at the least")


def _marked(number: str) -> Envelope:
    return Envelope("default", number, number.encode(), writes=(Put(f"m{number}", b"pending"),))


def _slot_of(delivery: Delivery, limit: int = 1, ttl_ms: int = 60_000) -> LeaseTake:
    return LeaseTake("a", delivery.id, limit, ttl_ms)


def _park(delivery: Delivery, limit: int = 1, ttl_ms: int = 60_000) -> Settlement:
    return Settlement(delivery, Verdict.RELEASE, park=_slot_of(delivery, limit, ttl_ms))
