"""What the parts of the contract share: the hooks that an engine's author fills in, and a few steps."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import cast

import pytest

from ...clock import SYSTEM_CLOCK, Clock
from ...core.verdict import Verdict
from ...names import new_storage_id
from ...ports.admin import Admin
from ...ports.store import StoreOp
from ...ports.transport import MAX_TRIP, Consumer, Delivery, Envelope, ErrorText, Exchange, Settlement, Transport
from ..clock import ManualClock

#: The queue of tests that need only one.
QUEUE = "default"

#: Seconds after which what should have happened will not happen any more.
DEADLINE_S = 10.0


class TransportKit:
    """The hooks of an engine's author. Only ``make`` has to be written."""

    #: A child made by ``os.fork`` reaches the same messages.
    forks: bool = True

    #: Messages outlive the transport: a second ``make`` with the same folder finds them.
    durable: bool = True

    #: Seconds within which the messages of a dead process are given to others.
    recovery_s: float = DEADLINE_S

    #: Endings of names under which the engine keeps something beside a queue.
    reserved_suffixes: tuple[str, ...] = ()

    def make(self, tmp_path: Path, clock: Clock) -> Transport:
        """Makes a transport that holds no message yet, or those that an earlier one in the same folder left.

        Parameters:
          tmp_path: A private folder; the same one means the same store.
          clock: What the engine must take the time from. An engine that can only follow its server's clock may skip
            the tests of delays: ``if isinstance(clock, ManualClock): ...``.
        """
        raise NotImplementedError("say in make() how to make your transport")

    def admin(self, transport: Transport) -> Admin:
        """The engine's ``Admin``: by default the transport itself. Call ``pytest.skip`` if there is none."""
        return cast("Admin", transport)

    def crash(self, transport: Transport, consumer: Consumer) -> None:
        """Makes the engine take the owner of ``consumer`` for dead, so that it gives its messages to others.

        Needed for engines with ``forks = False``; the others are tested with a process that dies.
        """
        pytest.skip("crash() is not written for this engine")

    def unstorable(self, transport: Transport) -> Envelope:
        """An envelope that the engine can never keep: by default one larger than ``features.max_body``."""
        limit = transport.features.max_body
        if limit is None:
            pytest.skip("features.max_body is None and unstorable() is not written")
        return envelope(b"x" * (limit + 1))

    def _needs_fork(self) -> None:
        if not self.forks:
            pytest.skip("a forked child does not reach the same messages")
        if not hasattr(os, "fork"):
            pytest.skip("the platform cannot fork")

    @pytest.fixture
    def clock(self) -> ManualClock:
        return ManualClock()

    @pytest.fixture
    def transport(self, tmp_path: Path, clock: ManualClock) -> Iterator[Transport]:
        """A transport whose clock stands still until the test moves it."""
        transport = self.make(tmp_path, clock)
        yield transport
        transport.close()

    @pytest.fixture
    def live(self, tmp_path: Path) -> Iterator[Transport]:
        """A transport on the clock of the machine."""
        transport = self.make(tmp_path, SYSTEM_CLOCK)
        yield transport
        transport.close()


def envelope(body: bytes = b"", queue: str = QUEUE, *, priority: int = 0, due_ms: int | None = None) -> Envelope:
    """An envelope with a fresh storage id."""
    return Envelope(queue, new_storage_id(), body, priority, due_ms)


def envelopes(*bodies: bytes, queue: str = QUEUE) -> list[Envelope]:
    """An envelope for each body."""
    return [envelope(body, queue) for body in bodies]


def consumer_of(transport: Transport, *queues: str, owner: str = "contract") -> Consumer:
    """A consumer that is subscribed to ``queues``, or to the usual one."""
    consumer = transport.consumer(owner)
    consumer.subscribe(queues or (QUEUE,))
    return consumer


def claim(
    consumer: Consumer, count: int, skip: AbstractSet[str] = frozenset(), within_s: float = DEADLINE_S
) -> list[Delivery]:
    """Claims ``count`` messages, in as many trips as the engine needs."""
    deadline = time.monotonic() + within_s
    deliveries: list[Delivery] = []
    while True:
        deliveries += consumer.exchange((), min(count - len(deliveries), MAX_TRIP), skip).deliveries
        if len(deliveries) == count:
            return deliveries
        assert time.monotonic() < deadline, f"only {len(deliveries)} of {count} messages came: {bodies(deliveries)!r}"
        consumer.wait(0.02)


def claim_one(consumer: Consumer) -> Delivery:
    """Claims one message."""
    return claim(consumer, 1)[0]


def nothing_comes(consumer: Consumer) -> bool:
    """True if neither this trip nor the next brings a message."""
    if consumer.exchange((), MAX_TRIP).deliveries:
        return False
    consumer.wait(0.02)
    return not consumer.exchange((), MAX_TRIP).deliveries


def settle(consumer: Consumer, *settlements: Settlement) -> Exchange:
    """Settles without claiming, and waits until all are answered. Each has to be answered once."""
    deadline = time.monotonic() + DEADLINE_S
    settled: list[Settlement] = []
    lost: list[Settlement] = []
    refused: list[tuple[Settlement, Exception]] = []
    todo: Sequence[Settlement] = settlements
    while True:
        answer = consumer.exchange(todo, 0)
        assert not answer.deliveries, "a trip with limit 0 claims nothing"
        settled += answer.settled
        lost += answer.lost
        refused += answer.refused
        answered = len(settled) + len(lost) + len(refused)
        if answered >= len(settlements):
            assert answered == len(settlements), "a settlement was answered more than once"
            return Exchange((), settled, lost, refused, answer.more)
        assert time.monotonic() < deadline, f"only {answered} of {len(settlements)} settlements were answered"
        todo = ()
        consumer.wait(0.02)


def ack(delivery: Delivery, *push: Envelope, writes: tuple[StoreOp, ...] = ()) -> Settlement:
    """Done, and ``push`` goes out with it."""
    return Settlement(delivery, Verdict.ACK, push=push, writes=writes)


def dead(delivery: Delivery, error: ErrorText | None = None, *push: Envelope) -> Settlement:
    """To the dead letters, with its error."""
    return Settlement(delivery, Verdict.DEAD, error=error, push=push)


def retry(delivery: Delivery, instead: Envelope, *push: Envelope) -> Settlement:
    """Replaced by ``instead``."""
    return Settlement(delivery, Verdict.RETRY, retry=instead, push=push)


def release(delivery: Delivery, due_ms: int | None = None, *push: Envelope) -> Settlement:
    """Given back, not before ``due_ms``."""
    return Settlement(delivery, Verdict.RELEASE, due_ms=due_ms, push=push)


def bodies(deliveries: Iterable[Delivery]) -> list[bytes]:
    """The bodies, in order."""
    return [delivery.body for delivery in deliveries]


def drain(consumer: Consumer, within_s: float = DEADLINE_S) -> list[bytes]:
    """Claims and acks until nothing comes any more; the bodies in the order of their claims."""
    deadline = time.monotonic() + within_s
    found: list[bytes] = []
    held: list[Settlement] = []
    while time.monotonic() < deadline:
        answer = consumer.exchange(held, MAX_TRIP)
        held = [ack(delivery) for delivery in answer.deliveries]
        found += bodies(answer.deliveries)
        if not held and nothing_comes(consumer):
            return found
    raise AssertionError(f"messages still came after {within_s} s")


def drained(transport: Transport, *queues: str) -> list[bytes]:
    """What a new consumer of these queues, or of the usual one, gets until nothing comes any more. It is closed then: a
    broker that pushes would send to it what others are to get."""
    consumer = consumer_of(transport, *queues)
    try:
        return drain(consumer)
    finally:
        consumer.close()


def nobody_gets_any(transport: Transport, *queues: str) -> bool:
    """True if nothing comes to a new consumer, which is closed then."""
    consumer = consumer_of(transport, *queues)
    try:
        return nothing_comes(consumer)
    finally:
        consumer.close()


def killed(transport: Transport, *wanted: bytes, queue: str = QUEUE, error: ErrorText | None = None) -> list[Envelope]:
    """Pushes a message for each body and lets them die one after the other; the envelopes, in that order."""
    sent = envelopes(*wanted, queue=queue)
    transport.push(sent)
    consumer = consumer_of(transport, queue)
    for _ in sent:
        settle(consumer, dead(claim_one(consumer), error))
    consumer.close()
    return sent


def needs_crashes(transport: Transport) -> None:
    """Skips the test if the engine does not count crashes."""
    if not transport.features.counts_crashes:
        pytest.skip("the engine counts no crashes")


def needs_attempts(transport: Transport) -> None:
    """Skips the test if the engine does not count claims exactly."""
    if not transport.features.counts_attempts:
        pytest.skip("the engine does not count each claim")


def needs_pause(transport: Transport) -> None:
    """Skips the test if the engine cannot pause queues."""
    if not transport.features.pause:
        pytest.skip("the engine cannot pause a queue for everybody")
