"""The contract of waiting: what ends a wait, and that no wake-up is lost."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from ...clock import SYSTEM_CLOCK
from ...ports.transport import MAX_TRIP, Consumer, Transport
from .kit import (
    QUEUE,
    TransportKit,
    ack,
    bodies,
    claim,
    claim_one,
    consumer_of,
    drain,
    envelope,
    envelopes,
    killed,
    needs_pause,
    nothing_comes,
    release,
    settle,
)

#: Seconds: a wait that something ended is far shorter than this, one that nothing ended is longer.
LONG_S = 20.0
SOON_S = 5.0


class WaitingContract(TransportKit):
    """A consumer with room waits after a trip that brought nothing. What comes then, or came in between, ends the wait.

    A wait may also end for nothing: the caller looks again. But it may not do so again and again.
    """

    def test_a_wait_ends_after_its_timeout(self, live: Transport) -> None:
        """Where nothing comes, a wait lasts for its timeout and does not spin."""
        consumer = consumer_of(live)
        consumer.exchange((), MAX_TRIP)
        longest_s = max(_duration_s(lambda: consumer.wait(0.2)) for _ in range(4))
        assert 0.15 < longest_s < SOON_S

    def test_a_push_ends_a_wait(self, live: Transport) -> None:
        """A push by another thread ends a wait, whether it comes before the wait or during it."""
        _needs_wakes(live)
        consumer = consumer_of(live)
        for number in range(12):
            assert not consumer.exchange((), MAX_TRIP).deliveries
            with _later(lambda: live.push(envelopes(b"x")), after_s=number * 0.01):
                assert _first_news(consumer) == [b"x"]

    def test_a_push_between_trip_and_wait_is_not_lost(self, live: Transport) -> None:
        """What is pushed after the trip and before the wait ends the wait at once."""
        _needs_wakes(live)
        consumer = consumer_of(live)
        consumer.exchange((), MAX_TRIP)
        live.push(envelopes(b"1"))
        assert _first_news(consumer) == [b"1"]

    def test_a_push_of_a_settlement_ends_a_wait(self, live: Transport) -> None:
        """What another consumer's settlement pushes, or gives back, ends a wait."""
        _needs_wakes(live)
        working = consumer_of(live, "work")
        live.push([envelope(b"1", "work"), envelope(b"2", "work")])
        first, second = claim(working, 2)
        waiting = consumer_of(live, "work", "next")
        waiting.exchange((), MAX_TRIP)
        with _later(lambda: settle(working, ack(first, envelope(b"pushed", "next")))):
            assert _first_news(waiting) == [b"pushed"]
        waiting.exchange((), MAX_TRIP)
        with _later(lambda: settle(working, release(second))):
            assert _first_news(waiting) == [b"2"]

    def test_what_a_closing_consumer_gives_back_ends_a_wait(self, live: Transport) -> None:
        """What a consumer gives back when it closes ends the wait of another."""
        _needs_wakes(live)
        live.push(envelopes(b"1"))
        closing, waiting = consumer_of(live), consumer_of(live)
        claim_one(closing)
        waiting.exchange((), MAX_TRIP)
        with _later(closing.close):
            assert _first_news(waiting) == [b"1"]

    def test_a_due_time_ends_a_wait(self, live: Transport) -> None:
        """A wait ends when a delayed message becomes due, not only when something is pushed."""
        if not live.features.delay:
            pytest.skip("the engine knows no delays")
        _needs_wakes(live)
        consumer = consumer_of(live)
        assert not consumer.exchange((), MAX_TRIP).deliveries
        due_ms = SYSTEM_CLOCK.now_ms() + 200
        live.push([envelope(b"1", due_ms=due_ms)])
        # On a busy machine it may be due before there is anything to wait for.
        assert (bodies(consumer.exchange((), MAX_TRIP).deliveries) or _first_news(consumer)) == [b"1"]
        assert SYSTEM_CLOCK.now_ms() >= due_ms

    def test_a_push_with_an_earlier_due_time_counts(self, live: Transport) -> None:
        """A delayed message that comes while a consumer waits for a later one ends its wait in time."""
        if not live.features.delay:
            pytest.skip("the engine knows no delays")
        _needs_wakes(live)
        live.push([envelope(b"far", due_ms=SYSTEM_CLOCK.now_ms() + 3_600_000)])
        consumer = consumer_of(live)
        consumer.exchange((), MAX_TRIP)
        with _later(lambda: live.push([envelope(b"near", due_ms=SYSTEM_CLOCK.now_ms() + 100)])):
            assert _first_news(consumer) == [b"near"]

    def test_wake_ends_a_wait(self, live: Transport) -> None:
        """``wake`` by any thread ends a wait, whether it comes before the wait or during it."""
        consumer = consumer_of(live)
        consumer.exchange((), MAX_TRIP)
        for number in range(12):
            with _later(consumer.wake, after_s=number * 0.01):
                assert _duration_s(lambda: consumer.wait(LONG_S)) < SOON_S

    def test_wake_before_a_wait_is_remembered(self, live: Transport) -> None:
        """``wake`` while nobody waits ends the next wait, even if a trip lies between; and only that one."""
        consumer = consumer_of(live)
        consumer.wake()
        consumer.wake()
        consumer.exchange((), MAX_TRIP)
        assert _duration_s(lambda: consumer.wait(LONG_S)) < SOON_S
        assert max(_duration_s(lambda: consumer.wait(0.2)) for _ in range(4)) > 0.15

    def test_wake_in_a_signal_handler(self, live: Transport) -> None:
        """``wake`` may be called by a signal handler that interrupts the wait itself."""
        if not hasattr(signal, "pthread_kill"):
            pytest.skip("the platform cannot send a signal to a thread")
        consumer = consumer_of(live)
        consumer.exchange((), MAX_TRIP)
        waiting = threading.get_ident()
        before = signal.signal(signal.SIGUSR1, lambda *_: consumer.wake())
        try:
            for number in range(5):
                with _later(lambda: signal.pthread_kill(waiting, signal.SIGUSR1), after_s=number * 0.03):
                    assert _duration_s(lambda: consumer.wait(LONG_S)) < SOON_S
        finally:
            signal.signal(signal.SIGUSR1, before)

    def test_what_is_left_ends_a_wait(self, live: Transport) -> None:
        """A wait ends at once while something is ready that the last trip left."""
        live.push(envelopes(b"1", b"2", b"3"))
        consumer = consumer_of(live)
        claim_one(consumer)
        assert _duration_s(lambda: consumer.wait(LONG_S)) < SOON_S
        assert drain(consumer) == [b"2", b"3"]

    def test_a_paused_queue_does_not_end_a_wait(self, live: Transport) -> None:
        """What is ready in a paused queue, or in one that was not subscribed to, ends no wait."""
        live.push([envelope(b"1", "paused"), envelope(b"2", "foreign")])
        consumer = consumer_of(live, "paused", "empty")
        consumer.pause(["paused"])
        consumer.exchange((), MAX_TRIP)
        assert max(_duration_s(lambda: consumer.wait(0.2)) for _ in range(4)) > 0.15

    def test_a_dead_letter_that_is_put_back_ends_a_wait(self, live: Transport) -> None:
        """Who waits is woken by a dead letter that goes back into its queue."""
        _needs_wakes(live)
        (sent,) = killed(live, b"1")
        consumer = consumer_of(live)
        consumer.exchange((), MAX_TRIP)
        with _later(lambda: self.admin(live).move({sent.id: envelope(b"again")})):
            assert _first_news(consumer) == [b"again"]

    def test_a_queue_that_is_paused_for_all_does_not_end_a_wait(self, live: Transport) -> None:
        """While everybody is kept from a queue, what is ready in it ends no wait."""
        needs_pause(live)
        live.push(envelopes(b"1"))
        self.admin(live).pause([QUEUE])
        consumer = consumer_of(live)
        assert nothing_comes(consumer)
        assert max(_duration_s(lambda: consumer.wait(0.2)) for _ in range(4)) > 0.15

    def test_the_end_of_a_pause_ends_a_wait(self, live: Transport) -> None:
        """Who waits is woken when a queue is resumed."""
        needs_pause(live)
        _needs_wakes(live)
        live.push(envelopes(b"1"))
        self.admin(live).pause([QUEUE])
        consumer = consumer_of(live)
        assert nothing_comes(consumer)
        with _later(lambda: self.admin(live).resume([QUEUE])):
            assert _first_news(consumer) == [b"1"]

    def test_threads_share_a_transport(self, live: Transport) -> None:
        """Any thread may push and have a consumer of its own; every message is claimed exactly once."""
        per_producer, workers = 200, 4
        total = per_producer * 2
        found: list[bytes] = []
        failures: list[BaseException] = []
        all_found = threading.Event()

        def produce(name: str) -> None:
            for number in range(0, per_producer, 4):
                live.push(envelopes(*(f"{name}{number + i}".encode() for i in range(4))))

        def consume() -> None:
            consumer = consumer_of(live)
            while not all_found.is_set():
                deliveries = consumer.exchange((), 7).deliveries
                answer = consumer.exchange([ack(delivery) for delivery in deliveries], 0)
                found.extend(settlement.delivery.body for settlement in answer.settled)
                if len(found) >= total:
                    all_found.set()
                elif not deliveries:
                    consumer.wait(0.02)
            consumer.close()

        def guarded(target: Callable[[], None]) -> None:
            try:
                target()
            except BaseException as e:  # noqa: BLE001  # reported by the test's own thread
                failures.append(e)
                all_found.set()

        threads = [threading.Thread(target=guarded, args=(lambda name=name: produce(name),)) for name in "ab"]
        threads += [threading.Thread(target=guarded, args=(consume,)) for _ in range(workers)]
        for thread in threads:
            thread.start()
        finished = all_found.wait(LONG_S)
        all_found.set()
        for thread in threads:
            thread.join()
        assert not failures
        assert finished
        assert sorted(found) == sorted(f"{name}{i}".encode() for name in "ab" for i in range(per_producer))


def _needs_wakes(transport: Transport) -> None:
    if not transport.features.wakes:
        pytest.skip("the engine does not wake those who wait: they find out at their next look")


def _duration_s(action: Callable[[], None]) -> float:
    started = time.monotonic()
    action()
    return time.monotonic() - started


@contextmanager
def _later(action: Callable[[], object], after_s: float = 0.1) -> Iterator[None]:
    """Has another thread do ``action``, most probably while the body waits; it has to work out at any time."""
    timer = threading.Timer(after_s, action)
    timer.start()
    try:
        yield
    finally:
        timer.join()


def _first_news(consumer: Consumer) -> list[bytes]:
    """Waits as a pump does, and acks what came: a few long waits must be enough."""
    started = time.monotonic()
    for _ in range(10):
        consumer.wait(LONG_S)
        deliveries = consumer.exchange((), MAX_TRIP).deliveries
        if deliveries:
            assert time.monotonic() - started < SOON_S, "the wait ended too late"
            settle(consumer, *(ack(delivery) for delivery in deliveries))
            return bodies(deliveries)
    raise AssertionError("the waits ended, but nothing came")
