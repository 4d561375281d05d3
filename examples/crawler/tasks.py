"""What the crawler does with one page, and with many."""

from __future__ import annotations

import os
import re
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import greenroom
from greenroom.brokers.sqlite import SqliteBroker
from greenroom.rate_limits import ConcurrentRateLimiter, StoreBackend
from greenroom.results import Results

broker = SqliteBroker(Path(os.environ["CRAWLER_FOLDER"]) / "queue.db")
broker.add_middleware(Results(store_results=True))
greenroom.set_broker(broker)

#: However many workers there are, the site gets no more requests at a time. A page that has to wait costs no retry.
polite = ConcurrentRateLimiter(StoreBackend(broker.store), "site", limit=4)


@greenroom.actor(throws=HTTPError, limit_policy="wait")
def fetch(url: str) -> str:
    """The text of a page."""
    with polite.acquire(), urllib.request.urlopen(url, timeout=10) as answer:  # noqa: S310  # ours
        text: str = answer.read().decode()
    return text


@greenroom.actor
def links_of(url: str, html: str = "") -> dict[str, Any]:
    """How many words a page has, and where it leads."""
    words = len(re.findall(r"\bword\b", html))
    return {"url": url, "words": words, "links": re.findall(r'href="([^"]+)"', html)}


@greenroom.actor
def merge(pages: Sequence[dict[str, Any]] = ()) -> dict[str, Any]:
    """What a round of pages has brought. One that failed is told by ``type``."""
    good = [page for page in pages if "url" in page]
    links = sorted({link for page in good for link in page["links"]})
    return {
        "pages": len(good),
        "failed": len(pages) - len(good),
        "words": sum(p["words"] for p in good),
        "links": links,
    }
