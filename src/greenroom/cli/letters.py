"""Which dead letters are meant: by id, or by queue, actor, error and age."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

from ..brokers.engine import EngineBroker
from ..core.durations import duration_ms
from ..names import q_name
from ..ports.admin import DeadLetter
from .opening import CommandError
from .parsing import Parser
from .showing import decoded

#: Looked at in one go, and put back or dropped in one step: that takes some 10 ms, for which workers and senders wait.
STEP = 100


def add_filters(parser: Parser) -> None:
    """Adds the options that say which dead letters are meant. Together they have to hold all."""
    group = parser.add_argument_group("which dead letters (all that hold)")
    group.add_argument("--queue", metavar="QUEUE", help="those of a queue")
    group.add_argument("--actor", metavar="ACTOR", help="those of an actor")
    group.add_argument("--error", metavar="TEXT", help="those whose error, as 'type: message', contains this text")
    group.add_argument("--older-than", metavar="AGE", type=_age_ms, help="those that died longer ago: 90s, 2h, 3d")
    group.add_argument("--newer-than", metavar="AGE", type=_age_ms, help="those that died more recently")


def _age_ms(text: str) -> int:
    try:
        return duration_ms(text)
    except ValueError as e:
        raise argparse.ArgumentTypeError(str(e)) from None


def has_filters(arguments: argparse.Namespace) -> bool:
    """True if any of the options was given."""
    names = ("queue", "actor", "error", "older_than", "newer_than")
    return any(getattr(arguments, name) is not None for name in names)


def matching(broker: EngineBroker, arguments: argparse.Namespace) -> Iterator[DeadLetter]:
    """The dead letters that the options name, newest first, without their history."""
    now_ms = broker.clock.now_ms()
    oldest_ms = 0 if arguments.newer_than is None else now_ms - arguments.newer_than
    newest_ms = now_ms if arguments.older_than is None else now_ms - arguments.older_than
    text = arguments.error.casefold() if arguments.error is not None else None
    for letter in _all(broker, None if arguments.queue is None else q_name(arguments.queue)):
        if letter.died_ms < oldest_ms:
            return
        if arguments.older_than is not None and letter.died_ms > newest_ms:
            continue
        if text is not None and text not in _error_text(letter):
            continue
        if arguments.actor is not None:
            message = decoded(letter.body)
            if message is None or message.actor_name != arguments.actor:
                continue
        yield letter


def _all(broker: EngineBroker, queue: str | None) -> Iterator[DeadLetter]:
    after: str | None = None
    while page := broker.transport.dead(queue, limit=STEP, after=after):
        yield from page
        after = page[-1].place


def _error_text(letter: DeadLetter) -> str:
    return "" if letter.error is None else f"{letter.error.type}: {letter.error.message}".casefold()


def with_ids(broker: EngineBroker, ids: Sequence[str]) -> list[str]:
    """The storage ids of the dead letters that ``ids`` name: each a storage id, or the id of a message.

    Raises:
      CommandError: If one of them names none; the text says which.
    """
    found = {id: [id] for step in steps(ids) for id in (letter.id for letter in broker.transport.dead_letters(step))}
    missing = {id for id in ids if id not in found}
    if missing:
        for letter in _all(broker, None):
            message = decoded(letter.body)
            if message is not None and message.message_id in missing:
                found.setdefault(message.message_id, []).append(letter.id)
    for id in ids:
        if id not in found:
            raise CommandError(f"no dead letter has the id {id!r}, nor a message with it")
    return list(dict.fromkeys(storage_id for id in ids for storage_id in found[id]))


def steps(ids: Iterable[str]) -> Iterator[list[str]]:
    """Ids, as many at a time as go in one step."""
    iterator = iter(ids)
    while step := list(islice(iterator, STEP)):
        yield step
