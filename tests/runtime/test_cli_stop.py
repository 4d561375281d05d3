"""How worker processes end: gracefully, by force, with their parent, and one because of another."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

from greenroom.clock import SYSTEM_CLOCK
from greenroom.runtime.processes import StopSignals
from tests.runtime.cli_kit import Program, is_running, wait_until

ACTORS = """
@greenroom.actor(max_retries=0)
def work(name):
    mark(f"{name}-started")
    wait_for(f"{name}-go")
    mark(f"{name}-done")

@greenroom.actor(max_retries=0)
def die(signal_number):
    os.kill(os.getpid(), signal_number)

@greenroom.actor(max_retries=0)
def leave_child_behind():
    pid = os.fork()
    if pid == 0:
        wait_for("go")
        os._exit(0)
    mark("forked")
    os._exit(7)
"""
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


@pytest.fixture
def program(tmp_path: Path) -> Program:
    return Program(tmp_path).write(ACTORS)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP])
def test_running_tasks_finish(program: Program, number: signal.Signals) -> None:
    """A signal to stop lets what runs finish, starts nothing new, and ends with 0."""
    program.send("work", "a")
    with program.start("worker", "app", "-p", "1", "-t", "1") as running:
        program.wait_for_mark("a-started")
        running.wait_until_ready()
        running.process.send_signal(number)
        running.wait_for_text("Stopping worker process")
        program.send("work", "b")
        program.let_go("a-go")
        assert running.wait() == 0
    assert program.has_mark("a-done")
    assert not program.has_mark("b-started")
    assert program.ready("default") == 1


def test_a_signal_to_the_whole_group_is_graceful(program: Program) -> None:
    """Ctrl-C reaches the children, too; they leave it to the parent."""
    program.send("work", "a")
    with program.start("worker", "app", "-p", "2", "-t", "1") as running:
        program.wait_for_mark("a-started")
        running.wait_until_ready()
        os.killpg(running.process.pid, signal.SIGINT)
        running.wait_for_text("Stopping worker process")
        program.let_go("a-go")
        assert running.wait() == 0
    assert program.has_mark("a-done")
    assert "Traceback" not in running.text


@linux_only
def test_a_second_signal_forces(program: Program) -> None:
    """The children are killed, although a task runs, and the exit code is 1."""
    program.send("work", "a")
    with program.start("worker", "app", "-p", "2") as running:
        program.wait_for_mark("a-started")
        children = running.wait_until_ready().children()
        running.process.send_signal(signal.SIGTERM)
        running.wait_for_text("Stopping worker process")
        running.process.send_signal(signal.SIGINT)
        assert running.wait() == 1
    assert [pid for pid in children if is_running(pid)] == []
    assert not program.has_mark("a-done")


def test_a_task_that_outlasts_the_grace_is_killed(program: Program) -> None:
    """After ``--worker-shutdown-timeout`` the child goes, task or no task; the code is 1 and the message is kept."""
    program.send("work", "a")
    with program.start("worker", "app", "-p", "1", "--worker-shutdown-timeout", "100") as running:
        program.wait_for_mark("a-started")
        running.wait_until_ready().process.terminate()
        assert running.wait() == 1
    assert not program.has_mark("a-done")
    program.let_go("a-go")
    with program.start("worker", "app", "-p", "1"):
        program.wait_for_mark("a-done")


def test_a_slow_import_does_not_delay_a_stop(program: Program) -> None:
    """TERM while the modules are imported ends at once, with 0 and without a word."""
    program.write("mark('importing')\nwait_for('never')\n", name="slow.py")
    with program.start("worker", "slow", "-p", "2") as running:
        program.wait_for_mark("importing")
        running.process.terminate()
        assert running.wait() == 0
        assert running.text == ""


@linux_only
@pytest.mark.parametrize("extra", [(), ("--use-spawn",)], ids=["fork", "spawn"])
def test_children_die_with_their_parent(program: Program, extra: tuple[str, ...]) -> None:
    """``kill -9`` of the parent takes the children along within 2 s, also while they run tasks."""
    program.send("work", "a")
    with program.start("worker", "app", "-p", "2", *extra) as running:
        program.wait_for_mark("a-started")
        running.wait_until_ready()
        children = [pid for pid in running.children() if "resource_tracker" not in command_line(pid)]
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
child._die_with = lambda parent_pid: None
sys.exit(__main__.main())
"""
    with program.start("worker", "app", "-p", "3", code=code) as running:
        children = running.wait_until_ready().children()
        assert len(children) == 3
        running.process.kill()
        wait_until(lambda: not any(map(is_running, children)), "the children are gone", patience_s=2.0)


def command_line(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text()


@linux_only
def test_a_killed_child_stops_the_others(program: Program) -> None:
    """A child that dies of a signal is logged; the others finish what runs, and the exit code is 1."""
    program.send("work", "a")
    with program.start("worker", "app", "-p", "2", "-t", "1") as running:
        program.wait_for_mark("a-started")
        running.wait_until_ready()
        busy = int((program.folder / "mark-a-started").read_text())
        (idle,) = set(running.children()) - {busy}
        os.kill(idle, signal.SIGKILL)
        running.wait_for_text(rf"The worker process \d \(PID {idle}\) was killed by SIGKILL\.")
        program.let_go("a-go")
        assert running.wait() == 1
    assert program.has_mark("a-done")


def test_a_child_that_ends_by_itself_gives_its_code(program: Program) -> None:
    """Its code becomes the command's, also when a process that it has forked holds its pipes open."""
    with program.start("worker", "app", "-p", "2") as running:
        running.wait_until_ready()
        program.send("leave_child_behind")
        assert running.wait() == 7
        assert "ended with code 7" in running.text
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
