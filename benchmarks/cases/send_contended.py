"""Single sends while another process sends in bulk and a worker drains the same file: the 99th percentile."""

from __future__ import annotations

from statistics import median

from ..draining import LIMIT_S, wait_for
from ..harness import CannotRun, Options, Row, in_turn, percentile, say, scratch, within
from ..recorder import Counts
from ..systems import System, greenroom, huey

TARGET_MS = 12.0
CHUNK = 10_000
BACKLOG = 200_000


def run(options: Options) -> list[Row]:
    """1 000 sends a round, 0.5 to 4 ms apart."""
    sends = options.count(1_000, 300)
    ours, peer = in_turn(
        options.rounds, lambda: contended(options, greenroom(), sends), lambda: contended(options, huey(), sends)
    )
    figures = [median(percentile(took, 0.99) for took in rounds) for rounds in (ours, peer)]
    return [within("send_contended p99", figures[0], figures[1], at_most=TARGET_MS, unit="ms")]


def contended(options: Options, system: System, sends: int) -> list[float]:
    """How long each single send took, in milliseconds, while the two others were at work."""
    with scratch(options) as folder, system.work(folder) as worker:
        flood = system.flood(folder, CHUNK if system.name != "huey" else 100, BACKLOG)
        try:
            wait_for(Counts(folder), 1_000, worker, LIMIT_S)
            before = Counts(folder).total()
            took: list[float] = system.produce(folder, "spaced", "stamp", sends, "--low-ms", 0.5, "--high-ms", 4)[
                "took_ms"
            ]
            drained = Counts(folder).total() - before
            flood.check()
        finally:
            flood.abort()
    if drained < sends:
        raise CannotRun(f"{system.name}: the worker stood still beside the senders ({drained} executions)")
    p50, p99 = percentile(took, 0.5), percentile(took, 0.99)
    say(f"{system.name}: send p50 {p50:.3f} ms, p99 {p99:.2f} ms, max {max(took):.1f} ms; {drained:,} drained beside")
    return took
