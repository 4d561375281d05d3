"""How much a worker claims: short tasks by the hundred, and nothing behind a long one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from greenroom import actor
from greenroom.core.prefetch import MAX_HELD
from greenroom.ports.admin import Counts
from tests.runtime.cli_kit import wait_until
from tests.runtime.worker_kit import ENGINES, EngineTestBroker, Gate, Troubled, collector, make_broker, working


@pytest.fixture(params=ENGINES)
def trouble(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Troubled]:
    transport = Troubled(make_broker(request.param, tmp_path).transport)
    yield transport
    transport.close()


@pytest.fixture
def broker(trouble: Troubled) -> EngineTestBroker:
    return EngineTestBroker(trouble)


def test_a_long_task_keeps_nothing_behind_it(broker: EngineTestBroker) -> None:
    """A worker that is busy holds only what it runs: another one gets the rest at once."""
    gate = Gate()
    block = actor(gate, broker=broker, actor_name="block")
    collect, notes = collector(broker)
    block.send()
    with working(broker):
        gate.wait_for(None)
        collect.send_many((n,) for n in range(10))
        assert broker.counts() == Counts(ready=10, claimed=1)
        with working(broker):
            wait_until(lambda: len(notes) == 10, "the other worker has run the rest")
        assert broker.counts() == Counts(claimed=1)
        gate.open()


def test_long_tasks_are_shared(broker: EngineTestBroker) -> None:
    """Two workers with a thread each run two of three long tasks, and the third waits in the queue, not in one of
    them."""
    gate = Gate()
    block = actor(gate, broker=broker, actor_name="block")
    with working(broker), working(broker):
        block.send_many((n,) for n in range(3))
        gate.wait_for(0, 1)
        assert broker.counts() == Counts(ready=1, claimed=2)
        gate.open()
        broker.wait_until_empty()


def test_short_tasks_are_claimed_in_hundreds(broker: EngineTestBroker, trouble: Troubled) -> None:
    """Once the worker has learnt that its tasks are short it claims and settles many in a trip."""
    collect, notes = collector(broker)
    collect.send_many((n,) for n in range(10_000))
    with working(broker, threads=2):
        broker.wait_until_empty()
    assert len(notes) == 10_000
    claimed = [len(exchange.deliveries) for _, _, exchange in trouble.trips if exchange is not None]
    settled = [len(settle) for settle, _, _ in trouble.trips]
    assert max(claimed) >= 200
    assert max(settled) >= 200
    assert sum(claimed) == sum(settled) == 10_000


def test_no_more_than_the_most_is_held(broker: EngineTestBroker) -> None:
    """However short the tasks are, a process holds a bounded number of messages."""
    gate = Gate()
    block = actor(gate, broker=broker, actor_name="block")
    collect, _ = collector(broker)
    collect.send_many((n,) for n in range(5000))
    with working(broker):
        broker.wait_until_empty()
        block.send()
        collect.send_many((n,) for n in range(5000))
        gate.wait_for(None)
        wait_until(lambda: broker.counts().claimed > 1, "the worker has claimed ahead")
        assert broker.counts().claimed <= MAX_HELD
        gate.open()
        broker.wait_until_empty()


def test_the_first_trip_takes_what_there_is_room_for(broker: EngineTestBroker, trouble: Troubled) -> None:
    """Before it knows how long its tasks are a worker claims one message a thread."""
    gate = Gate()
    block = actor(gate, broker=broker, actor_name="block")
    block.send_many((n,) for n in range(20))
    with working(broker, threads=3):
        gate.wait_for(0, 1, 2)
        assert broker.counts() == Counts(ready=17, claimed=3)
        gate.open()
        broker.wait_until_empty()


def test_a_free_thread_does_not_wait(broker: EngineTestBroker) -> None:
    """While other threads are busy for long, a free one gets what comes, one message at a time."""
    gate = Gate()
    block = actor(gate, broker=broker, actor_name="block")
    collect, notes = collector(broker)
    block.send_many((n,) for n in range(3))
    with working(broker, threads=4, worker_timeout=30_000):
        gate.wait_for(0, 1, 2)
        for number in range(20):
            collect.send(number)
            wait_until(lambda n=number: len(notes) == n + 1, "the free thread has run it", patience_s=10)
        wait_until(lambda: broker.counts() == Counts(claimed=3), "they are settled although others run", patience_s=10)
        gate.open()
        broker.wait_until_empty()
