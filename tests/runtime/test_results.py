"""Results through a worker: on both engines, in a store that is not the broker's, and in a backend of a user's own."""

from __future__ import annotations

import asyncio
import gc
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

import greenroom
from greenroom import Message, Middleware, actor
from greenroom.brokers.stub import StubBroker
from greenroom.engines.redis.transport import RedisTransport
from greenroom.errors import (
    BrokerError,
    BrokerFull,
    EncodeError,
    ResultFailure,
    ResultMissing,
    ResultPending,
    ResultTimeout,
    SkipMessage,
)
from greenroom.middleware import default_middleware
from greenroom.ports.store import Get
from greenroom.results import Missing, ResultBackend, Results
from greenroom.results.backends import RedisBackend, SqliteBackend, StoreBackend, StubBackend
from greenroom.runtime import store_writer
from greenroom.testing.inline import InlineBroker
from tests.runtime.cli_kit import wait_until
from tests.runtime.worker_kit import ENGINES, EngineTestBroker, Gate, Troubled, make_broker, wait_for_orders, working


class Mine(ResultBackend):
    """A backend as a user would write it. It can be held up, and fail."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: dict[str, bytes] = {}
        self.threads: set[str] = set()
        self.errors: list[Exception] = []
        self.gate = threading.Event()
        self.gate.set()

    def _get(self, message_key: str) -> Any:
        data = self.kept.get(message_key)
        return Missing if data is None else self.encoder.decode(data)

    def _store(self, message_key: str, result: Any, ttl: int) -> None:
        self.threads.add(threading.current_thread().name)
        assert self.gate.wait(30)
        data = self.encoder.encode(result)
        if self.errors:
            raise self.errors.pop(0)
        self.kept[message_key] = data


class DownStore:
    """A store that fails while it is told to."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.error: Exception | None = None
        self.failed = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def apply(self, ops: Sequence[Any]) -> list[Any]:
        if self.error is not None:
            self.failed += 1
            raise self.error
        return self.inner.apply(ops)


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two tries of a store writer; the tests are about how many there are."""
    monkeypatch.setattr(store_writer, "FIRST_WAIT_S", 0.01)
    monkeypatch.setattr(store_writer, "LONGEST_WAIT_S", 0.05)


def url_for(request: pytest.FixtureRequest) -> str | None:
    """Where the server is, for those that need one."""
    return request.getfixturevalue("redis_url") if "redis" in request.param else None


@pytest.fixture(params=[*ENGINES, "redis"])
def broker(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[EngineTestBroker]:
    """A broker that keeps results itself."""
    broker = make_broker(request.param, tmp_path, url=url_for(request))
    broker.add_middleware(Results(store_results=True))
    yield broker
    broker.close()


@pytest.fixture(params=["memory", "sqlite", "redis", "elsewhere", "stub", "in redis", "beside in redis", "mine"])
def any_broker(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[EngineTestBroker]:
    """The same, and brokers whose results are kept elsewhere."""
    backends: dict[str, Callable[[], ResultBackend]] = {
        "elsewhere": lambda: SqliteBackend(tmp_path / "results.db"),
        "stub": StubBackend,
        "in redis": lambda: RedisBackend(url=url_for(request)),
        "beside in redis": lambda: RedisBackend(url=url_for(request)),
        "mine": Mine,
    }
    make = backends.get(request.param)
    backend = make() if make is not None else None
    beside = "redis" if request.param == "beside in redis" else "memory"
    broker = make_broker(request.param if backend is None else beside, tmp_path, url=url_for(request))
    broker.add_middleware(Results(backend=backend, store_results=True))
    yield broker
    broker.close()
    if isinstance(backend, (SqliteBackend, RedisBackend)):
        backend.close()


def outcome(broker: Any, message: Message[Any], timeout: int = 20_000) -> Any:
    """The result of a message, or what it failed with."""
    backend = broker.get_results_backend()
    try:
        return message.get_result(backend=backend, block=True, timeout=timeout)
    except ResultFailure as e:
        return (e.orig_exc_type, e.orig_exc_msg)


# --- what is kept


def test_what_actors_return(any_broker: EngineTestBroker) -> None:
    """Every value is there, None too; for sync and for async actors."""
    echo = actor(lambda value=None: value, broker=any_broker, actor_name="echo")

    async def later(value: Any = None) -> Any:
        return value

    alater = actor(later, broker=any_broker, actor_name="later")
    values = [None, 0, "x", [1, {"a": 2.5}], {"__t": "dramatiq.results.Result", "exn": {"type": "A", "msg": "b"}}]
    messages = [work.send(value) for work in (echo, alater) for value in values]
    with working(any_broker, 2):
        assert [outcome(any_broker, message) for message in messages] == values * 2


def test_what_actors_fail_with(any_broker: EngineTestBroker) -> None:
    """Type, text and traceback, as text, once no attempt is left; the class is not looked up."""

    def fail() -> None:
        raise LookupError("nowhere")

    message = actor(fail, broker=any_broker, actor_name="fail", max_retries=1, min_backoff=1, max_backoff=1).send()
    with working(any_broker), pytest.raises(ResultFailure, match=r"^actor raised LookupError: nowhere$") as e:
        message.get_result(backend=any_broker.get_results_backend(), block=True)
    assert 'raise LookupError("nowhere")' in e.value.traceback


def test_other_ends(any_broker: EngineTestBroker) -> None:
    """What was skipped has the result None, as in Dramatiq; what has expired, or nobody knows, has failed."""

    class Skips(Middleware):
        def before_process_message(self, broker: Any, message: Any) -> None:
            if message.args:
                raise SkipMessage("not today")

    any_broker.add_middleware(Skips())
    any_broker.unknown_actor_ttl_ms = 0
    work = actor(lambda *args: 1, broker=any_broker, actor_name="work", max_age=10_000)
    skipped, done = work.send(1), work.send()
    expired = work.send_with_options(max_age=0)
    stranger = any_broker.enqueue(Message("default", "stranger", (), {}, {}))
    with working(any_broker):
        assert outcome(any_broker, skipped) is None
        assert outcome(any_broker, done) == 1
        assert outcome(any_broker, expired) == ("SkipMessage", "Message age limit exceeded")
        assert outcome(any_broker, stranger)[0] == "ActorNotFound"


def test_an_actor_may_keep_nothing(any_broker: EngineTestBroker, caplog: pytest.LogCaptureFixture) -> None:
    """With ``store_results=False`` there is no result, and a hint, once, that one was thrown away."""
    work = actor(lambda: 1, broker=any_broker, actor_name="work", store_results=False)
    messages = [work.send(), work.send()]
    with working(any_broker):
        any_broker.wait_until_empty()
    with pytest.raises(ResultMissing):
        messages[0].get_result(backend=any_broker.get_results_backend())
    assert caplog.text.count("the value has been discarded") == 1
    assert "its store_results option is not True" in caplog.text


@pytest.mark.parametrize(
    ("make", "kind", "text"),
    [
        (object, "ResultEncodeError", "a result of type object cannot be encoded"),
        (lambda: float("nan"), "ResultEncodeError", "a result of type float cannot be encoded"),
        (lambda: (n for n in (1, 2)), "ResultEncodeError", "a result of type generator cannot be encoded"),
        (lambda: b"x", "ResultEncodeError", "a result of type bytes cannot be encoded"),
        (lambda: asyncio.sleep(0), "ResultEncodeError", "a result of type coroutine cannot be encoded"),
        (lambda: {1: {2}}, "ResultEncodeError", "a result of type dict cannot be encoded"),
    ],
)
def test_what_cannot_be_encoded(any_broker: EngineTestBroker, make: Callable[[], Any], kind: str, text: str) -> None:
    """F104: the task is done, once, and in the place of its result stands an error that says what was wrong."""
    runs = []

    def work() -> Any:
        runs.append(1)
        return make()

    message = actor(work, broker=any_broker, actor_name="work").send()
    with working(any_broker):
        found, why = outcome(any_broker, message)
        any_broker.wait_until_empty()
    assert (found, runs) == (kind, [1])
    assert text in why
    assert any_broker.dead() == []
    gc.collect()  # a coroutine that nobody closes would warn here


def test_what_is_too_large(broker: EngineTestBroker) -> None:
    """F104: the same for a result beyond the limit; one below it is kept."""
    broker.middleware = [*(m() for m in default_middleware), Results(store_results=True, max_result_bytes=1000)]
    work = actor(lambda size: "x" * size, broker=broker, actor_name="work")
    small, large, huge = work.send(998), work.send(999), work.send(5000)
    with working(broker):
        assert outcome(broker, huge) == ("ResultTooLarge", "the result has 5000 bytes; at most 1000 are kept")
        assert outcome(broker, small) == "x" * 998
        assert outcome(broker, large) == ("ResultTooLarge", "the result has 1001 bytes; at most 1000 are kept")
        broker.wait_until_empty()
    assert broker.dead() == []


def test_the_time_to_live(broker: EngineTestBroker, tmp_path: Path) -> None:
    """A result is gone after its TTL."""
    work = actor(lambda: 1, broker=broker, actor_name="work", result_ttl=1)
    message = work.send()
    with working(broker):
        broker.wait_until_empty()
        wait_until(lambda: broker.store.apply([Get(f"r:{message.message_id}")]) == [None], "it has expired")


# --- while there is none


def test_a_retry_says_what_it_waits_for(broker: EngineTestBroker) -> None:
    """After a failed attempt whoever asks learns how many there were, the last error, and when the next one is due."""

    def fail() -> None:
        raise ValueError("no")

    message = actor(fail, broker=broker, actor_name="fail", min_backoff=3_600_000).send()
    before_ms = broker.clock.now_ms()
    with working(broker):
        wait_until(lambda: broker.counts().delayed, "it has failed once")
    with pytest.raises(ResultPending) as pending:
        broker.get_result(message.message_id)
    with pytest.raises(ResultTimeout) as timeout:
        broker.get_result(message.message_id, block=True, timeout=10)
    for error in (pending.value, timeout.value):
        assert (error.state, error.attempts, error.last_error) == ("retrying", 1, "ValueError: no")
        assert error.next_attempt_ms is not None
        assert error.next_attempt_ms >= before_ms + 3_600_000


def test_a_waiter_is_woken(broker: EngineTestBroker) -> None:
    """It waits before there is a result, on a thread and on a loop, and looks again only when something changed."""
    gate = Gate()
    work = actor(lambda: (gate(1), 5)[1], broker=broker, actor_name="work")
    message = work.send()
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(outcome(broker, message)))
    thread.start()

    async def wait() -> Any:
        asyncio.get_running_loop().call_later(0.05, gate.open)
        return await broker.aget_result(message.message_id, block=True, timeout=20_000)

    with working(broker):
        gate.wait_for(1)
        assert asyncio.run(wait()) == 5
        thread.join(20)
    assert found == [5]


# --- with the settlement, or not at all


def test_a_result_is_dropped_with_a_lost_lease(broker: EngineTestBroker, tmp_path: Path) -> None:
    """Who was taken for dead meanwhile writes no result: the one that runs the message now does."""
    gate = Gate()
    message = actor(lambda: (gate(1), "late")[1], broker=broker, actor_name="work").send()
    with working(broker) as worker:
        gate.wait_for(1)
        worker.pause()  # it shall not run the message itself
        wait_for_orders(worker)
        if (tmp_path / "q.db").exists():
            with sqlite3.connect(tmp_path / "q.db") as connection:
                connection.execute("update message set lease = lease + 1000000")
            connection.close()
        elif isinstance(broker.transport, RedisTransport):
            share = broker.transport.share
            share.call("ZADD", share.keys.leases, 0, worker._pump.consumer._owner.id)
        else:
            worker._pump.consumer.abandon()
        gate.open()
        wait_until(lambda: worker.stale_leases, "the settlement came too late")
    with pytest.raises(ResultPending):
        broker.get_result(message.message_id)


def test_result_and_settlement_are_one_step(tmp_path: Path) -> None:
    """While the trip that settles fails there is no result either."""
    broker = make_broker("sqlite", tmp_path)
    broker.transport = troubled = Troubled(broker.transport)
    broker.add_middleware(Results(store_results=True))
    message = actor(lambda: 1, broker=broker, actor_name="work").send()
    failures = []

    def fail_twice(settle: Sequence[Any], limit: int) -> None:
        if settle and len(failures) < 2:
            with pytest.raises(ResultPending):
                broker.get_result(message.message_id)
            failures.append(1)
            raise BrokerFull("full")

    troubled.before = fail_twice
    with working(broker):
        assert outcome(broker, message) == 1
    assert len(failures) == 2
    broker.close()


# --- F117: a store that is not the broker


def test_the_store_is_down(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """F117: three tries, then the task is done without its result, which is logged and counted; later ones are kept."""
    store = DownStore(StubBroker([]).store)
    broker = make_broker("memory", tmp_path)
    broker.add_middleware(Results(backend=StoreBackend(store), store_results=True))
    work = actor(lambda: 1, broker=broker, actor_name="work")
    store.error = BrokerError("down")
    lost = work.send()
    with working(broker) as worker:
        broker.wait_until_empty()
        assert (store.failed, worker.results_lost) == (3, 1)
        store.error = None
        assert outcome(broker, work.send()) == 1
    assert f"result_lost: what was to be kept of message {lost.message_id}" in caplog.text
    assert broker.dead() == []


@pytest.mark.parametrize("error", [BrokerError("down"), BrokerFull("full"), OSError("gone")])
def test_strict_results_wait(tmp_path: Path, error: Exception) -> None:
    """F117: with ``strict`` the message stays claimed until its result is kept, whatever the store says."""
    store = DownStore(StubBroker([]).store)
    broker = make_broker("memory", tmp_path)
    broker.add_middleware(Results(backend=StoreBackend(store), store_results=True, strict=True))
    store.error = error
    message = actor(lambda: 1, broker=broker, actor_name="work").send()
    with working(broker) as worker:
        wait_until(lambda: store.failed > 5, "it was tried more than three times")
        assert broker.counts().claimed == 1
        store.error = None
        assert outcome(broker, message) == 1
        assert worker.results_lost == 0


def test_a_slow_backend_holds_nobody_up(tmp_path: Path) -> None:
    """F117: while a user's backend hangs, actors run and other messages are settled."""
    mine = Mine()
    broker = make_broker("memory", tmp_path)
    broker.add_middleware(Results(backend=mine))
    slow = actor(lambda: 1, broker=broker, actor_name="slow", store_results=True)
    quick = actor(lambda: None, broker=broker, actor_name="quick")
    mine.gate.clear()
    messages = [slow.send() for _ in range(3)]
    with working(broker, 1):
        wait_until(lambda: mine.threads, "the backend hangs")
        for _ in range(20):
            quick.send()
        wait_until(lambda: broker.counts().claimed + broker.counts().ready == 3, "the others are done")
        mine.gate.set()
        assert [outcome(broker, message) for message in messages] == [1, 1, 1]
        broker.wait_until_empty()
    assert mine.threads == {"store-writer"}


def test_a_backend_that_fails(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """F117: whatever a user's backend raises, the task is done; what it could not encode stands there as an error."""
    mine = Mine()
    broker = make_broker("memory", tmp_path)
    broker.add_middleware(Results(backend=mine, store_results=True))
    mine.errors = [OSError("away")] * 3
    work = actor(lambda: 1, broker=broker, actor_name="work")
    message = work.send()
    with working(broker) as worker:
        broker.wait_until_empty()
        assert worker.results_lost == 1
        with pytest.raises(ResultMissing):
            message.get_result(backend=mine)
        mine.errors = [EncodeError("bad value")]
        assert outcome(broker, work.send())[0] == "ResultEncodeError"


def test_stopping_with_a_store_that_is_down(tmp_path: Path) -> None:
    """F117: a worker stops within its grace, and the message is not lost: another one runs it, and keeps its result."""
    store = DownStore(StubBroker([]).store)
    broker = make_broker("sqlite", tmp_path)
    broker.add_middleware(Results(backend=StoreBackend(store), store_results=True, strict=True))
    store.error = BrokerError("down")
    message = actor(lambda: 1, broker=broker, actor_name="work").send()
    with working(broker, timeout_ms=200):
        wait_until(lambda: store.failed > 3, "it was tried")
    assert broker.counts().ready == 1
    store.error = None
    with working(broker):
        assert outcome(broker, message) == 1
    broker.close()


# --- elsewhere


def test_results_of_a_broker_of_ones_own() -> None:
    """A broker in Dramatiq's style has no store: results go where ``backend`` says, retries come in between."""
    from tests.compat.test_own_broker import ListBroker

    broker = ListBroker()
    backend = StoreBackend(StubBroker([]).store)
    broker.add_middleware(Results(backend=backend, store_results=True))
    tries: list[int] = []

    def work() -> int:
        tries.append(1)
        if len(tries) < 3:
            raise ValueError("not yet")
        return 3

    message = actor(work, broker=broker, actor_name="work", min_backoff=1, max_backoff=1).send()
    with working(broker):
        assert outcome(broker, message) == 3


@pytest.mark.parametrize("backend", [None, StubBackend()])
def test_inline(backend: ResultBackend | None) -> None:
    """In inline mode the result is there when ``send`` returns."""
    broker = InlineBroker(fail_fast_default=False)
    broker.add_middleware(Results(backend=backend, store_results=True))
    work = actor(lambda x: 1 // x, broker=broker, actor_name="work", max_retries=0)
    assert outcome(broker, work.send(1), 0) == 1
    assert outcome(broker, work.send(0), 0) == ("ZeroDivisionError", "integer division or modulo by zero")
    stranger = broker.enqueue(Message("default", "stranger", (), {}, {}))
    assert outcome(broker, stranger, 0)[0] == "ActorNotFound"


def test_the_default_brokers_backend(broker: EngineTestBroker) -> None:
    """``message.get_result()`` asks the default broker, on threads and loops, and inside of actors."""
    greenroom.set_broker(broker)
    try:
        inner = actor(lambda: 20, broker=broker, actor_name="inner")
        outer = actor(lambda: inner.send().get_result(block=True) + 1, broker=broker, actor_name="outer")
        message = outer.send()
        with working(broker, 2):
            assert message.get_result(block=True) == 21
            assert asyncio.run(message.aget_result(block=True)) == 21
    finally:
        greenroom.broker.global_broker = None


def test_an_actor_that_waits_can_be_interrupted(broker: EngineTestBroker) -> None:
    """A time limit ends the wait for a result that never comes."""
    never = actor(lambda: None, broker=broker, actor_name="never", queue_name="unserved")

    def wait() -> None:
        never.send().get_result(backend=broker.get_results_backend(), block=True, timeout=600_000)

    message = actor(wait, broker=broker, actor_name="wait", time_limit=50, max_retries=0).send()
    with working(broker, queues=["default"]):
        assert outcome(broker, message)[0] == "TimeLimitExceeded"
