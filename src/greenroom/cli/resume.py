"""``greenroom resume``: ends the pause of some queues."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from ..brokers.engine import EngineBroker
from ..runtime.exit_codes import ExitCode
from .opening import add_broker_options, run_with_broker
from .parsing import Parser, note
from .pause import add_queues, check_pause, report


def parser() -> Parser:
    """What ``greenroom resume`` takes."""
    parser = Parser(
        prog="greenroom resume",
        description="Lets workers take messages of these queues again; those that wait are woken.",
        examples=("greenroom resume mail",),
    )
    add_queues(parser)
    add_broker_options(parser)
    return parser


def run(words: Sequence[str]) -> int:
    """Runs it; returns the exit code."""
    return run_with_broker(parser(), words, _resume)


def _resume(arguments: argparse.Namespace, broker: EngineBroker) -> int:
    check_pause(broker)
    for queue in sorted(set(arguments.queues) - broker.transport.paused()):
        note(f"queue {queue!r} was not paused")
    broker.transport.resume(arguments.queues)
    report(arguments, broker, "Resumed")
    return ExitCode.OK
