"""The transport contract, run for the RabbitMQ engine."""

from __future__ import annotations

from pathlib import Path

import pytest

from greenroom.clock import Clock
from greenroom.engines.rabbitmq.connection import Targets
from greenroom.engines.rabbitmq.consumer import RabbitmqConsumer
from greenroom.engines.rabbitmq.transport import RabbitmqTransport
from greenroom.ports.transport import Consumer, Transport
from greenroom.testing.clock import ManualClock
from greenroom.testing.contract import TransportContract
from tests.engines.rabbitmq_kit import patient_trips, until_taken_back


class TestRabbitmqTransport(TransportContract):
    reserved_suffixes = (".DQ", ".XQ")

    @pytest.fixture(autouse=True)
    def _server(self, rabbitmq_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._url = rabbitmq_url
        monkeypatch.setenv("GREENROOM_RUN_FOLDER", str(tmp_path / "run"))
        patient_trips(monkeypatch)

    def make(self, tmp_path: Path, clock: Clock) -> Transport:
        """Delays pass in real time: where the clock is moved by hand there are none."""
        return RabbitmqTransport(Targets(self._url), clock=clock, delay=not isinstance(clock, ManualClock))

    def crash(self, transport: Transport, consumer: Consumer) -> None:
        """The kernel cuts a dead process's connection, and frees its byte of the lock file."""
        assert isinstance(consumer, RabbitmqConsumer)
        until_taken_back(consumer, consumer.abandon)
