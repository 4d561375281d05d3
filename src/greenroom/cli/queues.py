"""``greenroom queues``: how many messages each queue holds."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from ..brokers.engine import EngineBroker
from ..core.durations import human_duration
from ..ports.admin import Counts
from ..runtime.exit_codes import ExitCode
from .opening import add_broker_options, run_with_broker
from .parsing import Parser
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
            "greenroom queues --json | jq '.queues[].ready'",
        ),
    )
    add_broker_options(parser)
    return parser


def run(words: Sequence[str]) -> int:
    """Runs it; returns the exit code."""
    return run_with_broker(parser(), words, _show)


def _show(arguments: argparse.Namespace, broker: EngineBroker) -> int:
    queues = _look(broker)
    if arguments.json:
        print_json({"queues": queues})
    elif queues:
        print_table(_COLUMNS, (_row(queue) for queue in queues))
    else:
        print("There are no messages, and no queue is paused.")
    return ExitCode.OK


def _look(broker: EngineBroker) -> list[dict[str, Any]]:
    admin = broker.transport
    counts: dict[str, Counts] = admin.counts()
    paused = admin.paused() if admin.features.pause else set()
    now_ms = broker.clock.now_ms()
    queues = []
    for name in sorted({*counts, *paused, *broker.get_declared_queues()}):
        known = counts.get(name, Counts())
        heads = admin.peek(name, state="ready", limit=1) if known.ready else ()
        queues.append(
            {
                "queue": name,
                "ready": known.ready,
                "delayed": known.delayed,
                "claimed": known.claimed,
                "dead": known.dead,
                "next_waiting_ms": next((waiting_ms(head, now_ms) for head in heads), None),
                "paused": name in paused,
            }
        )
    return queues


def _row(queue: dict[str, Any]) -> list[object]:
    name, *numbers, waiting, is_paused = queue.values()
    return [name, *numbers, "" if waiting is None else human_duration(waiting), "paused" if is_paused else ""]
