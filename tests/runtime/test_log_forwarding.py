"""The output of worker processes, from end to end: nothing is lost, nobody waits, nothing is mixed."""

from __future__ import annotations

import fcntl
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.runtime.cli_kit import PATIENCE_S, Program, command, environment, is_running, wait_until

METHODS = ("fork", "spawn", "forkserver")
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")

ACTORS = """
import ctypes, faulthandler, logging, signal, subprocess, sys, time

@greenroom.actor(max_retries=0)
def say(words):
    print(words)
    print(words.upper(), file=sys.stderr)
    os.write(1, b"from C\\n")
    subprocess.run(["sh", "-c", "echo from a program; echo and its errors >&2; echo to a device >/dev/stderr"])
    logging.getLogger("mine").warning("a record of %s", words)
    mark(words)

@greenroom.actor(max_retries=0)
def die(how):
    if (HERE / f"mark-{how}").exists():
        return
    mark(how)
    for n in range(200):
        print("before", n)
    print("LAST WORDS of", how)
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif how == "exit":
        os._exit(3)
    ctypes.string_at(0)

@greenroom.actor(max_retries=0)
def chat(n):
    letter = "abcdefgh"[n]
    for _ in range(200):
        logging.getLogger("mine").info(letter * 3000)
        print(letter * 3000)
    mark(f"chatted-{n}")

@greenroom.actor(max_retries=0)
def flood():
    lines = 0
    while not (HERE / "mark-enough").exists():
        print("f" * 1000)
        logging.getLogger("mine").info("g" * 1000)
        lines += 2
        if lines == 10_000:  # twice of what is kept
            mark("flooding")
    mark("ebb")

@greenroom.actor(max_retries=0)
def rubbish():
    sys.stdout.buffer.write(b"\\xff\\x00\\x1b[2J rubbish\\n")
    sys.stdout.flush()
    for _ in range(100):
        os.write(1, b"x" * 2**20)
    print()
    logging.getLogger("mine").info("a user called %s", "x\\r\\n[2024-01-01 00:00:00,000] [PID 1] forged \\x1b[2J")
    mark("rubbish")

@greenroom.actor(max_retries=0)
def leave_behind():
    if (HERE / "left.pid").exists():
        return
    child = subprocess.Popen([sys.executable, "-c", LEFT, str(HERE)])
    (HERE / "left.pid").write_text(str(child.pid))
    os.kill(os.getpid(), signal.SIGKILL)

LEFT = '''
import pathlib, sys, threading, time
here = pathlib.Path(sys.argv[1])
while not (here / "mark-speak").exists():
    threading.Event().wait(0.01)
for n in range(2000):
    print("left behind", "y" * 100, n, flush=True)
(here / "mark-spoken").touch()
threading.Event().wait(60)
'''

@greenroom.actor(max_retries=0)
def leave(name):
    mark(name)
"""


#: However late the parent gets to run, records wait for it.
PATIENT = """
from greenroom.runtime import log_pipe

log_pipe.STALL_S = 30.0
"""


@pytest.fixture
def program(tmp_path: Path) -> Program:
    return Program(tmp_path).write(ACTORS)


@pytest.mark.parametrize("method", METHODS)
def test_all_that_a_child_says_arrives(program: Program, method: str) -> None:
    """Prints on both streams, writes of C code, the output of programs, records: each line once, in the parent's
    standard error."""
    program.send("say", "hello")
    with program.start("worker", "app", "-p", "1", "--start-method", method) as running:
        program.wait_for_mark("hello")
        running.wait_until_ready()
        running.stop()
        for line in ("hello", "HELLO", "from C", "from a program", "and its errors", "to a device"):
            assert running.count(rf"(?m)^{line}$") == 1, line
        assert running.count(r"(?m)^\[.*\] \[PID \d+\] \[worker-\d\] \[mine\] \[WARNING\] a record of hello$") == 1


def test_what_a_child_says_comes_before_what_its_report_leads_to(program: Program) -> None:
    """A wait may find a child's report and not the lines that it wrote before, however many: it looked at these a
    moment too early. Here every wait does so."""
    program.write(ACTORS + "\nfor n in range(2000):\n    print('x' * 100)\n")
    code = """
import selectors, sys
from greenroom import __main__
from greenroom.runtime import log_pipe

class TooEarly(selectors.PollSelector):
    def select(self, timeout=None):
        return [found for found in super().select(timeout) if not isinstance(found[0].fileobj, log_pipe.LineReader)]

selectors.PollSelector = TooEarly
sys.exit(__main__.main())
"""
    with program.start("worker", "app", "-p", "1", code=code) as running:
        assert len(running.wait_until_ready().workers()) == 1
        running.stop()


@pytest.mark.parametrize("how", ["kill", "exit", "segfault"])
def test_last_words_are_not_lost(program: Program, how: str) -> None:
    """What a child has printed before it was killed, left at once, or crashed is there, whole, before the line about
    its end; of a crash also where it happened."""
    with program.start("worker", "app", "-p", "1", "-t", "1") as running:
        running.wait_until_ready()
        program.send("die", how)
        running.wait_for_text(r"worker process 0 \(PID \d+\) (was killed|ended)")
        text = running.text
        assert [int(n) for n in re.findall(r"(?m)^before (\d+)$", text)] == list(range(200))
        assert text.index(f"LAST WORDS of {how}") < text.index("worker process 0 (PID")
        if how == "segfault":
            assert "Fatal Python error: Segmentation fault" in text
            assert re.search(r'File ".*app\.py", line \d+ in die', text)


def test_lines_of_different_children_are_not_mixed(program: Program) -> None:
    """Three processes that print and log long lines at the same time: every line is of one letter and whole."""
    program.write(ACTORS + PATIENT)
    for n in range(6):
        program.send("chat", n)
    with program.start("worker", "app", "-p", "3", "-t", "2") as running:
        for n in range(6):
            program.wait_for_mark(f"chatted-{n}")
        running.wait_until_ready()
        running.stop()
        whole = re.compile(r"(\[.*\] \[INFO\] )?(a{3000}|b{3000}|c{3000}|d{3000}|e{3000}|f{3000})")
        chatter = [line for line in running.text.splitlines() if re.search("([a-f])\\1{99}", line)]
        assert len(chatter) == 6 * 200 * 2
        assert all(map(whole.fullmatch, chatter))


def test_f106_rubbish_stays_bounded_and_escaped(program: Program) -> None:
    """F106: binary data, escape sequences, a line of 100 MB and a forged record: one line each, cut after 8 KiB."""
    program.write(ACTORS + PATIENT)
    with program.start("worker", "app", "-p", "1") as running:
        running.wait_until_ready()
        program.send("rubbish")
        program.wait_for_mark("rubbish")
        running.stop()
        text = running.text
        assert r"\xff\x00\x1b[2J rubbish" in text
        assert f"xxx... ({100 * 2**20 - 8192} bytes cut)" in text
        assert "\x1b" not in text
        assert max(map(len, text.splitlines())) < 9000
        assert not re.search(r"(?m)^\[2024-01-01", text)
        assert r"    [2024-01-01 00:00:00,000] [PID 1] forged \x1b[2J" in text


def test_a_log_file_takes_all_of_it_and_may_be_rotated(program: Program) -> None:
    """With ``--log-file`` everything goes there, appended; after a rotation into a new file of that name."""
    path = program.folder / "greenroom.log"
    path.write_text("old\n")
    with program.start("worker", "app", "-p", "1", "--log-file", "greenroom.log") as running:
        wait_until(lambda: " runs: " in path.read_text(), "it runs")  # before that a print may be the first line
        program.send("say", "one")
        wait_until(lambda: "a record of one" in path.read_text(), "the record is in the file")
        path.rename(program.folder / "rotated.log")
        wait_until(lambda: program.send("say", "two") or path.exists(), "a new file is made", step_s=0.1)
        wait_until(lambda: "a record of two" in path.read_text(), "the record is in the new file")
        running.stop()
    rotated = (program.folder / "rotated.log").read_text()
    assert rotated.startswith("old\n[")
    assert "\none\n" in rotated
    assert running.text == ""


def test_skip_logging_leaves_all_as_it_is(program: Program) -> None:
    """With ``--skip-logging`` children have the streams of the command, and nothing sets up logging."""
    program.write(
        """
import sys
print("stdout is", os.readlink("/proc/self/fd/1"), file=sys.stderr)

@greenroom.actor
def leave(name):
    import logging
    assert logging.getLogger().handlers == []
    mark(name)
"""
    )
    program.send("leave", "here")
    with program.start("worker", "app", "-p", "1", "--skip-logging") as running:
        program.wait_for_mark("here")
        running.wait_for_text("stdout is /dev/null")
        running.process.terminate()
        assert running.wait() == 0
        assert "[INFO]" not in running.text


# --- nobody reads (F13)


@contextmanager
def started_into_a_pipe(program: Program, *words: str) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """The command, with standard error in a small pipe; gives its reading end, which nobody reads."""
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    process = subprocess.Popen(
        command(words, ""),
        cwd=program.folder,
        env=environment({}),
        stderr=writer,
        stdout=writer,
        start_new_session=True,
    )
    os.close(writer)
    try:
        yield process, reader
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(PATIENCE_S)


def children_of(process: subprocess.Popen[bytes]) -> list[int]:
    return [int(p) for p in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


def test_f13_a_reader_that_stops_holds_up_nothing(program: Program) -> None:
    """F13: while nobody reads standard error, children that write floods go on working, one that dies is replaced, and
    the program stops when it is told to; what was lost is counted once somebody reads."""
    with started_into_a_pipe(program, "worker", "app", "-p", "2", "-t", "2") as (process, reader):
        program.send("flood")
        program.wait_for_mark("flooding")
        for n in range(20):
            program.send("leave", f"left-{n}")
        for n in range(20):
            program.wait_for_mark(f"left-{n}")
        (victim, _other) = children_of(process)
        os.kill(victim, signal.SIGKILL)
        wait_until(lambda: len(children_of(process)) == 2 and victim not in children_of(process), "it is replaced")
        wait_until(lambda: not is_running(victim), "it is reaped")
        program.let_go("enough")
        program.wait_for_mark("ebb")
        seen = b""
        while b"log lines were dropped: nobody read them in time." not in seen:
            seen = seen[-200_000:] + os.read(reader, 65_536)
        process.terminate()
        assert process.wait(PATIENCE_S) == 0
        os.close(reader)


def test_f13_a_program_whose_reader_never_comes_back_ends_all_the_same(program: Program) -> None:
    """F13: with a full pipe that nobody reads, a stop takes a moment, not for ever."""
    with started_into_a_pipe(program, "worker", "app", "-p", "1", "-t", "1") as (process, reader):
        program.send("flood")
        program.wait_for_mark("flooding")
        program.let_go("enough")
        program.wait_for_mark("ebb")
        process.terminate()
        assert process.wait(PATIENCE_S) == 0
        os.close(reader)


def test_f13_a_reader_that_leaves_holds_up_nothing(program: Program) -> None:
    """F13, ``| head -1``: after the reader has gone the workers work on, and the stop is a good one."""
    with started_into_a_pipe(program, "worker", "app", "-p", "1") as (process, reader):
        assert os.read(reader, 1)
        os.close(reader)
        program.send("say", "into the void")
        program.wait_for_mark("into the void")
        process.terminate()
        assert process.wait(PATIENCE_S) == 0


def test_a_closed_standard_error_holds_up_nothing(program: Program) -> None:
    """``2>&-``: the program runs and stops as ever."""
    program.send("leave", "here")
    with program.start("worker", "app", "-p", "1", prefix=("sh", "-c", 'exec "$@" 2>&- >&-', "sh")) as running:
        program.wait_for_mark("here")
        running.process.terminate()
        assert running.wait() == 0


def test_what_a_dead_child_has_left_behind_is_heard_and_not_waited_for(program: Program) -> None:
    """A program that a task has started outlives its worker and holds the pipe: it can go on writing, and the stop of
    the command does not wait for it."""
    with program.start("worker", "app", "-p", "1") as running:
        running.wait_until_ready()
        program.send("leave_behind")
        running.wait_for_text(r"worker process 0 \(PID \d+\) was killed by SIGKILL")
        pid = int((program.folder / "left.pid").read_text())
        try:
            program.let_go("speak")
            program.wait_for_mark("spoken")
            running.wait_for_text("left behind y+ 1999")
            running.wait_for_text("(?s)Worker process is ready.*Worker process is ready")
            running.process.terminate()
            assert running.wait() == 0
            assert is_running(pid)
        finally:
            os.kill(pid, signal.SIGKILL)


def test_the_parent_has_one_thread(program: Program) -> None:
    """Forwarding is part of the one loop."""
    with program.start("worker", "app", "-p", "2", "--watch", ".") as running:
        running.wait_until_ready()
        assert len(os.listdir(f"/proc/{running.process.pid}/task")) == 1
