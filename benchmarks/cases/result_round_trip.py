"""From the call of send to the actor's result, which the sender waits for, with an idle worker process: the median."""

from __future__ import annotations

from ..draining import warm
from ..harness import Options, Row, in_turn, medians, percentile, say, scratch, within
from ..systems import greenroom_with_results

TARGET_P50_MS = 5.0
PAUSE_MS = (5, 40)


def run(options: Options) -> list[Row]:
    """1 000 messages a round, 5 to 40 ms apart at random."""
    sends = options.count(1_000, 300)
    (ours,) = in_turn(options.rounds, lambda: round_trips(options, sends))
    return [within("result_round_trip p50", medians(ours, 0.5), None, at_most=TARGET_P50_MS, unit="ms")]


def round_trips(options: Options, sends: int) -> list[float]:
    """Milliseconds from each send to its result."""
    system = greenroom_with_results()
    pauses = ("--low-ms", PAUSE_MS[0], "--high-ms", PAUSE_MS[1])
    with scratch(options) as folder, system.work(folder) as worker:
        warm(system, folder, worker)
        found: list[float] = system.produce(folder, "asked", "task", sends, *pauses)["took_ms"]
    p50, p99 = percentile(found, 0.5), percentile(found, 0.99)
    say(f"{system.name}: result p50 {p50:.2f} ms, p99 {p99:.2f} ms, max {max(found):.1f} ms of {len(found)}")
    return found
