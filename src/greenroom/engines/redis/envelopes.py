"""Envelopes as arguments of scripts."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from operator import attrgetter

from ...core.chunks import in_chunks
from ...errors import MessageTooLarge
from ...ports.transport import Envelope
from .connection import Argument
from .key_table import KeyTable
from .keys import PRIORITY_BASE, SEQ_SPAN

#: The base of a ready score, by priority.
BASES = [b"%d" % (number * SEQ_SPAN) for number in range(2 * PRIORITY_BASE + 1)]

#: How many messages a run has at most: Lua hands over no more than 8 000 values at a time.
LONGEST_RUN = 1000

_run_of = attrgetter("queue", "priority", "due_ms")


def check_envelope(envelope: Envelope, max_body: int) -> None:
    """Raises ``MessageTooLarge`` for a body of more than ``max_body`` bytes, and ``ValueError`` for what no key can be
    named after, or no number says."""
    size = len(envelope.body)
    if size > max_body:
        raise MessageTooLarge(f"A body of {size} bytes is over the limit of {max_body}.", size=size, limit=max_body)
    if not -PRIORITY_BASE <= envelope.priority <= PRIORITY_BASE:
        raise ValueError(f"A priority is from {-PRIORITY_BASE} to {PRIORITY_BASE}, not {envelope.priority}.")
    if not envelope.queue.isascii():
        envelope.queue.encode()


def runs_of(batch: Sequence[Envelope], table: KeyTable) -> tuple[int, list[Argument]]:
    """Envelopes as runs, see ``pushing.lua``: how many these are, and their arguments."""
    args: list[Argument] = []
    count = 0
    for (queue, priority, due_ms), run in groupby(batch, _run_of):
        due = "" if due_ms is None else due_ms
        for envelopes in in_chunks(run, LONGEST_RUN):
            args += (table.of(queue), queue, base_of(priority), due, len(envelopes))
            for envelope in envelopes:
                args += (envelope.id, envelope.body)
            count += 1
    return count, args


def base_of(priority: int) -> bytes:
    """The ready score without the sequence number."""
    return BASES[priority + PRIORITY_BASE]
