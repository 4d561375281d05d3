"""Groups and pipelines whose workers are killed with ``kill -9``, in real processes."""

from __future__ import annotations

import os
import random
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from greenroom import Message, Middleware, group, pipeline
from greenroom.brokers.engine import EngineBroker
from tests.composition.kit import leftovers
from tests.runtime.cli_kit import Program, wait_until
from tests.runtime.engine_kit import ENGINES, is_empty, open_broker, url_of

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="finds the worker's process in /proc")

MEMBERS = 1_000
#: The last members wait until the kills are over, so that the callback is sent after them.
GATE = MEMBERS - 20

GROUP = f"""
from greenroom.composition import outcome_of
from greenroom.middleware import CurrentMessage, Middleware, SkipMessage

record = os.open(HERE / f"runs-{{os.getpid()}}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

class Skip(Middleware):
    def before_process_message(self, broker, message):
        if message.actor_name == "work" and message.args[0] % 11 == 5:
            raise SkipMessage("unwanted")

broker.add_middleware(Skip())
broker.add_middleware(CurrentMessage())

@greenroom.actor(max_retries=0, throws=ValueError, max_crashes=None)
def work(number):
    os.write(record, b"start\\n")
    if number >= {GATE}:
        wait_for("killed")
    if number % 7 == 3:
        raise ValueError(number)

@greenroom.actor
def tell():
    progress = outcome_of()
    os.write(record, b"callback %d %d %d\\n" % (progress.total, progress.left, progress.failed))
"""


#: How many seeded groups on each engine.
SEEDS = [("sqlite", 0), ("sqlite", 1), ("sqlite", 2), ("redis", 3), ("redis", 4)]


@pytest.fixture
def program(tmp_path: Path, request: pytest.FixtureRequest) -> Program:
    return Program(tmp_path, url_of(request.param, tmp_path, request))


@pytest.fixture
def broker(program: Program) -> Iterator[EngineBroker]:
    broker = open_broker(program.url)
    yield broker
    broker.close()


def lines_of(program: Program) -> list[str]:
    """What was recorded, in all processes together."""
    return [line for path in program.folder.glob("runs-*") for line in path.read_text().splitlines()]


class Sent(Middleware):
    """Notes what is sent."""

    def __init__(self) -> None:
        self.messages: list[Message[Any]] = []

    def before_enqueue(self, broker: Any, message: Any, delay: Any) -> None:
        self.messages.append(message)


def fate_of(number: int) -> str:
    """How a member of the group ends."""
    if number % 13 == 0:
        return "expired"
    if number % 11 == 5:
        return "skipped"
    return "failed" if number % 7 == 3 else "done"


def member(number: int) -> Message[Any]:
    options = {"max_age": 0} if fate_of(number) == "expired" else {}
    return Message("default", "work", (number,), {}, options, message_timestamp=1)


@pytest.mark.parametrize(("program", "seed"), SEEDS, indirect=["program"])
def test_a_group_whose_workers_are_killed(program: Program, broker: EngineBroker, seed: int) -> None:
    """F107: members that fail, are skipped, expire and are sent twice, and workers that die: the callback is sent once,
    when all members have ended, and knows how many failed."""
    random_ = random.Random(seed)
    program.write(GROUP)
    sent = Sent()
    broker.add_middleware(sent)
    many = group([member(number) for number in range(MEMBERS)], broker=broker)
    many.add_completion_callback(Message("default", "tell", (), {}, {}))
    with program.start("worker", "app", "-p", "2", "-t", "4") as running:
        running.wait_until_ready()
        many.run()
        for duplicate in random_.sample([m for m in sent.messages if m.actor_name == "work"], 30):
            broker.enqueue(duplicate)
        for started in sorted(random_.sample(range(20, 600), 3)):
            wait_until(running.workers, "a worker is ready")
            wait_until(lambda started=started: lines_of(program).count("start") >= started, "some have started")
            workers: list[int] = []
            wait_until(lambda found=workers: found.extend(running.workers()) or found, "one of them is there now")
            os.kill(random_.choice(workers), signal.SIGKILL)
        program.let_go("killed")
        wait_until(lambda: is_empty(broker), "all is done")
        running.stop()
    fates = [fate_of(number) for number in range(MEMBERS)]
    failed = fates.count("failed") + fates.count("expired")
    assert [line for line in lines_of(program) if line.startswith("callback")] == [f"callback {MEMBERS} 0 {failed}"]


PIPELINE = """
from greenroom.middleware import Middleware

record = os.open(HERE / f"runs-{os.getpid()}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

def die_once(when, message):
    name = f"died-{when}-{message.actor_name}"
    if message.actor_name != "last" and not (HERE / f"mark-{name}").exists():
        mark(name)
        os.kill(os.getpid(), 9)

class Deadly(Middleware):
    def ending(self, broker, ending):  # asked last: what follows is decided by now
        die_once("before", ending.message)
    def after_ack(self, broker, message):
        if message.actor_name == "add":
            die_once("after", message)

broker.add_middleware(Deadly())

@greenroom.actor(max_crashes=None)
def add(x, y=0):
    return x + y

@greenroom.actor(max_crashes=None)
def double(x):
    return 2 * x

@greenroom.actor(max_crashes=None)
def last(value):
    os.write(record, b"last %s\\n" % str(value).encode())
"""


def stage(actor_name: str, *args: Any) -> Message[Any]:
    return Message("default", actor_name, args, {}, {})


def short(broker: EngineBroker) -> Any:
    return pipeline([stage("add", 1), stage("double"), stage("last")], broker=broker)


def planned(broker: EngineBroker) -> Any:
    return pipeline([stage("add", 1), stage("double"), stage("last")], broker=broker, on_error="skip")


def with_a_group(broker: EngineBroker) -> Any:
    members = group([stage("add", 1), stage("double"), stage("add", 3)], broker=broker)
    return pipeline([stage("add", 1), members, stage("last")], broker=broker)


@pytest.mark.parametrize("program", ENGINES, indirect=True)
@pytest.mark.parametrize(("make", "value"), [(short, "2"), (planned, "2"), (with_a_group, "[2, 2, 4]")])
def test_a_crash_around_a_stages_end(program: Program, broker: EngineBroker, make: Any, value: str) -> None:
    """F108: workers die after an actor has returned and before its message is settled, and right after that: the next
    stage comes once, with the result. What opens and joins a group dies so, too."""
    program.write(PIPELINE)
    make(broker).run()
    with program.start("worker", "app", "-p", "1", "-t", "1"):
        wait_until(lambda: lines_of(program), "the last stage has run")
        wait_until(lambda: is_empty(broker), "all is done")
    assert lines_of(program) == [f"last {value}"]
    assert leftovers(broker) == set()
    assert program.has_mark("died-before-double")
    if make is with_a_group:
        assert program.has_mark("died-before-greenroom.open_group")
        assert program.has_mark("died-before-greenroom.join_group")
