"""Threads and the loop as two lanes: what one has no room for does not keep the other from working."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from greenroom import actor
from greenroom.core.verdict import Verdict
from greenroom.ports.admin import Counts
from tests.runtime.async_kit import AsyncGate
from tests.runtime.cli_kit import wait_until
from tests.runtime.worker_kit import ENGINES, LOOK_MS, EngineTestBroker, Gate, Troubled, collector, make_broker, working

MakeBroker = Callable[[], EngineTestBroker]


@pytest.fixture(params=ENGINES)
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[MakeBroker]:
    """Makes brokers on one engine: those of a SQLite file share it."""
    brokers = []

    def make() -> EngineTestBroker:
        brokers.append(make_broker(request.param, tmp_path))
        return brokers[-1]

    yield make
    for broker in brokers:
        broker.close()


def test_long_sync_tasks_do_not_starve_coroutines(make: MakeBroker) -> None:
    """With every thread taken and more sync messages in another queue than could ever wait here, coroutines run."""
    broker, gate, done = make(), Gate(), []
    slow = actor(gate.__call__, broker=broker, actor_name="slow", queue_name="slow")

    @actor(broker=broker)
    async def quick(number: int) -> None:
        done.append(number)

    slow.send_many([(number,) for number in range(100)])
    with working(broker, 2):
        wait_until(lambda: len(gate.entered) == 2, "the threads are taken")
        quick.send_many([(number,) for number in range(500)])
        wait_until(lambda: len(done) == 500, "coroutines run meanwhile")
        counts = broker.counts("slow")
        assert counts.claimed <= 2 + 2 * 2
        assert counts.ready + counts.claimed == 100
        gate.open()
        broker.wait_until_empty("slow")


def test_long_coroutines_do_not_starve_threads(make: MakeBroker) -> None:
    """The other way round."""
    broker, gate = make(), AsyncGate()
    slow = actor(gate.__call__, broker=broker, actor_name="slow", queue_name="slow")
    collect, notes = collector(broker)
    slow.send_many([(number,) for number in range(100)])
    with working(broker, 2, concurrency=3):
        wait_until(lambda: len(gate.entered) == 3, "the places are taken")
        collect.send_many([(number,) for number in range(500)])
        wait_until(lambda: len(notes) == 500, "threads work meanwhile")
        assert broker.counts("slow").claimed <= 3 + 3 + 2
        gate.open()
        broker.wait_until_empty("slow")


def test_one_queue_for_both_kinds(make: MakeBroker) -> None:
    """Mixed in one queue, all run: a short round of one kind that cannot run yet does not hold up the other."""
    broker, gate, done = make(), Gate(), []
    slow = actor(gate.__call__, broker=broker, actor_name="slow")

    @actor(broker=broker)
    async def quick(number: int) -> None:
        done.append(number)

    for number in range(3):
        slow.send(number)
        quick.send(number)
    with working(broker, 2):
        wait_until(lambda: len(done) == 3 and len(gate.entered) == 2, "coroutines run beside blocked threads")
        gate.open()
        broker.wait_until_empty()
    assert sorted(gate.left) == [0, 1, 2]


def test_a_surplus_goes_to_another_worker(tmp_path: Path) -> None:
    """What a worker gives back because its threads are taken, another one runs; the first does not claim it again at
    once, and does not turn round and round for it."""
    ours, theirs = make_broker("sqlite", tmp_path), make_broker("sqlite", tmp_path)
    ours.transport = troubled = Troubled(ours.transport)
    gate, agate = Gate(), AsyncGate()
    slow = actor(gate.__call__, broker=ours, actor_name="slow")
    waits = actor(agate.__call__, broker=ours, actor_name="waits", queue_name="other")
    _, notes = collector(theirs, name="slow")
    slow.send_many([(number,) for number in range(50)])
    with working(ours, 2, timeout_ms=5_000):
        wait_until(lambda: len(gate.entered) == 2, "the threads are taken")
        wait_until(lambda: any(released(trip) for trip in troubled.trips), "a surplus is given back")
        before, since_s = len(troubled.trips), time.monotonic()
        waits.send("x")
        agate.wait_for("x")
        agate.open()
        ours.wait_until_empty("other")
        with working(theirs, 1):
            wait_until(lambda: theirs.counts().ready == 0, "the others are run by another worker")
            wait_until(lambda: len(notes) >= 44, "they have run")
        given_back = sum(len(released(trip)) for trip in troubled.trips)
        assert given_back <= 2 + 1
        looks = (time.monotonic() - since_s) * 1000 / LOOK_MS
        assert len(troubled.trips) - before < 100 + looks, "it looks busily"
        gate.open()
        ours.wait_until_empty()
    assert sorted([*notes, *gate.left]) == list(range(50))
    ours.close()
    theirs.close()


def released(trip: tuple[list[object], int, object]) -> list[object]:
    """What a trip has given back."""
    return [s for s in trip[0] if getattr(s, "verdict", None) is Verdict.RELEASE]


def test_priority_holds_within_a_lane(make: MakeBroker) -> None:
    """Among messages of one kind lower numbers run first, whatever the order in which they were sent."""
    broker, order, aorder = make(), [], []

    @actor(broker=broker)
    def sync(priority: int, number: int) -> None:
        order.append((priority, number))

    @actor(broker=broker)
    async def coroutine(priority: int, number: int) -> None:
        aorder.append((priority, number))

    for number in range(20):
        for priority in (5, -3, 0):
            sync.send_with_options(args=(priority, number), priority=priority)
            coroutine.send_with_options(args=(priority, number), priority=priority)
    with working(broker, 1, concurrency=1):
        broker.wait_until_empty()
    assert order == sorted(order)
    assert aorder == sorted(aorder)
    assert len(order) == len(aorder) == 60
    assert broker.counts() == Counts()
