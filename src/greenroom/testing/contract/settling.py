"""The contract of settling: the four verdicts, each once, by nobody but the owner."""

from __future__ import annotations

import pytest

from ...core.verdict import Verdict
from ...errors import BrokerError
from ...ports.transport import MAX_TRIP, Settlement, Transport
from ..clock import ManualClock
from .kit import (
    QUEUE,
    TransportKit,
    ack,
    bodies,
    claim,
    claim_one,
    consumer_of,
    dead,
    drain,
    drained,
    envelope,
    envelopes,
    needs_attempts,
    nobody_gets_any,
    nothing_comes,
    release,
    retry,
    settle,
)


class SettlingContract(TransportKit):
    """Verdicts, pushes within settlements, repeated trips, lost ownership, refusals."""

    # The verdicts

    def test_ack_deletes(self, transport: Transport) -> None:
        """An acked message is gone, also when its consumer closes."""
        transport.push(envelopes(b"1"))
        consumer = consumer_of(transport)
        settlement = ack(claim_one(consumer))
        assert settle(consumer, settlement).settled == [settlement]
        consumer.close()
        assert nobody_gets_any(transport)

    def test_dead_is_not_delivered_again(self, transport: Transport) -> None:
        """A dead letter does not come again, also when its consumer closes."""
        transport.push(envelopes(b"1"))
        consumer = consumer_of(transport)
        settlement = dead(claim_one(consumer))
        assert settle(consumer, settlement).settled == [settlement]
        consumer.close()
        assert nobody_gets_any(transport)

    def test_retry_replaces(self, transport: Transport) -> None:
        """A retry takes the place of the old message as a new one: behind what waits, attempt 1, not redelivered."""
        transport.push(envelopes(b"old", b"next"))
        consumer = consumer_of(transport)
        instead = envelope(b"new")
        settle(consumer, retry(claim_one(consumer), instead))
        following, again = claim(consumer, 2)
        assert (following.body, again.body) == (b"next", b"new")
        assert (again.id, again.attempt, again.redelivered) == (instead.id, 1, False)
        assert nothing_comes(consumer)

    def test_retry_with_a_due_time(self, transport: Transport, clock: ManualClock) -> None:
        """A delayed retry does not come before its due time."""
        if not transport.features.delay:
            pytest.skip("the engine knows no delays")
        transport.push(envelopes(b"old"))
        consumer = consumer_of(transport)
        settle(consumer, retry(claim_one(consumer), envelope(b"new", due_ms=clock.now_ms() + 10)))
        assert nothing_comes(consumer)
        clock.advance_ms(10)
        assert claim_one(consumer).body == b"new"

    def test_retry_into_another_queue(self, transport: Transport) -> None:
        """A retry may go to another queue, with another priority."""
        transport.push([envelope(b"old", "a")])
        consumer = consumer_of(transport, "a", "b")
        settle(consumer, retry(claim_one(consumer), envelope(b"new", "b", priority=-3)))
        got = claim_one(consumer)
        assert (got.queue, got.body) == ("b", b"new")

    def test_release_goes_back_to_where_it_stood(self, transport: Transport) -> None:
        """What is released at once comes before what was pushed after it, as a redelivery with the next attempt."""
        sent = envelopes(b"1", b"2", b"3")
        transport.push(sent)
        consumer = consumer_of(transport)
        first, second = claim(consumer, 2)
        settle(consumer, release(second), release(first))
        again = claim(consumer, 3)
        assert bodies(again) == [b"1", b"2", b"3"]
        assert [delivery.id for delivery in again] == [envelope.id for envelope in sent]
        if transport.features.counts_attempts:
            assert [delivery.attempt for delivery in again] == [2, 2, 1]
            assert [delivery.redelivered for delivery in again] == [True, True, False]
        else:
            assert all(delivery.attempt > 1 and delivery.redelivered for delivery in again[:2])

    def test_release_with_a_due_time(self, transport: Transport, clock: ManualClock) -> None:
        """What is released for later comes at that time, and then stands where it stood."""
        if not transport.features.delay:
            pytest.skip("the engine knows no delays")
        transport.push(envelopes(b"1", b"2"))
        consumer = consumer_of(transport)
        settle(consumer, release(claim_one(consumer), clock.now_ms() + 100))
        clock.advance_ms(99)
        second = claim_one(consumer)
        assert second.body == b"2"
        settle(consumer, release(second))
        clock.advance_ms(1)
        assert bodies(claim(consumer, 2)) == [b"1", b"2"]

    def test_release_keeps_the_priority(self, transport: Transport) -> None:
        """A released message keeps its priority."""
        if not transport.features.priority:
            pytest.skip("the engine knows no priorities")
        transport.push([envelope(b"low", priority=5), envelope(b"high", priority=-5)])
        consumer = consumer_of(transport)
        settle(consumer, *(release(delivery) for delivery in claim(consumer, 2)))
        assert bodies(claim(consumer, 2)) == [b"high", b"low"]

    def test_attempts_count_claims(self, transport: Transport) -> None:
        """Every claim of a message counts, whoever makes it."""
        needs_attempts(transport)
        transport.push(envelopes(b"1"))
        for expected in range(1, 6):
            consumer = consumer_of(transport)
            delivery = claim_one(consumer)
            assert (delivery.attempt, delivery.redelivered) == (expected, expected > 1)
            settle(consumer, release(delivery))
            consumer.close()

    # Trips

    def test_settle_and_claim_in_one_trip(self, transport: Transport) -> None:
        """A trip settles first, then claims: what a settlement pushes can be claimed at once."""
        transport.push(envelopes(b"1"))
        consumer = consumer_of(transport)
        settlement = ack(claim_one(consumer), envelope(b"2"))
        answer = consumer.exchange([settlement], 10)
        assert bodies([*answer.deliveries, *claim(consumer, 1 - len(answer.deliveries))]) == [b"2"]

    def test_all_verdicts_in_one_trip(self, transport: Transport) -> None:
        """A trip carries any mixture of verdicts, and every settlement is answered."""
        transport.push(envelopes(b"ack", b"dead", b"retry", b"release"))
        consumer = consumer_of(transport)
        one, two, three, four = claim(consumer, 4)
        trip = [ack(one), dead(two), retry(three, envelope(b"retried")), release(four)]
        answer = settle(consumer, *trip)
        assert sorted(answer.settled, key=trip.index) == trip
        assert bodies(claim(consumer, 2)) == [b"release", b"retried"]
        assert nothing_comes(consumer)

    def test_a_full_trip_of_retries(self, transport: Transport) -> None:
        """A trip of 1000 settlements that push as many messages is applied as a whole."""
        transport.push(envelopes(*(b"%d" % i for i in range(MAX_TRIP))))
        consumer = consumer_of(transport)
        trip = [retry(delivery, envelope(delivery.body + b"!")) for delivery in claim(consumer, MAX_TRIP)]
        assert len(settle(consumer, *trip).settled) == MAX_TRIP
        assert bodies(claim(consumer, MAX_TRIP)) == [b"%d!" % i for i in range(MAX_TRIP)]

    @pytest.mark.parametrize("verdict", list(Verdict))
    def test_pushes_travel_with_a_settlement(self, transport: Transport, verdict: Verdict) -> None:
        """Whatever the verdict, what a settlement pushes arrives, in its order and in its queues."""
        transport.push([envelope(b"old", "old")])
        consumer = consumer_of(transport, "old")
        instead = envelope(b"new", "old") if verdict is Verdict.RETRY else None
        push = (envelope(b"1", "next"), envelope(b"2", "other"), envelope(b"\xff", "next"))
        settlement = Settlement(claim_one(consumer), verdict, retry=instead, push=push)
        assert settle(consumer, settlement).settled == [settlement]
        assert drained(transport, "next") == [b"1", b"\xff"]
        assert drained(transport, "other") == [b"2"]

    # Once

    def test_settling_twice(self, transport: Transport) -> None:
        """A second settlement of the same delivery changes nothing and pushes nothing, whatever it says."""
        transport.push(envelopes(b"1"))
        consumer = consumer_of(transport)
        delivery = claim_one(consumer)
        settle(consumer, ack(delivery, envelope(b"push")))
        for second in (release(delivery), dead(delivery), retry(delivery, envelope(b"no")), ack(delivery, envelope())):
            answer = settle(consumer, second)
            assert not answer.refused
        assert drain(consumer) == [b"push"]

    def test_settling_twice_in_one_trip(self, transport: Transport) -> None:
        """Of two settlements of the same delivery in one trip only the first is applied."""
        transport.push(envelopes(b"1"))
        consumer = consumer_of(transport)
        delivery = claim_one(consumer)
        settle(consumer, ack(delivery, envelope(b"first")), retry(delivery, envelope(b"second"), envelope(b"third")))
        assert drain(consumer) == [b"first"]

    def test_a_trip_is_repeated_after_its_answer_was_lost(self, transport: Transport) -> None:
        """A trip that is repeated as it was gets the same answer, and nothing is applied or pushed twice."""
        transport.push(envelopes(b"ack", b"dead", b"retry", b"release"))
        consumer = consumer_of(transport)
        one, two, three, four = claim(consumer, 4)
        trip = [
            ack(one, envelope(b"pushed")),
            dead(two),
            retry(three, envelope(b"retried"), envelope(b"pushed too")),
            release(four),
        ]
        settle(consumer, *trip)
        for _ in range(2):
            answer = settle(consumer, *trip)
            assert sorted(answer.settled, key=trip.index) == trip
            assert not answer.lost
        assert drain(consumer) == [b"release", b"pushed", b"retried", b"pushed too"]

    def test_a_repeated_trip_leaves_a_later_claim_alone(self, transport: Transport) -> None:
        """A repeated release does not take the message from the one who claimed it since."""
        transport.push(envelopes(b"1"))
        first, second = consumer_of(transport), consumer_of(transport)
        settlement = release(claim_one(first))
        settle(first, settlement)
        taken = claim_one(second)
        assert settle(first, settlement).settled == [settlement]
        assert nothing_comes(first)
        assert settle(second, ack(taken)).settled

    def test_an_old_attempt_does_not_settle_a_new_one(self, transport: Transport) -> None:
        """Whoever claimed a message again cannot settle it by what the earlier attempt brought."""
        transport.push(envelopes(b"1"))
        consumer = consumer_of(transport)
        old = claim_one(consumer)
        settle(consumer, release(old))
        new = claim_one(consumer)
        settle(consumer, ack(old, envelope(b"no")))
        settle(consumer, release(new))
        assert drain(consumer) == [b"1"]

    # Ownership

    @pytest.mark.parametrize("verdict", list(Verdict))
    def test_only_the_owner_settles(self, transport: Transport, verdict: Verdict) -> None:
        """A settlement by another consumer is lost and changes nothing; the owner's still counts."""
        transport.push(envelopes(b"1"))
        owner, other = consumer_of(transport), consumer_of(transport)
        delivery = claim_one(owner)
        instead = envelope(b"no") if verdict is Verdict.RETRY else None
        foreign = Settlement(delivery, verdict, retry=instead, push=(envelope(b"no"),))
        assert settle(other, foreign).lost == [foreign]
        assert nothing_comes(other)
        mine = ack(delivery)
        assert settle(owner, mine).settled == [mine]
        assert nothing_comes(other)

    def test_a_loss_does_not_stop_the_rest(self, transport: Transport) -> None:
        """In a trip with settlements that are lost the others are applied."""
        transport.push(envelopes(b"1", b"2", b"3"))
        owner, other = consumer_of(transport), consumer_of(transport)
        first = claim_one(owner)
        second, third = claim(other, 2)
        trip = [ack(second), ack(first), ack(third)]
        answer = settle(other, *trip)
        assert answer.lost == [trip[1]]
        assert sorted(answer.settled, key=trip.index) == [trip[0], trip[2]]

    def test_what_a_dead_owner_held_goes_to_others(self, transport: Transport) -> None:
        """When an owner is taken for dead, others get its messages, as redeliveries; what it settles then is lost."""
        transport.push(envelopes(b"1", b"2"))
        dying = consumer_of(transport)
        held = claim(dying, 2)
        self.crash(transport, dying)
        heir = consumer_of(transport)
        taken = claim(heir, 2, within_s=self.recovery_s)
        assert bodies(taken) == [b"1", b"2"]
        assert [(delivery.attempt, delivery.redelivered) for delivery in taken] == [(2, True), (2, True)]
        late = [retry(delivery, envelope(b"no"), envelope(b"no")) for delivery in held]
        try:
            assert dying.exchange(late, 0).lost == late
        except BrokerError:
            pass  # a dead owner may find its connection closed
        assert len(settle(heir, *(ack(delivery) for delivery in taken)).settled) == 2
        assert nothing_comes(heir)

    # Refusals

    def test_what_can_never_be_applied_is_refused(self, transport: Transport) -> None:
        """A settlement that can never be applied comes back with the reason; the others go through, and the refused
        message can be settled otherwise."""
        transport.push(envelopes(b"1", b"2", b"3"))
        consumer = consumer_of(transport)
        first, second, third = claim(consumer, 3)
        bad = retry(second, self.unstorable(transport), envelope(b"no"))
        good = [ack(first, envelope(b"4")), retry(third, envelope(b"5"))]
        answer = settle(consumer, good[0], bad, good[1])
        assert sorted(answer.settled, key=good.index) == good
        assert [settlement for settlement, _ in answer.refused] == [bad]
        assert isinstance(answer.refused[0][1], Exception)
        assert settle(consumer, ack(second)).settled
        assert drain(consumer) == [b"4", b"5"]

    def test_a_push_that_can_never_be_kept_refuses_its_settlement(self, transport: Transport) -> None:
        """Where one push of a settlement cannot be kept, neither verdict nor other pushes are applied."""
        if not transport.features.transactional:
            pytest.skip("the engine is not transactional")
        transport.push(envelopes(b"1"))
        consumer = consumer_of(transport)
        delivery = claim_one(consumer)
        bad = ack(delivery, envelope(b"no"), self.unstorable(transport), envelope(b"no"))
        assert [settlement for settlement, _ in settle(consumer, bad).refused] == [bad]
        assert nothing_comes(consumer)
        settle(consumer, release(delivery))
        assert drain(consumer) == [b"1"]

    def test_settling_when_the_queue_is_paused(self, transport: Transport) -> None:
        """A pause stops claims, not settlements."""
        transport.push(envelopes(b"1"))
        consumer = consumer_of(transport)
        settlement = ack(claim_one(consumer))
        consumer.pause([QUEUE])
        assert settle(consumer, settlement).settled == [settlement]
