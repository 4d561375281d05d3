"""Trips that fail: made again as they were, until the worker stops and nobody has anything to tell the engine."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import pytest

from greenroom.core.verdict import Verdict
from greenroom.errors import ConnectionFailed
from greenroom.ports.transport import Delivery, Exchange, Settlement
from greenroom.runtime.trips import Trips

LONG_S = 600.0


class Away:
    """A consumer whose engine does not answer, but for the last of so many trips."""

    def __init__(self, failures: int) -> None:
        self.trips = 0
        self._failures = failures

    def exchange(self, settle: Sequence[Settlement], limit: int, skip: frozenset[str]) -> Exchange:
        self.trips += 1
        if self.trips <= self._failures:
            raise ConnectionFailed("nobody is there")
        return Exchange(settled=settle)


def settlement(verdict: Verdict) -> Settlement:
    return Settlement(Delivery("default", "1", b"", ("owner", 1), 1), verdict)


def make_while_stopping(failures: int, settle: Sequence[Settlement], grace_s: float) -> tuple[Exchange | None, int]:
    """What a trip answers that fails while the worker runs, and in whose second pause it is told to stop; and how often
    it was made."""
    consumer = Away(failures)
    pauses = 0

    def pause(_delay_s: float) -> None:
        nonlocal pauses
        pauses += 1
        if pauses == 2:
            trips.deadline_s = time.monotonic() + grace_s

    trips = Trips(consumer, pause)  # type: ignore[arg-type]  # all that it calls
    return trips.make(settle, 10, frozenset()), consumer.trips


@pytest.mark.parametrize("settle", [(), (settlement(Verdict.RELEASE),)], ids=["claims", "gives back"])
def test_a_stop_waits_for_nobody_who_is_away(settle: Sequence[Settlement]) -> None:
    """Whoever only claims, or gives back, does without: the next attempt is the last."""
    assert make_while_stopping(10_000, settle, LONG_S) == (None, 2)


@pytest.mark.parametrize("verdict", [Verdict.ACK, Verdict.RETRY, Verdict.DEAD])
def test_a_stop_waits_if_there_is_something_to_tell(verdict: Verdict) -> None:
    """How a run went is told as soon as the engine is back."""
    told = (settlement(Verdict.RELEASE), settlement(verdict))
    answer, trips = make_while_stopping(20, told, LONG_S)
    assert answer is not None
    assert (list(answer.settled), trips) == (list(told), 21)


def test_a_stop_waits_for_no_longer_than_its_grace() -> None:
    """Then it is given up; whoever buries this worker has it run again."""
    assert make_while_stopping(10_000, (settlement(Verdict.ACK),), 0.0) == (None, 2)


def test_who_works_waits_for_ever() -> None:
    """While nobody stops it a trip is made until it is answered."""
    consumer: Any = Away(1_000)
    assert Trips(consumer, lambda _delay_s: None).make((), 10, frozenset()) is not None
    assert consumer.trips == 1_001
