"""What keeps the state of rate limiters and barriers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from ..ports.store import Add, Bump, Get, Put, Store, StoreOp
from ..ports.watching import wait_for

#: Keeps the keys of limits apart from all else that a store keeps.
PREFIX = "l:"


class RateLimiterBackend:
    """The base class of backends, with the methods that limiters need of one that a program brings along.

    A backend on a store of ours is a ``StoreBackend``: its limits are exact, and it answers a barrier without polling.
    """

    #: The store, for backends on one.
    store: Store | None = None

    @property
    def counting(self) -> RateLimiterBackend:
        """What counts the members of groups that Dramatiq has sent: itself, unless its own keys are not Dramatiq's."""
        return self

    def add(self, key: str, value: int, ttl: int) -> bool:
        """Sets a key that does not exist; False if it does.

        Parameters:
          key: The key.
          value: What it is set to.
          ttl: Milliseconds after which it is gone.
        """
        raise NotImplementedError

    def incr(self, key: str, amount: int, maximum: int, ttl: int) -> bool:
        """Adds ``amount`` to a key, 0 if it does not exist, unless that makes it larger than ``maximum``; False then.

        Parameters:
          key: The key.
          amount: What is added.
          maximum: The largest allowed value.
          ttl: Milliseconds that it is kept from now on.
        """
        raise NotImplementedError

    def decr(self, key: str, amount: int, minimum: int, ttl: int) -> bool:
        """Takes ``amount`` off a key, unless that makes it smaller than ``minimum``; False then. See ``incr``."""
        raise NotImplementedError

    def incr_and_sum(self, key: str, keys: Callable[[], Iterable[str]], amount: int, maximum: int, ttl: int) -> bool:
        """Adds ``amount`` to a key, unless the sum of all ``keys()`` would be larger than ``maximum``; False then."""
        raise NotImplementedError

    def wait(self, key: str, timeout: int | None) -> bool:
        """Blocks until ``wait_notify(key)`` is called; False if that took longer than ``timeout`` milliseconds."""
        raise NotImplementedError

    def wait_notify(self, key: str, ttl: int) -> None:
        """Ends all waits for ``key``, those that begin within ``ttl`` milliseconds, too."""
        raise NotImplementedError


class StoreBackend(RateLimiterBackend):
    """A backend on a store.

    Parameters:
      store: The store. Where it is one with the broker of the messages that wait for a limit (``limit_policy="wait"``),
        they are woken by whoever gives a slot back.
    """

    store: Store

    def __init__(self, store: Store) -> None:
        self.store = store

    def add(self, key: str, value: int, ttl: int) -> bool:
        return bool(self._apply(Add(PREFIX + key, value, ttl)))

    def incr(self, key: str, amount: int, maximum: int, ttl: int) -> bool:
        return self._apply(Bump(PREFIX + key, amount, high=maximum, ttl_ms=ttl)) is not None

    def decr(self, key: str, amount: int, minimum: int, ttl: int) -> bool:
        return self._apply(Bump(PREFIX + key, -amount, low=minimum, ttl_ms=ttl)) is not None

    def incr_and_sum(self, key: str, keys: Callable[[], Iterable[str]], amount: int, maximum: int, ttl: int) -> bool:
        also = tuple(PREFIX + other for other in keys() if other != key)
        return self._apply(Bump(PREFIX + key, amount, high=maximum, ttl_ms=ttl, also=also)) is not None

    def wait(self, key: str, timeout: int | None) -> bool:
        key = PREFIX + key
        timeout_s = None if timeout is None else timeout / 1000
        return wait_for(self.store, [key], lambda: self._apply(Get(key)), timeout_s) is not None

    def wait_notify(self, key: str, ttl: int) -> None:
        self._apply(Put(PREFIX + key, b"x", ttl))

    def _apply(self, op: StoreOp) -> Any:
        return self.store.apply([op])[0]

    def close(self) -> None:
        """Closes what this process opened. Using the backend again opens it again."""
        self.store.close()
