"""Claiming 100 messages with 1 000 000 waiting, beside the same with 10 000: the engine alone."""

from __future__ import annotations

import sys
from statistics import median

from ..harness import Options, Row, say, scratch
from ..systems import System, answer, greenroom

TARGET = 2.0
CLAIMS = 30


def run(options: Options) -> list[Row]:
    """Two files, claims in turn, in one process; settled between, outside the clock and inside a second one."""
    return claims("backlog", options, greenroom())


def claims(case: str, options: Options, system: System) -> list[Row]:
    """The same, on the engine of the system's settings."""
    waiting = options.count(1_000_000, 200_000)
    with scratch(options) as folder:
        line = [sys.executable, "-m", "benchmarks.probes.backlog", str(waiting), str(CLAIMS * options.rounds)]
        found = answer(case, line, system.environment(folder), folder)
    say(f"filled {waiting:,} in {found['filled_s']:.1f} s; 100 claimed, then 100 settled and 100 claimed in one trip")
    return [
        row(f"{case} {name}", median(found["large"][key]), median(found["small"][key]))
        for name, key in (("claim", "claim_ms"), ("settle + claim", "turn_ms"))
    ]


def row(case: str, large: float, small: float) -> Row:
    """Here the small queue stands beside, and the ratio is a cost: less is better."""
    ratio = large / small
    return Row(case, f"{large:.3g} ms", f"{small:.3g} ms", f"{ratio:.2f}x", f"<= {TARGET:g}x", ratio <= TARGET)
