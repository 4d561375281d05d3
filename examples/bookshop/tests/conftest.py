"""Fixtures. ``test_shop.py`` runs under Dramatiq and Greenroom, ``test_with_greenroom.py`` needs Greenroom's kit."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

os.environ["BOOKSHOP_BROKER"] = "stub"  # before the shop is imported

from examples.bookshop import outside, store, web
from examples.bookshop.broker import broker, shop_middleware
from examples.bookshop.library import LIBRARY, StubBroker, dramatiq

collect_ignore = ["test_with_greenroom.py"] if LIBRARY == "dramatiq" else []

Mail = tuple[str, str, str]


@pytest.fixture(autouse=True)
def _own_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test has a shop of its own."""
    monkeypatch.setattr(store, "PATH", tmp_path / "bookshop.db")


@pytest.fixture
def mailbox(monkeypatch: pytest.MonkeyPatch) -> list[Mail]:
    """The mails that were delivered: address, subject, text."""
    delivered: list[Mail] = []
    deliver = outside.deliver_mail

    def deliver_and_keep(address: str, subject: str, text: str) -> None:
        deliver(address, subject, text)
        delivered.append((address, subject, text))

    monkeypatch.setattr(outside, "deliver_mail", deliver_and_keep)
    return delivered


@pytest.fixture
def stub_broker() -> StubBroker:
    """The shop's broker, empty. (What Dramatiq's documentation recommends; both libraries know how.)"""
    assert isinstance(broker, StubBroker)
    broker.flush_all()
    return broker


@pytest.fixture
def work(stub_broker: StubBroker) -> Iterator[Callable[[], None]]:
    """A running worker; call this to wait until all is done. What kills a message is raised here."""
    worker = dramatiq.Worker(stub_broker, worker_timeout=100, worker_threads=2)
    worker.start()

    def wait() -> None:
        for _ in range(4):  # what an actor sends may be in a queue that was empty before: orders, invoices, mail
            for queue_name in sorted(stub_broker.get_declared_queues()):
                stub_broker.join(queue_name, timeout=10_000)
        worker.join()

    yield wait
    worker.stop()


@pytest.fixture
def post() -> Callable[..., tuple[str, Any]]:
    """Posts JSON to the web application; returns the status and the answer."""

    def post(path: str, *, headers: dict[str, str] | None = None, **fields: Any) -> tuple[str, Any]:
        body = json.dumps(fields).encode()
        environ = {"REQUEST_METHOD": "POST", "PATH_INFO": path, "CONTENT_LENGTH": str(len(body))}
        return call({**environ, "wsgi.input": io.BytesIO(body), **(headers or {})})

    return post


@pytest.fixture
def get() -> Callable[[str], tuple[str, Any]]:
    """Gets a path from the web application; returns the status and the answer."""
    return lambda path: call({"REQUEST_METHOD": "GET", "PATH_INFO": path})


def call(environ: dict[str, Any]) -> tuple[str, Any]:
    """One request through WSGI, without a server."""
    statuses: list[str] = []
    body = b"".join(web.application(environ, lambda status, _headers: statuses.append(status)))
    return statuses[0], json.loads(body)


@pytest.fixture
def greenroom_middleware() -> list[dramatiq.Middleware]:
    """Greenroom's kit is told what middleware the shop has."""
    return shop_middleware()
