"""Groups: members beside each other, callbacks at the end of all of them."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from greenroom import Middleware, actor, group, pipeline
from greenroom.brokers.engine import EngineBroker
from greenroom.composition import outcome_of
from greenroom.errors import MiddlewareError, ResultFailure, ResultMissing, ResultTimeout
from greenroom.middleware import GroupCallbacks, SkipMessage
from greenroom.ports.store import Progress, SetLook
from greenroom.rate_limits import RateLimiterBackend, StoreBackend
from tests.composition.kit import PATIENCE, Actors
from tests.runtime.cli_kit import wait_until
from tests.runtime.worker_kit import Gate, working


def watched(broker: EngineBroker) -> tuple[Any, list[Progress | None]]:
    """An actor to be called when a group is complete, and what it has learnt of the group each time."""
    outcomes: list[Progress | None] = []

    @actor(broker=broker)
    def tell() -> None:
        outcomes.append(outcome_of(broker=broker))

    return tell, outcomes


@pytest.mark.usefixtures("worker")
def test_results_in_order(actors: Actors, broker: EngineBroker) -> None:
    """get_results yields what the members returned, in their order; pipelines count as one member, nested groups are
    lists."""
    members = [
        actors.add.message(1, 1),
        pipeline([actors.add.message(1, 1), actors.add.message(5)], broker=broker),
        group([actors.add.message(2, 2), actors.add.message(3, 3)], broker=broker),
    ]
    many = group(members, broker=broker).run()
    assert list(many.get_results(block=True, timeout=PATIENCE)) == [2, 7, [4, 6]]
    many.wait(timeout=PATIENCE)
    assert many.completed
    assert many.completed_count == len(many) == 3


@pytest.mark.usefixtures("worker")
def test_a_callback_when_all_have_ended(actors: Actors, broker: EngineBroker) -> None:
    """Every end counts: done, failed for good, skipped, expired. The callback can ask how many failed."""
    tell, outcomes = watched(broker)

    class Skip(Middleware):
        def before_process_message(self, broker: Any, message: Any) -> None:
            if message.kwargs.get("y") == 99:
                raise SkipMessage("unwanted")

    broker.add_middleware(Skip())
    members = [
        actors.add.message(1, 1),
        actors.fail.message(),
        actors.add.message(1, y=99),
        actors.add.message_with_options(args=(1, 1), max_age=0),
        pipeline([actors.fail.message(), actors.add.message(1)], broker=broker),
    ]
    many = group(members, broker=broker)
    many.add_completion_callback(tell.message())
    many.run()
    wait_until(lambda: outcomes, "the callback ran")
    assert outcomes == [Progress(total=5, left=0, failed=3)]


@pytest.mark.usefixtures("worker")
def test_groups_in_groups_have_callbacks_of_their_own(actors: Actors, broker: EngineBroker) -> None:
    """The inner group's callback is sent at its end, the outer one's at the end of all."""
    tell, outcomes = watched(broker)
    inner = group([actors.add.message(1, 1), actors.fail.message()], broker=broker)
    inner.add_completion_callback(tell.message())
    empty = group([], broker=broker)
    outer = group([inner, empty, actors.add.message(2, 2)], broker=broker)
    outer.add_completion_callback(tell.message())
    outer.run()
    wait_until(lambda: len(outcomes) == 2, "both callbacks ran")
    assert sorted(outcomes, key=lambda progress: progress.total if progress else 0) == [
        Progress(total=2, left=0, failed=1),
        Progress(total=3, left=0, failed=1),
    ]


@pytest.mark.usefixtures("worker")
def test_an_empty_group(actors: Actors, broker: EngineBroker) -> None:
    """It is complete at once, and its callback is sent."""
    nothing = group([], broker=broker)
    nothing.add_completion_callback(actors.note.message())
    nothing.run()
    nothing.wait(timeout=0)
    assert nothing.completed
    assert list(nothing.get_results(block=True)) == []
    wait_until(actors.noted.is_set, "the callback ran")


def test_a_failed_member_ends_the_wait_at_once(actors: Actors, broker: EngineBroker) -> None:
    """Whoever waits for the results, or for the end, is told of the first failure while others still run."""
    gate = Gate()

    @actor(broker=broker)
    def slow() -> None:
        gate()

    many = group([slow.message(), actors.fail.message()], broker=broker)
    with working(broker, threads=2):
        many.run()
        try:
            with pytest.raises(ResultFailure, match="as it should"):
                list(many.get_results(block=True, timeout=PATIENCE))
            with pytest.raises(ResultFailure, match="as it should"):
                many.wait(timeout=PATIENCE)
            with pytest.raises(ResultFailure, match="as it should"):
                asyncio.run(many.await_(timeout=PATIENCE))
            assert not many.completed
            assert many.completed_count == 1
        finally:
            gate.open()


@pytest.mark.usefixtures("worker")
def test_a_policy_for_failed_members(actors: Actors, broker: EngineBroker) -> None:
    """skip leaves failures out of the results, collect yields them."""
    members = [actors.add.message(1, 1), actors.fail.message(), actors.add.message(2, 2)]
    skip = group(members, broker=broker, on_error="skip").run()
    assert list(skip.get_results(block=True, timeout=PATIENCE)) == [2, 4]
    skip.wait(timeout=PATIENCE)
    skip.on_error = "collect"
    first, failure, last = skip.get_results()
    assert (first, last) == (2, 4)
    assert isinstance(failure, ResultFailure)


def test_members_delays_are_honoured(actors: Actors, broker: EngineBroker) -> None:
    """A member's own delay counts if it is longer than that of the run; the others do not wait for it."""
    late = actors.note.message_with_options(args=("late",), delay=3_600_000)
    group([late, actors.note.message("now")], broker=broker).run()
    with working(broker):
        wait_until(actors.noted.is_set, "the other one ran")
    assert actors.calls == [("now",)]
    assert broker.transport.counts(["default"])["default"].delayed == 1


def test_a_run_that_fails_half_way(actors: Actors, broker: EngineBroker) -> None:
    """If a member is refused the caller is told, and no callback is sent when the others have ended."""

    class Veto(Middleware):
        def before_enqueue(self, broker: Any, message: Any, delay: Any) -> None:
            if message.args == (1_500,):
                raise MiddlewareError("no")

    broker.add_middleware(Veto())
    many = group([actors.note.message(number) for number in range(2_000)], broker=broker)
    many.add_completion_callback(actors.note.message("callback"))
    with pytest.raises(MiddlewareError):
        many.run()
    with working(broker, threads=2):
        wait_until(lambda: len(actors.calls) == 1_000, "those that were sent have run")
        wait_until(lambda: broker.transport.counts(["default"])["default"].claimed == 0, "they are settled")
    assert ("callback",) not in actors.calls


def test_a_member_that_nobody_knows(actors: Actors, broker: EngineBroker) -> None:
    """A message that can never run has ended, too."""
    tell, outcomes = watched(broker)
    unknown = actors.add.message(1, 1).copy(actor_name="nobody")
    broker.unknown_actor_ttl_ms = 0
    many = group([unknown, actors.add.message(1, 1)], broker=broker)
    many.add_completion_callback(tell.message())
    many.run()
    with working(broker):
        wait_until(lambda: outcomes, "the callback ran")
    assert outcomes == [Progress(total=2, left=0, failed=1)]


def test_a_group_that_was_not_run_here(actors: Actors, broker: EngineBroker) -> None:
    """A group made of messages that somebody else has sent finds their results."""
    messages = [actors.add.message(1, 1), actors.add.message(2, 2)]
    again = group(messages, broker=broker)
    with pytest.raises(ResultMissing):
        list(again.get_results())
    assert again.completed_count == 0
    broker.enqueue_many(messages)
    with working(broker):
        again.wait(timeout=PATIENCE)
    assert list(again.get_results()) == [2, 4]
    assert again.completed


def test_waiting_in_vain(actors: Actors, broker: EngineBroker) -> None:
    """Without a worker the wait ends when its time is over."""
    many = group([actors.add.message(1, 1)], broker=broker).run()
    with pytest.raises(ResultTimeout):
        many.wait(timeout=20)
    with pytest.raises(ResultTimeout):
        list(many.get_results(block=True, timeout=20))


def test_coroutines(actors: Actors, broker: EngineBroker) -> None:
    """arun, aget_results and await_ do not block the loop."""

    async def main() -> list[Any]:
        many = await group([actors.add.message(1, 1), actors.add.message(2, 2)], broker=broker).arun()
        await many.await_(timeout=PATIENCE)
        return await many.aget_results(timeout=PATIENCE)

    with working(broker):
        assert asyncio.run(main()) == [2, 4]


@pytest.mark.parametrize("broker", ["memory", "sqlite"], indirect=True)
@pytest.mark.usefixtures("worker")
def test_group_callbacks_on_the_brokers_own_store(actors: Actors, broker: EngineBroker) -> None:
    """There the engine sends the callbacks, and the middleware only says how long a group is remembered."""
    broker.add_middleware(GroupCallbacks(StoreBackend(broker.store), barrier_ttl=60_000))
    many = group([actors.add.message(1, 1), actors.fail.message()], broker=broker)
    many.add_completion_callback(actors.note.message())
    many.run()
    wait_until(actors.noted.is_set, "the callback ran")
    assert many.id is not None
    assert broker.store.apply([SetLook(f"g:{many.id}")]) == [Progress(2, 0, 1)]


class OwnBackend(RateLimiterBackend):
    """A backend that a user has written for Dramatiq. Its keys are not kept for longer than it is."""

    def __init__(self) -> None:
        self.values: dict[str, int] = {}
        self.lock = threading.Lock()

    def add(self, key: str, value: int, ttl: int) -> bool:
        with self.lock:
            return self.values.setdefault(key, value) is value

    def decr(self, key: str, amount: int, minimum: int, ttl: int) -> bool:
        with self.lock:
            if self.values.get(key, 0) - amount < minimum:
                return False
            self.values[key] -= amount
            return True

    def wait_notify(self, key: str, ttl: int) -> None:
        """Nobody waits."""


@pytest.mark.parametrize("broker", ["memory", "sqlite"], indirect=True)
@pytest.mark.usefixtures("worker")
def test_group_callbacks_on_a_backend_of_ones_own(actors: Actors, broker: EngineBroker) -> None:
    """There members that succeed are counted, as Dramatiq does; a pipeline by its last stage; and one that fails for
    good leaves the callbacks unsent."""
    backend = OwnBackend()
    broker.add_middleware(GroupCallbacks(backend))
    pipe = pipeline([actors.add.message(1, 1), actors.add.message(1)], broker=broker)
    many = group([actors.add.message(1, 1), pipe], broker=broker)
    many.add_completion_callback(actors.note.message())
    many.run()
    wait_until(actors.noted.is_set, "the callback ran")
    assert actors.calls == [()]
    failing = group([actors.add.message(1, 1), actors.fail.message()], broker=broker)
    failing.add_completion_callback(actors.note.message("too much"))
    failing.run()
    wait_until(lambda: broker.transport.counts(["default"])["default"].dead, "the one has failed")
    wait_until(lambda: sorted(backend.values.values()) == [1, 1], "the other has told of its end")
    assert actors.calls == [()]
    nested = group([group([actors.add.message(1, 1)], broker=broker)], broker=broker)
    nested.add_completion_callback(actors.note.message())
    with pytest.raises(NotImplementedError):
        nested.run()
