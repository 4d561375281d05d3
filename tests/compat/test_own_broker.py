"""A broker that a user wrote in Dramatiq's style, under our worker."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from queue import Empty, Queue
from typing import Any

import pytest

import greenroom as dramatiq
from greenroom.common import dq_name
from greenroom.middleware import Middleware
from greenroom.testing.clock import ManualClock
from tests.runtime.cli_kit import wait_until

MakeWorker = Callable[..., dramatiq.Worker]
NO_BACKOFF = {"min_backoff": 0, "max_backoff": 0}


class ListBroker(dramatiq.Broker):
    """Keeps encoded messages in queues, one for the delayed ones of each."""

    def __init__(self, middleware: Any = None, *, has_delays: bool = True, **options: Any) -> None:
        super().__init__(middleware=middleware, **options)
        self.has_delays = has_delays
        self.dead: list[Any] = []
        self.consumers: list[ListConsumer] = []
        self.fail_enqueue = threading.Event()

    def declare_queue(self, queue_name: str) -> None:
        if queue_name in self.queues:
            return
        self.emit_before("declare_queue", queue_name)
        self.queues[queue_name] = Queue()
        self.emit_after("declare_queue", queue_name)
        if self.has_delays:
            delayed_name = dq_name(queue_name)
            self.queues[delayed_name] = Queue()
            self.delay_queues.add(delayed_name)
            self.emit_after("declare_delay_queue", delayed_name)

    def enqueue(self, message: dramatiq.Message[Any], *, delay: int | None = None) -> dramatiq.Message[Any]:
        queue_name = message.queue_name
        if delay is not None:
            queue_name = dq_name(queue_name) if self.has_delays else queue_name
            message = message.copy(queue_name=queue_name, options={"eta": self.clock.now_ms() + delay})
        self.emit_before("enqueue", message, delay)
        if self.fail_enqueue.is_set():
            raise dramatiq.ConnectionClosed("no broker")
        self.queues[queue_name].put(message.encode())
        self.emit_after("enqueue", message, delay)
        return message

    def consume(self, queue_name: str, prefetch: int = 1, timeout: int = 30000) -> ListConsumer:
        consumer = ListConsumer(self, queue_name, prefetch, timeout)
        self.consumers.append(consumer)
        return consumer

    def wait_until_empty(self) -> None:
        wait_until(lambda: not any(q.unfinished_tasks for q in self.queues.values()), "all queues are empty")

    def join(self, queue_name: str, *, timeout: int | None = None) -> None:
        self.wait_until_empty()


class ListMessage(dramatiq.MessageProxy):
    """As brokers have them: a proxy with a mark of the broker's own."""

    def __init__(self, data: bytes) -> None:
        super().__init__(dramatiq.Message.decode(data))
        self.data = data


class ListConsumer(dramatiq.Consumer):
    """Hands out no more than ``prefetch`` messages that are not settled."""

    def __init__(self, broker: ListBroker, queue_name: str, prefetch: int, timeout: int) -> None:
        self.broker = broker
        self.queue_name = queue_name
        self.queue = broker.queues[queue_name]
        self.prefetch = prefetch
        self.timeout_s = timeout / 1000
        self.unsettled: set[ListMessage] = set()
        self.most = 0
        self.iterations = 0
        self.requeued: list[ListMessage] = []
        self.closed = threading.Event()
        self.fail_next: list[Exception] = []
        self.fail_ack: list[Exception] = []

    def __next__(self) -> dramatiq.MessageProxy | None:
        self.iterations += 1
        if self.fail_next:
            raise self.fail_next.pop()
        if len(self.unsettled) >= self.prefetch:
            self.closed.wait(self.timeout_s)
            return None
        try:
            message = ListMessage(self.queue.get(timeout=self.timeout_s))
        except Empty:
            return None
        self.unsettled.add(message)
        self.most = max(self.most, len(self.unsettled))
        return message

    def ack(self, message: Any) -> None:
        if self.fail_ack:
            raise self.fail_ack.pop()
        self.unsettled.discard(message)
        self.queue.task_done()

    def nack(self, message: Any) -> None:
        self.unsettled.discard(message)
        self.broker.dead.append(message)
        self.queue.task_done()

    def requeue(self, messages: Iterable[Any]) -> None:
        for message in messages:
            self.requeued.append(message)
            self.unsettled.discard(message)
            self.queue.put(message.data)
            self.queue.task_done()

    def close(self) -> None:
        self.closed.set()


@pytest.fixture(params=[True, False], ids=["with delayed queues", "without"])
def own(request: pytest.FixtureRequest) -> ListBroker:
    return ListBroker(has_delays=request.param)


def collector(broker: dramatiq.Broker, **options: Any) -> tuple[dramatiq.Actor[..., Any], list[Any]]:
    done: list[Any] = []
    return dramatiq.actor(done.append, actor_name="note", broker=broker, **options), done


def test_messages_run_and_are_acked(own: ListBroker, make_worker: MakeWorker) -> None:
    """A worker consumes each queue of such a broker and settles what it ran."""
    note, done = collector(own)
    for i in range(50):
        note.send(i)
    make_worker(own, worker_threads=1)
    own.wait_until_empty()
    assert done == list(range(50))
    assert not any(consumer.unsettled for consumer in own.consumers)


def test_the_worker_joins_it(own: ListBroker, make_worker: MakeWorker) -> None:
    """``Worker.join`` calls the broker's own ``join``."""
    note, done = collector(own)
    note.send(1)
    make_worker(own).join()
    assert done == [1]


def test_consumers_are_asked_for_as_dramatiq_asks(make_worker: MakeWorker) -> None:
    """Queue, prefetch and timeout; the delayed side has a prefetch of its own."""
    own = ListBroker()
    own.declare_queue("default")
    make_worker(own, worker_threads=3, worker_timeout=30)
    wait_until(lambda: len(own.consumers) == 2, "both consumers were made")
    asked = sorted((c.queue_name, c.prefetch, c.timeout_s) for c in own.consumers)
    assert asked == [("default", 6, 0.03), ("default.DQ", 3000, 0.03)]


def test_the_views_name_canonical_queues_only(make_worker: MakeWorker) -> None:
    """A queue and its delayed side are one view."""
    own = ListBroker()
    own.declare_queue("default")
    worker = make_worker(own)
    assert list(worker.consumers) == ["default"]


def test_the_prefetch_is_kept(own: ListBroker, make_worker: MakeWorker) -> None:
    """Behind tasks that run there are no more messages than were asked for, and the consumer is iterated on."""
    leave = threading.Event()
    block = dramatiq.actor(lambda: leave.wait(10) and None, actor_name="block", broker=own)
    for _ in range(20):
        block.send()
    make_worker(own, worker_threads=2, worker_timeout=10)
    wait_until(lambda: any(c.most == 4 for c in own.consumers), "the prefetch is used up")
    (consumer,) = [c for c in own.consumers if c.queue_name == "default"]
    before = consumer.iterations
    wait_until(lambda: consumer.iterations > before + 3, "it is iterated on")
    leave.set()
    own.wait_until_empty()
    assert consumer.most == 4


def test_a_consumer_without_a_prefetch_is_held_up(make_worker: MakeWorker) -> None:
    """One that hands out all it has is not drained into the worker's memory."""
    own = ListBroker(has_delays=False)
    entered, leave = threading.Event(), threading.Event()

    @dramatiq.actor(broker=own)
    def block() -> None:
        entered.set()
        leave.wait(10)

    own.declare_queue("default")
    for _ in range(500):
        block.send()
    make_worker(own, worker_threads=1, worker_timeout=10)
    assert entered.wait(10)
    own.consumers[0].prefetch = 10_000
    leave.set()
    own.wait_until_empty()
    assert own.consumers[0].most < 200


def test_a_failure_is_retried_as_a_message_of_its_own(own: ListBroker, make_worker: MakeWorker) -> None:
    """The retry is enqueued, then the failed one acked."""
    attempts: list[int] = []

    @dramatiq.actor(broker=own, **NO_BACKOFF)
    def fail_twice() -> None:
        attempts.append(len(attempts))
        if len(attempts) < 3:
            raise ValueError

    sent = fail_twice.send()
    make_worker(own)
    wait_until(lambda: len(attempts) == 3, "it succeeded")
    own.wait_until_empty()
    assert own.dead == []
    assert sent.options == {}


def test_a_retry_carries_what_dramatiqs_carries(own: ListBroker, make_worker: MakeWorker) -> None:
    """Its id, its count and its traceback; hooks of the enqueue are told once."""
    seen: list[Any] = []

    class Enqueues(Middleware):
        def after_enqueue(self, broker: Any, message: Any, delay: int | None) -> None:
            seen.append((message, delay))

    @dramatiq.actor(broker=own, max_retries=1, **NO_BACKOFF)
    def fail() -> None:
        raise ValueError("why")

    own.add_middleware(Enqueues())
    sent = fail.send()
    make_worker(own)
    wait_until(lambda: bool(own.dead), "it failed for good")
    own.wait_until_empty()
    (first, first_delay), (retry, retry_delay) = seen
    assert (first, first_delay) == (sent, None)
    assert (retry.message_id, retry.options["retries"], retry_delay) == (sent.message_id, 1, 0)
    assert "ValueError: why" in retry.options["traceback"]
    assert own.dead[0].failed


def test_a_retry_that_cannot_be_enqueued_is_never_acked(own: ListBroker, make_worker: MakeWorker) -> None:
    """The message goes to the dead letters instead of being lost."""

    @dramatiq.actor(broker=own, **NO_BACKOFF)
    def fail() -> None:
        own.fail_enqueue.set()
        raise ValueError

    fail.send()
    make_worker(own)
    wait_until(lambda: bool(own.dead), "it was nacked")
    own.wait_until_empty()
    assert [message.actor_name for message in own.dead] == ["fail"]


@pytest.mark.parametrize("has_delays", [True, False])
def test_a_delayed_message_waits_for_its_time(make_worker: MakeWorker, has_delays: bool) -> None:
    """It is held, not acked, and runs when it is due; ``before_delay_message`` is told of it."""
    clock = ManualClock()
    own = ListBroker(has_delays=has_delays, clock=clock)
    delayed: list[Any] = []

    class Delays(Middleware):
        def before_delay_message(self, broker: Any, message: Any) -> None:
            delayed.append(message)

    own.add_middleware(Delays())
    note, done = collector(own)
    note.send_with_options(args=("later",), delay=60_000)
    note.send("now")
    make_worker(own, worker_timeout=10)
    wait_until(lambda: done == ["now"] and len(delayed) == 1, "the delayed one is held, the other one ran")
    clock.advance_ms(59_999)
    note.send("still not")
    wait_until(lambda: done == ["now", "still not"], "it is still held")
    clock.advance_ms(1)
    own.wait_until_empty()
    assert done == ["now", "still not", "later"]


def test_a_stopped_worker_gives_back(own: ListBroker) -> None:
    """What has not started is requeued, delayed messages too, and every consumer is closed."""
    entered, leave = threading.Event(), threading.Event()

    @dramatiq.actor(broker=own)
    def block() -> None:
        entered.set()
        leave.wait(10)

    for _ in range(4):
        block.send()
    block.send_with_options(delay=3_600_000)
    worker = dramatiq.Worker(own, worker_timeout=10, worker_threads=1)
    worker.start()
    assert entered.wait(10)
    stopping = threading.Thread(target=worker.stop)
    stopping.start()
    wait_until(lambda: not worker._pump or worker._pump._stop_at_s is not None, "the worker is stopping")
    leave.set()
    stopping.join(10)
    assert not stopping.is_alive()
    assert all(consumer.closed.is_set() for consumer in own.consumers)
    assert not any(consumer.unsettled for consumer in own.consumers)
    assert sum(q.qsize() for q in own.queues.values()) == 4


@pytest.mark.parametrize("error", [dramatiq.ConnectionClosed("gone"), ValueError("a bug")])
def test_a_consumer_that_fails_is_made_anew(
    own: ListBroker, make_worker: MakeWorker, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a short wait the queue is consumed again."""
    monkeypatch.setenv("dramatiq_restart_delay", "10")
    note, done = collector(own)
    note.send(1)
    make_worker(own, worker_timeout=10)
    own.wait_until_empty()
    for consumer in list(own.consumers):
        consumer.fail_next.append(error)
    wait_until(lambda: all(c.closed.is_set() for c in own.consumers[:1]), "the broken one is closed")
    note.send(2)
    own.wait_until_empty()
    assert done == [1, 2]


def test_an_ack_is_tried_again(own: ListBroker, make_worker: MakeWorker) -> None:
    """While the connection is away the settlement waits; the message is not run a second time."""
    note, done = collector(own)
    own.declare_queue("default")
    make_worker(own, worker_timeout=10)
    wait_until(lambda: bool(own.consumers), "a consumer was made")
    for consumer in own.consumers:
        consumer.fail_ack.append(dramatiq.ConnectionClosed("gone"))
    note.send(1)
    own.wait_until_empty()
    assert done == [1]


def test_an_ack_that_is_broken_stops_nothing(own: ListBroker, make_worker: MakeWorker) -> None:
    """Any other error of it is logged; the message is left to the broker, and the next ones run."""
    note, done = collector(own)
    own.declare_queue("default")
    make_worker(own, worker_timeout=10)
    wait_until(lambda: bool(own.consumers), "a consumer was made")
    for consumer in own.consumers:
        consumer.fail_ack.append(ValueError("a bug"))
    note.send(1)
    note.send(2)
    wait_until(lambda: sorted(done) == [1, 2], "both ran")


def test_queues_declared_later_are_consumed(own: ListBroker, make_worker: MakeWorker) -> None:
    """Although this broker declares them by itself."""
    make_worker(own)
    note, done = collector(own, queue_name="late")
    note.send(1)
    own.wait_until_empty()
    assert done == [1]


def test_only_the_queues_that_were_named(make_worker: MakeWorker) -> None:
    """``queues=`` brings the delayed side along, and nothing else."""
    own = ListBroker()
    for name in ("mine", "other"):
        own.declare_queue(name)
    make_worker(own, queues=["mine"])
    wait_until(lambda: len(own.consumers) == 2, "both consumers were made")
    assert {c.queue_name for c in own.consumers} == {"mine", "mine.DQ"}


def test_an_unknown_actor_waits_here(make_worker: MakeWorker) -> None:
    """It is held for a while, in case the actor is declared, then dead-lettered."""
    clock = ManualClock()
    own = ListBroker(clock=clock, unknown_actor_ttl_ms=6_000)
    own.declare_queue("default")
    own.enqueue(dramatiq.Message("default", "unknown", (), {}, {}))
    make_worker(own, worker_timeout=10)

    def is_given_up() -> bool:
        clock.advance_ms(1_000)
        return bool(own.dead)

    wait_until(is_given_up, "it was given up")


def test_an_eta_that_is_no_number_is_now(
    own: ListBroker, make_worker: MakeWorker, caplog: pytest.LogCaptureFixture
) -> None:
    """It is warned of and run at once."""
    note, done = collector(own)
    own.enqueue(note.message(1).copy(options={"eta": "soon"}))
    make_worker(own)
    own.wait_until_empty()
    assert done == [1]
    assert any("Invalid eta value for message" in r.getMessage() for r in caplog.records)


def test_async_actors_run_as_well(own: ListBroker, make_worker: MakeWorker) -> None:
    """On the worker's loop, whatever the broker."""
    done: list[int] = []

    @dramatiq.actor(broker=own)
    async def note(x: int) -> None:
        done.append(x)

    note.send(1)
    make_worker(own)
    own.wait_until_empty()
    assert done == [1]


def test_a_paused_worker_leaves_it_alone(own: ListBroker, make_worker: MakeWorker) -> None:
    """Consumers are not iterated while paused, and go on when resumed."""
    note, done = collector(own)
    own.declare_queue("default")
    worker = make_worker(own, worker_timeout=10)
    worker.pause()
    wait_until(lambda: bool(worker._pump.consumer._paused), "the pump has paused")
    note.send(1)
    worker.resume()
    own.wait_until_empty()
    assert done == [1]
