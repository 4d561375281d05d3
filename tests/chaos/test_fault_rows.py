"""Rows of the table of faults that have no better place: twins, unknown actors, crashes of all kinds, delays."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from greenroom import Message
from greenroom.brokers.engine import EngineBroker
from greenroom.core.unknown_actor import FIRST_WAIT_MS
from greenroom.ports.admin import Counts
from greenroom.ports.transport import CRASH
from greenroom.testing.clock import ManualClock
from tests.chaos.history import Event, read_events
from tests.chaos.kit import build, forget, is_empty, judge, kill, send, victim
from tests.runtime.cli_kit import Program, wait_until
from tests.runtime.engine_kit import ENGINES, owners_of, url_of
from tests.runtime.worker_kit import ALL_ENGINES, collector, make_broker_of, working

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")

ACTORS = """
import asyncio, ctypes, signal, sys, time

broker.declare_queue("two")

def started(name):
    with open(HERE / f"starts-{name}", "a") as file:
        file.write(f"{os.getpid()} {time.monotonic()}\\n")

def overflow_the_stack():  # of C: Python counts its own calls
    ctypes.CDLL(None).regcomp(ctypes.create_string_buffer(1024), b"(" * 1_000_000, 1)

ENDS = {
    "exit0": lambda: os._exit(0),
    "exit1": lambda: os._exit(1),
    "segfault": lambda: ctypes.string_at(0),
    "abort": os.abort,
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "overflow": overflow_the_stack,
}

@greenroom.actor(max_retries=0)
def crash_once(name, how):
    started(name)
    if not (HERE / f"mark-{name}").exists():
        mark(name)
        ENDS[how]()
    mark(f"{name}-done")

@greenroom.actor(max_retries=0)
async def crash_once_on_loop(name, how):
    crash_once.fn(name, how)

@greenroom.actor(max_retries=0)
def hold(name):
    started(name)
    wait_for(f"{name}-go")
    mark(f"{name}-done")

@greenroom.actor(max_retries=0)
def pill(beside):
    started("pill")
    while len(list(HERE.glob("starts-innocent*"))) < beside:
        threading.Event().wait(0.005)
    mark("crashing")
    ctypes.string_at(0)

@greenroom.actor(max_retries=0)
def innocent(number):
    started(f"innocent{number}")
    wait_for("crashed")
    mark(f"innocent{number}-done")
"""


@pytest.fixture(params=ENGINES)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where the messages of a test are."""
    return url_of(request.param, tmp_path, request)


@pytest.fixture
def program(tmp_path: Path, url: str) -> Program:
    return Program(tmp_path, url).write(ACTORS)


def starts(program: Program, name: str) -> list[tuple[int, float]]:
    """In which processes, as they call themselves, and when an actor was started under this name."""
    file = program.folder / f"starts-{name}"
    lines = file.read_text().splitlines() if file.exists() else []
    return [(int(pid), float(at_s)) for pid, at_s in map(str.split, lines)]


# --- F14: twins

UNSHARE = ("unshare", "-p", "-f", "--mount-proc")


def test_f14_workers_that_cannot_be_told_apart(program: Program) -> None:
    """F14: two workers with the same host name and the same process ids, as in cloned containers. Neither takes what
    the other one runs, and when one is killed the other takes over what it had, and only that."""
    try:
        subprocess.run([*UNSHARE, "true"], check=True, capture_output=True, timeout=10)
    except (OSError, subprocess.CalledProcessError) as e:
        pytest.skip(f"needs the right to make a namespace for processes: {e}")
    words = ("worker", "app", "-p", "1")
    with ExitStack() as stack:
        first = stack.enter_context(
            program.start(*words, "-Q", "default", prefix=UNSHARE, log="first.txt")
        ).wait_until_ready()
        program.send("hold", "a")
        wait_until(lambda: starts(program, "a"), "the first one runs a message")
        second = stack.enter_context(program.start(*words, prefix=UNSHARE, log="second.txt")).wait_until_ready()
        program.send("hold", "b", queue="two")
        wait_until(lambda: starts(program, "b"), "the second one runs a message")
        assert starts(program, "a")[0][0] == starts(program, "b")[0][0], "they are no twins"
        with program.broker() as broker:
            names = [name for name, _pid in owners_of(broker)]
        assert len(names) == 2
        assert len(set(names)) == 1
        (init,) = first.children()
        os.kill(init, signal.SIGKILL)
        killed_s = time.monotonic()
        wait_until(lambda: sorted(program.crashes()) == [0, 1], "its twin has charged what it ran with a crash")
        recovered_s = time.monotonic() - killed_s
        print(f"recovered in {recovered_s:.2f} s")
        assert recovered_s < 5  # a look a second, and 0.3 s for a parent to say what it knows
        program.let_go("b-go")
        program.wait_for_mark("b-done")  # what has crashed a worker runs alone
        program.let_go("a-go")
        program.wait_for_mark("a-done")
        assert (len(starts(program, "a")), len(starts(program, "b"))) == (2, 1)
        (init,) = second.children()
        os.kill(init, signal.SIGTERM)
        assert second.wait() == 0, second.text


# --- F15: who cannot say that it lives

FAILS = """
from greenroom.board import Board
from greenroom.engines.redis.pulse import Pulse

def fail_until_mended(owner, name):
    method = getattr(owner, name)
    def fails(self, *args):
        if starts("a") and not (HERE / "mark-mended").exists():
            raise MemoryError("no room for a heartbeat")
        return method(self, *args)
    setattr(owner, name, fails)

def starts(name):
    return (HERE / f"starts-{name}").exists()

"""


@pytest.mark.parametrize(
    ("url", "method"),
    [("sqlite", "Board, 'beat'"), ("redis", "Board, 'beat'"), ("redis", "Pulse, '_extend'")],
    indirect=["url"],
)
def test_f15_a_heartbeat_that_dies(program: Program, url: str, method: str) -> None:
    """F15: what tells others that a process lives has failed for good. The process stops claiming, ends with 70 when
    the grace is over, and its successor runs what it ran."""
    program.write(ACTORS + FAILS + f"fail_until_mended({method})\n")
    program.send("hold", "a")
    with program.start("worker", "app", "-p", "1", "-t", "2", "--worker-shutdown-timeout", "500") as running:
        running.wait_for_text("The heartbeat has failed")
        failed_s = time.monotonic()
        program.let_go("mended")
        running.wait_for_text(r"The worker process 0 \(PID \d+\) ended with code 70")
        assert time.monotonic() - failed_s < 15 / 2  # half of a lease
        wait_until(lambda: len(starts(program, "a")) == 2, "it runs again")
        program.let_go("a-go")
        program.wait_for_mark("a-done")
        running.stop()
    assert len(starts(program, "a")) == 2


# --- F82: unknown actors


@pytest.mark.parametrize("engine", ALL_ENGINES)
def test_f82_unknown_actors_wait_for_one_who_knows_them(
    tmp_path: Path, request: pytest.FixtureRequest, engine: str
) -> None:
    """F82: messages whose actor nobody knows, in the middle of good ones: the good ones run at once; the others are put
    aside, are not tried again for 5 s, and run once a worker knows them."""
    clock = ManualClock()
    broker = make_broker_of(request, engine, tmp_path, clock=clock)
    broker.declare_queue("default")
    known, ran = collector(broker)
    for number in range(100):
        broker.enqueue(Message("default", "unknown", (number,), {}, {}))
        known.send(number)
    with working(broker, 4):
        wait_until(lambda: len(ran) == 100, "the good ones have run")
        wait_until(lambda: broker.counts() == Counts(delayed=100), "the others are put aside")
        later, ran_later = collector(broker, "unknown")
        clock.advance_ms(FIRST_WAIT_MS - 1)
        known.send(100)
        wait_until(lambda: len(ran) == 101, "the worker has looked again")
        assert ran_later == [], "it was tried too soon"
        clock.advance_ms(1)
        broker.wait_until_empty()
    assert sorted(ran_later) == list(range(100))
    assert later.actor_name == "unknown"
    assert broker.dead() == []
    broker.close()


@pytest.mark.parametrize("engine", ALL_ENGINES)
def test_f82_unknown_actors_die_in_the_end(tmp_path: Path, request: pytest.FixtureRequest, engine: str) -> None:
    """F82: those that stay unknown are dead letters after the time for that, 15 minutes unless it is set; they were
    looked at some twenty times in all, and never twice in 5 s."""
    clock = ManualClock()
    broker = make_broker_of(request, engine, tmp_path, clock=clock)
    broker.declare_queue("default")
    for number in range(50):
        broker.enqueue(Message("default", "unknown", (number,), {}, {}))
    with working(broker, 1):
        wait_until(lambda: broker.counts() == Counts(delayed=50), "they are put aside")
        while broker.counts() != Counts(dead=50):
            clock.advance_ms(60_000)
            wait_until(lambda: broker.counts() in (Counts(delayed=50), Counts(dead=50)), "all were looked at")
            assert clock.now_ms() < 10**15
    letters = broker.dead()
    assert {letter.error.type for letter in letters} == {"ActorNotFound"}
    assert max(letter.attempt for letter in letters) <= 25
    broker.close()


# --- F96: however a worker ends

ENDS = {
    "exit0": "ended with code 0",
    "exit1": "ended with code 1",
    "segfault": "was killed by SIGSEGV",
    "abort": "was killed by SIGABRT",
    "kill": "was killed by SIGKILL",
    "overflow": "was killed by SIGSEGV",
}


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
@pytest.mark.parametrize("actor", ["crash_once", "crash_once_on_loop"])
def test_f96_all_exits(program: Program, actor: str) -> None:
    """F96: an actor ends its process in every way there is. The log names it, the message runs again and is done.

    Six crashes in a row: where the sibling had crashed, too, the message waits for a successor, whose backoff has grown
    to 3.2 s by then.
    """
    slowest_s = 0.0
    with program.start("worker", "app", "-p", "2", "-t", "2") as running:
        running.wait_until_ready()
        for how, text in ENDS.items():
            program.send(actor, how, how)
            program.wait_for_mark(f"{how}-done")
            running.wait_for_text(rf"The worker process \d \(PID {starts(program, how)[0][0]}\) {text}")
            (_, first_s), (_, second_s) = starts(program, how)
            slowest_s = max(slowest_s, second_s - first_s)
        running.stop()
    print(f"recovered in {slowest_s:.2f} s")
    assert slowest_s < 10
    assert running.count("The next one starts") == len(ENDS)
    assert program.claims() == []


# --- F100: the poison pill


def test_f100_a_poison_pill(program: Program) -> None:
    """F100: a message that crashes its worker each time, among seven innocents. It is a dead letter after the third
    crash, with what was seen each time; the innocents are done, none of them started more than three times, and the
    crashes after the first one had no company."""
    program.send("pill", 3)
    for number in range(7):
        program.send("innocent", number)
    with program.start("worker", "app", "-p", "1", "-t", "4") as running:
        running.wait_for_text("SIGSEGV")
        program.let_go("crashed")
        for number in range(7):
            program.wait_for_mark(f"innocent{number}-done")
        with program.broker() as broker:
            wait_until(lambda: broker.get_queue_message_counts("default") == (0, 0, 1), "the pill is a dead letter")
            (letter,) = broker.transport.dead_letters([letter.id for letter in broker.get_dead_letters()])
        running.stop()
    pills = starts(program, "pill")
    print(f"recovered in {pills[-1][1] - pills[0][1]:.2f} s")
    assert Message.decode(letter.body).actor_name == "pill"
    assert (letter.crashes, letter.error.type) == (3, "TooManyCrashes")
    assert [incident.error.type for incident in letter.history] == [CRASH] * 3
    assert all("SIGSEGV" in incident.error.message for incident in letter.history)
    assert len(pills) == 3
    again = [len(starts(program, f"innocent{number}")) - 1 for number in range(7)]
    assert max(again) <= 2
    assert sum(again) <= 3, "more than what ran beside the first crash was started again"


SLOW_START = """
class Slow(greenroom.Middleware):
    def after_worker_boot(self, broker, worker):
        if not (HERE / "mark-crashing").exists():
            wait_for("never")

broker.add_middleware(Slow())
"""


def test_f100_a_pill_that_waits_at_the_door(program: Program) -> None:
    """F100: the pill waits when the program starts, and crashes the first child before that can say that it works. That
    is no failure to start: the pill becomes a dead letter, the message behind it is done, and the program lives."""
    program.write(ACTORS + SLOW_START)
    program.send("pill", 0)
    program.send("innocent", 0)
    program.let_go("crashed")
    with program.start("worker", "app", "-p", "1", "-t", "1") as running:
        program.wait_for_mark("innocent0-done")
        running.wait_until_ready()
        wait_until(lambda: program.crashes() == [], "the pill is a dead letter")
        running.stop()
    assert len(starts(program, "pill")) == 3


# --- F118: many delays

DELAYED, TOGETHER, BATCHES, KILLS = 10_000, 1_000, 18, 5


@pytest.fixture
def broker(tmp_path: Path, url: str) -> Iterator[EngineBroker]:
    broker = build(tmp_path, url)
    yield broker
    broker.close()
    forget(tmp_path)


def test_f118_ten_thousand_delays(tmp_path: Path, url: str, broker: EngineBroker) -> None:
    """F118: 10 000 delayed messages, 1 000 of them due in the same millisecond, and five kills while they come due.
    None is lost, none starts early, and in 99 of 100 cases it starts at most a second or so late."""
    random_ = random.Random(118)
    numbers = iter(range(DELAYED))
    sizes = [TOGETHER, *[(DELAYED - TOGETHER) // BATCHES] * BATCHES]
    faults = []
    with ExitStack() as stack:
        workers = [ready_victim(stack, tmp_path, url) for _ in range(2)]
        for batch, size in enumerate(sizes):
            delay_ms = 1500 if not batch else random_.randint(500, 3000)
            send(tmp_path, broker, "threads_plain", [f"m{next(numbers)}" for _ in range(size)], delay=delay_ms)
        for number in range(KILLS):
            settled = (number + 1) * DELAYED // (KILLS + 2)
            wait_until(lambda least=settled: left(broker) <= DELAYED - least, f"{settled} are settled", step_s=0.02)
            faults.append(kill(workers.pop(0)))
            workers.append(ready_victim(stack, tmp_path, url))
        wait_until(lambda: is_empty(broker), "all have come to an end")
    verdict = judge(tmp_path, broker, *faults)
    assert verdict.accepted == verdict.started == DELAYED
    late_s = lateness(read_events(tmp_path))
    print(f"recovered in {late_s[-1]:.2f} s")
    assert late_s[int(len(late_s) * 0.99)] < 5


def ready_victim(stack: ExitStack, folder: Path, url: str) -> subprocess.Popen[bytes]:
    """A worker that works."""
    process = stack.enter_context(victim(folder, url, 4, 0))
    wait_until((folder / f"ready-{process.pid}").exists, "the worker is ready")
    return process


def left(broker: EngineBroker) -> int:
    """How many messages are not settled."""
    counts = broker.transport.counts(["default"])["default"]
    return counts.ready + counts.delayed + counts.claimed


def lateness(events: list[Event]) -> list[float]:
    """By how many seconds each first start came after its time, in order."""
    due = {event.id: event.due_s for event in events if event.kind == "sent"}
    first = {event.id: event.at_s for event in sorted(events, key=lambda event: -event.at_s) if event.kind == "start"}
    return sorted(first[id] - due[id] for id in due)
