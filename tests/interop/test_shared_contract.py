"""The transport contract, run for a Redis namespace that Dramatiq may use, too: what a ``RedisBroker`` has."""

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


class TestSharedTransport(TransportContract):
    @pytest.fixture(autouse=True)
    def _server(self, redis_url: str) -> None:
        self._url = redis_url

    def make(self, tmp_path: Path, clock: Clock) -> Transport:
        return SharedTransport(
            redis.Redis.from_url(self._url), namespace=tmp_path.name, clock=clock, run_folder=tmp_path
        )

    def crash(self, transport: Transport, consumer: Consumer) -> None:
        """The kernel frees a dead process's byte of the lock file; here we do."""
        assert isinstance(consumer, TwoLayouts)
        owner = consumer._ours._owner
        assert owner._place is not None
        owner._place.locks.unlock(number_of(owner.id), owner)
