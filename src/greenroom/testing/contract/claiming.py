"""The contract of pushing and claiming: what comes, in which order, and not before when."""

from __future__ import annotations

import threading

import pytest

from ...errors import BrokerError
from ...ports.transport import MAX_TRIP, Transport
from ..clock import ManualClock
from .kit import (
    QUEUE,
    TransportKit,
    ack,
    bodies,
    claim,
    claim_one,
    consumer_of,
    drain,
    drained,
    envelope,
    envelopes,
    nobody_gets_any,
    nothing_comes,
)


class ClaimingContract(TransportKit):
    """Order, priority, delay, queues, batches and bodies."""

    # Order

    def test_first_in_first_out(self, transport: Transport) -> None:
        """Messages come in the order of their pushes, within a batch and from batch to batch."""
        transport.push(envelopes(b"1", b"2", b"3"))
        transport.push(envelopes(b"4"))
        transport.push(envelopes(b"5", b"6"))
        assert bodies(claim(consumer_of(transport), 6)) == [b"1", b"2", b"3", b"4", b"5", b"6"]

    def test_a_delivery_is_what_was_pushed(self, transport: Transport) -> None:
        """A delivery carries queue, id and body as they were pushed; it is the first attempt and never crashed."""
        sent = envelope(b"body", "some.queue-1")
        transport.push([sent])
        got = claim_one(consumer_of(transport, "some.queue-1"))
        assert (got.queue, got.id, got.body) == (sent.queue, sent.id, sent.body)
        assert (got.attempt, got.crashes, got.redelivered) == (1, 0, False)

    def test_no_more_than_the_limit(self, transport: Transport) -> None:
        """A trip claims no more than its limit, and says whether the queues hold more."""
        transport.push(envelopes(b"1", b"2", b"3", b"4"))
        consumer = consumer_of(transport)
        assert len(claim(consumer, 1)) == 1
        answer = consumer.exchange((), 2)
        assert len(answer.deliveries) <= 2
        assert answer.more
        claim(consumer, 3 - len(answer.deliveries))
        assert not consumer.exchange((), MAX_TRIP).more

    def test_a_message_is_claimed_once(self, transport: Transport) -> None:
        """What one consumer has claimed comes neither to it again nor to another."""
        transport.push(envelopes(b"1"))
        first, second = consumer_of(transport), consumer_of(transport)
        claim_one(first)
        assert nothing_comes(first)
        assert nothing_comes(second)

    def test_consumers_share_a_queue(self, transport: Transport) -> None:
        """Two consumers of a queue get different messages, and together all of them."""
        transport.push(envelopes(*(b"%d" % i for i in range(10))))
        first, second = consumer_of(transport), consumer_of(transport)
        found = claim(first, 3) + claim(second, 4) + claim(first, 3)
        assert sorted(bodies(found)) == [b"%d" % i for i in range(10)]

    # Priority

    def test_lower_priority_first(self, transport: Transport) -> None:
        """A lower number comes first; equal ones come in the order of their pushes."""
        if not transport.features.priority:
            pytest.skip("the engine knows no priorities")
        wanted = [(b"a", 5), (b"b", 0), (b"c", -1000), (b"d", 5), (b"e", 1000), (b"f", 0), (b"g", -1)]
        transport.push([envelope(body, priority=priority) for body, priority in wanted])
        got = bodies(claim(consumer_of(transport), len(wanted)))
        assert got == [b"c", b"g", b"b", b"f", b"a", b"d", b"e"]

    def test_one_claim_serves_all_queues_by_priority(self, transport: Transport) -> None:
        """One claim takes from all its queues in the order of priority, then of the pushes."""
        if not transport.features.priority:
            pytest.skip("the engine knows no priorities")
        transport.push([envelope(b"1", "a", priority=3), envelope(b"2", "b", priority=1)])
        transport.push([envelope(b"3", "c", priority=2), envelope(b"4", "a", priority=1)])
        consumer = consumer_of(transport, "a", "b", "c")
        assert bodies(claim(consumer, 2)) == [b"2", b"4"]
        assert bodies(claim(consumer, 2)) == [b"3", b"1"]

    def test_many_queues_are_merged(self, transport: Transport) -> None:
        """However messages are spread over queues and claims, they come in one order: by priority, then by push."""
        if not transport.features.priority:
            pytest.skip("the engine knows no priorities")
        sent = [envelope(b"%d" % i, "abcdefg"[i * i % 7], priority=i * 31 % 5) for i in range(200)]
        transport.push(sent)
        consumer = consumer_of(transport, *"gfedcba")
        got = [body for _ in range(20) for body in bodies(claim(consumer, 10))]
        assert got == [kept.body for kept in sorted(sent, key=lambda kept: kept.priority)]

    def test_a_later_push_of_lower_priority_overtakes(self, transport: Transport) -> None:
        """What is pushed later with a lower number comes before what waits already."""
        if not transport.features.priority:
            pytest.skip("the engine knows no priorities")
        transport.push([envelope(b"late", priority=1)])
        transport.push([envelope(b"soon", priority=-1)])
        assert bodies(claim(consumer_of(transport), 2)) == [b"soon", b"late"]

    # Delay

    def test_not_before_its_due_time(self, transport: Transport, clock: ManualClock) -> None:
        """A delayed message comes at its due time, not a millisecond sooner."""
        _needs_delay(transport)
        transport.push([envelope(b"1", due_ms=clock.now_ms() + 1000)])
        consumer = consumer_of(transport)
        clock.advance_ms(999)
        assert nothing_comes(consumer)
        clock.advance_ms(1)
        assert claim_one(consumer).body == b"1"

    def test_a_due_time_in_the_past(self, transport: Transport, clock: ManualClock) -> None:
        """A message whose due time has passed when it is pushed comes at once."""
        _needs_delay(transport)
        transport.push([envelope(b"1", due_ms=clock.now_ms() - 1), envelope(b"2", due_ms=clock.now_ms())])
        assert bodies(claim(consumer_of(transport), 2)) == [b"1", b"2"]

    def test_a_due_message_stands_where_it_was_pushed(self, transport: Transport, clock: ManualClock) -> None:
        """When it is due, a delayed message comes before what was pushed after it with the same priority."""
        _needs_delay(transport)
        now_ms = clock.now_ms()
        transport.push([envelope(b"1", due_ms=now_ms + 200), envelope(b"2", due_ms=now_ms + 100), envelope(b"3")])
        clock.advance_ms(300)
        assert bodies(claim(consumer_of(transport), 3)) == [b"1", b"2", b"3"]

    def test_delay_and_priority(self, transport: Transport, clock: ManualClock) -> None:
        """Among what is due the priority decides."""
        _needs_delay(transport)
        if not transport.features.priority:
            pytest.skip("the engine knows no priorities")
        due_ms = clock.now_ms() + 50
        transport.push([envelope(b"ready"), envelope(b"low", priority=1, due_ms=due_ms)])
        transport.push([envelope(b"high", priority=-1, due_ms=due_ms)])
        clock.advance_ms(50)
        assert bodies(claim(consumer_of(transport), 3)) == [b"high", b"ready", b"low"]

    def test_many_become_due_at_once(self, transport: Transport, clock: ManualClock) -> None:
        """When more become due than one trip promotes, the following trips bring the rest."""
        _needs_delay(transport)
        due_ms = clock.now_ms() + 10
        transport.push([envelope(b"%d" % i, due_ms=due_ms) for i in range(2500)])
        consumer = consumer_of(transport)
        assert nothing_comes(consumer)
        clock.advance_ms(10)
        assert bodies(claim(consumer, 2500)) == [b"%d" % i for i in range(2500)]

    # Queues

    def test_only_subscribed_queues(self, transport: Transport) -> None:
        """A consumer claims from the queues that it subscribed to, and from further ones as soon as it adds them."""
        transport.push([envelope(b"a", "a"), envelope(b"b", "b")])
        consumer = consumer_of(transport, "a")
        assert drain(consumer) == [b"a"]
        consumer.subscribe(["b"])
        assert drain(consumer) == [b"b"]

    def test_no_queue_no_message(self, transport: Transport) -> None:
        """A consumer without a subscription gets nothing."""
        transport.push(envelopes(b"1"))
        assert nothing_comes(transport.consumer("idle"))

    def test_pause(self, transport: Transport) -> None:
        """A paused queue is left alone until it is subscribed to again; the others go on."""
        transport.push([envelope(b"a", "a"), envelope(b"b", "b")])
        consumer = consumer_of(transport, "a", "b")
        consumer.pause(["a"])
        assert drain(consumer) == [b"b"]
        consumer.subscribe(["a"])
        assert drain(consumer) == [b"a"]

    def test_skip(self, transport: Transport) -> None:
        """Queues in ``skip`` are left out of this one trip."""
        transport.push([envelope(b"a", "a"), envelope(b"b", "b")])
        consumer = consumer_of(transport, "a", "b")
        answer = consumer.exchange((), MAX_TRIP, {"a"})
        assert bodies(answer.deliveries) == [b"b"]
        assert not answer.more, "what is skipped does not count as more"
        assert drain(consumer) == [b"a"]

    def test_a_queue_nobody_declared(self, transport: Transport) -> None:
        """Declaring is allowed twice, and a push to a queue that was never declared is kept as well."""
        transport.declare(["declared"])
        transport.declare(["declared", "other"])
        transport.push([envelope(b"1", "declared"), envelope(b"2", "surprise")])
        assert drained(transport, "declared", "surprise") == [b"1", b"2"]

    # Batches

    def test_limit_zero_only_settles(self, transport: Transport) -> None:
        """A trip with limit 0 claims nothing, and settles."""
        transport.push(envelopes(b"1", b"2"))
        consumer = consumer_of(transport)
        answer = consumer.exchange([ack(claim_one(consumer))], 0)
        assert not answer.deliveries
        assert drain(consumer) == [b"2"]

    def test_an_empty_batch(self, transport: Transport) -> None:
        """Pushing nothing does nothing."""
        transport.push([])
        assert nobody_gets_any(transport)

    def test_a_full_trip(self, transport: Transport) -> None:
        """A trip carries 1000 messages: pushed, claimed, and settled while the next 1000 are claimed."""
        transport.push(envelopes(*(b"%d" % i for i in range(2 * MAX_TRIP))))
        consumer = consumer_of(transport)
        first = claim(consumer, MAX_TRIP)
        answer = consumer.exchange([ack(delivery) for delivery in first], MAX_TRIP)
        second = [*answer.deliveries, *claim(consumer, MAX_TRIP - len(answer.deliveries))]
        assert bodies(first + second) == [b"%d" % i for i in range(2 * MAX_TRIP)]

    def test_a_batch_is_all_or_nothing(self, transport: Transport) -> None:
        """A batch with one message that cannot be kept is refused as a whole."""
        if not transport.features.transactional:
            pytest.skip("the engine is not transactional")
        with pytest.raises((BrokerError, ValueError)):
            transport.push([*envelopes(b"1", b"2"), self.unstorable(transport), *envelopes(b"3")])
        assert nobody_gets_any(transport)
        transport.push(envelopes(b"4"))
        assert drained(transport) == [b"4"]

    def test_nobody_sees_half_a_batch(self, transport: Transport) -> None:
        """While batches are pushed, a claim with room for all takes whole batches only."""
        if not transport.features.transactional:
            pytest.skip("the engine is not transactional")
        size, rounds = 20, 30
        batches = [envelopes(*(b"%d" % number for _ in range(size))) for number in range(rounds)]

        def push_all() -> None:
            for batch in batches:
                transport.push(batch)

        pusher = threading.Thread(target=push_all)
        consumer = consumer_of(transport)
        claimed = 0
        pusher.start()
        try:
            while claimed < size * rounds:
                deliveries = consumer.exchange((), MAX_TRIP).deliveries
                assert len(deliveries) % size == 0
                claimed += len(deliveries)
                if not deliveries:
                    consumer.wait(0.01)
        finally:
            pusher.join()

    # Bodies

    @pytest.mark.parametrize(
        "body",
        [
            b"",
            b"\x00",
            b"\xff\xfe not UTF-8 \x80",
            bytes(range(256)),
            "h\u00e9llo \u4e16\u754c \U0001f33f \u202e".encode(),
            b'{"json": "\\ud800"}',
        ],
        ids=["empty", "nul", "not UTF-8", "all bytes", "unicode", "lone surrogate"],
    )
    def test_any_bytes(self, transport: Transport, body: bytes) -> None:
        """A body comes back as it was pushed, whatever its bytes; beside a plain one in its batch, too."""
        transport.push(envelopes(b"plain", body, b"plain"))
        got = bodies(claim(consumer_of(transport), 3))
        assert got == [b"plain", body, b"plain"]
        assert type(got[1]) is bytes

    def test_a_large_body(self, transport: Transport) -> None:
        """A body of four megabytes, or of the largest size that the engine declares, comes back whole."""
        size = min(4 * 1024 * 1024, transport.features.max_body or 2**63)
        body = (bytes(range(256)) * (size // 256 + 1))[:size]
        transport.push(envelopes(body))
        assert claim_one(consumer_of(transport)).body == body

    def test_queue_names(self, transport: Transport) -> None:
        """Every name that a queue may have is a queue of its own: none is cut, folded or taken for a pattern."""
        names = ["a", "A", "_", "a.DQ", "a.XQ", "a-b", "a_b", "a.b", "q" * 255, "q" * 254, QUEUE]
        names = [name for name in names if not name.endswith(self.reserved_suffixes)]
        transport.push([envelope(name.encode(), name) for name in names])
        for name in names:
            assert drained(transport, name) == [name.encode()]


def _needs_delay(transport: Transport) -> None:
    if not transport.features.delay:
        pytest.skip("the engine knows no delays")
