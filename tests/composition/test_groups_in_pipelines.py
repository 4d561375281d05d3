"""Groups as stages: each member gets the result of the stage before, the stage after gets a list."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from greenroom import Middleware, actor, group, pipeline
from greenroom.brokers.engine import EngineBroker
from greenroom.composition.built_in import CHUNK
from greenroom.errors import BrokerError, MiddlewareError, ResultFailure
from greenroom.results import Results
from greenroom.testing import InlineBroker
from tests.composition.kit import PATIENCE, Actors, leftovers
from tests.runtime.cli_kit import wait_until
from tests.runtime.worker_kit import working


@pytest.mark.usefixtures("worker")
def test_a_group_between_two_stages(actors: Actors, broker: EngineBroker) -> None:
    """Members get the result before them as their last argument; their results are the next stage's, as one list."""
    many = group([actors.add.message(10), actors.add.message(20)], broker=broker)
    pipe = (actors.add.message(1, 1) | many | actors.total.message()).run()
    assert pipe.get_result(block=True, timeout=PATIENCE) == 34
    assert list(pipe.get_results()) == [2, [12, 22], 34]
    assert pipe.completed_count == 3
    wait_until(lambda: not leftovers(broker), "nothing of it is left in the store")


@pytest.mark.usefixtures("worker")
def test_groups_first_and_last(actors: Actors, broker: EngineBroker) -> None:
    """A pipeline may begin and end with a group; the result is then the list."""
    first = group([actors.add.message(1, 1), actors.add.message(2, 2)], broker=broker)
    last = group([actors.echo.message("a"), actors.echo.message("b")], broker=broker)
    pipe = pipeline([first, last], broker=broker).run()
    assert pipe.get_result(block=True, timeout=PATIENCE) == [["a", [2, 4]], ["b", [2, 4]]]


@pytest.mark.usefixtures("worker")
def test_groups_and_pipelines_inside_of_a_stage(actors: Actors, broker: EngineBroker) -> None:
    """Members of such a group may be pipelines, long ones too, and groups; an empty group yields an empty list."""
    long = pipeline([actors.add.message(1) for _ in range(30)], broker=broker)
    short = pipeline([actors.add.message(1), actors.add.message(1)], broker=broker)
    inner = group([actors.add.message(1), group([], broker=broker), actors.add.message(2)], broker=broker)
    deep = pipeline([actors.add.message(3), inner], broker=broker)
    stage = group([long, short, inner, deep], broker=broker)
    pipe = pipeline([actors.add.message(0, 0), stage, actors.echo.message()], broker=broker).run()
    assert pipe.get_result(block=True, timeout=PATIENCE) == [[30, 2, [1, [], 2], [4, [], 5]]]
    wait_until(lambda: not leftovers(broker), "nothing of it is left in the store")


@pytest.mark.parametrize("count", [CHUNK, 2 * CHUNK + 1])
@pytest.mark.usefixtures("worker")
def test_a_stage_of_many_members(actors: Actors, broker: EngineBroker, count: int) -> None:
    """A worker sends a thousand members at a time, and joins the results of all."""
    stage = group([actors.add.message(number) for number in range(count)], broker=broker)
    pipe = (actors.add.message(1, 0) | stage | actors.total.message()).run()
    assert pipe.get_result(block=True, timeout=PATIENCE) == sum(range(count)) + count


@pytest.mark.usefixtures("worker")
def test_a_failed_member_fails_the_pipeline(actors: Actors, broker: EngineBroker) -> None:
    """Unless its policy says otherwise, a group with a failed member has failed, with that member's error."""
    stage = group([actors.add.message(1), actors.fail.message()], broker=broker)
    pipe = (actors.add.message(1, 1) | stage | actors.note.message()).run()
    with pytest.raises(ResultFailure, match="as it should"):
        pipe.get_result(block=True, timeout=PATIENCE)
    assert actors.calls == []
    wait_until(lambda: not leftovers(broker), "nothing of it is left in the store")


@pytest.mark.usefixtures("worker")
def test_policies(actors: Actors, broker: EngineBroker) -> None:
    """skip leaves failed members out of the list, collect puts what they failed with into it."""

    def run(on_error: str) -> Any:
        stage = group([actors.add.message(1, 1), actors.fail.message()], broker=broker, on_error=on_error)
        return pipeline([stage, actors.echo.message()], broker=broker).run().get_result(block=True, timeout=PATIENCE)

    assert run("skip") == [[2]]
    assert run("collect") == [[2, {"type": "ValueError", "message": "as it should"}]]


@pytest.mark.usefixtures("worker")
def test_a_group_at_the_end_that_fails(actors: Actors, broker: EngineBroker) -> None:
    """A stage before a group that is the last one fails: the wait ends at once."""
    pipe = pipeline([actors.fail.message(), group([actors.add.message(1)], broker=broker)], broker=broker).run()
    with pytest.raises(ResultFailure, match="as it should"):
        pipe.get_result(block=True, timeout=PATIENCE)
    wait_until(lambda: not leftovers(broker), "nothing of it is left in the store")


@pytest.mark.usefixtures("worker")
def test_a_member_that_cannot_be_sent(actors: Actors, broker: EngineBroker) -> None:
    """A hook that refuses a member has failed that member; the others run."""

    class Veto(Middleware):
        def before_enqueue(self, broker: Any, message: Any, delay: Any) -> None:
            if message.args[:1] == (13,):
                raise MiddlewareError("unlucky")

    broker.add_middleware(Veto())
    stage = group([actors.add.message(12), actors.add.message(13)], broker=broker, on_error="collect")
    pipe = (actors.add.message(1, 0) | stage | actors.echo.message()).run()
    collected = [13, {"type": "MiddlewareError", "message": "unlucky"}]
    assert pipe.get_result(block=True, timeout=PATIENCE) == [collected]


@pytest.mark.usefixtures("worker")
def test_callbacks_of_a_stage(actors: Actors, broker: EngineBroker) -> None:
    """A group inside a pipeline has its callbacks, too."""
    stage = group([actors.add.message(1, 1)], broker=broker)
    stage.add_completion_callback(actors.note.message("callback"))
    pipe = pipeline([stage, actors.total.message()], broker=broker).run()
    assert pipe.get_result(block=True, timeout=PATIENCE) == 2
    wait_until(actors.noted.is_set, "the callback ran")


def test_members_without_a_backend_of_results(tmp_path: Path) -> None:
    """What is handed from a group to the next stage does not depend on results being kept."""
    from greenroom.brokers.sqlite import SqliteBroker

    broker = SqliteBroker(tmp_path / "q.db")
    actors = Actors(broker)
    stage = group([actors.add.message(1, 1), actors.add.message(2, 2)], broker=broker)
    with working(broker, threads=2):
        pipeline([stage, actors.note.message()], broker=broker).run()
        wait_until(actors.noted.is_set, "the last stage ran")
    assert actors.calls == [([2, 4],)]
    broker.close()


def test_a_store_that_does_not_answer(actors: Actors, broker: EngineBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stage is not settled before its next one could be read: trouble with the store loses no pipeline."""
    pipe = pipeline([actors.add.message(1) for _ in range(25)], broker=broker).run()
    store: Any = broker.composition_store
    apply, failures = store.apply, iter(range(1))

    def troubled(ops: Any) -> Any:
        if type(ops[0]).__name__ == "Get" and ops[0].key.startswith("p:") and next(failures, None) is not None:
            raise BrokerError("not now")
        return apply(ops)

    monkeypatch.setattr(store, "apply", troubled)
    with working(broker):
        assert pipe.get_result(block=True, timeout=PATIENCE) == 25
    assert next(failures, None) is None


def test_inline() -> None:
    """Inline mode runs all of it before run() returns, however long it is."""
    broker = InlineBroker(fail_fast_default=False)
    broker.add_middleware(Results(store_results=True))
    actors = Actors(broker)
    long = pipeline([actors.add.message(1) for _ in range(1_500)], broker=broker).run()
    assert long.get_result() == 1_500
    stage = group([actors.add.message(number) for number in range(3)], broker=broker)
    stage.add_completion_callback(actors.note.message())
    pipe = (actors.add.message(1, 0) | stage | actors.total.message()).run()
    assert pipe.get_result() == 6
    assert actors.calls == [()]


@pytest.mark.usefixtures("worker")
def test_an_actor_of_ones_own_by_that_name(broker: EngineBroker, actors: Actors) -> None:
    """What opens and joins groups is listed among the actors once it was needed, under names that nobody else takes."""
    pipeline([group([actors.note.message()], broker=broker)], broker=broker).run()
    wait_until(actors.noted.is_set, "the member ran")
    assert "greenroom.open_group" in broker.get_declared_actors()
    with pytest.raises(ValueError, match="already registered"):
        actor(lambda: None, broker=broker, actor_name="greenroom.open_group")
