"""How long an engine takes to claim 100 messages from a long queue and from a short one, in turn: SQLite, or the Redis
whose URL the environment says."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from greenroom.brokers.redis import RedisBroker
from greenroom.core.verdict import Verdict
from greenroom.engines.sqlite.transport import SqliteTransport
from greenroom.ports.transport import Consumer, Delivery, Envelope, Settlement, Transport

from ..recorder import FOLDER_VARIABLE

LIMIT = 100
SMALL = 10_000
CHUNK = 1_000


class Queue:
    """An engine with ``waiting`` messages, and what was measured on it. A claim gives back what it took."""

    def __init__(self, transport: Transport, waiting: int) -> None:
        self._transport = transport
        self._consumer: Consumer = self._transport.consumer("benchmark")
        self._consumer.subscribe(["default"])
        self._body = b'{"args":[],"kwargs":{},"pad":"' + b"x" * 160 + b'"}'
        self.fill(waiting)
        self.claim_ms: list[float] = []
        self.turn_ms: list[float] = []

    def fill(self, waiting: int) -> None:
        """Pushes ``waiting`` messages."""
        for start in range(0, waiting, CHUNK):
            ids = range(start, min(start + CHUNK, waiting))
            self._transport.push([Envelope("default", f"{i:032x}", self._body) for i in ids])

    def measure(self) -> None:
        """Claims 100; settles them and claims 100 more in one trip; settles those."""
        begin = time.perf_counter()
        first = self._consumer.exchange([], LIMIT).deliveries
        middle = time.perf_counter()
        second = self._consumer.exchange(settled(first), LIMIT).deliveries
        self.turn_ms.append((time.perf_counter() - middle) * 1e3)
        self.claim_ms.append((middle - begin) * 1e3)
        if not len(first) == len(second) == LIMIT:
            raise SystemExit(f"claimed {len(first)} and {len(second)} in place of {LIMIT}")
        self._consumer.exchange(settled(second), 0)

    def answer(self) -> dict[str, list[float]]:
        """All times in milliseconds."""
        return {"claim_ms": self.claim_ms, "turn_ms": self.turn_ms}

    def close(self) -> None:
        """Closes the engine."""
        self._consumer.close()
        self._transport.close()


def settled(deliveries: Sequence[Delivery]) -> list[Settlement]:
    """All done."""
    return [Settlement(delivery, Verdict.ACK) for delivery in deliveries]


def transport(name: str) -> Transport:
    """A fresh one."""
    url = os.environ.get("BENCH_URL")
    if url is None:
        return SqliteTransport(Path(os.environ[FOLDER_VARIABLE]) / f"{name}.db")
    return RedisBroker(url=url, namespace=f"backlog-{name}").transport


def main() -> None:
    """Arguments: how many wait in the long queue, and how many claims."""
    waiting, claims = int(sys.argv[1]), int(sys.argv[2])
    begin = time.perf_counter()
    large = Queue(transport("large"), waiting)
    filled_s = time.perf_counter() - begin
    small = Queue(transport("small"), SMALL)
    for _ in range(min(claims, SMALL // (3 * LIMIT))):
        large.measure()
        small.measure()
    for queue in (large, small):
        queue.close()
    print(json.dumps({"filled_s": filled_s, "large": large.answer(), "small": small.answer()}))


if __name__ == "__main__":
    main()
