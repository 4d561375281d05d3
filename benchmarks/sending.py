"""Timed sends without a worker: the measurement behind send and send_many."""

from __future__ import annotations

from statistics import median

from .harness import Options, Row, faster, in_turn, say, scratch
from .systems import System, greenroom, huey


def sent_per_s(case: str, options: Options, command: str, messages: int, target: float) -> Row:
    """Sends ``messages`` through Greenroom and at most 20 000 through Huey, each to a fresh file."""

    def rate(system: System, count: int) -> float:
        with scratch(options) as folder:
            found = count / system.produce(folder, command, "task", count)["seconds"]
        say(f"{system.name}: sent {found:,.0f}/s")
        return float(found)

    ours, peer = in_turn(
        options.rounds, lambda: rate(greenroom(), messages), lambda: rate(huey(), min(messages, 20_000))
    )
    return faster(case, median(ours), median(peer), at_least=target)
