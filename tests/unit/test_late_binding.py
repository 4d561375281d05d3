"""Actors and the default broker: who is declared where, and when."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import greenroom
from greenroom import broker as broker_module
from greenroom.brokers.sqlite import SqliteBroker


@pytest.fixture(autouse=True)
def no_default_broker(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """No broker is set, no actor waits for one, and the working directory is private."""
    monkeypatch.setattr(broker_module, "global_broker", None)
    monkeypatch.setattr(broker_module, "_undeclared", [])
    monkeypatch.delenv("GREENROOM_URL", raising=False)
    monkeypatch.delenv("greenroom_url", raising=False)
    monkeypatch.chdir(tmp_path)
    yield
    if broker_module.global_broker is not None:
        broker_module.global_broker.close()


def make_actor(name: str = "work", **options: Any) -> greenroom.Actor[..., Any]:
    return greenroom.actor(lambda *_: None, actor_name=name, **options)


def test_an_actor_waits_for_the_first_broker(tmp_path: Path) -> None:
    """Declared while there is no broker, an actor is declared on the first that is set."""
    work = make_actor()
    assert broker_module.global_broker is None
    broker = SqliteBroker(tmp_path / "q.db")
    greenroom.set_broker(broker)
    assert broker.get_actor("work") is work
    assert work.broker is broker


def test_asking_for_the_broker_declares_too() -> None:
    """``get_broker`` builds the default one, and declares on it what waits."""
    work = make_actor()
    broker = greenroom.get_broker()
    assert isinstance(broker, SqliteBroker)
    assert broker.get_actor("work") is work
    assert greenroom.get_broker() is broker


def test_declaring_touches_no_file(tmp_path: Path) -> None:
    """Neither an actor nor the default broker makes a file; the first message does."""
    work = make_actor()
    greenroom.get_broker()
    assert list(tmp_path.iterdir()) == []
    work.send(1)
    assert (tmp_path / ".greenroom" / "queue.db").exists()


def test_an_actor_that_nobody_needs_any_more() -> None:
    """Waiting for a broker keeps no actor alive: the reference is weak."""
    work = make_actor()
    reference = weakref.ref(work)
    del work
    gc.collect()
    assert reference() is None
    assert greenroom.get_broker().actors == {}


def test_an_actor_is_checked_when_it_is_declared(tmp_path: Path) -> None:
    """With a broker at hand an unknown option fails at once; without one, when the broker is there."""
    greenroom.set_broker(SqliteBroker(tmp_path / "q.db"))
    with pytest.raises(ValueError, match="did you mean 'max_retries'"):
        make_actor(max_retry=1)


def test_a_late_actor_is_checked_late(tmp_path: Path) -> None:
    """An actor with a misspelt option that waited fails the call that brings its broker."""
    work = make_actor(max_retry=1)
    with pytest.raises(ValueError, match="did you mean 'max_retries'"):
        greenroom.set_broker(SqliteBroker(tmp_path / "q.db"))
    assert work.actor_name == "work"


def test_sending_through_another_default_broker(tmp_path: Path) -> None:
    """An actor without a broker of its own follows the default one, which is told of it at the first send."""
    first, second = SqliteBroker(tmp_path / "1.db"), SqliteBroker(tmp_path / "2.db")
    greenroom.set_broker(first)
    work = make_actor()
    work.send(1)
    greenroom.set_broker(second)
    assert "work" not in second.actors
    work.send(2)
    assert second.get_actor("work") is work
    assert first.transport.counts(["default"])["default"].ready == 1
    assert second.transport.counts(["default"])["default"].ready == 1
    first.close()


def test_an_actor_with_a_broker_of_its_own_stays(tmp_path: Path) -> None:
    """``broker=`` is stronger than any default."""
    own, default = SqliteBroker(tmp_path / "1.db"), SqliteBroker(tmp_path / "2.db")
    greenroom.set_broker(default)
    work = make_actor(broker=own)
    work.send(1)
    assert "work" not in default.actors
    assert own.transport.counts(["default"])["default"].ready == 1
    own.close()


def test_two_actors_of_one_name(tmp_path: Path) -> None:
    """A name is taken once a broker; another broker may have an actor of the same name."""
    first, second = SqliteBroker(tmp_path / "1.db"), SqliteBroker(tmp_path / "2.db")
    make_actor(broker=first)
    with pytest.raises(ValueError, match="already registered"):
        make_actor(broker=first)
    make_actor(broker=second)
