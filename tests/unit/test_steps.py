"""One message through the steps of a worker: whatever it does, it leaves with a settlement."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable
from typing import Any

import pytest

from greenroom import Message, Middleware, actor
from greenroom.brokers.engine import EngineBroker
from greenroom.core.run import Run
from greenroom.core.verdict import Verdict
from greenroom.engines.memory.transport import MemoryTransport
from greenroom.errors import MiddlewareError
from greenroom.middleware import Retries, SkipMessage
from greenroom.ports.transport import Delivery
from greenroom.runtime.slot import Slot
from greenroom.runtime.steps import Steps, run_sync


class MemoryBroker(EngineBroker):
    def __init__(self, *middleware: Middleware) -> None:
        self.transport = MemoryTransport()
        super().__init__(middleware)


def run_one(broker: EngineBroker, function: Callable[..., Any], *args: Any, **options: Any) -> Run:
    """Takes one message of an actor with this function through all steps."""
    work = actor(function, broker=broker, actor_name="work")
    message = Message("default", "work", args, {}, options)
    run = Run(message, Delivery("default", "id", message.encode(), 1, 1), work)
    run.slot = Slot(0)
    run_sync(Steps(broker), run, time.perf_counter)
    return run


def fail(*_args: Any) -> None:
    raise RuntimeError("reason")


def test_a_success_is_acked() -> None:
    """The actor is called with the message's arguments, and the message is done."""
    seen = []
    run = run_one(MemoryBroker(Retries()), lambda *args: seen.append(args), 1, 2)
    assert seen == [(1, 2)]
    assert run.settlement.verdict is Verdict.ACK
    assert run.settlement.delivery is run.delivery
    assert run.slot.runs == 1


def test_a_failure_is_retried() -> None:
    """One settlement carries the retry, with its due time, and the error for the history."""
    broker = MemoryBroker(Retries(min_backoff=1000, max_backoff=1000))
    before_ms = broker.clock.now_ms()
    settlement = run_one(broker, fail, priority=7).settlement
    assert settlement.verdict is Verdict.RETRY
    assert settlement.retry.queue == "default"
    assert settlement.retry.priority == 7
    assert settlement.retry.id != "id"
    assert before_ms + 500 <= settlement.retry.due_ms <= broker.clock.now_ms() + 1000
    assert (settlement.error.type, settlement.error.message) == ("RuntimeError", "reason")
    assert Message.decode(settlement.retry.body).options["retries"] == 1


def test_a_failure_for_good_is_buried() -> None:
    """After the last retry: to the dead letters, with the error as text."""
    settlement = run_one(MemoryBroker(Retries(max_retries=0)), fail).settlement
    assert settlement.verdict is Verdict.DEAD
    assert (settlement.error.type, settlement.error.message) == ("RuntimeError", "reason")
    assert "raise RuntimeError" in settlement.error.traceback


def test_a_hook_may_fail_what_succeeded() -> None:
    """The verdict is what the proxy says after the last hook."""

    class Fail(Middleware):
        def after_process_message(self, broker: Any, message: Any, **_: Any) -> None:
            message.fail()

    settlement = run_one(MemoryBroker(Fail()), lambda: None).settlement
    assert settlement.verdict is Verdict.DEAD
    assert settlement.error is None


def test_a_hook_may_change_the_message_for_its_retry() -> None:
    """Options that hooks write travel with the retry, also those of hooks that run after ``Retries``."""

    class Note(Middleware):
        def after_process_message(self, broker: Any, message: Any, **_: Any) -> None:
            message.options["note"] = message.options["retries"] * 10

    settlement = run_one(MemoryBroker(Note(), Retries()), fail).settlement
    assert Message.decode(settlement.retry.body).options["note"] == 10


ERRORS = [RuntimeError, MiddlewareError, SkipMessage]
HOOKS = ["before_process_message", "after_process_message", "before_ack", "before_nack", "before_enqueue", "wrap"]


@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("function", [fail, lambda: None], ids=["failure", "success"])
@pytest.mark.parametrize("max_retries", [0, 1])
def test_there_is_always_a_settlement(
    hook: str, error: type[Exception], function: Callable[..., Any], max_retries: int
) -> None:
    """No hook that raises, whatever and wherever, keeps a message from being settled."""

    def broken(_self: Any, *_args: Any, **_kwargs: Any) -> None:
        raise error("broken")

    broker = MemoryBroker(Retries(max_retries=max_retries), type("Broken", (Middleware,), {hook: broken})())
    assert run_one(broker, function).settlement is not None


class Onion(Middleware):
    def wrap(self, broker: Any, message: Any, call_next: Callable[[], Any]) -> Any:
        return call_next()


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("max_retries", [0, 1])
def test_a_failure_leaves_no_cycle(max_retries: int, wrapped: bool, caplog: pytest.LogCaptureFixture) -> None:
    """What an actor that raised had in its hands is free at once, without the garbage collector: a failure must not
    keep a large object until some later collection."""
    caplog.set_level("CRITICAL", "greenroom")  # what pytest captures holds the traceback

    class Large:
        pass

    large: list[weakref.ref[Large]] = []

    def hold_and_fail() -> None:
        held = Large()
        large.append(weakref.ref(held))
        raise RuntimeError

    run = run_one(MemoryBroker(Retries(max_retries=max_retries), *([Onion()] if wrapped else [])), hold_and_fail)
    assert run._exception is None
    assert large[0]() is None
