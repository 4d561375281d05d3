"""Pipelines and groups under Dramatiq's names, and Dramatiq's messages in our queues."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import greenroom as dramatiq
from greenroom.brokers.stub import StubBroker
from greenroom.composition import group, pipeline
from greenroom.middleware import GroupCallbacks
from greenroom.ports.transport import Envelope
from greenroom.rate_limits.backends import StubBackend as LimitsBackend
from greenroom.results import Results
from greenroom.results.backends import StubBackend


@pytest.fixture
def ran(broker: StubBroker, make_worker: Callable[..., Any]) -> list[Any]:
    """Declares ``add`` and ``note`` with results, starts a worker; what ``note`` was called with."""
    broker.add_middleware(Results(backend=StubBackend()))
    notes: list[Any] = []

    @dramatiq.actor(store_results=True)
    def add(x: int, y: int) -> int:
        return x + y

    @dramatiq.actor
    def note(*args: Any) -> None:
        notes.append(args)

    make_worker(broker)
    return notes


def message(actor_name: str, *args: Any, **options: Any) -> dramatiq.Message[Any]:
    return dramatiq.get_broker().get_actor(actor_name).message_with_options(args=args, **options)


def test_the_names() -> None:
    """They are where Dramatiq has them."""
    assert dramatiq.group is dramatiq.composition.group is group
    assert dramatiq.pipeline is dramatiq.composition.pipeline is pipeline


@pytest.mark.usefixtures("ran")
def test_the_operator(broker: StubBroker) -> None:
    """Messages and pipelines are joined by ``|``; children are copied, pipelines flattened."""
    first, second, third = message("add", 1, 2), message("add", 3), message("add", 4)
    pipe = first | second | third
    assert len(pipe) == 3
    assert len(pipe | pipe) == 6
    assert first.options == {}
    assert pipe.messages[0].options["pipe_target"]["message_id"] == second.message_id
    assert pipe.run() is pipe
    assert pipe.get_result(block=True) == 10
    assert list(pipe.get_results()) == [3, 6, 10]
    assert pipe.completed
    assert pipe.completed_count == 3


def test_a_pipelines_first_message_can_be_sent_by_itself(broker: StubBroker, ran: list[Any]) -> None:
    """It carries the others, as in Dramatiq."""
    pipe = message("add", 1, 2) | message("note")
    broker.enqueue(pipe.messages[0])
    broker.join("default")
    assert ran == [(3,)]


@pytest.mark.usefixtures("ran")
def test_groups(broker: StubBroker) -> None:
    """run, wait, get_results, completed and completed_count; nested groups yield lists."""
    many = group([message("add", 1, 2), group([message("add", 3, 4)]), message("add", 5, 6) | message("add", 7)])
    assert len(many) == 3
    assert many.run() is many
    many.wait(timeout=10_000)
    assert list(many.get_results(block=True)) == [3, [7], 18]
    assert many.completed
    assert many.completed_count == 3


def test_callbacks_of_groups(broker: StubBroker, ran: list[Any]) -> None:
    """With the GroupCallbacks middleware on a backend of rate limits."""
    broker.add_middleware(GroupCallbacks(LimitsBackend()))
    many = group([message("add", 1, 2), message("add", 3, 4)])
    many.add_completion_callback(message("note", "all"))
    many.add_completion_callback(message("note", "done"))
    many.run()
    broker.join("default")
    assert sorted(ran) == [("all",), ("done",)]


def test_a_member_that_dramatiq_wrote(broker: StubBroker, ran: list[Any]) -> None:
    """Members in a queue tell of their end by Dramatiq's options."""
    backend = LimitsBackend()
    broker.add_middleware(GroupCallbacks(backend))
    backend.add("a-uuid", 2, 10_000)
    options = {"group_completion_uuid": "a-uuid", "group_completion_callbacks": [message("note", "done").asdict()]}
    for _ in range(2):
        broker.enqueue(message("add", 1, 2).copy(options=options))
    broker.join("default")
    assert ran == [("done",)]


def test_a_deep_pipeline_that_dramatiq_wrote(broker: StubBroker, ran: list[Any]) -> None:
    """Dramatiq nests up to 490 stages; they are read and run. The third one ends this pipeline, to be done soon."""
    stages = [message("add", 1, 0), message("note"), *[message("add")] * 478]
    body = stages.pop().encode()
    while stages:
        body = stages.pop().encode().replace(b'"options":{}', b'"options":{"pipe_target":' + body + b"}")
    broker.transport.push([Envelope("default", "an-id", body)])
    broker.join("default", fail_fast=False)
    assert ran == [(1,)]


def test_the_ttl_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment is stronger than the keyword."""
    assert GroupCallbacks(LimitsBackend()).barrier_ttl == 86_400_000
    monkeypatch.setenv("dramatiq_group_callback_barrier_ttl", "5000")
    assert GroupCallbacks(LimitsBackend(), barrier_ttl=1).barrier_ttl == 5_000


def test_a_broker_of_ones_own(ran: list[Any]) -> None:
    """Without a store, and without GroupCallbacks, callbacks are refused."""

    class Own(dramatiq.Broker):
        def enqueue(self, message: Any, *, delay: Any = None) -> Any:
            return message

    broker = Own()
    many = group([message("add", 1, 2)], broker=broker).run()
    many.add_completion_callback(message("note"))
    with pytest.raises(RuntimeError, match="GroupCallbacks"):
        many.run()
