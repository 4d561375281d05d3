"""Time limits of sync actors: who is struck, who is not, and what becomes of a thread that cannot be struck."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from greenroom import Middleware, actor
from greenroom.middleware import Retries, Shutdown, ShutdownNotifications, SkipMessage, TimeLimit, TimeLimitExceeded
from greenroom.ports.admin import Counts
from greenroom.testing.clock import ManualClock
from tests.runtime.cli_kit import Program, wait_until
from tests.runtime.worker_kit import ENGINES, EngineTestBroker, Gate, collector, make_broker, working

MakeBroker = Callable[..., EngineTestBroker]
HOUR_MS = 3_600_000


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture(params=ENGINES)
def make(request: pytest.FixtureRequest, tmp_path: Path, clock: ManualClock) -> Iterator[MakeBroker]:
    """Makes the test's broker; its ticker looks at the clock every few milliseconds."""
    brokers = []

    def make(*middleware: Middleware, **limits: Any) -> EngineTestBroker:
        policies = [TimeLimit(interval=2, **limits), ShutdownNotifications(), *middleware, Retries(max_retries=0)]
        brokers.append(make_broker(request.param, tmp_path, policies, clock=clock))
        return brokers[-1]

    yield make
    for broker in brokers:
        broker.close()


class Busy:
    """An actor's code that runs until it is released or struck. ``entered`` and ``struck`` hold what happened."""

    def __init__(self) -> None:
        self.entered: list[Any] = []
        self.struck: list[Any] = []
        self.release = threading.Event()

    def __call__(self, value: Any = None) -> None:
        self.entered.append(value)
        while not self.release.wait(0.001):
            pass


def errors(broker: EngineTestBroker) -> list[str]:
    return [letter.error.type for letter in broker.dead()]


def test_a_message_that_runs_too_long_fails(make: MakeBroker, clock: ManualClock) -> None:
    """At its time limit, and not before, ``TimeLimitExceeded`` is raised inside the actor and is how it failed. What
    catches ``Exception`` does not catch it."""
    broker, busy = make(), Busy()

    @actor(broker=broker, time_limit=1000)
    def work() -> None:
        try:
            busy()
        except Exception:  # noqa: BLE001  # the point of the test
            busy.struck.append("swallowed")
        except TimeLimitExceeded:
            busy.struck.append(clock.monotonic())
            raise

    work.send()
    with working(broker):
        wait_until(lambda: busy.entered, "it runs")
        clock.advance_ms(999)
        rounds_of_the_ticker(broker, clock)
        assert busy.struck == []
        clock.advance_ms(1)
        broker.wait_until_empty()
    assert busy.struck == [1.0]
    assert errors(broker) == ["TimeLimitExceeded"]


def rounds_of_the_ticker(broker: EngineTestBroker, clock: ManualClock, rounds: int = 3) -> None:
    """Waits until every clock was looked at that often, by watching the loop that is not there: a ticker's thread is
    the only one that reads the clock this often."""
    looks = []
    plain = clock.monotonic

    def counted() -> float:
        looks.append(1)
        return plain()

    clock.monotonic = counted  # type: ignore[method-assign]  # to count the looks
    try:
        wait_until(lambda: len(looks) > rounds, "the ticker has looked")
    finally:
        del clock.monotonic


def test_an_actor_may_catch_it_and_return(make: MakeBroker, clock: ManualClock) -> None:
    """An actor that catches the interrupt, by whatever means, and comes to its end has succeeded. It is struck again
    only a second later."""
    broker, busy = make(), Busy()

    @actor(broker=broker, time_limit=1000)
    def work() -> None:
        try:
            busy()
        except:  # noqa: E722  # the point of the test
            busy.struck.append(1)
        rounds_of_the_ticker(broker, clock)

    work.send()
    with working(broker):
        wait_until(lambda: busy.entered, "it runs")
        clock.advance_ms(1999)
        broker.wait_until_empty()
    assert busy.struck == [1]
    assert broker.counts() == Counts()


@pytest.mark.parametrize("limit", [None, float("inf")])
@pytest.mark.parametrize("where", ["actor", "middleware"])
def test_without_a_limit(make: MakeBroker, clock: ManualClock, limit: float | None, where: str) -> None:
    """``time_limit=None`` and ``inf``, of an actor or as the default, let an actor run for ever."""
    broker, busy = make(**({"time_limit": limit} if where == "middleware" else {})), Busy()
    work = actor(busy, broker=broker, actor_name="work", **({"time_limit": limit} if where == "actor" else {}))
    work.send()
    with working(broker):
        wait_until(lambda: busy.entered, "it runs")
        clock.advance_ms(10_000 * HOUR_MS)
        rounds_of_the_ticker(broker, clock)
        busy.release.set()
        broker.wait_until_empty()
    assert broker.counts() == Counts()


@pytest.mark.parametrize(("actors_ms", "messages_ms", "fails"), [(HOUR_MS, 1000, True), (1000, HOUR_MS, False)])
def test_a_messages_limit_is_stronger(
    make: MakeBroker, clock: ManualClock, actors_ms: int, messages_ms: int, fails: bool
) -> None:
    """A message's own time limit wins over the actor's, be it shorter or longer."""
    broker, busy = make(), Busy()
    work = actor(busy, broker=broker, actor_name="work", time_limit=actors_ms)
    work.send_with_options(time_limit=messages_ms)
    with working(broker):
        wait_until(lambda: busy.entered, "it runs")
        clock.advance_ms(5000)
        rounds_of_the_ticker(broker, clock)
        if not fails:
            busy.release.set()
        broker.wait_until_empty()
    assert errors(broker) == (["TimeLimitExceeded"] if fails else [])


class SkipAll(Middleware):
    """Skips every message, behind the time limit in the list."""

    def before_process_message(self, broker: Any, message: Any) -> None:
        raise SkipMessage("not today")


def test_a_skipped_message_leaves_no_deadline_behind(make: MakeBroker) -> None:
    """The limit of a message that was not run after all does not strike the next one on its thread."""
    broker = make(SkipAll())
    work = actor(Busy(), broker=broker, actor_name="work", time_limit=1000, notify_shutdown=True)
    work.send()
    with working(broker) as worker:
        broker.wait_until_empty()
        assert [(thread.slot.deadline, thread.slot.notify_shutdown) for thread in worker.workers] == [(0.0, False)]


# --- stuck threads


def stubborn(busy: Busy) -> Callable[[], str]:
    """A function that ignores every interrupt until it is released."""

    def ignores_everything() -> str:
        while not busy.release.is_set():
            try:
                busy()
            except BaseException as e:  # noqa: BLE001  # the point of the test
                busy.struck.append(type(e).__name__)
        return "done"

    return ignores_everything


def make_stuck(busy: Busy, clock: ManualClock, times: int = 1) -> None:
    """Moves the clock until the actor has been struck at its limit of a second, and counts as stuck."""
    clock.advance_ms(1000)
    for second in range(1, 6):
        wait_until(lambda n=second * times: len(busy.struck) >= n, f"it is struck {second} times")
        clock.advance_ms(1000)


def test_a_stuck_thread_is_replaced(make: MakeBroker, clock: ManualClock, caplog: pytest.LogCaptureFixture) -> None:
    """An actor that ignores its interrupts, which come each second, is stuck after five: its stack is reported and
    another thread takes the place. Its message stays claimed while it runs on, and has failed when it ends."""
    broker, busy = make(), Busy()
    work = actor(stubborn(busy), broker=broker, actor_name="work", time_limit=1000)
    collect, notes = collector(broker)
    work.send()
    with working(broker, 3) as worker:
        threads = list(worker.workers)
        wait_until(lambda: busy.entered, "it runs")
        make_stuck(busy, clock)
        wait_until(lambda: worker.workers != threads, "the thread is replaced")
        wait_until(lambda: "is stuck in message" in caplog.text, "it is reported")
        assert "in ignores_everything" in caplog.text
        assert set(busy.struck) == {"TimeLimitExceeded"}
        assert len(busy.struck) == 5
        assert len(set(worker.workers) & set(threads)) == 2
        (stuck,) = set(threads) - set(worker.workers)
        for value in range(20):
            collect.send(value)
        wait_until(lambda: len(notes) == 20, "other messages go on")
        wait_until(lambda: broker.counts() == Counts(claimed=1), "they are settled, and it is not")
        assert not worker.is_stuck
        busy.release.set()
        broker.wait_until_empty()
        wait_until(lambda: not stuck.is_alive(), "the thread that was given up has ended")
    assert errors(broker) == ["TimeLimitExceeded"]


def test_half_of_the_threads_are_stuck(make: MakeBroker, clock: ManualClock, caplog: pytest.LogCaptureFixture) -> None:
    """A worker half of whose threads are stuck claims nothing more and says so, once."""
    broker, busy, told = make(), Busy(), []
    work = actor(stubborn(busy), broker=broker, actor_name="work", time_limit=1000)
    collect, notes = collector(broker)
    work.send()
    with working(broker, 2) as worker:
        worker.on_stuck = lambda: told.append(worker.is_stuck)
        wait_until(lambda: busy.entered, "it runs")
        make_stuck(busy, clock)
        wait_until(lambda: told, "the worker is stuck")
        rounds_of_the_ticker(broker, clock)
        pump_has_followed_its_orders(worker)
        collect.send(1)
        pump_has_followed_its_orders(worker)
        assert broker.counts() == Counts(ready=1, claimed=1)
        busy.release.set()
        wait_until(lambda: broker.counts() == Counts(ready=1, dead=1), "what was stuck has failed")
    assert told == [True]
    assert notes == []
    assert "1 of 2 worker threads are stuck" in caplog.text
    assert errors(broker) == ["TimeLimitExceeded"]


def pump_has_followed_its_orders(worker: Any) -> None:
    """Until the pump has done what it was told, and made another step."""
    for _ in range(2):
        done = threading.Event()
        worker._pump.order(done.set)
        assert done.wait(30)


def test_a_stuck_process_ends_with_70(tmp_path: Path) -> None:
    """A process that is stuck ends after the grace, with exit code 70, and another takes its place."""
    program = Program(tmp_path).write(
        """
import greenroom.runtime.threads
greenroom.runtime.threads.STUCK_AFTER_S = 0.2
broker.middleware = [m for m in broker.middleware if type(m).__name__ != "TimeLimit"]
broker.add_middleware(greenroom.middleware.TimeLimit(interval=20))

@greenroom.actor(time_limit=50)
def work():
    while True:
        try:
            wait_for("nothing")
        except BaseException:
            pass
"""
    )
    program.send("work")
    with program.start("worker", "app", "-p", "1", "-t", "1", "--worker-shutdown-timeout", "300") as running:
        running.wait_for_text("of 1 worker threads are stuck")
        running.wait_for_text(r"The worker process 0 \(PID \d+\) ended with code 70\. The next one starts")
        assert "in wait_for" in running.text


# --- shutdown


class Hold(Middleware):
    """Keeps messages before their actor, on their thread, until they are released."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate

    def before_process_message(self, broker: Any, message: Any) -> None:
        self._gate(message.actor_name)


def stop_beside(worker: Any) -> threading.Thread:
    """Stops a worker by another thread, once that thread has told its actors."""
    thread = threading.Thread(target=worker.stop, args=(20_000,))
    thread.start()
    wait_until(lambda: worker._executor is None or worker._executor._stops, "the actors were told")
    return thread


@pytest.mark.parametrize("when", ["runs", "begins"])
def test_actors_are_told_of_a_shutdown(make: MakeBroker, when: str) -> None:
    """An actor that asked for it is interrupted when its worker stops, once; also if it was about to begin. One that
    did not ask runs to its end."""
    gate, busy, quiet = Gate(), Busy(), Busy()
    broker = make(Hold(gate))

    @actor(broker=broker, notify_shutdown=True)
    def asks() -> None:
        try:
            busy()
        except Shutdown:
            busy.struck.append(1)
            quiet.release.set()
            busy.release.wait(0.05)  # long enough to be struck a second time
            raise

    silent = actor(quiet, broker=broker, actor_name="silent")
    asks.send()
    silent.send()
    with working(broker, 2) as worker:
        gate.wait_for("asks", "silent")
        if when == "runs":
            gate.open()
            wait_until(lambda: busy.entered and quiet.entered, "both run")
        stopping = stop_beside(worker)
        gate.open()
        stopping.join(30)
        assert not stopping.is_alive()
    assert busy.struck == [1]
    assert errors(broker) == ["Shutdown"]
    assert broker.counts() == Counts(dead=1)
