"""F03: a worker is killed at each place where that could matter, and nothing is lost. F04: a sender, too.

A failpoint is such a place (``greenroom.failpoints``); ``docs/guarantees.md`` says what each stands for.
"""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from greenroom import Message, failpoints
from greenroom.brokers.sqlite import SqliteBroker
from greenroom.errors import BrokerError
from tests.chaos.kit import KINDS, build, dead_ids, drain, forget, judge, send, victim, wait_for_death
from tests.runtime.cli_kit import environment

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the kit looks into /proc")
MESSAGES = 20
IDS = [f"m{n}" for n in range(MESSAGES)]


class Case(NamedTuple):
    """A failpoint, at which visit it kills, what runs, and how many starts there may be in excess."""

    point: str
    visit: int = 3
    actor: str = "plain"
    least: int = 0
    most: int = 0
    delay_ms: int | None = None
    stop_after: int | None = None


#: Those that a worker passes while it runs messages one after the other. What had returned and was not settled starts
#: again, and nothing else does.
CASES = (
    Case("claim.before", 1),
    Case("claim.after_commit_before_register", 1),
    Case("promote.mid_batch", 1, delay_ms=1),
    Case("prefetch.queued", 1, most=1),
    Case("start.before_attempt_persist", 1),
    Case("start.before_attempt_persist", 3, most=1),
    Case("start.after_attempt_persist", 1),
    Case("start.after_attempt_persist", 3, most=1),
    Case("exec.enter", 3),
    Case("exec.after_user_return", 3, least=1, most=1),
    Case("ack.before", 3, least=1, most=1),
    Case("result.before_store", 3, least=1, most=1),
    Case("result.after_store", 3, least=1, most=1),
    Case("retry.before_schedule", 3, "flaky", least=1, most=1),
    Case("retry.mid", 3, "flaky", least=1, most=1),
    Case("dlq.before", 3, "fails", least=1, most=1),
    Case("dlq.after", 3, "fails", least=1, most=1),
    Case("ack.after_commit_before_reply", 3),
    Case("shutdown.after_stop_fetch", 1, most=1, stop_after=3),
)


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[SqliteBroker]:
    broker = build(tmp_path)
    yield broker
    broker.close()
    forget(tmp_path)


@pytest.fixture
def armed() -> Iterator[Callable[[str], None]]:
    """Arms failpoints in this process."""
    yield failpoints.arm
    failpoints.arm("")


def check_file(broker: SqliteBroker) -> None:
    """Nobody holds anything, and SQLite finds nothing wrong."""
    broker.close()
    with sqlite3.connect(broker.path) as connection:
        left = connection.execute("select (select count(*) from message), (select count(*) from owner)").fetchone()
        found = connection.execute("pragma integrity_check").fetchone()
    connection.close()
    assert left == (0, 0)
    assert found == ("ok",)


def starts_by_rights(actor: str) -> int:
    """How many starts there are if nothing goes wrong."""
    return 2 * MESSAGES if actor == "flaky" else MESSAGES


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.point}-{case.visit}")
def test_f03_killed_at_a_failpoint(tmp_path: Path, broker: SqliteBroker, case: Case, kind: str) -> None:
    """F03: a worker that runs 20 messages is killed at the point; another one comes. All come to an end, and at most
    the one that was in between starts a second time: exactly that if it had returned and was not settled, none if it
    had not started."""
    send(tmp_path, broker, f"{kind}_{case.actor}", IDS, delay=case.delay_ms)
    words = [] if case.stop_after is None else [case.stop_after]
    with victim(tmp_path, 1, 1, *words, GREENROOM_FAILPOINTS=f"{case.point}=kill9@{case.visit}") as process:
        fault = wait_for_death(tmp_path, process, -signal.SIGKILL)
    print(f"recovered and drained in {drain(broker):.2f} s")
    verdict = judge(tmp_path, broker, fault)
    in_excess = verdict.started + verdict.again - starts_by_rights(case.actor)
    assert verdict.accepted == verdict.started == MESSAGES
    assert case.least <= in_excess <= case.most
    assert sorted(dead_ids(broker)) == (sorted(IDS) if case.actor == "fails" else [])
    check_file(broker)


@pytest.mark.parametrize("kind", KINDS)
def test_f03_killed_while_it_reaps(tmp_path: Path, broker: SqliteBroker, kind: str) -> None:
    """F03, ``reap.mid_batch``: a worker is killed, the one that gives back its messages is killed in the middle of
    it, and the third one finds them as the first has left them: with one crash charged once."""
    send(tmp_path, broker, f"{kind}_plain", IDS)
    with victim(tmp_path, 1, 1, GREENROOM_FAILPOINTS="exec.after_user_return=kill9@3") as process:
        first = wait_for_death(tmp_path, process, -signal.SIGKILL)
    with victim(tmp_path, 1, 1, GREENROOM_FAILPOINTS="reap.mid_batch=kill9@1") as process:
        second = wait_for_death(tmp_path, process, -signal.SIGKILL)
    drain(broker)
    verdict = judge(tmp_path, broker, first, second)
    assert (verdict.started, verdict.again) == (MESSAGES, 1)
    check_file(broker)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "point",
    ["claim.before", "ack.before", "promote.mid_batch", "result.before_store", "result.after_store", "retry.mid"],
)
def test_f03_an_error_at_a_failpoint(
    tmp_path: Path, broker: SqliteBroker, armed: Callable[[str], None], point: str, kind: str
) -> None:
    """F03: what fails before its commit is rolled back and made again as it was, and nothing starts twice for it."""
    actor = "flaky" if point == "retry.mid" else "plain"
    send(tmp_path, broker, f"{kind}_{actor}", IDS, delay=1 if point == "promote.mid_batch" else None)
    armed(f"{point}=raise@1")
    drain(broker)
    verdict = judge(tmp_path, broker)
    assert verdict.started + verdict.again == starts_by_rights(actor)
    check_file(broker)


# --- senders

SENDER = """
import sys, threading
from greenroom import Message
from greenroom.brokers.sqlite import SqliteBroker

broker = SqliteBroker(sys.argv[1])
broker.declare_queue("default")

def message(n):
    return Message("default", "work", (n,), {}, {})

if sys.argv[2] == "one":
    for n in range(10):
        broker.enqueue(message(n))
        print(n + 1, flush=True)
else:
    for start in (0, 1000, 2000):
        broker.enqueue_many(message(n) for n in range(start, start + 1000))
        print(start + 1000, flush=True)
"""


@pytest.mark.parametrize(
    ("how", "point", "visit", "accepted", "found"),
    [
        ("one", "enq.before_send", 3, 2, 2),
        ("one", "enq.after_commit", 3, 2, 3),
        ("many", "enq.before_send", 2, 1000, 1000),
        ("many", "enq.batch_mid", 1, 0, 0),
        ("many", "enq.batch_mid", 3, 0, 0),
        ("many", "enq.after_commit", 2, 1000, 2000),
    ],
)
def test_f04_a_sender_is_killed(tmp_path: Path, how: str, point: str, visit: int, accepted: int, found: int) -> None:
    """F04: what ``enqueue`` or ``enqueue_many`` has returned for is there; what it has not returned for is there or
    not, and never half of a batch."""
    process = subprocess.run(
        [sys.executable, "-c", SENDER, str(tmp_path / "queue.db"), how],
        env=environment({"GREENROOM_FAILPOINTS": f"{point}=kill9@{visit}"}),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert process.returncode == -signal.SIGKILL, process.stderr
    assert int((process.stdout.split() or ["0"])[-1]) == accepted
    assert numbers_in(tmp_path / "queue.db") == list(range(found))


def numbers_in(path: Path) -> list[int]:
    """The arguments of all messages of a file, in order."""
    with sqlite3.connect(path) as connection:
        bodies = connection.execute("select cast(body as blob) from message order by seq").fetchall()
        assert connection.execute("pragma integrity_check").fetchone() == ("ok",)
    connection.close()
    return [Message.decode(body).args[0] for (body,) in bodies]


def test_f04_a_batch_that_fails_in_the_middle(tmp_path: Path, armed: Callable[[str], None]) -> None:
    """F04: nothing of it is there, the sender is told so, and may send it again."""
    broker = build(tmp_path)
    try:
        batch = [Message("default", "work", (n,), {}, {}) for n in range(1000)]
        armed("enq.batch_mid=raise@2")
        with pytest.raises(BrokerError, match=r"enq\.batch_mid"):
            broker.enqueue_many(batch)
        assert numbers_in(broker.path) == []
        broker.enqueue_many(batch)
        assert numbers_in(broker.path) == list(range(1000))
    finally:
        broker.close()


# --- the points themselves


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("ack.befor=kill9", r"no failpoint 'ack\.befor'; did you mean 'ack\.before'\?"),
        ("ack.before", "'' is no action"),
        ("ack.before=kill8@1", "'kill8@1' is no action"),
        ("ack.before=raise@0", "is no action"),
        ("ack.before=sleep", "is no action"),
    ],
)
def test_what_cannot_be_read(armed: Callable[[str], None], text: str, complaint: str) -> None:
    """A point or an action that does not exist is an error, not a test that kills nothing."""
    with pytest.raises(ValueError, match=complaint):
        armed(text)


def test_actions_and_visits(armed: Callable[[str], None]) -> None:
    """``@n`` acts at that visit only; without it each visit counts. What is not armed does nothing."""
    armed("ack.before=raise@2; claim.before=raise; dlq.before=sleep(0)")
    for _ in range(2):
        failpoints.hit("dlq.after")
        failpoints.hit("dlq.before")
        with pytest.raises(BrokerError):
            failpoints.hit("claim.before")
    failpoints.hit("ack.before")
    with pytest.raises(BrokerError):
        failpoints.hit("ack.before")
    failpoints.hit("ack.before")


@pytest.mark.parametrize(("action", "code"), [("kill9", -signal.SIGKILL), ("exit", 1)])
def test_actions_that_end_the_process(action: str, code: int) -> None:
    """``kill9`` and ``exit`` leave no time for anything."""
    program = f"import greenroom.failpoints as f; f.arm('ack.before={action}@1'); f.hit('ack.before'); print('lives')"
    process = subprocess.run([sys.executable, "-c", program], env=environment({}), capture_output=True, check=False)
    assert (process.returncode, process.stdout) == (code, b"")


def test_unarmed_points_are_not_there(armed: Callable[[str], None]) -> None:
    """Where each message passes, an unarmed point is no call at all."""
    assert failpoints.after("start.before_attempt_persist", len) is len
    armed("start.before_attempt_persist=sleep(0)")
    assert failpoints.after("start.before_attempt_persist", len) is not len
    assert failpoints.after("start.after_attempt_persist", len) is len


def test_every_point_of_a_worker_has_a_case() -> None:
    """No point of the list goes untested."""
    tested = {case.point for case in CASES} | {"reap.mid_batch", "enq.before_send", "enq.batch_mid", "enq.after_commit"}
    assert tested == set(failpoints.NAMES)
