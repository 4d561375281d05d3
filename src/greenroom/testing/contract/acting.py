"""The contract of the optional ``Admin``'s deeds: dead letters put back or dropped, queues paused and resumed."""

from __future__ import annotations

import pytest

from ...errors import MessageTooLarge
from ...ports.admin import Counts, DeadLetter
from ...ports.transport import CRASH, MAX_TRIP, ErrorText, Transport
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
    killed,
    needs_pause,
    nobody_gets_any,
    nothing_comes,
    settle,
)

#: Milliseconds after which a pause is known to all consumers, at the latest.
PAUSE_KNOWN_MS = 1_100


class ActingContract(TransportKit):
    """Putting dead letters back, dropping them, and pausing."""

    # Dead letters go back

    def test_a_dead_letter_is_put_back(self, transport: Transport) -> None:
        """A dead letter that is moved is not dead any more: its replacement waits, as a first attempt without crashes,
        in the queue that the envelope says."""
        admin = self.admin(transport)
        (sent,) = killed(transport, b"old")
        instead = envelope(b"new", "elsewhere")
        assert admin.move({sent.id: instead}) == 1
        assert admin.dead() == []
        got = claim_one(consumer_of(transport, "elsewhere"))
        assert (got.queue, got.id, got.body) == ("elsewhere", instead.id, b"new")
        assert (got.attempt, got.crashes, got.redelivered) == (1, 0, False)

    def test_crashes_end_with_a_death(self, transport: Transport) -> None:
        """Crashes are told with a message that waits and with a dead letter. What is put back has none, and its history
        tells of them."""
        if not transport.features.counts_crashes:
            pytest.skip("the engine counts no crashes")
        admin = self.admin(transport)
        transport.push(envelopes(b"1"))
        dying = consumer_of(transport)
        board = dying.board(1)
        board.cells[0] = claim_one(dying).mark
        self.crash(transport, dying)
        consumer = consumer_of(transport)
        delivery = claim(consumer, 1, within_s=self.recovery_s)[0]
        if transport.features.counts_claimed:
            (held,) = admin.peek(QUEUE)
            assert (held.crashes, held.attempt) == (1, 2)
            assert held.last is not None
            assert held.last.error is not None
            assert held.last.error.type == CRASH
        settle(consumer, dead(delivery))
        (letter,) = admin.dead()
        assert (letter.crashes, letter.attempt) == (1, 2)
        admin.move({letter.id: envelope(b"2")})
        again = claim_one(consumer)
        assert (again.crashes, again.attempt) == (0, 1)
        errors = [incident.error for incident in consumer.history(again)]
        assert [error.type if error is not None else None for error in errors] == [CRASH, None]

    def test_only_the_dead_letters_named_are_put_back(self, transport: Transport) -> None:
        """What is not named stays dead, what is not there is left out, and the number tells how many were there."""
        admin = self.admin(transport)
        first, second, third = killed(transport, b"1", b"2", b"3")
        moves = {third.id: envelope(b"3 again"), "unheard": envelope(b"never"), first.id: envelope(b"1 again")}
        assert admin.move(moves) == 2
        assert [letter.id for letter in admin.dead()] == [second.id]
        assert sorted(drained(transport)) == [b"1 again", b"3 again"]
        assert admin.move(moves) == 0
        assert admin.move({}) == 0
        assert nobody_gets_any(transport)

    def test_the_history_goes_along(self, transport: Transport, clock: ManualClock) -> None:
        """What is put back keeps its history, with the death as its last incident. When it dies again the new letter
        tells the old and the new."""
        admin = self.admin(transport)
        (sent,) = killed(transport, b"1", error=ErrorText("ValueError", "the first", "Traceback\n  1"))
        (letter,) = admin.dead()
        clock.advance_ms(10)
        instead = envelope(b"2")
        admin.move({sent.id: instead})
        clock.advance_ms(10)
        consumer = consumer_of(transport)
        settle(consumer, dead(claim_one(consumer), ErrorText("KeyError", "the second")))
        (again,) = admin.dead_letters([instead.id])
        assert again.error == ErrorText("KeyError", "the second")
        (incident,) = again.history
        assert (incident.at_ms, incident.attempt) == (letter.died_ms, 1)
        assert incident.error == ErrorText("ValueError", "the first", "Traceback\n  1")

    def test_a_death_without_an_error_is_remembered(self, transport: Transport) -> None:
        """Also a death that nobody explained is in the history of what is put back."""
        admin = self.admin(transport)
        (sent,) = killed(transport, b"1")
        instead = envelope(b"2")
        admin.move({sent.id: instead})
        consumer = consumer_of(transport)
        settle(consumer, dead(claim_one(consumer)))
        ((incident,),) = [letter.history for letter in admin.dead_letters([instead.id])]
        assert (incident.attempt, incident.error) == (1, None)

    def test_a_history_has_an_end(self, transport: Transport) -> None:
        """However often a message dies and is put back, its history keeps the last 25 incidents."""
        admin = self.admin(transport)
        consumer = consumer_of(transport)
        transport.push(envelopes(b"1"))
        for number in range(30):
            settle(consumer, dead(claim_one(consumer), ErrorText("Error", str(number))))
            (letter,) = admin.dead()
            admin.move({letter.id: envelope(b"1")})
        settle(consumer, dead(claim_one(consumer)))
        (letter,) = admin.dead_letters([admin.dead()[0].id])
        texts = [incident.error.message for incident in letter.history if incident.error is not None]
        assert texts == [str(number) for number in range(5, 30)]

    def test_what_is_put_back_may_be_due_later(self, transport: Transport, clock: ManualClock) -> None:
        """An envelope with a due time waits for it."""
        if not transport.features.delay:
            pytest.skip("the engine knows no due times")
        (sent,) = killed(transport, b"1")
        self.admin(transport).move({sent.id: envelope(b"2", due_ms=clock.now_ms() + 1000)})
        consumer = consumer_of(transport)
        assert nothing_comes(consumer)
        clock.advance_ms(1000)
        assert claim_one(consumer).body == b"2"

    def test_moving_is_all_or_nothing(self, transport: Transport) -> None:
        """If one of several envelopes is too large, nothing is moved."""
        limit = transport.features.max_body
        if limit is None or limit > 16 * 1024 * 1024:
            pytest.skip("the engine takes bodies of any size that a test would make")
        admin = self.admin(transport)
        first, second = killed(transport, b"1", b"2")
        with pytest.raises(MessageTooLarge):
            admin.move({first.id: envelope(b"fine"), second.id: envelope(b"x" * (limit + 1))})
        assert admin.counts([QUEUE]) == {QUEUE: Counts(dead=2)}

    # Dropping

    def test_dead_letters_are_dropped(self, transport: Transport) -> None:
        """What is named is deleted, and the number tells how many were there."""
        admin = self.admin(transport)
        first, second, third = killed(transport, b"1", b"2", b"3")
        assert admin.drop([second.id, "unheard", first.id]) == 2
        assert [letter.id for letter in admin.dead()] == [third.id]
        assert admin.drop([first.id]) == 0
        assert admin.drop([]) == 0

    def test_only_dead_letters_are_dropped(self, transport: Transport) -> None:
        """The id of a message that lives names nothing to drop, to look up or to put back."""
        admin = self.admin(transport)
        sent = envelope(b"1")
        transport.push([sent])
        assert admin.drop([sent.id]) == 0
        assert admin.dead_letters([sent.id]) == []
        assert admin.move({sent.id: envelope(b"2")}) == 0
        assert drained(transport) == [b"1"]

    def test_a_step_has_a_bound(self, transport: Transport) -> None:
        """More ids than one step may carry are a mistake of the caller."""
        admin = self.admin(transport)
        ids = [str(number) for number in range(MAX_TRIP + 1)]
        for step in (
            lambda: admin.drop(ids),
            lambda: admin.dead_letters(ids),
            lambda: admin.move({id: envelope() for id in ids}),
        ):
            with pytest.raises(ValueError, match="1001"):
                step()

    # Looking dead letters up

    def test_dead_letters_by_id(self, transport: Transport) -> None:
        """Dead letters are looked up by their ids, in that order; what is not there is left out."""
        admin = self.admin(transport)
        first, second, third = killed(transport, b"1", b"2", b"3", error=ErrorText("ValueError", "no"))
        found = admin.dead_letters([third.id, "unheard", first.id])
        assert [(letter.id, letter.body, letter.error) for letter in found] == [
            (third.id, b"3", ErrorText("ValueError", "no")),
            (first.id, b"1", ErrorText("ValueError", "no")),
        ]
        assert second.id not in {letter.id for letter in found}
        assert admin.dead_letters([]) == []

    def test_pages_of_dead_letters(self, transport: Transport) -> None:
        """Page after page shows each dead letter once, newest first, also those that died in the same millisecond, and
        also when what was shown is gone by then."""
        admin = self.admin(transport)
        sent = [*killed(transport, *(b"%d" % i for i in range(7))), *killed(transport, b"other", queue="other")]
        seen: list[DeadLetter] = []
        while page := admin.dead(limit=3, after=seen[-1].place if seen else None):
            seen += page
            admin.drop([letter.id for letter in page])
        assert sorted(letter.id for letter in seen) == sorted(kept.id for kept in sent)

    def test_pages_of_one_queue(self, transport: Transport) -> None:
        """Pages of one queue leave the others out."""
        admin = self.admin(transport)
        killed(transport, b"1", b"2", queue="a")
        killed(transport, b"3", queue="b")
        killed(transport, b"4", queue="a")
        (newest,) = admin.dead("a", limit=1)
        older = admin.dead("a", after=newest.place)
        assert sorted([newest.body, *(letter.body for letter in older)]) == [b"1", b"2", b"4"]
        assert admin.dead("a", after=older[-1].place) == []

    @pytest.mark.parametrize("place", ["", "x", "1.2.3.4.5.6"])
    def test_a_place_that_is_none(self, transport: Transport, place: str) -> None:
        """What is not a place that the engine has told is a mistake of the caller."""
        admin = self.admin(transport)
        with pytest.raises(ValueError, match="place"):
            admin.dead(after=place)
        with pytest.raises(ValueError, match="place"):
            admin.peek(QUEUE, after=place)

    # Pausing

    def test_a_paused_queue_is_not_claimed_from(self, transport: Transport, clock: ManualClock) -> None:
        """A second after a queue was paused nobody claims of it any more, while others go on; ``resume`` ends that."""
        needs_pause(transport)
        admin = self.admin(transport)
        consumer = consumer_of(transport, "a", "b")
        assert nothing_comes(consumer)
        admin.pause(["a"])
        clock.advance_ms(PAUSE_KNOWN_MS)
        transport.push([envelope(b"a1", "a"), envelope(b"b1", "b")])
        assert drain(consumer) == [b"b1"]
        assert drained(transport, "a", "b") == []
        assert admin.counts(["a"]) == {"a": Counts(ready=1)}
        admin.resume(["a"])
        clock.advance_ms(PAUSE_KNOWN_MS)
        assert drain(consumer) == [b"a1"]

    def test_what_is_paused(self, transport: Transport) -> None:
        """The paused queues are known. Pausing or resuming twice does no harm, also for queues never heard of."""
        needs_pause(transport)
        admin = self.admin(transport)
        assert admin.paused() == set()
        admin.pause(["a", "b"])
        admin.pause(["b", "c"])
        assert admin.paused() == {"a", "b", "c"}
        admin.resume(["a", "c", "never paused"])
        assert admin.paused() == {"b"}
        admin.resume(["b"])
        admin.resume(["b"])
        assert admin.paused() == set()

    def test_what_was_claimed_before_a_pause_is_settled(self, transport: Transport, clock: ManualClock) -> None:
        """A pause holds back claims, not settlements; what is given back waits for the end of the pause."""
        needs_pause(transport)
        admin = self.admin(transport)
        transport.push(envelopes(b"1", b"2"))
        consumer = consumer_of(transport)
        first, _ = claim(consumer, 2)
        admin.pause([QUEUE])
        clock.advance_ms(PAUSE_KNOWN_MS)
        assert settle(consumer, ack(first)).settled
        consumer.close()
        successor = consumer_of(transport)
        assert nothing_comes(successor)
        admin.resume([QUEUE])
        clock.advance_ms(PAUSE_KNOWN_MS)
        assert bodies([claim_one(successor)]) == [b"2"]

    def test_what_becomes_due_in_a_paused_queue_waits(self, transport: Transport, clock: ManualClock) -> None:
        """A due time does not break a pause."""
        needs_pause(transport)
        if not transport.features.delay:
            pytest.skip("the engine knows no due times")
        admin = self.admin(transport)
        admin.pause([QUEUE])
        transport.push([envelope(b"1", due_ms=clock.now_ms() + 100)])
        clock.advance_ms(PAUSE_KNOWN_MS)
        consumer = consumer_of(transport)
        assert nothing_comes(consumer)
        admin.resume([QUEUE])
        clock.advance_ms(PAUSE_KNOWN_MS)
        assert claim_one(consumer).body == b"1"

    def test_subscribing_does_not_end_a_pause_of_everybody(self, transport: Transport, clock: ManualClock) -> None:
        """``subscribe`` ends a consumer's own pause, not one that was asked of all."""
        needs_pause(transport)
        self.admin(transport).pause([QUEUE])
        clock.advance_ms(PAUSE_KNOWN_MS)
        transport.push(envelopes(b"1"))
        consumer = consumer_of(transport)
        consumer.pause([QUEUE])
        consumer.subscribe([QUEUE])
        assert nothing_comes(consumer)
