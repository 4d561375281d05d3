"""Actors: how they are declared, called and sent."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

import greenroom as dramatiq
from greenroom.brokers.stub import StubBroker
from greenroom.testing.clock import ManualClock


def test_the_decorator_works_with_and_without_parentheses(broker: StubBroker) -> None:
    """Both forms make an actor that is named like its function, on the default queue, with priority 0."""

    @dramatiq.actor
    def bare() -> None: ...

    @dramatiq.actor()
    def called() -> None: ...

    for made in (bare, called):
        assert isinstance(made, dramatiq.Actor)
        assert (made.queue_name, made.priority, made.options, made.broker) == ("default", 0, {}, broker)
    assert (bare.actor_name, called.actor_name) == ("bare", "called")


def test_one_decorator_object_serves_two_functions(broker: StubBroker) -> None:
    """A kept ``actor(...)`` names each function after itself."""
    slow = dramatiq.actor(queue_name="slow", max_retries=1)

    @slow
    def first() -> None: ...

    @slow
    def second() -> None: ...

    assert (first.actor_name, second.actor_name) == ("first", "second")
    first.options["max_retries"] = 2
    assert second.options == {"max_retries": 1}


def test_attributes_are_what_was_given(broker: StubBroker) -> None:
    """Name, queue, priority, options, function and logger can be read off."""

    def function() -> None: ...

    made = dramatiq.actor(function, actor_name="a", queue_name="q", priority=3, max_retries=4)
    assert (made.actor_name, made.queue_name, made.priority, made.options) == ("a", "q", 3, {"max_retries": 4})
    assert made.fn is function
    assert made.logger.name == f"{__name__}.a"


def test_repr_and_str(broker: StubBroker) -> None:
    """An actor prints with its function, queue and name, or shortly with its name."""

    def add() -> None: ...

    made = dramatiq.actor(add)
    assert repr(made) == f"Actor({add!r}, queue_name='default', actor_name='add')"
    assert str(made) == "Actor(add)"


def test_a_class_of_ones_own(broker: StubBroker) -> None:
    """``actor_class`` is called with the function and keywords."""

    class MyActor(dramatiq.Actor[Any, Any]): ...

    @dramatiq.actor(actor_class=MyActor)
    def add() -> None: ...

    assert type(add) is MyActor


@pytest.mark.parametrize("name", ["", "1a", "a b", "ä", "a/b", "-a"])
def test_a_bad_queue_name_is_refused(broker: StubBroker, name: str) -> None:
    """Queue names begin with a letter or underscore and go on with letters, digits, dots, dashes, underscores."""
    with pytest.raises(ValueError, match=r"[Qq]ueue name"):
        dramatiq.actor(lambda: None, actor_name="a", queue_name=name)


@pytest.mark.parametrize("name", ["a", "_a", "A.b-c_1", "default"])
def test_a_good_queue_name_is_taken(broker: StubBroker, name: str) -> None:
    """The names that Dramatiq allows are allowed."""
    assert dramatiq.actor(lambda: None, actor_name="a", queue_name=name).queue_name == name


def test_undefined_options_are_refused(broker: StubBroker) -> None:
    """An option that no middleware defines is a mistake, and the near one is suggested."""
    with pytest.raises(ValueError, match="The following actor options are undefined: invalid_option") as e:
        dramatiq.actor(lambda: None, actor_name="a", invalid_option=1)
    assert "Did you forget to add a middleware to your Broker?" in str(e.value)
    with pytest.raises(ValueError, match="did you mean 'max_retries' instead of 'max_retry'"):
        dramatiq.actor(lambda: None, actor_name="a", max_retry=1)


def test_a_name_is_taken_once(broker: StubBroker) -> None:
    """Two actors of one name on one broker are a mistake."""
    dramatiq.actor(lambda: None, actor_name="a")
    with pytest.raises(ValueError, match="An actor named 'a' is already registered"):
        dramatiq.actor(lambda: None, actor_name="a")


def test_a_call_is_a_plain_call(broker: StubBroker) -> None:
    """Calling an actor calls its function here and now, and sends nothing."""

    @dramatiq.actor
    def add(x: int, y: int) -> int:
        return x + y

    assert add(1, y=2) == 3
    assert broker.queues["default"].qsize() == 0


def test_a_call_logs_its_arguments_at_debug_only(broker: StubBroker, caplog: pytest.LogCaptureFixture) -> None:
    """A call tells of its arguments and duration at DEBUG, and of nothing above."""
    add = dramatiq.actor(lambda x: x, actor_name="add")
    with caplog.at_level(logging.INFO):
        add(1)
        assert not caplog.records
    with caplog.at_level(logging.DEBUG):
        add(1)
    assert [r.getMessage().partition("after")[0] for r in caplog.records] == [
        "Received args=(1,) kwargs={}.",
        "Completed ",
    ]


def test_calling_an_async_actor_gives_its_coroutine(broker: StubBroker) -> None:
    """``await actor(x)`` works as with the plain function, which ``fn`` is."""

    @dramatiq.actor
    async def add(x: int, y: int) -> int:
        return x + y

    assert inspect.iscoroutinefunction(add.fn)
    assert asyncio.run(add(1, 2)) == 3


def test_message_builds_and_does_not_send(broker: StubBroker) -> None:
    """``message`` has the actor's name and queue, the arguments, and no options."""
    add = dramatiq.actor(lambda x, y: x + y, actor_name="add", queue_name="sums")
    message = add.message(1, y=2)
    assert (message.actor_name, message.queue_name) == ("add", "sums")
    assert (message.args, message.kwargs, message.options) == ((1,), {"y": 2}, {})
    assert broker.queues["sums"].qsize() == 0


def test_message_with_options(broker: StubBroker) -> None:
    """``message_with_options`` takes arguments as values, and any option."""
    add = dramatiq.actor(lambda x, y: x + y, actor_name="add")
    message = add.message_with_options(args=[1], kwargs={"y": 2}, max_retries=3, anything="goes")
    assert (message.args, message.kwargs, message.options) == (
        (1,),
        {"y": 2},
        {"max_retries": 3, "anything": "goes"},
    )


def test_send_enqueues(broker: StubBroker) -> None:
    """``send`` returns the message that is on the queue now."""
    add = dramatiq.actor(lambda x, y: x + y, actor_name="add")
    message = add.send(1, 2)
    assert dramatiq.Message.decode(broker.queues["default"].get()) == message


@pytest.mark.parametrize("delay", [60_000, timedelta(minutes=1)])
def test_a_delay_is_milliseconds_or_a_timedelta(delay: Any) -> None:
    """The message that is returned carries its ``eta`` in UNIX milliseconds, and waits."""
    clock = ManualClock()
    broker = StubBroker(clock=clock)
    add = dramatiq.actor(lambda: None, actor_name="add", broker=broker)
    message = add.send_with_options(delay=delay)
    assert message.options["eta"] == clock.now_ms() + 60_000
    assert broker.queues["default"].qsize() == 0
    assert broker.queues["default.DQ"].qsize() == 1


@pytest.mark.parametrize("option", ["on_success", "on_failure", "on_retry_exhausted"])
def test_callbacks_are_given_as_actors_or_names(broker: StubBroker, option: str) -> None:
    """At declaration as well as at sending: an actor stands for its name."""
    told = dramatiq.actor(lambda *a: None, actor_name="told")
    declared = dramatiq.actor(lambda: None, actor_name="a", **{option: told})
    named = dramatiq.actor(lambda: None, actor_name="b", **{option: "told"})
    assert declared.options == named.options == {option: "told"}
    for value, expected in ((told, "told"), ("told", "told"), (None, None)):
        assert declared.message_with_options(**{option: value}).options == {option: expected}


def test_a_callback_that_is_no_actor_is_a_type_error(broker: StubBroker) -> None:
    """A function in the place of an actor is a mistake, told at once."""
    made = dramatiq.actor(lambda: None, actor_name="a")
    with pytest.raises(TypeError, match="on_success value must be an Actor"):
        made.message_with_options(on_success=lambda *a: None)
    with pytest.raises(TypeError, match="on_failure value must be an Actor"):
        dramatiq.actor(lambda: None, actor_name="b", on_failure=lambda *a: None)


def test_an_actor_without_a_broker_follows_the_default_one(broker: StubBroker) -> None:
    """Without ``broker=`` each send goes to what is the default broker then; with it, to that one."""
    other = StubBroker()
    pinned = dramatiq.actor(lambda: None, actor_name="pinned", broker=broker)
    free = dramatiq.actor(lambda: None, actor_name="free")
    dramatiq.set_broker(other)
    free.send()
    pinned.send()
    assert (other.queues["default"].qsize(), broker.queues["default"].qsize()) == (1, 1)
    assert (free.broker, pinned.broker) == (other, broker)


def test_the_broker_of_an_actor_may_be_set(broker: StubBroker) -> None:
    """``actor.broker = b`` pins it, as programs do that build brokers late."""
    other = StubBroker()
    free = dramatiq.actor(lambda: None, actor_name="free")
    free.broker = other
    assert free.broker is other


BAD_OPTIONS: list[tuple[dict[str, Any], type[Exception]]] = [
    ({"time_limit": 0}, ValueError),
    ({"time_limit": -1}, ValueError),
    ({"time_limit": float("nan")}, ValueError),
    ({"max_retries": -1}, ValueError),
    ({"min_backoff": -1}, ValueError),
    ({"max_backoff": -1}, ValueError),
    ({"max_age": -1}, ValueError),
    ({"max_retries": "3"}, TypeError),
    ({"time_limit": "1 h"}, TypeError),
]


@pytest.mark.parametrize(("options", "error"), BAD_OPTIONS)
def test_options_out_of_bounds_are_refused_at_declaration(
    broker: StubBroker, options: dict[str, Any], error: type[Exception]
) -> None:
    """What cannot be meant is told where it is written."""
    with pytest.raises(error, match=next(iter(options))):
        dramatiq.actor(lambda: None, actor_name="a", **options)
    assert "a" not in broker.actors


@pytest.mark.parametrize(("options", "error"), BAD_OPTIONS)
def test_options_out_of_bounds_are_refused_on_messages(
    broker: StubBroker, options: dict[str, Any], error: type[Exception]
) -> None:
    """The same holds for ``message_with_options``, ``send_with_options`` and ``send_many``."""
    made = dramatiq.actor(lambda: None, actor_name="a")
    sends: list[Callable[..., Any]] = [
        made.message_with_options,
        made.send_with_options,
        lambda **kw: made.send_many([()], **kw),
    ]
    for send in sends:
        with pytest.raises(error, match=next(iter(options))):
            send(**options)
    assert broker.queues["default"].qsize() == 0


@pytest.mark.parametrize(
    ("options", "error"), [({"throws": "ValueError"}, TypeError), ({"retry_when": True}, TypeError)]
)
def test_options_of_the_wrong_kind_are_refused_at_declaration(
    broker: StubBroker, options: dict[str, Any], error: type[Exception]
) -> None:
    """``throws`` holds exception classes, ``retry_when`` a function."""
    with pytest.raises(error):
        dramatiq.actor(lambda: None, actor_name="a", **options)


@pytest.mark.parametrize(
    "options",
    [
        {"time_limit": None},
        {"time_limit": float("inf")},
        {"time_limit": 0.5},
        {"max_retries": None},
        {"max_retries": 0},
        {"min_backoff": 0, "max_backoff": 0},
        {"max_age": 0},
        {"max_age": None},
        {"throws": ValueError},
        {"throws": (ValueError, KeyError)},
        {"retry_when": lambda retries, exception: True},
    ],
)
def test_options_at_their_bounds_are_taken(broker: StubBroker, options: dict[str, Any]) -> None:
    """Zero, None and infinity mean what the documentation says."""
    assert dramatiq.actor(lambda: None, actor_name="a", **options).options == options


@pytest.mark.parametrize(
    "make",
    [
        lambda: dramatiq.middleware.Retries(max_retries=-1),
        lambda: dramatiq.middleware.Retries(min_backoff=-1),
        lambda: dramatiq.middleware.AgeLimit(max_age=-1),
    ],
)
def test_a_middleware_is_checked_as_an_actor_is(make: Callable[[], Any]) -> None:
    """The defaults for all actors have the same bounds."""
    with pytest.raises(ValueError, match="must not be negative"):
        make()
