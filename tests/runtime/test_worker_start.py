"""A worker whose start fails leaves nothing behind."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from greenroom import Middleware, Worker
from greenroom.brokers.sqlite import SqliteBroker
from greenroom.errors import MiddlewareError
from greenroom.runtime import pump, threads, ticker
from tests.runtime.worker_kit import collector


@pytest.fixture
def broker(tmp_path: Path) -> Any:
    broker = SqliteBroker(tmp_path / "queue.db")
    broker.threads_before = set(threading.enumerate())
    yield broker
    broker.close()


def left_over(broker: Any) -> tuple[int, list[str]]:
    """Consumers that are still there, and threads that were not there before."""
    names = [thread.name for thread in set(threading.enumerate()) - broker.threads_before]
    return len(broker.transport.share.consumers), names


class Veto(Middleware):
    """Refuses workers."""

    def before_worker_boot(self, broker: Any, worker: Any) -> None:
        raise MiddlewareError("no")


def test_a_hook_refuses_it(broker: SqliteBroker) -> None:
    """The consumer is closed. Without that hook the same worker can be started."""
    collect, values = collector(broker)
    veto = Veto()
    broker.add_middleware(veto)
    worker = Worker(broker, worker_threads=1)
    with pytest.raises(MiddlewareError):
        worker.start()
    assert left_over(broker) == (0, [])
    assert not worker.is_running
    broker.middleware.remove(veto)
    worker.start()
    collect.send(1)
    worker.join()
    worker.stop()
    assert values == [1]


@pytest.mark.parametrize(
    ("owner", "name", "after"),
    [
        (threads.WorkerThread, "start", 1),
        (pump.threading.Thread, "start", 2),
        (ticker.Ticker, "start", 0),
    ],
)
def test_a_thread_cannot_be_started(
    broker: SqliteBroker, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, after: int
) -> None:
    """Those that were started end, and nothing is claimed any more."""
    collect, values = collector(broker)
    collect.send(1)
    start, starts = getattr(owner, name), iter(range(after))

    def limited(self: Any) -> None:
        if next(starts, None) is None:
            raise RuntimeError("can't start new thread")
        start(self)

    worker = Worker(broker, worker_threads=2)
    with monkeypatch.context() as m:
        m.setattr(owner, name, limited)
        with pytest.raises(RuntimeError, match="new thread"):
            worker.start()
    assert left_over(broker) == (0, [])
    assert worker._queue_declared not in broker.queue_listeners
    worker.start()
    worker.join()
    worker.stop()
    assert values == [1]
