"""When a process without work need not ask the server: it would have sent a wake token.

A pump asks after each wait, so once a second. With the command that waits, which the server ends every few seconds, an
idle process would send more than one a second.
"""

from __future__ import annotations

from ...clock import SYSTEM_CLOCK

#: Seconds that a trip is good for, while nothing happens. Whatever was missed, such as a token that was eaten by a
#: process that died of something else, is found by the next one.
TRIP_IS_GOOD_S = 1.5
#: Seconds that a wait must have been meant to last, to tell that nothing happens.
LONG_WAIT_S = 0.5


class Idling:
    """Belongs to a consumer.

    Parameters:
      lease_ms: A trip also renews this.
    """

    def __init__(self, lease_ms: int) -> None:
        self._good_s = min(TRIP_IS_GOOD_S, lease_ms / 4000)
        self._until_s = 0.0
        self._has_waited = False

    def made_trip(self, *, found_nothing: bool) -> None:
        """A trip was answered."""
        self._has_waited = False
        self._until_s = SYSTEM_CLOCK.monotonic() + self._good_s if found_nothing else 0.0

    def waited(self, timeout_s: float, *, is_news: bool) -> None:
        """A wait has ended: for a reason, or because so many seconds were over."""
        self._has_waited = not is_news and timeout_s >= LONG_WAIT_S

    def end(self) -> None:
        """Something has changed: the next trip is made."""
        self._until_s = 0.0

    @property
    def is_going_on(self) -> bool:
        """Whether nothing has happened since a trip that found nothing."""
        return self._has_waited and SYSTEM_CLOCK.monotonic() < self._until_s
