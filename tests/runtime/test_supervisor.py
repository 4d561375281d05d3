"""Worker processes that crash, hang, tire and change: who takes their place, and what becomes of their messages."""

from __future__ import annotations

import os
import re
import signal
import sys
from pathlib import Path

import pytest

from tests.runtime.cli_kit import Program, Running, is_running, wait_until

METHODS = ("fork", "spawn", "forkserver")
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")

ACTORS = """
import ctypes, re, resource, signal, sys

@greenroom.actor(max_retries=0)
def work(name):
    with open(HERE / f"runs-{name}", "a") as file:
        file.write(f"{os.getpid()}\\n")
    mark(f"{name}-started")
    wait_for(f"{name}-go")
    mark(f"{name}-done")

ENDS = {
    "exit0": lambda: os._exit(0),
    "exit1": lambda: os._exit(1),
    "segfault": lambda: ctypes.string_at(0),
    "abort": lambda: os.abort(),
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "hang": lambda: re.match("(a+)+$", "a" * 60 + "b"),  # holds the interpreter's lock for years
}

@greenroom.actor(max_retries=0)
def crash_once(how):
    if not (HERE / f"mark-{how}").exists():
        mark(how)
        ENDS[how]()
    mark(f"{how}-done")

@greenroom.actor(max_retries=0)
def count(number):
    with open(HERE / f"counted-{os.getpid()}", "a") as file:
        file.write(f"{number}\\n")

kept = []

@greenroom.actor(max_retries=0)
def keep(mib):
    kept.append(b"x" * (mib * 2**20))
    mark("kept")

@greenroom.actor(max_retries=1, min_backoff=1)
def allocate_too_much():
    if (HERE / "mark-allocating").exists():
        mark("allocated")
        return
    mark("allocating")
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**27, hard))
    try:
        bytearray(2**31)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
"""


@pytest.fixture
def program(tmp_path: Path) -> Program:
    return Program(tmp_path).write(ACTORS)


def runs(program: Program, name: str) -> list[int]:
    """The processes in which ``work(name)`` was started, in order."""
    file = program.folder / f"runs-{name}"
    return [int(pid) for pid in file.read_text().split()] if file.exists() else []


def wait_for_workers(running: Running, number: int, without: int = 0) -> list[int]:
    """Waits until so many live; ``without`` is not among them."""
    workers: list[int] = []

    def are_there() -> bool:
        workers[:] = running.workers()
        return len(workers) == number and without not in workers

    wait_until(are_there, f"{number} workers are ready")
    return workers


# --- crashes


#: Nobody looks by itself who has died, and a successor boots when it may.
ONLY_TOLD = """
from greenroom.engines.sqlite import consumer

consumer.LOOK_INTERVAL_S = 3600.0
if (HERE / "mark-a-started").exists():
    wait_for("boot")
"""


@pytest.mark.parametrize("method", METHODS)
def test_f01_a_killed_child_is_replaced(program: Program, method: str) -> None:
    """F01: what it ran starts in its sibling at once, because its parent tells of the death, charged with one crash;
    what the sibling runs is left alone; a new child takes its place, and the program goes on."""
    program.write(ACTORS + ONLY_TOLD)
    with program.start("worker", "app", "-p", "2", "-t", "1", "--start-method", method) as running:
        running.wait_until_ready()
        program.send("work", "a")
        program.wait_for_mark("a-started")
        (victim,) = runs(program, "a")
        os.kill(victim, signal.SIGKILL)
        wait_until(lambda: len(runs(program, "a")) == 2, "the sibling was told, and runs the message")
        assert program.crashes() == [1]
        program.let_go("boot")
        workers = wait_for_workers(running, 2, without=victim)
        assert runs(program, "a")[1] in workers
        running.wait_for_text(
            rf"The worker process \d \(PID {victim}\) was killed by SIGKILL.*The next one starts in 0\.1 s"
        )
        program.send("work", "b")
        program.let_go("b-go")
        program.let_go("a-go")
        program.wait_for_mark("a-done")
        program.wait_for_mark("b-done")
        assert len(runs(program, "b")) == 1
        running.stop()
    assert program.crashes() == []


def test_f96_however_a_child_ends_it_is_named_and_replaced(program: Program) -> None:
    """F96: by a signal or by an exit code, also 0: a crash is a crash. Its message runs again."""
    ends = {
        "exit0": "ended with code 0",
        "exit1": "ended with code 1",
        "segfault": "was killed by SIGSEGV",
        "abort": "was killed by SIGABRT",
        "kill": "was killed by SIGKILL",
    }
    with program.start("worker", "app", "-p", "2", "-t", "1") as running:
        running.wait_until_ready()
        for how, text in ends.items():
            program.send("crash_once", how)
            program.wait_for_mark(f"{how}-done")
            running.wait_for_text(rf"The worker process \d \(PID \d+\) {text}")
        wait_for_workers(running, 2)
        assert "in crash_once" in running.text, "a crash in C code shows the stack"
        assert running.count("The next one starts") == len(ends)
        running.stop()


def test_f95_a_child_that_hangs_is_killed(program: Program) -> None:
    """F95: with ``--hang-timeout`` a child in which no thread gets to run is killed by its parent, with its stack in
    the log, and its message is charged; one that merely works for long is not."""
    with program.start("worker", "app", "-p", "2", "-t", "1", "--hang-timeout", "2000") as running:
        running.wait_until_ready()
        program.send("work", "long")
        program.wait_for_mark("long-started")
        program.send("crash_once", "hang")
        program.wait_for_mark("hang-done")
        running.wait_for_text(
            r"was killed: it has shown no sign of life for \d\.\d s \(--hang-timeout\)\. The next one"
        )
        assert "in crash_once" in running.text
        wait_until(lambda: program.crashes() == [0], "only the long one is left, and charged with nothing")
        wait_for_workers(running, 2)
        program.let_go("long-go")
        program.wait_for_mark("long-done")
        assert len(runs(program, "long")) == 1
        running.stop()


def test_f10_an_allocation_that_fails_is_an_ordinary_failure(program: Program) -> None:
    """F10: ``MemoryError`` is retried in the same child. A child whose memory has grown gets a successor."""
    with program.start("worker", "app", "-p", "1", "-t", "1", "--max-rss-per-child", "120") as running:
        running.wait_until_ready()
        (first,) = running.workers()
        program.send("allocate_too_much")
        program.wait_for_mark("allocated")
        assert running.workers() == [first]
        running.wait_for_text("MemoryError")
        program.send("keep", 150)
        program.wait_for_mark("kept")
        (second,) = wait_for_workers(running, 1, without=first)
        assert is_running(second)
        running.wait_for_text(rf"The worker process 0 \(PID {first}\) gets a successor: it holds \d+ MiB of memory")
        wait_until(lambda: program.crashes() == [], "both are done")
        running.stop()


@pytest.fixture
def memory_group(tmp_path: Path) -> Path:
    """A control group of its own with 160 MiB of memory, made as root and removed afterwards."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _number, controllers, group = line.split(":", 2)
        if "memory" in controllers.split(","):
            folder = Path("/sys/fs/cgroup/memory") / group.lstrip("/") / f"greenroom-{os.getpid()}"
            limit = "memory.limit_in_bytes"
        elif not controllers and Path("/sys/fs/cgroup/cgroup.controllers").exists():
            folder, limit = Path("/sys/fs/cgroup") / group.lstrip("/") / f"greenroom-{os.getpid()}", "memory.max"
        else:
            continue
        try:
            folder.mkdir()
            (folder / limit).write_text(str(160 * 2**20))
        except OSError as e:
            pytest.skip(f"needs a control group with a memory limit: {e}")
        return folder
    pytest.skip("needs control groups with a memory controller")


def test_f10_a_child_that_is_killed_for_memory_is_told_so(program: Program, memory_group: Path) -> None:
    """F10: when the kernel kills a child because its control group is out of memory, the log says so, and its message
    is charged like after any crash."""
    join = ("sh", "-c", f'echo $$ > {memory_group}/cgroup.procs && exec "$@"', "sh")
    try:
        with program.start("worker", "app", "-p", "1", "-t", "1", prefix=join) as running:
            running.wait_until_ready()
            program.send("keep", 1000)
            running.wait_for_text(
                r"The worker process 0 \(PID \d+\) was killed by the kernel because it was out of memory"
            )
            wait_until(lambda: program.crashes() in ([1], [2], []), "the message is charged")
    finally:
        wait_until(lambda: not (memory_group / "cgroup.procs").read_text(), "its processes are gone")
        memory_group.rmdir()


# --- boots


def test_f08_a_child_that_hangs_while_it_boots(program: Program) -> None:
    """F08: it is killed after ``--worker-boot-timeout``, with its stack in the log. After the fifth in a row the
    program ends with 3 and the reason."""
    program.write("mark('importing')\nwait_for('never')\n", name="slow.py")
    ended = program.run("worker", "slow", "-p", "1", "--worker-boot-timeout", "300")
    assert ended.returncode == 3
    *_, line = ended.stderr.splitlines()
    assert line.startswith(
        "greenroom: error: 5 worker processes in a row could not start, the last because: worker pro"
    )
    assert line.endswith("was killed: it was not ready after 300 ms (--worker-boot-timeout) before it was ready")
    assert ended.stderr.count("slow.py") >= 5
    assert ended.stderr.count("The next one starts") == 4


def test_f09_reload_and_code_that_cannot_be_run(program: Program) -> None:
    """F09: code that is broken while the program runs. A reload is called off, and the old children stay; mended, it
    is run after the next one. A child that crashes meanwhile is started five times, then the program ends with 3."""
    source = (program.folder / "app.py").read_text()
    with program.start("worker", "app", "-p", "2", "-t", "1") as running:
        first = running.wait_until_ready().workers()
        program.write(source + "\nraise KeyError('broken')\n", head="")
        running.process.send_signal(signal.SIGHUP)
        running.wait_for_text(r"The reload is off.*importing module 'app' raised KeyError: 'broken'\n.*Traceback")
        assert running.workers() == first
        program.write(source.replace('f"{name}-done"', 'f"{name}-done-by-new-code"'), head="")
        program.send("work", "a")
        program.wait_for_mark("a-started")
        running.process.send_signal(signal.SIGHUP)
        running.wait_for_text("All worker processes run the code of now")
        program.let_go("a-go")
        program.wait_for_mark("a-done")  # what ran was finished by the code that had begun it
        wait_until(lambda: not any(map(is_running, first)), "the old code has gone")
        program.send("work", "b")
        program.let_go("b-go")
        program.wait_for_mark("b-done-by-new-code")
        assert not set(first) & set(wait_for_workers(running, 2))
        program.write(source + "\nraise KeyError('broken')\n", head="")
        os.kill(running.workers()[0], signal.SIGKILL)
        assert running.wait() == 3
        *_, trace, line = running.text.splitlines()
        assert trace == "KeyError: 'broken'"
        assert line == (
            "greenroom: error: 5 worker processes in a row could not start, the last because: "
            "importing module 'app' raised KeyError: 'broken'"
        )
        assert running.count("could not start: importing") == 4


# --- successors


@pytest.mark.parametrize("method", METHODS)
def test_a_reload_leaves_nobody_without_work(program: Program, method: str) -> None:
    """After HUP each child has a successor before it leaves, one after the other. A second HUP meanwhile begins anew:
    in the end all run code of after it. Messages go on, and each runs once."""
    with program.start("worker", "app", "-p", "2", "-t", "1", "--start-method", method) as running:
        first = running.wait_until_ready().workers()
        running.process.send_signal(signal.SIGHUP)
        for number in range(20):
            program.send("count", number)
        running.wait_for_text("Reloading the worker processes: got SIGHUP")
        running.process.send_signal(signal.SIGHUP)
        for number in range(20, 40):
            program.send("count", number)
        running.wait_for_text(r"(?s)Reloading.*Reloading.*All worker processes run the code of now")
        assert not set(first) & set(wait_for_workers(running, 2))
        wait_until(lambda: len(counted(program)) == 40, "all messages have run")
        running.stop()
    assert sorted(counted(program)) == list(range(40))
    events = re.findall(  # each process has a pipe of its own: the order is that of the times, not of the lines
        r"^\[(.{23})\].*WorkerProcess\(\d\)\] \[INFO\] (Worker process is ready|Stopping worker process)",
        running.text,
        re.MULTILINE,
    )
    steps = [
        1 if event.startswith("Worker") else -1 for _at, event in sorted(events, key=lambda e: (e[0], e[1][0] == "S"))
    ]
    working = [sum(steps[: n + 1]) for n in range(len(steps))]
    assert min(working[1:-2]) >= 2, "there is no moment without two at work"


@pytest.mark.parametrize("method", METHODS)
def test_a_child_that_has_run_enough_messages_gets_a_successor(program: Program, method: str) -> None:
    """With ``--max-tasks-per-child`` it works on until its successor is ready, and no message is lost or run twice."""
    words = ("-p", "1", "-t", "1", "--max-tasks-per-child", "20", "--start-method", method)
    with program.start("worker", "app", *words) as running:
        (first,) = running.wait_until_ready().workers()
        for number in range(60):
            program.send("count", number)
        wait_until(lambda: len(counted(program)) == 60, "all messages have run")
        wait_for_workers(running, 1, without=first)
        running.wait_for_text(
            rf"\(PID {first}\) gets a successor: it has run \d+ messages \(--max-tasks-per-child 20\)"
        )
        running.wait_for_text(rf"PID {first}\].* Stopping worker process")
        running.stop()
    assert sorted(counted(program)) == list(range(60))


def counted(program: Program) -> list[int]:
    """The numbers that ``count`` was called with."""
    return [int(n) for file in program.folder.glob("counted-*") for n in file.read_text().split()]


def test_damaged_data_end_the_program(program: Program) -> None:
    """When a child finds the broker's data damaged all stop, and the program ends with 5 and the reason."""
    program.write(
        ACTORS
        + """
from greenroom.engines.sqlite.consumer import SqliteConsumer
from greenroom.errors import BrokerCorrupt
exchange = SqliteConsumer.exchange

def damaged(self, *args, **kwargs):
    if (HERE / "mark-damage").exists():
        raise BrokerCorrupt("queue.db is damaged")
    return exchange(self, *args, **kwargs)

SqliteConsumer.exchange = damaged
"""
    )
    with program.start("worker", "app", "-p", "2", "-t", "1", "--worker-shutdown-timeout", "2000") as running:
        running.wait_until_ready()
        program.let_go("damage")
        program.send("count", 1)
        assert running.wait() == 5
        assert running.text.splitlines()[-1] == "greenroom: error: queue.db is damaged"
