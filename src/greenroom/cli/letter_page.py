"""A dead letter in full, as text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ..logging import one_line
from ..ports.admin import DeadLetter
from ..ports.transport import ErrorText
from .showing import ago, call_of, decoded, error_of, moment

#: So many characters of the arguments are shown; all of them with ``--json``.
_ARGUMENTS = 2_000
_ERROR = 4_000


def print_letter(letter: DeadLetter, now_ms: int) -> None:
    """Prints a dead letter: what it is, why it died, and what befell it before."""
    for line in _lines(letter, now_ms):
        print(line)


def _lines(letter: DeadLetter, now_ms: int) -> Iterator[str]:
    yield from _facts(letter, now_ms)
    yield ""
    yield f"Error: {error_of(letter.error, _ERROR) or 'not known'}"
    yield from _traceback(letter.error)
    for number, incident in enumerate(letter.history, 1):
        yield ""
        error = error_of(incident.error, _ERROR) or "not known"
        yield f"Before, {number} of {len(letter.history)}: {moment(incident.at_ms)}, claim {incident.attempt}: {error}"
        yield from _traceback(incident.error)


def _facts(letter: DeadLetter, now_ms: int) -> Iterable[str]:
    message = decoded(letter.body)
    facts: list[tuple[str, object]] = [("id", letter.id), ("queue", letter.queue)]
    if message is not None:
        facts += [("message id", message.message_id), ("sent", moment(message.message_timestamp))]
    facts += [("died", f"{moment(letter.died_ms)}, {ago(letter.died_ms, now_ms)}")]
    facts += [("claims", letter.attempt), ("crashes", letter.crashes)]
    facts += [("call" if message is not None else "body", call_of(letter.body, _ARGUMENTS))]
    if message is None:
        facts += [("begins with", letter.body[:200])]
    elif message.options:
        options = {name: value for name, value in message.options.items() if name != "traceback"}
        facts += [("options", options)]
    width = max(len(name) for name, _ in facts)
    return [f"{name:<{width}}  {one_line(fact, _ARGUMENTS)}" for name, fact in facts]


def _traceback(error: ErrorText | None) -> Iterable[str]:
    """Line by line, each of them escaped."""
    text = "" if error is None else error.traceback
    return [f"    {one_line(line)}" for line in text.splitlines()]
