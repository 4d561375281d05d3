"""A task that does nothing, one worker process, 8 threads: messages drained a second, beside Huey."""

from __future__ import annotations

from statistics import median

from ..draining import Drained, drain
from ..harness import Options, Row, faster, in_turn
from ..systems import greenroom, huey

TARGET = 10.0


def run(options: Options) -> list[Row]:
    """100 000 messages for us, 20 000 for Huey, which is slower by an order of magnitude.

    Eight threads of Huey contend for the lock of its one connection; for a task that does nothing a single thread is
    its best, so that is shown, too.
    """
    ours, peer = options.count(100_000, 20_000), options.count(20_000, 5_000)
    rounds = in_turn(
        options.rounds,
        lambda: drain(options, greenroom(), ours),
        lambda: drain(options, huey(), peer),
        lambda: drain(options, huey(), peer, threads=1),
    )
    eight, huey_eight, huey_one = (rate(found) for found in rounds)
    return [
        faster("drain", eight, huey_eight, at_least=TARGET),
        Row(
            "drain : Huey's best, 1 thread",
            f"{eight:,.0f}/s",
            f"{huey_one:,.0f}/s",
            f"{eight / huey_one:.2f}x",
            "",
            None,
        ),
    ]


def rate(found: list[Drained]) -> float:
    """The median of the rounds."""
    return median(drained.run_per_s for drained in found)
