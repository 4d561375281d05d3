"""``greenroom peek``: the messages of a queue, in the order of their turns."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence

from ..brokers.engine import EngineBroker
from ..core.durations import human_duration
from ..names import q_name
from ..ports.admin import STATES, Peeked
from ..runtime.exit_codes import ExitCode
from .opening import CommandError, add_broker_options, run_with_broker
from .parsing import Parser
from .showing import call_of, error_of, peeked_fields
from .tables import Column, print_json, print_table

_COLUMNS = (
    Column("ID"),
    Column("STATE"),
    Column("PRIORITY", is_number=True),
    Column("CLAIMS", is_number=True),
    Column("CRASHES", is_number=True),
    Column("NOTE"),
    Column("MESSAGE", may_be_cut=True),
    Column("LAST ERROR", may_be_cut=True),
)
#: More than a page of these is nothing for the eye.
DEFAULT_LIMIT = 20


def parser() -> Parser:
    """What ``greenroom peek`` takes."""
    parser = Parser(
        prog="greenroom peek",
        description="Shows the messages of a queue and changes nothing: what workers have claimed, then what is ready "
        "in the order of its turns, then what is delayed, the earliest first. Arguments are cut short; --json has them "
        "in full.",
        examples=(
            "greenroom peek default",
            "greenroom peek mail --state delayed --limit 5",
            "greenroom peek mail --json",
        ),
    )
    parser.add_argument("queue", metavar="QUEUE", help="the queue")
    parser.add_argument("--state", choices=STATES, help="only messages in this state")
    parser.add_argument(
        "--limit", metavar="N", type=at_least(1), default=DEFAULT_LIMIT, help="show so many (default: %(default)s)"
    )
    add_broker_options(parser)
    return parser


def at_least(least: int) -> Callable[[str], int]:
    """A type for argparse: whole numbers from ``least`` on."""

    def check(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = least - 1
        if number < least:
            raise argparse.ArgumentTypeError(f"must be a whole number of at least {least}, not {text!r}")
        return number

    return check


def run(words: Sequence[str]) -> int:
    """Runs it; returns the exit code."""
    return run_with_broker(parser(), words, _show)


def _show(arguments: argparse.Namespace, broker: EngineBroker) -> int:
    queue = q_name(arguments.queue)
    _check_state(broker, arguments.state)
    messages: list[Peeked] = []
    # One more than asked for tells whether there are more; a page may end early where bodies are large.
    while len(messages) <= arguments.limit:
        after = messages[-1].place if messages else None
        left = arguments.limit + 1 - len(messages)
        page = broker.transport.peek(queue, state=arguments.state, limit=left, after=after)
        if not page:
            break
        messages += page
    has_more = len(messages) > arguments.limit
    messages = messages[: arguments.limit]
    if arguments.json:
        print_json({"messages": [peeked_fields(message) for message in messages], "more": has_more})
    elif not messages:
        print(f"There are no {arguments.state + ' ' if arguments.state else ''}messages in queue {queue!r}.")
    else:
        print_table(_COLUMNS, (_row(message, broker.clock.now_ms()) for message in messages))
        if has_more:
            print("There are more; --limit N shows N.")
    return ExitCode.OK


def _check_state(broker: EngineBroker, state: str | None) -> None:
    features = broker.transport.features
    seen = {"claimed": features.counts_claimed, "delayed": features.counts_delayed}
    if state is not None and not seen.get(state, True):
        raise CommandError(f"{broker!r} cannot show what is {state}: only what is ready")


def _row(message: Peeked, now_ms: int) -> list[object]:
    last = message.last.error if message.last is not None else None
    return [
        message.id,
        message.state,
        message.priority,
        message.attempt,
        message.crashes,
        _note(message, now_ms),
        call_of(message.body),
        error_of(last),
    ]


def _note(message: Peeked, now_ms: int) -> str:
    if message.owner:
        return f"by {message.owner}"
    if message.due_ms is None:
        return ""
    return f"in {human_duration(message.due_ms - now_ms)}" if message.due_ms > now_ms else "due"
