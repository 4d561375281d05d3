"""The store contract, run for the engine in memory, and what is this engine's alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from greenroom.clock import Clock
from greenroom.core.verdict import Verdict
from greenroom.engines.memory.lookout import Lookout
from greenroom.engines.memory.store import MemoryStore
from greenroom.engines.memory.transport import MemoryTransport
from greenroom.errors import QueueStalled
from greenroom.ports.store import Get, LeaseTake, Put, Store
from greenroom.ports.transport import Settlement, Transport
from greenroom.testing.clock import ManualClock
from greenroom.testing.contract import StoreContract
from greenroom.testing.contract.kit import claim_one, consumer_of, envelopes, settle
from greenroom.testing.contract.store_kit import do


class TestMemoryStore(StoreContract):
    forks = False

    def make(self, tmp_path: Path, clock: Clock) -> Store:
        return MemoryStore(MemoryTransport(clock=clock, max_body=17 * 1024 * 1024))

    def transport_of(self, store: Store) -> Transport:
        assert isinstance(store, MemoryStore)
        return store.transport


def test_a_join_knows_when_a_slot_ends() -> None:
    """A parked message is waited for like a delayed one, and a clock set by hand stops at the end of the slot."""
    clock = ManualClock()
    transport = MemoryTransport(clock=clock)
    store = MemoryStore(transport)
    do(store, LeaseTake("a", "holder", 1, 3_600_000))
    transport.push(envelopes(b"1"))
    consumer = consumer_of(transport)
    delivery = claim_one(consumer)
    settle(consumer, Settlement(delivery, Verdict.RELEASE, park=LeaseTake("a", delivery.id, 1, 1000)))
    lookout = Lookout(transport, clock, lambda _: None)
    assert lookout.next_due_ms() == clock.now_ms() + 3_600_000
    with pytest.raises(QueueStalled, match="due in 1 h of a clock"):
        lookout.join("default", timeout_ms=1000, until_dead=False)
    clock.advance_ms(3_600_000)
    assert claim_one(consumer).body == b"1"


def test_all_stores_of_a_transport_are_one() -> None:
    """What one store of a transport keeps, another one finds; a store of another transport does not."""
    transport = MemoryTransport()
    do(MemoryStore(transport), Put("a", b"1"))
    assert do(MemoryStore(transport), Get("a")) == b"1"
    other = MemoryStore(MemoryTransport())
    assert do(other, Get("a")) is None
    assert not other.is_one_with(transport)
