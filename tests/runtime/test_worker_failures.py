"""What a worker makes of messages that fail, cannot be run, or are refused."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from greenroom import Message, Middleware, actor
from greenroom.errors import MiddlewareError, RateLimitExceeded, Retry
from greenroom.middleware import AgeLimit, Retries, SkipMessage
from greenroom.ports.admin import Counts
from greenroom.ports.transport import Envelope
from greenroom.testing.clock import ManualClock
from tests.runtime.cli_kit import wait_until
from tests.runtime.worker_kit import ENGINES, EngineTestBroker, collector, make_broker, working

MakeBroker = Callable[..., EngineTestBroker]


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture(params=ENGINES)
def make(request: pytest.FixtureRequest, tmp_path: Path, clock: ManualClock) -> Iterator[MakeBroker]:
    """Makes the test's broker, with a middleware and options of the test's own."""
    brokers = []

    def make(*middleware: Middleware, **options: Any) -> EngineTestBroker:
        brokers.append(make_broker(request.param, tmp_path, middleware or None, clock=clock, **options))
        return brokers[-1]

    yield make
    for broker in brokers:
        broker.close()


def peek(broker: EngineTestBroker) -> list[Message[Any]]:
    """What waits in the queue, delayed or not."""
    consumer = broker.transport.consumer("peek")
    consumer.subscribe(["default"])
    found = [Message.decode(delivery.body) for delivery in consumer.exchange((), 100).deliveries]
    consumer.close()
    return found


# --- retries


def test_a_retry_comes_at_its_time(make: MakeBroker, clock: ManualClock) -> None:
    """A message that fails runs again after ``min_backoff * 2**n`` times a jitter of one to two, until it succeeds."""
    broker, started_ms = make(), []

    @actor(broker=broker, min_backoff=1000)
    def fail_twice() -> None:
        started_ms.append(clock.now_ms())
        if len(started_ms) < 3:
            raise RuntimeError("not yet")

    fail_twice.send()
    with working(broker):
        for runs, at_least_ms, at_most_ms in ((1, 1000, 2000), (2, 2000, 4000)):
            wait_until(lambda n=runs: broker.counts() == Counts(delayed=1) and len(started_ms) == n, "a retry waits")
            clock.advance_ms(at_least_ms - 1)
            collect_nothing_for_a_while(broker, started_ms, runs)
            clock.advance_ms(at_most_ms - at_least_ms + 1)
        broker.wait_until_empty()
    assert len(started_ms) == 3
    assert broker.counts() == Counts()


def collect_nothing_for_a_while(broker: EngineTestBroker, started_ms: list[int], runs: int) -> None:
    """Lets the worker do something else, and checks that the retry was left alone meanwhile."""
    if "probe" not in broker.actors:
        actor(lambda: None, broker=broker, actor_name="probe")
    for _ in range(2):
        broker.actors["probe"].send()
        wait_until(lambda: not (broker.counts().ready or broker.counts().claimed), "the probe has run")
    assert len(started_ms) == runs


def test_what_a_retry_knows(make: MakeBroker, clock: ManualClock) -> None:
    """A retry is the same message: its id, its timestamp and its arguments, with the number of retries, the last
    traceback and the time of the failure in its options."""
    broker = make()

    @actor(broker=broker, min_backoff=1000, max_backoff=1000)
    def fail(*args: int, **kwargs: int) -> None:
        raise RuntimeError("the reason")

    sent = fail.send_with_options(args=(1,), kwargs={"x": 2}, note="kept")
    clock.advance_ms(5)
    failed_ms = clock.now_ms()
    with working(broker):
        wait_until(lambda: broker.counts() == Counts(delayed=1), "the retry waits")
    clock.advance_ms(1000)
    (retry,) = peek(broker)
    assert retry.asdict() | {"options": {}} == sent.asdict() | {"options": {}}
    assert retry.options["retries"] == 1
    assert retry.options["note"] == "kept"
    assert retry.options["requeue_timestamp"] == failed_ms
    assert failed_ms + 500 <= retry.options["eta"] <= failed_ms + 1000
    assert "RuntimeError: the reason" in retry.options["traceback"]


def test_the_last_retry(make: MakeBroker) -> None:
    """After ``max_retries`` the message is a dead letter that keeps its last error."""
    broker, runs = make(), []

    @actor(broker=broker, max_retries=2, min_backoff=0, max_backoff=0)
    def fail() -> None:
        runs.append(1)
        raise RuntimeError(f"attempt {len(runs)}")

    fail.send()
    with working(broker):
        broker.wait_until_empty()
    (letter,) = broker.dead()
    assert len(runs) == 3
    assert (letter.error.type, letter.error.message) == ("RuntimeError", "attempt 3")
    assert "in fail\n" in letter.error.traceback
    assert Message.decode(letter.body).actor_name == "fail"


def test_no_retries(make: MakeBroker) -> None:
    """``max_retries=0`` dead-letters the first failure."""
    broker, runs = make(), []

    @actor(broker=broker, max_retries=0)
    def fail() -> None:
        runs.append(1)
        raise ValueError("no")

    fail.send()
    with working(broker):
        broker.wait_until_empty()
    assert runs == [1]
    assert [letter.error.type for letter in broker.dead()] == ["ValueError"]


def test_a_messages_own_options_are_stronger(make: MakeBroker) -> None:
    """An option of a message wins over the actor's, and the actor's over the middleware's."""
    broker, runs = make(Retries(max_retries=5, min_backoff=0, max_backoff=0)), []

    @actor(broker=broker, max_retries=2)
    def fail(name: str) -> None:
        runs.append(name)
        raise RuntimeError

    fail.send("actor")
    fail.send_with_options(args=("message",), max_retries=1)
    with working(broker):
        broker.wait_until_empty()
    assert (runs.count("actor"), runs.count("message")) == (3, 2)


def test_expected_exceptions_are_not_retried(make: MakeBroker, caplog: pytest.LogCaptureFixture) -> None:
    """What ``throws`` names is final, and no error for the log: one line, without a traceback."""
    broker = make()

    @actor(broker=broker, throws=(KeyError, ValueError))
    def fail() -> None:
        raise ValueError("expected")

    fail.send()
    with caplog.at_level("INFO"), working(broker):
        broker.wait_until_empty()
    assert [letter.error.message for letter in broker.dead()] == ["expected"]
    assert "with expected exception ValueError" in caplog.text
    assert "Traceback" not in caplog.text


def test_an_actor_asks_for_a_retry(make: MakeBroker, clock: ManualClock, caplog: pytest.LogCaptureFixture) -> None:
    """``raise Retry(delay=...)`` runs the message again after just that time, beyond ``max_backoff``, too. It counts as
    a retry and not as an error."""
    broker, started_ms = make(Retries(max_backoff=10)), []

    @actor(broker=broker)
    def again() -> None:
        started_ms.append(clock.now_ms())
        if len(started_ms) == 1:
            raise Retry("later", delay=timedelta(seconds=90))

    again.send()
    with caplog.at_level("ERROR"), working(broker):
        wait_until(lambda: broker.counts() == Counts(delayed=1), "the retry waits")
        clock.advance_ms(89_999)
        collect_nothing_for_a_while(broker, started_ms, 1)
        clock.advance_ms(1)
        broker.wait_until_empty()
    assert started_ms[1] - started_ms[0] == 90_000
    assert caplog.text == ""


def test_retry_when(make: MakeBroker) -> None:
    """``retry_when`` is asked with the number of retries and the exception, and overrides ``max_retries``."""
    broker, asked = make(), []

    def retry_when(retries: int, exception: BaseException | None) -> bool:
        asked.append((retries, str(exception)))
        return retries < 2

    @actor(broker=broker, max_retries=0, min_backoff=0, max_backoff=0, retry_when=retry_when)
    def fail() -> None:
        raise RuntimeError("x")

    fail.send()
    with working(broker):
        broker.wait_until_empty()
    assert asked == [(0, "x"), (1, "x"), (2, "x")]
    assert len(broker.dead()) == 1


def test_told_when_retries_are_exhausted(make: MakeBroker) -> None:
    """``on_retry_exhausted`` is sent the message and its numbers, once, at the end."""
    broker, told = make(), []

    @actor(broker=broker)
    def tell(message: dict[str, Any], numbers: dict[str, int]) -> None:
        told.append((message["args"], numbers))

    @actor(broker=broker, max_retries=1, min_backoff=0, max_backoff=0, on_retry_exhausted=tell)
    def fail(value: int) -> None:
        raise RuntimeError

    fail.send(7)
    with working(broker):
        broker.wait_until_empty()
    assert told == [([7], {"retries": 1, "max_retries": 1})]


def test_a_rate_limit_is_retried_quietly(make: MakeBroker, caplog: pytest.LogCaptureFixture) -> None:
    """``RateLimitExceeded`` is retried like a failure, and logged below the level of failures."""
    broker, runs = make(), []

    @actor(broker=broker, min_backoff=0, max_backoff=0)
    def limited() -> None:
        runs.append(1)
        if len(runs) == 1:
            raise RateLimitExceeded("too fast")

    limited.send()
    with caplog.at_level("INFO"), working(broker):
        broker.wait_until_empty()
    assert len(runs) == 2
    assert "too fast" not in caplog.text


def test_without_retries_a_failure_is_settled(make: MakeBroker) -> None:
    """With no ``Retries`` in the list a failed message is done, as Dramatiq has it."""
    broker = make(AgeLimit())

    @actor(broker=broker)
    def fail() -> None:
        raise RuntimeError

    fail.send()
    with working(broker):
        broker.wait_until_empty()
    assert broker.counts() == Counts()


class NotAnException(BaseException):
    pass


@pytest.mark.parametrize("kind", [NotAnException, SystemExit, KeyboardInterrupt, GeneratorExit])
def test_whatever_an_actor_raises_is_a_failure(make: MakeBroker, kind: type[BaseException]) -> None:
    """No exception ends the thread: it is the message that fails."""
    broker = make()
    collect, notes = collector(broker)

    @actor(broker=broker, max_retries=0)
    def fail() -> None:
        raise kind("stop")

    fail.send()
    collect.send(1)
    with working(broker):
        broker.wait_until_empty()
    assert notes == [1]
    assert [letter.error.type for letter in broker.dead()] == [kind.__name__]


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (OSError("no such file: \udcff.txt"), r"no such file: \udcff.txt"),
        (RuntimeError("a\0b"), "a\0b"),
        (RuntimeError("x" * 100_000), "x" * 4093 + "..."),
        (Unspeakable(), "<unprintable: RuntimeError>"),
    ],
    ids=["half a surrogate pair", "NUL", "long", "unprintable"],
)
@pytest.mark.parametrize("max_retries", [0, 1])
def test_any_error_can_be_kept(make: MakeBroker, error: Exception, text: str, max_retries: int) -> None:
    """Whatever an exception says, its message is retried and dead-lettered as any other, with a text to be kept."""
    broker, runs = make(), []

    @actor(broker=broker, max_retries=max_retries, min_backoff=0, max_backoff=0)
    def fail() -> None:
        runs.append(1)
        raise error

    fail.send()
    with working(broker):
        broker.wait_until_empty()
    assert len(runs) == 1 + max_retries
    assert [letter.error.message for letter in broker.dead()] == [text]


# --- messages that are skipped or vetoed


class Before(Middleware):
    """Raises before a message is processed."""

    def __init__(self, error: BaseException, *, fail: bool = False) -> None:
        self._error = error
        self._fail = fail

    def before_process_message(self, broker: Any, message: Any) -> None:
        if message.actor_name == "collect":
            if self._fail:
                message.fail()
            raise self._error


@pytest.mark.parametrize("fail", [False, True])
def test_a_skipped_message(make: MakeBroker, fail: bool) -> None:
    """``SkipMessage`` in a hook: the actor does not run, and the message is done, or dead if the hook failed it."""
    broker = make(Before(SkipMessage("not today"), fail=fail), Retries())
    collect, notes = collector(broker)
    collect.send(1)
    with working(broker):
        broker.wait_until_empty()
    assert notes == []
    assert [letter.error.message for letter in broker.dead()] == (["not today"] if fail else [])


def test_a_message_that_is_too_old(make: MakeBroker, clock: ManualClock) -> None:
    """A message beyond its ``max_age`` is dead-lettered without having run."""
    broker = make()
    collect, notes = collector(broker, max_age=1000)
    collect.send("old")
    clock.advance_ms(1000)
    collect.send("young")
    with working(broker):
        broker.wait_until_empty()
    assert notes == ["young"]
    assert [letter.error.message for letter in broker.dead()] == ["Message age limit exceeded"]


def test_a_failing_hook_does_not_stop_a_message(make: MakeBroker, caplog: pytest.LogCaptureFixture) -> None:
    """Any other exception of a hook is logged, and the actor runs."""
    broker = make(Before(RuntimeError("broken hook")), Retries())
    collect, notes = collector(broker)
    collect.send(1)
    with working(broker):
        broker.wait_until_empty()
    assert notes == [1]
    assert "Unexpected failure in before_process_message of Before." in caplog.text


def test_a_veto_before_processing_is_a_failure(make: MakeBroker) -> None:
    """A ``MiddlewareError`` other than ``SkipMessage`` fails the message, which is retried by its options."""
    broker = make(Before(MiddlewareError("vetoed")), Retries(max_retries=0))
    collect, notes = collector(broker)
    collect.send(1)
    with working(broker):
        broker.wait_until_empty()
    assert notes == []
    assert [letter.error.message for letter in broker.dead()] == ["vetoed"]


class VetoEnqueue(Middleware):
    """Lets no retry through."""

    def before_enqueue(self, broker: Any, message: Any, delay: int | None) -> None:
        if message.options.get("retries"):
            raise MiddlewareError("no retries today")


def test_a_vetoed_retry_is_dead_lettered(make: MakeBroker) -> None:
    """A hook may refuse a retry; the message is then dead with the veto as its reason, and not lost."""
    broker = make(Retries(min_backoff=0, max_backoff=0), VetoEnqueue())

    @actor(broker=broker)
    def fail() -> None:
        raise RuntimeError

    fail.send()
    with working(broker):
        broker.wait_until_empty()
    assert [(letter.error.type, letter.error.message) for letter in broker.dead()] == [
        ("MiddlewareError", "no retries today")
    ]


def test_a_vetoed_message_is_not_sent(make: MakeBroker) -> None:
    """A ``MiddlewareError`` in ``before_enqueue`` reaches the sender, and nothing is sent."""

    class Veto(Middleware):
        def before_enqueue(self, broker: Any, message: Any, delay: int | None) -> None:
            raise MiddlewareError("vetoed")

    broker = make(Veto())
    collect, _ = collector(broker)
    with pytest.raises(MiddlewareError, match="vetoed"):
        collect.send(1)
    assert broker.counts() == Counts()


def test_a_retry_that_cannot_be_encoded_any_more(make: MakeBroker) -> None:
    """An option that a hook added and JSON has no form for: the message is dead with that as its reason."""

    class Spoil(Middleware):
        def before_process_message(self, broker: Any, message: Any) -> None:
            message.options["thing"] = object()

    broker = make(Spoil(), Retries(min_backoff=0, max_backoff=0))

    @actor(broker=broker)
    def fail() -> None:
        raise RuntimeError

    fail.send()
    with working(broker):
        broker.wait_until_empty()
    (letter,) = broker.dead()
    assert letter.error.type == "EncodeError"


# --- messages that cannot be run


def push(broker: EngineTestBroker, body: bytes) -> None:
    broker.declare_queue("default")
    broker.transport.push([Envelope("default", os.urandom(8).hex(), body)])


@pytest.mark.parametrize(
    "body",
    [
        b"\xff\xfe not JSON",
        b"",
        b"[]",
        b"{}",
        b'{"queue_name": 3}',
        b"[" * 100_000,
        Message("default", "collect", (1,), {}, {}).encode()[:-1],
        Message("default", "collect", (1,), {}, {"priority": "high"}).encode(),
        Message("default", "collect", (1,), {}, {"priority": []}).encode(),
        Message("default", "collect", (1,), {}, {"priority": None}).encode(),
    ],
)
def test_garbage_does_not_stop_the_rest(make: MakeBroker, body: bytes) -> None:
    """What cannot be decoded, or ordered, is dead-lettered as the bytes that it is, and the other messages run."""
    broker = make()
    collect, notes = collector(broker)
    collect.send("before")
    push(broker, body)
    collect.send("after")
    with working(broker):
        broker.wait_until_empty()
        collect.send("later")
        broker.wait_until_empty()
    assert notes == ["before", "after", "later"]
    (letter,) = broker.dead()
    assert letter.body == body
    assert letter.error.type in ("DecodeError", "InvalidMessage")
    assert letter.error.message


def wait_until_put_aside(caplog: pytest.LogCaptureFixture, broker: EngineTestBroker, times: int) -> None:
    """Until the worker has met the unknown actor that often, and has given the message back."""

    def is_put_aside() -> bool:
        return caplog.text.count("waits for a worker that knows") == times and broker.counts() == Counts(delayed=1)

    wait_until(is_put_aside, f"the message is put aside, {times} times in all")


def test_an_unknown_actor(make: MakeBroker, clock: ManualClock, caplog: pytest.LogCaptureFixture) -> None:
    """A message whose actor nobody knows yet is put aside and looked at again, ever less often, while the rest runs.
    Once the actor is known it runs."""
    broker = make()
    collect, notes = collector(broker)
    broker.enqueue(Message("default", "unknown", (), {}, {}))
    with working(broker):
        wait_until_put_aside(caplog, broker, 1)
        collect.send(1)
        wait_until(lambda: notes == [1], "the worker goes on")
        clock.advance_ms(5_000)
        wait_until_put_aside(caplog, broker, 2)
        actor(lambda: notes.append("known"), broker=broker, actor_name="unknown")
        clock.advance_ms(10_000)
        broker.wait_until_empty()
    assert notes == [1, "known"]


def test_an_actor_that_stays_unknown(make: MakeBroker, clock: ManualClock, caplog: pytest.LogCaptureFixture) -> None:
    """After ``unknown_actor_ttl_ms`` it is a dead letter that names the actor."""
    broker = make(unknown_actor_ttl_ms=12_000)
    broker.enqueue(Message("default", "unknown", (1,), {}, {}))
    with working(broker):
        for times, wait_ms in ((1, 5_000), (2, 10_000)):
            wait_until_put_aside(caplog, broker, times)
            clock.advance_ms(wait_ms)
        broker.wait_until_empty()
    (letter,) = broker.dead()
    assert (letter.error.type, letter.attempt) == ("ActorNotFound", 3)
    assert "'unknown'" in letter.error.message


def test_an_unknown_actor_without_patience(make: MakeBroker) -> None:
    """``unknown_actor_ttl_ms=0`` dead-letters it at once."""
    broker = make(unknown_actor_ttl_ms=0)
    broker.enqueue(Message("default", "unknown", (1,), {}, {}))
    with working(broker):
        broker.wait_until_empty()
    assert [letter.attempt for letter in broker.dead()] == [1]


def test_wrong_arguments(make: MakeBroker) -> None:
    """A message that does not fit its actor's signature fails as a call would."""
    broker = make(Retries(max_retries=0))
    broker.enqueue(Message("default", collector(broker)[0].actor_name, (1, 2, 3), {"x": 1}, {}))
    with working(broker):
        broker.wait_until_empty()
    assert [letter.error.type for letter in broker.dead()] == ["TypeError"]


@pytest.mark.parametrize("throws", ["ValueError", ["ValueError"], {"a": 1}, 7])
def test_an_option_that_is_no_class(make: MakeBroker, throws: Any) -> None:
    """A message may come from anywhere: ``throws`` in its options cannot be a class, and is left out of account."""
    broker = make(Retries(max_retries=0))
    collect, notes = collector(broker)

    @actor(broker=broker)
    def fail() -> None:
        raise ValueError("x")

    broker.enqueue(Message("default", "fail", (), {}, {"throws": throws}))
    collect.send(1)
    with working(broker):
        broker.wait_until_empty()
    assert notes == [1]
    assert [letter.error.type for letter in broker.dead()] == ["ValueError"]
