"""How much a process claims."""

from __future__ import annotations

import pytest

from greenroom.core.prefetch import MAX_CLAIM, MAX_HELD, claim_limit, hold_target


def target(previous: int = 8, *, slots: int = 8, mean_run_s: float = 0.0, mean_body: float = 0.0) -> int:
    return hold_target(previous, slots=slots, mean_run_s=mean_run_s, mean_body=mean_body)


def test_short_tasks_are_fed_in_hundreds() -> None:
    """Tasks that take next to nothing are held up to the cap."""
    assert target(mean_run_s=0.0) == MAX_HELD
    assert target(mean_run_s=0.000_01) == MAX_HELD


def test_a_long_task_keeps_nothing_behind_it() -> None:
    """From 50 ms on, one message a slot is held, whatever was held before."""
    assert target(1000, mean_run_s=0.05) == 8
    assert target(1000, mean_run_s=60.0) == 8


def test_in_between_it_is_the_work_of_50_ms() -> None:
    """A slot's share of 50 ms lies ahead: with 10 ms a task that is five a slot beside the one that runs."""
    assert target(mean_run_s=0.010) == 8 + 40
    assert target(mean_run_s=0.001) == 8 + 400


def test_it_falls_by_halves() -> None:
    """For tasks that became slower, but not long, the target falls by at most a half."""
    assert target(1000, mean_run_s=0.040) == 500
    assert target(20, mean_run_s=0.040) == 18


def test_large_bodies_lower_it() -> None:
    """No more than 64 MiB are held, but always one a slot."""
    assert target(mean_body=1024 * 1024) == 64
    assert target(mean_body=64 * 1024 * 1024) == 8


def test_the_cap() -> None:
    """``cap`` bounds it, but for one a slot."""
    assert hold_target(8, slots=8, mean_run_s=0.0, mean_body=0.0, cap=20) == 20
    assert hold_target(8, slots=8, mean_run_s=0.0, mean_body=0.0, cap=1) == 8


@pytest.mark.parametrize(
    ("held", "busy", "expected"),
    [(100, False, 0), (101, False, 0), (99, False, 1), (0, False, 100), (99, True, 0), (76, True, 0), (75, True, 25)],
)
def test_how_many_to_claim(held: int, busy: bool, expected: int) -> None:
    """What is free is claimed; while there is ready work, only when a quarter of the target is free."""
    assert claim_limit(100, held, busy=busy) == expected


def test_a_claim_has_a_bound() -> None:
    """No claim is larger than a trip."""
    assert claim_limit(5000, 0, busy=False) == MAX_CLAIM
