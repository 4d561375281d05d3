"""F03: a worker is killed at each place where that could matter, and nothing is lost. F04: a sender, too.

A failpoint is such a place (``greenroom.failpoints``); ``docs/guarantees.md`` says what each stands for.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from greenroom import Message, failpoints
from greenroom.brokers.engine import EngineBroker
from greenroom.errors import BrokerError
from tests.chaos.kit import KINDS, build, dead_ids, drain, forget, judge, send, victim, wait_for_death
from tests.runtime.cli_kit import environment, wait_until
from tests.runtime.engine_kit import ENGINES, check_nothing_is_left, messages_in, numbers_in, open_broker, url_of

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
    Case("claim.after_cmd_before_register", 1),
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
    Case("ack.after_send_before_reply", 3),
    Case("ack.after_commit_before_reply", 3),
    Case("shutdown.after_stop_fetch", 1, most=1, stop_after=3),
)

#: Those that are made to fail, too.
FAILING = ("claim.before", "ack.before", "promote.mid_batch", "result.before_store", "result.after_store", "retry.mid")
#: What an engine does not have: SQLite has no network in between, and a script on a Redis server is one step.
MISSING = {
    "sqlite": {"enq.after_send_before_confirm", "claim.after_cmd_before_register", "ack.after_send_before_reply"},
    "redis": {
        *("enq.batch_mid", "promote.mid_batch", "result.before_store", "result.after_store"),
        *("retry.before_schedule", "retry.mid", "dlq.before", "dlq.after"),
    },
}
#: What is tested where compositions are: ``tests/composition``.
OF_COMPOSITIONS = {"group.after_member_remove", "group.before_push", "group.after_push", "group.after_mark"}


def on_each(cases: Iterable[Any], point_of: Callable[[Any], str]) -> list[Any]:
    """For ``parametrize``: each engine with those of the cases whose points it has."""
    return [
        pytest.param(engine, case, id=f"{engine}-{case_name(case)}")
        for engine in ENGINES
        for case in cases
        if point_of(case) not in MISSING[engine]
    ]


def case_name(case: Any) -> str:
    """What a case is called in the name of its test."""
    return "-".join(str(part) for part in case[:3] if part != "plain") if isinstance(case, tuple) else str(case)


@pytest.fixture(params=ENGINES)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where the messages of a test are."""
    return url_of(request.param, tmp_path, request)


@pytest.fixture
def broker(tmp_path: Path, url: str) -> Iterator[EngineBroker]:
    broker = build(tmp_path, url)
    yield broker
    broker.close()
    forget(tmp_path)


@pytest.fixture
def armed() -> Iterator[Callable[[str], None]]:
    """Arms failpoints in this process."""
    yield failpoints.arm
    failpoints.arm("")


def starts_by_rights(actor: str) -> int:
    """How many starts there are if nothing goes wrong."""
    return 2 * MESSAGES if actor == "flaky" else MESSAGES


def warm_up(folder: Path, broker: EngineBroker) -> None:
    """Has the server know the scripts, so that each trip is one command."""
    send(folder, broker, "threads_plain", ["warm"])
    drain(broker)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("url", "case"), on_each(CASES, lambda case: case.point), indirect=["url"])
def test_f03_killed_at_a_failpoint(tmp_path: Path, url: str, broker: EngineBroker, case: Case, kind: str) -> None:
    """F03: a worker that runs 20 messages is killed at the point; another one comes. All come to an end, and at most
    the one that was in between starts a second time: exactly that if it had returned and was not settled, none if it
    had not started."""
    if url.startswith("redis"):
        warm_up(tmp_path, broker)
        (tmp_path / f"history-{os.getpid()}").rename(tmp_path / "warm")
        forget(tmp_path)
    send(tmp_path, broker, f"{kind}_{case.actor}", IDS, delay=case.delay_ms)
    words = [] if case.stop_after is None else [case.stop_after]
    with victim(tmp_path, url, 1, 1, *words, GREENROOM_FAILPOINTS=f"{case.point}=kill9@{case.visit}") as process:
        fault = wait_for_death(tmp_path, process, -signal.SIGKILL)
    print(f"recovered and drained in {drain(broker):.2f} s")
    verdict = judge(tmp_path, broker, fault)
    in_excess = verdict.started + verdict.again - starts_by_rights(case.actor)
    assert verdict.accepted == verdict.started == MESSAGES
    assert case.least <= in_excess <= case.most
    assert sorted(dead_ids(broker)) == (sorted(IDS) if case.actor == "fails" else [])
    check_nothing_is_left(broker)


@pytest.mark.parametrize("kind", KINDS)
def test_f03_killed_while_it_reaps(tmp_path: Path, url: str, broker: EngineBroker, kind: str) -> None:
    """F03, ``reap.mid_batch``: a worker is killed, the one that gives back its messages is killed in the middle of
    it, and the third one finds them as the first has left them: with one crash charged once."""
    send(tmp_path, broker, f"{kind}_plain", IDS)
    with victim(tmp_path, url, 1, 1, GREENROOM_FAILPOINTS="exec.after_user_return=kill9@3") as process:
        first = wait_for_death(tmp_path, process, -signal.SIGKILL)
    with victim(tmp_path, url, 1, 1, GREENROOM_FAILPOINTS="reap.mid_batch=kill9@1") as process:
        second = wait_for_death(tmp_path, process, -signal.SIGKILL)
    drain(broker)
    verdict = judge(tmp_path, broker, first, second)
    assert (verdict.started, verdict.again) == (MESSAGES, 1)
    check_nothing_is_left(broker)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("url", "point"), on_each(FAILING, str), indirect=["url"])
def test_f03_an_error_at_a_failpoint(
    tmp_path: Path, broker: EngineBroker, armed: Callable[[str], None], point: str, kind: str
) -> None:
    """F03: what fails before its commit is rolled back and made again as it was, and nothing starts twice for it."""
    actor = "flaky" if point == "retry.mid" else "plain"
    send(tmp_path, broker, f"{kind}_{actor}", IDS, delay=1 if point == "promote.mid_batch" else None)
    armed(f"{point}=raise@1")
    drain(broker)
    verdict = judge(tmp_path, broker)
    assert verdict.started + verdict.again == starts_by_rights(actor)
    check_nothing_is_left(broker)


# --- senders

SENDER = """
import sys, threading
from greenroom import Message
from greenroom.brokers import from_url

broker = from_url(sys.argv[1])
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


class Sending(NamedTuple):
    """A failpoint, how messages are sent, at which visit it kills, what the sender knows by then, and what is there."""

    point: str
    how: str
    visit: int
    accepted: int
    found: int


SENDINGS = (
    Sending("enq.before_send", "one", 3, 2, 2),
    Sending("enq.after_send_before_confirm", "one", 3, 2, 3),
    Sending("enq.after_commit", "one", 3, 2, 3),
    Sending("enq.before_send", "many", 2, 1000, 1000),
    Sending("enq.batch_mid", "many", 1, 0, 0),
    Sending("enq.batch_mid", "many", 3, 0, 0),
    Sending("enq.after_send_before_confirm", "many", 2, 1000, 2000),
    Sending("enq.after_commit", "many", 2, 1000, 2000),
)


@pytest.mark.parametrize(("url", "case"), on_each(SENDINGS, lambda case: case.point), indirect=["url"])
def test_f04_a_sender_is_killed(url: str, case: Sending) -> None:
    """F04: what ``enqueue`` or ``enqueue_many`` has returned for is there; what it has not returned for is there or
    not, and never half of a batch."""
    broker = open_broker(url)
    broker.declare_queue("warm")  # or a server would be told a script first
    for count in (1, 2):
        broker.enqueue_many([Message("warm", "work", (), {}, {})] * count)
    process = subprocess.run(
        [sys.executable, "-c", SENDER, url, case.how],
        env=environment({"GREENROOM_FAILPOINTS": f"{case.point}=kill9@{case.visit}"}),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert process.returncode == -signal.SIGKILL, process.stderr
    assert int((process.stdout.split() or ["0"])[-1]) == case.accepted
    wait_until(lambda: len(messages_in(broker)) >= case.found, "the server has done what it was told")
    assert numbers_in(broker) == list(range(case.found))
    broker.close()


def test_f04_a_batch_that_fails_in_the_middle(tmp_path: Path, armed: Callable[[str], None]) -> None:
    """F04: nothing of it is there, the sender is told so, and may send it again."""
    broker = build(tmp_path, f"sqlite:///{tmp_path / 'queue.db'}")
    try:
        batch = [Message("default", "work", (n,), {}, {}) for n in range(1000)]
        armed("enq.batch_mid=raise@2")
        with pytest.raises(BrokerError, match=r"enq\.batch_mid"):
            broker.enqueue_many(batch)
        assert numbers_in(broker) == []
        broker.enqueue_many(batch)
        assert numbers_in(broker) == list(range(1000))
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


def test_every_point_has_a_case() -> None:
    """No point of the list goes untested, and each exists on an engine."""
    tested = {case.point for case in (*CASES, *SENDINGS)} | {"reap.mid_batch"} | OF_COMPOSITIONS
    assert tested == set(failpoints.NAMES)
    assert not set.intersection(*MISSING.values())
