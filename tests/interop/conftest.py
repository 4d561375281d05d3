"""A fleet of workers of both libraries, on an empty server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from scripts.servers import RabbitMQ
from tests.interop.kit import Fleet, fleet_in
from tests.interop.rabbitmq_kit import RabbitmqFleet


@pytest.fixture
def fleet(tmp_path: Path, redis_url: str) -> Iterator[Fleet]:
    """The program, and its processes, which end with the test."""
    with fleet_in(tmp_path, redis_url) as fleet:
        yield fleet


@pytest.fixture
def rabbitmq_fleet(
    tmp_path: Path, redis_url: str, rabbitmq_url: str, rabbitmq_shared: RabbitMQ
) -> Iterator[RabbitmqFleet]:
    """The program on RabbitMQ, with results and notes on Redis, and its processes."""
    fleet = RabbitmqFleet(tmp_path, redis_url, broker_url=rabbitmq_url, server=rabbitmq_shared)
    try:
        yield fleet
    finally:
        fleet.end()
