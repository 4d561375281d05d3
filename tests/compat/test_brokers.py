"""Brokers: declarations, middleware and their hooks, consuming by hand."""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from typing import Any

import pytest

import greenroom as dramatiq
import greenroom.broker
from greenroom.brokers.sqlite import SqliteBroker
from greenroom.brokers.stub import StubBroker
from greenroom.middleware import AgeLimit, Middleware, MiddlewareError, Retries, default_middleware


class Recorder(Middleware):
    """Notes the hooks that were called, and may raise in one."""

    def __init__(self, name: str, calls: list[tuple[str, str]], raises: dict[str, Exception] | None = None) -> None:
        self.name = name
        self.calls = calls
        self.raises = raises or {}

    def note(self, hook: str) -> None:
        self.calls.append((self.name, hook))
        if hook in self.raises:
            raise self.raises[hook]

    def before_enqueue(self, broker: Any, message: Any, delay: int | None) -> None:
        self.note("before_enqueue")

    def after_enqueue(self, broker: Any, message: Any, delay: int | None) -> None:
        self.note("after_enqueue")

    def after_declare_actor(self, broker: Any, actor: Any) -> None:
        self.note(f"after_declare_actor {actor.actor_name}")

    def after_declare_queue(self, broker: Any, queue_name: str) -> None:
        self.note(f"after_declare_queue {queue_name}")

    def after_declare_delay_queue(self, broker: Any, queue_name: str) -> None:
        self.note(f"after_declare_delay_queue {queue_name}")


def send(broker: dramatiq.Broker) -> None:
    dramatiq.actor(lambda: None, actor_name="a", broker=broker).send()


def test_the_default_broker_is_what_was_set(broker: StubBroker) -> None:
    """``get_broker`` answers what ``set_broker`` was told, and so does ``greenroom.broker.global_broker``."""
    assert dramatiq.get_broker() is broker is greenroom.broker.global_broker


def test_none_means_the_default_middleware_and_an_empty_list_none() -> None:
    """``middleware=None`` is one of each default; ``[]`` is allowed."""
    assert [type(m) for m in StubBroker().middleware] == default_middleware
    assert StubBroker(middleware=[]).middleware == []


def test_middleware_is_added_at_the_end_before_or_after() -> None:
    """``before=`` and ``after=`` name a class that is there."""
    broker = StubBroker()
    first, middle, last = (Recorder(name, []) for name in ("first", "middle", "last"))
    broker.add_middleware(last)
    broker.add_middleware(first, before=AgeLimit)
    broker.add_middleware(middle, after=AgeLimit)
    assert broker.middleware[0] is first
    assert broker.middleware[2] is middle
    assert broker.middleware[-1] is last


def test_before_and_after_exclude_each_other() -> None:
    """Both at once is an ``AssertionError``; a class that is not there a ``ValueError``."""
    broker = StubBroker(middleware=[Retries()])
    with pytest.raises(AssertionError):
        broker.add_middleware(AgeLimit(), before=Retries, after=Retries)
    with pytest.raises(ValueError, match="AgeLimit"):
        broker.add_middleware(Recorder("r", []), before=AgeLimit)


def test_middleware_that_is_added_late_is_told_what_is_declared(broker: StubBroker) -> None:
    """It hears of the actors, the queues and their delayed sides that there are."""
    dramatiq.actor(lambda: None, actor_name="a", queue_name="q")
    calls: list[tuple[str, str]] = []
    broker.add_middleware(Recorder("r", calls))
    assert {hook for _, hook in calls} == {
        "after_declare_actor a",
        "after_declare_queue q",
        "after_declare_delay_queue q.DQ",
    }


def test_before_hooks_run_in_order_and_after_hooks_in_reverse() -> None:
    """The first in the list is the outermost."""
    calls: list[tuple[str, str]] = []
    broker = StubBroker(middleware=[Recorder("first", calls), Recorder("second", calls)])
    broker.declare_queue("default")
    calls.clear()
    broker.enqueue(dramatiq.Message("default", "a", (), {}, {}))
    assert calls == [
        ("first", "before_enqueue"),
        ("second", "before_enqueue"),
        ("second", "after_enqueue"),
        ("first", "after_enqueue"),
    ]


def test_an_error_in_a_hook_is_logged_and_swallowed(caplog: pytest.LogCaptureFixture) -> None:
    """Whatever but a ``MiddlewareError`` is critical in the log, and the other hooks run."""
    calls: list[tuple[str, str]] = []
    raises: dict[str, Exception] = {"before_enqueue": PermissionError(), "after_enqueue": MiddlewareError()}
    broker = StubBroker(middleware=[Recorder("bad", calls, raises), Recorder("good", calls)])
    send(broker)
    assert broker.queues["default"].qsize() == 1
    assert ("good", "before_enqueue") in calls
    assert ("good", "after_enqueue") in calls
    failures = [r for r in caplog.records if r.levelno == logging.CRITICAL]
    assert [r.getMessage().partition(" of ")[0] for r in failures] == [
        "Unexpected failure in before_enqueue",
        "Unexpected failure in after_enqueue",
    ]


def test_a_middleware_error_vetoes_an_enqueue() -> None:
    """From ``before_enqueue`` it reaches the sender, and nothing is sent."""
    broker = StubBroker(middleware=[Recorder("bad", [], {"before_enqueue": MiddlewareError("no")})])
    with pytest.raises(MiddlewareError, match="no"):
        send(broker)
    assert broker.queues["default"].qsize() == 0


def test_middleware_need_not_inherit() -> None:
    """An object that has some of the hooks is enough."""
    seen: list[str] = []

    class Duck:
        actor_options = frozenset({"quack"})

        def after_enqueue(self, broker: Any, message: Any, delay: int | None) -> None:
            seen.append(message.actor_name)

    broker = StubBroker(middleware=[])
    broker.add_middleware(Duck())  # type: ignore[arg-type]  # a duck
    dramatiq.actor(lambda: None, actor_name="a", broker=broker, quack=1).send()
    assert seen == ["a"]


def test_declared_names_are_told(broker: StubBroker) -> None:
    """Actors, queues and delayed sides can be listed."""
    dramatiq.actor(lambda: None, actor_name="a", queue_name="q")
    assert broker.get_declared_actors() == {"a"}
    assert broker.get_declared_queues() == {"q"}
    assert broker.get_declared_delay_queues() == {"q.DQ"}


def test_an_unknown_actor_is_not_found(broker: StubBroker) -> None:
    """``get_actor`` raises ``ActorNotFound`` and suggests the near name."""
    dramatiq.actor(lambda: None, actor_name="send_mail")
    with pytest.raises(dramatiq.ActorNotFound, match="send_mail"):
        broker.get_actor("send_mial")


def test_without_results_there_is_no_backend(broker: StubBroker) -> None:
    """``get_results_backend`` is a ``RuntimeError`` then."""
    with pytest.raises(RuntimeError, match="doesn't have a results backend"):
        broker.get_results_backend()


@pytest.mark.parametrize("method", ["enqueue", "flush_all", "consume", "flush", "join"])
def test_the_base_class_leaves_to_subclasses(method: str) -> None:
    """What a broker of one's own has to bring raises ``NotImplementedError``."""
    base = dramatiq.Broker()
    calls = {
        "enqueue": lambda: base.enqueue(dramatiq.Message("default", "a", (), {}, {})),
        "flush_all": base.flush_all,
        "consume": lambda: base.consume("default"),
        "flush": lambda: base.flush("default"),
        "join": lambda: base.join("default"),
    }
    with pytest.raises(NotImplementedError):
        calls[method]()


# --- message options that look misspelt


def test_a_misspelt_message_option_warns_once(broker: StubBroker, caplog: pytest.LogCaptureFixture) -> None:
    """Once an actor and option, and only if a known one is near."""
    add = dramatiq.actor(lambda: None, actor_name="add")
    for _ in range(2):
        add.send_with_options(time_limt=5, something_else=1)
    warnings = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert "'time_limt'" in warnings[0]
    assert "'time_limit'" in warnings[0]


def test_strict_options_raise() -> None:
    """With ``strict_options`` what nobody knows is an error, near or not, and nothing is sent."""
    broker = StubBroker(strict_options=True)
    add = dramatiq.actor(lambda: None, actor_name="add", broker=broker)
    for option in ("time_limt", "something_else"):
        with pytest.raises(ValueError, match=option):
            add.send_with_options(**{option: 5})
    assert broker.queues["default"].qsize() == 0


def test_options_that_a_middleware_lists_are_known() -> None:
    """``message_options`` says which options only messages have."""

    class Tracing(Middleware):
        @property
        def message_options(self) -> set[str]:
            return {"trace_id"}

    broker = StubBroker(middleware=[Tracing()], strict_options=True)
    dramatiq.actor(lambda: None, actor_name="add", broker=broker).send_with_options(trace_id="x")
    assert broker.queues["default"].qsize() == 1


def test_an_eta_that_is_no_number_is_now(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It is warned of, and the message is due at once."""
    broker = SqliteBroker(tmp_path / "q.db")
    broker.declare_queue("default")
    broker.enqueue(dramatiq.Message("default", "a", (), {}, {"eta": "soon"}))
    assert any("Invalid eta value for message" in r.getMessage() for r in caplog.records)
    assert broker.transport.counts(["default"])["default"].ready == 1
    broker.close()


# --- consuming by hand


@pytest.fixture
def sqlite(tmp_path: Path) -> Any:
    """A broker on a real engine."""
    broker = SqliteBroker(tmp_path / "q.db")
    yield broker
    broker.close()


def counts(broker: SqliteBroker) -> tuple[int, int, int]:
    found = broker.transport.counts(["default"])["default"]
    return found.ready, found.claimed, found.dead


def test_consume_ack_nack_and_requeue(sqlite: SqliteBroker) -> None:
    """A consumer hands out proxies, which it takes back done, failed or not started."""
    actor = dramatiq.actor(lambda x: x, actor_name="a", broker=sqlite)
    actor.send_many([(0,), (1,), (2,)])
    consumer = sqlite.consume("default", prefetch=3, timeout=0)
    done, failed, back = (next(consumer) for _ in range(3))
    assert isinstance(done, dramatiq.MessageProxy)
    assert isinstance(failed, dramatiq.MessageProxy)
    assert isinstance(back, dramatiq.MessageProxy)
    assert [m.args for m in (done, failed, back)] == [(0,), (1,), (2,)]
    consumer.ack(done)
    failed.stuff_exception(ValueError("why"))
    consumer.nack(failed)
    consumer.requeue([back])
    assert counts(sqlite) == (1, 0, 1)
    (letter,) = sqlite.transport.dead("default")
    assert (letter.error.type, letter.error.message) == ("ValueError", "why")
    consumer.close()


def test_an_idle_consumer_yields_none(sqlite: SqliteBroker) -> None:
    """After the timeout, or while as many as ``prefetch`` are not settled."""
    actor = dramatiq.actor(lambda x: x, actor_name="a", broker=sqlite)
    consumer = sqlite.consume("default", prefetch=1, timeout=0)
    assert next(consumer) is None
    actor.send_many([(0,), (1,)])
    held = next(consumer)
    assert held is not None
    assert next(consumer) is None
    consumer.ack(held)
    second = next(consumer)
    assert second is not None
    assert second.args == (1,)
    consumer.close()


def test_a_closed_consumer_gives_back(sqlite: SqliteBroker) -> None:
    """What was not settled is there for others."""
    dramatiq.actor(lambda x: x, actor_name="a", broker=sqlite).send_many([(0,), (1,)])
    consumer = sqlite.consume("default", prefetch=2, timeout=0)
    next(consumer)
    assert counts(sqlite) == (0, 2, 0)
    consumer.close()
    assert counts(sqlite) == (2, 0, 0)


def test_a_consumer_outlives_garbage(sqlite: SqliteBroker) -> None:
    """What cannot be decoded goes to the dead letters, the next message comes."""
    from greenroom.ports.transport import Envelope

    actor = dramatiq.actor(lambda x: x, actor_name="a", broker=sqlite)
    sqlite.transport.push([Envelope("default", "garbage", b"garbage")])
    actor.send(1)
    consumer = sqlite.consume("default", prefetch=2, timeout=0)
    found = next(consumer)
    assert found is not None
    assert found.args == (1,)
    assert counts(sqlite) == (0, 1, 1)
    consumer.close()


@pytest.mark.parametrize("prefetch", [1, 2])
def test_another_thread_may_settle_while_one_waits(sqlite: SqliteBroker, prefetch: int) -> None:
    """It does not wait for the idle timeout, and with its place free the next message comes at once."""
    actor = dramatiq.actor(lambda x: x, actor_name="a", broker=sqlite)
    actor.send(0)
    consumer = sqlite.consume("default", prefetch=prefetch, timeout=20_000)
    first = next(consumer)
    assert first is not None
    found: list[Any] = []
    waiting = threading.Thread(target=lambda: found.append(next(consumer)))
    waiting.start()
    consumer.ack(first)
    actor.send(1)
    waiting.join(10)
    assert not waiting.is_alive()
    assert [message.args for message in found] == [(1,)]
    consumer.close()
