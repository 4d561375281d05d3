"""A group with a callback, from the call of run to the end of the callback, beside as many plain messages."""

from __future__ import annotations

from statistics import median

from ..draining import warm
from ..harness import Options, Row, in_turn, say, scratch, within
from ..systems import greenroom

TARGET = 1.5


def run(options: Options) -> list[Row]:
    """10 000 members a round, with a worker process that is idle before."""
    members = options.count(10_000, 5_000)
    grouped, plain = in_turn(
        options.rounds,
        lambda: seconds(options, "grouped", members),
        lambda: seconds(options, "finished", members),
    )
    return [within("group_callback : plain", median(grouped) / median(plain), None, at_most=TARGET, unit="x")]


def seconds(options: Options, command: str, members: int) -> float:
    """How long it takes to send them and to have them run."""
    with scratch(options) as folder, greenroom().work(folder) as worker:
        warm(greenroom(), folder, worker)
        found: float = greenroom().produce(folder, command, "task", members)["seconds"]
    say(f"{command}: {members:,} in {found:.3f} s")
    return found
