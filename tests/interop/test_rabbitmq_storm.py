"""Both libraries on one RabbitMQ, under load, while some of their workers are killed."""

from __future__ import annotations

import pytest

from tests.interop.rabbitmq_kit import RabbitmqFleet
from tests.interop.storm_kit import storm


@pytest.mark.parametrize("wire", [True, False])
def test_nothing_is_lost_and_only_what_was_killed_runs_again(rabbitmq_fleet: RabbitmqFleet, wire: bool) -> None:
    """Whatever is killed, everything runs, and what runs more often than it should was running in a process that was
    killed; but for retries and delayed messages, which both send again before they acknowledge the old one."""
    rabbitmq_fleet.write(wire=wire)
    storm(rabbitmq_fleet)
    assert rabbitmq_fleet.dead() == []
