"""Async actors: a hundred that sleep, thousands of 1 ms beside a bare loop, and a drain beside that of sync actors."""

from __future__ import annotations

import sys
from statistics import median

from ..draining import drain
from ..harness import Options, Row, faster, in_turn, say, scratch, within
from ..systems import answer, greenroom
from .drain import rate

SLEEPERS_S = 0.3
BARE_SHARE = 0.5
SYNC_SHARE = 0.7


def run(options: Options) -> list[Row]:
    """What a bare loop and sync actors do is the peer's column."""
    messages, coroutines = options.count(100_000, 20_000), options.count(10_000, 10_000)
    asynchronous, synchronous, timed = in_turn(
        options.rounds,
        lambda: drain(options, greenroom(), messages, actor="atask"),
        lambda: drain(options, greenroom(), messages),
        lambda: probe(options, coroutines),
    )
    ours, bare = (coroutines / median(found[name] for found in timed) for name in ("ours", "bare"))
    sleepers_s = median(found["sleepers"] for found in timed)
    return [
        within("coroutines : 100 x 0.1 s", sleepers_s, None, at_most=SLEEPERS_S, unit="s"),
        faster("coroutines : 1 ms, bare loop", ours, bare, at_least=BARE_SHARE),
        faster("coroutines : drain, sync", rate(asynchronous), rate(synchronous), at_least=SYNC_SHARE),
    ]


def probe(options: Options, coroutines: int) -> dict[str, float]:
    """One process that runs a worker itself; seconds by measurement."""
    with scratch(options) as folder:
        line = [sys.executable, "-m", "benchmarks.probes.coroutines", str(coroutines)]
        found: dict[str, float] = answer("coroutines", line, greenroom().environment(folder), folder)
    say(f"coroutines: {', '.join(f'{name} {seconds:.3f} s' for name, seconds in found.items())}")
    return found
