"""A limit on how many do something at the same time."""

from __future__ import annotations

import uuid

from ..context import current_run
from ..ports.store import Lease, LeaseRelease, LeaseTake, Store
from .backend import PREFIX, RateLimiterBackend
from .rate_limiter import Admission, RateLimiter


class ConcurrentRateLimiter(RateLimiter):
    """At most ``limit`` at a time, in all processes together.

    Each holder has a slot of its own: one that dies has its slot freed after ``ttl``, and the others keep theirs.
    Whoever stays inside longer than ``ttl`` has lost its slot without being told.

    Parameters:
      backend: What keeps the state.
      key: The name of the limit.
      limit: How many at a time; 1 by default.
      ttl: Milliseconds after which a slot ends that was not given back; 900 000 (15 minutes) by default. Choose it
        longer than the longest run.

    Raises:
      ValueError: If ``limit`` or ``ttl`` is less than 1.
    """

    def __init__(self, backend: RateLimiterBackend, key: str, *, limit: int = 1, ttl: int = 900_000) -> None:
        if limit < 1:
            raise ValueError(f"limit must be at least 1, not {limit}.")
        if ttl < 1:
            raise ValueError(f"ttl must be at least 1 millisecond, not {ttl}.")
        super().__init__(backend, key)
        self.limit = limit
        self.ttl = ttl

    def _enter(self) -> Admission:
        store = self.backend.store
        if store is None:
            return Admission(self._acquire())
        return self._take_slot(store)

    def _take_slot(self, store: Store) -> Admission:
        key = PREFIX + self.key
        slot = LeaseTake(key, _holder(key), self.limit, self.ttl)
        lease: Lease = store.apply([slot])[0]
        if lease.fence:
            return Admission(True, slot=slot)
        _forget_holder(key)
        return Admission(False, lease.until_ms, slot)

    def _leave(self, admission: Admission) -> None:
        store = self.backend.store
        if store is None or admission.slot is None:
            self._release()
        else:
            store.apply([LeaseRelease(admission.slot.key, admission.slot.holder)])

    def _acquire(self) -> bool:
        # For backends that only count: a holder that dies then closes its place until nobody has come for `ttl`.
        if self.backend.add(self.key, 1, ttl=self.ttl):
            return True
        return self.backend.incr(self.key, 1, maximum=self.limit, ttl=self.ttl)

    def _release(self) -> None:
        self.backend.decr(self.key, 1, minimum=0, ttl=self.ttl)


def _holder(key: str) -> str:
    """The name of an acquisition. For a message it is the same in each of its claims, because it may be given its slot
    while it waits in the queue: its storage id and how many slots of this key its run has taken before."""
    run = current_run()
    if run is None:
        return uuid.uuid4().hex
    taken = run.slots_taken = run.slots_taken or {}
    number = taken[key] = taken.get(key, -1) + 1
    return f"{run.delivery.id}:{number}"


def _forget_holder(key: str) -> None:
    run = current_run()
    if run is not None:
        run.slots_taken[key] -= 1
