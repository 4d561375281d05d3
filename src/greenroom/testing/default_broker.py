"""Another default broker for a while, with the actors that the program has declared."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from .. import broker as brokers
from ..broker import Broker

B = TypeVar("B", bound=Broker)


@contextmanager
def use_broker(broker: B) -> Iterator[B]:
    """Makes ``broker`` the default broker inside the ``with`` block, and what was before it afterwards.

    All actors without ``broker=`` that were declared before are declared on it, whatever options they have: those of a
    middleware that this broker lacks have no effect.
    """
    before = brokers.peek_broker()
    waiting = [actor for reference in brokers._undeclared if (actor := reference()) is not None]
    _adopt(broker, [*waiting, *(before.actors.values() if before is not None else ())])
    brokers._undeclared.clear()  # all of them are on it now, but for those whose name was taken
    brokers.global_broker = broker
    try:
        yield broker
    finally:
        brokers.global_broker = before
        if before is None:
            _wait_again(broker)


def _adopt(broker: Broker, actors: list[Any]) -> None:
    for actor in actors:
        if actor._broker is not None or actor.actor_name in broker.actors:
            continue
        broker.actor_options |= set(actor.options)
        broker.declare_actor(actor)


def _wait_again(broker: Broker) -> None:
    """Hands the actors back to those that wait for a default broker. Functions of a test end with it, and their names
    are free again."""
    for actor in list(broker.actors.values()):
        if actor._broker is None and "<locals>" not in getattr(actor.fn, "__qualname__", ""):
            brokers.declare_later(actor)
