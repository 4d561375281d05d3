"""taskiq on RabbitMQ, by its own broker for that: one worker process, 100 coroutines at a time."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from taskiq_aio_pika import AioPikaBroker

from .. import recorder

name = "taskiq-" + Path(os.environ[recorder.FOLDER_VARIABLE]).name
broker: Any = AioPikaBroker(os.environ["BENCH_URL"], exchange_name=name, queue_name=name, qos=500)


@broker.task(task_name="task")  # type: ignore[untyped-decorator]  # it is Any
async def task(i: int) -> None:
    """Does nothing."""
    recorder.hit()


async def _send_all(values: range) -> None:
    await broker.startup()
    for i in values:
        await task.kiq(i)
    await broker.shutdown()


def sender(actor: str) -> Callable[[int], object]:
    """Not measured: it has no synchronous call."""
    raise NotImplementedError("taskiq is measured by its drain alone")


def send_many(actor: str, values: range) -> None:
    """A loop of ``kiq``."""
    asyncio.run(_send_all(values))


def close() -> None:
    """All is closed already."""
