"""``greenroom pause``: keeps all workers from starting messages of some queues."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from ..brokers.engine import EngineBroker
from ..names import check_queue_name, q_name
from ..runtime.exit_codes import ExitCode
from ..settings import did_you_mean
from .opening import CommandError, add_broker_options, run_with_broker
from .parsing import Parser, note
from .tables import print_json


def parser() -> Parser:
    """What ``greenroom pause`` takes."""
    parser = Parser(
        prog="greenroom pause",
        description="Keeps all workers, also those that start later, from taking messages of these queues until "
        "greenroom resume. They know within about a second; what they have taken still runs. Sending goes on.",
        examples=("greenroom pause mail", "greenroom pause mail reports --broker app"),
    )
    add_queues(parser)
    add_broker_options(parser)
    return parser


def add_queues(parser: Parser) -> None:
    """Adds the names of queues."""
    parser.add_argument("queues", metavar="QUEUE", nargs="+", type=queue_name, help="the queues")


def queue_name(text: str) -> str:
    """A type for argparse: the canonical name of a queue."""
    try:
        return q_name(check_queue_name(text))
    except ValueError as e:
        raise argparse.ArgumentTypeError(str(e)) from None


def run(words: Sequence[str]) -> int:
    """Runs it; returns the exit code."""
    return run_with_broker(parser(), words, _pause)


def _pause(arguments: argparse.Namespace, broker: EngineBroker) -> int:
    check_pause(broker)
    note_unheard(arguments.queues, broker)
    broker.transport.pause(arguments.queues)
    report(arguments, broker, "Paused")
    return ExitCode.OK


def check_pause(broker: EngineBroker) -> None:
    """Raises ``CommandError`` if the engine cannot pause queues."""
    if not broker.transport.features.pause:
        raise CommandError(f"{broker!r} cannot pause queues: stop the workers, or start them without the queue (-Q)")


def note_unheard(queues: Sequence[str], broker: EngineBroker) -> None:
    """A misspelt queue would be paused without effect, so what is not known is pointed out."""
    known = {*broker.transport.counts(), *broker.transport.paused(), *broker.get_declared_queues()}
    for queue in queues:
        if queue not in known:
            note(f"there is no message of a queue {queue!r}{did_you_mean(queue, known)}")


def report(arguments: argparse.Namespace, broker: EngineBroker, verb: str) -> None:
    """Says what was done, or what is paused now."""
    if arguments.json:
        print_json({"paused": sorted(broker.transport.paused())})
    else:
        print(f"{verb} {', '.join(arguments.queues)}.")
