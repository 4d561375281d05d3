"""The cases by name, in the order in which they run.

Without a server a case is a module, with one a function; the first line of the docstring says what it measures.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..harness import Options, Row
from . import (
    backlog,
    coroutines,
    crash_storm,
    delayed_memory,
    drain,
    group_callback,
    idle_cpu,
    idle_start,
    import_time,
    profile,
    prototype,
    rabbitmq,
    redis,
    result_round_trip,
    results_drain,
    scale,
    send,
    send_contended,
    send_many,
)

MODULES = (
    drain,
    send_many,
    send,
    send_contended,
    idle_start,
    scale,
    coroutines,
    idle_cpu,
    backlog,
    delayed_memory,
    result_round_trip,
    results_drain,
    group_callback,
    import_time,
    crash_storm,
    prototype,
    profile,
)
SERVERS = (redis, rabbitmq)


@dataclass(frozen=True, slots=True)
class Case:
    """Something to measure, and its first line of words."""

    run: Callable[[Options], list[Row]]
    summary: str


def _first_line(text: str | None) -> str:
    return (text or "").splitlines()[0]


CASES = {module.__name__.rpartition(".")[2]: Case(module.run, _first_line(module.__doc__)) for module in MODULES}
CASES |= {run.__name__: Case(run, _first_line(run.__doc__)) for module in SERVERS for run in module.CASES}


def summary(name: str) -> str:
    """What the case measures, in one line."""
    return CASES[name].summary
