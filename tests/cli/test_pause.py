"""``greenroom pause``, ``greenroom resume`` and ``greenroom flush``."""

from __future__ import annotations

import pytest

from greenroom.clock import SYSTEM_CLOCK
from greenroom.ports.admin import Counts
from tests.cli.kit import Desk


def test_queues_are_paused_and_resumed(desk: Desk) -> None:
    """What was paused is told, to people and to programs."""
    desk.send(1, queue="a")
    desk.send(1, queue="b")
    said = desk.run("pause", "a", "b")
    assert (said.code, said.out, said.err) == (0, "Paused a, b.\n", "")
    assert desk.json("resume", "a") == {"paused": ["b"]}
    assert desk.json("pause", "b") == {"paused": ["b"]}
    said = desk.run("resume", "b")
    assert (said.code, said.out, said.err) == (0, "Resumed b.\n", "")


def test_the_delayed_side_of_a_queue_is_the_queue(desk: Desk) -> None:
    """The names that Dramatiq gives to the sides of a queue mean the queue."""
    desk.send(1)
    assert desk.json("pause", "default.DQ") == {"paused": ["default"]}


def test_a_misspelt_queue_is_pointed_out(desk: Desk) -> None:
    """A queue that nobody has heard of is paused, with a remark that names the near one."""
    desk.send(1, queue="reports")
    said = desk.run("pause", "report")
    assert said.code == 0
    assert "there is no message of a queue 'report'; did you mean 'reports'?" in said.err
    assert "queue 'reports' was not paused" in desk.run("resume", "reports").err


@pytest.mark.parametrize("command", ["pause", "resume", "flush"])
def test_a_name_that_no_queue_has(desk: Desk, command: str) -> None:
    """What no queue may be called is a mistake."""
    with pytest.raises(SystemExit) as e:
        desk.run(command, "not a name")
    assert e.value.code == 2


# --- flush


def fill(desk: Desk) -> None:
    desk.bury(queue="a", count=2)
    desk.bury(queue="b")
    for queue in "ab":
        desk.send(1, queue=queue)
        desk.send(2, queue=queue, eta=SYSTEM_CLOCK.now_ms() + 3_600_000)


def test_a_queue_is_flushed(desk: Desk) -> None:
    """What is ready or delayed in the queues named goes; the dead letters stay, and so do other queues."""
    fill(desk)
    said = desk.run("flush", "a", "--yes")
    assert (said.code, said.out) == (0, "Deleted 2 messages.\n")
    assert (desk.counts("a"), desk.counts("b")) == (Counts(dead=2), Counts(ready=1, delayed=1, dead=1))


def test_dead_letters_are_flushed(desk: Desk) -> None:
    """With ``--dead`` it is the dead letters that go, and only these."""
    fill(desk)
    assert desk.json("flush", "--all", "--dead", "--yes") == {"deleted": {"a": 2, "b": 1}}
    assert (desk.counts("a"), desk.counts("b")) == (Counts(ready=1, delayed=1), Counts(ready=1, delayed=1))


def test_all_queues_are_flushed(desk: Desk) -> None:
    """``--all`` means all queues."""
    fill(desk)
    assert desk.json("flush", "--all", "--yes") == {"deleted": {"a": 2, "b": 2}}
    assert desk.json("flush", "--all", "--yes") == {"deleted": {}}


@pytest.mark.parametrize(("typed", "is_done"), [("y\n", True), ("no\n", False), ("", False)])
def test_flushing_asks(desk: Desk, typed: str, is_done: bool) -> None:
    """At a terminal it tells how many of which queues, and waits for a yes."""
    fill(desk)
    said = desk.run("flush", "--all", typed=typed)
    assert said.err.startswith("Delete 4 messages of a, b? [y/N] ")
    assert (desk.counts("a").ready == 0) is is_done
    assert said.code == (0 if is_done else 1)


def test_flushing_without_a_terminal(desk: Desk) -> None:
    """Where nobody can be asked it refuses; a single message needs no question."""
    fill(desk)
    assert desk.run("flush", "a").code == 2
    assert desk.counts("a").ready == 1
    assert desk.run("flush", "b", "--dead").out == "Deleted 1 dead letter.\n"


@pytest.mark.parametrize("words", [[], ["a", "--all"]], ids=["nothing", "both"])
def test_what_to_flush_must_be_said(desk: Desk, words: list[str]) -> None:
    """Names of queues or ``--all``, one of the two."""
    fill(desk)
    said = desk.run("flush", *words, "--yes")
    assert said.code == 2
    assert "--all" in said.err
    assert desk.counts("a").ready == 1
