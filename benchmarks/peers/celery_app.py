"""Celery with 8 threads, no results, and acknowledgement before the task runs, which is its default and fastest."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from celery import Celery

from .. import recorder

app: Any = Celery("bench", broker=os.environ["BENCH_URL"].replace("amqp://", "pyamqp://"))
app.conf.update(
    task_ignore_result=True,
    task_default_queue="celery-" + Path(os.environ[recorder.FOLDER_VARIABLE]).name,
    worker_prefetch_multiplier=100,
    worker_send_task_events=False,
    broker_connection_retry_on_startup=True,
)


@app.task(name="task")  # type: ignore[untyped-decorator]  # Celery has no types
def task(i: int) -> None:
    """Does nothing."""
    recorder.hit()


def sender(actor: str) -> Callable[[int], object]:
    """The task's ``delay``."""
    send: Callable[[int], object] = task.delay
    return send


def send_many(actor: str, values: range) -> None:
    """A loop of them, over one producer."""
    with app.producer_pool.acquire(block=True) as producer:
        for i in values:
            task.apply_async((i,), producer=producer)


def close() -> None:
    """Closes its connections."""
    app.close()
