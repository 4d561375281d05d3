"""The commands on a RabbitMQ server, beside a real worker and without one. A server does not tell which queues it has:
they are named, or the program is that has them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from greenroom.clock import SYSTEM_CLOCK
from tests.cli.kit import Desk, rows_of
from tests.runtime.cli_kit import Program, wait_until

HEAD = """
import os, pathlib
import greenroom
from greenroom.brokers.rabbitmq import RabbitmqBroker

HERE = pathlib.Path(__file__).parent
broker = RabbitmqBroker(url=os.environ["RABBITMQ"])
greenroom.set_broker(broker)

@greenroom.actor(max_retries=0)
def needs(name):
    if not (HERE / "mark-mended").exists():
        raise ConnectionError("the bank does not answer")
    (HERE / f"mark-{name}").touch()
"""


@pytest.fixture
def desk(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, rabbitmq_url: str
) -> Desk:
    """A broker that holds no messages yet."""
    return Desk(tmp_path, capsys, monkeypatch, rabbitmq_url)


@pytest.fixture
def program(tmp_path: Path, rabbitmq_url: str, monkeypatch: pytest.MonkeyPatch) -> Program:
    monkeypatch.setenv("RABBITMQ", rabbitmq_url)
    return Program(tmp_path, rabbitmq_url).write("", head=HEAD)


def run(program: Program, *words: str) -> Any:
    done = program.run(*words, "--broker", "app", "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_letters_of_a_program_are_replayed(program: Program) -> None:
    """With ``--broker`` the queues of the program are known: its dead letters are listed, shown and replayed, and a
    worker runs them."""
    with program.start("worker", "app", "-p", "1") as running:
        running.wait_until_ready()
        program.send("needs", "money")
        wait_until(lambda: run(program, "dead", "list")["dead"], "it has died", step_s=0.1)
        (letter,) = run(program, "dead", "list")["dead"]
        shown = run(program, "dead", "show", letter["id"])
        assert (shown["args"], shown["error"]["message"]) == (["money"], "the bank does not answer")
        program.let_go("mended")
        assert run(program, "dead", "replay", "--all", "--yes")["replayed"] == 1
        program.wait_for_mark("money")
        running.stop()
    (queue,) = run(program, "queues")["queues"]
    assert (queue["ready"], queue["dead"]) == (0, 0)


def test_queues_that_are_named(desk: Desk) -> None:
    """What is ready and dead of each is counted; what cannot be counted is no 0."""
    desk.send(1)
    desk.send(2, eta=SYSTEM_CLOCK.now_ms() + 3_600_000)
    desk.bury(3, queue="other", count=2)
    said = desk.run("queues", "default", "other", "none")
    assert (said.code, said.err) == (0, "")
    assert rows_of(said.out)[1:] == [
        ["default", "1", "?", "?", "0"],
        ["none", "0", "?", "?", "0"],
        ["other", "0", "?", "?", "2"],
    ]
    assert desk.json("queues", "default")["queues"] == [
        {
            "queue": "default",
            "ready": 1,
            "delayed": None,
            "claimed": None,
            "dead": 0,
            "next_waiting_ms": None,
            "paused": False,
        }
    ]


@pytest.mark.parametrize("words", ["queues", "dead list", "dead show x", "dead drop --all --yes", "flush --all --yes"])
def test_queues_that_nobody_names(desk: Desk, words: str) -> None:
    """A command that would have to know all queues says what it needs, instead of having found nothing."""
    desk.send(1)
    said = desk.run(*words.split())
    assert (said.code, said.out) == (2, "")
    assert "does not tell which queues there are: name them, or the program that has them (--broker)" in said.err


def test_a_look_at_what_is_ready(desk: Desk) -> None:
    """``peek`` shows it, in its order, and changes nothing; what cannot be seen is refused."""
    for number in range(3):
        desk.send(number)
    seen = desk.json("peek", "default", "--limit", "2")
    assert [message["args"] for message in seen["messages"]] == [[0], [1]]
    assert seen["more"] is True
    assert desk.counts().ready == 3
    for state in ("claimed", "delayed"):
        said = desk.run("peek", "default", "--state", state)
        assert said.code == 2
        assert f"cannot show what is {state}: only what is ready" in said.err


def test_letters_of_a_queue(desk: Desk) -> None:
    """With ``--queue`` they are listed, shown, replayed and dropped, by id and all together."""
    ids = desk.bury("a", count=3)
    here = ("--queue", "default")
    listed = desk.json("dead", "list", *here)["dead"]
    assert {letter["id"] for letter in listed} == set(ids)
    assert desk.json("dead", "show", ids[0], *here)["error"]["type"] == "ConnectionError"
    assert desk.json("dead", "replay", ids[0], *here)["replayed"] == 1
    assert desk.json("dead", "drop", ids[1], *here)["dropped"] == 1
    assert desk.json("dead", "drop", *here, "--yes")["dropped"] == 1
    assert (desk.counts().ready, desk.counts().dead) == (1, 0)


def test_what_is_flushed(desk: Desk) -> None:
    """What is ready and delayed goes, after a question that says that it does not know how much that is; dead letters
    stay until they are meant."""
    desk.bury("a", count=2)
    desk.send("now")
    desk.send("late", eta=SYSTEM_CLOCK.now_ms() + 3_600_000)
    said = desk.run("flush", "default", typed="no\n")
    assert "Delete 1 ready and all delayed messages of default?" in said.err
    assert desk.counts().ready == 1
    assert desk.json("flush", "default", "--yes")["deleted"] == {"default": 2}
    assert desk.json("flush", "default", "--yes")["deleted"] == {"default": 0}
    assert desk.counts().dead == 2
    assert desk.json("flush", "default", "--dead", "--yes")["deleted"] == {"default": 2}


@pytest.mark.parametrize("word", ["pause", "resume"])
def test_no_pause(desk: Desk, word: str) -> None:
    """A pause is refused, with what to do instead."""
    said = desk.run(word, "default")
    assert said.code == 2
    assert "cannot pause queues: stop the workers, or start them without the queue (-Q)" in said.err


def test_what_a_check_tells(program: Program) -> None:
    """``greenroom check`` asks the server what it is, and declares nothing there."""
    done = program.run("check", "app", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["ok"], found["broker"]["broker"]) == (True, "RabbitMQ")
    assert found["broker"]["version"][0].isdigit()
    assert "guest:guest" not in done.stdout


@pytest.mark.parametrize("words", [("queues", "default"), ("check", "app")], ids=" ".join)
def test_a_server_that_is_not_there(program: Program, words: tuple[str, ...]) -> None:
    """Where no server answers, a command says so in one line that names it, and ends with 3."""
    url = "amqp://guest:secret@127.0.0.1:1/x"
    done = program.run(*words, GREENROOM_URL=url, RABBITMQ=url)
    assert done.returncode == 3
    assert "127.0.0.1:1" in done.stderr
    assert "secret" not in done.stderr
    assert "Traceback" not in done.stderr
