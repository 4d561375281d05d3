"""use_broker: another default broker for a while, with the actors of the program."""

from __future__ import annotations

import gc

import pytest

import greenroom
from greenroom import broker as brokers
from greenroom.actor import Actor
from greenroom.brokers.stub import StubBroker
from greenroom.testing import use_broker


@pytest.fixture(autouse=True)
def _no_default_broker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(brokers, "global_broker", None)
    monkeypatch.setattr(brokers, "_undeclared", [])


def _module_actor(name: str) -> Actor[[], None]:
    def fn() -> None: ...

    fn.__qualname__ = name  # as if it was defined in a module
    return greenroom.actor(fn, actor_name=name)


def test_it_is_the_default_one_and_then_no_more() -> None:
    """Inside the block ``get_broker`` returns it, afterwards what was before, also after an error."""
    broker, other = StubBroker(), StubBroker()
    with use_broker(broker) as used:
        assert used is broker is greenroom.get_broker()
        with use_broker(other):
            assert greenroom.get_broker() is other
        assert greenroom.get_broker() is broker
    assert brokers.peek_broker() is None
    with pytest.raises(ZeroDivisionError), use_broker(broker):
        _ = 1 / 0
    assert brokers.peek_broker() is None


def test_actors_that_wait_are_declared_each_time() -> None:
    """Actors that were declared before there was a default broker are on each broker of each test."""
    put = _module_actor("put")
    for _ in range(3):
        with use_broker(StubBroker()) as broker:
            assert broker.get_actor("put") is put
            put.send()
            assert broker.queues["default"].qsize() == 1


def test_actors_of_the_default_broker_are_declared() -> None:
    """So are those that were declared on the program's own default broker, whatever options they have there."""

    class Own(greenroom.Middleware):
        @property
        def actor_options(self) -> set[str]:
            return {"own"}

    app = StubBroker()
    app.add_middleware(Own())
    greenroom.set_broker(app)
    put = greenroom.actor(lambda: None, actor_name="put", own=1)
    bound = greenroom.actor(lambda: None, actor_name="bound", broker=app)
    with use_broker(StubBroker()) as broker:
        assert broker.actors == {"put": put}
        bound.send()
    assert greenroom.get_broker() is app
    assert app.queues["default"].qsize() == 1


def test_actors_of_a_test_end_with_it() -> None:
    """A function of a test frees its name, even while something keeps it alive."""

    def define() -> Actor[[], None]:
        @greenroom.actor
        def put() -> None: ...

        return put

    with use_broker(StubBroker()):
        first = define()
    gc.collect()
    with use_broker(StubBroker()) as broker:
        assert "put" not in broker.actors
        second = define()
        assert broker.get_actor("put") is second
    assert first is not second


def test_a_name_that_is_taken_is_left_alone() -> None:
    """Two modules may have an actor of the same name: the first is declared."""
    first = _module_actor("put")
    second = _module_actor("put")
    with use_broker(StubBroker()) as broker:
        assert broker.get_actor("put") is first
    assert first is not second
