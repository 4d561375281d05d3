"""The middleware that comes with the library, as a Dramatiq program sees it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest

import greenroom as dramatiq
from greenroom.brokers.stub import StubBroker
from greenroom.core.hooks import HOOK_NAMES
from greenroom.middleware import (
    AgeLimit,
    CurrentMessage,
    Middleware,
    Pipelines,
    Retries,
    ShutdownNotifications,
    SkipMessage,
    TimeLimit,
)

MakeWorker = Callable[..., dramatiq.Worker]


def test_all_hooks_are_methods_of_the_base_class() -> None:
    """There are 24, and one of ours, and none does anything."""
    assert len(set(HOOK_NAMES) - {"after_stale_lease"}) == 24
    assert all(callable(getattr(Middleware(), name)) for name in HOOK_NAMES)


def test_the_base_class_defines_no_options_and_no_forks() -> None:
    """``actor_options`` and ``forks`` are empty."""
    assert Middleware().actor_options == set()
    assert Middleware().forks == []


def test_parameters_and_their_defaults() -> None:
    """Each middleware has the parameters that Dramatiq documents."""
    assert AgeLimit().max_age is None
    assert (TimeLimit().time_limit, TimeLimit().interval) == (600_000, 1000)
    assert ShutdownNotifications().notify_shutdown is False
    retries = Retries()
    assert (retries.max_retries, retries.min_backoff, retries.max_backoff) == (20, 15_000, 604_800_000)
    assert retries.retry_when is None
    assert Pipelines().actor_options == {"pipe_ignore", "pipe_target"}


def test_the_life_of_a_message_in_hooks(broker: StubBroker, make_worker: MakeWorker) -> None:
    """From the enqueue to the ack every hook is told, with the actor's result."""
    calls: list[Any] = []

    class Recorder(Middleware):
        def after_process_message(
            self, broker: Any, message: Any, *, result: Any = None, exception: BaseException | None = None
        ) -> None:
            calls.append(("after_process_message", result, exception))

    for name in ("before_enqueue", "after_enqueue", "before_process_message", "before_ack", "after_ack"):
        setattr(Recorder, name, lambda self, broker, message, *rest, _name=name: calls.append((_name, *rest)))
    broker.add_middleware(Recorder())
    add = dramatiq.actor(lambda x, y: x + y, actor_name="add")
    add.send(1, 2)
    worker = make_worker(broker)
    broker.join("default", timeout=10_000)
    worker.stop()
    assert calls == [
        ("before_enqueue", None),
        ("after_enqueue", None),
        ("before_process_message",),
        ("after_process_message", 3, None),
        ("before_ack",),
        ("after_ack",),
    ]


def test_skipping_a_message(broker: StubBroker, make_worker: MakeWorker) -> None:
    """``SkipMessage`` from ``before_process_message``: the actor is not called, the message is acked."""
    calls: list[str] = []
    ran: list[int] = []

    class Skipper(Middleware):
        def before_process_message(self, broker: Any, message: Any) -> None:
            raise SkipMessage("not today")

        def after_skip_message(self, broker: Any, message: Any) -> None:
            calls.append("skip")

        def after_process_message(
            self, broker: Any, message: Any, *, result: Any = None, exception: BaseException | None = None
        ) -> None:
            calls.append("process")

        def after_ack(self, broker: Any, message: Any) -> None:
            calls.append("ack")

    broker.add_middleware(Skipper())
    dramatiq.actor(ran.append, actor_name="run").send(1)
    worker = make_worker(broker)
    broker.join("default", timeout=10_000)
    worker.stop()
    assert (ran, calls) == ([], ["skip", "ack"])
    assert broker.dead_letters == []


def test_failing_and_skipping_is_a_dead_letter(broker: StubBroker, make_worker: MakeWorker) -> None:
    """``message.fail()`` before ``SkipMessage`` nacks."""
    calls: list[str] = []

    class Refuser(Middleware):
        def before_process_message(self, broker: Any, message: Any) -> None:
            message.fail()
            raise SkipMessage("never")

        def after_nack(self, broker: Any, message: Any) -> None:
            calls.append("nack")

    broker.add_middleware(Refuser())
    dramatiq.actor(lambda: None, actor_name="run").send()
    worker = make_worker(broker)
    broker.join("default", timeout=10_000, fail_fast=False)
    worker.stop()
    assert calls == ["nack"]
    assert len(broker.dead_letters) == 1


def test_a_hook_may_fail_a_message_that_succeeded(broker: StubBroker, worker: dramatiq.Worker) -> None:
    """``fail()`` in ``after_process_message`` sends it to the dead letters."""

    class Strict(Middleware):
        def after_process_message(
            self, broker: Any, message: Any, *, result: Any = None, exception: BaseException | None = None
        ) -> None:
            if result is None:
                message.fail()

    broker.add_middleware(Strict())
    dramatiq.actor(lambda: None, actor_name="run").send()
    broker.join("default", timeout=10_000, fail_fast=False)
    assert len(broker.dead_letters) == 1


def test_without_retries_a_failure_is_acked(make_worker: MakeWorker) -> None:
    """As documented: only ``Retries`` turns a failure into a retry or a dead letter."""
    broker = StubBroker(middleware=[])

    @dramatiq.actor(broker=broker)
    def fail() -> None:
        raise ValueError

    fail.send()
    make_worker(broker)
    broker.join("default", timeout=10_000, fail_fast=False)
    assert broker.dead_letters == []


def test_on_success_and_on_failure(broker: StubBroker, worker: dramatiq.Worker) -> None:
    """They are sent the message as a dict, and the result or the exception's type and text."""
    told: list[Any] = []
    tell = dramatiq.actor(lambda message, detail: told.append((message["actor_name"], detail)), actor_name="tell")

    @dramatiq.actor(max_retries=0, on_success=tell, on_failure="tell")
    def divide(x: int) -> float:
        return 1 / x

    divide.send(2)
    broker.join("default", timeout=10_000)
    divide.send(0)
    broker.join("default", timeout=10_000, fail_fast=False)
    assert told == [
        ("divide", 0.5),
        ("divide", {"type": "ZeroDivisionError", "message": "division by zero"}),
    ]


def test_on_retry_exhausted(broker: StubBroker, worker: dramatiq.Worker) -> None:
    """It is sent once, with how many retries there were and could be."""
    told: list[Any] = []
    dramatiq.actor(lambda message, info: told.append(info), actor_name="tell")

    @dramatiq.actor(max_retries=2, min_backoff=0, max_backoff=0, on_retry_exhausted="tell")
    def fail() -> None:
        raise ValueError

    fail.send()
    broker.join("default", timeout=10_000, fail_fast=False)
    assert told == [{"retries": 2, "max_retries": 2}]


def test_a_pipe_target_gets_the_result(broker: StubBroker, worker: dramatiq.Worker) -> None:
    """The next message's last argument is the result, unless it says ``pipe_ignore``."""
    told: list[Any] = []
    add = dramatiq.actor(lambda x, y: x + y, actor_name="add")
    note = dramatiq.actor(lambda *args: told.append(args), actor_name="note")
    add.send_with_options(args=(1, 2), pipe_target=note.message("sum").asdict())
    ignoring = note.message_with_options(args=("none",), pipe_ignore=True)
    add.send_with_options(args=(1, 2), pipe_target=ignoring.asdict())
    broker.join("default", timeout=10_000)
    assert sorted(told) == [("none",), ("sum", 3)]


# --- age


@pytest.mark.parametrize("max_age", [0, 1000])
def test_an_old_message_is_not_run(
    broker: StubBroker, worker: dramatiq.Worker, max_age: int, caplog: pytest.LogCaptureFixture
) -> None:
    """It goes to the dead letters; ``max_age=0`` expires every message."""
    ran: list[int] = []
    made = dramatiq.actor(ran.append, actor_name="run", max_age=max_age)
    old = made.message(1)
    broker.enqueue(old._replace(message_timestamp=old.message_timestamp - 1000))
    broker.join("default", timeout=10_000, fail_fast=False)
    assert ran == []
    assert len(broker.dead_letters) == 1


def test_a_message_may_be_stronger_than_its_actor(broker: StubBroker, worker: dramatiq.Worker) -> None:
    """Precedence is message, actor, middleware."""
    ran: list[int] = []
    made = dramatiq.actor(ran.append, actor_name="run", max_age=0)
    made.send_with_options(args=(1,), max_age=60_000)
    broker.join("default", timeout=10_000)
    assert ran == [1]


@pytest.mark.parametrize(
    ("middleware", "actor", "message", "notified"),
    [(False, None, None, False), (True, None, None, True), (True, False, None, False), (False, True, False, False)],
)
def test_who_is_told_of_a_shutdown(
    broker: StubBroker, middleware: bool, actor: bool | None, message: bool | None, notified: bool
) -> None:
    """``should_notify`` asks the message, then the actor, then the middleware."""
    options = {} if actor is None else {"notify_shutdown": actor}
    made = dramatiq.actor(lambda: None, actor_name="a", **options)
    sent = made.message_with_options(**({} if message is None else {"notify_shutdown": message}))
    assert ShutdownNotifications(middleware).should_notify(made, dramatiq.MessageProxy(sent)) is notified


# --- the current message


@pytest.fixture
def seen(broker: StubBroker) -> list[Any]:
    """Notes what ``get_current_message`` answers in two actors, a sync and an async one."""
    broker.add_middleware(CurrentMessage())
    seen: list[Any] = []

    @dramatiq.actor
    def look(value: int) -> None:
        seen.append(CurrentMessage.get_current_message())

    @dramatiq.actor
    async def alook(value: int) -> None:
        seen.append(CurrentMessage.get_current_message())

    return seen


@pytest.mark.parametrize("name", ["look", "alook"])
def test_an_actor_can_ask_for_its_message(
    broker: StubBroker, seen: list[Any], worker: dramatiq.Worker, name: str
) -> None:
    """On a thread and on the event loop, each sees its own; outside there is none."""
    sent = [broker.get_actor(name).send(i) for i in range(20)]
    broker.join("default", timeout=10_000)
    assert sorted(seen) == sorted(sent)
    assert all(isinstance(message, dramatiq.Message) for message in seen)
    assert CurrentMessage.get_current_message() is None


class SkipOdd(Middleware):
    """Skips messages with an odd argument, and notes what is current in a hook after that."""

    def __init__(self) -> None:
        self.left_over: list[Any] = []

    def before_process_message(self, broker: Any, message: Any) -> None:
        self.left_over.append(CurrentMessage.get_current_message())
        if message.args[0] % 2:
            raise SkipMessage("odd")


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("name", ["look", "alook"])
def test_nothing_is_left_behind_by_a_skip(
    broker: StubBroker, seen: list[Any], make_worker: MakeWorker, before: bool, name: str
) -> None:
    """After a skipped message, whichever middleware came first, the next one sees its own message and none before."""
    skip = SkipOdd()
    if before:
        broker.add_middleware(skip, before=CurrentMessage)
    else:
        broker.add_middleware(skip, after=CurrentMessage)
    sent = [broker.get_actor(name).send(i) for i in range(10)]
    make_worker(broker, worker_threads=1)
    broker.join("default", timeout=10_000)
    assert sorted(seen) == sorted(sent[::2])
    expected: list[Any] = [None] * 10 if before else sent
    assert sorted(skip.left_over, key=str) == sorted(expected, key=str)


def test_a_message_that_is_run_by_another_one_gives_back() -> None:
    """In one thread, an inner message hides the outer one until it has ended."""
    middleware = CurrentMessage()
    broker: Any = None
    outer, inner = (dramatiq.MessageProxy(dramatiq.Message("q", name, (), {}, {})) for name in ("outer", "inner"))
    middleware.before_process_message(broker, outer)
    middleware.before_process_message(broker, inner)
    assert middleware.get_current_message().actor_name == "inner"
    middleware.after_process_message(broker, inner)
    assert middleware.get_current_message().actor_name == "outer"
    middleware.after_skip_message(broker, outer)
    assert middleware.get_current_message() is None


# --- the texts that programs match on


def texts(caplog: pytest.LogCaptureFixture) -> list[tuple[str, Any]]:
    return [(r.levelname, r.msg) for r in caplog.records]


def failing(error: BaseException, **options: Any) -> Any:
    def fail() -> None:
        raise error

    return dramatiq.actor(fail, **options)


def test_the_texts_of_an_expected_failure(
    broker: StubBroker, worker: dramatiq.Worker, caplog: pytest.LogCaptureFixture
) -> None:
    """What ``throws`` lists is told at INFO, goes to the dead letters, and is not retried."""
    with caplog.at_level(logging.INFO):
        failing(ValueError(), throws=ValueError).send()
        broker.join("default", timeout=10_000, fail_fast=False)
    assert ("INFO", "Failed to process message %s with expected exception %s.") in texts(caplog)
    assert ("INFO", "Aborting message %r.") in texts(caplog)
    assert len(broker.dead_letters) == 1


def test_the_text_of_a_rate_limit(
    broker: StubBroker, worker: dramatiq.Worker, caplog: pytest.LogCaptureFixture
) -> None:
    """A rate limit is told at DEBUG, and counts as a failed attempt."""
    with caplog.at_level(logging.DEBUG):
        failing(dramatiq.RateLimitExceeded("slowly"), max_retries=0).send()
        broker.join("default", timeout=10_000, fail_fast=False)
    assert ("DEBUG", "Rate limit exceeded in message %s: %s.") in texts(caplog)
    assert not [r for r in caplog.records if r.levelno >= logging.ERROR]


def test_a_retry_is_not_told_as_an_error(
    broker: StubBroker, worker: dramatiq.Worker, caplog: pytest.LogCaptureFixture
) -> None:
    """``Retry`` is a failed attempt that was meant."""
    failing(dramatiq.Retry("later"), max_retries=0).send()
    broker.join("default", timeout=10_000, fail_fast=False)
    assert not [r for r in caplog.records if r.levelno >= logging.ERROR]


def test_any_other_failure_is_told_with_its_traceback(
    broker: StubBroker, worker: dramatiq.Worker, caplog: pytest.LogCaptureFixture
) -> None:
    """At ERROR, with ``exc_info``."""
    failing(ValueError("why"), max_retries=0).send()
    broker.join("default", timeout=10_000, fail_fast=False)
    (record,) = [r for r in caplog.records if r.levelno == logging.ERROR]
    assert record.getMessage() == "Failed to process message fail() with unhandled exception."
    assert record.exc_info is not None
    assert record.exc_info[0] is ValueError


def test_the_text_of_a_second_middleware_of_a_type(broker: StubBroker, caplog: pytest.LogCaptureFixture) -> None:
    """It is added, and warned of."""
    broker.add_middleware(Retries())
    (text,) = [r.getMessage() for r in caplog.records]
    assert text.startswith("You're adding a middleware of the same type twice")
    assert "Retries" in text
