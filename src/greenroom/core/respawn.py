"""When a child that has ended is replaced, and when it is no use: backoff and the count of boots that failed."""

from __future__ import annotations

FIRST_DELAY_S = 0.1
LONGEST_DELAY_S = 5.0
#: A child that has worked this long was sound: after its crash the backoff begins anew.
SOUND_AFTER_S = 1.0
#: So many boots in a row may fail; the last of them ends the program.
MAX_BOOT_FAILURES = 5


class Respawn:
    """The backoff of one program's children: 0.1 s, doubled up to 5 s. Owned by the parent's main thread."""

    def __init__(self) -> None:
        #: No child is started before this moment of the monotonic clock.
        self.not_before_s = 0.0
        #: Boots that failed since the last child became ready.
        self.boot_failures = 0
        self._troubles = 0
        self._last_boot_failure_s = float("-inf")

    def delay_s(self, now_s: float) -> float:
        """Seconds until a child may be started."""
        return max(0.0, self.not_before_s - now_s)

    def became_ready(self) -> None:
        """A child works: boots succeed again. The backoff stays, until a child has worked for a while."""
        self.boot_failures = 0

    def crashed(self, now_s: float, worked_s: float) -> None:
        """A child that had worked for ``worked_s`` has ended without having been asked to."""
        if worked_s >= SOUND_AFTER_S:
            self._troubles = 0
        self._back_off(now_s)

    def boot_failed(self, now_s: float, started_s: float) -> bool:
        """A child that was started at ``started_s`` did not become ready; True if the program should give up.

        Children that are started together fail together: who was started before the last failure came to light belongs
        to that failure.
        """
        if started_s >= self._last_boot_failure_s:
            self.boot_failures += 1
        self._last_boot_failure_s = now_s
        self._back_off(now_s)
        return self.boot_failures >= MAX_BOOT_FAILURES

    def held_up(self, now_s: float) -> None:
        """A child could not be started for a reason that may pass: the broker is away, there is no process to have."""
        self._back_off(now_s)

    def _back_off(self, now_s: float) -> None:
        delay_s = min(FIRST_DELAY_S * 2.0 ** min(self._troubles, 32), LONGEST_DELAY_S)
        self._troubles += 1
        self.not_before_s = max(self.not_before_s, now_s + delay_s)
