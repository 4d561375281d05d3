"""The shop from the outside: what is posted to the web application, and what comes of it. Runs under both libraries."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest

from examples.bookshop import outside, pictures, store, tasks
from examples.bookshop.library import StubBroker

Post = Callable[..., tuple[str, Any]]
Get = Callable[[str], tuple[str, Any]]
Work = Callable[[], None]
Mails = list[tuple[str, str, str]]


def test_books_are_listed(get: Get) -> None:
    """The shop has books to sell."""
    status, books = get("/")
    assert status == "200 OK"
    assert [book["title"] for book in books] == ["The Art of the Queue", "At Least Once"]


@pytest.mark.parametrize(
    ("path", "fields"),
    [("/orders", {"book": 99, "address": "a@b.org"}), ("/orders", {"book": 1}), ("/orders", {"x": 1})],
)
def test_a_bad_request_sends_nothing(stub_broker: StubBroker, post: Post, path: str, fields: dict[str, Any]) -> None:
    """What cannot be done is refused at once, and no worker hears of it."""
    status, answer = post(path, **fields)
    assert status == "400 Bad Request"
    assert answer["error"]
    assert stub_broker.queues["default"].qsize() == 0


def test_an_order_is_paid_and_invoiced(work: Work, post: Post, get: Get, mailbox: Mails) -> None:
    """The web answers at once; the card, the invoice and its mail are the actors' business."""
    status, answer = post("/orders", book=2, address="ada@example.org")
    assert (status, answer) == ("202 Accepted", {"order": 1})
    work()
    assert get("/orders/1")[1]["state"] == "paid"
    text = "At Least Once: 18.00\nreceipt for order-1\nThank you!"
    assert mailbox == [("ada@example.org", "Invoice 1", text)]


def test_a_message_that_comes_twice_does_no_harm(work: Work, post: Post, mailbox: Mails) -> None:
    """Messages run at least once. An order is paid once, and one invoice is sent."""
    post("/orders", book=1, address="ada@example.org")
    work()
    tasks.charge_card.send(1)
    work()
    assert len(mailbox) == 1


def test_a_declined_card_cancels_the_order(stub_broker: StubBroker, work: Work, post: Post, mailbox: Mails) -> None:
    """What an actor ``throws`` is not tried again: the message dies, and ``on_failure`` tells the customer."""
    post("/orders", book=1, address="bob@poor.example")
    with pytest.raises(outside.CardDeclined):
        work()
    stub_broker.join("default", fail_fast=False, timeout=10_000)
    stub_broker.join("mail", fail_fast=False, timeout=10_000)
    order = store.order(1)
    assert order is not None
    assert order["state"] == "cancelled"
    assert [(address, subject) for address, subject, _ in mailbox] == [("bob@poor.example", "Order 1 is cancelled")]


def test_the_newsletter_reaches_all_readers_but_the_lost(
    stub_broker: StubBroker, work: Work, post: Post, mailbox: Mails
) -> None:
    """A bad address is dead-lettered and stops nobody else's mail."""
    for address in ("ada@example.org", "eve@nowhere.example", "bob@example.org"):
        store.subscribe(address)
    post("/newsletter", subject="Spring", text="New books")
    stub_broker.join("default", timeout=10_000)
    stub_broker.join("mail", fail_fast=False, timeout=10_000)
    assert sorted(address for address, _, _ in mailbox) == ["ada@example.org", "bob@example.org"]
    assert [letter.args[0] for letter in stub_broker.dead_letters_by_queue["mail"]] == ["eve@nowhere.example"]


def test_a_cover_is_fetched_and_shrunk(work: Work, post: Post) -> None:
    """An async actor fetches it, sync ones make the thumbnails."""
    status, answer = post("/covers", book=1, url="https://covers.example/1")
    assert status == "202 Accepted"
    assert answer["task"]
    work()
    sizes = [pictures.size_of(store.picture(1, width) or b"") for width in (0, *tasks.WIDTHS)]
    assert sizes == [(64, 96), (16, 24), (32, 48)]


def test_partners_hear_of_a_sale(work: Work, post: Post, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each partner gets the event, from an async actor."""
    posted: list[tuple[str, dict[str, object]]] = []

    async def keep(url: str, event: dict[str, object]) -> None:
        posted.append((url, event))

    monkeypatch.setattr(outside, "post", keep)
    post("/partners", url="https://one.example")
    post("/partners", url="https://two.example")
    post("/orders", book=1, address="ada@example.org")
    work()
    event = {"event": "sold", "order": 1}
    assert sorted(posted, key=lambda entry: entry[0]) == [
        ("https://one.example", event),
        ("https://two.example", event),
    ]


def test_the_clean_up_spares_what_is_paid(work: Work) -> None:
    """Old unpaid orders go; paid and young ones stay."""
    old, paid, young = (store.add_order(1, "ada@example.org") for _ in range(3))
    store.move_order(paid, "paid")
    with store.connected() as connection:
        connection.execute("UPDATE purchase SET created = '2001-01-01' WHERE id IN (?, ?)", (old, paid))
    tasks.clean_up.send()
    work()
    assert [store.order(number) is not None for number in (old, paid, young)] == [False, True, True]


def test_the_request_id_goes_all_the_way(
    work: Work, post: Post, mailbox: Mails, caplog: pytest.LogCaptureFixture
) -> None:
    """From the web request through actor, callback and callback's callback: every log line names the request."""
    caplog.set_level(logging.INFO, "bookshop.tasks")
    post("/orders", book=1, address="ada@example.org", headers={"HTTP_X_REQUEST_ID": "req-7"})
    work()
    lines = [record.getMessage() for record in caplog.records if record.name == "bookshop.tasks"]
    names = ("charge_card", "payment_made", "make_invoice", "tell_partners", "mail_invoice", "send_mail")
    assert sorted(line.split()[0] for line in lines) == sorted(names)
    assert all(line.endswith("[request req-7]") for line in lines)


def test_an_actor_is_a_function() -> None:
    """Called, it runs here and now: much can be tested without a broker."""
    order_id = store.add_order(1, "ada@example.org")
    assert tasks.make_invoice(order_id, "paid in cash").startswith("The Art of the Queue: 24.00\npaid in cash")
