"""F117, in real processes: a store of results that is not the broker's, and cannot be reached."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from greenroom import Message
from greenroom.brokers.sqlite import SqliteBroker
from greenroom.ports.admin import Counts
from greenroom.results import Results
from greenroom.results.backends import SqliteBackend
from tests.runtime.cli_kit import Program, wait_until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="finds the worker's process in /proc")

ACTORS = """
from greenroom.results import Results
from greenroom.results.backends import SqliteBackend

backend = SqliteBackend(HERE / "results" / "results.db")
broker.add_middleware(Results(backend=backend, store_results=True, strict=%s))

@greenroom.actor(max_retries=0, max_crashes=None)
def work(name):
    mark(f"ran-{name}")
    return name
"""
WORKER = ("worker", "app", "-p", "1", "-t", "2")


@pytest.fixture
def program(tmp_path: Path) -> Program:
    """With a file where the folder of the results should be."""
    (tmp_path / "results").touch()
    return Program(tmp_path)


@pytest.fixture
def broker(program: Program) -> Iterator[SqliteBroker]:
    backend = SqliteBackend(program.folder / "results" / "results.db")
    broker = SqliteBroker(program.folder / "queue.db", middleware=[Results(backend=backend)])
    broker.declare_queue("default")
    yield broker
    backend.close()
    broker.close()


def send(broker: SqliteBroker, name: str) -> Message[Any]:
    return broker.enqueue(Message("default", "work", (name,), {}, {}))


def result_of(broker: SqliteBroker, message: Message[Any]) -> Any:
    return message.get_result(backend=broker.get_results_backend(), block=True, timeout=30_000)


def counts(broker: SqliteBroker) -> Counts:
    return broker.transport.counts(["default"])["default"]


def mend(program: Program) -> None:
    """The store can be reached."""
    (program.folder / "results").unlink()


def test_f117_a_result_is_given_up(program: Program, broker: SqliteBroker) -> None:
    """F117: the task is done all the same, what is lost is logged; when the store is back, results are kept."""
    program.write(ACTORS % False)
    with program.start(*WORKER) as running:
        send(broker, "lost")
        running.wait_for_text("result_lost: what was to be kept of message")
        wait_until(lambda: counts(broker) == Counts(), "the message is settled")
        mend(program)
        assert result_of(broker, send(broker, "kept")) == "kept"


def test_f117_strict_results_survive_a_kill(program: Program, broker: SqliteBroker) -> None:
    """F117: with ``strict`` the message is not settled before its result is kept, and a worker that is killed while it
    waits costs neither: the next one runs the message again, and keeps its result."""
    program.write(ACTORS % True)
    message = send(broker, "strict")
    with program.start(*WORKER, log="victim.txt") as running:
        program.wait_for_mark("ran-strict")
        (pid,) = running.wait_until_ready().workers()
        assert counts(broker).claimed == 1
        os.kill(pid, signal.SIGKILL)
    assert counts(broker).claimed + counts(broker).ready == 1
    mend(program)
    with program.start(*WORKER):
        assert result_of(broker, message) == "strict"
        wait_until(lambda: counts(broker) == Counts(), "the message is settled")
