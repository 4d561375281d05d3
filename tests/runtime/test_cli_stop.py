"""How worker processes end: gracefully, by force, after the grace, with their parent, as PID 1."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

from greenroom.clock import SYSTEM_CLOCK
from greenroom.runtime.signals import StopSignals
from scripts.servers import Redis
from tests.runtime.cli_kit import Program, is_running, wait_until
from tests.runtime.engine_kit import ENGINES, url_of

ACTORS = """
from greenroom.middleware import Shutdown

@greenroom.actor(max_retries=0, notify_shutdown=True)
def wait_for_shutdown():
    try:
        mark("waits")
        wait_for("never")
    except Shutdown:
        mark("told")

@greenroom.actor(max_retries=0)
def work(name):
    mark(f"{name}-started")
    wait_for(f"{name}-go")
    mark(f"{name}-done")

@greenroom.actor(max_retries=0)
def hold_the_lock(name):
    import re
    if (HERE / f"mark-{name}-started").exists():
        wait_for(f"{name}-go")
        mark(f"{name}-done")
        return
    mark(f"{name}-started")
    re.match("(a+)+$", "a" * 60 + "b")  # C code that lets nobody else run, for years

@greenroom.actor(max_retries=0)
def nap(number):
    with open(HERE / f"starts-{os.getpid()}", "a") as file:
        file.write(f"{number}\\n")
    threading.Event().wait(0.02)

@greenroom.actor(max_retries=0)
def leave_child_behind():
    pid = os.fork()
    if pid == 0:
        wait_for("go")
        os._exit(0)
    os._exit(7)

@greenroom.actor(max_retries=0)
def leave_orphans(number):
    import subprocess, time
    subprocess.run(["sh", "-c", f"for i in $(seq {number}); do (sleep 0.5 &); done"], check=True)
    assert int(pathlib.Path("/proc/loadavg").read_text().split()[-1]) >= number  # the pid that was given last
    deadline = time.monotonic() + 25
    while len(list(pathlib.Path("/proc").glob("[1-9]*"))) > 6:  # those that sleep, and those that wait to be reaped
        assert time.monotonic() < deadline
        time.sleep(0.02)
    mark("clean")
"""
METHODS = ("fork", "spawn", "forkserver")
#: How often a signal comes at a random moment.
ROUNDS = {"sqlite": 9, "redis": 3}
#: How much later than promised something may be on a busy machine.
SLACK_S = 3.0
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


@pytest.fixture
def program(tmp_path: Path, request: pytest.FixtureRequest) -> Program:
    return Program(tmp_path, url_of(getattr(request, "param", "sqlite"), tmp_path, request)).write(ACTORS)


on_each_engine = pytest.mark.parametrize("program", ENGINES, indirect=True)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
def test_running_tasks_finish(program: Program, number: signal.Signals) -> None:
    """A signal to stop lets what runs finish, starts nothing new, also on a thread that is free, and ends with 0."""
    program.send("work", "a")
    program.send("wait_for_shutdown")
    with program.start("worker", "app", "-p", "1", "-t", "2") as running:
        program.wait_for_mark("a-started")
        program.wait_for_mark("waits")
        running.wait_until_ready()
        running.process.send_signal(number)
        running.wait_for_text("Stopping worker process")
        program.wait_for_mark("told")  # by a worker that claims nothing any more
        program.send("work", "b")
        program.let_go("a-go")
        assert running.wait() == 0
    assert program.has_mark("a-done")
    assert not program.has_mark("b-started")
    assert program.ready("default") == 1


@linux_only
@pytest.mark.parametrize("method", METHODS)
def test_a_signal_to_the_whole_group_is_graceful(program: Program, method: str) -> None:
    """Ctrl-C and an init that tells everybody reach the children, too; they leave it to the parent. HUP afterwards,
    as systemd sends it, is no second signal."""
    program.send("work", "a")
    with program.start("worker", "app", "-p", "2", "-t", "1", "--start-method", method) as running:
        program.wait_for_mark("a-started")
        running.wait_until_ready()
        for number in (signal.SIGINT, signal.SIGHUP):
            os.killpg(running.process.pid, number)
        running.wait_for_text("Stopping worker process")
        program.let_go("a-go")
        assert running.wait() == 0
    assert program.has_mark("a-done")
    assert "Traceback" not in running.text


@linux_only
@pytest.mark.parametrize("method", METHODS)
def test_a_second_signal_forces(program: Program, method: str) -> None:
    """The children are killed, although a task runs, and the exit code is 1. Nobody is charged with a crash."""
    program.send("work", "a")
    with program.start("worker", "app", "-p", "2", "--start-method", method) as running:
        program.wait_for_mark("a-started")
        children = running.wait_until_ready().workers()
        running.process.send_signal(signal.SIGTERM)
        running.wait_for_text("Stopping worker process")
        running.process.send_signal(signal.SIGINT)
        assert running.wait() == 1
    assert len(children) == 2
    assert [pid for pid in children if is_running(pid)] == []
    assert not program.has_mark("a-done")
    check_that_nobody_is_charged(program, "a")


def check_that_nobody_is_charged(program: Program, *names: str) -> None:
    """The next worker runs these messages to their end, and knows of no crash."""
    with program.start("worker", "app", "-p", "1", log="next.txt") as running:
        wait_until(lambda: program.claims() == [2] * len(names), "all were claimed a second time")
        assert program.crashes() == [0] * len(names)
        for name in names:
            program.let_go(f"{name}-go")
            program.wait_for_mark(f"{name}-done")
        running.stop()


@on_each_engine
def test_f05_tasks_that_outlast_the_grace(program: Program) -> None:
    """After ``--worker-shutdown-timeout`` the children go, task or no task, also one that holds the interpreter's lock.
    The exit code is 0, for that is how a stop goes; the messages are kept, and charged with nothing."""
    program.send("work", "a")
    program.send("hold_the_lock", "b")
    with program.start("worker", "app", "-p", "2", "-t", "1", "--worker-shutdown-timeout", "500") as running:
        program.wait_for_mark("a-started")
        program.wait_for_mark("b-started")
        running.process.terminate()
        asked_s = time.monotonic()
        assert running.wait() == 0
        assert time.monotonic() - asked_s < 0.5 + 2 + SLACK_S
        assert running.count("Tasks were still running after the grace of 500 ms") == 1
        assert running.count("The grace is over: killing the worker process") == 1
    assert not program.has_mark("a-done")
    check_that_nobody_is_charged(program, "a", "b")


@linux_only
@pytest.mark.parametrize(("program", "rounds"), ROUNDS.items(), indirect=["program"])
def test_f05_a_signal_at_any_moment(program: Program, rounds: int) -> None:
    """F05: from the import of the modules on, a signal ends all in time, with 0, a second one with 1, whether it comes
    alone or to the whole group. Nothing is lost, nothing is charged, no process is left."""
    random_ = random.Random(5)
    app = (program.folder / "app.py").read_text()
    program.write(app.replace("@greenroom.actor", "mark('importing')\n\n@greenroom.actor", 1), head="")
    for number in range(200):
        program.send("nap", number)
    for turn in range(rounds):
        (program.folder / "mark-importing").unlink(missing_ok=True)
        number = random_.choice([signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
        send, twice = random_.choice([os.kill, os.killpg]), random_.random() < 0.3
        method = METHODS[turn % 3]
        words = ("-p", "2", "-t", "2", "--worker-shutdown-timeout", "2000", "--start-method", method)
        with program.start("worker", "app", *words, log=f"log-{turn}.txt") as running:
            program.wait_for_mark("importing")
            threading.Event().wait(random_.uniform(0, 0.4))
            send(running.process.pid, number)
            if twice:
                threading.Event().wait(random_.uniform(0.051, 0.1))
                with suppress(ProcessLookupError):
                    send(running.process.pid, number)
            asked_s = time.monotonic()
            assert running.wait() in ((0, 1) if twice else (0,)), running.text
            assert time.monotonic() - asked_s < 2 + SLACK_S
            assert running.workers() == []
            assert "Traceback" not in running.text
    done = {number for file in program.folder.glob("starts-*") for number in file.read_text().split()}
    assert len(done) + len(program.waiting()) >= 200
    assert set(program.crashes()) <= {0}


def test_f05_a_stop_while_the_broker_is_away(program: Program) -> None:
    """F05: workers that cannot reach their broker and try again and again stop in time all the same, with 0."""
    with program.start("worker", "app", "-p", "2", "--worker-shutdown-timeout", "1000") as running:
        running.wait_until_ready()
        other = sqlite3.connect(program.folder / "queue.db", isolation_level=None)
        other.execute("begin immediate")
        try:
            running.process.terminate()
            asked_s = time.monotonic()
            assert running.wait() == 0
            assert time.monotonic() - asked_s < 1 + 2 + SLACK_S
        finally:
            other.close()


@pytest.mark.parametrize("trouble", ["pause", "kill"])
def test_f05_a_stop_while_the_server_is_away(tmp_path: Path, redis_server: Redis, trouble: str) -> None:
    """F05: the same where a server stands still, or is gone."""
    program = Program(tmp_path, redis_server.url).write(ACTORS)
    with program.start("worker", "app", "-p", "2", "--worker-shutdown-timeout", "1000") as running:
        running.wait_until_ready()
        getattr(redis_server, trouble)()
        running.process.terminate()
        asked_s = time.monotonic()
        assert running.wait() == 0
        assert time.monotonic() - asked_s < 1 + 2 + SLACK_S


@linux_only
@pytest.mark.parametrize("method", ["fork", "forkserver"])
def test_f06_pid_1(program: Program, method: str) -> None:
    """F06: as PID 1 of a container it reaps the orphans that it inherits, and TERM stops it."""
    unshare = ("unshare", "-p", "-f", "--mount-proc")
    try:
        subprocess.run([*unshare, "true"], check=True, capture_output=True, timeout=10)
    except (OSError, subprocess.CalledProcessError) as e:
        pytest.skip(f"needs the right to make a namespace for processes: {e}")
    with program.start("worker", "app", "-p", "1", "-t", "1", "--start-method", method, prefix=unshare) as running:
        running.wait_for_text(r" runs: PID 1, ")
        program.send("leave_orphans", 200)
        program.wait_for_mark("clean")
        (init,) = running.children()
        os.kill(init, signal.SIGTERM)
        assert running.wait() == 0, running.text


def test_a_slow_import_does_not_delay_a_stop(program: Program) -> None:
    """TERM while the modules are imported ends at once, with 0 and without a word."""
    program.write("mark('importing')\nwait_for('never')\n", name="slow.py")
    with program.start("worker", "slow", "-p", "2") as running:
        program.wait_for_mark("importing")
        running.process.terminate()
        assert running.wait() == 0
        assert running.text == ""


@linux_only
@pytest.mark.parametrize("method", METHODS)
def test_f02_children_die_with_their_parent(program: Program, method: str) -> None:
    """F02: ``kill -9`` of the parent takes the children along within 2 s, also while they run tasks, and C code that
    lets nobody else run."""
    with program.start("worker", "app", "-p", "2", "-t", "1", "--start-method", method) as running:
        children = running.wait_until_ready().workers()
        program.send("work", "a")
        program.send("hold_the_lock", "b")
        program.wait_for_mark("a-started")
        program.wait_for_mark("b-started")
        assert len(children) == 2
        running.process.kill()
        wait_until(lambda: not any(map(is_running, children)), "the children are gone", patience_s=2.0)


@linux_only
def test_children_die_with_their_parent_where_the_kernel_does_not_help(program: Program) -> None:
    """Without PDEATHSIG the end of the pipe tells a child, and siblings do not hold each other's pipes open."""
    code = """
import sys
from greenroom import __main__
from greenroom.runtime import child
child._die_with = lambda parent_pid, pipe: None
sys.exit(__main__.main())
"""
    with program.start("worker", "app", "-p", "3", code=code) as running:
        children = running.wait_until_ready().children()
        assert len(children) == 3
        running.process.kill()
        wait_until(lambda: not any(map(is_running, children)), "the children are gone", patience_s=2.0)


def test_a_descendant_that_holds_the_pipes_open_holds_nobody_up(program: Program) -> None:
    """A child's end is noticed by its process, not by its pipe, which a process that a task has forked may keep."""
    with program.start("worker", "app", "-p", "1") as running:
        running.wait_until_ready()
        program.send("leave_child_behind")
        running.wait_for_text(r"The worker process 0 \(PID \d+\) ended with code 7\. The next one starts in 0\.1 s")
        running.stop()
    program.let_go("go")


def test_an_echo_of_a_signal_does_not_count_twice() -> None:
    """timeout(1) signals a process and its group: the same signal at once is one; another, or later, is two."""

    class Clock:
        now_s = 100.0
        now_ms, sleep = SYSTEM_CLOCK.now_ms, SYSTEM_CLOCK.sleep

        def monotonic(self) -> float:
            return self.now_s

    clock = Clock()
    signals = StopSignals(clock)
    assert signals.add([signal.SIGCHLD, signal.SIGTERM, signal.SIGTERM]) == [signal.SIGTERM]
    assert signals.add([signal.SIGTERM, signal.SIGHUP]) == []
    assert signals.count == 1
    assert signals.add([signal.SIGINT]) == [signal.SIGINT]
    clock.now_s += 1
    assert signals.add([signal.SIGTERM]) == [signal.SIGTERM]
    assert signals.count == 3
