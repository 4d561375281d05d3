"""The store contract, run for the Redis engine."""

from __future__ import annotations

from pathlib import Path

import pytest
import redis

from greenroom.clock import Clock
from greenroom.engines.redis.store import RedisStore
from greenroom.engines.redis.transport import RedisTransport
from greenroom.ports.store import Store
from greenroom.ports.transport import Transport
from greenroom.testing.contract import StoreContract


class TestRedisStore(StoreContract):
    @pytest.fixture(autouse=True)
    def _server(self, redis_url: str) -> None:
        self._url = redis_url

    def make(self, tmp_path: Path, clock: Clock) -> Store:
        client = redis.Redis.from_url(self._url)
        return RedisStore(RedisTransport(client, namespace=tmp_path.name, clock=clock, max_body=17 * 1024 * 1024))

    def transport_of(self, store: Store) -> Transport:
        assert isinstance(store, RedisStore)
        return store.transport
