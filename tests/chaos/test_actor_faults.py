"""What actors may do to a worker, on threads and on the loop, by the numbers of the fault catalogue. Each time the
message alone is at fault, and the worker goes on."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import math
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from greenroom import Actor, Message, actor
from greenroom.logging import LOG_FORMAT
from greenroom.middleware import Retries, TimeLimit
from greenroom.ports.admin import Counts, DeadLetter
from greenroom.ports.transport import Envelope
from greenroom.testing.clock import ManualClock
from tests.runtime.cli_kit import wait_until
from tests.runtime.worker_kit import ENGINES, EngineTestBroker, collector, make_broker, working

KINDS = ("threads", "loop")


@pytest.fixture(params=ENGINES)
def broker(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[EngineTestBroker]:
    broker = make_broker(request.param, tmp_path)
    yield broker
    broker.close()


def declare(broker: EngineTestBroker, kind: str, function: Callable[[], Any], **options: Any) -> Actor[..., Any]:
    """An actor that does what ``function`` does, on a thread or on the loop."""

    def work() -> Any:
        return function()

    async def awork() -> Any:
        await asyncio.sleep(0)
        return function()

    chosen: Callable[..., Any] = work if kind == "threads" else awork
    return actor(chosen, broker=broker, actor_name="work", min_backoff=0, max_backoff=0, **options)


def run_once(broker: EngineTestBroker, work: Actor[..., Any], kind: str) -> None:
    """Runs one message to its end, then shows that the same thread, or loop, still works."""
    if kind == "threads":
        after, notes = collector(broker, "after")
    else:
        notes = []

        @actor(broker=broker)
        async def after(value: Any) -> None:
            notes.append(value)

    work.send()
    with working(broker, 1, concurrency=1) as worker:
        broker.wait_until_empty()
        after.send("still here")
        broker.wait_until_empty()
        assert all(thread.is_alive() for thread in worker.workers)
    assert notes == ["still here"]


# --- F90, F93: what they raise


class NeedsArguments(Exception):
    def __init__(self, code: int, *, reason: str) -> None:
        super().__init__(f"{code}: {reason}")


class Unpicklable(Exception):
    def __init__(self) -> None:
        super().__init__("locked")
        self.lock = threading.Lock()

    def __reduce__(self) -> Any:
        raise TypeError("not to be pickled")


class Mute(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")

    __repr__ = __str__

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("no comparison")

    __hash__ = Exception.__hash__


class Hostile(Exception):
    def __str__(self) -> str:
        raise SystemExit("not even this")

    __repr__ = __str__


class NotAString(Exception):
    __str__ = lambda self: 7  # type: ignore[assignment,return-value]  # noqa: E731  # the point of the test


class Huge(Exception):
    def __str__(self) -> str:
        return "x" * 100_000_000


def cyclic() -> Exception:
    first, second = RuntimeError("first"), RuntimeError("second")
    first.__cause__, second.__cause__ = second, first
    return first


def too_deep() -> None:
    too_deep()


EXCEPTIONS: dict[str, Callable[[], BaseException]] = {
    "mandatory arguments": lambda: NeedsArguments(7, reason="because"),
    "not to be pickled": Unpicklable,
    "str and repr raise": Mute,
    "str ends the process": Hostile,
    "str is no string": NotAString,
    "100 MB": Huge,
    "group of 10 000": lambda: ExceptionGroup("many", [ValueError(n) for n in range(10_000)]),
    "cyclic cause": cyclic,
    "TimeoutError": TimeoutError,
    "asyncio.InvalidStateError": asyncio.InvalidStateError,
    "StopIteration": StopIteration,
    "StopAsyncIteration": StopAsyncIteration,
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", EXCEPTIONS)
def test_f90_any_exception_is_retried_and_kept(
    broker: EngineTestBroker, kind: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F90: whatever an exception is like, its message is retried and dead-lettered as any other, with a text that is
    bounded."""
    if name == "100 MB":  # pytest would write it into its three logs: that takes longer than all else
        monkeypatch.setattr(logging.getLogger("greenroom"), "propagate", False)
        monkeypatch.setattr(logging.getLogger("greenroom"), "handlers", [logging.NullHandler()])
    runs = []

    def fail() -> None:
        runs.append(1)
        error = EXCEPTIONS[name]()
        raise error

    run_once(broker, declare(broker, kind, fail, max_retries=1), kind)
    assert len(runs) == 2
    check_letter(broker)


def check_letter(broker: EngineTestBroker) -> DeadLetter:
    """The one dead letter, with a text that can be kept."""
    (letter,) = broker.dead()
    assert len(letter.error.type) <= 255
    assert len(letter.error.message.encode()) + len(letter.error.traceback.encode()) <= 65_536
    json.dumps([letter.error.type, letter.error.message, letter.error.traceback])
    return letter


@pytest.mark.parametrize("kind", KINDS)
def test_f90_recursion(broker: EngineTestBroker, kind: str) -> None:
    """F90: an actor that runs out of stack has failed, and its thread has its stack back."""
    run_once(broker, declare(broker, kind, too_deep, max_retries=0), kind)
    assert check_letter(broker).error.type == "RecursionError"


@pytest.mark.parametrize("kind", KINDS)
def test_f91_a_long_run_is_not_taken_away(tmp_path: Path, kind: str) -> None:
    """A message that runs for an hour, while another worker looks for dead owners all the time, is started once."""
    clock = ManualClock()
    broker = make_broker("sqlite", tmp_path, clock=clock)
    started, go_on = [], threading.Event()

    async def along() -> None:
        started.append(1)
        await asyncio.to_thread(go_on.wait, 30)

    def long() -> None:
        started.append(1)
        go_on.wait(30)

    actor(long if kind == "threads" else along, broker=broker, actor_name="long", time_limit=None).send()
    after, notes = collector(broker, "after")
    with working(broker), working(broker):
        wait_until(lambda: started, "it runs")
        for minute in range(60):
            clock.advance_ms(60_000)
            after.send(minute)
            wait_until(lambda minute=minute: len(notes) == minute + 1, "the other worker has made a trip")
        assert broker.counts().claimed >= 1
        go_on.set()
        broker.wait_until_empty()
    assert started == [1]
    broker.close()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, GeneratorExit, asyncio.CancelledError, BaseException])
def test_f93_what_is_no_exception(broker: EngineTestBroker, kind: str, error: type[BaseException]) -> None:
    """F93: what is meant to end a program, a generator or a task fails the message, and ends nothing."""

    def fail() -> None:
        raise error("no")

    run_once(broker, declare(broker, kind, fail, max_retries=0), kind)
    assert check_letter(broker).error.type == error.__name__


# --- F94, F97: what they do not do


@pytest.mark.parametrize("engine", ENGINES)
def test_f94_an_endless_loop_ends_by_its_time_limit(engine: str, tmp_path: Path) -> None:
    """F94: a loop that swallows every exception is struck all the same."""
    clock = ManualClock()
    broker = make_broker(engine, tmp_path, [TimeLimit(interval=2), Retries(max_retries=0)], clock=clock)
    rounds = []

    def endless() -> None:
        while True:
            try:
                rounds.append(1)
                raise RuntimeError("each time")
            except Exception:  # noqa: BLE001  # the point of the test
                del rounds[:-1]
                continue

    work = declare(broker, "threads", endless, time_limit=1000)
    collect, notes = collector(broker)
    work.send()
    with working(broker, 1):
        wait_until(lambda: rounds, "it runs")
        clock.advance_ms(1000)
        broker.wait_until_empty()
        collect.send(1)
        broker.wait_until_empty()
    assert notes == [1]
    assert check_letter(broker).error.type == "TimeLimitExceeded"
    broker.close()


@pytest.mark.parametrize("kind", KINDS)
def test_f97_a_blocked_worker_keeps_its_messages(tmp_path: Path, kind: str) -> None:
    """F97: while an actor blocks its thread, or the loop, no other worker takes its message."""
    ours, theirs = make_broker("sqlite", tmp_path), make_broker("sqlite", tmp_path)
    entered, go_on = threading.Event(), threading.Event()
    taken: list[int] = []

    def block() -> None:
        entered.set()
        go_on.wait(30)

    work = declare(ours, kind, block)
    declare(theirs, kind, lambda: taken.append(1))
    probe, notes = collector(theirs, "probe", queue_name="probe")
    work.send()
    with working(ours, 1):
        assert entered.wait(30)
        with working(theirs, 1):
            for number in range(3):
                probe.send(number)
                theirs.wait_until_empty("probe")
            assert notes == [0, 1, 2]
            assert ours.counts() == Counts(claimed=1)
            go_on.set()
            ours.wait_until_empty()
    assert taken == []
    ours.close()
    theirs.close()


# --- F104: what they return


async def coroutine() -> int:
    return 1


class Unspeakable:
    def __repr__(self) -> str:
        raise RuntimeError("no words")

    __str__ = __repr__


RESULTS: dict[str, Callable[[], Any]] = {
    "object": object,
    "NaN": lambda: math.nan,
    "generator": lambda: (n for n in ()),
    "coroutine function": lambda: coroutine,
    "itself": lambda: (x := [], x.append(x))[0],
    "large": lambda: bytes(50_000_000),
    "unspeakable": Unspeakable,
    "exception": lambda: RuntimeError("returned, not raised"),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", RESULTS)
def test_f104_any_result_is_a_success(broker: EngineTestBroker, kind: str, name: str) -> None:
    """F104: with nobody to keep results, whatever an actor returns is dropped, and its message is done."""
    run_once(broker, declare(broker, kind, RESULTS[name]), kind)
    assert broker.counts() == Counts()


# --- F106: what gets into the log


EVIL = "x\r\n[2030-01-01] [CRITICAL] forged\x1b[31m\x85\u2028"


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    """What the command line would write."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logging.Formatter(LOG_FORMAT))
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    yield stream
    root.removeHandler(handler)
    root.setLevel(level)


@pytest.mark.parametrize("kind", KINDS)
def test_f106_a_message_cannot_forge_lines(broker: EngineTestBroker, kind: str, log: io.StringIO) -> None:
    """F106: names, ids and arguments out of a message are escaped before they are logged, and cut short."""

    @actor(broker=broker, max_retries=0, throws=ValueError)
    def sync(*args: Any, **kwargs: Any) -> None:
        raise ValueError(EVIL)

    @actor(broker=broker, max_retries=0, throws=ValueError)
    async def coroutine(*args: Any, **kwargs: Any) -> None:
        raise ValueError(EVIL)

    name = "sync" if kind == "threads" else "coroutine"
    evil: list[Message[Any]] = [
        Message("default", name, (EVIL,), {EVIL: 1}, {}, EVIL),
        Message("default", name, ("x" * 1_000_000,), {}, {}),
        Message("default", EVIL, (), {}, {}, EVIL),
        Message("default", name, (), {}, {"priority": EVIL}, EVIL),
        Message("default", name, (), {}, {"max_retries": 1, "min_backoff": 0, "max_backoff": 0}, EVIL),
    ]
    broker.unknown_actor_ttl_ms = 0
    broker.transport.push(
        [Envelope("default", f"{n}", m.encode(), 0, None) for n, m in enumerate(evil)]
        + [Envelope("default", "9", EVIL.encode(), 0, None)]
    )
    with working(broker, 1):
        broker.wait_until_empty()
    assert len(broker.dead()) >= 4
    lines = log.getvalue().split("\n")
    assert all(line.startswith("[") and "PID" in line for line in lines if line), lines
    assert max(map(len, lines)) < 10_000
    for character in "\r\x1b\x85\u2028":
        assert character not in log.getvalue(), repr(character)
