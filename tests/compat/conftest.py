"""A fresh default broker for each test, and workers that are stopped whatever happens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

import greenroom as dramatiq
import greenroom.broker
from greenroom.brokers.stub import StubBroker


@pytest.fixture
def broker() -> Iterator[StubBroker]:
    """The default broker of this test, in memory."""
    broker = StubBroker()
    broker.emit_after("process_boot")
    dramatiq.set_broker(broker)
    yield broker
    broker.flush_all()
    broker.close()
    greenroom.broker.global_broker = None


@pytest.fixture
def make_worker() -> Iterator[Callable[..., dramatiq.Worker]]:
    """Starts workers: ``make_worker(broker, worker_threads=2)``."""
    workers: list[dramatiq.Worker] = []

    def make(broker: Any, **options: Any) -> dramatiq.Worker:
        worker = dramatiq.Worker(broker, **{"worker_timeout": 20, "worker_threads": 2, **options})
        worker.start()
        workers.append(worker)
        return worker

    yield make
    for worker in workers:
        worker.stop(10_000)


@pytest.fixture
def worker(broker: StubBroker, make_worker: Callable[..., dramatiq.Worker]) -> dramatiq.Worker:
    """A worker of the default broker, with two threads."""
    return make_worker(broker)
