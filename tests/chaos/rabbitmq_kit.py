"""A program on RabbitMQ for tests that trouble its server, its network and its workers: as ``redis_kit``, with the same
actors. ``python -m tests.chaos.rabbitmq_kit`` is a worker in a process of its own.

RabbitMQ tells nobody what runs, and confirms no settlement. So what is waited for is the history: each message that was
accepted has been settled.
"""

from __future__ import annotations

import math
import time
from contextlib import AbstractContextManager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from greenroom.brokers.rabbitmq import RabbitmqBroker
from greenroom.errors import BrokerError
from tests.chaos.history import UNCONFIRMED_S, Fault, read_events
from tests.chaos.redis_kit import Acks, declare, main, worker_process
from tests.runtime.cli_kit import wait_until

#: After how many milliseconds a sender gives up.
TIMEOUT_MS = 2000

#: A worker in a process of its own.
rabbitmq_worker: partial[AbstractContextManager[Any]] = partial(worker_process, kit="rabbitmq_kit")


def build(folder: Path, url: str, **options: Any) -> RabbitmqBroker:
    """A broker with the actors of ``redis_kit.build``.

    Parameters:
      options: Of the broker.
    """
    options = {"publish_timeout_ms": TIMEOUT_MS, **options}
    broker = RabbitmqBroker(url=url, middleware=[Acks(folder)], **options)
    declare(folder, broker)
    return broker


def cut(pid: int) -> Fault:
    """The connection of a process has ended just now: what it held is handed out again."""
    return Fault("cut", pid, time.monotonic())


def cut_since(pid: int, from_s: float) -> list[Fault]:
    """The same, if it is only known that it ended at some moment since ``from_s``: it takes a command that long."""
    last = cut(pid)
    steps = math.ceil((last.at_s - from_s) / UNCONFIRMED_S)
    return [*(Fault("cut", pid, from_s + step * UNCONFIRMED_S) for step in range(steps)), last]


def unsettled(folder: Path) -> set[str]:
    """What was accepted and is not settled."""
    events = read_events(folder)
    return {event.id for event in events if event.kind == "accepted"} - {
        event.id for event in events if event.kind == "ack"
    }


def wait_until_done(folder: Path, broker: RabbitmqBroker) -> None:
    """Until all that was accepted is settled, and nothing waits."""

    def is_done() -> bool:
        with suppress(BrokerError):
            counts = broker.transport.counts(["default"])["default"]
            return not (counts.ready or unsettled(folder))
        return False

    wait_until(is_done, "all messages have come to an end", patience_s=60, step_s=0.02)


if __name__ == "__main__":
    main(lambda folder, url, _lease_ms: build(folder, url))
