"""Limits on a Redis server, for all processes of all hosts."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal

from ...clock import SYSTEM_CLOCK, Clock
from ...context import interruptible
from ..backend import RateLimiterBackend, StoreBackend

try:
    from ...engines.redis.client import client_of
    from ...engines.redis.dramatiq_counters import DramatiqCounters
    from ...engines.redis.store import RedisStore
    from ...engines.redis.transport import RedisTransport
except ImportError as e:
    raise ImportError("RedisBackend needs redis-py. Install it with: pip install 'greenroom[redis]'") from e


class RedisBackend(RateLimiterBackend):
    """Keeps limits on a Redis server. In the namespace of a ``RedisBroker`` its waiting messages are woken without
    polling.

    Limits are exact, and a holder that dies costs the others nothing. Dramatiq counts otherwise, under other keys:
    while programs of both share a limit or a barrier, all of ours have to say ``wire="dramatiq"``.

    Parameters:
      client: Any ``redis.Redis``, whose settings are used for connections of our own.
      url: ``redis://``, ``rediss://`` or ``unix://``, in place of a client.
      namespace: What the keys begin with: the broker's, "dramatiq" by default. Dramatiq's own have none.
      wire: "dramatiq" for Dramatiq's keys and counts, with its weaknesses: a holder that dies closes its place until
        nobody has come for the limit's TTL, a window is the sum of a counter a second, and who comes to a barrier too
        late is taken for the one that cleared it.
      clock: What decides when windows and slots end: the server's, or a manual one.
      parameters: What ``redis.Redis`` takes: ``host``, ``port``, ``db``, ``password`` and others.

    Raises:
      ValueError: If ``wire`` is something else.
    """

    def __init__(
        self,
        *,
        client: Any = None,
        url: str | None = None,
        namespace: str = "dramatiq",
        wire: Literal["dramatiq"] | None = None,
        clock: Clock = SYSTEM_CLOCK,
        **parameters: Any,
    ) -> None:
        if wire not in (None, "dramatiq"):
            raise ValueError(f'wire is "dramatiq" or None, not {wire!r}.')
        #: A client of the same server, for programs that want one. The backend's own connections are others.
        self.client = client_of(client, url, parameters)
        self.wire = wire
        self._transport = RedisTransport(self.client, namespace=namespace, clock=clock)
        self._way: RateLimiterBackend
        if wire is None:
            self.store = RedisStore(self._transport)
            self._way = StoreBackend(self.store)
        else:
            self._way = _Counters(DramatiqCounters(self._transport))

    @property
    def counting(self) -> RateLimiterBackend:
        """Dramatiq's keys: a group that Dramatiq has sent is counted there."""
        return self._way if self.wire is not None else _Counters(DramatiqCounters(self._transport))

    def add(self, key: str, value: int, ttl: int) -> bool:
        return self._way.add(key, value, ttl)

    def incr(self, key: str, amount: int, maximum: int, ttl: int) -> bool:
        return self._way.incr(key, amount, maximum, ttl)

    def decr(self, key: str, amount: int, minimum: int, ttl: int) -> bool:
        return self._way.decr(key, amount, minimum, ttl)

    def incr_and_sum(self, key: str, keys: Callable[[], Iterable[str]], amount: int, maximum: int, ttl: int) -> bool:
        return self._way.incr_and_sum(key, keys, amount, maximum, ttl)

    def wait(self, key: str, timeout: int | None) -> bool:
        return self._way.wait(key, timeout)

    def wait_notify(self, key: str, ttl: int) -> None:
        self._way.wait_notify(key, ttl)

    def close(self) -> None:
        """Closes what this process opened. Using the backend again opens it again."""
        if self.store is not None:
            self.store.close()
        self._transport.close()


class _Counters(RateLimiterBackend):
    """Dramatiq's keys, which limiters without a store of ours count in."""

    def __init__(self, counters: DramatiqCounters) -> None:
        self._counters = counters

    def add(self, key: str, value: int, ttl: int) -> bool:
        return self._counters.add(key, value, ttl)

    def incr(self, key: str, amount: int, maximum: int, ttl: int) -> bool:
        return self._counters.bump(key, amount, high=maximum, ttl_ms=ttl)

    def decr(self, key: str, amount: int, minimum: int, ttl: int) -> bool:
        return self._counters.bump(key, -amount, low=minimum, ttl_ms=ttl)

    def incr_and_sum(self, key: str, keys: Callable[[], Iterable[str]], amount: int, maximum: int, ttl: int) -> bool:
        also = [other for other in keys() if other != key]
        return self._counters.bump(key, amount, high=maximum, ttl_ms=ttl, also=also)

    def wait(self, key: str, timeout: int | None) -> bool:
        return self._counters.wait(key, None if timeout is None else timeout / 1000)

    def wait_notify(self, key: str, ttl: int) -> None:
        with interruptible.shield():  # told, and not for ever
            self._counters.tell(key, ttl)
