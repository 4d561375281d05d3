"""A clock that moves only when it is told to, and takes along what is due on the way."""

from __future__ import annotations

import math
import threading
from datetime import timedelta

from ..clock import SteeredClock
from ..core.durations import duration_ms

#: Where a manual clock starts: an arbitrary moment, the same in every run (14 November 2023, 22:13:20 UTC).
START_MS = 1_700_000_000_000

#: How many seconds of real time ``tick`` waits for what runs at one moment, if it is not told otherwise.
PATIENCE_S = 30.0


class ManualClock(SteeredClock):
    """A ``Clock`` for tests. Any thread may use it.

    ``sleep`` does not block: it moves the clock on, as if the time had passed.

    Parameters:
      now_ms: The time it shows at first, in UNIX milliseconds.
    """

    def __init__(self, now_ms: int = START_MS) -> None:
        super().__init__()
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
        """Moves the clock on in one step, and waits for nothing.

        Parameters:
          ms: Milliseconds, not negative.

        Raises:
          ValueError: If ``ms`` is negative.
        """
        if ms < 0:
            raise ValueError(f"a clock does not go back: {ms} ms.")
        with self._lock:
            self._passed_ms += ms
        self._tell()

    def tick(self, duration: str | timedelta | float, *, patience_s: float = PATIENCE_S) -> int:
        """Lets time pass, from due time to due time, and at each waits until the workers have run what is due.

        Parameters:
          duration: ``"30 days"``, ``"1h30m"``, a timedelta, or milliseconds.
          patience_s: How many seconds of real time to wait at each due time; 30 by default.

        Returns:
          How many messages were run; every attempt counts.

        Raises:
          ValueError: If the text is not a duration, or the duration is negative.
          QueueJoinTimeout: If an actor still runs when the patience is over; the text names it.
        """
        end_ms = self.now_ms() + duration_ms(duration)
        runs = self._runs()
        self._run_due(patience_s)
        while (due_ms := self._next_due_ms()) is not None and due_ms <= end_ms:
            self._move_to(due_ms)
            self._run_due(patience_s)
        self._move_to(end_ms)
        return self._runs() - runs

    def _move_to(self, now_ms: int) -> None:
        """An actor that sleeps may have moved the clock on; it never goes back."""
        with self._lock:
            self._passed_ms = max(self._passed_ms, now_ms - self._start_ms)
        self._tell()

    def _tell(self) -> None:
        for traveller in list(self._travellers):
            traveller.clock_moved()

    def _runs(self) -> int:
        return sum(traveller.runs for traveller in self._travellers)

    def _next_due_ms(self) -> int | None:
        due = [traveller.next_due_ms() for traveller in self._travellers]
        return min((due_ms for due_ms in due if due_ms is not None), default=None)

    def _run_due(self, patience_s: float) -> None:
        for traveller in list(self._travellers):
            traveller.run_due(patience_s)
