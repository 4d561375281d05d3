"""The gate in front of a process's connection: one at a time, in the order of asking."""

from __future__ import annotations

import threading

import pytest

from greenroom.engines.sqlite.gate import FifoGate
from tests.runtime.cli_kit import wait_until


def test_first_in_first_out() -> None:
    """Those who wait get in in the order in which they came, however the threads are scheduled."""
    gate, passed = FifoGate(), []

    def pass_through(number: int) -> None:
        with gate:
            passed.append(number)

    threads = [threading.Thread(target=pass_through, args=(number,)) for number in range(20)]
    with gate:
        for number, thread in enumerate(threads, 1):
            thread.start()
            wait_until(lambda n=number: len(gate._waiting) == n, "the thread waits at the gate")
        assert passed == []
    for thread in threads:
        thread.join()
    assert passed == list(range(20))


def test_who_leaves_does_not_overtake() -> None:
    """A thread that leaves and comes again stands behind those who waited meanwhile: a single send is not starved by a
    bulk of them."""
    gate, passed = FifoGate(), []

    def single() -> None:
        with gate:
            passed.append("single")

    waiter = threading.Thread(target=single)
    gate.acquire()
    waiter.start()
    wait_until(lambda: len(gate._waiting) == 1, "the single sender waits")
    gate.release()
    for _ in range(3):
        with gate:
            passed.append("bulk")
    waiter.join()
    assert passed == ["single", "bulk", "bulk", "bulk"]


def test_one_at_a_time() -> None:
    """No two threads are inside, and nobody is forgotten outside."""
    gate, inside, most, entries = FifoGate(), 0, 0, 0

    def work() -> None:
        nonlocal inside, most, entries
        for _ in range(200):
            with gate:
                inside += 1
                most = max(most, inside)
                entries += 1
                inside -= 1

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (most, entries, inside) == (1, 1600, 0)


def test_an_exception_opens_the_gate() -> None:
    """What fails inside does not keep the others out."""
    gate = FifoGate()
    with pytest.raises(ZeroDivisionError), gate:
        raise ZeroDivisionError
    with gate:
        pass
