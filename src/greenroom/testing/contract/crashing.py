"""The contract of crashes: what ran when a process died is charged, what it merely held is not, and both come again."""

from __future__ import annotations

import signal
import threading
from collections.abc import Sequence

import msgspec
import pytest

from ...board import Board, Fate
from ...errors import BrokerError
from ...ports.transport import CRASH, Consumer, Delivery, ErrorText, Incident, Settlement, Transport
from ..clock import ManualClock
from .kit import (
    TransportKit,
    ack,
    claim,
    claim_one,
    consumer_of,
    dead,
    envelope,
    envelopes,
    needs_crashes,
    nobody_gets_any,
    nothing_comes,
    release,
    retry,
    settle,
)

#: How many incidents a history holds.
HISTORY_LENGTH = 25
#: Milliseconds after which an owner that was taken for dead has noticed, at the latest.
NOTICED_MS = 1_100


class CrashingContract(TransportKit):
    """Whoever gives back what a dead owner held reads its board."""

    # Whose fault it was

    def test_what_ran_is_charged(self, transport: Transport) -> None:
        """What stood on the board has a crash more; what was only held comes back as if nothing had happened."""
        needs_crashes(transport)
        transport.push(envelopes(b"ran", b"held", b"ran, too"))
        dying = consumer_of(transport)
        board = dying.board(4)
        ran, _, ran_too = claim(dying, 3)
        board.cells[0], board.cells[3] = ran.mark, ran_too.mark
        again = claim(self._heir_of(transport, dying), 3, within_s=self.recovery_s)
        assert [(d.body, d.crashes, d.attempt) for d in again] == [(b"ran", 1, 2), (b"held", 0, 2), (b"ran, too", 1, 2)]

    def test_what_has_ended_is_not_charged(self, transport: Transport) -> None:
        """A cell that was cleared says nothing, and neither does a message that was settled and still stands there."""
        needs_crashes(transport)
        transport.push(envelopes(b"settled", b"cleared"))
        dying = consumer_of(transport)
        board = dying.board(2)
        settled, cleared = claim(dying, 2)
        board.cells[0], board.cells[1] = settled.mark, cleared.mark
        settle(dying, ack(settled))
        board.cells[1] = 0
        heir = self._heir_of(transport, dying)
        (again,) = claim(heir, 1, within_s=self.recovery_s)
        assert (again.body, again.crashes, list(heir.history(again))) == (b"cleared", 0, [])
        assert nothing_comes(heir)

    def test_what_somebody_else_holds_is_not_charged(self, transport: Transport) -> None:
        """A message that was given back, and claimed by another, is not charged though it stands on the board yet."""
        needs_crashes(transport)
        dying = self._running(transport, b"1")
        settle(dying.consumer, release(dying.held))
        other = consumer_of(transport)
        theirs = claim_one(other)
        heir = self._heir_of(transport, dying.consumer)
        assert nothing_comes(heir)
        heir.close()
        assert settle(other, release(theirs)).settled
        assert claim_one(other).crashes == 0

    def test_a_process_that_was_ended_on_purpose_charges_nobody(self, transport: Transport) -> None:
        """What ran when somebody ended the process on purpose comes back without a crash and without an incident."""
        needs_crashes(transport)
        dying = self._running(transport, b"1")
        dying.board.write_fate(Fate.ENDED_ON_PURPOSE, -signal.SIGKILL)
        heir, (again,) = self._after_crash(transport, dying.consumer)
        assert (again.body, again.crashes, again.attempt) == (b"1", 0, 2)
        assert list(heir.history(again)) == []

    def test_without_a_board_nobody_is_charged(self, transport: Transport) -> None:
        """A process that died before it had a board was running nothing."""
        needs_crashes(transport)
        transport.push(envelopes(b"1"))
        dying = consumer_of(transport)
        claim_one(dying)
        _, (again,) = self._after_crash(transport, dying)
        assert (again.crashes, again.redelivered) == (0, True)

    def test_a_board_made_anew_is_empty(self, transport: Transport) -> None:
        """What stood on an earlier board of the same owner is not charged."""
        needs_crashes(transport)
        dying = self._running(transport, b"1")
        dying.consumer.board(2)
        _, (again,) = self._after_crash(transport, dying.consumer)
        assert again.crashes == 0

    def test_marks_tell_messages_apart(self, transport: Transport) -> None:
        """What an owner holds has marks that are not 0 and differ from each other."""
        transport.push(envelopes(b"1", b"2", b"3"))
        marks = [delivery.mark for delivery in claim(consumer_of(transport), 3)]
        if transport.features.counts_crashes:
            assert 0 not in marks
            assert len(set(marks)) == 3
        else:
            assert set(marks) == {0}

    # Evidence

    @pytest.mark.parametrize(
        ("fate", "status", "text"),
        [
            (Fate.UNKNOWN, 0, "has died"),
            (Fate.DIED, 1, "ended with code 1"),
            (Fate.DIED, -signal.SIGSEGV, "was killed by SIGSEGV"),
            (Fate.DIED, -signal.SIGKILL, "was killed by SIGKILL (likely out of memory, or kill -9)"),
            (Fate.OUT_OF_MEMORY, -signal.SIGKILL, "out of memory"),
            (Fate.HUNG, -signal.SIGKILL, "hung"),
        ],
    )
    def test_the_evidence_is_kept(
        self, transport: Transport, clock: ManualClock, fate: Fate, status: int, text: str
    ) -> None:
        """The history says when, in which attempt, which worker died, how, and when it was last seen; in one line."""
        _needs_history(transport)
        dying = self._running(transport, b"1")
        dying.board.beat(clock.now_ms())
        dying.board.write_fate(fate, status)
        clock.advance_ms(5_000)
        heir, (again,) = self._after_crash(transport, dying.consumer)
        (incident,) = heir.history(again)
        assert incident.error is not None
        assert (incident.at_ms, incident.attempt, incident.error.type) == (clock.now_ms(), 1, CRASH)
        message = incident.error.message
        assert message.startswith("worker contract (PID ")
        assert text in message
        assert message.endswith("; last seen 2023-11-14T22:13:20Z")
        assert "\n" not in message

    # What stays

    def test_crashes_add_up(self, transport: Transport) -> None:
        """Each crash counts, also of different owners; attempts are counted apart."""
        needs_crashes(transport)
        transport.push(envelopes(b"1"))
        for number in range(3):
            dying = self._running(transport)
            assert (dying.held.crashes, dying.held.attempt) == (number, number + 1)
            self.crash(transport, dying.consumer)
        again = claim_one(consumer_of(transport))
        assert (again.crashes, again.attempt) == (3, 4)

    def test_a_release_keeps_the_crashes(self, transport: Transport) -> None:
        """A message that is given back has the crashes that it had."""
        needs_crashes(transport)
        heir, again = self._crashed_once(transport, b"1")
        settle(heir, release(again))
        once_more = claim_one(heir)
        assert (once_more.crashes, once_more.attempt) == (1, 3)

    def test_a_retry_keeps_the_crashes(self, transport: Transport) -> None:
        """What replaces a message has its crashes, and its history with the failure behind the crash."""
        needs_crashes(transport)
        heir, again = self._crashed_once(transport, b"1")
        failure = ErrorText("ValueError", "bad", "Traceback")
        settle(heir, _with_error(retry(again, envelope(b"2")), failure))
        instead = claim_one(heir)
        assert (instead.body, instead.crashes, instead.attempt) == (b"2", 1, 1)
        if transport.features.history:
            assert _told(heir.history(instead)) == [(1, CRASH), (2, "ValueError")]
            assert heir.history(instead)[1].error == failure

    def test_a_dead_letter_keeps_the_crashes(self, transport: Transport) -> None:
        """A dead letter says how often its message has crashed, and what befell it."""
        needs_crashes(transport)
        heir, again = self._crashed_once(transport, b"1")
        settle(heir, dead(again, ErrorText("TooMany", "enough")))
        admin = self.admin(transport)
        (letter,) = admin.dead()
        assert (letter.body, letter.crashes, letter.attempt) == (b"1", 1, 2)
        if transport.features.history:
            (letter,) = admin.dead_letters([letter.id])
            assert _told(letter.history) == [(1, CRASH)]

    def test_a_history_has_an_end(self, transport: Transport) -> None:
        """The last 25 incidents are kept; the crashes are all counted."""
        _needs_history(transport)
        transport.push(envelopes(b"1"))
        for _ in range(HISTORY_LENGTH + 2):
            self.crash(transport, self._running(transport).consumer)
        heir = consumer_of(transport)
        again = claim_one(heir)
        assert again.crashes == HISTORY_LENGTH + 2
        assert [incident.attempt for incident in heir.history(again)] == list(range(3, HISTORY_LENGTH + 3))

    # History without crashes

    def test_a_new_message_has_no_history(self, transport: Transport) -> None:
        """What was never tried before has none, and what is held no longer tells none."""
        _needs_history(transport)
        transport.push(envelopes(b"1"))
        consumer = consumer_of(transport)
        delivery = claim_one(consumer)
        assert list(consumer.history(delivery)) == []
        settle(consumer, _with_error(release(delivery), ErrorText("Busy", "later")))
        assert list(consumer.history(delivery)) == []

    def test_a_release_may_say_why(self, transport: Transport, clock: ManualClock) -> None:
        """A release with an error is kept in the history, one without is not."""
        _needs_history(transport)
        transport.push(envelopes(b"1"))
        consumer = consumer_of(transport)
        error = ErrorText("ActorNotFound", "not here", "")
        settle(consumer, _with_error(release(claim_one(consumer)), error))
        settle(consumer, release(claim_one(consumer)))
        third = claim_one(consumer)
        assert list(consumer.history(third)) == [Incident(clock.now_ms(), 1, error)]

    # The owner that lives all the same

    def test_a_late_settlement_changes_nothing(self, transport: Transport) -> None:
        """What an owner settles after it was taken for dead is lost, whatever it says, also while nobody else has
        claimed it yet; and the message is what it was."""
        needs_crashes(transport)
        transport.push(envelopes(b"1", b"2", b"3", b"4"))
        dying = consumer_of(transport)
        board = dying.board(4)
        held = claim(dying, 4)
        board.cells[0] = held[0].mark
        self.crash(transport, dying)
        heir = consumer_of(transport)
        counts = self.admin(transport).counts()
        no = envelope(b"no")
        late = [ack(held[0], no), retry(held[1], no, no), dead(held[2], None, no), release(held[3], None, no)]
        try:
            assert dying.exchange(late, 0).lost == late
        except BrokerError:
            return  # a dead owner may find its connection closed
        assert self.admin(transport).counts() == counts
        again = claim(heir, 4, within_s=self.recovery_s)
        assert [(delivery.body, delivery.crashes) for delivery in again] == [(b"1", 1), (b"2", 0), (b"3", 0), (b"4", 0)]
        assert dying.exchange(late, 0).lost == late
        assert len(settle(heir, *map(ack, again)).settled) == 4

    def test_who_was_taken_for_dead_goes_on(self, transport: Transport, clock: ManualClock) -> None:
        """An owner that lives all the same notices within a second. Then it claims and settles again, and is charged
        for what it runs then."""
        needs_crashes(transport)
        living = self._running(transport, b"1")
        heir, (again,) = self._after_crash(transport, living.consumer)
        settle(heir, ack(again))
        heir.close()
        transport.push(envelopes(b"2", b"3"))
        clock.advance_ms(NOTICED_MS)
        try:
            second, third = claim(living.consumer, 2)
        except BrokerError:
            return  # a dead owner may find its connection closed
        assert settle(living.consumer, ack(second)).settled
        living.board.cells[0] = third.mark
        _, (again,) = self._after_crash(transport, living.consumer)
        assert (again.body, again.crashes) == (b"3", 1)

    def test_a_renewal_keeps_what_is_held(self, transport: Transport) -> None:
        """Whoever renews its lease is not taken for dead."""
        transport.push(envelopes(b"1"))
        consumer = consumer_of(transport)
        delivery = claim_one(consumer)
        for _ in range(3):
            consumer.extend()
        assert nobody_gets_any(transport)
        assert settle(consumer, ack(delivery)).settled
        consumer.close()
        consumer.extend()

    def test_news_of_a_death_end_a_wait(self, live: Transport) -> None:
        """``reap_soon`` by any thread ends a wait."""
        if not live.features.counts_crashes or not self.forks:
            pytest.skip("nobody outlives another in this engine")
        consumer = consumer_of(live)
        consumer.exchange((), 1)
        told = threading.Timer(0.02, consumer.reap_soon)
        told.start()
        consumer.wait(30.0)
        told.join()
        assert not told.is_alive()

    # Steps

    def _heir_of(self, transport: Transport, dying: Consumer) -> Consumer:
        self.crash(transport, dying)
        return consumer_of(transport, owner="heir")

    def _after_crash(self, transport: Transport, dying: Consumer) -> tuple[Consumer, list[Delivery]]:
        """An heir, and the one message that it claims."""
        heir = self._heir_of(transport, dying)
        return heir, claim(heir, 1, within_s=self.recovery_s)

    def _running(self, transport: Transport, *wanted: bytes) -> _Running:
        """Pushes messages, claims the first one and has it run."""
        transport.push(envelopes(*wanted))
        consumer = consumer_of(transport)
        board = consumer.board(1)
        (held,) = claim(consumer, 1, within_s=self.recovery_s)
        board.cells[0] = held.mark
        return _Running(consumer, board, held)

    def _crashed_once(self, transport: Transport, body: bytes) -> tuple[Consumer, Delivery]:
        heir, (again,) = self._after_crash(transport, self._running(transport, body).consumer)
        assert (again.body, again.crashes) == (body, 1)
        return heir, again


class _Running:
    def __init__(self, consumer: Consumer, board: Board, held: Delivery) -> None:
        self.consumer = consumer
        self.board = board
        self.held = held


def _told(history: Sequence[Incident]) -> list[tuple[int, str]]:
    return [(incident.attempt, incident.error.type if incident.error else "") for incident in history]


def _with_error(settlement: Settlement, error: ErrorText) -> Settlement:
    return msgspec.structs.replace(settlement, error=error)


def _needs_history(transport: Transport) -> None:
    needs_crashes(transport)
    if not transport.features.history:
        pytest.skip("the engine keeps no history")
