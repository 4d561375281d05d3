"""One line a second of each kind, with what was left out counted."""

from __future__ import annotations

import logging

import pytest

from greenroom.runtime.complaints import Complaints
from greenroom.testing.clock import ManualClock

logger = logging.getLogger("tests.complaints")


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def complaints(clock: ManualClock) -> Complaints:
    return Complaints(logger, clock)


def complain(complaints: Complaints, number: int, kind: str = "are bad") -> None:
    complaints.say(logging.ERROR, kind, "Message %d is bad.", number)


def test_a_line_a_second(complaints: Complaints, clock: ManualClock, caplog: pytest.LogCaptureFixture) -> None:
    """The first of a second is logged, the next line says how many were not."""
    for number in range(1000):
        complain(complaints, number)
    assert caplog.messages == ["Message 0 is bad."]
    clock.tick(1000)
    complain(complaints, 1000)
    complain(complaints, 1001)
    assert caplog.messages[1:] == ["Message 1000 is bad. (999 more since the last line like this)"]


def test_kinds_do_not_share(complaints: Complaints, caplog: pytest.LogCaptureFixture) -> None:
    """A flood of one kind does not keep the others out of the log, and each has its level."""
    for number in range(10):
        complain(complaints, number)
    complaints.say(logging.WARNING, "wait", "Message %s waits.", "x")
    assert [(record.levelname, record.message) for record in caplog.records] == [
        ("ERROR", "Message 0 is bad."),
        ("WARNING", "Message x waits."),
    ]


def test_the_end_of_a_flood(complaints: Complaints, clock: ManualClock, caplog: pytest.LogCaptureFixture) -> None:
    """What was left out is told of once a second has passed, also if nothing of the kind follows, and only once."""
    for number in range(10):
        complain(complaints, number)
    complaints.catch_up()
    assert len(caplog.messages) == 1
    clock.tick(1000)
    complaints.catch_up()
    complaints.catch_up()
    clock.tick(1000)
    complaints.catch_up()
    assert caplog.messages[1:] == ["9 more messages are bad."]
