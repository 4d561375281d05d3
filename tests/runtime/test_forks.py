"""Functions that run in processes of their own beside the workers."""

from __future__ import annotations

import os
import re
import signal
import sys
from pathlib import Path

import pytest

from tests.runtime.cli_kit import Program, is_running, wait_until

METHODS = ("fork", "spawn", "forkserver")
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")

BESIDE = """
import os, pathlib, signal, sys, threading

HERE = pathlib.Path(__file__).parent

def note(name):
    with open(HERE / f"ran-{name}", "a") as file:
        file.write(f"{os.getpid()}\\n")

def serve():
    try:
        note("serve")
        print("serving")
        threading.Event().wait(60)
    finally:
        note("tidied")
    return 1

def once():
    note("once")
    return 0

def nothing():
    note("nothing")

def crash():
    note("crash")
    if len((HERE / "ran-crash").read_text().split()) < 3:
        raise RuntimeError("no luck yet")
    return 0

def five():
    note("five")
    if len((HERE / "ran-five").read_text().split()) < 3:
        return 5
    return 0

def stubborn():
    note("stubborn")
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    note("deaf")
    threading.Event().wait(60)
"""
ACTORS = """
@greenroom.actor
def leave(name):
    mark(name)
"""


class Beside(Program):
    """A program with a module ``beside`` whose functions note that they ran."""

    def runs(self, name: str) -> list[int]:
        """The processes in which a function ran."""
        path = self.folder / f"ran-{name}"
        return [int(pid) for pid in path.read_text().split()] if path.exists() else []

    def wait_for_runs(self, name: str, count: int = 1) -> list[int]:
        wait_until(lambda: len(self.runs(name)) >= count, f"{name} has run {count} times")
        return self.runs(name)


@pytest.fixture
def program(tmp_path: Path) -> Beside:
    program = Beside(tmp_path)
    program.write(ACTORS)
    program.write(BESIDE, name="beside.py", head="")
    return program


@pytest.mark.parametrize("method", METHODS)
def test_it_runs_beside_the_workers_and_ends_with_them(program: Beside, method: str) -> None:
    """In a process of its own, which is none of the workers'; what it prints is forwarded; the first ``TERM`` ends it
    through its ``finally`` and the command ends with 0."""
    with program.start("worker", "app", "-p", "1", "-f", "beside:serve", "--start-method", method) as running:
        (pid,) = program.wait_for_runs("serve")
        running.wait_for_text("(?m)^serving$")
        assert pid not in running.workers()
        assert pid != running.process.pid
        program.send("leave", "work-goes-on")
        program.wait_for_mark("work-goes-on")
        running.stop()
        assert program.runs("tidied") == [pid]
        assert not is_running(pid)


def test_several_of_them(program: Beside) -> None:
    """The flag may be repeated; each has its own process, and one that returns nothing has ended well, like one that
    returns 0: it is not started again."""
    words = ("-f", "beside:serve", "--fork-function", "beside:once", "-f", "beside:nothing")
    with program.start("worker", "app", "-p", "1", *words) as running:
        pids = [*program.wait_for_runs("serve"), *program.wait_for_runs("once"), *program.wait_for_runs("nothing")]
        assert len(set(pids)) == 3
        for name in ("once", "nothing"):
            running.wait_for_text(rf"The fork process of beside:{name} \(PID \d+\) ended with code 0\.")
        running.stop()
    assert len(program.runs("once") + program.runs("nothing")) == 2


@pytest.mark.parametrize(("name", "code"), [("crash", 1), ("five", 5)])
def test_one_that_fails_is_started_again(program: Beside, name: str, code: int) -> None:
    """One that raises, or returns something else than 0, gets a successor, each later than the one before; the workers
    are not bothered."""
    patient = """
import sys
from greenroom import __main__
from greenroom.core import respawn

respawn.SOUND_AFTER_S = 3600.0  # one that took long to fail, on a busy machine, is none that was sound
sys.exit(__main__.main())
"""
    with program.start("worker", "app", "-p", "1", "-f", f"beside:{name}", code=patient) as running:
        assert len(program.wait_for_runs(name, 3)) == 3
        running.wait_for_text("ended with code 0")
        waits = re.findall(rf"ended with code {code}\. It starts again in (\d\.\d) s", running.text)
        assert waits == ["0.1", "0.2"]
        assert len(running.workers()) == 1
        assert ("RuntimeError: no luck yet" in running.text) == (name == "crash")
        running.stop()


def test_one_that_is_killed_is_started_again(program: Beside) -> None:
    """A successor takes the place of one that was killed from outside."""
    with program.start("worker", "app", "-p", "1", "-f", "beside:serve") as running:
        (pid,) = program.wait_for_runs("serve")
        os.kill(pid, signal.SIGKILL)
        assert len(program.wait_for_runs("serve", 2)) == 2
        running.stop()
        assert "was killed by SIGKILL" in running.text


def test_terminal_signals_are_the_parents_business(program: Beside) -> None:
    """``INT`` and ``HUP``, which a terminal sends to all, do not end it."""
    with program.start("worker", "app", "-p", "1", "-f", "beside:serve") as running:
        (pid,) = program.wait_for_runs("serve")
        running.wait_for_text("serving")
        os.kill(pid, signal.SIGINT)
        os.kill(pid, signal.SIGHUP)
        os.kill(pid, signal.SIGTERM)
        running.wait_for_text(r"fork process of beside:serve \(PID \d+\) ended with code 0")
        running.stop()


def test_one_that_does_not_listen_is_killed_after_the_grace(program: Beside) -> None:
    """It cannot hold up the stop for longer than tasks may."""
    words = ("-f", "beside:stubborn", "--worker-shutdown-timeout", "300")
    with program.start("worker", "app", "-p", "1", *words) as running:
        (pid,) = program.wait_for_runs("deaf")
        running.stop()
        assert not is_running(pid)


def test_a_second_signal_kills_it(program: Beside) -> None:
    """It dies with the workers, and the exit code is 1."""
    with program.start("worker", "app", "-p", "1", "-f", "beside:stubborn") as running:
        (pid,) = program.wait_for_runs("deaf")
        running.process.send_signal(signal.SIGTERM)
        running.wait_for_text("Stopping the worker processes")
        running.process.send_signal(signal.SIGINT)
        assert running.wait() == 1
        assert not is_running(pid)


def test_it_dies_with_its_parent(program: Beside) -> None:
    """When the parent is killed nothing is left."""
    with program.start("worker", "app", "-p", "1", "-f", "beside:stubborn") as running:
        (pid,) = program.wait_for_runs("deaf")
        running.process.kill()
        wait_until(lambda: not is_running(pid), "the fork process has died")


def test_a_reload_restarts_it(program: Beside) -> None:
    """``HUP``: once the workers run the code of now, it does, too; the old one has ended before."""
    with program.start("worker", "app", "-p", "1", "-f", "beside:serve", "-f", "beside:once") as running:
        (old,) = program.wait_for_runs("serve")
        running.wait_for_text("beside:once .* ended with code 0")
        source = (program.folder / "beside.py").read_text()
        (program.folder / "beside.py").write_text(source.replace('note("serve")', 'note("new")'))
        running.process.send_signal(signal.SIGHUP)
        (new,) = program.wait_for_runs("new")
        assert program.runs("tidied") == [old]
        assert new != old
        assert len(program.wait_for_runs("once", 2)) == 2
        running.stop()


@pytest.mark.parametrize(
    ("function", "line"),
    [
        ("missing:serve", "no module named 'missing'"),
        ("beside:sreve", "Module 'beside' does not define a 'sreve' variable. Did you mean 'serve'?"),
        ("beside:HERE", "'beside:HERE' is not a function."),
        ("beside", "-f/--fork-function: 'beside' names no function; write module:function"),
    ],
)
def test_one_that_is_not_there_ends_the_program(program: Beside, function: str, line: str) -> None:
    """A mistake in the command line is told in one line, and the exit code is 2."""
    ended = program.run("worker", "app", "-p", "1", "-f", function)
    assert ended.returncode == 2
    assert ended.stderr.splitlines()[-1] == f"greenroom: error: {line}"


MIDDLEWARE = """
import beside

class Metrics(greenroom.Middleware):
    def __init__(self, name):
        self.name = name

    @property
    def forks(self):
        return [self.run, beside.serve]

    def run(self):
        beside.note(self.name)
        return 0

broker.add_middleware(Metrics("metrics"))

@greenroom.actor
def leave(name):
    mark(name)
"""


@pytest.mark.parametrize("method", METHODS)
def test_middleware_brings_its_own(program: Beside, method: str) -> None:
    """Functions and bound methods that a middleware lists in ``forks`` run once a program, however many workers there
    are, and know the state of the object that the program has made."""
    program.write(MIDDLEWARE)
    with program.start("worker", "app", "-p", "2", "--start-method", method) as running:
        assert len(program.wait_for_runs("metrics")) == 1
        assert len(program.wait_for_runs("serve")) == 1
        running.stop()
        assert "Fork process runs app:Metrics.run." in running.text


def test_they_start_when_the_workers_are_ready(program: Beside) -> None:
    """Not before, so that both find the same surroundings; but after ``--worker-fork-timeout`` all the same."""
    program.write(ACTORS + "\nwait_for('boot')\n")
    with program.start("worker", "app", "-p", "1", "-f", "beside:once") as running:
        wait_until(running.children, "a worker boots")
        assert program.runs("once") == []
        program.let_go("boot")
        running.wait_until_ready()
        program.wait_for_runs("once")
        running.stop()
    program.let_go("boot")
    (program.folder / "mark-boot").unlink()
    words = ("-f", "beside:five", "--worker-fork-timeout", "10")
    with program.start("worker", "app", "-p", "1", *words) as running:
        program.wait_for_runs("five")
        assert "runs: PID" not in running.text
        running.process.terminate()
        assert running.wait() == 0
