"""ManualClock.tick: goes from due time to due time and waits for the workers at each."""

from __future__ import annotations

import asyncio
import threading
import time
from datetime import timedelta

import pytest

import greenroom
from greenroom import Worker
from greenroom.brokers.stub import StubBroker
from greenroom.errors import QueueJoinTimeout
from greenroom.middleware import TimeLimitExceeded
from greenroom.testing import ManualClock
from greenroom.testing.clock import START_MS

DEADLINE_S = 10.0
DAY_MS = 86_400_000


async def nothing() -> None: ...


def test_all_twenty_retries_take_no_time(steered: StubBroker, clock: ManualClock) -> None:
    """A month and a half of retries, the whole life of a failing message, runs in less than a second."""
    attempts: list[int] = []

    @greenroom.actor
    def fail() -> None:
        attempts.append(clock.now_ms())
        raise ValueError("boom")

    started_s = time.process_time()  # others may have the machine meanwhile
    fail.send()
    assert clock.tick("45 days") == 21
    assert time.process_time() - started_s < 1.0
    assert attempts[0] == START_MS
    assert attempts == sorted(set(attempts))
    assert 15_000 <= attempts[1] - attempts[0] <= 30_000
    assert 27 * DAY_MS < attempts[-1] - attempts[0] < 43 * DAY_MS
    assert clock.now_ms() == START_MS + 45 * DAY_MS
    with pytest.raises(ValueError, match="boom"):
        steered.join("default")


def test_the_same_retries_in_every_run() -> None:
    """The jitter is seeded: two brokers plan the same due times."""
    runs = []
    for _ in range(2):
        clock = ManualClock()
        broker = StubBroker(clock=clock)
        due: list[int] = []

        @greenroom.actor(broker=broker, max_retries=3)
        def fail(due: list[int] = due, clock: ManualClock = clock) -> None:
            due.append(clock.now_ms())
            raise ValueError

        worker = Worker(broker, worker_timeout=100, worker_threads=1)
        worker.start()
        fail.send()
        clock.tick("1h")
        worker.stop()
        runs.append(due)
    assert runs[0] == runs[1]
    assert len(runs[0]) == 4


@pytest.mark.usefixtures("steered")
def test_each_message_runs_at_its_time(clock: ManualClock) -> None:
    """Each delayed message sees the clock at its own due time, and what is due later stays."""
    seen: list[tuple[str, int]] = []

    @greenroom.actor
    def note(name: str) -> None:
        seen.append((name, clock.now_ms() - START_MS))

    note.send_with_options(args=("hour",), delay=3_600_000)
    note.send_with_options(args=("second",), delay=timedelta(seconds=1))
    note.send_with_options(args=("day",), delay=DAY_MS)
    note.send("now")
    assert clock.tick("90m") == 3
    assert seen == [("now", 0), ("second", 1_000), ("hour", 3_600_000)]
    assert clock.tick(timedelta(days=1)) == 1
    assert seen[-1] == ("day", DAY_MS)
    assert clock.tick(0) == 0


@pytest.mark.usefixtures("steered")
def test_what_is_sent_on_the_way_is_taken_along(clock: ManualClock) -> None:
    """An actor that sends itself again and again ticks like a clock."""
    beats: list[int] = []

    @greenroom.actor
    def beat() -> None:
        beats.append(clock.now_ms() - START_MS)
        beat.send_with_options(delay=60_000)

    beat.send()
    assert clock.tick("5 min") == 6
    assert beats == [0, 60_000, 120_000, 180_000, 240_000, 300_000]


@pytest.mark.usefixtures("steered")
def test_an_actor_that_sleeps_moves_the_clock(clock: ManualClock) -> None:
    """``clock.sleep`` in an actor takes no time; the clock never goes back afterwards."""

    @greenroom.actor
    def nap() -> None:
        clock.sleep(120.0)

    nap.send()
    assert clock.tick("1s") == 1
    assert clock.now_ms() == START_MS + 120_000


@pytest.mark.usefixtures("steered")
def test_an_actor_that_blocks_is_named(clock: ManualClock) -> None:
    """An actor that waits in real time cannot be hurried: tick raises when its patience is over, and names it."""
    go_on = threading.Event()

    @greenroom.actor
    def block(x: int) -> None:
        assert go_on.wait(DEADLINE_S)

    block.send(1)
    with pytest.raises(QueueJoinTimeout, match=r"After 50 ms of real time this still runs: block\(1\)"):
        clock.tick("1h", patience_s=0.05)
    go_on.set()
    assert clock.tick("1h") == 1


def test_nothing_runs_without_a_worker(clock: ManualClock) -> None:
    """Where nobody works, time passes and nothing happens."""
    broker = StubBroker(clock=clock)

    @greenroom.actor(broker=broker)
    def put() -> None: ...

    put.send_with_options(delay=1_000)
    put.send_with_options(delay=2_000)
    assert clock.tick("1 week") == 0
    assert broker.queues["default.DQ"].qsize() == 2
    assert clock.tick("1 week") == 0


def test_two_brokers_on_one_clock(clock: ManualClock) -> None:
    """A clock takes along all brokers that were made with it, in the order of their due times."""
    seen: list[str] = []
    workers = []
    actors = []
    for name in ("a", "b"):
        broker = StubBroker(clock=clock)

        @greenroom.actor(broker=broker)
        def note(name: str = name) -> None:
            seen.append(name)

        worker = Worker(broker, worker_timeout=100, worker_threads=1)
        worker.start()
        workers.append(worker)
        actors.append(note)
    actors[0].send_with_options(delay=2_000)
    actors[1].send_with_options(delay=1_000)
    actors[0].send_with_options(delay=500)
    assert clock.tick("3s") == 3
    assert seen == ["a", "b", "a"]
    for worker in workers:
        worker.stop()


@pytest.mark.usefixtures("steered")
def test_age_is_measured_on_the_same_clock(clock: ManualClock, steered: StubBroker) -> None:
    """A message that was delayed beyond its ``max_age`` is not run."""
    ran = []

    @greenroom.actor(max_age=1_000)
    def put() -> None:
        ran.append(1)

    put.send_with_options(delay=2_000)
    clock.tick("2s")
    assert ran == []
    assert len(steered.dead_letters) == 1


@pytest.mark.parametrize("kind", ["thread", "loop"])
def test_time_limits_are_on_the_same_clock(clock: ManualClock, steered: StubBroker, kind: str) -> None:
    """An actor that runs is over its time limit as soon as the clock says so, whatever real time it took."""
    started = threading.Event()

    @greenroom.actor(max_retries=0, time_limit=600_000)
    def spin() -> None:
        started.set()
        while True:
            started.wait(0.01)

    @greenroom.actor(max_retries=0, time_limit=600_000)
    async def wait() -> None:
        started.set()
        await asyncio.Event().wait()

    (spin if kind == "thread" else wait).send()
    assert started.wait(DEADLINE_S)
    clock.advance_ms(600_000)
    with pytest.raises(TimeLimitExceeded):
        steered.join("default", timeout=DEADLINE_S * 1_000)


@pytest.mark.usefixtures("steered")
def test_async_actors_travel_too(clock: ManualClock) -> None:
    """Retries of coroutines are run at their due times, on the loop."""
    attempts: list[int] = []

    @greenroom.actor
    async def fail() -> None:
        await asyncio.create_task(nothing())  # it really waits
        attempts.append(clock.now_ms())
        raise ValueError("boom")

    fail.send()
    assert clock.tick("45 days") == 21
    assert len(set(attempts)) == 21


def test_a_clock_does_not_go_back(clock: ManualClock) -> None:
    """Negative durations are refused, as text that is no duration is."""
    with pytest.raises(ValueError, match="negative"):
        clock.tick(-1)
    with pytest.raises(ValueError, match="go back"):
        clock.advance_ms(-1)
    with pytest.raises(ValueError, match="not a duration"):
        clock.tick("tomorrow")
    assert clock.monotonic() == 0.0
