"""The commands on a Redis server, beside a real worker and without one."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from greenroom.brokers.redis import RedisBroker
from greenroom.message import Message
from tests.runtime.cli_kit import Program, wait_until

HEAD = """
import os, pathlib
import greenroom
from greenroom.brokers.redis import RedisBroker

HERE = pathlib.Path(__file__).parent
broker = RedisBroker(url=os.environ["REDIS"])
greenroom.set_broker(broker)

@greenroom.actor
def leave(name):
    (HERE / f"mark-{name}").touch()

@greenroom.actor(queue_name="other")
def leave_other(name):
    (HERE / f"mark-{name}").touch()

@greenroom.actor(max_retries=0)
def needs(name):
    if not (HERE / "mark-mended").exists():
        raise ConnectionError("the bank does not answer")
    (HERE / f"mark-{name}").touch()
"""


@pytest.fixture
def program(tmp_path: Path, redis_url: str, monkeypatch: pytest.MonkeyPatch) -> Program:
    monkeypatch.setenv("REDIS", redis_url)
    return Program(tmp_path).write("", head=HEAD)


def run(program: Program, *words: str) -> Any:
    done = program.run(*words, "--json", GREENROOM_URL=os.environ["REDIS"])
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def send(url: str, actor: str, name: str, queue: str = "default") -> None:
    broker = RedisBroker(url=url)
    broker.declare_queue(queue)
    broker.enqueue(Message(queue, actor, (name,), {}, {}))
    broker.close()


def test_a_worker_is_led_by_the_commands(program: Program, redis_url: str) -> None:
    """A worker heeds a pause and its end, and runs what is replayed; the tables show it."""
    with program.start("worker", "app", "-p", "1") as running:
        running.wait_until_ready()
        assert run(program, "pause", "default") == {"paused": ["default"]}
        send(redis_url, "leave", "held")
        send(redis_url, "leave_other", "first", "other")
        program.wait_for_mark("first")
        (default,) = [queue for queue in run(program, "queues")["queues"] if queue["queue"] == "default"]
        assert (default["ready"], default["paused"]) == (1, True)
        assert [message["args"] for message in run(program, "peek", "default")["messages"]] == [["held"]]
        run(program, "resume", "default")
        program.wait_for_mark("held")
        send(redis_url, "needs", "money")
        wait_until(lambda: run(program, "dead", "list")["dead"], "it has died")
        program.let_go("mended")
        assert run(program, "dead", "replay", "--all", "--yes")["replayed"] == 1
        program.wait_for_mark("money")
        running.stop()
    assert run(program, "queues")["queues"] == []


def test_what_a_check_tells(program: Program) -> None:
    """``greenroom check`` asks the server what it is, and changes nothing there."""
    found = run(program, "check", "app")
    assert found["ok"] is True
    broker = found["broker"]
    assert (broker["namespace"], broker["role"], broker["queues"], broker["workers"]) == ("dramatiq", "master", 0, 0)
    assert broker["version"][0].isdigit()


@pytest.mark.parametrize("words", [("queues",), ("check", "app")], ids=" ".join)
def test_a_server_that_is_not_there(program: Program, words: tuple[str, ...]) -> None:
    """Where no server answers, a command says so in one line that names it, and ends with 3."""
    done = program.run(*words, GREENROOM_URL="redis://127.0.0.1:1/0", REDIS="redis://127.0.0.1:1/0")
    assert done.returncode == 3
    assert "127.0.0.1:1" in done.stderr
    assert "Traceback" not in done.stderr
