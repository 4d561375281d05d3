"""``--watch``: a change of the source restarts the workers, and nothing else does."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

from greenroom.runtime.watch import Patterns
from tests.runtime.cli_kit import Program, Running, is_running, wait_until

METHODS = ("fork", "spawn", "forkserver")
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")

ACTORS = """
import sys
VERSION = 1

@greenroom.actor
def leave(name):
    mark(f"{name}-{VERSION}")

@greenroom.actor
def stay(name):
    mark(f"{name}-started-{VERSION}")
    if VERSION == 1:
        wait_for("never")
    mark(f"{name}-done")
"""
WORDS = ("worker", "app", "-p", "2", "--watch", ".", "--watch-exclude", "queue.*", "-x", "mark-*")


@pytest.fixture
def program(tmp_path: Path) -> Program:
    return Program(tmp_path).write(ACTORS)


def watched(running: Running) -> Running:
    """Once it runs, and watches."""
    running.wait_until_ready()
    wait_until(lambda: len(running.workers()) == 2, "both workers have said so")
    running.wait_for_text("Watching ")
    return running


def change(program: Program, old: str = "VERSION = 1", new: str = "VERSION = 2") -> None:
    """Saves the program as an editor does: a scratch file beside it that takes its place."""
    source = (program.folder / "app.py").read_text()
    assert old in source
    (program.folder / "app.py~").write_text(source.replace(old, new))
    os.utime(program.folder / "app.py~", (2e9, 2e9))  # who polls sees whole seconds only
    (program.folder / "app.py~").rename(program.folder / "app.py")


# --- patterns


@pytest.mark.parametrize(
    ("path", "include", "exclude", "counts"),
    [
        ("app.py", ["**.py"], [], True),
        ("deep/er/app.py", ["**.py"], [], True),
        ("app.py", ["*.py"], [], True),
        ("app.pyc", ["**.py"], [], False),
        ("page.html", ["**.py"], [], False),
        ("page.html", ["**.py", "**.html"], [], True),
        ("templates/page.html", ["templates/*"], [], True),
        ("app.py", ["**.py"], ["app.py"], False),
        ("tests/test_app.py", ["**.py"], ["tests"], False),
        ("a/tests/test_app.py", ["**.py"], ["tests"], False),
        ("tests/test_app.py", ["**.py"], ["test_*"], False),
        ("attests/app.py", ["**.py"], ["tests"], True),
        ("a/migrations/0001.py", ["**.py"], ["a/migrations/*"], False),
    ],
)
def test_which_files_count(tmp_path: Path, path: str, include: list[str], exclude: list[str], *, counts: bool) -> None:
    """A pattern may name a path, a file or, to exclude, a folder; stars match across folders."""
    assert Patterns(str(tmp_path), include, exclude).match(str(tmp_path / path)) is counts


# --- the command


@linux_only
@pytest.mark.parametrize("method", METHODS)
def test_a_change_reaches_all_workers(program: Program, method: str) -> None:
    """Soon after a file was saved every worker process is another one and runs the code of now; the parent stays."""
    with program.start(*WORDS, "--start-method", method) as running:
        old = watched(running).workers()
        change(program)
        running.wait_for_text("All worker processes run the code of now")
        wait_until(lambda: not any(map(is_running, old)), "the old workers have ended")
        assert len(running.workers()) == 2
        running.wait_for_text(r"Reloading the worker processes: app\.py changed\.")
        program.send("leave", "here")
        program.wait_for_mark("here-2")
        running.stop()


@linux_only
def test_what_runs_is_killed_and_charged_to_nobody(program: Program) -> None:
    """Somebody waits for the effect of the change: a task that does not end is killed with its worker, without a retry
    or a crash on its account, and runs again in the new code at once."""
    program.send("stay", "a")
    with program.start(*WORDS) as running:
        watched(running)
        program.wait_for_mark("a-started-1")
        change(program)
        program.wait_for_mark("a-done")
        wait_until(lambda: program.crashes() == [], "it is settled")
        assert "is charged" not in running.text
        running.stop()


@linux_only
def test_code_that_cannot_be_imported_changes_nothing(program: Program) -> None:
    """The error is shown, the workers go on with the code of before; when it is put right the reload is made."""
    with program.start(*WORDS) as running:
        old = watched(running).workers()
        change(program, new="VERSION = (")
        running.wait_for_text("The reload is off, .*SyntaxError")
        assert running.workers() == old
        program.send("leave", "still")
        program.wait_for_mark("still-1")
        change(program, old="VERSION = (", new="VERSION = 3")
        running.wait_for_text("All worker processes run the code of now")
        wait_until(lambda: not any(map(is_running, old)), "the old workers have ended")
        program.send("leave", "again")
        program.wait_for_mark("again-3")
        running.stop()


@linux_only
def test_scratch_files_and_others_do_not_count(program: Program) -> None:
    """Editors' scratch files, byte code, hidden folders, excluded files and files of other kinds cause nothing; a file
    of a pattern of one's own does."""
    folder = program.folder
    with program.start(*WORDS, "-i", "*.toml") as running:
        watched(running)
        for name in (
            ".#app.py",
            "#app.py#",
            ".app.py.swp",
            "4913",
            "app.py~",
            "notes.txt",
            "queue.py",
            "app.cpython.pyc",
        ):
            (folder / name).write_text("x")
        for name in (".git", "__pycache__", ".venv", "node_modules"):
            (folder / name).mkdir()
            (folder / name / "x.py").write_text("x")
        (folder / "settings").write_text("x")
        (folder / "settings").rename(folder / "settings.toml")  # one change, and not a file that is made, then written
        running.wait_for_text(r"Reloading the worker processes: settings\.toml changed\.")
        running.wait_for_text("All worker processes run the code of now")
        assert running.count("Reloading") == 1
        running.stop()


@linux_only
def test_polling(program: Program) -> None:
    """With ``--watch-use-polling`` the files are looked at, which works where the system does not tell."""
    with program.start(*WORDS, "--watch-use-polling") as running:
        watched(running)
        change(program)
        running.wait_for_text("All worker processes run the code of now")
        running.stop()


@linux_only
def test_the_watching_process_is_looked_after(program: Program) -> None:
    """It has no share in a stop, and is started again when it is killed."""
    with program.start(*WORDS) as running:
        workers = watched(running).workers()
        (watcher,) = set(running.children()) - set(workers)
        os.kill(watcher, signal.SIGKILL)
        running.wait_for_text(r"watcher \(PID \d+\) was killed by SIGKILL.*\. It starts again")
        wait_until(lambda: running.count("Watching ") == 2, "it watches again")
        change(program)
        running.wait_for_text("All worker processes run the code of now")
        running.stop()


def test_a_folder_that_is_not_there(program: Program) -> None:
    """A mistake in the command line, told in one line."""
    ended = program.run("worker", "app", "--watch", "missing")
    assert ended.returncode == 2
    assert ended.stderr == "greenroom: error: --watch: 'missing' is not a folder\n"


def test_without_the_extra(program: Program) -> None:
    """The error names what to install."""
    hide = "import sys; sys.modules['watchfiles'] = None; from greenroom.cli import main; sys.exit(main())"
    ended = program.run("worker", "app", "--watch", ".", code=hide)
    assert ended.returncode == 2
    assert ended.stderr == (
        "greenroom: error: --watch needs watchfiles. Install it with: pip install 'greenroom[watch]'\n"
    )
