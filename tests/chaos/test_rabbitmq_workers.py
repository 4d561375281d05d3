"""Workers and senders on RabbitMQ that are killed, told to stop, crashed by what they run, and fed with garbage."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pika
import pytest

from greenroom import Message
from greenroom.brokers.rabbitmq import RabbitmqBroker
from tests.chaos import kit
from tests.chaos.history import Fault, check, read_events
from tests.chaos.kit import dead_ids, forget, judge, victim, wait_for_death
from tests.chaos.rabbitmq_kit import build, rabbitmq_worker, wait_until_done
from tests.chaos.redis_kit import count, open_gate, send, starts, wait_until_started, working
from tests.chaos.test_failpoints import CASES, IDS, MESSAGES, SENDER, Case, case_name, starts_by_rights
from tests.chaos.test_fault_rows import ACTORS
from tests.chaos.test_fault_rows import starts as program_starts
from tests.runtime.cli_kit import PATIENCE_S, Program, environment, is_running, wait_until
from tests.runtime.engine_kit import letters_in

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the kit looks into /proc")
#: What RabbitMQ does not have, and why: ``docs/guarantees.md``.
MISSING = {
    *("claim.after_cmd_before_register", "promote.mid_batch", "result.before_store", "result.after_store"),
    *("dlq.after", "ack.after_send_before_reply"),
}


@pytest.fixture(autouse=True)
def _run_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("GREENROOM_RUN_FOLDER", str(tmp_path))
    yield
    forget(tmp_path)


def killed(process: subprocess.Popen[bytes]) -> list[Fault]:
    """Kills a worker: its connection ends, too, and acknowledgements that the server has not read go with it."""
    return both(kit.kill(process))


def both(fault: Fault) -> list[Fault]:
    """The death of a process, and the end of its connection."""
    return [fault, Fault("cut", fault.pid, fault.at_s)]


# --- F01, F02: kills


def test_f01_a_worker_is_killed(tmp_path: Path, rabbitmq_url: str) -> None:
    """F01: a worker process is killed while it runs two messages and has fetched others. What it ran runs in its
    neighbour within a second; what was merely fetched starts once; what the neighbour runs is left alone."""
    broker = build(tmp_path, rabbitmq_url)
    waiting = [f"w{n}" for n in range(20)]
    with rabbitmq_worker(tmp_path, rabbitmq_url, host=".") as first:
        send(tmp_path, broker, ["r0", "r1"], "gated")
        wait_until_started(tmp_path, "r0", "r1")
        send(tmp_path, broker, waiting)
        with working(broker, 2):
            faults = killed(first)
            again = ("r0", "r1")  # one after the other: what has crashed a worker runs alone
            wait_until(lambda: any(len(starts(tmp_path, id)) == 2 for id in again), "one of them runs again")
            print(f"recovered in {time.monotonic() - faults[0].at_s:.2f} s")
            open_gate(tmp_path)
            wait_until_done(tmp_path, broker)
    assert [id for id in waiting if len(starts(tmp_path, id)) != 1] == []
    assert judge(tmp_path, broker, *faults).again == 2
    broker.close()


@contextmanager
def program_at(folder: Path, url: str) -> Iterator[tuple[Program, RabbitmqBroker]]:
    """A program with ``ACTORS``, and a broker on its messages."""
    program = Program(folder, url).write(ACTORS)
    with program.broker() as broker:
        yield program, broker


def test_f02_the_parent_is_killed(tmp_path: Path, rabbitmq_url: str) -> None:
    """F02: the parent of two workers is killed while one of them runs a message. They are gone soon, and the message
    runs in another program."""
    with program_at(tmp_path, rabbitmq_url) as (program, _):
        with program.start("worker", "app", "-p", "2", "-t", "1", log="first.txt") as running:
            children = running.wait_until_ready().children()
            program.send("hold", "a")
            wait_until(lambda: program_starts(program, "a"), "it runs a message")
            running.process.kill()
            killed_s = time.monotonic()
            wait_until(lambda: not any(map(is_running, children)), "its children are gone")
            assert time.monotonic() - killed_s < 5
        program.let_go("a-go")
        with program.start("worker", "app", "-p", "1", "-t", "1") as running:
            program.wait_for_mark("a-done")
            running.stop()
        assert len(program_starts(program, "a")) == 2


# --- F03, F04: failpoints


@pytest.mark.parametrize("case", [case for case in CASES if case.point not in MISSING], ids=case_name)
def test_f03_killed_at_a_failpoint(tmp_path: Path, rabbitmq_url: str, case: Case) -> None:
    """F03: a worker that runs 20 messages is killed at the point; another one comes. All come to an end. What had
    returned and was not settled starts again; so may those before, whose acknowledgements the server had not read."""
    kind = kit.KINDS[sum(map(ord, case.point)) % 2]
    with closing(kit.build(tmp_path, rabbitmq_url)) as broker:
        kit.send(tmp_path, broker, f"{kind}_{case.actor}", IDS, delay=case.delay_ms)
        words = [] if case.stop_after is None else [case.stop_after]
        armed = f"{case.point}=kill9@{case.visit}"
        with victim(tmp_path, rabbitmq_url, 1, 1, *words, GREENROOM_FAILPOINTS=armed) as process:
            faults = both(wait_for_death(tmp_path, process, -signal.SIGKILL))
        wait_until(lambda: drain(broker) >= 0 and has_all(tmp_path, broker), "nothing is left anywhere")
        before = case.visit - 1 if case.stop_after is None else case.stop_after
        # Where a retry is there, and the message itself comes again, too, both run.
        doubled = int(case.point == "retry.mid") + (before if case.actor == "flaky" else 0)
        verdict = check(read_events(tmp_path), faults, dead_ids(broker))
        assert len({id for ids in verdict.violations.values() for id in ids}) <= doubled, str(verdict)
        assert "lost" not in verdict.violations
        in_excess = verdict.started + verdict.again - starts_by_rights(case.actor)
        assert verdict.accepted == verdict.started == MESSAGES
        assert case.least <= in_excess <= case.most + before + doubled
        dead = dead_ids(broker)
        assert set(dead) == (set(IDS) if case.actor == "fails" else set())
        assert len(dead) - len(set(dead)) <= before  # kept, and killed before the acknowledgement was read


def drain(broker: RabbitmqBroker) -> float:
    """Runs workers here until nothing is left; for how many seconds. RabbitMQ does not say what a worker holds, so
    it is stopped before the last look."""
    began_s = time.monotonic()
    while not is_empty(broker):
        with working(broker):
            wait_until(lambda: is_empty(broker), "all messages have been fetched", step_s=0.02)
    return time.monotonic() - began_s


def has_all(folder: Path, broker: RabbitmqBroker) -> bool:
    """Whether all messages have come to an end. One that is on its way from a level of delay to the next is in neither
    of them for a moment."""
    return "lost" not in check(read_events(folder), (), dead_ids(broker)).violations


def is_empty(broker: RabbitmqBroker) -> bool:
    """Whether nothing is ready or delayed."""
    return not (broker.transport.counts(["default"])["default"].ready or broker.transport.delayed())


@pytest.mark.parametrize(
    ("point", "how", "visit", "accepted", "least", "most"),
    [
        ("enq.before_send", "one", 3, 2, 2, 2),
        ("enq.after_send_before_confirm", "one", 3, 2, 2, 3),
        ("enq.after_commit", "one", 3, 2, 3, 3),
        ("enq.before_send", "many", 2, 1000, 1000, 1000),
        ("enq.after_send_before_confirm", "many", 2, 1000, 1000, 2000),
        ("enq.after_commit", "many", 2, 1000, 2000, 2000),
    ],
)
def test_f04_a_sender_is_killed(
    rabbitmq_url: str, point: str, how: str, visit: int, accepted: int, least: int, most: int
) -> None:
    """F04: what ``enqueue`` or ``enqueue_many`` has returned for is there; of what it has not returned for, the
    beginning: as much as the server has read."""
    process = subprocess.run(
        [sys.executable, "-c", SENDER, rabbitmq_url, how],
        env=environment({"GREENROOM_FAILPOINTS": f"{point}=kill9@{visit}"}),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert process.returncode == -signal.SIGKILL, process.stderr
    assert int((process.stdout.split() or ["0"])[-1]) == accepted
    found = []
    deadline_s = time.monotonic() + PATIENCE_S
    with closing(pika.BlockingConnection(pika.URLParameters(rabbitmq_url))) as connection:
        channel = connection.channel()
        for _method, _properties, body in channel.consume("default", auto_ack=True, inactivity_timeout=0.5):
            if body is not None:
                found.append(Message.decode(body).args[0])
            elif len(found) >= least or time.monotonic() > deadline_s:
                break
    assert least <= len(found) <= most
    assert found == list(range(len(found)))


# --- F05: signals


@pytest.mark.parametrize("to_the_group", [False, True])
def test_f05_a_worker_is_told_to_stop(tmp_path: Path, rabbitmq_url: str, to_the_group: bool) -> None:
    """F05: SIGTERM, to the parent or to the whole group. What runs ends, what has only been fetched is given back at
    once, with no crash, and the exit code is 0. The next worker runs it, once."""
    with program_at(tmp_path, rabbitmq_url) as (program, broker):
        with program.start("worker", "app", "-p", "1", "-t", "1", log="first.txt") as running:
            running.wait_until_ready()
            program.send("hold", "a")
            wait_until(lambda: program_starts(program, "a"), "it runs a message")
            for name in ("b", "c"):
                program.send("hold", name)
                program.let_go(f"{name}-go")
            (os.killpg if to_the_group else os.kill)(running.process.pid, signal.SIGTERM)
            wait_until(lambda: program.ready("default") == 2, "what has not started is given back")
            program.let_go("a-go")
            assert running.wait() == 0, running.text
        assert program.has_mark("a-done")
        assert {message.crashes for message in broker.transport.peek("default")} == {0}
        with program.start("worker", "app", "-p", "1", "-t", "1") as running:
            program.wait_for_mark("b-done")
            program.wait_for_mark("c-done")
            running.stop()
        assert [len(program_starts(program, name)) for name in "abc"] == [1, 1, 1]


# --- F80 to F82: messages


def test_f80_garbage_among_good_messages(tmp_path: Path, rabbitmq_url: str) -> None:
    """F80, F81: bodies that are no messages, and messages with fields of wrong types, one for each good one. The good
    ones run; the others are dead letters, as they were, with the reason."""
    random_ = random.Random(80)
    whole = Message("default", "plain", ("x",), {}, {}).encode()
    wrong = [b'{"queue_name":"default","actor_name":"plain","args":5}', b"[]", b"null", b'"text"', b"", b"\xff\xfe{}"]
    bad = wrong + [whole[: random_.randrange(1, len(whole))] for _ in range(100)]
    bad += [random_.randbytes(random_.randrange(1, 200)) for _ in range(394)]
    ids = [f"m{n}" for n in range(len(bad))]
    broker = build(tmp_path, rabbitmq_url)
    broker.declare_queue("default", ensure=True)
    with closing(pika.BlockingConnection(pika.URLParameters(rabbitmq_url))) as stranger:
        channel = stranger.channel()
        for body, id in zip(bad, ids, strict=True):
            channel.basic_publish("", "default", body)
            kit.note(tmp_path, "sent", id)
            channel.basic_publish("", "default", Message("default", "plain", (id,), {}, {}).encode())
            kit.note(tmp_path, "accepted", id)
    with working(broker):
        wait_until_done(tmp_path, broker)
        wait_until(lambda: broker.get_queue_message_counts("default")[2] == len(bad), "the others are dead letters")
    letters = letters_in(broker)
    assert sorted(letter.body for letter in letters) == sorted(bad)
    assert {letter.error.type for letter in letters if letter.error} <= {"DecodeError", "InvalidMessage"}
    assert all(letter.error and letter.error.message for letter in letters)
    assert [id for id in ids if len(starts(tmp_path, id)) != 1] == []
    broker.close()


def test_f82_unknown_actors_are_put_aside(tmp_path: Path, rabbitmq_url: str) -> None:
    """F82: messages whose actor nobody knows, in the middle of good ones. The good ones run; the others wait in the
    server, not in the worker, and are not tried again at once."""
    broker = build(tmp_path, rabbitmq_url)
    for number in range(20):
        broker.enqueue(Message("default", "unknown", (number,), {}, {}))
        send(tmp_path, broker, [f"m{number}"])
    with working(broker):
        wait_until_done(tmp_path, broker)
        wait_until(lambda: broker.transport.delayed() == 20, "the others are put aside")
    assert broker.transport.delayed() == 20
    assert broker.get_queue_message_counts("default")[2] == 0
    assert judge(tmp_path, broker).again == 0
    broker.close()


# --- F91, F92, F100: actors


def test_f92_all_threads_are_busy(tmp_path: Path, rabbitmq_url: str) -> None:
    """F91, F92: every thread runs something for longer than the server waits for a heartbeat, messages have been
    fetched behind them, and one is due in an hour. Nobody else gets what they hold."""
    broker, other = build(tmp_path, rabbitmq_url + "?heartbeat=1"), build(tmp_path, rabbitmq_url)
    behind = [f"b{n}" for n in range(6)]
    with working(broker, 2):
        send(tmp_path, broker, ["one", "two"], "gated")
        wait_until_started(tmp_path, "one", "two")
        send(tmp_path, broker, behind)
        send(tmp_path, broker, ["in-an-hour"], delay=3_600_000)
        with working(other, 1):
            threading.Event().wait(3.5)  # the server gives up after two
            assert len(starts(tmp_path, "one")) == len(starts(tmp_path, "two")) == 1
            open_gate(tmp_path)
            wait_until(lambda: count(tmp_path, "ack") == 8, "all are settled")
    assert [id for id in ("one", "two", *behind) if len(starts(tmp_path, id)) != 1] == []
    assert starts(tmp_path, "in-an-hour") == []
    broker.close()
    other.close()


def test_f100_a_poison_pill(tmp_path: Path, rabbitmq_url: str) -> None:
    """F100: a message that crashes its worker each time, among innocents. It is a dead letter after the third crash,
    with what was seen each time; the innocents are done."""
    with program_at(tmp_path, rabbitmq_url) as (program, broker):
        program.send("pill", 3)
        for number in range(3):
            program.send("innocent", number)
        with program.start("worker", "app", "-p", "1", "-t", "4") as running:
            running.wait_for_text("SIGSEGV")
            program.let_go("crashed")
            for number in range(3):
                program.wait_for_mark(f"innocent{number}-done")
            wait_until(lambda: broker.get_queue_message_counts("default")[2] == 1, "the pill is a dead letter")
            running.stop()
        (letter,) = broker.transport.dead_letters([letter.id for letter in broker.get_dead_letters()])
        pills = program_starts(program, "pill")
        print(f"recovered in {pills[-1][1] - pills[0][1]:.2f} s")
        assert Message.decode(letter.body).actor_name == "pill"
        assert (letter.crashes, letter.error and letter.error.type) == (3, "TooManyCrashes")
        assert ["SIGSEGV" in incident.error.message for incident in letter.history if incident.error] == [True] * 3
        assert len(pills) == 3
        assert max(len(program_starts(program, f"innocent{number}")) for number in range(3)) <= 3
