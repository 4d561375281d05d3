"""A limit on how often something is done in any stretch of time."""

from __future__ import annotations

from ..clock import SYSTEM_CLOCK
from ..ports.store import Grant
from .backend import PREFIX, RateLimiterBackend
from .rate_limiter import Admission, RateLimiter


class WindowRateLimiter(RateLimiter):
    """At most ``limit`` times in any stretch of ``window`` seconds, wherever it begins.

    Exact on the stores of Greenroom, which keep the times of the last ``limit`` grants. A backend that only counts is
    asked for the sum of one counter a second.

    Parameters:
      backend: What keeps the state.
      key: The name of the limit.
      limit: How often; 1 by default.
      window: Seconds; 1 by default.

    Raises:
      ValueError: If ``limit`` or ``window`` is less than 1.
    """

    def __init__(self, backend: RateLimiterBackend, key: str, *, limit: int = 1, window: int = 1) -> None:
        if limit < 1:
            raise ValueError(f"limit must be at least 1, not {limit}.")
        if window < 1:
            raise ValueError(f"window must be at least 1 second, not {window}.")
        super().__init__(backend, key)
        self.limit = limit
        self.window = window

    @property
    def window_millis(self) -> int:
        """The window in milliseconds."""
        return int(self.window * 1000)

    def _enter(self) -> Admission:
        store = self.backend.store
        if store is not None:
            at_ms: int = store.apply([Grant(PREFIX + self.key, self.limit, self.window_millis, sliding=True)])[0]
            return Admission(not at_ms, at_ms or None)
        granted = self._acquire()
        return Admission(granted, None if granted else SYSTEM_CLOCK.now_ms() + 1000)  # a counter ends each second

    def _seconds(self) -> list[str]:
        now_s = SYSTEM_CLOCK.now_ms() // 1000
        return [f"{self.key}@{now_s - ago}" for ago in range(int(self.window))]

    def _acquire(self) -> bool:
        keys = self._seconds()
        return self.backend.incr_and_sum(keys[0], lambda: keys, 1, maximum=self.limit, ttl=self.window_millis)

    def _release(self) -> None:
        """What was done was done."""

    def _leave(self, admission: Admission) -> None:
        """What was done was done."""
