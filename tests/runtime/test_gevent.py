"""``greenroom-gevent``: workers whose threads are greenlets."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.runtime.cli_kit import Program, environment, wait_until

pytest.importorskip("gevent", reason="gevent is not installed")

ACTORS = """
import socket, time
from greenroom.middleware import Shutdown
from greenroom.middleware.time_limit import TimeLimitExceeded
from greenroom.threading import is_gevent_active

running = []

@greenroom.actor(max_retries=0)
def meet(count):
    # all are here at the same time, or nobody gets out
    running.append(None)
    while len(running) < count:
        time.sleep(0.01)
    mark("met")

@greenroom.actor
def invite(count):
    meet.send_many([(count,)] * count)

@greenroom.actor(max_retries=0)
def ask():
    assert is_gevent_active()
    mark(f"patched-{os.getpid()}")

@greenroom.actor(max_retries=0, time_limit=300)
def endless(name):
    try:
        time.sleep(600)
    except TimeLimitExceeded:
        mark(f"struck-{name}")
        raise

@greenroom.actor(max_retries=0, notify_shutdown=True)
def told(name):
    try:
        mark(f"{name}-started")
        a, b = socket.socketpair()
        a.recv(1)
    except Shutdown:
        mark(f"{name}-told")
        raise

@greenroom.actor(max_retries=0, time_limit=100)
def sending():
    # each send is shielded: what strikes meanwhile strikes afterwards
    try:
        while True:
            leave.send("sent")
            time.sleep(0)
    except TimeLimitExceeded:
        mark("struck-sending")
        raise

@greenroom.actor
def leave(name):
    if not (HERE / f"mark-{name}").exists():
        mark(name)

@greenroom.actor
async def on_the_loop(name):
    import asyncio
    await asyncio.sleep(0.01)
    mark(name)
"""


@pytest.fixture
def program(tmp_path: Path) -> Program:
    return Program(tmp_path).write(ACTORS)


def test_250_sleep_at_once(program: Program) -> None:
    """In one process with 250 greenlets, 250 messages that wait for each other all end."""
    program.send("invite", 250)
    with program.start("app", "-p", "1", "-t", "250", module="greenroom_gevent") as running:
        program.wait_for_mark("met")
        running.wait_until_ready()
        wait_until(lambda: program.ready("default") == 0, "all were claimed")
        assert len(os.listdir(f"/proc/{running.workers()[0]}/task")) < 20
        running.stop()


def test_two_processes_both_patched(program: Program) -> None:
    """Also when the command is started by a script, every worker process is patched before it imports anything of the
    program."""
    script = "import sys\nfrom greenroom_gevent import main\nif __name__ == '__main__':\n    sys.exit(main())\n"
    (program.folder / "run_it.py").write_text(script)  # as an installer writes it
    with program.start("worker", "app", "-p", "2", "-t", "1", module="run_it") as running:
        running.wait_until_ready()
        wait_until(lambda: len(running.workers()) == 2, "both are ready")
        workers = running.workers()
        marks = [f"patched-{pid}" for pid in workers]
        wait_until(lambda: program.send("ask") or all(map(program.has_mark, marks)), "both were asked", step_s=0.05)
        running.stop()


def test_a_time_limit_ends_a_wait(program: Program) -> None:
    """The limit is raised where the actor waits, at once, and its greenlet goes on with the next message."""
    program.send("endless", "a")
    program.send("endless", "b")
    with program.start("app", "-p", "1", "-t", "1", module="greenroom_gevent") as running:
        program.wait_for_mark("struck-a")
        program.wait_for_mark("struck-b")
        running.wait_for_text("TimeLimitExceeded")
        running.stop()
        assert "is stuck" not in running.text


def test_a_time_limit_spares_what_is_being_sent(program: Program) -> None:
    """An actor that does nothing but send is struck between two sends, never inside of one."""
    program.send("sending")
    with program.start("app", "-p", "1", "-t", "2", module="greenroom_gevent") as running:
        program.wait_for_mark("struck-sending")
        program.wait_for_mark("sent")
        running.stop()


def test_who_asked_is_told_of_a_shutdown(program: Program) -> None:
    """A greenlet that waits for a socket gets ``Shutdown``, and the stop is a good one. Async actors run meanwhile: the
    event loop has a greenlet of its own."""
    program.send("told", "a")
    program.send("on_the_loop", "looped")
    with program.start("app", "-p", "1", "-t", "2", module="greenroom_gevent") as running:
        program.wait_for_mark("a-started")
        program.wait_for_mark("looped")
        running.wait_until_ready()
        running.stop()
        assert program.has_mark("a-told")


def test_a_worker_that_is_killed_is_replaced(program: Program) -> None:
    """The supervisor and the engine work as ever: the message of a killed worker runs again."""
    program.send("told", "a")
    with program.start("app", "-p", "1", "-t", "2", module="greenroom_gevent") as running:
        program.wait_for_mark("a-started")
        wait_until(running.workers, "it is ready")
        (program.folder / "mark-a-started").unlink()
        os.kill(running.workers()[0], signal.SIGKILL)
        program.wait_for_mark("a-started")
        running.wait_until_ready()
        running.stop()


def test_other_commands_work(program: Program) -> None:
    """Only workers run on gevent; what else the command does it does as ``greenroom``."""
    for words, text in (
        (["check", "app"], "All is well"),
        (["--version"], "greenroom "),
        (["--help"], "usage: greenroom"),
    ):
        ended = subprocess.run(
            [sys.executable, "-m", "greenroom_gevent", *words],
            cwd=program.folder,
            env=environment({}),
            capture_output=True,
            text=True,
            check=False,
        )
        assert ended.returncode == 0
        assert text in ended.stdout


def test_without_the_extra(program: Program) -> None:
    """The error names what to install."""
    hide = "import sys; sys.modules['gevent'] = None; import greenroom_gevent; sys.exit(greenroom_gevent.main())"
    ended = program.run("worker", "app", code=hide)
    assert ended.returncode == 2
    assert ended.stderr == (
        "greenroom: error: greenroom-gevent needs gevent. Install it with: pip install 'greenroom[gevent]'\n"
    )


def test_a_start_method_of_ones_own_is_refused(program: Program) -> None:
    """Only a fresh interpreter can be patched before it imports anything."""
    ended = program.run(
        "app",
        "--start-method",
        "fork",
        code="import greenroom_gevent; greenroom_gevent.sys.exit(greenroom_gevent.main())",
    )
    assert ended.returncode == 2
    assert "--use-spawn contradicts --start-method fork" in ended.stderr
