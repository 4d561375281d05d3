"""The cases by name, in the order in which they run. The first line of a module's docstring says what it measures."""

from __future__ import annotations

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
CASES = {module.__name__.rpartition(".")[2]: module for module in MODULES}


def summary(name: str) -> str:
    """What the case measures, in one line."""
    return (CASES[name].__doc__ or "").splitlines()[0]
