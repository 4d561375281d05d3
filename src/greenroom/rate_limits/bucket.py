"""A limit on how often something is done in each of the windows that time is cut into."""

from __future__ import annotations

from ..clock import SYSTEM_CLOCK
from ..ports.store import Grant
from .backend import PREFIX, RateLimiterBackend
from .rate_limiter import Admission, RateLimiter


class BucketRateLimiter(RateLimiter):
    """At most ``limit`` times in each window of ``bucket`` milliseconds; windows begin at multiples of their length.

    Cheap: one counter. Across a boundary up to twice the limit may come close together; where that matters take a
    ``WindowRateLimiter``.

    Parameters:
      backend: What keeps the state.
      key: The name of the limit.
      limit: How often in a window; 1 by default.
      bucket: The length of a window in milliseconds; 1 000 by default.

    Raises:
      ValueError: If ``limit`` or ``bucket`` is less than 1.
    """

    def __init__(self, backend: RateLimiterBackend, key: str, *, limit: int = 1, bucket: int = 1000) -> None:
        if limit < 1:
            raise ValueError(f"limit must be at least 1, not {limit}.")
        if bucket < 1:
            raise ValueError(f"bucket must be at least 1 millisecond, not {bucket}.")
        super().__init__(backend, key)
        self.limit = limit
        self.bucket = bucket

    def _enter(self) -> Admission:
        store = self.backend.store
        if store is not None:
            at_ms: int = store.apply([Grant(PREFIX + self.key, self.limit, self.bucket, sliding=False)])[0]
            return Admission(not at_ms, at_ms or None)
        granted = self._acquire()
        return Admission(granted, None if granted else self._begin_ms() + self.bucket)

    def _begin_ms(self) -> int:
        now_ms = SYSTEM_CLOCK.now_ms()
        return now_ms - now_ms % self.bucket

    def _acquire(self) -> bool:
        # For backends that only count.
        key = f"{self.key}@{self._begin_ms()}"
        if self.backend.add(key, 1, ttl=self.bucket):
            return True
        return self.backend.incr(key, 1, maximum=self.limit, ttl=self.bucket)

    def _release(self) -> None:
        """What was done was done."""

    def _leave(self, admission: Admission) -> None:
        """What was done was done."""
