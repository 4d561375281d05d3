"""The drain of a task that does nothing, with every result kept, beside the same without results."""

from __future__ import annotations

from statistics import median

from ..draining import drain
from ..harness import Options, Row, faster, in_turn
from ..systems import greenroom, greenroom_with_results

TARGET = 0.5


def run(options: Options) -> list[Row]:
    """100 000 messages each."""
    messages = options.count(100_000, 20_000)
    kept, plain = in_turn(
        options.rounds,
        lambda: drain(options, greenroom_with_results(), messages).run_per_s,
        lambda: drain(options, greenroom(), messages).run_per_s,
    )
    return [faster("results_drain", median(kept), median(plain), at_least=TARGET)]
