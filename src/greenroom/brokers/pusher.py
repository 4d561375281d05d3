"""Sending from coroutines: a thread that pushes for them, and what is sent at the same time goes together.

Lazy: a process that never calls ``asend`` has no such thread. ``send`` never depends on it.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue
from typing import NamedTuple

from ..errors import BrokerBusy, BrokerConnectionError, BrokerReadOnly, BrokerTimeout
from ..forksafe import PerProcess
from ..ports.transport import MAX_TRIP, Envelope

#: Says nothing about what was pushed, so there is no use in trying each order alone, for a timeout each.
_NOBODYS_FAULT = (BrokerConnectionError, BrokerTimeout, BrokerBusy, BrokerReadOnly)

Push = Callable[[Sequence[Envelope]], None]


class _Order(NamedTuple):
    envelopes: Sequence[Envelope]
    loop: asyncio.AbstractEventLoop
    done: asyncio.Future[None]


class Pusher:
    """Owns its queue and its thread, one a process. ``push`` may be awaited on any loop."""

    def __init__(self, push: Push) -> None:
        self._push = push
        self._lane: PerProcess[SimpleQueue[_Order]] = PerProcess(self._start)

    def _start(self) -> SimpleQueue[_Order]:
        orders: SimpleQueue[_Order] = SimpleQueue()
        threading.Thread(target=self._main, args=(orders,), name="pusher", daemon=True).start()
        return orders

    async def push(self, envelopes: Sequence[Envelope]) -> None:
        """Returns once the envelopes are durably accepted, together with what others send now, or raises.

        If the awaiting task is cancelled they may be accepted all the same.
        """
        loop = asyncio.get_running_loop()
        done = loop.create_future()
        self._lane.get().put(_Order(envelopes, loop, done))
        await done

    def _main(self, orders: SimpleQueue[_Order]) -> None:
        while True:
            together = [orders.get()]
            size = len(together[0].envelopes)
            while size < MAX_TRIP:
                try:
                    order = orders.get_nowait()
                except Empty:
                    break
                together.append(order)
                size += len(order.envelopes)
            self._push_together(together)

    def _push_together(self, orders: list[_Order]) -> None:
        try:
            self._push([envelope for order in orders for envelope in order.envelopes])
        except Exception as e:  # noqa: BLE001  # it belongs to those who await
            if len(orders) == 1 or isinstance(e, _NOBODYS_FAULT):
                _tell(orders, e)
            else:  # one of them is at fault: the others must not fail with it
                for order in orders:
                    self._push_together([order])
        else:
            _tell(orders, None)


def _tell(orders: list[_Order], error: Exception | None) -> None:
    """Answers, in one call for each loop."""
    by_loop: dict[asyncio.AbstractEventLoop, list[asyncio.Future[None]]] = {}
    for order in orders:
        by_loop.setdefault(order.loop, []).append(order.done)
    for loop, futures in by_loop.items():
        try:
            loop.call_soon_threadsafe(_resolve, futures, error)
        except RuntimeError:  # the loop was closed: nobody waits any more
            continue


def _resolve(futures: list[asyncio.Future[None]], error: Exception | None) -> None:
    for future in futures:
        if future.done():  # cancelled
            continue
        if error is None:
            future.set_result(None)
        else:
            future.set_exception(error)
