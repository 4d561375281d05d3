"""The transport contract, run for what a ``RedisBroker`` has: a namespace that Dramatiq may use, too."""

from __future__ import annotations

from pathlib import Path

import pytest
import redis

from greenroom.clock import Clock
from greenroom.engines.redis.run_place import number_of
from greenroom.engines.redis.shared_transport import SharedTransport
from greenroom.engines.redis.two_layouts import TwoLayouts
from greenroom.ports.transport import Consumer, Transport
from greenroom.testing.contract import TransportContract

#: Small enough for a test to go beyond it.
MAX_BODY = 5 * 1024 * 1024


class TestRedisTransport(TransportContract):
    @pytest.fixture(autouse=True)
    def _server(self, redis_url: str) -> None:
        self._url = redis_url

    def make(self, tmp_path: Path, clock: Clock) -> Transport:
        client = redis.Redis.from_url(self._url)
        return SharedTransport(client, namespace=tmp_path.name, clock=clock, run_folder=tmp_path, max_body=MAX_BODY)

    def crash(self, transport: Transport, consumer: Consumer) -> None:
        """The kernel frees a dead process's byte of the lock file; here we do."""
        assert isinstance(consumer, TwoLayouts)
        owner = consumer._ours._owner
        assert owner._place is not None
        owner._place.locks.unlock(number_of(owner.id), owner)
