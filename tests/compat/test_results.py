"""Results as Dramatiq's documentation describes them."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest

import greenroom as dramatiq
from greenroom.brokers.stub import StubBroker
from greenroom.encoder import PickleEncoder
from greenroom.middleware import Middleware, SkipMessage
from greenroom.results import (
    Missing,
    ResultBackend,
    ResultError,
    ResultFailure,
    ResultMissing,
    Results,
    ResultTimeout,
)
from greenroom.results.backends import StubBackend


@pytest.fixture
def backend(broker: StubBroker) -> ResultBackend:
    """The result backend of the default broker."""
    backend = StubBackend()
    broker.add_middleware(Results(backend=backend))
    return backend


def test_the_names_are_where_dramatiq_has_them() -> None:
    """Modules, errors and their tree."""
    from greenroom.results import backend, errors
    from greenroom.results.backends import stub

    assert stub.StubBackend is StubBackend
    assert backend.Missing is Missing
    assert backend.ResultBackend is ResultBackend
    for error in (errors.ResultTimeout, errors.ResultMissing, errors.ResultFailure):
        assert issubclass(error, errors.ResultError)
    assert issubclass(ResultError, dramatiq.DramatiqError)
    failure = ResultFailure("text", "ValueError", "no")
    assert (str(failure), failure.orig_exc_type, failure.orig_exc_msg) == ("text", "ValueError", "no")


def test_results_by_the_message(broker: StubBroker, backend: ResultBackend, worker: dramatiq.Worker) -> None:
    """``store_results=True`` on an actor; ``message.get_result`` with and without the backend."""

    @dramatiq.actor(store_results=True)
    def add(x: int, y: int) -> int:
        return x + y

    message = add.send(1, 2)
    assert message.get_result(block=True) == 3
    assert message.get_result(backend=backend) == 3
    assert backend.get_result(message) == 3
    assert broker.get_results_backend() is backend


def test_missing_and_timeout(backend: ResultBackend) -> None:
    """``ResultMissing`` at once, ``ResultTimeout`` after the timeout in milliseconds."""

    @dramatiq.actor(store_results=True)
    def never() -> None:
        raise AssertionError

    message = never.send()
    with pytest.raises(ResultMissing):
        message.get_result()
    with pytest.raises(ResultTimeout):
        message.get_result(block=True, timeout=20)


def test_failures(broker: StubBroker, backend: ResultBackend, worker: dramatiq.Worker) -> None:
    """An actor that has failed for good raises ``ResultFailure`` where its result is asked for."""

    @dramatiq.actor(store_results=True, max_retries=0)
    def fail() -> None:
        raise RuntimeError("failed")

    message = fail.send()
    with pytest.raises(ResultFailure) as e:
        message.get_result(block=True)
    assert str(e.value) == "actor raised RuntimeError: failed"
    assert (e.value.orig_exc_type, e.value.orig_exc_msg) == ("RuntimeError", "failed")


def test_a_failure_that_is_retried_is_no_result(
    broker: StubBroker, backend: ResultBackend, worker: dramatiq.Worker
) -> None:
    """Only the last word counts."""
    attempts = []

    @dramatiq.actor(store_results=True, max_retries=3, min_backoff=1, max_backoff=1)
    def work() -> int:
        attempts.append(1)
        if len(attempts) < 3:
            raise RuntimeError("not yet")
        return len(attempts)

    assert work.send().get_result(block=True) == 3


def test_what_was_skipped_has_the_result_none(broker: StubBroker, backend: ResultBackend, make_worker: Any) -> None:
    """A message that a middleware skips, and does not fail, is done."""

    class Skips(Middleware):
        def before_process_message(self, broker: Any, message: Any) -> None:
            raise SkipMessage

    broker.add_middleware(Skips())

    @dramatiq.actor(store_results=True)
    def work() -> int:
        return 1

    message = work.send()
    make_worker(broker)
    assert message.get_result(block=True) is None


@pytest.mark.parametrize("where", ["actor", "message", "middleware"])
def test_where_it_can_be_said(broker: StubBroker, make_worker: Any, where: str) -> None:
    """``store_results`` and ``result_ttl`` are options of the middleware, of actors and of messages."""
    ttls = []

    class Backend(StubBackend):
        def put(self, message: Any, stored: Any, ttl: int | None) -> Any:
            ttls.append(ttl)
            return super().put(message, stored, ttl)

    said: dict[str, Any] = {"store_results": True, "result_ttl": 1234}
    broker.add_middleware(Results(backend=Backend(), **(said if where == "middleware" else {})))

    @dramatiq.actor(**(said if where == "actor" else {}))
    def work() -> int:
        return 1

    message = work.send_with_options(**(said if where == "message" else {}))
    make_worker(broker)
    assert message.get_result(block=True) == 1
    assert ttls == [1234]


def test_without_the_option_nothing_is_kept(
    broker: StubBroker, backend: ResultBackend, worker: dramatiq.Worker, caplog: pytest.LogCaptureFixture
) -> None:
    """And there is a hint in the log."""

    @dramatiq.actor
    def work() -> int:
        return 1

    message = work.send()
    broker.join("default", timeout=10_000)
    with pytest.raises(ResultMissing):
        message.get_result()
    assert "the value has been discarded" in caplog.text


def test_without_the_middleware(broker: StubBroker) -> None:
    """There is nothing to ask, and actors refuse the option."""
    message: dramatiq.Message[Any] = dramatiq.Message("default", "work", (), {}, {})
    with pytest.raises(RuntimeError):
        message.get_result()
    with pytest.raises(ValueError, match="store_results"):
        dramatiq.actor(lambda: None, actor_name="work", store_results=True)


def test_keys() -> None:
    """``use_namespace_prefix_keys`` makes keys that people can read."""
    message: dramatiq.Message[Any] = dramatiq.Message("default", "work", (), {}, {}, "id")
    assert StubBackend().build_message_key(message) == "04c385a0479c359951f7e964205484e2"
    readable = StubBackend(use_namespace_prefix_keys=True).build_message_key(message)
    assert readable == "dramatiq-results:default:work:id"


class DictBackend(ResultBackend):
    """A backend as Dramatiq's documentation says to write one."""

    results: ClassVar[dict[str, Any]] = {}

    def _get(self, message_key: str) -> Any:
        data = self.results.get(message_key, Missing)
        return data if data is Missing else self.encoder.decode(data)

    def _store(self, message_key: str, result: Any, ttl: int) -> None:
        self.results[message_key] = self.encoder.encode(result)


@pytest.mark.parametrize("encoder", [None, PickleEncoder()])
def test_a_backend_of_ones_own(broker: StubBroker, make_worker: Any, encoder: Any) -> None:
    """``_get`` and ``_store`` are all that it takes."""
    broker.add_middleware(Results(backend=DictBackend(encoder=encoder)))

    @dramatiq.actor(store_results=True, max_retries=0)
    def work(x: int) -> list[int]:
        return [1 // x]

    messages = [work.send(1), work.send(0)]
    make_worker(broker)
    assert messages[0].get_result(block=True) == [1]
    with pytest.raises(ResultFailure, match="actor raised ZeroDivisionError"):
        messages[1].get_result(block=True)
