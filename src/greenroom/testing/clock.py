"""A clock that moves only when it is told to."""

from __future__ import annotations

import math
import threading

#: Where a manual clock starts: an arbitrary moment, the same in every run (14 November 2023, 22:13:20 UTC).
START_MS = 1_700_000_000_000


class ManualClock:
    """A ``Clock`` for tests. Any thread may use it.

    ``sleep`` does not block: it moves the clock on, as if the time had passed.

    Parameters:
      now_ms: The time it shows at first, in UNIX milliseconds.
    """

    def __init__(self, now_ms: int = START_MS) -> None:
        self._start_ms = now_ms
        self._passed_ms = 0
        self._lock = threading.Lock()  # guards: no step is lost when two threads move the clock

    def now_ms(self) -> int:
        """The time that it shows, in UNIX milliseconds."""
        return self._start_ms + self._passed_ms

    def monotonic(self) -> float:
        """Seconds that have passed since it was made."""
        return self._passed_ms / 1000

    def sleep(self, seconds: float) -> None:
        """Moves the clock on by ``seconds``, rounded up to a millisecond."""
        self.advance_ms(math.ceil(seconds * 1000))

    def advance_ms(self, ms: int) -> None:
        """Moves the clock on.

        Parameters:
          ms: Milliseconds, not negative.

        Raises:
          ValueError: If ``ms`` is negative.
        """
        if ms < 0:
            raise ValueError(f"a clock does not go back: {ms} ms.")
        with self._lock:
            self._passed_ms += ms
