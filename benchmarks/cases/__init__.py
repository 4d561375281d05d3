"""The cases by name, in the order in which they run. The first line of a module's docstring says what it measures."""

from __future__ import annotations

from . import (
    backlog,
    coroutines,
    delayed_memory,
    drain,
    idle_cpu,
    idle_start,
    import_time,
    profile,
    prototype,
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
    import_time,
    prototype,
    profile,
)
CASES = {module.__name__.rpartition(".")[2]: module for module in MODULES}


def summary(name: str) -> str:
    """What the case measures, in one line."""
    return (CASES[name].__doc__ or "").splitlines()[0]
