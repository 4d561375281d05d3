"""What the tests of limits share: the backends, and one that a program brings along."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from pathlib import Path

from greenroom.clock import Clock
from greenroom.rate_limits import RateLimiterBackend
from greenroom.rate_limits.backends import RedisBackend, SqliteBackend, StubBackend


class CountingBackend(RateLimiterBackend):
    """As a program may have written it for Dramatiq: it only counts. Nothing expires."""

    def __init__(self) -> None:
        self.values: dict[str, int] = {}
        self.lock = threading.Condition()
        self.events: set[str] = set()

    def add(self, key: str, value: int, ttl: int) -> bool:
        with self.lock:
            return self.values.setdefault(key, value) == value and self._is_new(key)

    def _is_new(self, key: str) -> bool:
        known = key in self.events
        self.events.add(key)
        return not known

    def incr(self, key: str, amount: int, maximum: int, ttl: int) -> bool:
        with self.lock:
            value = self.values.get(key, 0) + amount
            if value > maximum:
                return False
            self.values[key] = value
            return True

    def decr(self, key: str, amount: int, minimum: int, ttl: int) -> bool:
        with self.lock:
            value = self.values.get(key, 0) - amount
            if value < minimum:
                return False
            self.values[key] = value
            return True

    def incr_and_sum(self, key: str, keys: Callable[[], Iterable[str]], amount: int, maximum: int, ttl: int) -> bool:
        with self.lock:
            if sum(self.values.get(k, 0) for k in keys()) + amount > maximum:
                return False
            self.values[key] = self.values.get(key, 0) + amount
            return True

    def wait(self, key: str, timeout: int | None) -> bool:
        with self.lock:
            return self.lock.wait_for(lambda: key in self.events, None if timeout is None else timeout / 1000)

    def wait_notify(self, key: str, ttl: int) -> None:
        with self.lock:
            self.events.add(key)
            self.lock.notify_all()


def make_backend(kind: str, folder: Path, clock: Clock, url: str | None = None) -> RateLimiterBackend:
    """A backend of ours in a private folder, or in a namespace of its own on the Redis server at ``url``."""
    if kind == "redis":
        return RedisBackend(url=url, namespace=folder.name, clock=clock)
    return StubBackend(clock=clock) if kind == "stub" else SqliteBackend(folder / "limits.db", clock=clock)
