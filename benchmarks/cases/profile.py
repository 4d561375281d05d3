"""Where the time of a message goes, by part, in microseconds; no target."""

from __future__ import annotations

import sys
from typing import Any

from ..harness import Options, Row, say, scratch
from ..systems import answer, greenroom

WHOLE = "memory engine, default middleware, 8 threads"
BARE = "memory engine, no middleware, 8 threads"


def run(options: Options) -> list[Row]:
    """Parts alone in one thread; then the whole runtime with and without middleware, in memory and on SQLite."""
    messages = options.count(100_000, 30_000)
    with scratch(options) as folder:
        command = [sys.executable, "-m", "benchmarks.probes.profile", str(messages), str(options.rounds)]
        found = answer("profile", command, greenroom().environment(folder), folder)
    for text in report(found):
        say(text)
    return []


def report(found: dict[str, Any]) -> list[str]:
    """The profile as lines of text. The rest is what the parts, each alone, do not explain of the whole."""
    parts, whole = found["parts"], found["whole"]
    lines = [f"{'µs a message':56}{'wall':>8}{'CPU':>8}"]
    lines.extend(line(f"{group}: {part}", *cost) for group, costs in parts.items() for part, cost in costs.items())
    lines.extend(line(f"whole: {name}", *cost) for name, cost in whole.items())
    explained = [*parts["worker"].values(), parts["memory engine"]["settle and claim, 1 000 at a time"]]
    rest = [whole[WHOLE][i] - sum(cost[i] for cost in explained) for i in (0, 1)]
    hooks = [whole[WHOLE][i] - whole[BARE][i] for i in (0, 1)]
    return [
        *lines,
        line("so: hand-over, context, call, verdict, pump", *rest),
        line("so: the middleware, by leaving it out", *hooks),
    ]


def line(name: str, wall: float, cpu: float) -> str:
    """One line of the profile."""
    return f"{name:56}{wall:8.2f}{cpu:8.2f}"
