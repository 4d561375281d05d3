"""Results in real processes: read from elsewhere by id alone, and never without what became of their message."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from greenroom import Message
from greenroom.brokers.engine import EngineBroker
from greenroom.errors import ResultFailure, ResultPending
from greenroom.ports.admin import Counts
from greenroom.results import Results
from tests.runtime.cli_kit import Program, environment, is_running, wait_until
from tests.runtime.engine_kit import ENGINES, open_broker, url_of

ACTORS = """
from greenroom.results import Results

broker.add_middleware(Results(store_results=True))

@greenroom.actor(max_retries=0)
def work(name):
    mark(f"started-{name}")
    wait_for(name)
    return [name, os.getpid()]

@greenroom.actor(max_retries=0)
def number(n):
    return n

@greenroom.actor(max_retries=0)
def fail():
    raise LookupError("nowhere")
"""

#: Another process, which knows nothing but the engine's URL and an id.
READER = """
import sys
from greenroom.brokers import from_url
from greenroom.results import Results
broker = from_url(sys.argv[1], middleware=[Results()])
print(broker.get_result(sys.argv[2], block=True, timeout=30000)[0])
"""

#: A worker that dies at a chosen place of the trip that settles.
DIES = """
import os, signal, sys
from greenroom.engines.redis.consumer import RedisConsumer
from greenroom.engines.sqlite.consumer import SqliteConsumer

Consumer = {consumer}
real = Consumer.exchange

def exchange(self, settle, limit, skip=frozenset()):
    if settle and {before}:
        os.kill(os.getpid(), signal.SIGKILL)
    answer = real(self, settle, limit, skip)
    if settle:
        os.kill(os.getpid(), signal.SIGKILL)
    return answer

Consumer.exchange = exchange
"""


@pytest.fixture(params=ENGINES)
def program(tmp_path: Path, request: pytest.FixtureRequest) -> Program:
    return Program(tmp_path, url_of(request.param, tmp_path, request)).write(ACTORS)


@pytest.fixture
def broker(program: Program) -> Iterator[EngineBroker]:
    broker = open_broker(program.url, middleware=[Results(store_results=True)])
    yield broker
    broker.close()


def send(broker: EngineBroker, actor: str, *args: object) -> str:
    return broker.enqueue(Message("default", actor, args, {}, {})).message_id


WORKER = ("worker", "app", "-p", "1", "-t", "2")


def test_from_another_process_by_its_id(program: Program, broker: EngineBroker) -> None:
    """A process that waits for a result knows the engine and the id; it is woken when the result is there."""
    message_id = send(broker, "work", "a")
    reader = subprocess.Popen(
        [sys.executable, "-c", READER, program.url, message_id],
        env=environment({}),
        stdout=subprocess.PIPE,
        text=True,
    )
    with reader, program.start(*WORKER):
        program.wait_for_mark("started-a")
        assert reader.poll() is None
        program.let_go("a")
        out, _ = reader.communicate(timeout=30)
    assert (out, reader.returncode) == ("a\n", 0)


def test_failures_cross_processes_as_text(program: Program, broker: EngineBroker) -> None:
    """Type, message and traceback; the class is not looked up by its name."""
    message_id = send(broker, "fail")
    with program.start(*WORKER), pytest.raises(ResultFailure, match="actor raised LookupError: nowhere") as e:
        broker.get_result(message_id, block=True, timeout=30_000)
    assert 'raise LookupError("nowhere")' in e.value.traceback


@pytest.mark.skipif(sys.platform != "linux", reason="finds the worker's process in /proc")
def test_a_worker_is_killed_while_the_actor_runs(program: Program, broker: EngineBroker) -> None:
    """The mark stays; whoever runs the message next writes the result, and the waiter gets that one."""
    message_id = send(broker, "work", "a")
    with program.start(*WORKER, log="victim.txt") as victim:
        program.wait_for_mark("started-a")
        (pid,) = victim.wait_until_ready().workers()
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not is_running(pid), "the worker is dead")
        with pytest.raises(ResultPending):
            broker.get_result(message_id)
        program.let_go("a")
        name, second_pid = broker.get_result(message_id, block=True, timeout=30_000)
    assert name == "a"
    assert second_pid != pid


@pytest.mark.skipif(sys.platform != "linux", reason="needs a worker that reaps at once")
@pytest.mark.parametrize("before", [True, False])
def test_a_worker_is_killed_as_it_settles(program: Program, broker: EngineBroker, before: bool) -> None:
    """Before the commit there is neither a settlement nor a result; after it there are both, always."""
    consumer = "RedisConsumer" if program.url.startswith("redis") else "SqliteConsumer"
    program.write(DIES.format(before=before, consumer=consumer), "dies.py", head="")
    message_ids = [send(broker, "number", n) for n in range(50)]
    with program.start("worker", "app", "dies", "-p", "1", "-t", "2", log="victim.txt") as victim:
        wait_until(lambda: "SIGKILL" in victim.text, "a worker has killed itself")
    counts = broker.transport.counts(["default"])["default"]
    done = sum(is_done(broker, message_id) for message_id in message_ids)
    assert done == 50 - counts.ready - counts.claimed - counts.delayed - counts.dead
    assert done == 0 if before else done > 0
    with program.start(*WORKER):
        wait_until(lambda: broker.transport.counts(["default"])["default"].ready == 0, "all have run")
        if before:
            return  # they run alone now, one after the other: that is another test's matter
        wait_until(lambda: broker.transport.counts(["default"])["default"] == Counts(), "the queue is empty")
        assert [broker.get_result(message_id) for message_id in message_ids] == list(range(50))


def is_done(broker: EngineBroker, message_id: str) -> bool:
    try:
        broker.get_result(message_id)
    except ResultPending:
        return False
    return True
