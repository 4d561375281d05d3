"""Real workers on a Redis server that are killed: what they held, and when others have it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from greenroom.brokers.redis import RedisBroker
from greenroom.message import Message
from greenroom.ports.admin import Counts
from tests.runtime.cli_kit import Program, Running, is_running, wait_until

HEAD = """
import os, pathlib, threading
import greenroom
from greenroom.brokers.redis import RedisBroker

HERE = pathlib.Path(__file__).parent
broker = RedisBroker(url=os.environ["REDIS"], lease_ms=int(os.environ.get("LEASE_MS", 15_000)))
greenroom.set_broker(broker)

def mark(name):
    (HERE / f"mark-{name}").touch()

def wait_for(name):
    while not (HERE / f"mark-{name}").exists():
        threading.Event().wait(0.005)

@greenroom.actor(max_retries=0)
def work(name):
    mark(f"{name}-{os.getpid()}")
    wait_for("end")
"""
#: The promise is about a second; the machine may be busy.
WITHIN_S = 5.0


@pytest.fixture
def program(tmp_path: Path, redis_url: str, monkeypatch: pytest.MonkeyPatch) -> Program:
    monkeypatch.setenv("REDIS", redis_url)
    return Program(tmp_path).write("", head=HEAD)


@pytest.fixture
def broker(program: Program, redis_url: str) -> Iterator[RedisBroker]:
    broker = RedisBroker(url=redis_url)
    broker.declare_queue("default")
    yield broker
    program.let_go("end")
    broker.close()


def send(broker: RedisBroker, *names: str) -> None:
    broker.enqueue_many([Message("default", "work", (name,), {}, {}) for name in names])


def runner_of(program: Program, name: str, *others: int) -> int:
    """Which process runs a message, once one does that is not one of these."""

    def found() -> list[int]:
        pids = [int(path.name.rpartition("-")[2]) for path in program.folder.glob(f"mark-{name}-*")]
        return [pid for pid in pids if pid not in others]

    wait_until(found, f"{name} runs")
    return found()[0]


def claimed(broker: RedisBroker) -> dict[str, tuple[int, int]]:
    """Attempts and crashes of what is claimed, by the message's argument."""
    held = broker.transport.peek("default", state="claimed", limit=100)
    return {Message.decode(m.body).args[0]: (m.attempt, m.crashes) for m in held}


def finish(program: Program, broker: RedisBroker, *running: Running) -> None:
    program.let_go("end")
    wait_until(lambda: broker.transport.counts(["default"])["default"] == Counts(), "all is done")
    for worker in running:
        worker.stop()
    assert broker.client.hlen("{dramatiq}:g1:owners") == 0
    assert broker.client.zcard("{dramatiq}:g1:leases") == 0


def test_f01_a_killed_worker(program: Program, broker: RedisBroker) -> None:
    """F01: ``kill -9`` of one of two workers: what it ran starts in the other one or in its successor within about a
    second, with one crash; what it merely held comes with it, and is charged with nothing."""
    with program.start("worker", "app", "-p", "2", "-t", "1") as running:
        running.wait_until_ready()
        send(broker, "a", "b")
        first, second = runner_of(program, "a"), runner_of(program, "b")
        assert first != second
        os.kill(first, signal.SIGKILL)
        wait_until(lambda: set(running.workers()) - {first, second}, "its successor is ready")
        ready_at = time.monotonic()
        third = runner_of(program, "a", first)
        assert time.monotonic() - ready_at < WITHIN_S
        assert third != second, "suspects run alone, and that one is busy"
        assert claimed(broker) == {"a": (2, 1), "b": (1, 0)}
        finish(program, broker, running)


def test_f02_the_whole_program_is_killed(program: Program, broker: RedisBroker) -> None:
    """F02: the parent is killed, and its workers die with it: a worker of another program of this host, which waits,
    has what they ran within about a second."""
    with program.start("worker", "app", "-p", "1", "-t", "1", log="one.txt") as one:
        one.wait_until_ready()
        send(broker, "a")
        first = runner_of(program, "a")
        with program.start("worker", "app", "-p", "1", "-t", "1") as two:
            two.wait_until_ready()
            one.process.kill()
            wait_until(lambda: not is_running(first), "the worker is dead")
            dead_at = time.monotonic()
            second = runner_of(program, "a", first)
            assert time.monotonic() - dead_at < WITHIN_S
            assert second in two.workers()
            assert claimed(broker) == {"a": (2, 1)}
            finish(program, broker, two)


def test_a_lost_host(program: Program, broker: RedisBroker, tmp_path: Path) -> None:
    """A whole host is lost: workers of another one, which cannot see who lives there, have what it held once its leases
    have ended, and charge what it said it ran."""

    def said() -> list[bytes]:
        return broker.client.hvals("{dramatiq}:g1:running")

    with program.start("worker", "app", "-p", "1", "-t", "2", log="lost.txt", LEASE_MS="3000") as lost:
        lost.wait_until_ready()
        send(broker, "a", "b")
        first = runner_of(program, "a")
        assert runner_of(program, "b") == first
        wait_until(lambda: list(map(len, map(bytes.split, said()))) == [2], "it has said what it runs")
        elsewhere = {"GREENROOM_RUN_FOLDER": str(tmp_path / "there"), "LEASE_MS": "3000"}
        with program.start("worker", "app", "-p", "1", "-t", "2", **elsewhere) as other:
            other.wait_until_ready()
            lost.process.kill()
            wait_until(lambda: not is_running(first), "the worker is dead")
            wait_until(lambda: claimed(broker) == {"a": (2, 1), "b": (2, 1)}, "its lease has ended")
            assert broker.transport.counts(["default"])["default"].ready == 0
            other.wait_for_text("its lease has ended")
            finish(program, broker, other)


def test_f07_a_worker_that_stood_still(program: Program, broker: RedisBroker) -> None:
    """F07: a worker is stopped for longer than its lease. What it ran starts elsewhere, uncharged, for this host sees
    that it lives; when it goes on, what it settles is refused, and it works on under a new name."""
    with program.start("worker", "app", "-p", "1", "-t", "1", log="still.txt", LEASE_MS="3000") as still:
        still.wait_until_ready()
        send(broker, "a")
        first = runner_of(program, "a")
        os.kill(first, signal.SIGSTOP)
        with program.start("worker", "app", "-p", "1", "-t", "1", LEASE_MS="3000") as other:
            other.wait_until_ready()
            wait_until(lambda: claimed(broker).get("a", (1, 0))[0] == 2, "its lease has ended")
            assert claimed(broker) == {"a": (2, 0)}
            program.let_go("end")
            wait_until(lambda: broker.transport.counts(["default"])["default"] == Counts(), "it was run elsewhere")
            os.kill(first, signal.SIGCONT)
            still.wait_for_text("taken for dead")
            still.wait_for_text("no longer ours: its ACK was not applied")
            other.stop()
            send(broker, "b")
            assert runner_of(program, "b") == first
            finish(program, broker, still)
