"""The cost of a message by part, in microseconds: each part alone in one thread, then the runtime as a whole.

The whole is measured by ablation: with the default middleware and with none, with 8 threads and with 1, with the memory
engine and with SQLite. What the parts do not explain (ready heap, hand-over to a thread and back, context, verdict,
settlement, the pump's own steps) is shown as the rest.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from itertools import repeat
from pathlib import Path
from statistics import median
from typing import Any

import greenroom
from greenroom.brokers.engine import EngineBroker
from greenroom.brokers.sqlite import SqliteBroker
from greenroom.core.run import Run
from greenroom.core.verdict import Verdict
from greenroom.engines.memory.transport import MemoryTransport
from greenroom.message import Message
from greenroom.names import new_message_id
from greenroom.ports.transport import Settlement, Transport
from greenroom.runtime.slot import Slot

from ..recorder import FOLDER_VARIABLE, Counts, hit

FOLDER = Path(os.environ[FOLDER_VARIABLE])
TRIP = 1_000
LIMIT_S = 60.0


class MemoryBroker(EngineBroker):
    """A broker on the memory engine."""

    def __init__(self, middleware: list[Any] | None = None) -> None:
        self.transport = MemoryTransport()
        super().__init__(middleware)


def task(i: int) -> None:
    """Does nothing."""
    hit()


Cost = tuple[float, float]  # wall time and processor time, in microseconds a message


def cost(step: Callable[[], object], messages: int) -> Cost:
    """Runs a step that handles ``messages`` messages."""
    wall, cpu = time.perf_counter(), time.process_time()
    step()
    return (time.perf_counter() - wall) * 1e6 / messages, (time.process_time() - cpu) * 1e6 / messages


def calls(n: int, call: Callable[..., object], *args: object) -> Cost:
    """Makes a call ``n`` times and drops what it answers, as the runtime does: kept objects would cost collections."""

    def step() -> None:
        for _ in repeat(None, n):
            call(*args)

    return cost(step, n)


# --- parts, one thread


def sender_parts(broker: EngineBroker, n: int) -> dict[str, Cost]:
    """What the sender does before the engine."""
    actor = greenroom.actor(task, broker=broker)
    message = actor.message(1)
    return {
        "message id": calls(n, new_message_id),
        "message, with its id": calls(n, actor.message, 1),
        "encode": calls(n, message.encode),
        "envelope, with encode": calls(n, broker.envelope, message),
    }


def worker_parts(broker: EngineBroker, n: int) -> dict[str, Cost]:
    """What the worker does beside the engine and the threads."""
    actor = broker.actors["task"]
    body = actor.message(1).encode()
    message = Message.decode(body)
    run = Run(message, None, actor)
    run.slot = Slot(0)
    hooks = broker.hooks

    def before() -> None:
        for hook in hooks.before_process_message:
            hook(broker, run)

    def after() -> None:
        for hook in hooks.after_process_message:
            hook(broker, run, result=None)

    return {
        "decode": calls(n, Message.decode, body),
        "run record": calls(n, Run, message, None, actor),
        "hooks before": calls(n, before),
        "hooks after": calls(n, after),
    }


def engine_parts(broker: EngineBroker, n: int) -> dict[str, Cost]:
    """Pushing one by one and in thousands, and trips that settle a thousand and claim a thousand."""
    transport: Transport = broker.transport
    actor = broker.actors["task"]
    envelopes = [broker.envelope(actor.message(i)) for i in range(n)]
    single = [broker.envelope(actor.message(i)) for i in range(TRIP)]

    def push_many() -> None:
        for start in range(0, n, TRIP):
            transport.push(envelopes[start : start + TRIP])

    def push_single() -> None:
        for envelope in single:
            transport.push((envelope,))

    return {
        "push, one": cost(push_single, TRIP),
        "push, 1 000 at a time": cost(push_many, n),
        "settle and claim, 1 000 at a time": cost(lambda: trips(transport), n + TRIP),
    }


def trips(transport: Transport) -> None:
    """Empties the queue."""
    consumer = transport.consumer("benchmark")
    consumer.subscribe(["default"])
    settlements: list[Settlement] = []
    while True:
        deliveries = consumer.exchange(settlements, TRIP).deliveries
        if not deliveries:
            break
        settlements = [Settlement(delivery, Verdict.ACK) for delivery in deliveries]
    consumer.close()


# --- the whole


def whole(make: Callable[[], EngineBroker], threads: int, n: int) -> Cost:
    """Drains ``n`` messages by a worker in this process, from its start on."""
    broker = make()
    actor = greenroom.actor(task, broker=broker)
    actor.send_many((i,) for i in range(n))
    counts, worker = Counts(FOLDER), greenroom.Worker(broker, worker_threads=threads)
    goal = counts.total() + n
    wall, cpu = time.perf_counter(), time.process_time()
    worker.start()
    while counts.total() < goal:
        if time.perf_counter() - wall > LIMIT_S:
            raise SystemExit(f"the worker did not run {n} messages within {LIMIT_S:g} s")
        time.sleep(0.002)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    worker.stop()
    broker.close()
    return wall * 1e6 / n, cpu * 1e6 / n


def sqlite_broker() -> SqliteBroker:
    """A broker on a fresh file."""
    return SqliteBroker(FOLDER / f"{time.monotonic_ns()}.db")


WHOLE: dict[str, tuple[Callable[[], EngineBroker], int]] = {
    "memory engine, default middleware, 8 threads": (MemoryBroker, 8),
    "memory engine, default middleware, 1 thread": (MemoryBroker, 1),
    "memory engine, no middleware, 8 threads": (lambda: MemoryBroker([]), 8),
    "SQLite, default middleware, 8 threads": (sqlite_broker, 8),
    "SQLite, default middleware, 1 thread": (sqlite_broker, 1),
}


def parts(n: int) -> dict[str, dict[str, Cost]]:
    """All parts, each once."""
    memory, sqlite = MemoryBroker(), sqlite_broker()
    found = {"sender": sender_parts(memory, n), "worker": worker_parts(memory, n)}
    greenroom.actor(task, broker=sqlite)
    found["memory engine"] = engine_parts(memory, n)
    found["SQLite engine"] = engine_parts(sqlite, n)
    memory.close()
    sqlite.close()
    return found


def middle(costs: Sequence[Cost]) -> Cost:
    """The medians over the rounds."""
    return median(wall for wall, _ in costs), median(cpu for _, cpu in costs)


def main() -> None:
    """Arguments: messages, rounds. Prints the medians over the rounds."""
    n, rounds = int(sys.argv[1]), int(sys.argv[2])
    part_rounds = [parts(n) for _ in range(rounds)]
    whole_rounds = [{name: whole(*setting, n) for name, setting in WHOLE.items()} for _ in range(rounds)]
    answer = {
        "parts": {
            group: {part: middle([found[group][part] for found in part_rounds]) for part in costs}
            for group, costs in part_rounds[0].items()
        },
        "whole": {name: middle([found[name] for found in whole_rounds]) for name in WHOLE},
    }
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
