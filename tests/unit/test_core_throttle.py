"""Not more than so many in a second."""

from __future__ import annotations

from greenroom.core.throttle import Throttle


def test_so_many_a_second() -> None:
    """The first ones of a second are allowed; with the next second it begins anew, and the first one is told how many
    were refused."""
    throttle = Throttle(3)
    assert [throttle.ask(5.0 + n / 10) for n in range(6)] == [0, 0, 0, None, None, None]
    assert [throttle.ask(6.0), throttle.ask(6.1)] == [3, 0]


def test_time_may_stand_still() -> None:
    """Also in the first second of all."""
    throttle = Throttle(1)
    assert [throttle.ask(0.0), throttle.ask(0.0)] == [0, None]


def test_the_rest_is_told_once() -> None:
    """What was refused can be asked for when a new second has come, without asking for a line."""
    throttle = Throttle(1)
    assert [throttle.ask(10.0) for _ in range(4)] == [0, None, None, None]
    assert throttle.rest(10.9) == 0
    assert throttle.rest(11.0) == 3
    assert throttle.rest(12.0) == 0
    assert throttle.ask(12.5) == 0
