"""The worker in a program's own process."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

import greenroom as dramatiq
from greenroom.brokers.stub import StubBroker
from greenroom.middleware import Middleware
from tests.runtime.cli_kit import wait_until

MakeWorker = Callable[..., dramatiq.Worker]


class Boots(Middleware):
    """Notes the hooks of a worker's life."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []

    def before_worker_boot(self, broker: Any, worker: Any) -> None:
        self.calls.append(("before_worker_boot", worker))

    def after_worker_boot(self, broker: Any, worker: Any) -> None:
        self.calls.append(("after_worker_boot", worker))

    def before_worker_shutdown(self, broker: Any, worker: Any) -> None:
        self.calls.append(("before_worker_shutdown", worker))

    def after_worker_shutdown(self, broker: Any, worker: Any) -> None:
        self.calls.append(("after_worker_shutdown", worker))

    def after_consumer_thread_boot(self, broker: Any, thread: Any) -> None:
        self.calls.append(("after_consumer_thread_boot", thread))

    def before_consumer_thread_shutdown(self, broker: Any, thread: Any) -> None:
        self.calls.append(("before_consumer_thread_shutdown", thread))

    def after_worker_thread_boot(self, broker: Any, thread: Any) -> None:
        self.calls.append(("after_worker_thread_boot", thread))

    def before_worker_thread_shutdown(self, broker: Any, thread: Any) -> None:
        self.calls.append(("before_worker_thread_shutdown", thread))

    def of(self, hook: str) -> list[Any]:
        return [subject for name, subject in self.calls if name == hook]


@pytest.fixture
def boots(broker: StubBroker) -> Boots:
    boots = Boots()
    broker.add_middleware(boots)
    return boots


def test_the_defaults() -> None:
    """Eight threads, a second of waiting, all queues."""
    worker = dramatiq.Worker(StubBroker())
    assert (worker.worker_threads, worker.worker_timeout, worker.consumer_whitelist) == (8, 1000, None)
    assert (worker.queue_prefetch, worker.delay_prefetch) == (16, 8000)


def test_the_timeout_and_the_prefetch_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under Dramatiq's names, and ours, which win."""
    monkeypatch.setenv("dramatiq_worker_timeout", "500")
    monkeypatch.setenv("dramatiq_queue_prefetch", "3")
    monkeypatch.setenv("greenroom_queue_prefetch", "4")
    monkeypatch.setenv("dramatiq_delay_queue_prefetch", "5")
    worker = dramatiq.Worker(StubBroker())
    assert (worker.worker_timeout, worker.queue_prefetch, worker.delay_prefetch) == (500, 4, 5)


def test_prefetch_has_a_ceiling() -> None:
    """No more than 65 535."""
    worker = dramatiq.Worker(StubBroker(), worker_threads=100)
    assert (worker.queue_prefetch, worker.delay_prefetch) == (200, 65_535)


def test_the_worker_tells_of_its_life(broker: StubBroker, boots: Boots, make_worker: MakeWorker) -> None:
    """Boot and shutdown, of itself and of each of its threads."""
    broker.declare_queue("default")
    worker = make_worker(broker, worker_threads=2)
    worker.stop()
    assert [name for name, subject in boots.calls if subject is worker] == [
        "before_worker_boot",
        "after_worker_boot",
        "before_worker_shutdown",
        "after_worker_shutdown",
    ]
    assert len(boots.of("after_worker_thread_boot")) == 2
    assert len(boots.of("before_worker_thread_shutdown")) == 2
    assert all(isinstance(t, dramatiq.WorkerThread) for t in boots.of("after_worker_thread_boot"))


def test_consumers_are_told_of_once_a_queue(broker: StubBroker, boots: Boots, make_worker: MakeWorker) -> None:
    """Each queue has a view with its name, broker and prefetch, also one that is declared later."""
    broker.declare_queue("first")
    worker = make_worker(broker, worker_threads=2)
    broker.declare_queue("second")
    booted = boots.of("after_consumer_thread_boot")
    assert [view.queue_name for view in booted] == ["first", "second"]
    assert all(isinstance(view, dramatiq.ConsumerThread) for view in booted)
    assert all((view.broker, view.prefetch, view.paused) == (broker, 4, False) for view in booted)
    assert worker.consumers == {"first": booted[0], "second": booted[1]}
    worker.stop()
    assert boots.of("before_consumer_thread_shutdown") == booted
    assert worker.consumers == {}


def test_views_of_what_is_inside(broker: StubBroker, make_worker: MakeWorker) -> None:
    """``workers`` are the threads, ``work_queue`` says how many messages wait for one."""
    entered, leave = threading.Event(), threading.Event()

    @dramatiq.actor
    def block() -> None:
        entered.set()
        leave.wait(10)

    worker = make_worker(broker, worker_threads=1, queues=["default"])
    assert [type(thread) for thread in worker.workers] == [dramatiq.WorkerThread]
    assert worker.consumer_whitelist == {"default"}
    assert (worker.work_queue.qsize(), worker.work_queue.empty()) == (0, True)
    block.send()
    assert entered.wait(10)
    leave.set()
    broker.join("default", timeout=10_000)
    worker.stop()
    assert worker.workers == []
    assert worker.work_queue.empty()


def test_a_paused_worker_takes_nothing(broker: StubBroker, worker: dramatiq.Worker) -> None:
    """Until it is resumed; its views say so."""
    done: list[int] = []
    note = dramatiq.actor(done.append, actor_name="note")
    note.send(1)
    broker.join("default", timeout=10_000)
    worker.pause()
    assert worker.consumers["default"].paused
    wait_until(lambda: bool(worker._pump.consumer._paused), "the pump has paused")
    note.send(2)
    assert broker.queues["default"].qsize() == 1
    worker.resume()
    assert not worker.consumers["default"].paused
    broker.join("default", timeout=10_000)
    assert done == [1, 2]


def test_join_waits_for_all_queues(broker: StubBroker, worker: dramatiq.Worker) -> None:
    """What is sent from inside an actor is waited for, too."""
    done: list[int] = []
    note = dramatiq.actor(done.append, actor_name="note", queue_name="notes")
    dramatiq.actor(note.send, actor_name="ask").send(1)
    broker.join("default", timeout=10_000)
    worker.join()
    assert done == [1]


def test_actors_may_be_declared_after_the_worker_started(broker: StubBroker, worker: dramatiq.Worker) -> None:
    """Their queues are consumed as well."""
    done: list[int] = []
    dramatiq.actor(done.append, actor_name="late", queue_name="late").send(1)
    broker.join("late", timeout=10_000)
    assert done == [1]


def test_dramatiqs_recipe_for_tests() -> None:
    """A stub broker, a process boot, a worker with a short timeout, two joins."""
    broker = StubBroker()
    broker.emit_after("process_boot")
    done: list[int] = []
    note = dramatiq.actor(done.append, actor_name="note", broker=broker)
    worker = dramatiq.Worker(broker, worker_timeout=100)
    worker.start()
    note.send(1)
    broker.join(note.queue_name, timeout=10_000)
    worker.join()
    worker.stop()
    assert done == [1]
