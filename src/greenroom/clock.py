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
        """The wall clock: milliseconds since the UNIX epoch."""
        return time.time_ns() // 1_000_000

    # The functions themselves: a deadline is set for every message that runs.
    monotonic = staticmethod(time.monotonic)
    sleep = staticmethod(time.sleep)


SYSTEM_CLOCK = SystemClock()


class Traveller(Protocol):
    """What a steered clock takes along: something that keeps due times on it."""

    @property
    def runs(self) -> int:
        """How many messages have been run and settled so far."""

    def next_due_ms(self) -> int | None:
        """The next moment after now at which something is due; None if there is none."""

    def clock_moved(self) -> None:
        """Any thread: the clock shows another time now."""

    def run_due(self, timeout_s: float) -> None:
        """Returns once all that is due has run; raises if that takes longer than ``timeout_s`` of real time."""


class SteeredClock:
    """Base class of clocks that stand still until a program moves them, as ``testing.clock.ManualClock`` does.

    Who keeps due times on such a clock attaches itself: nobody else can know when waiting is in vain.
    """

    def __init__(self) -> None:
        self._travellers: list[Traveller] = []

    def attach(self, traveller: Traveller) -> None:
        """Has ``traveller`` told of every move of the clock."""
        self._travellers.append(traveller)


def current_millis() -> int:
    """The machine's wall clock: milliseconds since the UNIX epoch."""
    return time.time_ns() // 1_000_000
