"""Store writers: stores that are not the broker are written beside the executors, before the message is settled."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from greenroom import Message
from greenroom.brokers.stub import StubBroker
from greenroom.core.ending import Ending, Outcome
from greenroom.core.verdict import Verdict
from greenroom.engines.memory.store import MemoryStore
from greenroom.engines.memory.transport import MemoryTransport
from greenroom.errors import BrokerError, MessageTooLarge
from greenroom.ports.store import Get, Put
from greenroom.ports.transport import Delivery, Settlement
from greenroom.runtime.store_writer import StoreWriters, write_now
from tests.runtime.cli_kit import wait_until


class Store(MemoryStore):
    """A store that fails when it is told to, and can be held up."""

    def __init__(self) -> None:
        super().__init__(MemoryTransport())
        self.errors: list[Exception | None] = []
        self.too_large: str | None = None
        self.trips: list[int] = []
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()

    def apply(self, ops: Sequence[Any]) -> list[Any]:
        self.entered.set()
        assert self.gate.wait(30)
        self.trips.append(len(ops))
        if self.errors and (error := self.errors.pop(0)) is not None:
            raise error
        if any(isinstance(op, Put) and op.key == self.too_large for op in ops):
            raise MessageTooLarge("too large", size=2, limit=1)
        return super().apply(ops)


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
def writers() -> Iterator[StoreWriters]:
    writers = StoreWriters(first_wait_s=0.01)
    yield writers
    writers.stop(10)


class Done(list[str]):
    """The ids of the endings that are to be settled, in order."""

    def __call__(self, ending: Ending) -> None:
        self.append(ending.delivery.id)

    def wait_for(self, count: int) -> None:
        wait_until(lambda: len(self) >= count, f"{count} endings are done")


def new_ending(name: str = "a") -> Ending:
    settlement = Settlement(Delivery("default", name, b"", 1, 1), Verdict.ACK)
    return Ending(StubBroker([]), Message("default", "work", (), {}, {}, name), settlement, Outcome.DONE)


def ending_with(store: Any, name: str = "a", *, strict: bool = False) -> Ending:
    ending = new_ending(name)
    ending.keep(store, Put(name, b"1"), strict=strict)
    return ending


def test_it_is_written_then_settled(writers: StoreWriters, store: Store) -> None:
    """Nothing is settled before the store has it."""
    done = Done()
    store.gate.clear()
    writers.put(ending_with(store), done)
    assert store.entered.wait(10)
    assert done == []
    store.gate.set()
    done.wait_for(1)
    assert store.apply([Get("a")]) == [b"1"]


def test_what_comes_meanwhile_goes_together(writers: StoreWriters, store: Store) -> None:
    """A hundred endings that come during one trip take one more."""
    done = Done()
    store.gate.clear()
    writers.put(ending_with(store, "first"), done)
    assert store.entered.wait(10)
    for n in range(100):
        writers.put(ending_with(store, str(n)), done)
    store.gate.set()
    done.wait_for(101)
    assert store.trips == [1, 100]
    assert done == ["first", *map(str, range(100))]


def test_a_short_trouble_is_not_seen(writers: StoreWriters, store: Store) -> None:
    """Two failures, and the third try does it."""
    done = Done()
    store.errors = [BrokerError("away"), BrokerError("away")]
    writers.put(ending_with(store), done)
    done.wait_for(1)
    assert store.apply([Get("a")]) == [b"1"]
    assert writers.lost == 0


def test_after_three_tries_it_is_given_up(
    writers: StoreWriters, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    """The message is settled without it; that is logged as ``result_lost``, with the reason, and counted."""
    done = Done()
    store.errors = [BrokerError("away")] * 3
    writers.put(ending_with(store), done)
    done.wait_for(1)
    assert len(store.trips) == 3
    assert store.apply([Get("a")]) == [None]
    assert writers.lost == 1
    assert "result_lost: what was to be kept of message a could not be written: BrokerError: away" in caplog.text


def test_what_is_strict_waits(writers: StoreWriters, store: Store) -> None:
    """However often it fails, and others that come meanwhile are not kept from their turn."""
    done = Done()
    store.errors = [BrokerError("away")] * 8
    writers.put(ending_with(store, "strict", strict=True), done)
    writers.put(ending_with(store, "lax"), done)
    done.wait_for(2)
    assert store.apply([Get("strict")]) == [b"1"]
    assert done == ["lax", "strict"]


def test_one_that_is_impossible_does_not_harm_the_others(writers: StoreWriters, store: Store) -> None:
    """A value that is too large is given up at once, even if it is strict; what went with it is written."""
    done = Done()
    store.too_large = "bad"
    store.gate.clear()
    writers.put(ending_with(store, "first"), done)
    assert store.entered.wait(10)
    for name in ("good", "bad", "fine"):
        writers.put(ending_with(store, name, strict=True), done)
    store.gate.set()
    done.wait_for(4)
    assert store.apply([Get("good"), Get("bad"), Get("fine")]) == [b"1", None, b"1"]
    assert writers.lost == 1


def test_a_slow_store_holds_up_nobody_else(writers: StoreWriters, store: Store) -> None:
    """Each store has a thread of its own."""
    done, other = Done(), Store()
    store.gate.clear()
    writers.put(ending_with(store, "slow"), done)
    writers.put(ending_with(other, "fast"), done)
    done.wait_for(1)
    assert done == ["fast"]
    store.gate.set()
    done.wait_for(2)


def test_actions(writers: StoreWriters, store: Store) -> None:
    """An action is called again until it does not raise, and may add to what is settled and to what is still to do."""
    ending, done, tries = new_ending(), Done(), []

    def act() -> None:
        tries.append(threading.current_thread().name)
        if len(tries) < 5:
            raise BrokerError("away")
        ending.writes.append(Put("own", b"1"))
        ending.keep(store, Put("late", b"1"))

    ending.call(store, act, strict=True)
    writers.put(ending, done)
    done.wait_for(1)
    assert tries == ["store-writer"] * 5
    assert ending.writes == [Put("own", b"1")]
    assert store.apply([Get("late")]) == [b"1"]


def test_without_jobs_it_is_done_at_once(writers: StoreWriters) -> None:
    """In the calling thread, which needs no other."""
    done = Done()
    writers.put(new_ending(), done)
    assert done == ["a"]


def test_the_end_leaves_what_cannot_be_written(store: Store) -> None:
    """Stopping waits for no store that is away: what is strict is not settled, so it is delivered again."""
    writers, done = StoreWriters(first_wait_s=60), Done()
    store.errors = [BrokerError("away")] * 100
    writers.put(ending_with(store, strict=True), done)
    wait_until(lambda: store.trips, "the first try was made")
    writers.stop(10)
    assert done == []


def test_without_a_worker(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    """Inline mode writes in the calling thread, once; what fails is logged."""
    ending = ending_with(store)
    write_now(ending)
    assert store.apply([Get("a")]) == [b"1"]
    store.errors = [BrokerError("away")]
    write_now(ending_with(store, "b"))
    assert "result_lost" in caplog.text
