"""Messages that ran while a worker crashed: each runs alone, and after too many crashes none at all."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any

import msgspec
import pytest

from greenroom import Middleware, actor
from greenroom.core.suspects import ALONE_PATIENCE_S, FIRM_AFTER_S
from greenroom.core.verdict import Verdict
from greenroom.errors import BrokerBusy
from greenroom.middleware import Retries, TimeLimit
from greenroom.ports.admin import Counts
from greenroom.ports.transport import CRASH, Delivery, ErrorText, Exchange, Incident, Settlement
from greenroom.testing.clock import ManualClock
from tests.runtime.async_kit import AsyncGate
from tests.runtime.cli_kit import environment, wait_until
from tests.runtime.worker_kit import (
    ENGINES,
    EngineTestBroker,
    Gate,
    Troubled,
    TroubledConsumer,
    collector,
    make_broker,
    working,
)

MakeBroker = Callable[..., EngineTestBroker]
#: One message runs, and a suspect waits for its end.
BLOCKED = Counts(claimed=2)


class Crashed(Troubled):
    """A transport that says of some messages that they have crashed workers, and how. ``crashes`` is by storage id."""

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.crashes: dict[str, int] = {}
        self.evidence = ["killed by SIGSEGV"]
        self.history_fails = False

    def consumer(self, owner: str) -> _CrashedConsumer:
        return _CrashedConsumer(self, self.inner.consumer(owner))

    def released(self) -> list[Settlement]:
        """What was given back so far."""
        return [s for settle, _, _ in self.trips for s in settle if s.verdict is Verdict.RELEASE]


class _CrashedConsumer(TroubledConsumer):
    def __init__(self, transport: Crashed, inner: Any) -> None:
        super().__init__(transport, inner)
        self._crashed = transport

    def exchange(self, settle: Sequence[Settlement], limit: int, skip: AbstractSet[str] = frozenset()) -> Exchange:
        exchange = super().exchange(settle, limit, skip)
        deliveries = [
            msgspec.structs.replace(delivery, crashes=self._crashed.crashes.get(delivery.id, 0))
            for delivery in exchange.deliveries
        ]
        return msgspec.structs.replace(exchange, deliveries=deliveries)

    def history(self, delivery: Delivery) -> Sequence[Incident]:
        if self._crashed.history_fails:
            raise BrokerBusy("busy")
        return [Incident(n, n + 1, ErrorText(CRASH, text)) for n, text in enumerate(self._crashed.evidence)]


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture(params=ENGINES)
def make(request: pytest.FixtureRequest, tmp_path: Path, clock: ManualClock) -> Iterator[MakeBroker]:
    """Makes brokers on one engine whose clock stands still."""
    brokers = []

    def make(*middleware: Middleware, **options: Any) -> EngineTestBroker:
        inner = make_broker(request.param, tmp_path, clock=clock).transport
        policies = middleware or (Retries(max_retries=0),)
        brokers.append(EngineTestBroker(Crashed(inner), policies, clock=clock, **options))
        return brokers[-1]

    yield make
    for broker in brokers:
        broker.close()


def send(broker: EngineTestBroker, work: Any, *values: Any, crashes: int = 0, **options: Any) -> None:
    """Sends a message for each value, in one batch; each has crashed workers before."""
    envelopes = [broker.envelope(work.message_with_options(args=(value,), **options)) for value in values]
    broker.transport.crashes.update({envelope.id: crashes for envelope in envelopes})
    broker.transport.push(envelopes)


class Company:
    """An actor's code that notes how many ran beside it at any time."""

    def __init__(self) -> None:
        self.ran: list[Any] = []
        self.beside: dict[Any, int] = {}
        self._running: set[Any] = set()
        self._lock = threading.Lock()  # guards: all that run at a time see each other

    def __call__(self, value: Any) -> None:
        with self._lock:
            self._running.add(value)
            for one in self._running:
                self.beside[one] = max(self.beside.get(one, 0), len(self._running) - 1)
        threading.Event().wait(0.001)
        with self._lock:
            self._running.remove(value)
            self.ran.append(value)


def steps_of(worker: Any, count: int = 2) -> None:
    """Until the pump has made some more steps."""
    for _ in range(count):
        done = threading.Event()
        worker._pump.order(done.set)
        assert done.wait(30)


def wait_until_put_aside(broker: EngineTestBroker, worker: Any, counts: Counts = BLOCKED) -> None:
    """Until the pump has claimed a suspect, and has begun to wait for what else runs."""
    wait_until(lambda: broker.counts() == counts, "the suspect is claimed")
    steps_of(worker)


@pytest.mark.parametrize("threads", [1, 4])
def test_suspects_run_alone(make: MakeBroker, threads: int) -> None:
    """Among many messages those that ran while a worker crashed run with nothing beside them, and all run."""
    broker, company = make(), Company()
    work = actor(company, broker=broker, actor_name="work")
    for number in range(200):
        send(broker, work, number, crashes=int(number % 50 == 7))
    with working(broker, threads):
        broker.wait_until_empty()
    suspects = [number for number in range(200) if number % 50 == 7]
    assert [company.beside[number] for number in suspects] == [0, 0, 0, 0]
    assert sorted(company.ran) == list(range(200))
    assert threads == 1 or max(company.beside.values()) > 0


def test_suspects_of_both_kinds_run_alone(make: MakeBroker) -> None:
    """Threads and the loop are one process: a suspect of either kind has neither beside it."""
    broker, company = make(), Company()
    work = actor(company, broker=broker, actor_name="work")

    @actor(broker=broker)
    async def awork(number: int) -> None:
        company(number)

    for number in range(60):
        send(broker, work, number, crashes=int(number % 20 == 7))
        send(broker, awork, 1000 + number, crashes=int(number % 20 == 9))
    with working(broker, 3):
        broker.wait_until_empty()
    assert {company.beside[number] for number in (7, 27, 47, 1009, 1029, 1049)} == {0}
    assert len(company.ran) == 120


def test_a_program_of_coroutines_alone(make: MakeBroker) -> None:
    """Where all actors are async suspects run alone on the loop."""
    broker, gate = make(), AsyncGate()
    work = actor(gate.__call__, broker=broker, actor_name="work")
    send(broker, work, 0, 1, 2, crashes=1)
    with working(broker):
        wait_until(lambda: gate.entered == [0], "the first one runs")
        assert broker.counts().claimed == 3
        gate.open()
        broker.wait_until_empty()
    assert gate.left == [0, 1, 2]


def test_nothing_is_claimed_while_a_suspect_waits_or_runs(make: MakeBroker, clock: ManualClock) -> None:
    """What is held finishes; what comes meanwhile stays in the queue until the suspect is done."""
    broker, gate, alone = make(), Gate(), Gate()
    block = actor(gate, broker=broker, actor_name="block")
    suspect = actor(alone, broker=broker, actor_name="suspect")
    collect, notes = collector(broker)
    with working(broker, 3) as worker:
        block.send("held")
        gate.wait_for("held")
        send(broker, suspect, "s", crashes=1)
        wait_until_put_aside(broker, worker)
        collect.send(1)
        steps_of(worker)
        assert (alone.entered, notes, broker.counts()) == ([], [], Counts(ready=1, claimed=2))
        gate.open()
        alone.wait_for("s")
        steps_of(worker)
        assert (notes, broker.counts()) == ([], Counts(ready=1, claimed=1))
        alone.open()
        broker.wait_until_empty()
    assert notes == [1]


def test_after_five_seconds_it_is_given_back(make: MakeBroker, clock: ManualClock) -> None:
    """If what is held takes too long the suspect goes back, due in 5 to 10 s and with nothing counted, and the threads
    here go on."""
    broker, gate, alone = make(), Gate(), Gate()
    block = actor(gate, broker=broker, actor_name="block")
    suspect = actor(alone, broker=broker, actor_name="suspect")
    collect, notes = collector(broker)
    with working(broker, 3) as worker:
        block.send("held")
        gate.wait_for("held")
        send(broker, suspect, "s", crashes=1)
        wait_until_put_aside(broker, worker)
        collect.send(1)
        clock.advance_ms(int(ALONE_PATIENCE_S * 1000) - 1)
        steps_of(worker)
        assert broker.counts() == Counts(ready=1, claimed=2)
        clock.advance_ms(1)
        wait_until(lambda: notes == [1] and broker.counts() == Counts(delayed=1, claimed=1), "the others go on")
        (released,) = broker.transport.released()
        assert 5_000 <= released.due_ms - clock.now_ms() <= 10_000
        assert released.error is None
        clock.advance_ms(10_000)
        wait_until(lambda: broker.counts() == Counts(claimed=2), "it is tried again")
        gate.open()
        alone.wait_for("s")
        alone.open()
        broker.wait_until_empty()


def test_another_worker_that_is_idle_takes_it(make: MakeBroker, clock: ManualClock) -> None:
    """What one worker has given back, an idle one runs at once when it is due."""
    ours, gate, alone = make(), Gate(), Gate()
    block = actor(gate, broker=ours, actor_name="block")
    suspect = actor(alone, broker=ours, actor_name="suspect")
    block.send("held")
    with working(ours, 2) as busy:
        gate.wait_for("held")
        send(ours, suspect, "s", crashes=1)
        wait_until_put_aside(ours, busy)
        clock.advance_ms(int(ALONE_PATIENCE_S * 1000))
        wait_until(lambda: ours.counts() == Counts(delayed=1, claimed=1), "it is given back")
        busy.pause()
        steps_of(busy)
        with working(ours, 2):
            clock.advance_ms(10_000)
            alone.wait_for("s")
            alone.open()
            wait_until(lambda: ours.counts() == Counts(claimed=1), "the idle worker has run it")
        gate.open()


def test_one_that_comes_again_and_again_is_waited_for(
    make: MakeBroker, clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    """A suspect that was first seen here a minute ago is not given back any more: nobody is idle, so this worker stops
    claiming until it is alone, and says so."""
    broker, gate, alone = make(), Gate(), Gate()
    block = actor(gate, broker=broker, actor_name="block")
    suspect = actor(alone, broker=broker, actor_name="suspect")
    collect, notes = collector(broker)
    with working(broker, 2) as worker:
        block.send("held")
        gate.wait_for("held")
        send(broker, suspect, "s", crashes=1)
        since_ms = clock.now_ms()
        while clock.now_ms() - since_ms < FIRM_AFTER_S * 1000:
            wait_until_put_aside(broker, worker)
            clock.advance_ms(5_000)
            wait_until(lambda: broker.counts() == Counts(delayed=1, claimed=1), "it is given back")
            clock.advance_ms(10_000)
        wait_until_put_aside(broker, worker)
        given_back = len(broker.transport.released())
        collect.send(1)
        for _ in range(5):
            clock.advance_ms(10_000)
            steps_of(worker)
        assert (notes, broker.counts()) == ([], Counts(ready=1, claimed=2))
        assert len(broker.transport.released()) == given_back
        assert caplog.text.count("Nothing is claimed until message") == 1
        gate.open()
        alone.wait_for("s")
        alone.open()
        broker.wait_until_empty()
    assert notes == [1]


def test_those_behind_a_long_suspect_are_given_back(make: MakeBroker, clock: ManualClock) -> None:
    """Of several suspects one runs; if it runs for long the others go back, and still nothing is claimed beside it."""
    broker, alone = make(), Gate()
    suspect = actor(alone, broker=broker, actor_name="suspect")
    collect, notes = collector(broker)
    send(broker, suspect, 0, 1, 2, crashes=1)
    with working(broker, 3) as worker:
        alone.wait_for(0)
        collect.send(1)
        clock.advance_ms(5_000)
        wait_until(lambda: broker.counts() == Counts(ready=1, delayed=2, claimed=1), "the others are given back")
        steps_of(worker)
        assert (alone.entered, notes) == ([0], [])
        alone.open()
        wait_until(lambda: notes == [1], "the worker goes on")
        clock.advance_ms(10_000)
        broker.wait_until_empty()
    assert sorted(alone.left) == [0, 1, 2]


@pytest.mark.parametrize("when", ["waits", "runs"])
def test_stopping(make: MakeBroker, when: str) -> None:
    """A suspect that has not started is given back when the worker stops; one that runs is waited for."""
    broker, gate, alone = make(), Gate(), Gate()
    block = actor(gate, broker=broker, actor_name="block")
    suspect = actor(alone, broker=broker, actor_name="suspect")
    if when == "waits":
        block.send("held")
    with working(broker, 3) as worker:
        if when == "waits":
            gate.wait_for("held")
        send(broker, suspect, "a", "b", crashes=1)
        if when == "runs":
            alone.wait_for("a")
        wait_until(lambda: not broker.counts().ready, "the suspects are claimed")
        thread = threading.Thread(target=worker.stop, args=(20_000,))
        thread.start()
        wait_until(lambda: broker.counts().claimed == 1, "what has not started is given back")
        gate.open()
        alone.open()
        thread.join(20)
        assert not thread.is_alive()
    assert alone.left == (["a"] if when == "runs" else [])
    assert broker.counts() == Counts(ready=1 if when == "runs" else 2)


def test_a_paused_worker_runs_the_suspects_that_it_holds(make: MakeBroker) -> None:
    """A pause ends claiming; suspects that were claimed before it run."""
    broker, gate, alone = make(), Gate(), Gate()
    block = actor(gate, broker=broker, actor_name="block")
    suspect = actor(alone, broker=broker, actor_name="suspect")
    block.send("held")
    with working(broker, 2) as worker:
        gate.wait_for("held")
        send(broker, suspect, "s", crashes=1)
        wait_until_put_aside(broker, worker)
        worker.pause()
        gate.open()
        alone.wait_for("s")
        alone.open()
        broker.wait_until_empty()


def test_with_a_cap_on_the_queue(make: MakeBroker, clock: ManualClock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Suspects count as held while they are, and no longer: a worker that may hold two of a queue goes on after some
    were given back, were run, or were dead-lettered."""
    monkeypatch.setenv("greenroom_queue_prefetch", "2")
    broker, gate = make(), Gate()
    block = actor(gate, broker=broker, actor_name="block", queue_name="slow")
    collect, notes = collector(broker)
    block.send("held")
    with working(broker, 4) as worker:
        gate.wait_for("held")
        send(broker, collect, "guilty", "also guilty", crashes=3)
        send(broker, collect, 0, 1, crashes=1)
        wait_until_put_aside(broker, worker, Counts(ready=1, claimed=1, dead=2))
        clock.advance_ms(5_000)
        wait_until(lambda: broker.counts() == Counts(delayed=1, claimed=1, dead=2), "then the other one")
        gate.open()
        clock.advance_ms(10_000)
        broker.wait_until_empty()
        collect.send_many((n,) for n in range(10, 20))
        broker.wait_until_empty()
    assert sorted(notes) == [0, 1, *range(10, 20)]


def test_a_stuck_thread_is_not_waited_for_for_ever(make: MakeBroker, clock: ManualClock) -> None:
    """A thread that was given up may never end. A suspect that is waited for as long as it takes does not wait for that
    one."""
    broker = make(TimeLimit(interval=2), Retries(max_retries=0))
    begun, release, struck, alone = threading.Event(), threading.Event(), [], Gate()

    @actor(broker=broker, time_limit=1000)
    def stubborn() -> None:
        begun.set()
        while not release.is_set():
            try:
                release.wait(0.001)
            except BaseException as e:  # noqa: BLE001  # the point of the test
                struck.append(e)

    suspect = actor(alone, broker=broker, actor_name="suspect", time_limit=None)
    stubborn.send()
    with working(broker, 3) as worker:
        assert begun.wait(30)
        for second in range(1, 7):
            clock.advance_ms(1000)
            wait_until(lambda n=second: len(struck) >= min(n, 5), "it is struck")
        wait_until(lambda: worker._executor is not None and worker._executor.count_stuck() == 1, "a thread is stuck")
        send(broker, suspect, "s", crashes=1)
        wait_until_put_aside(broker, worker)
        while not alone.entered:
            clock.advance_ms(5_000)
            steps_of(worker)
        assert clock.monotonic() >= FIRM_AFTER_S
        alone.open()
        wait_until(lambda: broker.counts() == Counts(claimed=1), "the suspect has run")
        release.set()
        broker.wait_until_empty()


def test_a_retry_of_a_suspect(make: MakeBroker) -> None:
    """A suspect that fails is retried like any other message."""
    broker, runs = make(Retries(max_retries=1, min_backoff=0, max_backoff=0)), []

    @actor(broker=broker)
    def work(number: int) -> None:
        runs.append(number)
        raise RuntimeError("reason")

    send(broker, work, 1, crashes=2)
    with working(broker, 2):
        broker.wait_until_empty()
    assert (len(runs), [letter.error.type for letter in broker.dead()]) == (2, ["RuntimeError"])


# --- too many crashes


class Nacks(Middleware):
    """Notes what the hooks of dead letters are told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, bool, str]] = []

    def after_nack(self, broker: Any, message: Any) -> None:
        self.told.append((message.actor_name, message.failed, message.error.type))


def test_after_three_crashes_it_is_dead_lettered(make: MakeBroker, caplog: pytest.LogCaptureFixture) -> None:
    """A message that has crashed its worker three times is not run again: it is a dead letter with the evidence of the
    last crash, logged as an error and told to ``after_nack``; others go on."""
    broker = make(nacks := Nacks())
    collect, notes = collector(broker)
    broker.transport.evidence = ["killed by SIGKILL", "ended with code 3"]
    send(broker, collect, "guilty", crashes=3)
    send(broker, collect, "suspect", crashes=2)
    collect.send("innocent")
    with working(broker) as worker:
        wait_until(lambda: worker.finished == 3, "all three are counted")
    assert sorted(notes) == ["innocent", "suspect"]
    (letter,) = broker.dead()
    assert (letter.error.type, letter.error.message) == (
        "TooManyCrashes",
        "it crashed its worker 3 times; last: ended with code 3",
    )
    assert nacks.told == [("collect", True, "TooManyCrashes")]
    assert "is dead-lettered: TooManyCrashes: it crashed its worker 3 times" in caplog.text


@pytest.mark.parametrize(
    ("brokers", "actors", "messages", "crashes", "runs"),
    [
        (3, {}, {}, 2, True),
        (1, {}, {}, 1, False),
        (None, {}, {}, 1000, True),
        (1, {"max_crashes": 5}, {}, 4, True),
        (9, {"max_crashes": 5}, {}, 5, False),
        (1, {"max_crashes": None}, {}, 1000, True),
        (9, {"max_crashes": 9}, {"max_crashes": 2}, 2, False),
        (1, {"max_crashes": 1}, {"max_crashes": None}, 1000, True),
    ],
)
def test_whose_max_crashes_counts(
    make: MakeBroker, brokers: int | None, actors: dict[str, Any], messages: dict[str, Any], crashes: int, runs: bool
) -> None:
    """A message's own option is stronger than its actor's, that than the broker's; None means never."""
    broker = make(max_crashes=brokers)
    collect, notes = collector(broker, **actors)
    send(broker, collect, 1, crashes=crashes, **messages)
    with working(broker):
        broker.wait_until_empty()
    assert notes == ([1] if runs else [])
    assert [letter.error.type for letter in broker.dead()] == ([] if runs else ["TooManyCrashes"])


@pytest.mark.parametrize("nonsense", [0, -1, 2.5, "3", True, []])
def test_nonsense_in_a_message(make: MakeBroker, nonsense: Any) -> None:
    """An option that came in a message's JSON and is no number of crashes says nothing; the actor's counts."""
    broker = make()
    collect, notes = collector(broker)
    message = collect.message(1).copy(options={"max_crashes": nonsense})
    envelope = broker.envelope(message)
    broker.transport.crashes[envelope.id] = 2
    broker.transport.push([envelope])
    with working(broker):
        broker.wait_until_empty()
    assert notes == [1]


@pytest.mark.parametrize("nonsense", [0, -1, 2.5, "3", True])
def test_nonsense_is_refused_where_it_is_written(make: MakeBroker, nonsense: Any) -> None:
    """A broker, an actor and a send that say nonsense raise a ``ValueError`` that says what is wrong."""
    broker = make()
    collect, _ = collector(broker)
    expected = "max_crashes must be a whole number greater than 0"
    with pytest.raises(ValueError, match=expected):
        EngineTestBroker(broker.transport, max_crashes=nonsense)
    with pytest.raises(ValueError, match=expected):
        collector(broker, "other", max_crashes=nonsense)
    with pytest.raises(ValueError, match=expected):
        collect.send_with_options(args=(1,), max_crashes=nonsense)


def test_evidence_that_cannot_be_read(make: MakeBroker, caplog: pytest.LogCaptureFixture) -> None:
    """If the engine cannot tell the history the message is dead-lettered all the same, and the worker goes on."""
    broker = make()
    collect, notes = collector(broker)
    broker.transport.history_fails = True
    send(broker, collect, "guilty", crashes=3)
    collect.send("innocent")
    with working(broker):
        broker.wait_until_empty()
    assert notes == ["innocent"]
    (letter,) = broker.dead()
    assert letter.error.message == "it crashed its worker 3 times; last: nothing is known of it"
    assert "cannot be read: busy" in caplog.text


# --- processes that really die

WORKER = """
import os, pathlib, signal, sys, threading
from greenroom import Worker, actor
from greenroom.brokers.sqlite import SqliteBroker

here = pathlib.Path(sys.argv[1])
broker = SqliteBroker(here / "q.db")
together = threading.Barrier(4)
runs = os.open(here / "runs", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

def first_time():
    if (here / "died").exists():
        return False
    together.wait(20)
    return True

@actor(broker=broker)
def innocent(number):
    os.write(runs, b"innocent %d\\n" % number)
    if first_time():
        threading.Event().wait(20)  # until the process is killed

@actor(broker=broker)
def guilty():
    os.write(runs, b"guilty\\n")
    first_time()
    (here / "died").touch()
    os.kill(os.getpid(), signal.SIGKILL)

if sys.argv[2] == "send":
    innocent.send_many([(1,), (2,)])
    guilty.send()
    innocent.send(3)
else:
    worker = Worker(broker, worker_threads=4)
    worker.start()
    worker.join()
    worker.stop()
broker.close()
"""


def test_a_message_that_kills_its_worker(tmp_path: Path) -> None:
    """It takes three processes along. Those that ran beside it the first time are told apart: they run alone and are
    done. In the end it is dead, with what is known of the last crash."""
    (tmp_path / "program.py").write_text(WORKER)
    codes = []
    for role in ("send", "work", "work", "work", "work"):
        arguments = [sys.executable, str(tmp_path / "program.py"), str(tmp_path), role]
        codes.append(subprocess.run(arguments, env=environment({}), timeout=60, check=False).returncode)
    assert codes == [0, -9, -9, -9, 0]
    runs = Counter((tmp_path / "runs").read_text().splitlines())
    assert runs == {"guilty": 3, "innocent 1": 2, "innocent 2": 2, "innocent 3": 2}
    broker = make_broker("sqlite", tmp_path)
    (letter,) = broker.dead()
    assert letter.crashes == 3
    assert letter.error.type == "TooManyCrashes"
    assert re.match(r"it crashed its worker 3 times; last: .*PID \d+", letter.error.message)
    assert broker.counts() == Counts(dead=1)
    broker.close()
