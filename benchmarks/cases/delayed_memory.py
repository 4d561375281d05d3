"""How far 100 000 delayed messages raise the memory (resident set) of a worker's processes."""

from __future__ import annotations

import time

from ..draining import warm
from ..harness import Options, Row, in_turn, say, scratch, within
from ..systems import System, greenroom, huey

TARGET_MB = 20.0
DELAY_S = 3600
SETTLE_S = 5.0
MEGABYTE = 1_000_000


def run(options: Options) -> list[Row]:
    """One round: memory is not noisy."""
    messages = options.count(100_000, 100_000)
    ours, peer = in_turn(
        1, lambda: growth_mb(options, greenroom(), messages), lambda: growth_mb(options, huey(), messages)
    )
    return [within("delayed_memory", ours[0], peer[0], at_most=TARGET_MB, unit="MB")]


def growth_mb(options: Options, system: System, messages: int) -> float:
    """Megabytes gained from before the delayed messages until 5 s after the last and a few immediate ones."""
    with scratch(options) as folder, system.work(folder) as worker:
        sent = warm(system, folder, worker)
        before = worker.rss_bytes()
        system.produce(folder, "delayed", "task", messages, "--seconds", DELAY_S)
        time.sleep(SETTLE_S)
        warm(system, folder, worker, sent)
        grown = (worker.rss_bytes() - before) / MEGABYTE
    say(f"{system.name}: {before / MEGABYTE:.1f} MB before, {grown:+.1f} MB with {messages:,} delayed")
    return grown
