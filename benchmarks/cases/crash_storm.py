"""A worker process is killed each second for 30 s: executions a second, beside the same without kills."""

from __future__ import annotations

import os
import random
import signal
import time
from statistics import median

from ..harness import CannotRun, Options, Row, faster, in_turn, say, scratch
from ..processes import Process, start_time
from ..recorder import Counts
from ..systems import System, greenroom

TARGET = 0.6
PROCESSES = 2
#: Messages lie ready for this many seconds at the rate of the naps, and more, so that no process is ever idle.
NAPS_PER_S = 20_000
WARM_UP_S = 1.0
LOOK_S = 0.005


def run(options: Options) -> list[Row]:
    """Two processes of eight threads, an actor that sleeps 1 ms. One process, drawn by lot, is killed each second, and
    the parent starts another in its place; 10 s in quick mode."""
    seconds = 10 if options.quick else 30
    stormy, calm = in_turn(
        options.rounds,
        lambda: throughput(options, greenroom(), seconds, kills=True),
        lambda: throughput(options, greenroom(), seconds, kills=False),
    )
    return [faster("crash storm : calm", median(stormy), median(calm), at_least=TARGET)]


def throughput(options: Options, system: System, seconds: int, *, kills: bool) -> float:
    """Executions a second while the storm lasts."""
    with scratch(options) as folder:
        system.produce(folder, "bulk", "nap", options.count(seconds * NAPS_PER_S, seconds * NAPS_PER_S))
        with system.work(folder, PROCESSES) as worker:
            counts = Counts(folder)
            wait_for_workers(worker, counts)
            killed, before, began_s = 0, counts.total(), time.monotonic()
            for second in range(1, seconds + 1):
                while (now_s := time.monotonic()) < began_s + second:
                    time.sleep(min(LOOK_S, began_s + second - now_s))
                worker.check()
                counts.total()  # maps what new processes count in, so that what they did is not lost with them
                if kills and second < seconds:
                    killed += kill_one(worker)
            rate = (counts.total() - before) / (time.monotonic() - began_s)
    say(f"{system.name}, {PROCESSES} x 8, {killed} killed: {rate:,.0f}/s")
    return rate


def wait_for_workers(worker: Process, counts: Counts) -> None:
    """Until every process has run something, and a moment longer."""
    deadline_s = time.monotonic() + 30
    while len(counts.by_process()) < PROCESSES:
        worker.check()
        if time.monotonic() > deadline_s:
            raise CannotRun(f"the worker processes do not start: {worker.last_words()}")
        time.sleep(LOOK_S)
    time.sleep(WARM_UP_S)


def kill_one(worker: Process) -> int:
    """Kills one of the processes that run messages; how many that were."""
    children = [pid for pid in worker.tree()[1:] if start_time(pid) is not None]
    if not children:
        return 0
    os.kill(random.choice(children), signal.SIGKILL)
    return 1
