"""Large compositions cost in proportion to their size: counted in operations and trips, not in time."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest

from greenroom import actor, group, pipeline
from greenroom.brokers.stub import StubBroker
from greenroom.engines.memory.transport import MemoryConsumer
from greenroom.ports.store import Progress, SetLook
from greenroom.ports.transport import MAX_TRIP
from greenroom.results import Results
from greenroom.runtime.trips import fitting
from tests.composition.kit import PATIENCE, Actors
from tests.runtime.cli_kit import wait_until
from tests.runtime.worker_kit import working


class Cost:
    """What a store was asked to do, alone and with settlements."""

    def __init__(self, broker: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.trips = 0
        self.ops = 0
        self.bytes = 0
        keep = broker.transport._keep
        apply, do = broker.store.apply, keep.do

        def counted_apply(ops: Any) -> Any:
            self.trips += 1
            return apply(ops)

        def counted_do(ops: Any) -> Any:
            self.ops += len(ops)
            self.bytes += sum(len(op.value) for op in ops if hasattr(op, "value"))
            return do(ops)

        monkeypatch.setattr(broker.store, "apply", counted_apply)
        monkeypatch.setattr(keep, "do", counted_do)


def cost_of_a_pipeline(stages: int, monkeypatch: pytest.MonkeyPatch) -> Cost:
    broker = StubBroker()
    actors = Actors(broker)
    cost = Cost(broker, monkeypatch)
    with working(broker, threads=2):
        pipeline([*(actors.add.message(1) for _ in range(stages)), actors.note.message()], broker=broker).run()
        wait_until(actors.noted.is_set, "the last stage ran")
    assert actors.calls == [(stages,)]
    return cost


def test_a_pipeline_of_5000_stages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten times as many stages cost ten times as much, not a hundred times."""
    small, large = cost_of_a_pipeline(500, monkeypatch), cost_of_a_pipeline(5_000, monkeypatch)
    assert large.ops < 11 * small.ops
    assert large.bytes < 11 * small.bytes
    assert large.trips < 11 * small.trips


def cost_of_a_group(members: int, monkeypatch: pytest.MonkeyPatch) -> Cost:
    broker = StubBroker()
    ran: Counter[int] = Counter()
    outcomes: list[Any] = []

    @actor(broker=broker)
    def work(number: int) -> None:
        ran[number] += 1

    @actor(broker=broker)
    def tell() -> None:
        outcomes.append(broker.store.apply([SetLook(f"g:{many.id}")])[0])

    cost = Cost(broker, monkeypatch)
    many = group([work.message(number) for number in range(members)], broker=broker)
    many.add_completion_callback(tell.message())
    with working(broker, threads=2):
        many.run()
        wait_until(lambda: outcomes, "the callback ran")
    assert len(ran) == ran.total() == members
    assert outcomes == [Progress(members, 0, 0)]
    return cost


def test_a_group_of_20000_members(monkeypatch: pytest.MonkeyPatch) -> None:
    """A member costs one operation, at its end, and making the set a trip for each thousand."""
    cost = cost_of_a_group(20_000, monkeypatch)
    assert cost.ops <= 20_000 + 20 + 10
    assert cost.trips <= 20 + 10


def test_a_stage_of_5000_members(monkeypatch: pytest.MonkeyPatch) -> None:
    """A group inside a pipeline costs its members' messages, results and ends once each."""
    broker = StubBroker()
    broker.add_middleware(Results(store_results=False))
    actors = Actors(broker)
    cost = Cost(broker, monkeypatch)
    stage = group([actors.add.message(number, 0) for number in range(5_000)], broker=broker)
    with working(broker, threads=2, timeout_ms=PATIENCE):
        pipeline([stage, actors.total.message(), actors.note.message()], broker=broker).run()
        wait_until(actors.noted.is_set, "the last stage ran")
    assert actors.calls == [(sum(range(5_000)),)]
    assert cost.ops < 3 * 5_000 + 100
    assert cost.trips < 40


def test_no_trip_pushes_more_than_it_may(monkeypatch: pytest.MonkeyPatch) -> None:
    """Groups that are opened at the same time are opened in as many trips as it takes, none with more than a thousand
    pushes."""
    broker = StubBroker()
    actors = Actors(broker)
    pushes: list[int] = []
    exchange = MemoryConsumer.exchange

    def counted(self: Any, settle: Any, limit: int, skip: Any = frozenset()) -> Any:
        pushes.append(sum(len(s.push) for s in settle))
        return exchange(self, settle, limit, skip)

    monkeypatch.setattr(MemoryConsumer, "exchange", counted)
    for _ in range(3):
        stage = group([actors.add.message(1, 1) for _ in range(1_100)], broker=broker)
        pipeline([stage, actors.note.message()], broker=broker).run()
    with working(broker, threads=4, timeout_ms=PATIENCE):
        wait_until(lambda: len(actors.calls) == 3, "all three have run")
    assert max(pushes) == MAX_TRIP


def test_what_fits_into_a_trip() -> None:
    """As many settlements as push no more than a trip carries; one that pushes more goes alone."""

    def run(pushes: int) -> Any:
        return SimpleNamespace(settlement=SimpleNamespace(push=range(pushes)))

    def fit(*pushes: int) -> int:
        return len(fitting([run(count) for count in pushes]))

    assert fit(0, 0, MAX_TRIP) == 3
    assert fit(1, MAX_TRIP) == 1
    assert fit(MAX_TRIP, 0, 1) == 2
    assert fit(MAX_TRIP + 1, 0) == 1
    assert fit() == 0
