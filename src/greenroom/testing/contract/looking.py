"""The contract of the optional ``Admin``: counts, dead letters, peeking, purging."""

from __future__ import annotations

import pytest

from ...core.verdict import Verdict
from ...ports.admin import STATES, Counts, Peeked, State
from ...ports.transport import ErrorText, Incident, Settlement, Transport
from ..clock import ManualClock
from .kit import (
    QUEUE,
    TransportKit,
    ack,
    claim,
    claim_one,
    consumer_of,
    dead,
    drained,
    envelope,
    envelopes,
    nothing_comes,
    release,
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
        if transport.features.counts_claimed:
            expected = Counts(ready=2, delayed=delayed, claimed=1, dead=1)
        else:  # it may have fetched more than it claimed; now all that is not settled is ready again
            consumer.close()
            expected = Counts(ready=3, delayed=delayed, dead=1)
        counts = admin.counts()
        assert counts[QUEUE] == expected
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
        drained(transport)
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
        for delivery in sorted(claim(consumer, 3), key=lambda delivery: delivery.body):
            settle(consumer, dead(delivery))
            clock.advance_ms(1)
        assert [letter.body for letter in admin.dead()] == [b"3", b"2", b"1"]
        assert [letter.body for letter in admin.dead("a")] == [b"3", b"1"]
        assert [letter.body for letter in admin.dead(limit=2)] == [b"3", b"2"]
        assert admin.dead("unheard") == []

    # Peeking

    def test_peek_shows_a_queue_in_the_order_of_its_turns(self, transport: Transport, clock: ManualClock) -> None:
        """What is claimed comes first, then what is ready by its turns, then what is delayed by its due times; all of
        one queue."""
        admin = self.admin(transport)
        now_ms = clock.now_ms()
        transport.push([*envelopes(b"claimed", b"ready 1", b"ready 2"), envelope(b"other", "other")])
        claim_one(consumer_of(transport))
        expected: list[tuple[bytes, str, int | None]] = [(b"ready 1", "ready", None), (b"ready 2", "ready", None)]
        if transport.features.priority:
            transport.push([envelope(b"urgent", priority=-1)])
            expected.insert(0, (b"urgent", "ready", None))
        if transport.features.counts_claimed:
            expected.insert(0, (b"claimed", "claimed", None))
        if transport.features.delay and transport.features.counts_delayed:
            transport.push([envelope(b"late", due_ms=now_ms + 2000), envelope(b"later", due_ms=now_ms + 3000)])
            transport.push([envelope(b"soon", due_ms=now_ms + 1000)])
            expected += [(b"soon", "delayed", now_ms + 1000), (b"late", "delayed", now_ms + 2000)]
            expected += [(b"later", "delayed", now_ms + 3000)]
        assert [(p.body, p.state, p.due_ms) for p in admin.peek(QUEUE)] == expected
        assert [p.queue for p in admin.peek("other")] == ["other"]
        assert admin.peek("unheard") == []

    @pytest.mark.parametrize("state", STATES)
    def test_peek_at_one_state(self, transport: Transport, clock: ManualClock, state: State) -> None:
        """Asked for one state, it shows that one."""
        if state == "claimed":
            _needs_claimed(transport)
        transport.push(envelopes(b"claimed", b"ready"))
        claim_one(consumer_of(transport))
        if transport.features.delay and transport.features.counts_delayed:
            transport.push([envelope(b"delayed", due_ms=clock.now_ms() + 1000)])
        elif state == "delayed":
            pytest.skip("the engine does not show what is delayed")
        assert [p.body.decode() for p in self.admin(transport).peek(QUEUE, state=state)] == [state]

    def test_peek_tells_what_is_known(self, transport: Transport) -> None:
        """A message is shown with its id, its priority, how often it was claimed, and by whom."""
        admin = self.admin(transport)
        sent = envelope(b"\xff", priority=3 if transport.features.priority else 0)
        transport.push([sent])
        (waiting,) = admin.peek(QUEUE)
        assert (waiting.id, waiting.body, waiting.priority) == (sent.id, sent.body, sent.priority)
        assert (waiting.attempt, waiting.crashes, waiting.owner, waiting.last) == (0, 0, "", None)
        _needs_claimed(transport)
        consumer = consumer_of(transport, owner="somebody")
        delivery = claim_one(consumer)
        (held,) = admin.peek(QUEUE)
        assert (held.id, held.priority, held.attempt) == (sent.id, sent.priority, 1)
        assert "somebody" in held.owner
        settle(consumer, release(delivery))
        assert [(p.state, p.attempt, p.owner) for p in admin.peek(QUEUE)] == [("ready", 1, "")]

    def test_peek_tells_what_befell_last(self, transport: Transport, clock: ManualClock) -> None:
        """A retry is shown with the failure that it follows."""
        if not transport.features.history:
            pytest.skip("the engine keeps no history")
        transport.push(envelopes(b"1"))
        consumer = consumer_of(transport)
        clock.advance_ms(7)
        error = ErrorText("ValueError", "no", "Traceback\n  ...")
        settle(consumer, Settlement(claim_one(consumer), Verdict.RETRY, retry=envelope(b"2"), error=error))
        consumer.close()
        (waiting,) = self.admin(transport).peek(QUEUE)
        assert waiting.last == Incident(clock.now_ms(), 1, error)

    def test_peek_changes_nothing(self, transport: Transport) -> None:
        """What was looked at is claimed as if nobody had looked."""
        transport.push(envelopes(b"1", b"2"))
        for _ in range(3):
            self.admin(transport).peek(QUEUE)
        got = claim(consumer_of(transport), 2)
        assert [delivery.body for delivery in got] == [b"1", b"2"]
        if transport.features.counts_attempts:
            assert [(delivery.attempt, delivery.redelivered) for delivery in got] == [(1, False), (1, False)]

    @pytest.mark.parametrize("size", [1, 2, 5, 100])
    def test_pages_of_a_queue(self, transport: Transport, clock: ManualClock, size: int) -> None:
        """Page after page shows every message once, through all states, also when what was shown last is gone."""
        admin = self.admin(transport)
        transport.push([envelope(b"%d" % i, priority=i % 3 if transport.features.priority else 0) for i in range(9)])
        if transport.features.delay and transport.features.counts_delayed:
            transport.push([envelope(b"d%d" % i, due_ms=clock.now_ms() + 1000 + i % 2) for i in range(5)])
        consumer = consumer_of(transport)
        held = {delivery.id: delivery for delivery in claim(consumer, 4)}
        everything = admin.peek(QUEUE)
        seen: list[Peeked] = []
        while page := admin.peek(QUEUE, limit=size, after=seen[-1].place if seen else None):
            assert len(page) <= size
            seen += page
            if page[-1].id in held:
                settle(consumer, ack(held[page[-1].id]))
        assert [p.body for p in seen] == [p.body for p in everything]
        assert len(everything) == len({p.id for p in everything}) >= (9 if transport.features.counts_claimed else 5)

    def test_a_page_of_one_state(self, transport: Transport) -> None:
        """A place of one state is where another one begins that comes later, and the end of one that came sooner."""
        admin = self.admin(transport)
        _needs_claimed(transport)
        transport.push(envelopes(b"1", b"2", b"3"))
        claim_one(consumer_of(transport))
        first, second, _ = admin.peek(QUEUE)
        assert [p.body for p in admin.peek(QUEUE, state="ready", after=first.place)] == [b"2", b"3"]
        assert [p.body for p in admin.peek(QUEUE, state="ready", after=second.place)] == [b"3"]
        assert admin.peek(QUEUE, state="claimed", after=second.place) == []

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
        if not transport.features.counts_claimed:
            consumer.close()
            assert admin.purge(QUEUE) == 3 + delayed, "what was fetched is ready again"
            assert admin.counts([QUEUE, "other"]) == {QUEUE: Counts(dead=1), "other": Counts(ready=1)}
            return
        assert admin.purge(QUEUE) == 2 + delayed
        assert admin.counts([QUEUE, "other"]) == {QUEUE: Counts(claimed=1, dead=1), "other": Counts(ready=1)}
        assert admin.purge(QUEUE) == 0
        assert settle(consumer, ack(second)).settled, "what was claimed is still to be settled"
        clock.advance_ms(1000)
        assert nothing_comes(consumer)

    def test_purge_dead_letters(self, transport: Transport) -> None:
        """Purging the dead letters of one queue deletes these, and nothing else."""
        admin = self.admin(transport)
        transport.push([envelope(queue="a"), envelope(queue="b")])
        consumer = consumer_of(transport, "a", "b")
        settle(consumer, *(dead(delivery) for delivery in claim(consumer, 2)))
        consumer.close()
        transport.push([envelope(queue="a")])
        assert admin.purge("a", dead=True) == 1
        assert admin.counts(["a", "b"]) == {"a": Counts(ready=1), "b": Counts(dead=1)}

    @pytest.mark.parametrize("dead_ones", [False, True])
    def test_purging_an_unknown_queue(self, transport: Transport, dead_ones: bool) -> None:
        """Purging a queue that was never heard of deletes nothing."""
        assert self.admin(transport).purge("unheard", dead=dead_ones) == 0


def _needs_claimed(transport: Transport) -> None:
    if not transport.features.counts_claimed:
        pytest.skip("the engine does not see what is claimed")
