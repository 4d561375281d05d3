"""``greenroom dead``: lists, shows, replays and drops dead letters."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import Any

from ..brokers.engine import EngineBroker
from ..names import q_name
from ..ports.admin import DeadLetter
from ..runtime.exit_codes import ExitCode
from .asking import Progress, confirm, stop_between_steps
from .letter_page import print_letter
from .letters import add_filters, has_filters, matching, steps, with_ids
from .opening import Act, CommandError, add_broker_options, know_queues, run_with_broker
from .parsing import Parser
from .peek import DEFAULT_LIMIT, at_least
from .showing import actor_of, ago, decoded, error_of, letter_fields
from .tables import Column, print_json, print_table

_COLUMNS = (
    Column("ID"),
    Column("QUEUE"),
    Column("ACTOR"),
    Column("DIED"),
    Column("RETRIES", is_number=True),
    Column("CRASHES", is_number=True),
    Column("ERROR", may_be_cut=True),
)
_ID_HELP = "of a letter, as the list shows it, or of its message"


def parser() -> Parser:
    """What ``greenroom dead`` takes."""
    parser = Parser(
        prog="greenroom dead",
        description="Messages that are not tried again: lists them, shows one in full, puts them back into their "
        "queues or deletes them. They are kept for seven days, unless the broker was told otherwise.",
        examples=("greenroom dead list", "greenroom dead replay --help"),
    )
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    _add_list(actions)
    _add_show(actions)
    _add_deed(
        actions,
        "replay",
        _replay,
        what="put them back into their queues",
        how="Puts dead letters back into their queues, to be run as if they had just been sent, with all retries. "
        "Their history goes along.",
        examples=("3f0c9e7d52aa41b7c0de1", "--error ConnectionError --newer-than 2h", "--all --yes"),
    )
    _add_deed(
        actions,
        "drop",
        _drop,
        what="delete them",
        how="Deletes dead letters.",
        examples=("3f0c9e7d52aa41b7c0de1", "--actor send_mail --older-than 3d"),
    )
    return parser


def _add_list(actions: Any) -> None:
    parser = actions.add_parser(
        "list",
        help="list them, newest first",
        description="Lists dead letters, newest first, without their arguments.",
        examples=("greenroom dead list --actor send_mail --newer-than 1d", "greenroom dead list --limit 0 --json"),
    )
    parser.add_argument(
        "--limit",
        metavar="N",
        type=at_least(0),
        default=DEFAULT_LIMIT,
        help="list so many; 0 for all (default: %(default)s)",
    )
    add_filters(parser)
    add_broker_options(parser)
    parser.set_defaults(act=_list)


def _add_show(actions: Any) -> None:
    parser = actions.add_parser(
        "show",
        help="show one in full",
        description="Shows a dead letter: its call, its error, and all that befell it before.",
        examples=("greenroom dead show 3f0c9e7d52aa41b7c0de1",),
    )
    parser.add_argument("id", metavar="ID", help=_ID_HELP)
    parser.add_argument("--queue", metavar="QUEUE", help="where it is, for a broker that does not list its queues")
    add_broker_options(parser)
    parser.set_defaults(act=_show)


def _add_deed(actions: Any, name: str, act: Act, *, what: str, how: str, examples: Iterable[str]) -> None:
    parser = actions.add_parser(
        name,
        help=what,
        description=f"{how} Asks before it touches more than one.",
        examples=[f"greenroom dead {name} {example}" for example in examples],
    )
    parser.add_argument("ids", metavar="ID", nargs="*", help=_ID_HELP)
    parser.add_argument("--all", action="store_true", help="all dead letters")
    parser.add_argument("--yes", action="store_true", help="do not ask")
    add_filters(parser)
    add_broker_options(parser)
    parser.set_defaults(act=act)


def run(words: Sequence[str]) -> int:
    """Runs it; returns the exit code."""
    return run_with_broker(parser(), words, lambda arguments, broker: int(arguments.act(arguments, broker)))


def _list(arguments: argparse.Namespace, broker: EngineBroker) -> int:
    _know_queue(arguments, broker)
    found = matching(broker, arguments)
    letters = list(islice(found, arguments.limit or None))
    has_more = next(found, None) is not None
    if arguments.json:
        print_json({"dead": [letter_fields(letter, in_full=False) for letter in letters], "more": has_more})
    elif not letters:
        print("There are no such dead letters." if has_filters(arguments) else "There are no dead letters.")
    else:
        print_table(_COLUMNS, (_row(letter, broker.clock.now_ms()) for letter in letters))
        if has_more:
            print("There are more; --limit N lists N, --limit 0 all.")
    return ExitCode.OK


def _know_queue(arguments: argparse.Namespace, broker: EngineBroker) -> None:
    know_queues(broker, [] if arguments.queue is None else [q_name(arguments.queue)])


def _row(letter: DeadLetter, now_ms: int) -> list[object]:
    message = decoded(letter.body)
    retries = "?" if message is None else message.options.get("retries", 0)
    return [
        letter.id,
        letter.queue,
        actor_of(message),
        ago(letter.died_ms, now_ms),
        retries,
        letter.crashes,
        error_of(letter.error),
    ]


def _show(arguments: argparse.Namespace, broker: EngineBroker) -> int:
    _know_queue(arguments, broker)
    letters = broker.transport.dead_letters(with_ids(broker, [arguments.id])[:1])
    if not letters:
        raise CommandError(f"the dead letter {arguments.id!r} has just gone")
    if arguments.json:
        print_json(letter_fields(letters[0], in_full=True))
    else:
        print_letter(letters[0], broker.clock.now_ms())
    return ExitCode.OK


def _replay(arguments: argparse.Namespace, broker: EngineBroker) -> int:
    return _do(arguments, broker, "Replay", "Replayed", broker.replay)


def _drop(arguments: argparse.Namespace, broker: EngineBroker) -> int:
    return _do(arguments, broker, "Drop", "Dropped", broker.transport.drop)


def _do(
    arguments: argparse.Namespace, broker: EngineBroker, verb: str, past: str, deed: Callable[[list[str]], int]
) -> int:
    """Works through the chosen letters in steps. Between two steps it may be stopped: what is done is done, what is not
    is dead still."""
    ids = _chosen(arguments, broker)
    if len(ids) > 1 and not confirm(f"{verb} {len(ids)} dead letters?", yes=arguments.yes):
        return ExitCode.KILLED
    done = 0
    progress = Progress(past, len(ids))
    with stop_between_steps() as is_stopped:
        for step in steps(ids):
            if is_stopped():
                break
            done += deed(step)
            progress.show(done)
        was_stopped = is_stopped()
    progress.clear()
    if arguments.json:
        print_json({past.lower(): done, "chosen": len(ids), "interrupted": was_stopped})
    elif not ids:
        print("There are no such dead letters.")
    else:
        print(f"{'Interrupted. ' if was_stopped else ''}{past} {done} of {len(ids)} dead letters.")
    return ExitCode.KILLED if was_stopped else ExitCode.OK


def _chosen(arguments: argparse.Namespace, broker: EngineBroker) -> list[str]:
    _know_queue(arguments, broker)
    if arguments.ids and not broker.transport.features.lists_queues:
        arguments.queue = None  # it has said where they are
    ways = [bool(arguments.ids), has_filters(arguments), arguments.all]
    if sum(ways) != 1:
        raise CommandError("say which dead letters: by their ids, by options such as --actor, or --all (see --help)")
    if arguments.ids:
        return with_ids(broker, arguments.ids)
    return [letter.id for letter in matching(broker, arguments)]
