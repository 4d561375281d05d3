"""Completion in a store that is not the broker's: one pushes at a time, and who dies is followed."""

from __future__ import annotations

import pytest

from greenroom.brokers.stub import StubBroker
from greenroom.core.graph import pushed_key, set_key, then_key
from greenroom.engines.memory.store import MemoryStore
from greenroom.engines.memory.transport import MemoryTransport
from greenroom.errors import BrokerError
from greenroom.middleware import GroupCallbacks
from greenroom.middleware.completing import PUSHED, TAKEN_TTL_MS, BeingPushed, complete, making_set
from greenroom.ports.store import Get, LeaseTake, Put, SetLook, SetRemove
from greenroom.ports.transport import Envelope, pack
from greenroom.rate_limits import StoreBackend
from greenroom.testing.clock import ManualClock

TTL_MS = 60_000


class Elsewhere:
    """A broker, another store, and groups in that."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.broker = StubBroker(clock=self.clock)
        self.broker.declare_queue("default")
        self.store = MemoryStore(MemoryTransport(clock=self.clock))
        self.broker.add_middleware(GroupCallbacks(StoreBackend(self.store)))

    def make(self, group: str, callbacks: int = 1, parent: tuple[str, str] | None = None) -> None:
        then = tuple(pack(Envelope("default", f"{group}-{n}", b"{}")) for n in range(callbacks))
        self.store.apply(list(making_set(self.broker, group, ["1"], TTL_MS, then, parent)))

    def end(self, group: str) -> None:
        """Its one member has failed."""
        self.store.apply([SetRemove(set_key(group), "1", failed=True)])

    @property
    def pushed(self) -> int:
        return self.broker.transport.counts(["default"])["default"].ready


@pytest.fixture
def elsewhere() -> Elsewhere:
    return Elsewhere()


def test_the_store_is_not_the_brokers(elsewhere: Elsewhere) -> None:
    """It is the one under the backend of GroupCallbacks."""
    assert elsewhere.broker.composition_store is elsewhere.store


def test_it_is_done_once(elsewhere: Elsewhere) -> None:
    """Who comes again finds it done, and nothing is left of what was to be done."""
    elsewhere.make("g", callbacks=3)
    elsewhere.end("g")
    for holder in ("a", "b"):
        complete(elsewhere.broker, "g", holder)
    assert elsewhere.pushed == 3
    assert elsewhere.store.apply([Get(then_key("g")), Get(pushed_key("g"))]) == [None, PUSHED]


def test_who_has_died_is_followed(elsewhere: Elsewhere) -> None:
    """While somebody seems to push, nobody else does; when the time of that one is over, the next one does."""
    elsewhere.make("g")
    elsewhere.end("g")
    elsewhere.store.apply([LeaseTake(then_key("g"), "dead", 1, TAKEN_TTL_MS)])
    with pytest.raises(BeingPushed):
        complete(elsewhere.broker, "g", "next")
    assert elsewhere.pushed == 0
    elsewhere.clock.advance_ms(TAKEN_TTL_MS + 1)
    complete(elsewhere.broker, "g", "next")
    assert elsewhere.pushed == 1


def test_who_has_pushed_and_noted_it_is_not_followed(elsewhere: Elsewhere) -> None:
    """It has died after its note: what is left is tidied up."""
    elsewhere.make("g")
    elsewhere.end("g")
    elsewhere.store.apply([Put(pushed_key("g"), PUSHED, TTL_MS)])
    complete(elsewhere.broker, "g", "next")
    assert elsewhere.pushed == 0
    assert elsewhere.store.apply([Get(then_key("g"))]) == [None]


def test_a_broker_that_does_not_answer(elsewhere: Elsewhere, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same one tries again, and need not wait for itself."""
    elsewhere.make("g")
    elsewhere.end("g")
    with monkeypatch.context() as m:
        m.setattr(elsewhere.broker.transport, "push", lambda batch: (_ for _ in ()).throw(BrokerError("away")))
        with pytest.raises(BrokerError):
            complete(elsewhere.broker, "g", "a")
    complete(elsewhere.broker, "g", "a")
    assert elsewhere.pushed == 1


def test_groups_in_groups(elsewhere: Elsewhere) -> None:
    """The outer group is told, as of a failure, and completes, too."""
    elsewhere.make("outer")
    elsewhere.make("inner", parent=(set_key("outer"), "1"))
    elsewhere.end("inner")
    complete(elsewhere.broker, "inner", "a")
    assert elsewhere.pushed == 2
    (progress,) = elsewhere.store.apply([SetLook(set_key("outer"))])
    assert (progress.left, progress.failed) == (0, 1)


def test_a_group_that_nobody_remembers(elsewhere: Elsewhere) -> None:
    """There is nothing to do."""
    elsewhere.make("g")
    elsewhere.end("g")
    elsewhere.clock.advance_ms(TTL_MS + 1)
    complete(elsewhere.broker, "g", "a")
    assert elsewhere.pushed == 0
