"""``greenroom flush``: deletes the messages of queues."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from ..brokers.engine import EngineBroker
from ..ports.admin import Counts
from ..runtime.exit_codes import ExitCode
from .asking import confirm
from .opening import CommandError, add_broker_options, know_queues, run_with_broker
from .parsing import Parser
from .pause import queue_name
from .tables import print_json


def parser() -> Parser:
    """What ``greenroom flush`` takes."""
    parser = Parser(
        prog="greenroom flush",
        description="Deletes what is ready or delayed in queues, or else what is dead. What workers have claimed "
        "stays. Asks before it deletes more than one message.",
        examples=("greenroom flush mail", "greenroom flush --all --yes", "greenroom flush mail --dead"),
    )
    parser.add_argument("queues", metavar="QUEUE", nargs="*", type=queue_name, help="the queues")
    parser.add_argument("--all", action="store_true", help="all queues")
    parser.add_argument("--dead", action="store_true", help="delete the dead letters, and only these")
    parser.add_argument("--yes", action="store_true", help="do not ask")
    add_broker_options(parser)
    return parser


def run(words: Sequence[str]) -> int:
    """Runs it; returns the exit code."""
    return run_with_broker(parser(), words, _flush)


def _flush(arguments: argparse.Namespace, broker: EngineBroker) -> int:
    if bool(arguments.queues) == arguments.all:
        raise CommandError("name the queues to flush, or else --all (see greenroom flush --help)")
    know_queues(broker, arguments.queues)
    counts: dict[str, Counts] = broker.transport.counts(None if arguments.all else arguments.queues)
    total = sum(_doomed(known, dead=arguments.dead) for known in counts.values())
    is_exact = arguments.dead or broker.transport.features.counts_delayed
    queues = sorted(queue for queue, known in counts.items() if _doomed(known, dead=arguments.dead) or not is_exact)
    what = "dead letter" if arguments.dead else "message"
    if total > 1 or not is_exact:
        those = f"{total} {what}s" if is_exact else f"{total} ready and all delayed messages"
        question = f"Delete {those} of {_listed(queues)}?"
        if not confirm(question, yes=arguments.yes):
            return ExitCode.KILLED
    deleted = {queue: broker.purge(queue, dead=arguments.dead) for queue in queues}
    if arguments.json:
        print_json({"deleted": deleted})
    else:
        number = sum(deleted.values())
        print(f"Deleted {number} {what}{'' if number == 1 else 's'}.")
    return ExitCode.OK


def _doomed(counts: Counts, *, dead: bool) -> int:
    return counts.dead if dead else counts.ready + counts.delayed


def _listed(queues: Sequence[str]) -> str:
    return ", ".join(queues) if len(queues) <= 5 else f"{len(queues)} queues"
