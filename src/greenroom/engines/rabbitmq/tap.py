"""One queue, as this process consumes it."""

from __future__ import annotations

from collections import deque
from enum import Enum
from typing import Any, NamedTuple

from .unacked import Unacked


class Arrived(NamedTuple):
    """A message as the broker handed it over."""

    tag: int
    redelivered: bool
    properties: Any
    body: bytes


class TapState(Enum):
    """How far a tap is."""

    CLOSED = 0
    OPENING = 1
    OPEN = 2


class Tap:
    """Owned by its line. What has arrived and was not claimed lies in ``arrived``."""

    def __init__(self, queue: str, unacked: Unacked, *, is_steady: bool = False) -> None:
        #: As the broker calls it.
        self.queue = queue
        self.arrived: deque[Arrived] = deque()
        self.state = TapState.CLOSED
        #: By which the broker knows who consumes: one for each step of the prefetch.
        self.consumer_tags: list[str] = []
        #: How many messages the broker may have handed over; 0 if nothing is consumed.
        self.prefetch = 0
        #: How often it was begun to consume: which answers of the broker still count.
        self.beginnings = 0
        #: The most that was wanted since the last look at it, and when that look was.
        self.peak = 0
        self.looked_s = 0.0
        #: Not to be opened before this time (monotonic).
        self.not_before_s = 0.0
        #: Whether its prefetch stays as it is.
        self.is_steady = is_steady
        self._unacked = unacked
        self._last_tag = 0

    def arrive(self, _channel: Any, method: Any, properties: Any, body: bytes) -> None:
        """For pika: called with each message."""
        tag = method.delivery_tag
        self._unacked[tag] = properties
        self.arrived.append(Arrived(tag, method.redelivered, properties, body))

    def close(self) -> None:
        """Nothing is consumed any more."""
        self.state = TapState.CLOSED
        self.consumer_tags = []
        self.prefetch = 0
        self._last_tag = next(reversed(self._unacked), 0)

    def left_over(self) -> int:
        """How much is held that came before the tap was closed last: its prefetch does not count that."""
        if not self._last_tag:
            return 0
        count = 0
        for tag in self._unacked:
            if tag > self._last_tag:
                return count
            count += 1
        self._last_tag = self._last_tag if count else 0
        return count
