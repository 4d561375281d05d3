"""Results: the forms in which they are kept, keys, and what whoever asks is told."""

from __future__ import annotations

import asyncio
import hashlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from greenroom import JSONEncoder, Message, PickleEncoder, actor
from greenroom.brokers.sqlite import SqliteBroker
from greenroom.brokers.stub import StubBroker
from greenroom.errors import (
    ResultFailure,
    ResultMissing,
    ResultPending,
    ResultTimeout,
    ResultUnknown,
)
from greenroom.ports.store import Get
from greenroom.results import Missing, ResultBackend, Results
from greenroom.results.backends import SqliteBackend, StoreBackend, StubBackend
from greenroom.results.middleware import PENDING_TTL
from greenroom.results.result import pending_of, unwrap_result, wrap_exception, wrap_pending, wrap_result
from greenroom.testing.clock import ManualClock

MESSAGE: Message[Any] = Message("default", "work", (1,), {}, {}, "id-1")


class Mine(ResultBackend):
    """A backend as a user would write it."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.kept: dict[str, Any] = {}
        self.looks = 0
        self.appears_at_look = 0

    def _get(self, message_key: str) -> Any:
        self.looks += 1
        return Missing if self.looks < self.appears_at_look else self.kept.get(message_key, Missing)

    def _store(self, message_key: str, result: Any, ttl: int) -> None:
        self.kept[message_key] = result


@pytest.fixture(params=["stub", "sqlite", "own"])
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[StoreBackend]:
    """Each backend on a store."""
    if request.param == "stub":
        yield StubBackend(namespace=str(tmp_path))
    elif request.param == "own":
        yield StoreBackend(StubBroker([]).store)
    else:
        backend = SqliteBackend(tmp_path / "results.db")
        yield backend
        backend.close()


# --- forms


@pytest.mark.parametrize("value", [None, 0, "text", [1], {"a": 1}, {"__t": "other"}])
def test_a_value_is_kept_as_it_is(value: Any) -> None:
    """As Dramatiq keeps it."""
    assert wrap_result(value) == value
    assert unwrap_result(value) == value


def test_a_value_that_looks_like_a_form() -> None:
    """It comes back as what it was, and is no failure."""
    for value in (wrap_exception(ValueError("no")), wrap_pending("enqueued"), wrap_result(wrap_pending("delayed"))):
        assert unwrap_result(wrap_result(value)) == value
        assert pending_of(wrap_result(value)) is None


def test_what_dramatiq_has_kept_of_a_failure_is_read() -> None:
    """Type and text are there; there is no traceback."""
    with pytest.raises(ResultFailure, match=r"^actor raised RuntimeError: failed$") as e:
        unwrap_result({"__t": "dramatiq.results.Result", "exn": {"type": "RuntimeError", "msg": "failed"}})
    assert (e.value.orig_exc_type, e.value.orig_exc_msg, e.value.traceback) == ("RuntimeError", "failed", "")


def test_a_failure_is_text() -> None:
    """What is kept has the keys that Dramatiq reads, and the traceback."""
    try:
        raise ValueError("no")
    except ValueError as e:
        kept = wrap_exception(e)
    assert kept["__t"] == "dramatiq.results.Result"
    assert (kept["exn"]["type"], kept["exn"]["msg"]) == ("ValueError", "no")
    with pytest.raises(ResultFailure) as failure:
        unwrap_result(kept)
    assert 'raise ValueError("no")' in failure.value.traceback


@pytest.mark.parametrize("exn", [{}, {"type": 1, "msg": None}, {"type": "os", "exc_module": "os", "msg": "system"}])
def test_what_others_have_kept_of_a_failure_does_no_harm(exn: dict[str, Any]) -> None:
    """Whatever stands there is text: nothing is looked up by name."""
    with pytest.raises(ResultFailure):
        unwrap_result({"__t": "dramatiq.results.Result", "exn": exn})


# --- backends of a user's own


def test_keys() -> None:
    """The key is an MD5 hash of namespace, queue, actor and id, or that text itself; a delayed message has the same."""
    text = "dramatiq-results:default:work:id-1"
    assert Mine().build_message_key(MESSAGE) == hashlib.md5(text.encode()).hexdigest()
    assert Mine(use_namespace_prefix_keys=True).build_message_key(MESSAGE) == text
    assert Mine(namespace="mine", use_namespace_prefix_keys=True).build_message_key(
        MESSAGE.copy(queue_name="default.DQ")
    ) == text.replace("dramatiq-results", "mine")


def test_it_is_asked_again_until_there_is_a_result() -> None:
    """At growing distances."""
    backend = Mine()
    backend.store_result(MESSAGE, 7, 1000)
    backend.appears_at_look = 3
    assert backend.get_result(MESSAGE, block=True) == 7
    assert backend.looks == 3
    backend.looks = 0
    assert asyncio.run(backend.aget_result(MESSAGE, block=True)) == 7
    assert backend.looks == 3


def test_the_last_look_is_at_the_end_of_the_timeout() -> None:
    """What comes within the timeout is found, however long the distances have become."""
    backend = Mine()
    with pytest.raises(ResultTimeout, match="within 120 ms"):
        backend.get_result(MESSAGE, block=True, timeout=120)
    assert backend.looks >= 3
    with pytest.raises(ResultTimeout):
        asyncio.run(backend.aget_result(MESSAGE, block=True, timeout=1))


def test_no_result_and_no_wait() -> None:
    """Without ``block`` it is one look, and ``ResultMissing``."""
    backend = Mine()
    with pytest.raises(ResultMissing):
        backend.get_result(MESSAGE)
    with pytest.raises(ResultMissing):
        asyncio.run(backend.aget_result(MESSAGE))
    assert backend.looks == 2


def test_a_failure_is_kept_and_raised() -> None:
    """By the class's name and the text."""
    backend = Mine()
    backend.store_exception(MESSAGE, ValueError("no"), 1000)
    with pytest.raises(ResultFailure, match=r"^actor raised ValueError: no$"):
        backend.get_result(MESSAGE)


def test_a_backend_with_its_own_way_to_wait() -> None:
    """``aget_result`` uses it, on a thread."""

    class Waits(Mine):
        def get_result(self, message: Any, *, block: bool = False, timeout: int | None = None) -> Any:
            return (block, timeout)

    assert asyncio.run(Waits().aget_result(MESSAGE, block=True, timeout=5)) == (True, 5)


def test_what_a_backend_has_to_bring() -> None:
    """The base class alone keeps nothing."""
    with pytest.raises(NotImplementedError, match="_get"):
        ResultBackend().get_result(MESSAGE)
    with pytest.raises(NotImplementedError, match="_store"):
        ResultBackend().store_result(MESSAGE, 1, 1)
    with pytest.raises(RuntimeError, match="by the message's id alone"):
        ResultBackend().get_result("id-1")
    assert repr(Missing) == "Missing"


# --- backends on a store


def test_kept_and_read(backend: StoreBackend) -> None:
    """Any value, also None, which is not the same as nothing."""
    with pytest.raises(ResultMissing) as e:
        backend.get_result(MESSAGE)
    assert type(e.value) is ResultMissing
    for value in (None, 0, [1, {"a": None}], "x" * 100_000):
        backend.store_result(MESSAGE, value, 60_000)
        assert backend.get_result(MESSAGE) == value
        assert asyncio.run(backend.aget_result(MESSAGE)) == value


def test_failures_are_kept(backend: StoreBackend) -> None:
    """With the traceback as text."""
    backend.store_exception(MESSAGE, ValueError("no"), 60_000)
    with pytest.raises(ResultFailure, match="actor raised ValueError: no") as e:
        backend.get_result(MESSAGE, block=True)
    assert "ValueError: no" in e.value.traceback


def test_timeouts(backend: StoreBackend) -> None:
    """A wait ends, in threads and in coroutines, and says how long it was."""
    with pytest.raises(ResultTimeout, match="There was no result of work\\(1\\) within 30 ms"):
        backend.get_result(MESSAGE, block=True, timeout=30)
    with pytest.raises(ResultTimeout) as e:
        asyncio.run(backend.aget_result(MESSAGE, block=True, timeout=0))
    assert (e.value.state, e.value.attempts, e.value.last_error, e.value.next_attempt_ms) == (None, 0, None, None)


def test_a_mark_is_no_result(backend: StoreBackend) -> None:
    """While a result is to come whoever asks is told what is known, and the extension points see nothing."""
    mark = wrap_pending("retrying", attempts=2, last_error="ValueError: no", next_attempt_ms=5)
    key = backend.build_message_key(MESSAGE)
    backend._store(key, mark, 60_000)
    assert backend._get(key) is Missing
    with pytest.raises(ResultPending, match="retrying, 2 failed, the last with ValueError: no") as pending:
        backend.get_result(MESSAGE)
    with pytest.raises(ResultTimeout) as timeout:
        backend.get_result(MESSAGE, block=True, timeout=1)
    for error in (pending.value, timeout.value):
        assert error.state == "retrying"
        assert (error.attempts, error.last_error, error.next_attempt_ms) == (2, "ValueError: no", 5)


def test_a_mark_that_others_have_made(backend: StoreBackend) -> None:
    """Of what nobody of ours writes the parts that make sense are told."""
    key = backend.build_message_key(MESSAGE)
    backend._store(key, {"__t": "dramatiq.results.Result", "pending": {"attempts": "x", "other": 1}}, 60_000)
    with pytest.raises(ResultPending) as e:
        backend.get_result(MESSAGE)
    assert e.value.attempts == 0


def test_a_result_expires(tmp_path: Path) -> None:
    """After its TTL by the store's clock it is missing."""
    clock = ManualClock()
    backend = StoreBackend(StubBroker([], clock=clock).store)
    backend.store_result(MESSAGE, 1, 1000)
    assert backend.get_result(MESSAGE) == 1
    clock.tick(1001)
    with pytest.raises(ResultMissing):
        backend.get_result(MESSAGE)


def test_by_id_alone() -> None:
    """A backend on a store of its own needs no more; the stub has Dramatiq's keys, and says so."""
    backend = StoreBackend(StubBroker([]).store)
    backend.store_result(MESSAGE, 3, 1000)
    assert backend.get_result("id-1") == 3
    with pytest.raises(RuntimeError, match="StubBackend does not find results by the message's id alone"):
        StubBackend().get_result("id-1")


def test_namespaces_keep_apart() -> None:
    """Programs that share a store and differ in their namespace do not see each other's results."""
    store = StubBroker([]).store
    ours, theirs = StoreBackend(store), StoreBackend(store, namespace="theirs")
    ours.store_result(MESSAGE, 1, 1000)
    theirs.store_result(MESSAGE, 2, 1000)
    assert (ours.get_result(MESSAGE), theirs.get_result(MESSAGE)) == (1, 2)


def test_all_stubs_are_one() -> None:
    """As in Dramatiq: a test's backend and its program's need not be the same object."""
    message: Message[Any] = Message("default", "work", (), {}, {})
    StubBackend().store_result(message, 1, 60_000)
    assert StubBackend().get_result(message) == 1


def test_another_encoder() -> None:
    """Values become bytes by the backend's own encoder."""
    backend = StoreBackend(StubBroker([]).store, encoder=PickleEncoder())
    backend.store_result(MESSAGE, {1, 2}, 1000)
    assert backend.get_result(MESSAGE) == {1, 2}
    assert isinstance(StoreBackend(StubBroker([]).store).encoder, JSONEncoder)


# --- the middleware


def results_broker(**options: Any) -> tuple[StubBroker, Results]:
    results = Results(**options)
    broker = StubBroker()
    broker.add_middleware(results)
    return broker, results


def test_marks_are_made_with_the_push() -> None:
    """A message whose result is kept leaves a mark when it is sent, also when it is delayed; others leave none."""
    clock = ManualClock()
    broker = StubBroker(clock=clock)
    broker.add_middleware(Results())
    keeps = actor(lambda: None, broker=broker, actor_name="keeps", store_results=True)
    other = actor(lambda: None, broker=broker, actor_name="other")
    with pytest.raises(ResultPending) as e:
        broker.get_result(keeps.send().message_id)
    assert (e.value.state, e.value.attempts, e.value.next_attempt_ms) == ("enqueued", 0, None)
    with pytest.raises(ResultPending) as e:
        broker.get_result(keeps.send_with_options(delay=1000).message_id)
    assert (e.value.state, e.value.next_attempt_ms) == ("delayed", clock.now_ms() + 1000)
    with pytest.raises(ResultUnknown, match="never sent with store_results, or its result has expired"):
        broker.get_result(other.send().message_id)
    with pytest.raises(ResultPending):
        broker.get_result(other.send_with_options(store_results=True).message_id)
    with pytest.raises(ResultUnknown):
        asyncio.run(broker.aget_result(keeps.send_with_options(store_results=False).message_id))


def test_coroutines_leave_marks_too(tmp_path: Path) -> None:
    """``asend`` and ``asend_many`` push in batches, with the marks of each message."""
    broker = SqliteBroker(tmp_path / "queue.db")
    broker.add_middleware(Results(store_results=True))
    keeps = actor(lambda n: None, broker=broker, actor_name="keeps")

    async def send() -> list[Message[Any]]:
        return await asyncio.gather(*(keeps.asend(n) for n in range(20)))

    for message in asyncio.run(send()):
        with pytest.raises(ResultPending):
            broker.get_result(message.message_id)
    broker.close()


def test_a_mark_outlives_the_delay() -> None:
    """It is kept a week longer than the message has to wait."""
    clock = ManualClock()
    broker = StubBroker(clock=clock)
    broker.add_middleware(Results())
    keeps = actor(lambda: None, broker=broker, actor_name="keeps", store_results=True)
    message = keeps.send_with_options(delay=1_000_000)
    clock.advance_ms(1_000_000 + PENDING_TTL - 10)
    assert broker.store.apply([Get(f"r:{message.message_id}")]) != [None]


def test_what_decides_whether_a_result_is_kept() -> None:
    """The message's option, else the actor's, else the middleware's."""
    for everywhere in (True, False):
        broker, results = results_broker(store_results=everywhere)
        actor(lambda: None, broker=broker, actor_name="silent")
        actor(lambda: None, broker=broker, actor_name="opposite", store_results=not everywhere)
        silent, opposite = (Message("default", name, (), {}, {}) for name in ("silent", "opposite"))
        assert results.is_kept(broker, silent) is everywhere
        assert results.is_kept(broker, opposite) is not everywhere
        assert results.is_kept(broker, opposite.copy(options={"store_results": everywhere})) is everywhere
        assert results.idle_hooks(broker.actors["silent"]) == frozenset(() if everywhere else ("ending",))


@pytest.mark.parametrize(
    ("ttl", "kept_ms"), [(5, 5), (0, 0), (2.5, 2), (None, 100), ("x", 100), (True, 100), (-1, 100), (math.nan, 100)]
)
def test_how_long_a_result_is_kept(ttl: Any, kept_ms: int) -> None:
    """By the message, else the actor, else the middleware; what came in a message and is no time is passed over."""
    broker, results = results_broker(result_ttl=7)
    work = actor(lambda: None, broker=broker, actor_name="work", result_ttl=100)
    assert results._ttl({"result_ttl": ttl}, work) == kept_ms
    assert results._ttl({}, None) == 7
    assert 0 < results._ttl({"result_ttl": math.inf}, work) < 1 << 62


@pytest.mark.parametrize("ttl", [-1, "x"])
def test_a_ttl_that_is_none(ttl: Any) -> None:
    """The middleware and actors refuse what is no time."""
    with pytest.raises((ValueError, TypeError), match="result_ttl"):
        Results(result_ttl=ttl)
    broker, _ = results_broker()
    with pytest.raises((ValueError, TypeError), match="result_ttl"):
        actor(lambda: None, broker=broker, actor_name="work", result_ttl=ttl)


def test_a_broker_without_a_store_needs_a_backend() -> None:
    """``Results()`` says so when it is asked for one."""
    from greenroom import Broker

    broker = Broker([Results()])
    with pytest.raises(RuntimeError, match="Broker has no store of its own"):
        broker.get_results_backend()
    backend = Mine()
    assert Broker([Results(backend=backend)]).get_results_backend() is backend
    with pytest.raises(RuntimeError, match="doesn't have a results backend"):
        Broker([]).get_results_backend()


def test_a_backend_in_the_brokers_own_file_is_one_with_it(tmp_path: Path) -> None:
    """By whichever name the file is given."""
    broker = SqliteBroker(tmp_path / "queue.db")
    for name, is_one in (("queue.db", True), ("other.db", False)):
        backend = SqliteBackend(tmp_path / name)
        broker.middleware = [Results(backend=backend)]
        assert broker.get_results_backend() is backend
        assert backend.knows_what_is_sent is is_one
        backend.close()
    broker.close()
