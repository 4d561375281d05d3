"""Looking into a queue file and acting on it: what is SQLite's alone."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from greenroom.engines.sqlite import admin
from greenroom.engines.sqlite.transport import SqliteTransport
from greenroom.engines.sqlite.wake import WakeFolder
from greenroom.ports.admin import Counts
from greenroom.ports.retention import DEAD_LETTER_TTL_MS, Retention
from greenroom.ports.transport import MAX_TRIP, ErrorText
from greenroom.testing.clock import ManualClock
from greenroom.testing.contract.kit import claim, consumer_of, dead, envelope, envelopes, killed, settle

DAY_MS = 86_400_000


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def make(tmp_path: Path, clock: ManualClock) -> Any:
    """Makes a transport on the file of this test; all are closed at the end."""
    made: list[SqliteTransport] = []

    def make(**keywords: Any) -> SqliteTransport:
        made.append(SqliteTransport(tmp_path / "queue.db", clock=clock, **keywords))
        return made[-1]

    yield make
    for transport in made:
        transport.close()


Make = Callable[..., SqliteTransport]


# --- how long dead letters are kept


def dead_count(transport: SqliteTransport) -> int:
    return sum(counts.dead for counts in transport.counts().values())


def test_dead_letters_are_kept_for_seven_days(make: Make, clock: ManualClock) -> None:
    """A consumer deletes dead letters that are older than seven days, no sooner, and no others."""
    transport = make()
    killed(transport, b"old")
    clock.advance_ms(DAY_MS)
    killed(transport, b"young")
    consumer = consumer_of(transport)
    clock.advance_ms(DEAD_LETTER_TTL_MS - DAY_MS)
    consumer.exchange((), 1)
    assert [letter.body for letter in transport.dead()] == [b"young", b"old"]
    clock.advance_ms(60_001)
    consumer.exchange((), 1)
    assert [letter.body for letter in transport.dead()] == [b"young"]


def test_how_long_may_be_said(make: Make, clock: ManualClock) -> None:
    """With ``ttl_ms`` they are kept for as long as it says; with None for ever."""
    killed(make(), b"1")
    clock.advance_ms(100 * DAY_MS)
    consumer_of(make(retention=Retention(ttl_ms=None))).exchange((), 1)
    assert dead_count(make()) == 1
    consumer_of(make(retention=Retention(ttl_ms=101 * DAY_MS))).exchange((), 1)
    assert dead_count(make()) == 1
    consumer_of(make(retention=Retention(ttl_ms=99 * DAY_MS))).exchange((), 1)
    assert dead_count(make()) == 0


def test_how_many_may_be_said(make: Make, clock: ManualClock) -> None:
    """With ``limit`` the newest of all queues together are kept."""
    transport = make(retention=Retention(limit=3))
    for number, queue in enumerate("abcab"):
        killed(transport, b"%d" % number, queue=queue)
        clock.advance_ms(1)
    clock.advance_ms(60_000)
    consumer_of(transport).exchange((), 1)
    assert [letter.body for letter in transport.dead()] == [b"4", b"3", b"2"]


@pytest.mark.parametrize("retention", [Retention(ttl_ms=10), Retention(limit=1)], ids=["old", "many"])
def test_many_are_deleted_in_steps(make: Make, clock: ManualClock, retention: Retention) -> None:
    """A trip deletes a thousand at most; the next ones follow soon, until none is left over."""
    transport = make(retention=Retention())
    transport.push(envelopes(*(b"x" for _ in range(2_500))))
    consumer = consumer_of(transport)
    while got := consumer.exchange((), MAX_TRIP).deliveries:
        settle(consumer, *(dead(delivery) for delivery in got))
    clock.advance_ms(11)
    consumer = consumer_of(make(retention=retention))
    left = []
    for _ in range(4):
        consumer.exchange((), 1)
        left.append(dead_count(transport))
        clock.advance_ms(101)
    last = 0 if retention.limit is None else 1
    assert left == [1_500, 500, last, last]


def test_a_consumer_looks_for_old_ones_once_a_minute(make: Make, clock: ManualClock) -> None:
    """Trips in between do not look."""
    transport = make(retention=Retention(ttl_ms=1_000))
    consumer = consumer_of(transport)
    consumer.exchange((), 1)
    killed(transport, b"1")
    clock.advance_ms(30_000)
    consumer.exchange((), 1)
    assert dead_count(transport) == 1
    clock.advance_ms(31_000)
    consumer.exchange((), 1)
    assert dead_count(transport) == 0


# --- large and many


def test_a_page_ends_early_when_bodies_are_large(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page holds so many bytes of bodies, and at least one message; page after page still shows all."""
    monkeypatch.setattr(admin, "PAGE_BYTES", 1_000)
    transport = make()
    transport.push(envelopes(*(b"x" * size for size in (600, 600, 5_000, 1, 1, 1))))
    sizes = pages(lambda after: transport.peek("default", after=after))
    assert sizes == [[600, 600], [5_000], [1, 1, 1]]
    consumer = consumer_of(transport)
    for delivery in claim(consumer, 6):
        settle(consumer, dead(delivery))
    assert pages(lambda after: transport.dead(after=after)) == [[1, 1, 1, 5_000], [600, 600]]


def pages(look: Callable[[str | None], list[Any]]) -> list[list[int]]:
    sizes = []
    after = None
    while page := look(after):
        sizes.append([len(shown.body) for shown in page])
        after = page[-1].place
    return sizes


def test_a_purge_goes_in_steps_and_ends(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """A purge deletes a thousand at a time, and others write in between. What they push meanwhile stays, so it has an
    end."""
    transport, other = make(), make()
    transport.push(envelopes(*(b"old" for _ in range(5_500))))
    database = transport._process.get().database
    begin = database.transaction
    left = []

    @contextmanager
    def with_a_push_after_it() -> Iterator[sqlite3.Connection]:
        with begin() as connection:
            yield connection
        left.append(other.counts(["default"])["default"].ready)
        other.push(envelopes(*(b"new" for _ in range(1_000))))

    monkeypatch.setattr(database, "transaction", with_a_push_after_it)
    assert transport.purge("default") == 5_500
    assert left == [5_500, 5_500, 5_500, 5_500, 5_500, 5_500, 6_000]  # the first one is for what is delayed
    assert {p.body for p in transport.peek("default", limit=100_000)} == {b"new"}


@pytest.fixture
def rung(make: Make, monkeypatch: pytest.MonkeyPatch) -> list[int | None]:
    """The due times for which waiting consumers were woken; None is for now."""
    rung: list[int | None] = []
    monkeypatch.setattr(WakeFolder, "ring", lambda _folder, due_ms: rung.append(due_ms))
    return rung


def test_what_is_put_back_is_told_at_once(make: Make, rung: list[int | None]) -> None:
    """Who waits is woken, not left to its next look; for what is due later, with the due time."""
    transport = make()
    first, second = killed(transport, b"1", b"2")
    rung.clear()
    transport.move({first.id: envelope(b"1")})
    assert rung == [None]
    transport.move({second.id: envelope(b"2", due_ms=5)})
    assert rung == [None, 5]
    transport.move({"unheard": envelope(b"3")})
    assert rung == [None, 5]


def test_a_pause_is_told_at_once(make: Make, rung: list[int | None]) -> None:
    """Who waits is woken when queues are paused or resumed, so that it looks what it may claim from."""
    transport = make()
    transport.pause(["a"])
    assert rung == [None]
    transport.resume(["a"])
    assert rung == [None, None]


def test_purging_leaves_other_queues_alone(make: Make, clock: ManualClock) -> None:
    """However the messages of two queues are mixed, a purge of thousands takes those of one."""
    transport = make()
    for _ in range(4):
        transport.push([envelope(b"x", queue, due_ms=clock.now_ms() + 1 + i % 7) for i in range(400) for queue in "ab"])
        transport.push([envelope(b"x", queue, priority=i % 5) for i in range(400) for queue in "ab"])
    assert transport.purge("a") == 3_200
    assert transport.counts(["a", "b"]) == {"a": Counts(), "b": Counts(ready=1_600, delayed=1_600)}


def test_looks_use_an_index(make: Make) -> None:
    """Neither counting nor looking up goes through bodies: each statement has an index for it."""
    transport = make()
    transport.push(envelopes(b"1"))
    statements = {
        admin._COUNT: ("x",) * 4,
        admin._PEEK["ready"]: ("x", 0, 0, 1),
        admin._DEAD: (0, 0, 1),
        admin._DEAD_OF_QUEUE: ("x", 0, 0, 1),
        f"select 1 from dead where {admin._LISTED}": ("[]",),
    }
    with sqlite3.connect(transport.path) as connection:
        for statement, values in statements.items():
            plan = [row[3] for row in connection.execute(f"explain query plan {statement}", values)]
            steps = [step for step in plan if step.startswith(("SCAN", "SEARCH", "USE"))]
            assert all("INDEX" in step or "json_each" in step or "CONSTANT" in step for step in steps), plan
            assert not any("TEMP" in step for step in steps), plan
    connection.close()


def test_a_dead_letter_keeps_a_text_that_json_escapes(make: Make) -> None:
    """Control characters in an error survive the way into the history."""
    transport = make()
    error = ErrorText("Error", "\x00 \x1b \u2028 \U0001f600", "line\nline")
    (sent,) = killed(transport, b"1", error=error)
    instead = envelope(b"2")
    transport.move({sent.id: instead})
    (waiting,) = transport.peek("default")
    assert waiting.last is not None
    assert waiting.last.error == error
