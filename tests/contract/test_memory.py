"""The transport contract, run for the engine in memory, and what is this engine's alone."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from greenroom.clock import Clock
from greenroom.core.verdict import Verdict
from greenroom.engines.memory.transport import MemoryConsumer, MemoryTransport
from greenroom.errors import BrokerError, MessageTooLarge
from greenroom.ports.admin import Counts
from greenroom.ports.store import LeaseTake
from greenroom.ports.transport import MAX_TRIP, Consumer, Settlement, Transport
from greenroom.testing.clock import ManualClock
from greenroom.testing.contract import TransportContract
from greenroom.testing.contract.kit import ack, claim, claim_one, consumer_of, envelope, envelopes, settle
from greenroom.testing.contract.processes import in_child


class TestMemoryTransport(TransportContract):
    forks = False
    durable = False

    def make(self, tmp_path: Path, clock: Clock) -> Transport:
        return MemoryTransport(clock=clock, max_body=5 * 1024 * 1024)

    def crash(self, transport: Transport, consumer: Consumer) -> None:
        assert isinstance(consumer, MemoryConsumer)
        consumer.abandon()


def test_no_limit_by_default() -> None:
    """Without ``max_body`` nothing is too large."""
    assert MemoryTransport().features.max_body is None


def test_too_large_a_body_tells_its_size() -> None:
    """A body over the limit is refused with its size and the limit; one of just the limit is taken."""
    transport = MemoryTransport(max_body=3)
    transport.push(envelopes(b"123"))
    with pytest.raises(MessageTooLarge) as e:
        transport.push(envelopes(b"1234"))
    assert (e.value.size, e.value.limit) == (4, 3)


def test_a_moved_clock_ends_waits() -> None:
    """With a clock that is set by hand, ``clock_moved`` makes those who wait look again."""
    clock = ManualClock()
    transport = MemoryTransport(clock=clock)
    transport.push([envelope(b"1", due_ms=clock.now_ms() + 3_600_000)])
    consumer = consumer_of(transport)
    assert not consumer.exchange((), MAX_TRIP).deliveries

    def move() -> None:
        clock.advance_ms(3_600_000)
        transport.clock_moved()

    mover = threading.Thread(target=move)
    started = time.monotonic()
    mover.start()
    consumer.wait(30.0)
    mover.join()
    assert time.monotonic() - started < 5.0
    assert claim_one(consumer).body == b"1"


def test_a_child_has_a_private_copy() -> None:
    """A forked child sees what was there at the fork; what it does, the parent does not see."""
    transport = MemoryTransport()
    transport.push(envelopes(b"1"))

    def work() -> None:
        consumer = consumer_of(transport)
        settle(consumer, ack(claim_one(consumer)))
        transport.push(envelopes(b"2", b"3"))
        assert transport.counts(["default"]) == {"default": Counts(ready=2)}

    in_child(work)
    assert transport.counts(["default"]) == {"default": Counts(ready=1)}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the platform cannot fork")
def test_a_fork_while_threads_push() -> None:
    """A child forked while other threads use the transport does not inherit a lock that nobody will open."""
    transport = MemoryTransport()
    stop = threading.Event()

    def push() -> None:
        while not stop.is_set():
            transport.push(envelopes(*(b"x" for _ in range(20))))
            transport.purge("default")

    threads = [threading.Thread(target=push) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(20):
            in_child(lambda: claim(_after_push(transport), 1))
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def _after_push(transport: Transport) -> Consumer:
    transport.push(envelopes(b"child"))
    return consumer_of(transport)


@pytest.mark.parametrize(
    "settlement",
    [
        {"writes": ("put",)},
        {"park": LeaseTake("limiter", "me", 0, 1000)},
        {"park": LeaseTake("limiter", "me", 1, 1000), "verdict": Verdict.ACK},
        {"verdict": Verdict.RETRY},
    ],
    ids=["no operation", "nobody is let in", "a parked ACK", "a retry without its envelope"],
)
def test_what_the_engine_does_not_know_is_refused(settlement: dict[str, object]) -> None:
    """Settlements that write nonsense, park for ever or lack what they need are refused, and change nothing."""
    transport = MemoryTransport()
    transport.push(envelopes(b"1"))
    consumer = consumer_of(transport)
    bad = Settlement(claim_one(consumer), **{"verdict": Verdict.RELEASE, **settlement})  # type: ignore[arg-type]  # parametrised
    ((refused, error),) = settle(consumer, bad).refused
    assert refused is bad
    assert isinstance(error, (BrokerError, ValueError))
    assert transport.counts()["default"] == Counts(claimed=1)


def test_a_trip_has_a_bound() -> None:
    """A trip with more settlements than the port allows is a mistake of the caller, and nothing is applied."""
    transport = MemoryTransport()
    transport.push(envelopes(*(b"x" for _ in range(MAX_TRIP + 1))))
    consumer = consumer_of(transport)
    held = claim(consumer, MAX_TRIP + 1)
    with pytest.raises(ValueError, match="1001 settlements"):
        consumer.exchange([ack(delivery) for delivery in held], 0)
    assert transport.counts()["default"] == Counts(claimed=MAX_TRIP + 1)


def test_what_is_remembered_of_old_trips_is_bounded() -> None:
    """A consumer remembers its last two trips, not every settlement of its life."""
    transport = MemoryTransport()
    transport.push(envelopes(b"1", b"2", b"3"))
    consumer = consumer_of(transport)
    trips = [ack(delivery) for delivery in claim(consumer, 3)]
    for trip in trips:
        settle(consumer, trip)
    assert settle(consumer, trips[0]).lost == [trips[0]]
