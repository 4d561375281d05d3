"""A small web site in this process: pages that link to each other, and a link that leads nowhere."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PAGES = 60
#: At this many requests at a time the server would complain.
MOST_AT_A_TIME = 4


def page(number: int) -> str:
    """A page of HTML with links to others; every seventeenth has one that is broken."""
    links = [f"/page/{other}" for other in {2 * number, 2 * number + 1, number // 2} if 0 < other <= PAGES]
    if number % 17 == 0:
        links.append(f"/gone/{number}")
    anchors = "".join(f'<li><a href="{link}">{link}</a></li>' for link in sorted(links))
    return f"<html><title>Page {number}</title><body><p>{'word ' * number}</p><ul>{anchors}</ul></body></html>"


class Site(ThreadingHTTPServer):
    """Serves the pages, and counts how many requests it has at a time."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.now = 0
        self.most = 0
        self.lock = threading.Lock()  # guards: the two counts


class Handler(BaseHTTPRequestHandler):
    """Answers one request."""

    server: Site

    def do_GET(self) -> None:
        """A page, or 404."""
        with self.server.lock:
            self.server.now += 1
            self.server.most = max(self.server.most, self.server.now)
        _, kind, number = self.path.split("/")
        body = page(int(number)).encode() if kind == "page" else b"gone"
        self.send_response(200 if kind == "page" else 404)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        with self.server.lock:
            self.server.now -= 1
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""


@contextmanager
def serving() -> Iterator[Site]:
    """The site, at a port of its own, for the length of a block."""
    with Site() as site:
        threading.Thread(target=site.serve_forever, daemon=True).start()
        yield site
        site.shutdown()
