"""The web application: plain WSGI, JSON in and out. It answers at once and leaves the work to the actors.

GET  /                                      the books
GET  /orders/7                              an order
POST /orders      {"book": 1, "address": "ada@example.org"}
POST /customers   {"address": "ada@example.org"}
POST /covers      {"book": 1, "url": "https://..."}
POST /partners    {"url": "https://..."}
POST /newsletter  {"subject": "...", "text": "..."}
"""

from __future__ import annotations

import json
import sqlite3
import uuid
from collections.abc import Callable, Iterable
from http import HTTPStatus
from typing import Any

from . import store, tasks
from .middleware import request_id

Answer = tuple[HTTPStatus, Any]

MAX_BODY_BYTES = 64 * 1024


def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """Answers a request. Its id (``X-Request-ID``, or a new one) goes with all that it sends."""
    this_request = environ.get("HTTP_X_REQUEST_ID") or uuid.uuid4().hex[:8]
    token = request_id.set(this_request)
    try:
        status, answer = _answer(environ)
    finally:
        request_id.reset(token)
    body = json.dumps(answer).encode()
    headers = [("Content-Type", "application/json"), ("Content-Length", str(len(body))), ("X-Request-ID", this_request)]
    start_response(f"{status.value} {status.phrase}", headers)
    return [body]


def _answer(environ: dict[str, Any]) -> Answer:
    method, path = environ["REQUEST_METHOD"], environ.get("PATH_INFO", "/")
    if method == "GET":
        return _get(path)
    handler = HANDLERS.get(path)
    if method != "POST" or handler is None:
        return HTTPStatus.NOT_FOUND, {"error": f"no {method} {path}"}
    try:
        return handler(**_body(environ))
    except (TypeError, ValueError, sqlite3.IntegrityError) as e:
        return HTTPStatus.BAD_REQUEST, {"error": str(e)}


def _body(environ: dict[str, Any]) -> dict[str, Any]:
    size = int(environ.get("CONTENT_LENGTH") or 0)
    if size > MAX_BODY_BYTES:
        raise ValueError(f"at most {MAX_BODY_BYTES} bytes")
    body = json.loads(environ["wsgi.input"].read(size) or b"{}")
    if not isinstance(body, dict):
        raise ValueError("send a JSON object")
    return body


def _get(path: str) -> Answer:
    if path == "/":
        return HTTPStatus.OK, store.books()
    start, _, number = path.rpartition("/")
    order = store.order(int(number)) if start == "/orders" and number.isdecimal() else None
    return (HTTPStatus.OK, order) if order is not None else (HTTPStatus.NOT_FOUND, {"error": f"no {path}"})


def _order(*, book: int, address: str) -> Answer:
    order_id = store.add_order(book, address)
    tasks.charge_card.send(order_id)
    return HTTPStatus.ACCEPTED, {"order": order_id}


def _customer(*, address: str) -> Answer:
    if store.subscribe(address):
        tasks.greet.send(address)
    return HTTPStatus.ACCEPTED, {"address": address}


def _cover(*, book: int, url: str) -> Answer:
    message = tasks.fetch_cover.send(book, url)
    return HTTPStatus.ACCEPTED, {"task": message.message_id}


def _partner(*, url: str) -> Answer:
    store.add_partner(url)
    return HTTPStatus.CREATED, {"url": url}


def _newsletter(*, subject: str, text: str) -> Answer:
    tasks.send_newsletter.send(subject, text)
    return HTTPStatus.ACCEPTED, {"subject": subject}


HANDLERS: dict[str, Callable[..., Answer]] = {
    "/orders": _order,
    "/customers": _customer,
    "/covers": _cover,
    "/partners": _partner,
    "/newsletter": _newsletter,
}
