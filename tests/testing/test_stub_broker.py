"""StubBroker: queues, dead letters, join, flush, consume, as tests of Dramatiq programs know them."""

from __future__ import annotations

import logging
import queue
import threading
import traceback

import pytest

import greenroom
from greenroom import Message, Worker
from greenroom.brokers.stub import StubBroker
from greenroom.common import iter_queue, join_queue
from greenroom.errors import ActorNotFound, DecodeError, QueueJoinTimeout, QueueNotFound, Retry
from greenroom.middleware import Retries, SkipMessage

DEADLINE_S = 10.0


def test_the_recipe_of_a_test(worker: Worker, broker: StubBroker) -> None:
    """Send, join the queue, join the worker: then the actor has run."""
    broker.emit_after("process_boot")
    done = []

    @greenroom.actor
    def put(x: int) -> None:
        done.append(x)

    put.send(1)
    put.send_with_options(args=(2,), delay=20)
    broker.join(put.queue_name, timeout=5_000)
    worker.join()
    assert done == [1, 2]


@pytest.mark.usefixtures("worker")
def test_join_raises_what_the_actor_raised(broker: StubBroker) -> None:
    """The very exception comes up where the test joins, with the traceback of the actor."""
    boom = ValueError("boom")

    @greenroom.actor(max_retries=0)
    def fail() -> None:
        raise boom

    fail.send()
    for _ in range(2):  # again and again, and its traceback does not grow
        with pytest.raises(ValueError, match="boom") as caught:
            broker.join("default", timeout=5_000)
        assert caught.value is boom
        names = [frame.name for frame in traceback.extract_tb(boom.__traceback__)]
        assert names.count("fail") == 1
        assert names.count("join") == 1


@pytest.mark.usefixtures("worker")
def test_join_raises_the_first_failure(broker: StubBroker) -> None:
    """Of several dead letters it is the first one whose exception comes up."""

    @greenroom.actor(max_retries=0)
    def fail(text: str) -> None:
        raise ValueError(text)

    fail.send_many([("first",), ("second",)])
    broker.join("default", timeout=5_000, fail_fast=False)
    with pytest.raises(ValueError, match="first"):
        broker.join("default")


@pytest.mark.usefixtures("worker")
def test_an_interrupt_comes_up_too(broker: StubBroker) -> None:
    """What an actor raises need not be an ``Exception``."""

    @greenroom.actor(max_retries=0)
    def fail() -> None:
        raise greenroom.middleware.Shutdown("now")

    fail.send()
    with pytest.raises(greenroom.middleware.Shutdown):
        broker.join("default", timeout=5_000)


@pytest.mark.parametrize(("default", "given"), [(False, None), (True, False)], ids=["default", "argument"])
def test_fail_fast_can_be_turned_off(default: bool, given: bool | None) -> None:
    """``fail_fast_default=False`` or ``fail_fast=False``: join only waits, and the dead letter stays to be seen."""
    broker = StubBroker(fail_fast_default=default)

    @greenroom.actor(broker=broker, max_retries=0)
    def fail() -> None:
        raise ValueError("boom")

    worker = Worker(broker, worker_timeout=100, worker_threads=1)
    worker.start()
    fail.send()
    broker.join("default", timeout=5_000, fail_fast=given)
    worker.join()
    worker.stop()
    (letter,) = broker.dead_letters
    assert letter.failed
    assert letter.actor_name == "fail"
    assert isinstance(letter._exception, ValueError)
    assert letter.error is not None
    assert "boom" in letter.error.traceback


@pytest.mark.usefixtures("worker")
def test_dead_letters_are_listed_by_queue(broker: StubBroker) -> None:
    """``dead_letters_by_queue`` sorts them; a queue without any has an empty list."""

    @greenroom.actor(max_retries=0, queue_name="a")
    def fail_a() -> None:
        raise ValueError("a")

    @greenroom.actor(max_retries=0, queue_name="b")
    def fail_b() -> None:
        raise ValueError("b")

    sent = [fail_b.send(), fail_a.send()]
    for name in ("a", "b"):
        broker.join(name, timeout=5_000, fail_fast=False)
    by_queue = broker.dead_letters_by_queue
    assert {name: [str(letter._exception) for letter in letters] for name, letters in by_queue.items()} == {
        "a": ["a"],
        "b": ["b"],
    }
    assert by_queue["nothing"] == []
    assert sorted(letter.message_id for letter in broker.dead_letters) == sorted(m.message_id for m in sent)


@pytest.mark.usefixtures("worker")
def test_a_message_for_nobody_raises_actor_not_found(broker: StubBroker) -> None:
    """An unknown actor is not waited for: join raises ``ActorNotFound`` with its name."""
    broker.declare_queue("default")
    broker.enqueue(Message("default", "nobody", (), {}, {}))
    with pytest.raises(ActorNotFound, match="nobody"):
        broker.join("default", timeout=5_000)


@pytest.mark.usefixtures("worker")
def test_garbage_raises_a_decode_error(broker: StubBroker) -> None:
    """Bytes that are not a message become a dead letter that still shows them, and join raises ``DecodeError``."""
    broker.declare_queue("default")
    broker.queues["default"].put(b"garbage")
    with pytest.raises(DecodeError) as caught:
        broker.join("default", timeout=5_000)
    assert caught.value.data == b"garbage"
    (letter,) = broker.dead_letters
    assert letter.args == (b"garbage",)


@pytest.mark.usefixtures("worker")
def test_an_expired_message_says_so(broker: StubBroker) -> None:
    """What was skipped and failed has no exception of the actor: the reason comes up."""

    @greenroom.actor(max_age=0)
    def late() -> None: ...

    late.send()
    with pytest.raises(SkipMessage, match="age limit"):
        broker.join("default", timeout=5_000)


@pytest.mark.usefixtures("worker")
def test_a_failure_that_is_retried_is_not_raised(broker: StubBroker) -> None:
    """join waits for the retries; when one succeeds, nothing is raised."""
    attempts = []

    @greenroom.actor(min_backoff=1, max_backoff=1)
    def flaky() -> None:
        attempts.append(1)
        if len(attempts) < 3:
            raise ValueError("not yet")

    flaky.send()
    broker.join("default", timeout=5_000)
    assert len(attempts) == 3
    assert broker.dead_letters == []


@pytest.mark.usefixtures("worker")
def test_an_actor_may_ask_for_its_retry(broker: StubBroker) -> None:
    """``Retry`` with a delay runs the actor again."""
    attempts = []

    @greenroom.actor
    def again() -> None:
        attempts.append(1)
        if len(attempts) < 2:
            raise Retry("again", delay=1)

    again.send()
    broker.join("default", timeout=5_000)
    assert len(attempts) == 2


@pytest.mark.parametrize("call", ["join", "flush", "consume", "enqueue"])
def test_an_undeclared_queue_is_an_error(broker: StubBroker, call: str) -> None:
    """join, flush, consume and enqueue of a queue that was never declared raise ``QueueNotFound``."""
    argument = Message("nowhere", "a", (), {}, {}) if call == "enqueue" else "nowhere"
    with pytest.raises(QueueNotFound, match="nowhere"):
        getattr(broker, call)(argument)


def test_queues_show_encoded_messages(broker: StubBroker) -> None:
    """``queues[q]`` and ``queues[q.DQ]`` are live queues of bytes: one of what is ready, one of what is delayed."""

    @greenroom.actor(priority=5)
    def put(x: int) -> None: ...

    ready, delayed = broker.queues["default"], broker.queues["default.DQ"]
    assert isinstance(ready, queue.Queue)
    put.send(1)
    put.send_with_options(args=(2,), priority=1)
    later = put.send_with_options(args=(3,), delay=60_000)
    assert (ready.qsize(), ready.empty(), ready.full(), ready.unfinished_tasks) == (2, False, False, 2)
    assert (delayed.qsize(), delayed.unfinished_tasks) == (1, 1)
    assert [Message.decode(body).args for body in ready.queue] == [(2,), (1,)]
    assert Message.decode(ready.get_nowait()).args == (2,)
    assert Message.decode(ready.get(timeout=1)).args == (1,)
    assert ready.qsize() == 0
    assert Message.decode(delayed.get()).message_id == later.message_id
    with pytest.raises(queue.Empty):
        ready.get_nowait()
    with pytest.raises(queue.Empty):
        ready.get(timeout=0.01)
    assert repr(delayed) == "<default.DQ: 0 messages>"


def test_a_view_counts_unfinished_tasks_as_a_queue_does(broker: StubBroker) -> None:
    """What was got is unfinished until ``task_done``, which may not be called more often."""
    broker.declare_queue("default")
    view = broker.queues["default"]
    view.put(b"1")
    view.put_nowait(b"2")
    assert list(iter_queue(view)) == [b"1", b"2"]
    assert view.unfinished_tasks == 2
    with pytest.raises(QueueJoinTimeout):
        join_queue(view, timeout=10)
    view.task_done()
    view.task_done()
    view.join()
    join_queue(view, timeout=10)
    with pytest.raises(ValueError, match="too many times"):
        view.task_done()
    with pytest.raises(ValueError, match="non-negative"):
        view.get(timeout=-1)


def test_a_get_waits_for_what_is_sent_meanwhile(broker: StubBroker) -> None:
    """A blocking ``get`` returns as soon as another thread sends."""

    @greenroom.actor
    def put(x: int) -> None: ...

    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append(broker.queues["default"].get(timeout=DEADLINE_S)))
    reader.start()
    put.send(1)
    reader.join(DEADLINE_S)
    assert [Message.decode(body).args for body in got] == [(1,)]


@pytest.mark.usefixtures("worker")
def test_bytes_put_into_a_queue_are_run(broker: StubBroker) -> None:
    """Whoever puts encoded messages into the queues, ready or delayed, has them run; counts are true meanwhile."""
    started, go_on, done = threading.Event(), threading.Event(), []

    @greenroom.actor
    def wait(x: int) -> None:
        started.set()
        assert go_on.wait(DEADLINE_S)
        done.append(x)

    broker.queues["default"].put(wait.message(1).encode())
    assert started.wait(DEADLINE_S)
    assert broker.queues["default"].unfinished_tasks == 1  # it runs
    assert broker.queues["default"].qsize() == 0
    late = wait.message(2).copy(queue_name="default.DQ", options={"eta": broker.clock.now_ms() + 20})
    broker.queues["default.DQ"].put(late.encode())
    go_on.set()
    broker.join("default", timeout=5_000)
    join_queue(broker.queues["default"], timeout=5_000)
    assert done == [1, 2]


def test_a_message_may_name_the_delayed_side(broker: StubBroker) -> None:
    """A message whose queue is ``default.DQ`` goes to ``default``, whose declared name is the only one."""
    broker.declare_queue("default")
    broker.enqueue(Message("default.DQ", "a", (), {}, {}))
    assert broker.queues["default"].qsize() == 1
    assert broker.get_declared_queues() == {"default"}
    assert broker.get_declared_delay_queues() == {"default.DQ"}


def test_actors_declared_after_the_worker_started(worker: Worker, broker: StubBroker) -> None:
    """A queue that is declared while a worker runs is served, and join does not take it for abandoned."""
    assert worker.is_running
    for number in range(5):
        done: list[int] = []

        @greenroom.actor(queue_name=f"q{number}", actor_name=f"put{number}")
        def put(x: int, done: list[int] = done) -> None:
            done.append(x)

        put.send(number)
        broker.join(f"q{number}", timeout=5_000)
        assert done == [number]


def test_flush_deletes_what_waits(broker: StubBroker) -> None:
    """``flush`` deletes ready and delayed messages of one queue; dead letters stay."""
    broker.declare_queue("a")
    broker.declare_queue("b")
    for name in ("a", "b"):
        broker.enqueue(Message(name, "x", (), {}, {}))
        broker.enqueue(Message(name, "x", (), {}, {}), delay=60_000)
    consumer = broker.consume("a")
    message = next(consumer)
    assert message is not None
    consumer.nack(message)
    broker.flush("a.DQ")
    assert (broker.queues["a"].qsize(), broker.queues["a.DQ"].qsize()) == (0, 0)
    assert (broker.queues["b"].qsize(), broker.queues["b.DQ"].qsize()) == (1, 1)
    assert len(broker.dead_letters) == 1
    broker.flush_all()
    assert (broker.queues["b"].qsize(), broker.queues["b.DQ"].qsize()) == (0, 0)
    assert broker.dead_letters == []
    assert not broker.enqueued


def test_a_test_may_play_the_worker(broker: StubBroker) -> None:
    """``consume`` yields messages to ack, nack and requeue, honours its prefetch, and yields None after the timeout."""
    broker.declare_queue("default")
    for number in range(3):
        broker.enqueue(Message("default", "x", (number,), {}, {}))
    consumer = broker.consume("default", prefetch=2, timeout=1)
    first, second = next(consumer), next(consumer)
    assert first is not None
    assert second is not None
    assert (first.args, second.args) == ((0,), (1,))
    assert next(consumer) is None  # two are held
    consumer.requeue([second])
    again = next(consumer)
    assert again == second
    consumer.ack(first)
    boom = ValueError("boom")
    second = again
    assert second is not None
    second.stuff_exception(boom)
    second.fail()
    consumer.nack(second)
    third = next(consumer)
    assert third is not None
    consumer.ack(third)
    assert next(consumer) is None
    consumer.close()
    with pytest.raises(ValueError, match="boom") as caught:
        broker.join("default")
    assert caught.value is boom


def test_the_jitter_of_retries_is_the_same_in_every_run() -> None:
    """Two brokers plan the same retries, whoever made their ``Retries``."""
    brokers = StubBroker(), StubBroker([Retries()])
    one, other = (next(m for m in broker.middleware if isinstance(m, Retries)) for broker in brokers)
    assert [one.random.random() for _ in range(3)] == [other.random.random() for _ in range(3)]


@pytest.mark.usefixtures("worker")
def test_each_failed_attempt_is_logged_with_the_time_of_the_next(
    broker: StubBroker, caplog: pytest.LogCaptureFixture
) -> None:
    """At WARNING, so that ``--log-cli-level=warning`` shows it: the message, the exception, when it goes on."""

    @greenroom.actor(max_retries=1, min_backoff=1, max_backoff=1)
    def fail(x: int) -> None:
        raise ValueError("boom")

    with caplog.at_level(logging.WARNING):
        fail.send(7)
        broker.join("default", timeout=5_000, fail_fast=False)
    lines = [record.getMessage() for record in caplog.records if record.name.endswith("StubBroker")]
    assert lines == ["Attempt 1 of message fail(7) failed with ValueError: boom. The next one is due in 1 ms."]


def test_kept_exceptions_are_bounded(broker: StubBroker) -> None:
    """A broker that lives long does not keep every exception, and says in words what it does not keep."""
    broker.declare_queue("default")
    consumer = broker.consume("default")
    for number in range(1_001):
        broker.enqueue(Message("default", "x", (number,), {}, {}))
        message = next(consumer)
        assert message is not None
        message.stuff_exception(ValueError(f"boom {number}"))
        consumer.nack(message)
    consumer.close()
    first, *_, last = broker.dead_letters
    assert isinstance(last._exception, ValueError)
    assert not isinstance(first._exception, ValueError)
    assert str(first._exception) == "ValueError: boom 0"


def test_after_join_the_hooks_have_run(worker: Worker, broker: StubBroker) -> None:
    """``worker.join`` returns after the last ``after_ack``, so that a test may look at what a middleware has done."""
    acked: list[int] = []

    class Spy(greenroom.Middleware):
        def after_ack(self, broker: object, message: greenroom.MessageProxy) -> None:
            acked.append(message.args[0])

    broker.add_middleware(Spy())

    @greenroom.actor
    def put(x: int) -> None: ...

    for number in range(50):
        put.send(number)
        broker.join("default", timeout=5_000)
        worker.join()
        assert acked[-1] == number
