"""What Greenroom's testing kit adds: what was sent, weeks that pass in milliseconds, and no test that hangs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest

from examples.bookshop import outside, store, tasks
from greenroom import Worker
from greenroom.brokers.stub import StubBroker
from greenroom.errors import QueueStalled
from greenroom.testing import ManualClock, assert_enqueued, refute_enqueued

Post = Callable[..., tuple[str, Any]]
Mails = list[tuple[str, str, str]]


def test_a_customer_is_greeted_once(greenroom_broker: StubBroker, post: Post) -> None:
    """Signing up again sends nothing."""
    post("/customers", address="ada@example.org")
    post("/customers", address="ada@example.org")
    assert_enqueued(tasks.greet, args=("ada@example.org",), count=1)
    refute_enqueued(tasks.send_mail)  # no worker, no mail


def test_the_second_greeting_comes_in_a_week(
    greenroom_broker: StubBroker, greenroom_worker: Worker, greenroom_clock: ManualClock, mailbox: Mails
) -> None:
    """A delay of seven days, seen through."""
    tasks.greet.send("ada@example.org")
    greenroom_clock.tick("6 days 23 hours")
    assert [subject for _, subject, _ in mailbox] == ["Welcome!"]
    greenroom_clock.tick("1 hour")
    assert [subject for _, subject, _ in mailbox] == ["Welcome!", "Found something?"]


@pytest.mark.greenroom(retries=20)  # as in production
def test_a_partner_that_stays_down_is_dropped(
    greenroom_broker: StubBroker, greenroom_worker: Worker, greenroom_clock: ManualClock
) -> None:
    """Twenty retries, thirty-odd days, one dead letter and a callback; in less than a second."""
    store.add_partner("https://down.example/hook")
    started_s = time.perf_counter()
    tasks.post_event.send("https://down.example/hook", {"event": "sold"})
    assert greenroom_clock.tick("60 days") == 22  # 21 attempts and drop_partner
    assert time.perf_counter() - started_s < 1
    assert [letter.actor_name for letter in greenroom_broker.dead_letters] == ["post_event"]
    assert store.partners() == []


@pytest.mark.greenroom(retries=20)
def test_a_partner_that_comes_back_is_kept(
    greenroom_broker: StubBroker,
    greenroom_worker: Worker,
    greenroom_clock: ManualClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Down for an evening: the next attempt after that is the last one."""
    store.add_partner("https://down.example/hook")
    tasks.post_event.send("https://down.example/hook", {"event": "sold"})
    assert greenroom_clock.tick("6 hours") > 5

    async def answer(url: str, event: dict[str, object]) -> None:
        """It is up again."""

    monkeypatch.setattr(outside, "post", answer)
    assert greenroom_clock.tick("60 days") == 1
    greenroom_broker.join("default")
    assert store.partners() == ["https://down.example/hook"]


def test_a_busy_bank_is_asked_again_when_it_says(
    greenroom_broker: StubBroker,
    greenroom_worker: Worker,
    greenroom_clock: ManualClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """``Retry(delay=...)`` comes after exactly that time, and the order waits for it."""
    answers: list[Exception | str] = [outside.BankBusy(retry_after_s=90), "receipt"]

    def charge(address: str, cents: int, *, reference: str) -> str:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(outside, "charge_card", charge)
    order_id = store.add_order(1, "ada@example.org")
    tasks.charge_card.send(order_id)
    greenroom_clock.tick("89 s")
    assert len(answers) == 1
    greenroom_clock.tick("1 s")
    order = store.order(order_id)
    assert order is not None
    assert order["state"] == "paid"


def test_waiting_in_vain_is_an_error_that_says_why(greenroom_broker: StubBroker, greenroom_worker: Worker) -> None:
    """Where a test would have hung for fifteen seconds, it fails now, with the reason."""
    tasks.post_event.send_with_options(args=("https://down.example/hook", {}), max_retries=1)
    with pytest.raises(QueueStalled, match=r"down\.example/hook does not answer"):
        greenroom_broker.join("default", timeout=5_000)


def test_a_clean_up_that_is_late_is_left_to_the_next_night(
    greenroom_broker: StubBroker, greenroom_clock: ManualClock
) -> None:
    """``max_age``: workers that were off for a day do not run what nobody waits for."""
    tasks.clean_up.send()
    greenroom_clock.tick("1 day")
    worker = Worker(greenroom_broker, worker_threads=1)
    worker.start()
    greenroom_broker.join("default", fail_fast=False)
    worker.stop()
    assert [letter.actor_name for letter in greenroom_broker.dead_letters] == ["clean_up"]


@pytest.mark.greenroom(inline=True)
def test_all_of_an_order_in_one_call(greenroom_broker: StubBroker, post: Post, mailbox: Mails) -> None:
    """Inline, an order is paid and invoiced before the web has answered."""
    post("/orders", book=1, address="ada@example.org")
    assert [subject for _, subject, _ in mailbox] == ["Invoice 1"]


def test_an_async_actor_is_a_coroutine_function(mailbox: Mails) -> None:
    """Awaited, it runs here and now."""
    asyncio.run(tasks.post_event("https://up.example", {"event": "sold"}))
