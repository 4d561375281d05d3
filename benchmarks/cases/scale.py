"""An actor that sleeps 1 ms, 8 threads a process: two processes beside one, both ours."""

from __future__ import annotations

from statistics import median

from ..draining import drain
from ..harness import Options, Row, faster, in_turn
from ..systems import greenroom

TARGET = 1.8


def run(options: Options) -> list[Row]:
    """40 000 messages each; timed once every process has run its first."""
    messages = options.count(40_000, 20_000)
    two, one = in_turn(
        options.rounds,
        lambda: drain(options, greenroom(), messages, actor="nap", processes=2),
        lambda: drain(options, greenroom(), messages, actor="nap"),
    )
    rates = [median(r.run_per_s for r in rounds) for rounds in (two, one)]
    return [faster("scale 2 : 1", rates[0], rates[1], at_least=TARGET)]
