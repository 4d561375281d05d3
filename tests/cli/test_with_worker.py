"""The real commands beside a real worker: a pause is heeded, a replay is run, an interrupted one loses nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from greenroom.brokers.sqlite import SqliteBroker
from greenroom.core.verdict import Verdict
from greenroom.names import new_storage_id
from greenroom.ports.admin import Counts, DeadLetter, Peeked
from greenroom.ports.transport import MAX_TRIP, Envelope, Settlement
from tests.runtime.cli_kit import PATIENCE_S, Program, command, environment, wait_until

ACTORS = """
@greenroom.actor
def leave(name):
    mark(name)

@greenroom.actor(queue_name="other")
def leave_other(name):
    mark(name)

@greenroom.actor(max_retries=0)
def needs(name):
    if not (HERE / "mended").exists():
        raise ConnectionError("the bank does not answer")
    mark(name)
"""
#: The promise is about a second; the machine may be busy.
PAUSE_WITHIN_S = 5.0


@pytest.fixture
def program(tmp_path: Path) -> Program:
    return Program(tmp_path).write(ACTORS)


def run(program: Program, *words: str) -> str:
    done = program.run(*words, "--broker", "app")
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_worker_heeds_a_pause(program: Program) -> None:
    """Within about a second a worker starts nothing of a paused queue any more, while it goes on with others; once the
    queue is resumed it goes on with that as well, at once."""
    with program.start("worker", "app", "-p", "1") as running:
        running.wait_until_ready()
        assert "Paused default." in run(program, "pause", "default")
        paused_at = time.monotonic()
        number = 0
        while not is_held_back(program, number):
            assert time.monotonic() - paused_at < PAUSE_WITHIN_S
            number += 1
        run(program, "resume", "default")
        resumed_at = time.monotonic()
        program.wait_for_mark(f"held-{number}")
        assert time.monotonic() - resumed_at < PAUSE_WITHIN_S
        running.process.terminate()
        assert running.wait() == 0


def is_held_back(program: Program, number: int) -> bool:
    """True if a message of the paused queue still waits once two later ones of another queue have run, one after the
    other: a worker that claimed anything of the paused queue would have started it before."""
    program.send("leave", f"held-{number}")
    for name in (f"first-{number}", f"second-{number}"):
        program.send("leave_other", name, queue="other")
        program.wait_for_mark(name)
    return not program.has_mark(f"held-{number}") and program.ready("default") == 1


def test_a_paused_queue_stays_paused(program: Program) -> None:
    """A worker that starts later heeds a pause, too."""
    program.send("leave", "held")
    run(program, "pause", "default")
    with program.start("worker", "app", "-p", "1") as running:
        running.wait_until_ready()
        program.send("leave_other", "other", queue="other")
        program.wait_for_mark("other")
        assert not program.has_mark("held")
        queues = {queue["queue"]: queue for queue in json.loads(run(program, "queues", "--json"))["queues"]}
        assert (queues["default"]["paused"], queues["default"]["ready"]) == (True, 1)
        assert queues["other"]["paused"] is False
        run(program, "resume", "default")
        program.wait_for_mark("held")


def test_a_replay_is_run(program: Program) -> None:
    """What died is listed with its error; once the cause is mended a replay runs it in the worker that is there."""
    with program.start("worker", "app", "-p", "1") as running:
        running.wait_until_ready()
        program.send("needs", "the-mark")
        wait_until(lambda: "bank" in run(program, "dead", "list"), "the message has died", step_s=0.05)
        (letter,) = json.loads(run(program, "dead", "list", "--error", "bank", "--json"))["dead"]
        assert "the bank does not answer" in run(program, "dead", "show", letter["id"])
        (program.folder / "mended").touch()
        assert run(program, "dead", "replay", "--error", "the bank") == "Replayed 1 of 1 dead letters.\n"
        program.wait_for_mark("the-mark")
    assert run(program, "dead", "list") == "There are no dead letters.\n"


LETTERS = 12_000
#: A replay that comes to a place in its midst where it waits until the test lets it go on.
HALFWAY = """
import pathlib, sys, threading
from greenroom import __main__
from greenroom.cli import dead

here, plain = pathlib.Path(sys.argv.pop(1)), dead.steps

def steps(ids):
    for number, step in enumerate(plain(ids)):
        yield step
        if number == 10:
            (here / "halfway").touch()
            while not (here / "go-on").exists():
                threading.Event().wait(0.005)

dead.steps = steps
sys.exit(__main__.main())
"""


def test_an_interrupted_replay_loses_nothing(tmp_path: Path) -> None:
    """Ctrl-C in the middle of a long replay ends it between two steps: it tells how many were put back, those are
    ready, the others are dead letters still, and a second call does the rest."""
    broker = SqliteBroker(tmp_path / "queue.db")
    bury(broker)
    words = ("dead", "replay", "--all", "--yes", "--json", "--url", f"sqlite:///{tmp_path}/queue.db")
    with start((str(tmp_path), *words), HALFWAY) as process:
        wait_until((tmp_path / "halfway").exists, "some have been put back")
        process.send_signal(signal.SIGINT)
        (tmp_path / "go-on").touch()
        output, errors = process.communicate(timeout=PATIENCE_S)
    said = json.loads(output)
    assert (process.returncode, errors) == (1, "")
    assert said == {"replayed": said["replayed"], "chosen": LETTERS, "interrupted": True}
    assert 0 < said["replayed"] < LETTERS
    assert counts(broker) == Counts(ready=said["replayed"], dead=LETTERS - said["replayed"])
    with start(words) as process:
        process.communicate(timeout=PATIENCE_S)
    assert counts(broker) == Counts(ready=LETTERS)
    broker.close()


def test_a_killed_replay_loses_nothing(tmp_path: Path) -> None:
    """A replay that is killed in the middle has put back whole steps: each message is ready or dead, none is both."""
    broker = SqliteBroker(tmp_path / "queue.db")
    bury(broker)
    words = ("dead", "replay", "--all", "--yes", "--url", f"sqlite:///{tmp_path}/queue.db")
    with start(words) as process:
        wait_until(lambda: counts(broker).ready or process.poll() is not None, "some have been put back")
        process.kill()
        process.communicate(timeout=PATIENCE_S)
    left = counts(broker)
    assert left.ready + left.dead == LETTERS
    bodies = {message.body for message in peek_all(broker)} | {letter.body for letter in dead_all(broker)}
    assert len(bodies) == LETTERS
    broker.close()


def test_progress_is_shown_at_a_terminal(tmp_path: Path) -> None:
    """Long work tells at a terminal how far it has come, and leaves nothing behind on the line."""
    broker = SqliteBroker(tmp_path / "queue.db")
    bury(broker)
    broker.close()
    ours, theirs = os.openpty()
    words = ("dead", "replay", "--all", "--yes", "--url", f"sqlite:///{tmp_path}/queue.db")
    with subprocess.Popen(
        command(words, ""), stdout=subprocess.PIPE, stderr=theirs, env=environment({}), text=True
    ) as process:
        os.close(theirs)
        shown = b""
        try:
            while chunk := os.read(ours, 4_096):
                shown += chunk
        except OSError:  # a terminal that nobody has open any more
            pass
        output, _ = process.communicate(timeout=PATIENCE_S)
    os.close(ours)
    assert output == f"Replayed {LETTERS} of {LETTERS} dead letters.\n"
    assert b"\rReplayed " in shown
    assert f" of {LETTERS}".encode() in shown
    assert shown.endswith(b" \r")


def start(words: tuple[str, ...], code: str = "") -> subprocess.Popen[str]:
    return subprocess.Popen(
        command(words, code), stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment({}), text=True
    )


def bury(broker: SqliteBroker) -> None:
    """Makes so many dead letters, each with a body of its own."""
    transport = broker.transport
    for first in range(0, LETTERS, MAX_TRIP):
        batch = range(first, first + MAX_TRIP)
        transport.push([Envelope("default", new_storage_id(), b"%d" % number) for number in batch])
    consumer = transport.consumer("test")
    consumer.subscribe(["default"])
    held: list[Settlement] = []
    while True:
        got = consumer.exchange(held, MAX_TRIP).deliveries
        held = [Settlement(delivery, Verdict.DEAD) for delivery in got]
        if not got:
            break
    consumer.close()


def counts(broker: SqliteBroker) -> Counts:
    return broker.transport.counts(["default"])["default"]


def peek_all(broker: SqliteBroker) -> list[Peeked]:
    return broker.transport.peek("default", limit=LETTERS)


def dead_all(broker: SqliteBroker) -> list[DeadLetter]:
    return broker.transport.dead(limit=LETTERS)
