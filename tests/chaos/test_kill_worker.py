"""``kill -9`` of a worker in the middle of 1 000 messages: all run, and none runs more often than it must."""

from __future__ import annotations

import os
import random
import signal
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from greenroom import Message
from greenroom.brokers.engine import EngineBroker
from greenroom.ports.admin import Counts
from tests.runtime.cli_kit import Program, Running, is_running, wait_until
from tests.runtime.engine_kit import check_nothing_is_left, is_empty, open_broker, owners_of, url_of

MESSAGES = 1000
#: The last messages wait until the kill is over, so that it always strikes in the middle.
GATE = MESSAGES - 50

#: One write to a file of the process's own, opened for appending: what is recorded survives `kill -9`.
ACTORS = f"""
runs = os.open(HERE / f"runs-{{os.getpid()}}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

@greenroom.actor(max_retries=0)
def work(number):
    os.write(runs, b"start %d\\n" % number)
    if number >= {GATE}:
        wait_for("killed")
    elif number % 3:
        threading.Event().wait(0.001)
    os.write(runs, b"end %d\\n" % number)
"""


#: How often on each engine.
SEEDS = [("sqlite", seed) for seed in range(20)] + [("redis", seed) for seed in range(4)]


@pytest.fixture
def program(tmp_path: Path, request: pytest.FixtureRequest) -> Program:
    return Program(tmp_path, url_of(request.param, tmp_path, request)).write(ACTORS)


@pytest.fixture
def broker(program: Program) -> Iterator[EngineBroker]:
    broker = open_broker(program.url)
    yield broker
    broker.close()


@pytest.mark.skipif(sys.platform != "linux", reason="finds the worker's process in /proc")
@pytest.mark.parametrize(("program", "seed"), SEEDS, indirect=["program"])
def test_f51_a_killed_worker_loses_nothing(program: Program, broker: EngineBroker, seed: int) -> None:
    """F01, F02, F51: whenever a worker is killed, another one that runs already or comes later runs all that is left.
    Only what the killed one held may start a second time, and nothing is left in the end."""
    random_ = random.Random(seed)
    kill_after = random_.randint(1, 700)
    successor_comes_first = random_.random() < 0.5
    kill_the_parent = random_.random() < 0.25
    threads = str(random_.randint(1, 8))
    with ExitStack() as stack:
        victim = stack.enter_context(program.start("worker", "app", "-p", "1", "-t", threads, log="victim.txt"))
        (victim_pid,) = victim.wait_until_ready().children()
        if successor_comes_first:
            successor = stack.enter_context(program.start("worker", "app", "-p", "1", "-t", threads)).wait_until_ready()
        broker.enqueue_many(Message("default", "work", (n,), {}, {}) for n in range(MESSAGES))
        wait_until(lambda: starts_in(program) >= kill_after, f"{kill_after} messages have started", step_s=0.001)
        os.kill(victim.process.pid if kill_the_parent else victim_pid, signal.SIGKILL)
        wait_until(lambda: not is_running(victim_pid), "the worker is dead")
        assert broker.transport.counts()["default"] != Counts(), "the kill came too late"
        program.let_go("killed")
        if not successor_comes_first:
            successor = stack.enter_context(program.start("worker", "app", "-p", "1", "-t", threads)).wait_until_ready()
        wait_until(lambda: is_empty(broker), "the queue is empty")
        wait_until(lambda: victim_pid not in [pid for _, pid in owners_of(broker)], "the dead owner is forgotten")
        stop(successor)
        if not kill_the_parent:
            wait_until(lambda: len(victim.workers()) == 1, "the victim has a successor of its own")
            stop(victim)
    check_runs(program, victim_pid)
    check_nothing_is_left(broker, dead=False)


def starts_in(program: Program) -> int:
    """How many messages have started in all workers together."""
    return sum(path.read_bytes().count(b"start") for path in program.folder.glob("runs-*"))


def stop(running: Running) -> None:
    running.process.send_signal(signal.SIGTERM)
    assert running.wait() == 0, running.text


def check_runs(program: Program, victim_pid: int) -> None:
    """Every message ended; in one process it started once; only what the victim had claimed started twice."""
    starts: Counter[int] = Counter()
    ended = set()
    for path in program.folder.glob("runs-*"):
        lines = [line.split() for line in path.read_text().splitlines()]
        started_here = [int(number) for word, number in lines if word == "start"]
        assert len(set(started_here)) == len(started_here), "a process started a message twice"
        starts.update(started_here)
        ended |= {int(number) for word, number in lines if word == "end"}
    assert ended == set(range(MESSAGES))
    victims = (program.folder / f"runs-{victim_pid}").read_text()
    started_by_victim = {int(line.split()[1]) for line in victims.splitlines() if line.startswith("start")}
    twice = {number for number, count in starts.items() if count > 1}
    assert max(starts.values()) <= 2
    assert twice <= started_by_victim
