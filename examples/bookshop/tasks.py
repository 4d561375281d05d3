"""What the shop does in the background: fourteen actors.

A message runs at least once, so each of these may be run again: what must not happen twice is guarded by the store or,
at the bank, by a reference.
"""

from __future__ import annotations

import logging
from datetime import timedelta
from typing import Any

from . import broker as _broker  # noqa: F401  # sets the broker, before the first actor is declared
from . import outside, pictures, store
from .library import dramatiq

logger = logging.getLogger("bookshop.tasks")

MINUTE_MS = 60_000
HOUR_MS = 60 * MINUTE_MS
WIDTHS = (16, 32)


# --- mail: a queue of its own, so that `greenroom worker ... -Q mail` can be sized for a slow mail server


@dramatiq.actor(queue_name="mail", max_retries=8, throws=outside.BadAddress)
def send_mail(address: str, subject: str, text: str) -> None:
    """One mail. A bad address will not get better, so it is not tried again."""
    outside.deliver_mail(address, subject, text)


@dramatiq.actor
def greet(address: str) -> None:
    """Two mails to a new customer, one of them in a week."""
    send_mail.send(address, "Welcome!", "We have books.")
    send_mail.send_with_options(args=(address, "Found something?", "We still have."), delay=timedelta(days=7))


@dramatiq.actor(queue_name="mail", priority=100, max_retries=3, throws=outside.BadAddress)
def send_issue(address: str, subject: str, text: str) -> None:
    """The newsletter for one reader. Invoices and welcomes go first: their priority is a lower number."""
    outside.deliver_mail(address, f"[News] {subject}", text)


@dramatiq.actor
def send_newsletter(subject: str, text: str) -> None:
    """One message a reader, so that each mail is retried for itself. (Greenroom has ``send_many`` for this.)"""
    for address in store.subscribers():
        send_issue.send(address, subject, text)


# --- orders. Dramatiq takes the actors of callbacks by name; for Greenroom these might be the actors themselves


@dramatiq.actor(
    priority=-10,
    max_retries=10,
    min_backoff=1_000,
    max_backoff=HOUR_MS,
    throws=outside.CardDeclined,
    on_success="payment_made",
    on_failure="payment_failed",
)
def charge_card(order_id: int) -> str | None:
    """Charges an order. When the bank is busy it says itself when to come again."""
    order = store.order(order_id)
    if order is None or order["state"] != "new":
        return None
    try:
        return outside.charge_card(order["address"], order["cents"], reference=f"order-{order_id}")
    except outside.BankBusy as e:
        raise dramatiq.Retry(str(e), delay=e.retry_after_s * 1000) from e


@dramatiq.actor(priority=-10)
def payment_made(message: dict[str, Any], receipt: str | None) -> None:
    """A callback: gets the message that succeeded, and what its actor returned."""
    (order_id,) = message["args"]
    if receipt is not None and store.move_order(order_id, "paid"):
        make_invoice.send(order_id, receipt)
        tell_partners.send({"event": "sold", "order": order_id})


@dramatiq.actor
def payment_failed(message: dict[str, Any], error: dict[str, str]) -> None:
    """A callback: gets every attempt that failed. Only the bank's no is final."""
    (order_id,) = message["args"]
    order = store.order(order_id)
    if error["type"] == "CardDeclined" and order is not None and store.move_order(order_id, "cancelled"):
        send_mail.send(order["address"], f"Order {order_id} is cancelled", f"The bank says: {error['message']}.")


@dramatiq.actor(on_success="mail_invoice")
def make_invoice(order_id: int, receipt: str) -> str:
    """The text of an invoice."""
    order = store.order(order_id)
    assert order is not None
    return f"{order['title']}: {order['cents'] / 100:.2f}\n{receipt}\nThank you!"


@dramatiq.actor
def mail_invoice(message: dict[str, Any], invoice: str) -> None:
    """A callback: sends what was made."""
    order = store.order(message["args"][0])
    assert order is not None
    send_mail.send(order["address"], f"Invoice {order['id']}", invoice)


# --- covers: an async actor that waits, a sync one that computes, each where it belongs


@dramatiq.actor(max_retries=5, time_limit=MINUTE_MS)
async def fetch_cover(book: int, url: str) -> None:
    """Waits for somebody's web server. A hundred of these wait at a time and take no thread."""
    cover = await outside.fetch(url)
    store.put_picture(book, 0, cover)  # milliseconds; what takes longer belongs into a sync actor
    for width in WIDTHS:
        make_thumbnail.send(book, width)


@dramatiq.actor(queue_name="images", time_limit=MINUTE_MS, throws=pictures.NotAPicture)
def make_thumbnail(book: int, width: int) -> None:
    """Computes for long, so it has a queue of its own: nothing quick waits behind it."""
    cover = store.picture(book, 0)
    assert cover is not None
    store.put_picture(book, width, pictures.shrink(cover, width))


# --- partners


@dramatiq.actor
def tell_partners(event: dict[str, Any]) -> None:
    """One message a partner: one that is down delays no other."""
    for url in store.partners():
        post_event.send(url, event)


@dramatiq.actor(on_retry_exhausted="drop_partner")
async def post_event(url: str, event: dict[str, Any]) -> None:
    """Tried twenty times over about a month, which is what an actor does that says nothing else."""
    await outside.post(url, event)


@dramatiq.actor
def drop_partner(message: dict[str, Any], retries: dict[str, int]) -> None:
    """A callback: gets the message that was given up. Who is down for a month is a partner no more."""
    url = message["args"][0]
    store.remove_partner(url)
    logger.warning("dropped %s after %d retries", url, retries["retries"])


# --- at night


@dramatiq.actor(max_retries=3, max_age=12 * HOUR_MS)
def clean_up(days: int = 30) -> None:
    """Sent each night by cron. If it has not had its turn by noon, the next night's will do."""
    logger.info("forgot %d unpaid orders", store.forget_unpaid_orders(days))
