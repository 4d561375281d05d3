"""Actors that fork, and actors that start processes of their own."""

from __future__ import annotations

import os
import re
import signal
import time
from pathlib import Path

import pytest

from tests.forks.kit import stored
from tests.runtime.cli_kit import Program, wait_until

#: The parent of the fork notes how its child has ended. `ran` and `thanked` must be called once a message.
PROGRAM = """
import asyncio, signal, sys, time

def note(line):
    with (HERE / "notes.txt").open("a") as notes:
        notes.write(f"{line}\\n")

def fork():
    pid = os.fork()
    if pid == 0:
        signal.alarm(20)
        later.send(2)  # a child may send
        return True
    note(f"child {os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])}")
    return False

def come_back(how):
    if how == "raises":
        raise RuntimeError("out of the child")
    if how == "exits":
        sys.exit(3)

@greenroom.actor
def thank(message, result):
    note("thanked")

@greenroom.actor
def complain(message, error):
    note("complained")

@greenroom.actor(on_success=thank, on_failure=complain, max_retries=0)
def forks(how):
    if fork():
        come_back(how)

@greenroom.actor(on_success=thank, on_failure=complain, max_retries=0)
async def aforks(how):
    never = asyncio.get_running_loop().create_future()
    await asyncio.sleep(0)
    if fork():
        if how == "sleeps":
            await asyncio.sleep(1)
        if how == "yields":
            await Yielding()
        if how == "waits":
            await never
        come_back(how)

class Yielding:
    def __await__(self):
        yield

@greenroom.actor
def later(number):
    note(f"later {number}")

@greenroom.actor
async def alater(number):
    note(f"later {number}")
"""


@pytest.fixture
def program(tmp_path: Path) -> Program:
    return Program(tmp_path)


def notes(program: Program) -> list[str]:
    """What the actors have noted so far."""
    file = program.folder / "notes.txt"
    return file.read_text().splitlines() if file.exists() else []


CASES = [
    ("forks", "returns"),
    ("forks", "raises"),
    ("forks", "exits"),
    *(("aforks", how) for how in ("returns", "raises", "sleeps", "yields", "waits")),
]


@pytest.mark.parametrize(("actor", "how"), CASES)
def test_f102_the_child_of_an_actor_comes_back(program: Program, actor: str, how: str) -> None:
    """The child ends with 70 and one line of log, however it comes back. Its parent settles the message, once; what
    waits behind it is run by the parent, once; and what the child has sent arrives."""
    program.write(PROGRAM)
    program.send(actor, how)
    program.send("alater" if actor == "aforks" else "later", 1)
    with program.start("worker", "app", "-p", "1", "-t", "1", "--concurrency", "1") as worker:
        wait_until(lambda: len(notes(program)) >= 4, "four notes are there")
        worker.wait_until_ready()
        worker.stop()
    assert sorted(notes(program)) == ["child 70", "later 1", "later 2", "thanked"]
    assert len(re.findall("was forked inside of an actor", worker.text)) == 1
    assert stored(program.folder) == {}


def test_f102_other_coroutines_at_the_fork_run_once(program: Program) -> None:
    """A coroutine's child takes nothing from those that share the loop with its parent."""
    program.write(PROGRAM)
    for number in range(10, 30):
        program.send("alater", number)
        if number % 5 == 0:
            program.send("aforks", "yields")
    with program.start("worker", "app", "-p", "1", "-t", "1", "--concurrency", "16") as worker:
        wait_until(lambda: len(notes(program)) >= 32, "all has run")
        worker.wait_until_ready()
        worker.stop()
    expected = [*(f"later {number}" for number in range(10, 30)), *["child 70", "later 2", "thanked"] * 4]
    assert sorted(notes(program)) == sorted(expected)
    assert stored(program.folder) == {}


CHILDREN = """
import asyncio, multiprocessing, signal, subprocess, sys
from concurrent.futures import ProcessPoolExecutor

def note(line):
    with (HERE / "notes.txt").open("a") as notes:
        notes.write(f"{line}\\n")

def double(number):
    later.send(number)
    return 2 * number

@greenroom.actor
def later(number):
    note(f"later {number}")

@greenroom.actor
def works(method):
    context = multiprocessing.get_context(method)
    with context.Pool(2) as pool:  # its end terminates the pool's processes
        note(f"pool {pool.map(double, [1, 2, 3])}")
    with ProcessPoolExecutor(2, mp_context=context) as pool:
        note(f"executor {list(pool.map(double, [4, 5]))}")
    process = context.Process(target=double, args=(6,))
    process.start()
    process.join()
    note(f"process {process.exitcode}")
    for target in (wait_for_ever, wait_for_term):
        (HERE / "mark-child-runs").unlink(missing_ok=True)
        hung = context.Process(target=target)
        hung.start()
        wait_for("child-runs")
        hung.terminate()
        hung.join()
        note(f"terminated {hung.exitcode}")
    printed = subprocess.run([sys.executable, "-c", "print(7)"], capture_output=True, text=True).stdout
    note(f"subprocess {printed.strip()}")

def is_profiled():
    note(f"profiled {sys.getprofile() is not None}")

@greenroom.actor
async def aworks():
    process = multiprocessing.get_context("fork").Process(target=is_profiled)
    process.start()
    await asyncio.to_thread(process.join)
    note(f"process {process.exitcode}")

def wait_for_term():
    signal.signal(signal.SIGTERM, lambda _number, _frame: sys.exit(5))
    wait_for_ever()

def wait_for_ever():
    mark("child-runs")
    threading.Event().wait()

@greenroom.actor
def leaves(what):
    if what == "process":
        multiprocessing.get_context("fork").Process(target=wait_for_ever).start()
    elif what == "thread":
        threading.Thread(target=wait_for_ever).start()
    else:
        subprocess.Popen(["sleep", "1000"])
        mark("child-runs")
"""


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_f103_actors_start_processes_of_their_own(program: Program, method: str) -> None:
    """Pools, executors, processes and commands work inside of actors; what their functions send arrives; and processes
    that are terminated end, while the worker goes on."""
    program.write(CHILDREN)
    program.send("works", method)
    with program.start("worker", "app", "-p", "1", "-t", "2") as worker:
        wait_until(lambda: len(notes(program)) >= 12, "all has run")
        worker.wait_until_ready()
        assert "Stopping" not in worker.text
        worker.stop()
    ended = ["pool [2, 4, 6]", "executor [8, 10]", "process 0", "terminated -15", "terminated 5", "subprocess 7"]
    assert sorted(notes(program)) == sorted([*ended, *(f"later {number}" for number in range(1, 7))])
    assert stored(program.folder) == {}


def test_a_coroutine_starts_a_process(program: Program) -> None:
    """A process of ``multiprocessing`` does not come back to the loop, and bears nothing of what keeps others from
    it."""
    program.write(CHILDREN)
    program.send("aworks")
    with program.start("worker", "app", "-p", "1", "-t", "1") as worker:
        wait_until(lambda: len(notes(program)) >= 2, "it has run")
        worker.wait_until_ready()
        worker.stop()
    assert notes(program) == ["profiled False", "process 0"]


@pytest.mark.parametrize("what", ["process", "thread", "command"])
def test_f103_what_an_actor_leaves_behind_does_not_hold_up_the_end(program: Program, what: str) -> None:
    """An actor starts something that never ends and does not wait for it: the worker ends within its grace."""
    program.write(CHILDREN)
    program.send("leaves", what)
    with program.start("worker", "app", "-p", "1", "-t", "1", "--worker-shutdown-timeout", "500") as worker:
        worker.wait_until_ready()
        program.wait_for_mark("child-runs")
        wait_until(lambda: not program.waiting(), "the actor has returned")
        told_s = time.monotonic()
        worker.stop()
        assert time.monotonic() - told_s < 0.5 + 8


def test_a_worker_that_dies_before_the_children_of_its_tasks_is_replaced(program: Program) -> None:
    """Whatever a child has inherited keeps neither the worker's place taken nor its messages claimed."""
    program.write(CHILDREN)
    program.send("leaves", "process")
    with program.start("worker", "app", "-p", "1", "-t", "1", "--worker-shutdown-timeout", "500") as worker:
        worker.wait_until_ready()
        program.wait_for_mark("child-runs")
        (died,) = worker.children()
        os.kill(died, signal.SIGKILL)
        program.send("later", 1)
        wait_until(lambda: notes(program) == ["later 1"], "its successor works")
        assert died not in worker.children()
        worker.stop()
