"""The board of a worker: what runs stands there, from before its first hook until it is over, and nothing else does."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from greenroom import Message, Middleware, Worker, actor
from greenroom.board import MAX_PLACES, Board
from greenroom.errors import ConnectionClosed
from greenroom.middleware import Retries, ShutdownNotifications, SkipMessage, TimeLimit
from greenroom.testing.clock import ManualClock
from tests.runtime.async_kit import AsyncGate
from tests.runtime.cli_kit import wait_until
from tests.runtime.worker_kit import ENGINES, EngineTestBroker, Gate, Troubled, collector, make_broker, working

MakeBroker = Callable[..., EngineTestBroker]


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture(params=ENGINES)
def make(request: pytest.FixtureRequest, tmp_path: Path, clock: ManualClock) -> Iterator[MakeBroker]:
    """Makes the test's broker, whose transport notes all trips."""
    brokers = []

    def make(*middleware: Middleware) -> EngineTestBroker:
        inner = make_broker(request.param, tmp_path, clock=clock).transport
        policies = [TimeLimit(interval=2), ShutdownNotifications(), *middleware, Retries(max_retries=0)]
        brokers.append(EngineTestBroker(Troubled(inner), policies, clock=clock))
        return brokers[-1]

    yield make
    for broker in brokers:
        broker.close()


def marks(broker: EngineTestBroker) -> dict[Any, int]:
    """The marks of all that was claimed so far, by the message's first argument."""
    deliveries = [delivery for _, _, exchange in broker.transport.trips if exchange for delivery in exchange.deliveries]
    return {Message.decode(delivery.body).args[0]: delivery.mark for delivery in deliveries}


def running(worker: Worker) -> set[int]:
    assert worker.board is not None
    return worker.board.running()


class Hold(Middleware):
    """Keeps messages before and after their actor until they are released."""

    def __init__(self) -> None:
        self.before, self.after = Gate(), Gate()

    def before_process_message(self, broker: Any, message: Any) -> None:
        self.before(message.args[0])

    def after_process_message(self, broker: Any, message: Any, **_: Any) -> None:
        self.after(message.args[0])


def test_what_runs_stands_on_the_board(make: MakeBroker) -> None:
    """A message's mark is there from before its first hook until after its last one; one that was only claimed is not
    there."""
    broker, gate = make(hold := Hold()), Gate()
    work = actor(gate, broker=broker, actor_name="work")
    work.send_many((n,) for n in range(2))
    with working(broker, 2) as worker:
        hold.before.wait_for(0, 1)
        both = set(marks(broker).values())
        assert len(both) == 2
        assert running(worker) == both
        hold.before.open()
        gate.wait_for(0, 1)
        assert running(worker) == both
        gate.open()
        hold.after.wait_for(0, 1)
        assert running(worker) == both
        hold.after.open()
        broker.wait_until_empty()
        assert running(worker) == set()


def test_what_is_only_held_does_not_stand_there(make: MakeBroker) -> None:
    """Messages that were claimed ahead and wait for a thread would be given back unpunished."""
    broker, gate = make(), Gate()
    block = actor(gate, broker=broker, actor_name="block")
    collect, _ = collector(broker)
    collect.send_many((n,) for n in range(300))
    with working(broker) as worker:
        broker.wait_until_empty()  # its tasks are short: it claims ahead
        block.send("b")
        gate.wait_for("b")
        collect.send_many((n,) for n in range(10))
        wait_until(lambda: broker.counts().claimed > 1, "it has claimed ahead")
        assert running(worker) == {marks(broker)["b"]}
        gate.open()
        broker.wait_until_empty()


def test_what_was_skipped_or_failed_leaves_nothing(make: MakeBroker) -> None:
    """However a message ends, its place is empty afterwards."""

    class Break(Middleware):
        def before_process_message(self, broker: Any, message: Any) -> None:
            if message.args[0] == "skip":
                raise SkipMessage
            if message.args[0] == "exit":
                raise SystemExit

        def after_process_message(self, broker: Any, message: Any, **_: Any) -> None:
            if message.args[0] == "exit late":
                raise SystemExit

    broker = make(Break())

    @actor(broker=broker)
    def work(what: str) -> None:
        if what == "fail":
            raise RuntimeError

    work.send_many((what,) for what in ("skip", "exit", "exit late", "fail", "succeed"))
    with working(broker, 2) as worker:
        broker.wait_until_empty()
        assert running(worker) == set()


def test_coroutines_stand_on_the_board(make: MakeBroker) -> None:
    """Each has a place of its own, beside those of the threads."""
    broker, gate, agate = make(), Gate(), AsyncGate()
    work = actor(gate, broker=broker, actor_name="work")
    awork = actor(agate.__call__, broker=broker, actor_name="awork")
    work.send("sync")
    awork.send_many((n,) for n in range(10))
    with working(broker, 1, concurrency=5) as worker:
        wait_until(lambda: len(agate.entered) == 5, "five run")
        gate.wait_for("sync")
        known = marks(broker)
        assert running(worker) == {known[value] for value in [*agate.entered, "sync"]}
        agate.open()
        wait_until(lambda: len(agate.left) == 10, "they have run")
        wait_until(lambda: running(worker) == {known["sync"]}, "only the thread's is left")
        gate.open()
        broker.wait_until_empty()
        wait_until(lambda: running(worker) == set(), "nothing is left")


def test_a_stuck_thread_keeps_its_mark(make: MakeBroker, clock: ManualClock) -> None:
    """A thread that was given up stands on the board until its function returns; the one in its place has another
    cell."""
    broker, struck, gate = make(), [], Gate()
    begun, release = threading.Event(), threading.Event()

    @actor(broker=broker, time_limit=1000)
    def stubborn(_value: str) -> None:
        begun.set()
        while not release.is_set():
            try:
                release.wait(0.001)
            except BaseException as e:  # noqa: BLE001  # the point of the test
                struck.append(e)

    block = actor(gate, broker=broker, actor_name="block", time_limit=None)
    stubborn.send("stuck")
    with working(broker, 3) as worker:
        assert begun.wait(30)
        for second in range(1, 7):
            clock.advance_ms(1000)
            wait_until(lambda n=second: len(struck) >= min(n, 5), "it is struck")
        wait_until(lambda: worker._executor is not None and worker._executor.stuck, "its thread is replaced")
        block.send_many((n,) for n in range(2))
        gate.wait_for(0, 1)
        known = marks(broker)
        assert running(worker) == {known["stuck"], known[0], known[1]}
        release.set()
        wait_until(lambda: running(worker) == {known[0], known[1]}, "it has returned")
        gate.open()
        broker.wait_until_empty()
        assert running(worker) == set()


def test_a_finished_message_is_off_the_board_before_it_is_settled(make: MakeBroker) -> None:
    """No settlement ever travels while its message stands on the board: a mark may be used again afterwards."""
    broker = make()
    collect, _ = collector(broker)
    both = []
    with working(broker, 4) as worker:

        def look(settle: Any, _limit: int) -> None:
            both.append({s.delivery.mark for s in settle} & running(worker))

        broker.transport.before = look
        collect.send_many((n,) for n in range(3000))
        broker.wait_until_empty()
    assert len(both) > 3
    assert not any(both)


def test_the_file_of_a_sqlite_worker(tmp_path: Path) -> None:
    """On SQLite the board is a file that another process can read; it says who the parent is and when the worker lived
    last, and there is a place for every thread and coroutine."""
    broker, gate = make_broker("sqlite", tmp_path), Gate()
    block = actor(gate, broker=broker, actor_name="block")
    block.send(1)
    worker = Worker(broker, worker_threads=3, concurrency=5)
    worker.parent_pid = 4321
    assert worker.board is None
    worker.start()
    try:
        gate.wait_for(1)
        assert worker.board is not None
        assert worker.board.path is not None
        other = Board.open(worker.board.path)
        assert other is not None
        assert len(other.running()) == 1
        assert other.parent_pid == 4321
        wait_until(lambda: other.beat_ms, "it has said that it lives")
        first_ms = other.beat_ms
        assert abs(broker.clock.now_ms() - first_ms) < 60_000
        wait_until(lambda: other.beat_ms > first_ms, "it has said so again")
        assert len(other.cells) == 2 * 3 + 5
    finally:
        gate.open()
        worker.stop()
        broker.close()


def test_whoever_knows_the_board_learns_of_its_new_file(tmp_path: Path) -> None:
    """If somebody deletes the file of a worker's board, it is made anew, and told of: else the parent would look at a
    board on which nothing beats any more, and take the worker for one that hangs."""
    broker, told = make_broker("sqlite", tmp_path), []
    worker = Worker(broker, worker_threads=1)
    worker.on_board = lambda board: told.append(board.path)
    worker.start()
    try:
        assert len(told) == 1
        told[0].unlink()
        wait_until(lambda: len(told) == 2, "it is told of again")
        other = Board.open(told[1])
        assert other is not None
        first_ms = other.beat_ms
        wait_until(lambda: other.beat_ms > first_ms, "it beats")
    finally:
        worker.stop()
        broker.close()


def test_the_lease_is_renewed(make: MakeBroker) -> None:
    """About once a second, from a thread of its own, whatever the pump does; an engine that fails there does no
    harm."""
    broker, gate = make(), Gate()
    block = actor(gate, broker=broker, actor_name="block")
    renewed: list[str] = []
    plain = broker.transport.consumer

    def consumer(owner: str) -> Any:
        made = plain(owner)

        def extend() -> None:
            renewed.append(threading.current_thread().name)
            raise ConnectionClosed("gone")

        made.extend = extend
        return made

    broker.transport.consumer = consumer
    block.send(1)
    started_s = time.monotonic()
    with working(broker):
        gate.wait_for(1)
        wait_until(lambda: len(renewed) >= 2, "it is renewed")
        assert set(renewed) == {"ticker"}
        assert len(renewed) <= 1 + time.monotonic() - started_s
        gate.open()
        broker.wait_until_empty()


def test_too_many_places() -> None:
    """A process cannot run more messages at a time than a board has places."""
    broker = EngineTestBroker(None)
    with pytest.raises(ValueError, match="too many for one process"):
        Worker(broker, concurrency=MAX_PLACES)


def test_there_are_not_more_cells_than_that(
    make: MakeBroker, clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    """When as many threads were replaced as there are, which only a worker sees that has given up already, no other one
    is: each would need a cell of the board."""
    broker, struck = make(), []
    begun, release = threading.Event(), threading.Event()

    @actor(broker=broker, time_limit=1000)
    def stubborn() -> None:
        begun.set()
        while not release.is_set():
            try:
                release.wait(0.001)
            except BaseException as e:  # noqa: BLE001  # the point of the test
                struck.append(e)

    stubborn.send()
    with working(broker, 1) as worker:
        assert begun.wait(30)
        threads = worker.workers
        assert worker._executor is not None
        worker._executor.stuck.append(threads[0])
        for second in range(1, 8):
            clock.advance_ms(1000)
            wait_until(lambda n=second: len(struck) >= min(n, 5), "it is struck")
        wait_until(lambda: worker.is_stuck, "the ticker has looked")
        assert worker.workers == threads
        release.set()
        broker.wait_until_empty()
    assert "is stuck in message" not in caplog.text
