"""When a crashed child is replaced, and when the program gives up."""

from __future__ import annotations

import pytest

from greenroom.core.respawn import LONGEST_DELAY_S, MAX_BOOT_FAILURES, SOUND_AFTER_S, Respawn


def test_a_child_that_crashes_again_and_again_is_started_ever_later() -> None:
    """The delay is 0.1 s, doubled by each crash, at most 5 s."""
    respawn = Respawn()
    delays = []
    for now_s in range(100, 108):
        respawn.not_before_s = 0.0
        respawn.crashed(now_s, worked_s=0.0)
        delays.append(round(respawn.delay_s(now_s), 3))
    assert delays == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, LONGEST_DELAY_S, LONGEST_DELAY_S]


def test_a_child_that_worked_for_a_while_is_replaced_soon() -> None:
    """A crash after a second of work begins anew at 0.1 s, however many there were before."""
    respawn = Respawn()
    for _ in range(5):
        respawn.crashed(100.0, worked_s=0.0)
    respawn.crashed(200.0, worked_s=SOUND_AFTER_S)
    assert respawn.delay_s(200.0) == pytest.approx(0.1)
    assert respawn.delay_s(201.0) == 0.0


def test_a_crash_does_not_bring_the_next_start_forward() -> None:
    """While one backoff lasts, the crash of a sound child does not end it."""
    respawn = Respawn()
    for _ in range(6):
        respawn.crashed(100.0, worked_s=0.0)
    respawn.crashed(100.5, worked_s=60.0)
    assert respawn.delay_s(100.5) == pytest.approx(2.7)


def test_five_boots_that_fail_in_a_row_are_enough() -> None:
    """The fifth says so; one that succeeds in between begins the count anew, and leaves the backoff."""
    respawn = Respawn()
    assert [respawn.boot_failed(now_s, now_s - 1.0) for now_s in (10.0, 20.0, 30.0, 40.0)] == [False] * 4
    respawn.became_ready()
    assert respawn.boot_failures == 0
    verdicts = [respawn.boot_failed(now_s, now_s - 1.0) for now_s in (50.0, 60.0, 70.0, 80.0, 90.0)]
    assert verdicts == [False] * (MAX_BOOT_FAILURES - 1) + [True]
    assert respawn.delay_s(90.0) == LONGEST_DELAY_S


def test_children_that_were_started_together_fail_together() -> None:
    """Eight that hang at the start of the program are one failure, not eight."""
    respawn = Respawn()
    assert not any(respawn.boot_failed(60.0 + n / 100, started_s=0.0) for n in range(8))
    assert respawn.boot_failures == 1


def test_a_crash_loop_forks_five_times_in_ten_seconds_at_most() -> None:
    """One that fails at once whenever it is started is started five times, then the program gives up."""
    respawn = Respawn()
    now_s, forks = 0.0, 0
    gave_up = False
    while not gave_up:
        now_s += respawn.delay_s(now_s)
        forks += 1
        gave_up = respawn.boot_failed(now_s, now_s)
    assert forks == 5
    assert now_s == pytest.approx(1.5)


def test_what_may_pass_is_tried_for_ever() -> None:
    """Without a process or a broker to have, children are started ever later, and nobody gives up."""
    respawn = Respawn()
    for _ in range(50):
        respawn.held_up(0.0)
    assert respawn.boot_failures == 0
    assert respawn.delay_s(0.0) == LONGEST_DELAY_S
