"""A bare publish of pika's: one blocking channel that waits for each confirm, nothing around it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pika

from .. import recorder

QUEUE = "bare-" + Path(os.environ[recorder.FOLDER_VARIABLE]).name
#: As long as an encoded message of the other systems.
PADDING = "x" * 160

connection = pika.BlockingConnection(pika.URLParameters(os.environ["BENCH_URL"]))
channel = connection.channel()
channel.queue_declare(QUEUE, durable=True)
channel.confirm_delivery()
properties = pika.BasicProperties(delivery_mode=2)


def sender(actor: str) -> Callable[[int], object]:
    """One publish."""

    def send(i: int) -> None:
        channel.basic_publish("", QUEUE, f"{actor} {i} {PADDING}".encode(), properties, mandatory=True)

    return send


def send_many(actor: str, values: range) -> None:
    """A loop of them."""
    send = sender(actor)
    for i in values:
        send(i)


def close() -> None:
    """Deletes the queue."""
    channel.queue_delete(QUEUE)
    connection.close()
