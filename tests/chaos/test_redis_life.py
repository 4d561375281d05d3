"""Clocks that are wrong, actors that take long, and coroutines that are cancelled: a lease on Redis outlives them."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from greenroom import Message
from scripts.servers import Redis
from tests.chaos.history import read_events
from tests.chaos.kit import forget, judge
from tests.chaos.redis_kit import (
    LEASE_MS,
    beat_faster,
    build,
    count,
    open_gate,
    send,
    shift_clock,
    starts,
    wait_until_empty,
    wait_until_started,
    worker_process,
    working,
)
from tests.runtime.cli_kit import wait_until

HOUR_MS = 3_600_000
TEN_YEARS_MS = 10 * 365 * 24 * HOUR_MS
JUMPS_MS = (0, HOUR_MS, -HOUR_MS, TEN_YEARS_MS, -TEN_YEARS_MS)
DELAY_MS = 1000


@pytest.fixture(autouse=True)
def _profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    beat_faster(monkeypatch.setattr)
    monkeypatch.setenv("GREENROOM_RUN_FOLDER", str(tmp_path))
    yield
    forget(tmp_path)


def pause(seconds: float) -> None:
    """Lets the time pass that a lease would have ended in."""
    threading.Event().wait(seconds)


# --- F70, F71: clocks


def test_f70_the_clock_of_a_worker_jumps(tmp_path: Path, redis_server: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    """F70: the wall clock of a process that sends and works jumps by an hour and by ten years, forth and back, while it
    runs a message and others are delayed. Its lease is not lost to a worker of another host; what is delayed starts not
    too early, and not hours later, whatever the clock was when it was sent."""
    offset = {"ms": 0}
    shift_clock(lambda: offset["ms"], monkeypatch.setattr)
    broker = build(tmp_path, redis_server.url)
    ids = [f"after-{number}" for number in range(len(JUMPS_MS))]
    with working(broker, 2), worker_process(tmp_path, redis_server.url):
        send(tmp_path, broker, ["runs"], "gated")
        wait_until_started(tmp_path, "runs")
        began_s = time.monotonic()
        for id, jump_ms in zip(ids, JUMPS_MS, strict=True):
            offset["ms"] = jump_ms
            send(tmp_path, broker, [id], delay=DELAY_MS)
        wait_until_started(tmp_path, *ids)
        pause(began_s + 2.5 * LEASE_MS / 1000 - time.monotonic())
        open_gate(tmp_path)
        wait_until_empty(broker)
    first = {event.id: event.at_s - began_s for event in read_events(tmp_path) if event.kind == "start"}
    assert [id for id in ids if first[id] * 1000 <= DELAY_MS - 20] == []
    verdict = judge(tmp_path, broker)
    assert (verdict.accepted, verdict.again) == (len(ids) + 1, 0)
    broker.close()


def test_f71_workers_whose_clocks_disagree(tmp_path: Path, redis_server: Redis) -> None:
    """F71: workers of two hosts, one two minutes early, one two minutes late. Neither takes the other for dead."""
    broker = build(tmp_path, redis_server.url)
    with (
        worker_process(tmp_path, redis_server.url, threads=1, host="early", queue="one", offset_ms=120_000) as early,
        worker_process(tmp_path, redis_server.url, threads=1, host="late", queue="two", offset_ms=-120_000) as late,
    ):
        send(tmp_path, broker, ["one"], "gated", queue="one")
        send(tmp_path, broker, ["two"], "gated", queue="two")
        wait_until_started(tmp_path, "one", "two")
        pause(3 * LEASE_MS / 1000)
        open_gate(tmp_path)
        wait_until(lambda: count(tmp_path, "ack") == 2, "both are settled")
        assert (starts(tmp_path, "one"), starts(tmp_path, "two")) == ([early.pid], [late.pid])
    verdict = judge(tmp_path, broker)
    assert (verdict.accepted, verdict.again) == (2, 0)
    broker.close()


# --- F91, F92, F97: actors


def outlast(folder: Path, server: Redis, actor: str, ids: list[str], behind: list[str]) -> None:
    """Has a worker run ``ids`` for three leases, with ``behind`` waiting, beside an idle worker of another host that
    comes later. Nothing is run twice."""
    broker = build(folder, server.url)
    send(folder, broker, ["far"], delay=60_000)
    with working(broker, 2):
        send(folder, broker, ids, actor)
        wait_until_started(folder, *ids)
        send(folder, broker, behind)
        with worker_process(folder, server.url):
            pause(3 * LEASE_MS / 1000)
            open_gate(folder)
            wait_until(lambda: count(folder, "ack") >= len(ids) + len(behind), "all are settled")
    assert [id for id in (*ids, *behind) if len(starts(folder, id)) != 1] == []
    assert count(folder, "ack") == len(ids) + len(behind)
    assert starts(folder, "far") == []
    broker.close()


def test_f91_an_actor_that_runs_for_three_leases(tmp_path: Path, redis_server: Redis) -> None:
    """F91: an actor runs for three leases. It is not run again by a worker of another host."""
    outlast(tmp_path, redis_server, "gated", ["one"], [])


def test_f92_all_places_are_taken_for_three_leases(tmp_path: Path, redis_server: Redis) -> None:
    """F92: every thread runs something for three leases, messages have been fetched behind them, and one is due in a
    minute. Nothing is stolen."""
    outlast(tmp_path, redis_server, "gated", ["one", "two"], [f"behind-{n}" for n in range(20)])


def test_f97_a_coroutine_that_blocks_its_loop(tmp_path: Path, redis_server: Redis) -> None:
    """F97: an async actor blocks the event loop for three leases. The lease does not depend on the loop."""
    outlast(tmp_path, redis_server, "stuck", ["one"], [])


# --- F98: cancelled coroutines


def test_f98_cancelled_in_the_middle(tmp_path: Path, redis_server: Redis) -> None:
    """F98: a thousand coroutines are cancelled while they send. No answer goes to another question: every later send
    is stored under its own name, once, and what is read is what was asked for."""
    broker = build(tmp_path, redis_server.url)
    random_ = random.Random(98)

    async def send_and_cancel() -> None:
        for number in range(250):
            tasks = [asyncio.create_task(broker.aenqueue(message(f"c{number}-{n}"))) for n in range(4)]
            for _ in range(random_.randint(0, 5)):
                await asyncio.sleep(0)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(send_and_cancel())
    sure = [f"sure-{n}" for n in range(100)]
    send(tmp_path, broker, sure)
    with working(broker):
        wait_until_empty(broker)
    assert all(len(starts(tmp_path, id)) == 1 for id in sure)
    everything = [event.id for event in read_events(tmp_path) if event.kind == "start"]
    assert len(set(everything)) == len(everything)
    broker.close()


def message(id: str) -> Message[None]:
    return Message("default", "plain", (id,), {}, {})
