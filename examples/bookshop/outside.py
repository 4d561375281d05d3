"""The world outside the shop: mail, the bank, other people's web servers.

This is an example, so nobody is really called: what would be done is logged, and addresses at ``.example`` fail in ways
of their own. A real shop has its clients here.
"""

from __future__ import annotations

import logging

logger = logging.getLogger("bookshop.outside")


class BadAddress(Exception):
    """There is no such mailbox, and there will be none."""


class CardDeclined(Exception):
    """The bank said no, and means it."""


class BankBusy(Exception):
    """The bank asks to be asked again later.

    Parameters:
      retry_after_s: When, in seconds.
    """

    def __init__(self, retry_after_s: int) -> None:
        super().__init__(f"the bank is busy for {retry_after_s} s")
        self.retry_after_s = retry_after_s


def deliver_mail(address: str, subject: str, text: str) -> None:
    """Hands a mail to the mail server."""
    if "@" not in address or address.endswith("@nowhere.example"):
        raise BadAddress(address)
    logger.info("mail to %s: %s (%d characters)", address, subject, len(text))


def charge_card(address: str, cents: int, *, reference: str) -> str:
    """Charges a customer's card; returns the bank's receipt. The same ``reference`` is never charged twice."""
    if address.endswith("@poor.example"):
        raise CardDeclined(f"{cents} cents are more than there is")
    logger.info("charged %d cents for %s", cents, reference)
    return f"receipt for {reference}"


async def fetch(url: str) -> bytes:
    """What a URL holds: here, a red picture of 64 by 96 pixels."""
    logger.info("fetched %s", url)
    return b"P6 64 96 255\n" + b"\xff\x00\x00" * 64 * 96


async def post(url: str, event: dict[str, object]) -> None:
    """Posts an event to a partner's web server."""
    if "//down.example" in url:
        raise ConnectionError(f"{url} does not answer")
    logger.info("posted %s to %s", event, url)
