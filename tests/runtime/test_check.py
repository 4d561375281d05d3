"""``greenroom check``: whether a program could run, without running it."""

from __future__ import annotations

import json
import os
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from tests.runtime.cli_kit import Program

ACTORS = """
import sys
print("the module prints")

def fork():
    return 0

class Metrics(greenroom.Middleware):
    @property
    def forks(self):
        return [fork]

broker.add_middleware(Metrics())

@greenroom.actor(max_retries=3, priority=5)
def mail(name):
    mark(name)

@greenroom.actor(queue_name="reports")
async def report(name):
    mark(name)
"""


@pytest.fixture
def program(tmp_path: Path) -> Program:
    return Program(tmp_path).write(ACTORS)


def checked(program: Program, *words: str, code: int = 0) -> Any:
    """The document of ``greenroom check --json``."""
    ended = program.run("check", *words, "--json")
    assert ended.returncode == code, ended.stderr
    return json.loads(ended.stdout)


def test_it_shows_what_would_run(program: Program) -> None:
    """For people: effective settings, broker, middleware in order, actors with their options, fork functions."""
    ended = program.run("check", "app", "-p", "3", "-t", "2")
    assert ended.returncode == 0
    lines = [" ".join(line.split()) for line in ended.stdout.splitlines()]
    assert lines[0].startswith("Greenroom ")
    for line in (
        "processes 3",
        "threads 2",
        "worker shutdown timeout ms 600000",
        f"path {program.folder}",
        f"file {program.folder / 'queue.db'}",
        "exists no",
        "AgeLimit, TimeLimit, ShutdownNotifications, Callbacks, Pipelines, Retries, Metrics",
        "mail default 5 on threads max_retries=3",
        "report reports 0 on the loop",
        "app:fork",
        "All is well. Nothing was started.",
    ):
        assert line in lines, line
    assert "the module prints" in ended.stderr


def test_it_starts_nothing_and_makes_no_file(program: Program) -> None:
    """No queue file, no log or pid file, no byte code; a message that waits is not run."""
    program.send("mail", "unwanted")
    before = {path: path.stat().st_mtime_ns for path in program.folder.rglob("*") if path.is_file()}
    words = ("--log-file", "x.log", "--pid-file", "x.pid")
    assert program.run("check", "app", *words, PYTHONDONTWRITEBYTECODE="").returncode == 0
    after = {path: path.stat().st_mtime_ns for path in program.folder.rglob("*") if path.is_file()}
    assert after == before
    assert program.ready("default") == 1
    os.unlink(program.folder / "queue.db")
    assert program.run("check", "app").returncode == 0
    assert not (program.folder / "queue.db").exists()


def test_for_programs(program: Program) -> None:
    """With ``--json`` one document is all that is printed, whatever the program prints when it is imported."""
    document = checked(program, "app:broker", "-Q", "mail")
    assert document["ok"] is True
    assert document["settings"]["queues"] == ["mail"]
    assert document["settings"]["start_method"] in ("fork", "forkserver", "spawn")
    assert document["broker"]["repr"] == f"SqliteBroker({str(program.folder / 'queue.db')!r})"
    assert document["queues"] == ["default", "reports"]
    assert [(a["name"], a["queue"], a["priority"], a["async"]) for a in document["actors"]] == [
        ("mail", "default", 5, False),
        ("report", "reports", 0, True),
    ]
    assert document["fork_functions"] == ["app:fork"]
    assert document["warnings"] == ["no actor uses queue 'mail'"]


def test_the_file_is_looked_at(program: Program) -> None:
    """Its size and its schema version are told, also while another process has it open."""
    program.send("mail", "waiting")
    store = checked(program, "app")["broker"]
    assert store["exists"] is True
    assert store["schema_version"] >= 1
    assert store["bytes"] > 0
    with sqlite3.connect(program.folder / "queue.db") as connection:
        connection.execute("begin immediate")
        connection.execute("create table other (x)")
        assert checked(program, "app")["broker"]["schema_version"] == store["schema_version"]
        connection.rollback()
    connection.close()


def test_a_broker_without_actors_is_pointed_out(program: Program) -> None:
    """A worker would have nothing to do, which is seldom what is meant."""
    program.write("", name="empty.py")
    (warning,) = checked(program, "empty")["warnings"]
    assert "declare no actors" in warning


# --- what is wrong


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("missing",), "no module named 'missing'"),
        (("app:borker",), "Module 'app' does not define a 'borker' variable. Did you mean 'broker'?"),
        (("app:mail.fn",), None),
        (("app", "-p", "0"), "-p/--processes: must be a whole number of at least 1, not '0'"),
        (("app", "-f", "app:frok"), "Module 'app' does not define a 'frok' variable. Did you mean 'fork'?"),
        (("app", "--log-file", "missing/x.log"), "--log-file: 'missing/x.log' cannot be written"),
        (("app", "--pid-file", "."), "--pid-file: '.' cannot be written"),
        (
            ("app", "--worker-fork-timeout", "5"),
            "--worker-fork-timeout: must be a whole number of at least 10, not '5'",
        ),
        ((), "no MODULE given: name the module that declares your actors"),
    ],
)
def test_mistakes(program: Program, words: tuple[str, ...], line: str | None) -> None:
    """What the command line or the program has wrong is told in a line, and the exit code is 2."""
    ended = program.run("check", *words)
    assert ended.returncode == 2
    if line is not None:
        assert ended.stderr.splitlines()[-1] == f"greenroom: error: {line}"


def test_code_that_raises(program: Program) -> None:
    """The traceback of the user's code comes along."""
    program.write("1 / 0", name="bad.py", head="")
    document = checked(program, "bad", code=2)
    assert document["ok"] is False
    assert document["code"] == 2
    assert document["errors"] == ["importing module 'bad' raised ZeroDivisionError: division by zero"]
    assert "1 / 0" in document["traceback"]


@pytest.mark.parametrize(
    ("make", "code", "text"),
    [
        (lambda path: path.write_bytes(b"no database at all" * 100), 5, "is damaged or not a SQLite database"),
        (lambda path: _stamp(path, 99), 5, "has schema version 99; this Greenroom reads versions up to"),
        (lambda path: path.mkdir(), 3, "cannot be"),
    ],
    ids=["garbage", "newer", "folder"],
)
def test_a_broker_that_cannot_be_used(program: Program, make: Any, code: int, text: str) -> None:
    """A damaged file and one of another version: 5; one that cannot be opened: 3; each with its reason."""
    make(program.folder / "queue.db")
    document = checked(program, "app", code=code)
    assert text in document["errors"][0]


def _stamp(path: Path, version: int) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("create table x (y)")
        connection.execute(f"pragma user_version = {version}")
    connection.close()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written(program: Program) -> None:
    """The file could not be made: 3."""
    locked = program.folder / "locked"
    locked.mkdir(mode=0o500)
    program.write(
        "",
        name="app.py",
        head=f"from greenroom.brokers.sqlite import SqliteBroker\nbroker = SqliteBroker({str(locked / 'q.db')!r})\n",
    )
    document = checked(program, "app:broker", code=3)
    assert "cannot be written" in document["errors"][0]
