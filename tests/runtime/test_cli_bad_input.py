"""What users get wrong: one clear line, the exit code, and nothing started."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.runtime.cli_kit import Program

PLAIN = """
import greenroom

@greenroom.actor
def nothing():
    pass

number = 1
"""


@pytest.fixture
def program(tmp_path: Path) -> Program:
    return Program(tmp_path).write(PLAIN, head="")


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["worker"], "no MODULE given"),
        (["worker", "nosuch"], "no module named 'nosuch'"),
        (["nosuch"], "no module named 'nosuch'"),
        (["wroker", "app"], "no module named 'wroker'; did you mean the command 'worker'?"),
        (["worker", "app", "nosuch"], "no module named 'nosuch'"),
        (["worker", "app.py"], "no module named 'app.py'; did you mean 'app'?"),
        (["worker", "app.number"], "no module named 'app.number'; did you mean the variable 'app:number'?"),
        (["worker", ""], "'' names no module"),
        (["worker", ":broker"], "':broker' names no module"),
        (["worker", "app:"], "'app:' names no variable"),
        (["worker", "./app.py"], "'./app.py' is a path"),
        (["worker", "app", "app:broker"], "only the first module may name a broker"),
        (["worker", "app:brokr"], "Module 'app' does not define a 'brokr' variable."),
        (["worker", "app:numbr"], "does not define a 'numbr' variable. Did you mean 'number'?"),
        (["worker", "app:nothing.x"], "does not define a 'nothing.x' variable."),
        (["worker", "app:number"], "'app:number' is not a Broker."),
        (["worker", "app:greenroom"], "'app:greenroom' is not a Broker."),
        (["worker", "app", "-p", "0"], "-p/--processes: must be a whole number of at least 1, not '0'"),
        (["worker", "app", "-t", "-3"], "-t/--threads: must be a whole number of at least 1, not '-3'"),
        (["worker", "app", "-t", "abc"], "-t/--threads: must be a whole number of at least 1, not 'abc'"),
        (["worker", "app", "--worker-shutdown-timeout", "1.5"], "--worker-shutdown-timeout: must be a whole number"),
        (["worker", "app", "-p"], "expected one argument"),
        (["worker", "app", "-Q", "no spaces"], "Invalid queue name 'no spaces'"),
        (["worker", "-Q", "default", "app"], "no MODULE given"),
        (["worker", "app", "--proceses", "2"], "unrecognized arguments: --proceses"),
        (["worker", "app", "--log-file", "nowhere/x.log"], "the log file 'nowhere/x.log' cannot be opened"),
        (["worker", "app", "--log-file", ""], "--log-file: must not be empty"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes_in_the_command_line(program: Program, words: list[str], text: str) -> None:
    """Exit code 2 and one line that says what is wrong."""
    ended = program.run(*words, *(["-p", "2"] if "app" in words[-1] or "nosuch" in words[-1] else []))
    assert ended.returncode == 2
    (line,) = ended.stderr.splitlines()
    assert line.startswith("greenroom: error: ")
    assert text in line
    assert ended.stdout == ""
    assert not (program.folder / ".greenroom").exists()


def test_all_mistakes_are_told_at_once(program: Program) -> None:
    """Three wrong flags and a wrong variable give four lines."""
    ended = program.run("app", "-p", "0", "-t", "x", "-Q", "a b", greenroom_worker_timeout="soon")
    assert ended.returncode == 2
    assert len(ended.stderr.splitlines()) == 4


@pytest.mark.parametrize("flags", [(), ("--use-spawn",)], ids=["fork", "spawn"])
@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("def f():\n    raise KeyError('boom')\nf()\n", "importing module 'bad' raised KeyError: 'boom'"),
        ("import nosuch_dependency\n", "importing module 'bad' raised ModuleNotFoundError: No module named"),
        ("def f(:\n", "importing module 'bad' raised SyntaxError: "),
        ("import sys\nsys.exit('enough')\n", "importing module 'bad' raised SystemExit: enough"),
    ],
    ids=["exception", "dependency", "syntax", "exit"],
)
def test_a_module_that_raises(program: Program, flags: tuple[str, ...], source: str, reason: str) -> None:
    """The traceback, from the user's code on, is shown once for all processes, and one line ends it."""
    program.write(source, name="bad.py", head="")
    ended = program.run("worker", "bad", "-p", "3", *flags)
    assert ended.returncode == 2
    *trace, line = ended.stderr.splitlines()
    assert line.startswith(f"greenroom: error: {reason}")
    assert sum("bad.py" in part for part in trace) <= 2
    assert sum(part.startswith("Traceback") for part in trace) <= 1
    assert not any("application.py" in part or "importlib" in part for part in trace)


def test_a_function_that_raises(program: Program) -> None:
    """What ``module:function`` names may fail: traceback once, then the line."""
    program.write("def make():\n    raise OSError('no such luck')\n", name="bad.py", head="")
    ended = program.run("worker", "bad:make", "-p", "2")
    assert ended.returncode == 2
    assert ended.stderr.count("Traceback") == 1
    assert ended.stderr.splitlines()[-1] == "greenroom: error: calling 'bad:make' raised OSError: no such luck"


def test_a_child_that_ends_while_it_boots(program: Program) -> None:
    """Code that ends the process is told with its code, which becomes the command's."""
    program.write("import os\nos._exit(9)\n", name="bad.py", head="")
    ended = program.run("worker", "bad", "-p", "1")
    assert ended.returncode == 9
    (line,) = ended.stderr.splitlines()
    assert line.startswith("greenroom: error: worker process 0 (PID ")
    assert line.endswith("ended with code 9 before it was ready")


def test_a_child_that_is_killed_while_it_boots(program: Program) -> None:
    """F09: a crash at import is told by its signal, after the stack; the code is 1. It is not tried again."""
    program.write("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n", name="bad.py", head="")
    ended = program.run("worker", "bad", "-p", "2")
    assert ended.returncode == 1
    *stack, line = ended.stderr.splitlines()
    assert line.startswith("greenroom: error: worker process ")
    assert line.endswith("was killed by SIGSEGV before it was ready")
    assert 1 <= sum("bad.py" in part for part in stack) <= 2


def write_broker(program: Program, path: Path) -> None:
    program.write(
        f"from greenroom.brokers.sqlite import SqliteBroker\nbroker = SqliteBroker({str(path)!r})\n",
        name="filed.py",
        head="",
    )


def test_a_folder_instead_of_a_queue_file(program: Program) -> None:
    """A broker that cannot be opened at start: exit code 3 and one line with the path."""
    write_broker(program, program.folder)
    ended = program.run("worker", "filed:broker", "-p", "2")
    assert ended.returncode == 3
    (line,) = ended.stderr.splitlines()
    assert str(program.folder) in line


def test_a_queue_file_whose_folder_cannot_be_made(program: Program) -> None:
    """A file stands where the folder should be: exit code 3 and one line with the path."""
    (program.folder / "taken").touch()
    write_broker(program, program.folder / "taken" / "queue.db")
    ended = program.run("worker", "filed:broker", "-p", "2")
    assert ended.returncode == 3
    (line,) = ended.stderr.splitlines()
    assert str(program.folder / "taken") in line


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission(program: Program) -> None:
    """A folder that may not be written: exit code 3 and one line with the path."""
    locked = program.folder / "locked"
    locked.mkdir(mode=0o500)
    write_broker(program, locked / "queue.db")
    ended = program.run("worker", "filed:broker", "-p", "2")
    assert ended.returncode == 3
    (line,) = ended.stderr.splitlines()
    assert str(locked) in line


def test_a_file_that_is_not_a_queue(program: Program) -> None:
    """Damaged data: exit code 5 and one line with the path; the file is left as it was."""
    file = program.folder / "queue.db"
    content = b"this is not a database, and long enough to be read as one" * 100
    file.write_bytes(content)
    write_broker(program, file)
    ended = program.run("worker", "filed:broker", "-p", "2")
    assert ended.returncode == 5
    (line,) = ended.stderr.splitlines()
    assert str(file) in line
    assert file.read_bytes() == content


def test_a_bad_url(program: Program) -> None:
    """A ``GREENROOM_URL`` of an unknown scheme: exit code 2 and one line."""
    ended = program.run("worker", "app", "-p", "2", GREENROOM_URL="sqlte:///queue.db")
    assert ended.returncode == 2
    (line,) = ended.stderr.splitlines()
    assert "the default broker cannot be made" in line
