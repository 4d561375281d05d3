"""Pipelines: each stage gets what the one before it returned."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from greenroom import Message, Middleware, actor, group, pipeline
from greenroom.brokers.engine import EngineBroker
from greenroom.errors import MiddlewareError, ResultFailure, ResultMissing
from tests.composition.kit import PATIENCE, Actors, leftovers, make_broker
from tests.runtime.cli_kit import wait_until
from tests.runtime.worker_kit import EngineTestBroker, working


@pytest.mark.usefixtures("worker")
def test_a_result_is_the_next_stages_last_argument(actors: Actors, broker: EngineBroker) -> None:
    """Stages run one after the other; the result of each is appended to the arguments of the next."""
    pipe = pipeline([actors.echo.message(1), actors.echo.message(2)], broker=broker).run()
    assert pipe.get_result(block=True, timeout=PATIENCE) == [2, [1]]
    assert list(pipe.get_results()) == [[1], [2, [1]]]
    assert pipe.completed
    assert pipe.completed_count == len(pipe) == 2


@pytest.mark.usefixtures("worker")
def test_a_stage_that_ignores_the_result(actors: Actors, broker: EngineBroker) -> None:
    """pipe_ignore, on a message, keeps its arguments as they are."""
    quiet = actors.echo.message_with_options(args=(2,), pipe_ignore=True)
    pipe = pipeline([actors.echo.message(1), quiet, actors.echo.message(3)], broker=broker).run()
    assert pipe.get_result(block=True, timeout=PATIENCE) == [3, [2]]


@pytest.mark.usefixtures("worker")
def test_a_long_pipeline_is_kept_in_the_store(actors: Actors, broker: EngineBroker) -> None:
    """More stages than can be nested run all the same, with the ids that they were given; nothing is left of the plan,
    and the first message is as small as any."""
    pipe = pipeline([actors.add.message(1) for _ in range(600)], broker=broker)
    planned: list[Message[Any]] = []

    class Spy(Middleware):
        def before_enqueue(self, broker: Any, message: Any, delay: Any) -> None:
            planned.append(message)

    broker.add_middleware(Spy())
    pipe.run()
    assert pipe.get_result(block=True, timeout=PATIENCE) == 600
    assert [message.message_id for message in planned] == [stage.message_id for stage in pipe.messages]
    assert max(len(message.encode()) for message in planned) < 500
    wait_until(lambda: not leftovers(broker), "nothing of it is left in the store")


def test_a_stages_delay_is_honoured(actors: Actors, broker: EngineBroker) -> None:
    """The delay of a later stage begins when the stage before it has ended."""
    late = actors.note.message_with_options(delay=3_600_000, pipe_ignore=True)
    with working(broker):
        pipeline([actors.add.message(1, 1), late], broker=broker).run()
        wait_until(lambda: broker.transport.counts(["default"])["default"].delayed == 1, "the stage waits")
    assert actors.calls == []


def test_the_delay_of_a_run(actors: Actors, broker: EngineBroker) -> None:
    """The longer of the run's delay and the first stage's own is taken."""
    first = actors.add.message_with_options(args=(1, 1), delay=100)
    pipeline([first, actors.note.message()], broker=broker).run(delay=3_600_000)
    assert broker.transport.counts(["default"])["default"].delayed == 1


@pytest.mark.parametrize("length", [3, 30])
@pytest.mark.usefixtures("worker")
def test_a_failed_stage_ends_the_wait_at_once(actors: Actors, broker: EngineBroker, length: int) -> None:
    """Whoever waits for the last stage is told why it will never run; the stages after the failed one do not."""
    later = [actors.note.message() for _ in range(length)]
    pipe = pipeline([actors.add.message(1, 1), actors.fail.message(), *later], broker=broker).run()
    with pytest.raises(ResultFailure, match="ValueError: as it should") as raised:
        pipe.get_result(block=True, timeout=PATIENCE)
    assert raised.value.orig_exc_type == "ValueError"
    with pytest.raises(ResultFailure):
        later[-1].get_result(backend=broker.get_results_backend(), block=True, timeout=PATIENCE)
    assert pipe.completed
    assert pipe.completed_count == 2
    assert actors.calls == []
    wait_until(lambda: not leftovers(broker), "nothing of it is left in the store")


@pytest.mark.usefixtures("worker")
def test_a_policy_for_failed_stages(actors: Actors, broker: EngineBroker) -> None:
    """skip goes on with None, collect with what the error was."""
    skip = pipeline([actors.fail.message(), actors.echo.message(1)], broker=broker, on_error="skip").run()
    collect = pipeline([actors.fail.message(), actors.echo.message(1)], broker=broker, on_error="collect").run()
    assert skip.get_result(block=True, timeout=PATIENCE) == [1, None]
    assert collect.get_result(block=True, timeout=PATIENCE) == [1, {"type": "ValueError", "message": "as it should"}]


def test_an_unknown_policy(actors: Actors, broker: EngineBroker) -> None:
    """A misspelt policy is refused where it is written."""
    with pytest.raises(ValueError, match="on_error"):
        pipeline([actors.add.message(1)], broker=broker, on_error="ignore")


@pytest.mark.usefixtures("worker")
def test_a_veto_ends_the_pipeline(actors: Actors, broker: EngineBroker) -> None:
    """A before_enqueue hook that refuses a stage fails the pipeline with its reason; the stage before it is done."""

    class Veto(Middleware):
        def before_enqueue(self, broker: Any, message: Any, delay: Any) -> None:
            if message.actor_name == "note":
                raise MiddlewareError("not today")

    broker.add_middleware(Veto())
    pipe = pipeline([actors.add.message(1, 1), actors.note.message()], broker=broker).run()
    with pytest.raises(ResultFailure, match="not today"):
        pipe.get_result(block=True, timeout=PATIENCE)
    first = pipe.messages[0]
    assert first.get_result(backend=broker.get_results_backend(), block=True, timeout=PATIENCE) == 2


@pytest.mark.usefixtures("worker")
def test_a_result_that_no_message_can_carry(broker: EngineBroker, actors: Actors) -> None:
    """The stage has succeeded, but the pipeline has failed."""

    @actor(broker=broker, store_results=False)
    def strange() -> object:
        return object()

    pipe = pipeline([strange.message(), actors.note.message()], broker=broker).run()
    with pytest.raises(ResultFailure, match="EncodeError"):
        pipe.get_result(block=True, timeout=PATIENCE)


@pytest.mark.usefixtures("worker")
def test_hooks_of_later_stages(actors: Actors, broker: EngineBroker) -> None:
    """after_enqueue is told of each stage, as of any message that is sent."""
    told: list[str] = []

    class Spy(Middleware):
        def after_enqueue(self, broker: Any, message: Any, delay: Any) -> None:
            told.append(message.message_id)

    broker.add_middleware(Spy())
    pipe = pipeline([actors.add.message(1, 1), actors.add.message(1)], broker=broker).run()
    wait_until(lambda: len(told) == 2, "both are told")
    assert set(told) == {message.message_id for message in pipe.messages}


def test_an_empty_pipeline(broker: EngineBroker) -> None:
    """There is nothing to run, and nothing to wait for."""
    with pytest.raises(ValueError, match="no stages"):
        pipeline([], broker=broker).run()


def test_a_skipped_stage(actors: Actors, broker: EngineBroker) -> None:
    """A stage that a hook skips ends the pipeline, and the wait for it."""
    late = actors.add.message_with_options(args=(1, 1), max_age=0)
    pipe = pipeline([late, actors.note.message()], broker=broker).run()
    with working(broker), pytest.raises(ResultFailure):
        pipe.get_result(block=True, timeout=PATIENCE)
    assert actors.calls == []


def test_without_a_store(tmp_path: Any) -> None:
    """Such a broker nests up to 400 stages and says why it takes no more; it knows neither groups as stages nor
    policies."""

    class Storeless(EngineTestBroker):
        @property
        def store(self) -> None:
            return None

    inner = make_broker("sqlite", tmp_path)
    broker = Storeless(inner.transport)
    actors = Actors(broker)
    with working(broker):
        pipeline([*(actors.add.message(1) for _ in range(60)), actors.note.message()], broker=broker).run()
        wait_until(actors.noted.is_set, "the last stage ran")
    assert actors.calls == [(60,)]
    with pytest.raises(ValueError, match=r"401 stages.*a store of its own"):
        pipeline([actors.add.message(1) for _ in range(401)], broker=broker).run()
    with pytest.raises(ValueError, match="group inside a pipeline"):
        pipeline([group([actors.add.message(1)], broker=broker), actors.note.message()], broker=broker).run()
    with pytest.raises(ValueError, match="on_error"):
        pipeline([actors.add.message(1)], broker=broker, on_error="skip").run()
    inner.close()


def test_coroutines(broker: EngineBroker, actors: Actors) -> None:
    """arun and aget_result do not block the loop."""

    async def main() -> Any:
        pipe = await pipeline([actors.add.message(1, 1), actors.add.message(3)], broker=broker).arun()
        return await pipe.aget_result(timeout=PATIENCE), await pipe.aget_results(timeout=PATIENCE)

    with working(broker):
        assert asyncio.run(main()) == (5, [2, 5])


@pytest.mark.usefixtures("worker")
def test_async_actors(broker: EngineBroker, actors: Actors) -> None:
    """Stages may be async; a plan is read beside their loop."""

    @actor(broker=broker)
    async def aadd(x: int, y: int = 0) -> int:
        return x + y

    pipe = pipeline([aadd.message(1) for _ in range(30)], broker=broker).run()
    assert pipe.get_result(block=True, timeout=PATIENCE) == 30


def test_results_that_are_not_there(broker: EngineBroker, actors: Actors) -> None:
    """Asking without waiting says that there is nothing yet."""
    pipe = pipeline([actors.add.message(1, 1)], broker=broker).run()
    with pytest.raises(ResultMissing):
        pipe.get_result()
    assert not pipe.completed
    assert pipe.completed_count == 0
