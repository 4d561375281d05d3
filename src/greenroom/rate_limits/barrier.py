"""A barrier: several parties, and something that waits for all of them."""

from __future__ import annotations

from ..ports.store import Bump, Get, Put, Store
from ..ports.watching import wait_for
from .backend import PREFIX, RateLimiterBackend


class Barrier:
    """A barrier for a number of parties, in any processes.

    Parameters:
      backend: What keeps the state.
      key: The name of the barrier.
      ttl: Milliseconds that it is kept after its last change; 900 000 (15 minutes) by default.
    """

    def __init__(self, backend: RateLimiterBackend, key: str, *, ttl: int = 900_000) -> None:
        self.backend = backend
        self.key = key
        self.key_events = f"{key}@events"
        self.ttl = ttl

    def create(self, parties: int) -> bool:
        """Makes the barrier for that many parties; False if it exists already, and then it stays as it is."""
        return self.backend.add(self.key, parties, ttl=self.ttl)

    def wait(self, *, block: bool = True, timeout: int | None = None) -> bool:
        """A party arrives, and waits for the others if it is to.

        On the stores of Greenroom a barrier clears once: of those that do not block exactly one is told True, the last
        that was expected; who comes later, or to a barrier that is gone, is told False. Backends that only count treat
        who comes too late as if it had cleared the barrier.

        Parameters:
          block: If False, returns at once.
          timeout: Milliseconds to block at most; None for ever.

        Returns:
          Whether the barrier was cleared: without blocking, by this party.
        """
        store = self.backend.store
        if store is not None:
            return self._wait_in_store(store, block, timeout)
        cleared = not self.backend.decr(self.key, 1, minimum=1, ttl=self.ttl)
        if cleared:
            self.backend.wait_notify(self.key_events, ttl=self.ttl)
            return True
        return self.backend.wait(self.key_events, timeout) if block else False

    def _wait_in_store(self, store: Store, block: bool, timeout: int | None) -> bool:
        key, events = PREFIX + self.key, PREFIX + self.key_events
        left = store.apply([Bump(key, -1, low=0, ttl_ms=self.ttl, only_existing=True)])[0]
        if left == 0:
            store.apply([Put(events, b"x", self.ttl)])
            return True
        if not block:
            return False

        def look() -> bool | None:
            left = store.apply([Get(key)])[0]
            return None if left else left == 0  # gone: it will never be cleared

        return bool(wait_for(store, [events], look, None if timeout is None else timeout / 1000))
