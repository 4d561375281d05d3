"""The command line as users meet it: what it shows, runs, logs and leaves alone."""

from __future__ import annotations

import re
import signal
from pathlib import Path

import pytest

from tests.runtime.cli_kit import Program, wait_until

LOG_LINE = re.compile(
    r"\[\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}\] \[PID \d+\] \[\w+\] \[[\w.()]+\] \[(DEBUG|INFO|WARNING|ERROR)\] .+"
)
ACTORS = """
@greenroom.actor
def leave(name):
    mark(name)

@greenroom.actor(queue_name="other")
def leave_other(name):
    mark(name)

@greenroom.actor
def meet(mine, other):
    mark(mine)
    wait_for(other)
    mark(mine + "-done")
"""


@pytest.fixture
def program(tmp_path: Path) -> Program:
    return Program(tmp_path).write(ACTORS)


@pytest.mark.parametrize(
    "words",
    [("worker", "app"), ("app",), ("app:broker",), ("-p", "1", "app"), ("worker", "app", "--use-spawn")],
    ids=" ".join,
)
def test_messages_run(program: Program, words: tuple[str, ...]) -> None:
    """In its long and its short form, by default broker and by name, forked or spawned, the command runs messages."""
    program.send("leave", "before")
    with program.start(*words, *([] if "-p" in words else ["-p", "1"]), "-t", "2") as running:
        program.wait_for_mark("before")
        running.wait_until_ready()
        program.send("leave", "after")
        program.wait_for_mark("after")
        running.process.terminate()
        assert running.wait() == 0


def test_a_module_called_like_a_subcommand_can_be_run(program: Program) -> None:
    """``greenroom worker worker`` runs the module ``worker``."""
    program.write(ACTORS, name="worker.py")
    program.send("leave", "here")
    with program.start("worker", "worker", "-p", "1") as running:
        program.wait_for_mark("here")
        running.wait_until_ready().process.terminate()
        assert running.wait() == 0


def test_two_processes_share_the_work(program: Program) -> None:
    """With ``-p 2 -t 1`` two messages that wait for each other both end: they run in two processes."""
    with program.start("worker", "app", "-p", "2", "-t", "1") as running:
        running.wait_until_ready()
        program.send("meet", "a", "b")
        program.send("meet", "b", "a")
        program.wait_for_mark("a-done")
        program.wait_for_mark("b-done")
        pids = {(program.folder / f"mark-{name}-done").read_text() for name in "ab"}
        assert pids == {str(pid) for pid in running.children()}


def test_threads_of_one_process_share_the_work(program: Program) -> None:
    """With ``-p 1 -t 2`` two messages that wait for each other both end."""
    program.send("meet", "a", "b")
    program.send("meet", "b", "a")
    with program.start("worker", "app", "-p", "1", "-t", "2"):
        program.wait_for_mark("a-done")
        program.wait_for_mark("b-done")


def test_only_the_queues_named_are_consumed(program: Program) -> None:
    """With ``-Q`` messages of other queues stay where they are."""
    program.send("leave_other", "unwanted", queue="other")
    program.send("leave", "wanted")
    with program.start("worker", "app", "-p", "1", "-Q", "default") as running:
        program.wait_for_mark("wanted")
        running.wait_until_ready().process.terminate()
        assert running.wait() == 0
    assert program.ready("other") == 1
    assert not program.has_mark("unwanted")


def test_a_queue_that_no_actor_uses_is_pointed_out(program: Program) -> None:
    """A misspelt queue would keep a worker idle without a word: it is warned about, with the near name."""
    with program.start("worker", "app", "-p", "1", "-Q", "ohter") as running:
        running.wait_for_text("No actor uses queue 'ohter'; did you mean 'other'?")


def test_further_modules_are_imported(program: Program) -> None:
    """The actors of all modules named are known, also of those behind flags."""
    program.write("@greenroom.actor\ndef more(name):\n    mark(name)\n", name="extra.py", head="from app import *\n")
    program.send("more", "here")
    with program.start("worker", "app", "-p", "1", "extra"):
        program.wait_for_mark("here")


@pytest.mark.parametrize("spec", ["late:make", "late:give", "late:box.broker"])
def test_the_ways_to_name_a_broker(program: Program, spec: str) -> None:
    """A function that sets the default broker, one that returns a broker, and a dotted path all lead to it."""
    program.write(
        """
from types import SimpleNamespace

@greenroom.actor
def leave(name):
    mark(name)

broker = SqliteBroker(HERE / "queue.db")
box = SimpleNamespace(broker=broker)

def make():
    greenroom.set_broker(broker)

def give():
    return broker
""",
        name="late.py",
        head=(program.folder / "app.py").read_text().split("broker =")[0]
        + "def mark(name):\n    (HERE / f'mark-{name}').touch()\n",
    )
    program.send("leave", "here")
    with program.start("worker", spec, "-p", "1"):
        program.wait_for_mark("here")


def test_modules_are_found_in_the_folders_named(program: Program) -> None:
    """``-P`` names folders to import from."""
    folder = program.folder / "lib"
    folder.mkdir()
    (program.folder / "app.py").rename(folder / "inner.py")
    inner = Program(folder)
    inner.send("leave", "here")
    with program.start("worker", "inner", "-p", "1", "-P", "lib"):
        inner.wait_for_mark("here")


def test_the_environment_names_the_default_broker(program: Program) -> None:
    """Without a broker in the code ``GREENROOM_URL`` decides."""
    program.write(
        "import pathlib, greenroom\n@greenroom.actor\ndef plain():\n    pathlib.Path('mark-here').touch()\n",
        name="plain.py",
        head="",
    )
    program.send("plain")
    with program.start("worker", "plain", "-p", "1", GREENROOM_URL="sqlite:///queue.db"):
        program.wait_for_mark("here")


def test_the_log_says_what_runs_in_the_format_of_dramatiq(program: Program) -> None:
    """Every line has the one format, and the line at the start names all that matters, the file by its full path."""
    with program.start("worker", "app", "-p", "2", "-t", "3") as running:
        running.wait_until_ready().process.terminate()
        assert running.wait() == 0
        lines = running.text.splitlines()
    assert [line for line in lines if not LOG_LINE.fullmatch(line)] == []
    (start,) = [line for line in lines if " runs: " in line]
    for part in (
        f"PID {running.process.pid}, processes: 2, threads: 3 each, queues: all (default, other), broker: ",
        str(program.folder / "queue.db"),
        "[greenroom.MainProcess] [INFO] Greenroom ",
    ):
        assert part in start
    for number in (0, 1):
        assert sum(f"[greenroom.WorkerProcess({number})] [INFO]" in line for line in lines) >= 1


def test_log_lines_go_to_a_file(program: Program) -> None:
    """With ``--log-file`` they are appended to the file, by all processes, and standard error stays empty."""
    log = program.folder / "worker.log"
    log.write_text("older line\n")
    program.send("leave", "here")
    with program.start("worker", "app", "-p", "1", "--log-file", "worker.log") as running:
        program.wait_for_mark("here")
        # The parent speaks first when its worker is ready, which may be after the worker has run a message.
        wait_until(lambda: "MainProcess" in log.read_text(), "the parent has written to the log")
        running.process.terminate()
        assert running.wait() == 0
        assert running.text == ""
    text = log.read_text()
    assert text.startswith("older line\n")
    assert "MainProcess" in text
    assert "WorkerProcess(0)" in text


def test_logging_can_be_left_alone(program: Program) -> None:
    """With ``--skip-logging`` nothing is set up and nothing is printed."""
    program.send("leave", "here")
    with program.start("worker", "app", "-p", "1", "--skip-logging") as running:
        program.wait_for_mark("here")
        running.process.send_signal(signal.SIGINT)
        assert running.wait() == 0
        assert running.text == ""


def test_verbose_logs_debug_lines(program: Program) -> None:
    """``-v`` shows what is logged at DEBUG."""
    with program.start("worker", "app", "-p", "1", "-v") as running:
        running.wait_for_text(r"\[DEBUG\]")


def test_help_and_version(program: Program) -> None:
    """They print to standard output and end with 0; without any word the help goes to standard error, with 2."""
    for words in (("--help",), ("worker", "--help"), ("app", "--help")):
        shown = program.run(*words)
        assert (shown.returncode, shown.stderr) == (0, "")
        assert shown.stdout.startswith("usage: greenroom ")
    version = program.run("--version")
    assert (version.returncode, version.stderr) == (0, "")
    assert re.fullmatch(r"greenroom \d+\.\d+\.\d+\S*\n", version.stdout)
    nothing = program.run()
    assert (nothing.returncode, nothing.stdout) == (2, "")
    assert nothing.stderr.startswith("usage: greenroom ")
