"""The contract of the optional ``Admin``: counts, dead letters, purging."""

from __future__ import annotations

import pytest

from ...ports.admin import Counts
from ...ports.transport import ErrorText, Transport
from ..clock import ManualClock
from .kit import (
    QUEUE,
    TransportKit,
    ack,
    claim,
    claim_one,
    consumer_of,
    dead,
    drain,
    envelope,
    envelopes,
    nothing_comes,
    settle,
)


class AdminContract(TransportKit):
    """Looking in and tidying up."""

    def test_counts(self, transport: Transport, clock: ManualClock) -> None:
        """Counts tell ready, delayed, claimed and dead messages of each queue apart."""
        admin = self.admin(transport)
        transport.push(envelopes(b"1", b"2", b"3", b"4", b"5"))
        transport.push([envelope(b"other", "other")])
        delayed = 0
        if transport.features.delay and transport.features.counts_delayed:
            transport.push([envelope(due_ms=clock.now_ms() + 1000)])
            delayed = 1
        consumer = consumer_of(transport)
        first, second, _ = claim(consumer, 3)
        settle(consumer, ack(first), dead(second))
        counts = admin.counts()
        assert counts[QUEUE] == Counts(ready=2, delayed=delayed, claimed=1, dead=1)
        assert counts["other"] == Counts(ready=1)

    def test_counts_of_named_queues(self, transport: Transport) -> None:
        """Asked for certain queues, it answers for just these, with zeros for one that it never heard of."""
        admin = self.admin(transport)
        transport.push([envelope(queue="a"), envelope(queue="b")])
        assert admin.counts(["a", "unheard"]) == {"a": Counts(ready=1), "unheard": Counts()}

    def test_counts_go_back_to_zero(self, transport: Transport) -> None:
        """When all is settled, nothing is counted."""
        admin = self.admin(transport)
        transport.push(envelopes(b"1", b"2", b"3"))
        drain(consumer_of(transport))
        assert admin.counts([QUEUE]) == {QUEUE: Counts()}

    def test_a_dead_letter_keeps_its_error(self, transport: Transport, clock: ManualClock) -> None:
        """A dead letter keeps body, id, error, attempt and time of death."""
        error = ErrorText("ValueError", "no \u2713 \x00 such thing", "Traceback:\n  ...")
        sent = envelope(b"\xff body")
        transport.push([sent])
        consumer = consumer_of(transport)
        settle(consumer, dead(claim_one(consumer), error))
        (letter,) = self.admin(transport).dead(QUEUE)
        assert (letter.queue, letter.id, letter.body, letter.error) == (QUEUE, sent.id, sent.body, error)
        assert (letter.attempt, letter.crashes, letter.died_ms) == (1, 0, clock.now_ms())
        assert nothing_comes(consumer)

    def test_a_dead_letter_without_an_error(self, transport: Transport) -> None:
        """A message may die without an error."""
        transport.push(envelopes(b"1"))
        consumer = consumer_of(transport)
        settle(consumer, dead(claim_one(consumer)))
        assert self.admin(transport).dead(QUEUE)[0].error is None

    def test_dead_letters_newest_first(self, transport: Transport, clock: ManualClock) -> None:
        """Dead letters come newest first, of one queue or of all, and no more than asked for."""
        admin = self.admin(transport)
        transport.push([envelope(b"1", "a"), envelope(b"2", "b"), envelope(b"3", "a")])
        consumer = consumer_of(transport, "a", "b")
        for delivery in claim(consumer, 3):
            settle(consumer, dead(delivery))
            clock.advance_ms(1)
        assert [letter.body for letter in admin.dead()] == [b"3", b"2", b"1"]
        assert [letter.body for letter in admin.dead("a")] == [b"3", b"1"]
        assert [letter.body for letter in admin.dead(limit=2)] == [b"3", b"2"]
        assert admin.dead("unheard") == []

    def test_purge(self, transport: Transport, clock: ManualClock) -> None:
        """Purging deletes what is ready or delayed of one queue, and nothing else."""
        admin = self.admin(transport)
        transport.push([*envelopes(b"1", b"2", b"3", b"4"), envelope(b"other", "other")])
        delayed = 0
        if transport.features.delay and transport.features.counts_delayed:
            transport.push([envelope(due_ms=clock.now_ms() + 1000)])
            delayed = 1
        consumer = consumer_of(transport)
        first, second = claim(consumer, 2)
        settle(consumer, dead(first))
        assert admin.purge(QUEUE) == 2 + delayed
        assert admin.counts([QUEUE, "other"]) == {QUEUE: Counts(claimed=1, dead=1), "other": Counts(ready=1)}
        assert admin.purge(QUEUE) == 0
        assert settle(consumer, ack(second)).settled, "what was claimed is still to be settled"
        clock.advance_ms(1000)
        assert nothing_comes(consumer)

    def test_purge_dead_letters(self, transport: Transport) -> None:
        """Purging the dead letters of one queue deletes these, and nothing else."""
        admin = self.admin(transport)
        transport.push([envelope(queue="a"), envelope(queue="b"), envelope(queue="a")])
        consumer = consumer_of(transport, "a", "b")
        settle(consumer, *(dead(delivery) for delivery in claim(consumer, 2)))
        assert admin.purge("a", dead=True) == 1
        assert admin.counts(["a", "b"]) == {"a": Counts(ready=1), "b": Counts(dead=1)}

    @pytest.mark.parametrize("dead_ones", [False, True])
    def test_purging_an_unknown_queue(self, transport: Transport, dead_ones: bool) -> None:
        """Purging a queue that was never heard of deletes nothing."""
        assert self.admin(transport).purge("unheard", dead=dead_ones) == 0
