"""Interrupts against the end of an actor, thousands of times: what has returned has succeeded, and nothing is struck
but the actor's own code."""

from __future__ import annotations

import random
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import SimpleQueue
from types import SimpleNamespace
from typing import Any, Self

import pytest

from greenroom import Message, Middleware, actor
from greenroom.context import interruptible
from greenroom.core.run import Run
from greenroom.errors import Interrupt
from greenroom.middleware import Shutdown, TimeLimit, TimeLimitExceeded
from greenroom.runtime.interrupts import Shield, abandon, call_actor, strike
from greenroom.runtime.slot import Slot
from tests.runtime.cli_kit import wait_until
from tests.runtime.worker_kit import ENGINES, collector, make_broker, working

RACES = 10_000
#: Never set: to wait a little.
PAUSE = threading.Event()


@pytest.fixture(autouse=True)
def _hasty_switches() -> Iterator[None]:
    """Has Python switch threads a thousand times as often, so that races have every chance to show."""
    before_s = sys.getswitchinterval()
    sys.setswitchinterval(5e-6)
    yield
    sys.setswitchinterval(before_s)


@pytest.fixture(autouse=True)
def _finalisers_may_be_struck(monkeypatch: pytest.MonkeyPatch) -> None:
    """An interrupt that lands in a finaliser, which runs in the midst of whatever code, is swallowed by CPython and
    reported as unraisable; the ticker strikes again a second later. Here that happens now and then, and is no fault."""
    report = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        if not issubclass(unraisable.exc_type, Interrupt):
            report(unraisable)

    monkeypatch.setattr(sys, "unraisablehook", hook)


@pytest.fixture
def slot() -> Iterator[Slot]:
    """A slot whose thread is this one, as a worker thread has it."""
    slot = Slot(0)
    slot.thread_id = threading.get_ident()
    interruptible.slot = slot
    interruptible.shield = Shield
    yield slot
    del interruptible.slot
    del interruptible.shield


def run_of(slot: Slot, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Run:
    """A run in the slot, as an executor makes it."""
    run = Run(Message("default", "f", args, kwargs, {}), None, SimpleNamespace(run=function))
    run.slot = slot
    slot.run = run
    return run


def spin(count: int) -> None:
    """Runs for a little while, with a place for an interrupt in every round."""
    for _ in range(count):
        pass


class Striker:
    """A thread that strikes what it is shown, after a while of its own choosing. ``rounds`` follows the outcomes, so
    that about half of the functions are struck, however fast the machine is."""

    def __init__(self, slot: Slot, act: Callable[[Slot, Run], bool]) -> None:
        self.hits: set[int] = set()
        self._slot = slot
        self._act = act
        self._random = random.Random(1)
        self._shown: SimpleQueue[tuple[int, Run] | None] = SimpleQueue()
        self._mean_rounds = 1000.0
        self._thread = threading.Thread(target=self._main, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._shown.put(None)
        self._thread.join(30)

    def rounds(self) -> int:
        """How long the next function should run, in rounds of an empty loop."""
        return int(self._mean_rounds * 2 * self._random.random())

    def learn(self, *, struck: bool) -> None:
        """What has become of the last one."""
        self._mean_rounds = max(1.0, self._mean_rounds * (0.95 if struck else 1.05))

    def show(self, number: int) -> None:
        """Called by a function: from here on it may be struck."""
        self._shown.put((number, self._slot.run))

    def _main(self) -> None:
        while (shown := self._shown.get()) is not None:
            number, run = shown
            spin(self._random.randrange(100))
            if self._act(self._slot, run):
                self.hits.add(number)


def time_limit(slot: Slot, run: Run) -> bool:
    return strike(slot, run, TimeLimitExceeded)


@pytest.mark.parametrize("kwargs", [{}, {"unused": 1}], ids=["positional", "keywords"])
def test_a_success_is_never_lost(slot: Slot, kwargs: dict[str, int]) -> None:
    """Ten thousand races between the end of a function and an interrupt. Whenever the function came to its end the
    call answers its result, else the interrupt; and none ever strikes the code around the call."""
    finished: dict[int, bool] = {}

    def function(number: int, rounds: int, unused: int = 0) -> int:
        striker.show(number)
        for _ in range(rounds):
            pass
        finished[number] = True  # nothing can strike from here to the return: there is no call and no jump
        return number

    outcomes = {"struck": 0, "missed": 0, "spared": 0}
    with Striker(slot, time_limit) as striker:
        for number in range(RACES):
            run = run_of(slot, function, number, striker.rounds(), **kwargs)
            result, failure = call_actor(run)
            spin(20)  # where a late interrupt would land
            slot.run = None
            assert not slot.in_user
            if number in finished:
                assert (result, failure) == (number, None)
                outcomes["spared" if number in striker.hits else "missed"] += 1
            else:
                assert result is None
                assert type(failure) is TimeLimitExceeded
                outcomes["struck"] += 1
            striker.learn(struck=number not in finished)
    assert outcomes["struck"] > RACES // 100, outcomes
    assert outcomes["missed"] + outcomes["spared"] > RACES // 100, outcomes


def test_a_failure_is_never_replaced_by_none(slot: Slot) -> None:
    """The same where the function raises: the answer is its exception or the interrupt, and never a success."""

    class Mine(Exception):
        pass

    def function(number: int, rounds: int) -> None:
        striker.show(number)
        for _ in range(rounds):
            pass
        raise Mine

    kinds = set()
    with Striker(slot, time_limit) as striker:
        for number in range(RACES // 2):
            run = run_of(slot, function, number, striker.rounds())
            result, failure = call_actor(run)
            spin(20)
            slot.run = None
            assert result is None
            kinds.add(type(failure))
            striker.learn(struck=type(failure) is not Mine)
    assert kinds == {Mine, TimeLimitExceeded}


def test_giving_up_on_a_thread_never_costs_a_success(slot: Slot) -> None:
    """A thread is given up, or its function has returned: never both, and never in favour of the next message."""

    def function(number: int, rounds: int) -> None:
        striker.show(number)
        for _ in range(rounds):
            pass

    given_up = 0
    with Striker(slot, abandon) as striker:
        for number in range(RACES // 2):
            run = run_of(slot, function, number, striker.rounds())
            _, failure = call_actor(run)
            was_abandoned = slot.abandoned
            assert (failure is not None) == was_abandoned
            given_up += was_abandoned
            striker.learn(struck=was_abandoned)
            slot.run = None
            slot.abandoned = False
    assert 0 < given_up < RACES // 2


def test_the_next_message_is_not_struck(slot: Slot) -> None:
    """A look at the clock that was meant for one message does nothing to the one that has taken its place."""
    meant = run_of(slot, spin, 1)

    def function() -> list[bool]:
        return [strike(slot, meant, TimeLimitExceeded), strike(slot, meant, Shutdown), abandon(slot, meant)]

    assert call_actor(run_of(slot, function)) == ([False, False, False], None)
    assert not slot.abandoned


def test_an_interrupt_that_is_on_its_way_is_not_forgotten(slot: Slot) -> None:
    """A second one that comes too late does not make the thread forget to recall the first."""
    run = run_of(slot, spin, 1)
    slot.armed = True  # as after a first one that was sent
    assert not strike(slot, run, Shutdown)
    assert slot.armed


# --- library code that actors call


def test_a_shield_lets_nothing_through(slot: Slot) -> None:
    """What strikes while an actor is inside of library code strikes at its end: the code itself is always finished,
    and the actor is always struck, soon."""
    begun = ended = 0

    def library() -> None:
        nonlocal begun, ended
        with Shield():
            begun += 1
            spin(30)
            ended += 1

    def function(number: int) -> None:
        striker.show(number)
        while True:
            library()

    with Striker(slot, insist) as striker:
        for number in range(RACES // 5):
            run = run_of(slot, function, number)
            _, failure = call_actor(run)
            slot.run = None
            assert type(failure) is TimeLimitExceeded
            assert begun == ended
            assert not slot.shielded


def insist(slot: Slot, run: Run) -> bool:
    """Strikes anew, as the ticker does, until the run is over."""
    while slot.run is run:
        strike(slot, run, TimeLimitExceeded)
        PAUSE.wait(0.0005)  # without it the thread that is struck would hardly get to run on a busy machine
    return True


def test_a_shield_passes_on_what_struck_meanwhile(slot: Slot) -> None:
    """A shutdown is said once, so that what is said while an actor sends must be kept for it; and only for it."""
    order: list[str] = []

    def function() -> None:
        slot.notify_shutdown = True
        with Shield():
            with Shield():
                assert strike(slot, run, Shutdown)
            order.append("inside")
        order.append("never")

    run = run_of(slot, function)
    _, failure = call_actor(run)
    assert type(failure) is Shutdown
    assert order == ["inside"]
    assert not slot.notify_shutdown

    def leave_it() -> str:
        slot.owed = (run, Shutdown)  # the other run's: it ended just before
        with Shield():
            return "fine"

    assert call_actor(run_of(slot, leave_it)) == ("fine", None)


@pytest.mark.parametrize("engine", ENGINES)
def test_sending_survives_interrupts(slot: Slot, engine: str, tmp_path: Path) -> None:
    """Interrupts in the middle of sends leave no lock taken and no half of a message: what was said to be sent is
    there, at most the last one of each actor besides, and sending goes on to work."""
    broker = make_broker(engine, tmp_path)
    collect, _ = collector(broker)
    returned = 0

    def function(number: int) -> None:
        nonlocal returned
        striker.show(number)
        while True:
            collect.send(1)
            returned += 1

    rounds = RACES // 50
    with Striker(slot, insist) as striker:
        for number in range(rounds):
            run = run_of(slot, function, number)
            _, failure = call_actor(run)
            slot.run = None
            assert type(failure) is TimeLimitExceeded
    collect.send(1)
    assert returned + 1 <= broker.counts().ready <= returned + 1 + rounds
    broker.close()


@pytest.mark.parametrize("engine", ENGINES)
def test_a_worker_under_fire(engine: str, tmp_path: Path) -> None:
    """A real worker with limits of a millisecond: every message succeeds or fails by its time limit, what came to its
    end is never run again, and the threads are the same as before."""
    broker = make_broker(engine, tmp_path, [TimeLimit(interval=1), NoteOutcomes(outcomes := {})])
    finished: set[int] = set()
    collect, notes = collector(broker)

    @actor(broker=broker, time_limit=1)
    def work(number: int, rounds: int) -> None:
        if not number % 10:
            collect.send(number)
        for _ in range(rounds):
            pass
        finished.add(number)  # it may be struck after this line, for there is a call in it

    chosen = random.Random(5)
    total = RACES // 10
    work.send_many([(number, chosen.randrange(40_000)) for number in range(total)])
    with working(broker, 4) as worker:
        threads = list(worker.workers)
        wait_until(lambda: sum(outcomes.values()) >= total, "all have run", patience_s=60)
        assert worker.workers == threads
        assert all(thread.is_alive() for thread in threads)
        collect.send("after")
        wait_until(lambda: "after" in notes, "sending works")
        broker.wait_until_empty()
    assert set(outcomes) == {None, TimeLimitExceeded}
    assert sum(outcomes.values()) == total
    assert outcomes[None] <= len(finished)
    broker.close()


class NoteOutcomes(Middleware):
    """Counts how the messages of ``work`` have ended. One thread at a time, for the sum has to be right."""

    def __init__(self, outcomes: dict[type[BaseException] | None, int]) -> None:
        self._outcomes = outcomes
        self._lock = threading.Lock()

    def after_process_message(self, broker: Any, message: Any, *, result: Any = None, exception: Any = None) -> None:
        if message.actor_name == "work":
            kind = None if exception is None else type(exception)
            with self._lock:
                self._outcomes[kind] = self._outcomes.get(kind, 0) + 1
