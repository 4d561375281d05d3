"""``greenroom queues``: how many messages each queue holds."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from ..brokers.engine import EngineBroker
from ..core.durations import human_duration
from ..ports.admin import Counts
from ..runtime.exit_codes import ExitCode
from .opening import add_broker_options, know_queues, run_with_broker
from .parsing import Parser
from .pause import queue_name
from .showing import waiting_ms
from .tables import Column, print_json, print_table

_COLUMNS = (
    Column("QUEUE"),
    Column("READY", is_number=True),
    Column("DELAYED", is_number=True),
    Column("CLAIMED", is_number=True),
    Column("DEAD", is_number=True),
    Column("NEXT WAITS", is_number=True),
    Column("STATUS"),
)


def parser() -> Parser:
    """What ``greenroom queues`` takes."""
    parser = Parser(
        prog="greenroom queues",
        description="Shows how many messages of each queue are ready, delayed until later, claimed by a worker, and "
        "dead; and how long the one whose turn is next has been waiting.",
        examples=(
            "greenroom queues",
            "greenroom queues --broker app",
            "greenroom queues mail reports",
            "greenroom queues --json | jq '.queues[].ready'",
        ),
    )
    parser.add_argument("queues", metavar="QUEUE", nargs="*", type=queue_name, help="only these (default: all)")
    add_broker_options(parser)
    return parser


def run(words: Sequence[str]) -> int:
    """Runs it; returns the exit code."""
    return run_with_broker(parser(), words, _show)


def _show(arguments: argparse.Namespace, broker: EngineBroker) -> int:
    know_queues(broker, arguments.queues)
    queues = _look(broker, arguments.queues)
    if arguments.json:
        print_json({"queues": queues})
    elif queues:
        print_table(_COLUMNS, (_row(queue) for queue in queues))
    else:
        print("There are no messages, and no queue is paused.")
    return ExitCode.OK


def _look(broker: EngineBroker, names: Sequence[str]) -> list[dict[str, Any]]:
    admin, features = broker.transport, broker.transport.features
    counts: dict[str, Counts] = admin.counts(names or None)
    paused = admin.paused() if features.pause else set()
    now_ms = broker.clock.now_ms()
    queues = []
    for name in sorted(set(names) or {*counts, *paused, *broker.get_declared_queues()}):
        known = counts.get(name, Counts())
        # Who does not see claims sees a message by claiming it: too much for those who only count, again and again.
        heads = admin.peek(name, state="ready", limit=1) if known.ready and features.counts_claimed else ()
        queues.append(
            {
                "queue": name,
                "ready": known.ready,
                "delayed": known.delayed if features.counts_delayed else None,
                "claimed": known.claimed if features.counts_claimed else None,
                "dead": known.dead,
                "next_waiting_ms": next((waiting_ms(head, now_ms) for head in heads), None),
                "paused": name in paused,
            }
        )
    return queues


def _row(queue: dict[str, Any]) -> list[object]:
    name, *numbers, waiting, is_paused = queue.values()
    numbers = ["?" if number is None else number for number in numbers]
    return [name, *numbers, "" if waiting is None else human_duration(waiting), "paused" if is_paused else ""]
