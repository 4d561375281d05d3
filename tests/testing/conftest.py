"""A broker without and with a worker, on a clock that is real or set by hand."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from greenroom import Worker
from greenroom.brokers.stub import StubBroker
from greenroom.testing import ManualClock, use_broker


@pytest.fixture
def broker() -> Iterator[StubBroker]:
    with use_broker(StubBroker()) as broker:
        yield broker


@pytest.fixture
def worker(broker: StubBroker) -> Iterator[Worker]:
    yield from running(broker)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def steered(clock: ManualClock) -> Iterator[StubBroker]:
    """A broker on a clock that is set by hand, with a worker."""
    with use_broker(StubBroker(clock=clock)) as broker:
        for _ in running(broker):
            yield broker


def running(broker: StubBroker) -> Iterator[Worker]:
    """A worker of one thread, stopped at the end."""
    worker = Worker(broker, worker_timeout=100, worker_threads=1)
    worker.start()
    yield worker
    worker.stop(timeout=5_000)
