"""A broker on each engine, with the actors of the kit and a worker."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from greenroom.brokers.engine import EngineBroker
from tests.composition.kit import ENGINES, Actors, make_broker
from tests.runtime.worker_kit import working


@pytest.fixture(params=ENGINES)
def broker(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[EngineBroker]:
    """A broker without a worker."""
    url = request.getfixturevalue("redis_url") if request.param == "redis" else None
    broker = make_broker(request.param, tmp_path, url=url)
    yield broker
    broker.composition_store.close()
    broker.close()


@pytest.fixture
def actors(broker: EngineBroker) -> Actors:
    """The actors, declared on the broker."""
    return Actors(broker)


@pytest.fixture
def worker(broker: EngineBroker, actors: Actors) -> Iterator[None]:
    """A worker that runs them."""
    with working(broker, threads=4):
        yield
