"""What waits for a thread."""

from __future__ import annotations

import threading

from greenroom.core.ready import ReadyRuns


def test_first_in_first_out() -> None:
    """Runs of one priority come in their order."""
    ready = ReadyRuns()
    ready.push([1, 2], 0)
    ready.push([3], 0)
    assert [ready.pop() for _ in range(3)] == [1, 2, 3]


def test_lower_priority_first() -> None:
    """A lower number comes first, also when it came later."""
    ready = ReadyRuns()
    ready.push(["c"], 5)
    ready.push(["b"], 0)
    ready.push(["a"], -5)
    ready.push(["b2"], 0)
    assert [ready.pop() for _ in range(4)] == ["a", "b", "b2", "c"]


def test_length_and_emptiness() -> None:
    """It tells how many wait."""
    ready = ReadyRuns()
    assert ready.empty()
    ready.push([1, 2], 3)
    assert (len(ready), ready.empty()) == (2, False)
    ready.pop()
    ready.pop()
    assert (len(ready), ready.empty()) == (0, True)


def test_a_pop_waits_for_a_push() -> None:
    """A thread that asks while nothing is there gets what comes."""
    ready = ReadyRuns()
    found: list[object] = []
    thread = threading.Thread(target=lambda: found.append(ready.pop()))
    thread.start()
    ready.push(["run"], 0)
    thread.join(10)
    assert found == ["run"]


def test_stopping_lets_the_others_be_taken_first() -> None:
    """A thread is told to end after what was ready before, and only one of them."""
    ready = ReadyRuns()
    ready.push([1], 0)
    ready.stop_one()
    ready.push([2], 0)
    assert [ready.pop() for _ in range(3)] == [1, None, 2]


def test_drain_takes_all() -> None:
    """Draining takes what nobody has asked for yet, lower priority first, and leaves nothing."""
    ready = ReadyRuns()
    ready.push([3, 4], 1)
    ready.push([1, 2], 0)
    assert ready.drain() == [1, 2, 3, 4]
    assert ready.empty()
    assert ready.drain() == []


def test_drain_leaves_the_word_to_stop() -> None:
    """Draining does not swallow what tells a thread to end."""
    ready = ReadyRuns()
    ready.push([1], 0)
    ready.stop_one()
    assert ready.drain() == [1]
    assert ready.pop() is None


def test_drain_finds_what_came_after_the_word_to_stop() -> None:
    """What was pushed while the threads were told to end is found, too: nobody else would run it or give it back."""
    ready = ReadyRuns()
    ready.stop_one()
    ready.push([1], 0)
    ready.stop_one()
    ready.push([2], 0)
    assert ready.drain() == [1, 2]
    assert [ready.pop(), ready.pop()] == [None, None]


def test_every_run_comes_once() -> None:
    """However many threads ask while runs of changing priorities come, each run comes once."""
    ready = ReadyRuns()
    found: list[int] = []

    def take() -> None:
        while (run := ready.pop()) is not None:
            found.append(run)

    threads = [threading.Thread(target=take) for _ in range(4)]
    for thread in threads:
        thread.start()
    for number in range(0, 4000, 4):
        ready.push([number, number + 1], number % 7)
        ready.push([number + 2, number + 3], -number % 5)
    for _ in threads:
        ready.stop_one()
    for thread in threads:
        thread.join(30)
    found += ready.drain()
    assert sorted(found) == list(range(4000))
