"""The contract of closing: what was not settled goes back, and what is closed stays closed."""

from __future__ import annotations

from pathlib import Path

import pytest

from ...errors import ConnectionClosed
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
    drained,
    envelopes,
    nobody_gets_any,
    settle,
)


class LifecycleContract(TransportKit):
    """Closing consumers and transports, and opening them again."""

    def test_close_gives_back_what_was_not_settled(self, transport: Transport) -> None:
        """What a consumer held when it closed stands where it stood; what it settled does not come again."""
        transport.push(envelopes(b"1", b"2", b"3"))
        closing = consumer_of(transport)
        first, _ = claim(closing, 2)
        settle(closing, ack(first))
        closing.close()
        again = claim(consumer_of(transport), 2)
        assert bodies(again) == [b"2", b"3"]
        assert (again[0].attempt, again[0].redelivered) == (2, True)
        if transport.features.counts_attempts:
            assert (again[1].attempt, again[1].redelivered) == (1, False)

    def test_close_leaves_the_others_alone(self, transport: Transport) -> None:
        """A consumer that closes gives back its own messages, not those of others."""
        transport.push(envelopes(b"1", b"2"))
        closing, other = consumer_of(transport), consumer_of(transport)
        claim_one(closing)
        theirs = claim_one(other)
        closing.close()
        assert drained(transport) == [b"1"]
        assert settle(other, ack(theirs)).settled

    def test_closing_twice(self, transport: Transport) -> None:
        """Closing a closed consumer does nothing, and waking it does no harm."""
        consumer = consumer_of(transport)
        consumer.close()
        consumer.close()
        consumer.wake()

    def test_use_after_close(self, transport: Transport) -> None:
        """A closed consumer says so."""
        transport.push(envelopes(b"1"))
        consumer = consumer_of(transport)
        late = ack(claim_one(consumer))
        consumer.close()
        with pytest.raises(ConnectionClosed):
            consumer.exchange([late], 1)
        with pytest.raises(ConnectionClosed):
            consumer.subscribe(["other"])
        with pytest.raises(ConnectionClosed):
            consumer.pause([QUEUE])
        with pytest.raises(ConnectionClosed):
            consumer.wait(0.01)
        assert drained(transport) == [b"1"]

    def test_extend(self, transport: Transport) -> None:
        """Renewing a lease leaves what was claimed where it is."""
        transport.push(envelopes(b"1"))
        consumer = consumer_of(transport)
        delivery = claim_one(consumer)
        consumer.extend()
        assert nobody_gets_any(transport)
        assert settle(consumer, ack(delivery)).settled

    def test_closing_the_transport_closes_its_consumers(self, transport: Transport) -> None:
        """Closing a transport closes its consumers, which give back what they held. Using it again opens it again."""
        transport.push(envelopes(b"1", b"2"))
        consumer = consumer_of(transport)
        claim_one(consumer)
        transport.close()
        with pytest.raises(ConnectionClosed):
            consumer.exchange((), MAX_TRIP)
        assert drained(transport) == [b"1", b"2"]
        transport.push(envelopes(b"3"))
        assert drained(transport) == [b"3"]

    def test_closing_an_unused_transport(self, transport: Transport) -> None:
        """A transport may be closed before its first use, and twice."""
        transport.close()
        transport.close()

    def test_messages_outlive_the_transport(self, transport: Transport, tmp_path: Path, clock: ManualClock) -> None:
        """A transport on the same store finds what an earlier one left: ready, delayed and claimed messages."""
        if not self.durable:
            pytest.skip("the engine keeps nothing when its transport is gone")
        transport.push(envelopes(b"1", b"2", b"3"))
        claim_one(consumer_of(transport))
        transport.close()
        successor = self.make(tmp_path, clock)
        try:
            assert drained(successor) == [b"1", b"2", b"3"]
        finally:
            successor.close()

    def test_two_transports_on_one_store(self, transport: Transport, tmp_path: Path, clock: ManualClock) -> None:
        """Two transports on the same store see the same messages, and neither takes what the other has claimed."""
        if not self.durable:
            pytest.skip("the engine keeps nothing when its transport is gone")
        neighbour = self.make(tmp_path, clock)
        try:
            transport.push(envelopes(b"1", b"2"))
            first = claim_one(consumer_of(neighbour))
            assert first.body == b"1"
            assert drained(transport) == [b"2"]
        finally:
            neighbour.close()
        assert drained(transport) == [b"1"]
