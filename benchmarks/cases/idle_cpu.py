"""Processor time that an idle worker (all its processes) uses, in percent of one core."""

from __future__ import annotations

import time
from statistics import median

from ..draining import warm
from ..harness import Options, Row, in_turn, say, scratch, within
from ..systems import System, greenroom, huey

TARGET_PERCENT = 0.5
SETTLE_S = 2.0
WATCH_S = 10.0


def run(options: Options) -> list[Row]:
    """10 s of idleness after a few messages; in quick mode one round."""
    rounds = 1 if options.quick else options.rounds
    ours, peer = in_turn(rounds, lambda: percent(options, greenroom()), lambda: percent(options, huey()))
    return [within("idle_cpu", median(ours), median(peer), at_most=TARGET_PERCENT, unit="%")]


def percent(options: Options, system: System) -> float:
    """The share of one core, in percent, over ``WATCH_S``."""
    with scratch(options) as folder, system.work(folder) as worker:
        warm(system, folder, worker)
        time.sleep(SETTLE_S)
        used, begin = worker.cpu_s(), time.monotonic()
        time.sleep(WATCH_S)
        used, elapsed = worker.cpu_s() - used, time.monotonic() - begin
        worker.check()
    share = 100 * used / elapsed
    say(f"{system.name}: {share:.2f} % of a core while idle")
    return share
