"""Values that belong to one process."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import threading
from collections.abc import Callable

import pytest

from greenroom import context, forksafe
from greenroom.forksafe import PerProcess
from greenroom.testing.contract.processes import in_child
from tests.runtime.cli_kit import environment

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="the platform cannot fork")


class Made:
    """Something that was made, and tells when it is thrown away."""

    thrown_away = 0

    def __init__(self) -> None:
        self.pid = os.getpid()

    def __del__(self) -> None:
        Made.thrown_away += 1


def test_it_is_made_on_first_use() -> None:
    """Nothing is made before ``get``, and one value only."""
    made: list[object] = []

    def factory() -> object:
        made.append(object())
        return made[-1]

    holder = PerProcess(factory)
    assert holder.peek() is None
    assert made == []
    assert holder.get() is holder.get() is holder.peek()
    assert len(made) == 1


def test_threads_share_one_value() -> None:
    """Threads that use it first at the same time get the same value."""
    together = threading.Barrier(8)
    holder = PerProcess(object)
    found: list[object] = []

    def use() -> None:
        together.wait(10)
        found.append(holder.get())

    threads = [threading.Thread(target=use) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len(set(map(id, found))) == 1


def test_what_is_taken_is_made_anew() -> None:
    """``take`` hands the value over once, and the next ``get`` makes another."""
    holder = PerProcess(object)
    first = holder.get()
    assert holder.take() is first
    assert holder.take() is None
    assert holder.get() is not first


def test_a_factory_that_fails_is_asked_again() -> None:
    """When making the value fails, the error is the caller's, and the next use tries again."""
    answers = iter([OSError("no"), "value"])

    def factory() -> str:
        answer = next(answers)
        if isinstance(answer, OSError):
            raise answer
        return answer

    holder = PerProcess(factory)
    with pytest.raises(OSError, match="no"):
        holder.get()
    assert holder.get() == "value"


@needs_fork
def test_a_child_makes_its_own() -> None:
    """A child does not see the parent's value; it makes one of its own, and the parent keeps its own."""
    holder = PerProcess(Made)
    mine = holder.get()

    def work() -> None:
        assert holder.peek() is None
        assert holder.get().pid == os.getpid() != mine.pid

    in_child(work)
    assert holder.get() is mine


@needs_fork
def test_a_child_does_not_throw_away_what_it_inherited() -> None:
    """No finaliser of an inherited value runs in the child, even when its holder is gone."""
    holder = PerProcess(Made)
    holder.get()
    before = Made.thrown_away

    def work() -> None:
        nonlocal holder
        del holder
        assert Made.thrown_away == before

    in_child(work)


@needs_fork
def test_a_value_rests_during_a_fork() -> None:
    """The parent's value is told before the fork and after it; the child's is not told that the fork is over."""
    told: list[str] = []
    holder = PerProcess(
        object, before_fork=lambda _value: told.append("before"), after_fork=lambda _value: told.append("after")
    )

    def work() -> None:
        assert told == ["before"]

    in_child(lambda: None)
    assert told == []  # it was not used yet
    holder.get()
    in_child(work)
    assert told == ["before", "after"]


@needs_fork
def test_a_fork_while_others_make_values() -> None:
    """A child forked in the middle of other threads' first uses inherits no closed lock."""
    stop = threading.Event()
    holders = [PerProcess(object) for _ in range(4)]

    def use() -> None:
        while not stop.is_set():
            for holder in holders:
                holder.get()
                holder.take()

    threads = [threading.Thread(target=use) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(20):
            in_child(lambda: [holder.get() for holder in holders])
    finally:
        stop.set()
        for thread in threads:
            thread.join()


@needs_fork
def test_a_fork_waits_for_a_factory() -> None:
    """What another thread is about to make is made and brought to rest first: no child inherits it half made."""
    begun, told = threading.Event(), []

    def factory() -> list[str]:
        begun.set()
        threading.Event().wait(0.05)
        told.append("made")
        return told

    holder = PerProcess(factory, before_fork=lambda value: value.append("rests"), after_fork=list.clear)
    thread = threading.Thread(target=holder.get)
    thread.start()
    begun.wait()

    def work() -> None:
        assert told == ["made", "rests"]

    in_child(work)
    thread.join()
    assert told == []


@needs_fork
def test_a_value_that_is_taken_during_a_fork_goes_on() -> None:
    """Whoever rested is told that the fork is over, even if it was taken out of its holder meanwhile."""
    told: list[str] = []
    holder: PerProcess[object] = PerProcess(
        object,
        before_fork=lambda _value: told.append(str(holder.take() is _value)),
        after_fork=lambda _: told.append("on"),
    )
    holder.get()
    in_child(lambda: None)
    assert told == ["True", "on"]


def test_closing_comes_before_removing() -> None:
    """While a value is closed its holder still has it, so a fork can bring it to rest; afterwards a new one is made."""
    holder, closed = PerProcess(object), []
    first = holder.get()
    holder.close(lambda value: closed.append((value, holder.peek())))
    holder.close(closed.append)
    assert closed == [(first, first)]
    assert holder.peek() is None
    assert holder.get() is not first


@needs_fork
def test_a_grandchild() -> None:
    """It works in every generation."""
    holder = PerProcess(Made)
    holder.get()

    def grandchild() -> None:
        assert holder.get().pid == os.getpid()

    def child() -> None:
        holder.get()
        in_child(grandchild)
        assert holder.get().pid == os.getpid()

    in_child(child)


# --- forks that nobody announces


def in_unannounced_child(work: Callable[[], object]) -> None:
    """As ``in_child``, but the fork comes from C."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fork", ctypes.PyDLL(None).fork)
        in_child(work)


FORKS = pytest.mark.parametrize("forked", [in_child, in_unannounced_child])
Forked = Callable[[Callable[[], object]], None]


@needs_fork
@FORKS
def test_a_witness_sees_every_fork(forked: Forked) -> None:
    """It is true in the process that made it, and false in a child, however that was forked."""
    witness = forksafe.new_witness()

    def work() -> None:
        assert not witness[0]

    forked(work)
    assert witness[0]


@needs_fork
@FORKS
def test_a_witness_without_help_of_the_kernel(monkeypatch: pytest.MonkeyPatch, forked: Forked) -> None:
    """Where memory cannot be wiped at a fork, the process's number tells."""
    monkeypatch.setattr(forksafe, "_MADV_WIPEONFORK", 9_999)
    test_a_witness_sees_every_fork(forked)


@needs_fork
def test_a_child_that_nobody_announced_makes_its_own() -> None:
    """Each way to ask for a value notices the fork first; what was inherited is kept and not thrown away."""
    asked: list[Callable[[PerProcess[Made]], object]] = [
        lambda holder: holder.peek() is None,
        lambda holder: holder.take() is None,
        lambda holder: holder.get().pid == os.getpid(),
        lambda holder: holder.close(lambda _value: pytest.fail("the parent's value was closed")) is None,
    ]
    before = Made.thrown_away
    for ask in asked:
        holder = PerProcess(Made)
        mine = holder.get()

        def work() -> None:
            assert ask(holder)  # noqa: B023  # called at once
            assert Made.thrown_away == before  # noqa: B023  # see above

        in_unannounced_child(work)
        assert holder.take() is mine
        del mine
        before = Made.thrown_away


@needs_fork
def test_a_holder_that_is_thrown_away_by_a_child_leaves_its_value() -> None:
    """The first thing that an unannounced child does with a holder may be to forget it."""
    holder = PerProcess(Made)
    holder.get()
    before = Made.thrown_away

    def work() -> None:
        nonlocal holder
        del holder
        assert Made.thrown_away == before

    in_unannounced_child(work)


@needs_fork
@FORKS
def test_a_child_inherits_no_closed_lock(forked: Forked) -> None:
    """A thread of the parent's that makes a value at the fork does not hold up the child."""
    begun, goes_on = threading.Event(), threading.Event()

    def factory() -> str:
        if threading.current_thread() is thread:
            begun.set()
            goes_on.wait(0 if forked is in_child else None)
        return "value"

    holder = PerProcess(factory)
    thread = threading.Thread(target=holder.get)
    thread.start()
    begun.wait()
    forked(holder.get)
    goes_on.set()
    thread.join()


@needs_fork
@FORKS
def test_a_child_is_told(monkeypatch: pytest.MonkeyPatch, forked: Forked) -> None:
    """What is registered with ``in_child`` is called once: at an announced fork at once, else with the first use."""
    told: list[int] = []
    monkeypatch.setattr(forksafe, "_told_in_child", [])
    holder = PerProcess(object)

    @forksafe.in_child
    def tell() -> None:
        told.append(os.getpid())

    def work() -> None:
        assert told == ([os.getpid()] if forked is in_child else [])
        holder.get()
        holder.get()
        assert told == [os.getpid()]

    forked(work)
    assert told == []


@needs_fork
@FORKS
def test_a_child_is_no_worker(monkeypatch: pytest.MonkeyPatch, forked: Forked) -> None:
    """What a worker's thread knows of interrupts is its parent's: nobody sends any in the child."""
    monkeypatch.setattr(context.interruptible, "slot", object())
    holder = PerProcess(object)

    def work() -> None:
        holder.get()
        assert context.interruptible.slot is None

    forked(work)


@needs_fork
def test_what_cannot_rest_does_not_keep_others_from_it(caplog: pytest.LogCaptureFixture) -> None:
    """The fork comes whatever happens before it: a value that fails to rest is logged, and the others rest."""
    told: list[str] = []

    def fail(_value: object) -> None:
        raise RuntimeError("it is busy")

    def tell(_value: object) -> None:
        told.append("rests")

    holders = [PerProcess(object, before_fork=tell), PerProcess(object, before_fork=fail, after_fork=fail)]
    for holder in holders:
        holder.get()
    in_child(lambda: [holder.get() for holder in holders])
    assert told == ["rests"]
    assert [record.getMessage() for record in caplog.records] == [
        "A process forks although something in it cannot rest: it is busy"
    ]


@needs_fork
@pytest.mark.parametrize("fork", ["os.fork", "ctypes.PyDLL(None).fork"])
def test_no_finaliser_runs_at_the_end_of_a_child(fork: str) -> None:
    """An interpreter finalises all there is at its end, but nothing that it has inherited; the parent's does."""
    program = """
import ctypes, os, sys
from greenroom.forksafe import PerProcess

class Made:
    def __del__(self):
        os.write(1, b"finalised ")

holder = PerProcess(Made)
holder.get()
if FORK() == 0:
    os.write(1, b"child ")
    sys.exit(0)
os.wait()
os.write(1, b"parent ")
""".replace("FORK", fork)
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment({}), capture_output=True, text=True, check=True
    )
    assert done.stdout == "child parent finalised "
    assert done.stderr == ""
