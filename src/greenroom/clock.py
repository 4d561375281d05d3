"""The only module that reads a clock or sleeps. Everything else is handed a ``Clock``."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """What the library asks of time."""

    def now_ms(self) -> int:
        """The wall clock: milliseconds since the UNIX epoch."""

    def monotonic(self) -> float:
        """Seconds that never go back; only differences mean anything."""

    def sleep(self, seconds: float) -> None:
        """Blocks the calling thread."""


class SystemClock:
    """The clock of the machine. Stateless, so any thread may use it."""

    __slots__ = ()

    def now_ms(self) -> int:
        return time.time_ns() // 1_000_000

    def monotonic(self) -> float:
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)


SYSTEM_CLOCK = SystemClock()


def current_millis() -> int:
    """The machine's wall clock: milliseconds since the UNIX epoch."""
    return time.time_ns() // 1_000_000
