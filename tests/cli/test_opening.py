"""Which broker a command looks at, and what happens where there is none."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
from pathlib import Path

import pytest

from greenroom.cli import main
from tests.cli.kit import Desk
from tests.runtime.cli_kit import PATIENCE_S, Program, command, environment

LOOKING = (["queues"], ["peek", "default"], ["dead", "list"], ["dead", "replay", "--all"], ["pause", "default"])


@pytest.mark.parametrize("words", [*LOOKING, ["resume", "default"], ["flush", "--all"]], ids=" ".join)
def test_looking_makes_no_file(file_desk: Desk, words: list[str]) -> None:
    """A command on a file that is not there names it, ends with 3, and leaves the folder as it was."""
    said = file_desk.run(*words)
    assert said.code == 3
    assert str(file_desk.path) in said.err
    assert said.err.startswith("greenroom: error: ")
    assert list(file_desk.path.parent.iterdir()) == []


def test_looking_makes_no_default_file(tmp_path: Path) -> None:
    """Also where nothing names a broker: the default file is named, not made."""
    done = Program(tmp_path).run("queues")
    assert (done.returncode, done.stdout) == (3, "")
    assert str(tmp_path / ".greenroom" / "queue.db") in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_url_may_come_from_the_environment(desk: Desk) -> None:
    """``GREENROOM_URL`` names the broker where no option does."""
    desk.send("a@b.example")
    done = Program(desk.path.parent).run("queues", "--json", GREENROOM_URL=desk.url)
    assert [queue["ready"] for queue in json.loads(done.stdout)["queues"]] == [1]


def test_the_broker_of_a_program(tmp_path: Path) -> None:
    """``--broker`` names a program's broker: its declared queues are listed, what it prints stays apart."""
    program = Program(tmp_path).write(
        """
print("imported")
broker.transport.path.touch()

@greenroom.actor(queue_name="declared")
def leave():
    pass
"""
    )
    for words in (["--broker", "app"], ["--broker", "app:broker"], ["--broker", "app", "-P", "."]):
        done = program.run("queues", "--json", *words)
        assert [queue["queue"] for queue in json.loads(done.stdout)["queues"]] == ["declared"]
        assert "imported" in done.stderr


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--url", "sqlit:///x.db"], "did you mean 'sqlite'"),
        (["--url", "sqlite:///x.db?durabel=1"], "durabel"),
        (["--broker", "nowhere"], "no module named 'nowhere'"),
        (["--broker", "nowhere", "--url", "sqlite:///x.db"], "not allowed with"),
    ],
    ids=["scheme", "parameter", "module", "both"],
)
def test_a_mistake_in_naming_the_broker(
    words: list[str], text: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What names no broker is told in one line, and ends with 2."""
    monkeypatch.chdir(tmp_path)
    try:
        code = main(["queues", *words])
    except SystemExit as e:
        code = e.code
    said = capsys.readouterr()
    assert code == 2
    assert text.lower() in said.err.lower()
    assert said.err.count("\n") == 1


def test_a_broker_of_another_kind(tmp_path: Path) -> None:
    """A broker that a user wrote cannot be looked into, and that is said."""
    program = Program(tmp_path).write("class Own(greenroom.Broker):\n    pass\n\nown = Own()\n")
    done = program.run("queues", "--broker", "app:own")
    assert done.returncode == 2
    assert "cannot be looked into" in done.stderr


def test_a_file_that_is_no_queue(file_desk: Desk) -> None:
    """A file of another program ends a command with 5, and stays as it was."""
    with sqlite3.connect(file_desk.path) as connection:
        connection.execute("create table mine (x)")
    connection.close()
    before = file_desk.path.read_bytes()
    said = file_desk.run("queues")
    assert said.code == 5
    assert str(file_desk.path) in said.err
    assert file_desk.path.read_bytes() == before


def test_output_that_nobody_reads(desk: Desk) -> None:
    """When the reader of a pipe goes away, a command ends without a traceback."""
    desk.bury("a@b.example", count=2_000)
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            command(("dead", "list", "--limit", "0", "--url", desk.url), ""),
            stdout=writer,
            stderr=subprocess.PIPE,
            env=environment({}),
            timeout=PATIENCE_S,
            check=False,
        )
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (1, b"")
