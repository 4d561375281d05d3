"""The shop's broker. Imported before the actors, because Dramatiq binds an actor to a broker when it is declared."""

from __future__ import annotations

import os

from .library import AsyncIO, StubBroker, dramatiq
from .middleware import RequestIds, Timing


def shop_middleware() -> list[dramatiq.Middleware]:
    """What the shop adds to the default middleware. Dramatiq needs ``AsyncIO`` for async actors; Greenroom does not,
    and accepts it."""
    return [AsyncIO(), RequestIds(), Timing()]


def make_broker() -> dramatiq.Broker:
    """The library's default broker, or one in memory for tests (``BOOKSHOP_BROKER=stub``)."""
    broker = StubBroker() if os.environ.get("BOOKSHOP_BROKER") == "stub" else dramatiq.get_broker()
    for middleware in shop_middleware():
        broker.add_middleware(middleware)
    return broker


broker = make_broker()
dramatiq.set_broker(broker)
