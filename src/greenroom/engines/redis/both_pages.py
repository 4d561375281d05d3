"""Pages of messages and of dead letters that come from both layouts, and the places in them.

A place of ours is what our own layout says. One among Dramatiq's messages is ``dramatiq:`` and how many of each of the
queue's two lists were shown. One among dead letters is where we stand in both: ours, a bar, and when the last one of
Dramatiq's died and its id.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import structs

from ...ports.admin import DeadLetter, Peeked, State, parse_place
from .dramatiq_admin import DramatiqAdmin
from .dramatiq_layout import Place

_THEIRS = "dramatiq:"

#: When a dead letter of Dramatiq's died, and its id.
Died = tuple[int, str]


def parse_shown(after: str | None) -> tuple[int, int] | None:
    """How many of Dramatiq's two lists were shown; None if we are not there yet.

    Raises:
      ValueError: If it is no place.
    """
    if after is None or not after.startswith(_THEIRS):
        return None
    ready, delayed = parse_place(after[len(_THEIRS) :], 2)
    return ready, delayed


def peek_theirs(
    admin: DramatiqAdmin, queue: str, state: State | None, limit: int, shown: tuple[int, int]
) -> list[Peeked]:
    """The next page of Dramatiq's messages: those that are ready, then those that are delayed."""
    page: list[Peeked] = []
    ready, delayed = shown
    if state in (None, "ready") and not delayed:
        for message in admin.peek(Place(queue), ready, limit):
            ready += 1
            page.append(structs.replace(message, place=f"{_THEIRS}{ready}.0"))
    if state in (None, "delayed") and len(page) < limit:
        for message in admin.peek(Place(queue, True), delayed, limit - len(page)):
            delayed += 1
            page.append(structs.replace(message, place=f"{_THEIRS}{ready}.{delayed}"))
    return page


def parse_letters(after: str | None) -> tuple[str | None, Died | None]:
    """Where we stand among our dead letters, and among Dramatiq's.

    Raises:
      ValueError: If it is no place.
    """
    if after is None:
        return None, None
    ours, bar, theirs = after.partition("|")
    died_ms, dot, id_ = theirs.partition(".")
    if not bar or (theirs and not (dot and died_ms.isdigit())):
        raise ValueError(f"{after!r} is no place: take that of a letter which this broker has shown.")
    return ours or None, (int(died_ms), id_) if theirs else None


def merged(
    ours: Sequence[DeadLetter], theirs: Sequence[DeadLetter], limit: int, ours_at: str | None, theirs_at: Died | None
) -> list[DeadLetter]:
    """One page of both, newest first, with their places."""
    page: list[DeadLetter] = []
    tagged = [(letter, True) for letter in ours] + [(letter, False) for letter in theirs]
    tagged.sort(key=lambda one: (one[0].died_ms, one[0].id) if not one[1] else (one[0].died_ms, ""), reverse=True)
    for letter, is_ours in tagged[:limit]:
        if is_ours:
            ours_at = letter.place
        else:
            theirs_at = (letter.died_ms, letter.id)
        place = f"{ours_at or ''}|{'' if theirs_at is None else f'{theirs_at[0]}.{theirs_at[1]}'}"
        page.append(structs.replace(letter, place=place))
    return page
