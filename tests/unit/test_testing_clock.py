"""The clock of tests."""

from __future__ import annotations

import threading

import pytest

from greenroom.testing.clock import START_MS, ManualClock


def test_it_stands_still() -> None:
    """Nothing but its own methods moves it."""
    clock = ManualClock()
    assert (clock.now_ms(), clock.monotonic()) == (START_MS, 0.0)
    assert (clock.now_ms(), clock.monotonic()) == (START_MS, 0.0)


def test_it_moves_when_told() -> None:
    """Moving it moves both of its faces."""
    clock = ManualClock(1000)
    clock.advance_ms(1500)
    assert (clock.now_ms(), clock.monotonic()) == (2500, 1.5)


def test_sleep_does_not_block() -> None:
    """Sleeping lets time pass, rounded up so that no sleep is for nothing."""
    clock = ManualClock(0)
    clock.sleep(3600.0)
    clock.sleep(0.0001)
    assert clock.now_ms() == 3_600_001


def test_it_does_not_go_back() -> None:
    """A negative step is refused."""
    with pytest.raises(ValueError, match="does not go back: -1 ms"):
        ManualClock().advance_ms(-1)


def test_no_step_is_lost() -> None:
    """Threads that move it at the same time all count."""
    clock = ManualClock(0)
    threads = [threading.Thread(target=lambda: [clock.advance_ms(1) for _ in range(1000)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert clock.now_ms() == 4000
