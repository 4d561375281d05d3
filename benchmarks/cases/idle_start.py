"""From the call of send to the start of the actor in an idle worker process: median and 99th percentile."""

from __future__ import annotations

from ..draining import wait_for, warm
from ..harness import Options, Row, in_turn, medians, percentile, say, scratch, within
from ..recorder import Counts, start_latencies_ms
from ..systems import System, greenroom, huey

TARGET_P50_MS = 1.0
TARGET_P99_MS = 5.0
PAUSE_MS = (5, 40)


def run(options: Options) -> list[Row]:
    """1 000 sends a round, 5 to 40 ms apart at random; Huey polls each 10 ms (README.md)."""
    sends = options.count(1_000, 300)
    ours, peer = in_turn(
        options.rounds, lambda: latencies(options, greenroom(), sends), lambda: latencies(options, huey(), sends)
    )
    return [
        within(f"idle_start {name}", medians(ours, share), medians(peer, share), at_most=target, unit="ms")
        for name, share, target in (("p50", 0.5, TARGET_P50_MS), ("p99", 0.99, TARGET_P99_MS))
    ]


def latencies(options: Options, system: System, sends: int) -> list[float]:
    """Milliseconds from each send to the start of its message."""
    pauses = ("--low-ms", PAUSE_MS[0], "--high-ms", PAUSE_MS[1])
    with scratch(options) as folder, system.work(folder) as worker:
        sent = warm(system, folder, worker)
        sent += system.produce(folder, "spaced", "stamp", sends, *pauses)["sent"]
        wait_for(Counts(folder), sent, worker, 30.0)
        found = start_latencies_ms(folder)
    p50, p99 = percentile(found, 0.5), percentile(found, 0.99)
    say(f"{system.name}: start p50 {p50:.2f} ms, p99 {p99:.2f} ms, max {max(found):.1f} ms of {len(found)}")
    return found
