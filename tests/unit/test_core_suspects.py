"""Which suspects run, which wait and which are given back."""

from __future__ import annotations

from typing import Any

import pytest

from greenroom.core.run import Run
from greenroom.core.suspects import (
    ALONE_PATIENCE_S,
    FIRM_AFTER_S,
    GIVEN_BACK_FOR_MS,
    MAX_REMEMBERED,
    Suspects,
    given_back_for_ms,
    is_max_crashes,
    max_crashes_of,
)
from greenroom.ports.transport import Delivery


def suspect(storage_id: str = "a") -> Run:
    return Run(None, Delivery("default", storage_id, b"", 1, 1, crashes=1), None)


def waiting(*storage_ids: str, since_s: float = 0.0) -> Suspects:
    suspects = Suspects()
    for storage_id in storage_ids:
        suspects.add(suspect(storage_id), since_s)
    return suspects


def ids(runs: list[Any]) -> list[str]:
    return [run.delivery.id for run in runs]


def test_one_after_the_other() -> None:
    """Where nothing else runs the first one starts, then the next one, in their order."""
    suspects = waiting("a", "b")
    assert suspects.take(0, 0, 0.0).delivery.id == "a"
    assert suspects.take(1, 0, 0.0) is None
    assert suspects.take(0, 0, 0.0).delivery.id == "b"
    assert suspects.take(0, 0, 0.0) is None
    assert not suspects


@pytest.mark.parametrize(("others", "stuck"), [(1, 0), (5, 0), (2, 1)])
def test_none_starts_beside_others(others: int, stuck: int) -> None:
    """However long it has waited."""
    assert waiting("a").take(others, stuck, 10_000.0) is None


def test_only_a_firm_one_starts_beside_what_is_stuck() -> None:
    """What may never end is waited for a minute, and then not any more; the firm one goes before others."""
    suspects = waiting("old")
    suspects.add(suspect("new"), FIRM_AFTER_S)
    assert suspects.take(1, 1, FIRM_AFTER_S - 0.1) is None
    assert suspects.take(1, 1, FIRM_AFTER_S).delivery.id == "old"
    assert suspects.take(1, 1, FIRM_AFTER_S) is None
    assert len(suspects) == 1


def test_patience_has_an_end() -> None:
    """After five seconds those are given up that wait since then; the others go on waiting."""
    suspects = waiting("a", "b")
    suspects.add(suspect("c"), 1.0)
    assert suspects.give_up(ALONE_PATIENCE_S - 0.1) == []
    assert ids(suspects.give_up(ALONE_PATIENCE_S)) == ["a", "b"]
    assert ids(suspects.drain()) == ["c"]


def test_a_minute_after_the_first_time_it_is_firm() -> None:
    """One that comes again a minute after it was first seen is not given up any more."""
    suspects = waiting("a")
    assert ids(suspects.give_up(5.0)) == ["a"]
    assert not suspects.add(suspect("a"), FIRM_AFTER_S - 1)
    assert not suspects.add(suspect("b"), FIRM_AFTER_S - 1)
    assert ids(suspects.give_up(FIRM_AFTER_S + 5)) == ["b"]
    assert suspects.add(suspect("b"), 2 * FIRM_AFTER_S)
    assert suspects.give_up(10_000.0) == []
    assert ids(suspects.drain()) == ["a", "b"]


def test_one_that_has_run_is_forgotten() -> None:
    """What has started here begins anew if it ever comes back."""
    suspects = waiting("a")
    suspects.take(0, 0, 1.0)
    suspects.add(suspect("a"), 1000.0)
    assert ids(suspects.give_up(1005.0)) == ["a"]


def test_the_memory_is_bounded() -> None:
    """The oldest are forgotten first."""
    suspects = waiting(*(str(n) for n in range(MAX_REMEMBERED + 10)))
    assert len(suspects.give_up(5.0)) == MAX_REMEMBERED + 10
    suspects.add(suspect("0"), FIRM_AFTER_S)
    suspects.add(suspect("10"), FIRM_AFTER_S)
    assert len(suspects._first_seen) == MAX_REMEMBERED
    assert ids(suspects.give_up(FIRM_AFTER_S + 5)) == ["0", "10"]
    suspects.add(suspect(str(MAX_REMEMBERED)), FIRM_AFTER_S)
    assert suspects.give_up(FIRM_AFTER_S + 5) == []


def test_when_to_look_again() -> None:
    """At the end of the first one's patience; firm ones have no such end."""
    suspects = waiting("a")
    suspects.add(suspect("b"), 2.0)
    assert suspects.patience_left_s(1.0) == pytest.approx(ALONE_PATIENCE_S - 1.0)
    assert suspects.patience_left_s(6.0) == pytest.approx(1.0)
    assert suspects.patience_left_s(100.0) == ALONE_PATIENCE_S


def test_for_how_long_it_is_given_back() -> None:
    """Between five and ten seconds, by chance."""
    least, most = GIVEN_BACK_FOR_MS
    assert given_back_for_ms(lambda low, _high: low) == least == 5_000
    assert given_back_for_ms(lambda _low, high: high) == most == 10_000
    assert all(least <= given_back_for_ms() <= most for _ in range(100))


@pytest.mark.parametrize("value", [1, 3, 10**6, None])
def test_numbers_of_crashes(value: Any) -> None:
    """Whole numbers above 0, and None."""
    assert is_max_crashes(value)


@pytest.mark.parametrize("value", [0, -1, 1.0, True, False, "3", [], float("inf")])
def test_no_numbers_of_crashes(value: Any) -> None:
    """Nothing else."""
    assert not is_max_crashes(value)


def test_whose_number_counts() -> None:
    """The message's, else the actor's, else the default; None is a number, too."""
    assert max_crashes_of({}, {}, 3) == 3
    assert max_crashes_of({}, {"max_crashes": 5}, 3) == 5
    assert max_crashes_of({"max_crashes": 7}, {"max_crashes": 5}, 3) == 7
    assert max_crashes_of({"max_crashes": None}, {"max_crashes": 5}, 3) is None
    assert max_crashes_of({}, {"max_crashes": None}, 3) is None
    assert max_crashes_of({"max_crashes": "many"}, {"max_crashes": 5}, 3) == 5
