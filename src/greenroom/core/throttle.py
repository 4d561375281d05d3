"""Not more than so many lines of a log in a second, whatever happens."""

from __future__ import annotations


class Throttle:
    """Owned by one thread. Times are monotonic, in seconds.

    Parameters:
      per_second: How many are allowed in a second.
    """

    def __init__(self, per_second: int) -> None:
        self._per_second = per_second
        self._second = -1
        self._allowed = 0
        self._refused = 0

    def rest(self, now_s: float) -> int:
        """How many were refused, once a new second has come and nobody has asked in it; told once."""
        if int(now_s) == self._second:
            return 0
        refused, self._refused = self._refused, 0
        return refused

    def ask(self, now_s: float) -> int | None:
        """How many were refused since the last one that was allowed, or None if this one is refused, too."""
        if int(now_s) != self._second:
            self._second, self._allowed = int(now_s), 0
        if self._allowed == self._per_second:
            self._refused += 1
            return None
        self._allowed += 1
        refused, self._refused = self._refused, 0
        return refused
