"""The sending side of every case: ``python -m benchmarks.producer APP COMMAND ACTOR ...``, in a process of its own.

It needs nothing but the standard library and the app, so that the same lines run in the environment of each peer. It
prints one JSON object.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, cast

from .recorder import FOLDER_VARIABLE, Counts

#: Sends before the clock starts: they open the file and make its tables.
WARM_UP = 10


class App(Protocol):
    """What a module under ``peers`` offers. ``actor`` is "task" (does nothing), "nap" (sleeps 1 ms) or "stamp"."""

    def sender(self, actor: str) -> Callable[[int], object]:
        """The app's own call that sends one message; nothing is put around it."""

    def send_many(self, actor: str, values: range) -> None:
        """Sends them all, in the app's fastest way."""

    def send_group(self, actor: str, values: range) -> None:
        """Sends them as a group whose callback is one more. Only where the case needs it."""

    def ask(self, actor: str, value: int) -> object:
        """Sends one and waits for its result. Only where the case needs it."""

    def send_delayed(self, actor: str, values: range, delay_s: int) -> None:
        """Sends them all, to be run in ``delay_s`` seconds."""

    def send_due(self, count: int, begin_s: float, spread_s: float) -> None:
        """Sends messages that are due at equal distances over a time. Only where the case needs it."""

    def close(self) -> None:
        """Closes what the app opened."""


def loop(app: App, args: argparse.Namespace) -> dict[str, Any]:
    """Single sends, one after the other."""
    send = app.sender(args.actor)
    for i in range(WARM_UP):
        send(i)
    begin = time.perf_counter()
    for i in range(args.count):
        send(i)
    return {"seconds": time.perf_counter() - begin, "sent": WARM_UP + args.count}


def bulk(app: App, args: argparse.Namespace) -> dict[str, Any]:
    """All at once."""
    app.send_many(args.actor, range(WARM_UP))
    begin = time.perf_counter()
    app.send_many(args.actor, range(args.count))
    return {"seconds": time.perf_counter() - begin, "sent": WARM_UP + args.count}


def spaced(app: App, args: argparse.Namespace) -> dict[str, Any]:
    """Single sends with random pauses, each carrying its time; answers how long each call took."""
    send, pause = app.sender(args.actor), random.Random(args.seed).uniform
    for _ in range(WARM_UP):
        send(0)
    took_ns = []
    for _ in range(args.count):
        time.sleep(pause(args.low_ms, args.high_ms) / 1000)
        begin = time.monotonic_ns()
        send(begin)
        took_ns.append(time.monotonic_ns() - begin)
    return {"took_ms": [ns / 1e6 for ns in took_ns], "sent": WARM_UP + args.count}


def asked(app: App, args: argparse.Namespace) -> dict[str, Any]:
    """Single sends with random pauses, each waiting for its result; answers how long each took."""
    pause = random.Random(args.seed).uniform
    for i in range(WARM_UP):
        app.ask(args.actor, i)
    took_ns = []
    for i in range(args.count):
        time.sleep(pause(args.low_ms, args.high_ms) / 1000)
        begin = time.monotonic_ns()
        app.ask(args.actor, i)
        took_ns.append(time.monotonic_ns() - begin)
    return {"took_ms": [ns / 1e6 for ns in took_ns], "sent": WARM_UP + args.count}


def finished(app: App, args: argparse.Namespace) -> dict[str, Any]:
    """All at once, and then waiting until workers have run them."""
    return _until_finished(app.send_many, args, args.count)


def grouped(app: App, args: argparse.Namespace) -> dict[str, Any]:
    """As a group with a callback, and then waiting until workers have run all of it."""
    return _until_finished(app.send_group, args, args.count + 1)


def _until_finished(send: Callable[[str, range], None], args: argparse.Namespace, total: int) -> dict[str, Any]:
    counts = Counts(Path(os.environ[FOLDER_VARIABLE]))
    total += counts.total()
    begin = time.perf_counter()
    send(args.actor, range(args.count))
    while counts.total() < total:
        time.sleep(0.0005)
    return {"seconds": time.perf_counter() - begin, "sent": total}


def flood(app: App, args: argparse.Namespace) -> dict[str, Any]:
    """Bulk sends without a pause, but while more than ``backlog`` wait. Ends after ``seconds``, or when terminated."""
    counts, sent, deadline = Counts(Path(os.environ[FOLDER_VARIABLE])), 0, time.monotonic() + args.seconds
    while time.monotonic() < deadline:
        if sent - counts.total() > args.backlog:
            time.sleep(0.001)
            continue
        app.send_many(args.actor, range(args.count))
        sent += args.count
    return {"sent": sent}


def delayed(app: App, args: argparse.Namespace) -> dict[str, Any]:
    """Messages that are not due while the case runs."""
    begin = time.perf_counter()
    app.send_delayed(args.actor, range(args.count), args.seconds)
    return {"seconds": time.perf_counter() - begin, "sent": args.count}


def scheduled(app: App, args: argparse.Namespace) -> dict[str, Any]:
    """Messages that are due from ``seconds`` from now on, within ``spread``."""
    begin = time.perf_counter()
    app.send_due(args.count, args.seconds, args.spread)
    return {"seconds": time.perf_counter() - begin, "sent": args.count}


COMMANDS = {
    "loop": loop,
    "bulk": bulk,
    "spaced": spaced,
    "asked": asked,
    "finished": finished,
    "grouped": grouped,
    "flood": flood,
    "delayed": delayed,
    "scheduled": scheduled,
}


def parser() -> argparse.ArgumentParser:
    """The arguments of the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.producer")
    parser.add_argument("app", help="the module that sends")
    parser.add_argument("command", choices=sorted(COMMANDS))
    parser.add_argument("actor")
    parser.add_argument("count", type=int, help="messages (flood: a bulk send)")
    parser.add_argument("--low-ms", type=float, default=0.0)
    parser.add_argument("--high-ms", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=int, default=60, help="flood: how long; delayed: the delay")
    parser.add_argument("--spread", type=float, default=8.0, help="scheduled: the time within which all are due")
    parser.add_argument("--backlog", type=int, default=0)
    return parser


def main() -> None:
    """Runs one command and prints its answer."""
    args = parser().parse_args()
    app = cast("App", importlib.import_module(args.app))
    answer = COMMANDS[args.command](app, args)
    app.close()
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
