"""Enqueue, then drain by worker processes: the measurement behind drain, scale and prototype."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from .harness import CannotRun, Options, say, scratch
from .processes import Process
from .recorder import Counts
from .systems import System

LIMIT_S = 90.0
LOOK_S = 0.002


@dataclass(frozen=True, slots=True)
class Drained:
    """Messages a second, on the sender's and on the worker's side."""

    sent_per_s: float
    run_per_s: float


def drain(
    options: Options, system: System, messages: int, *, actor: str = "task", processes: int = 1, threads: int = 8
) -> Drained:
    """Fills a fresh file in bulk, starts workers, and times them from their first executions to the last."""
    with scratch(options) as folder:
        sent = system.produce(folder, "bulk", actor, messages)
        with system.work(folder, processes, threads) as worker:
            rate = timed(worker, Counts(folder), sent["sent"], processes)
        check_once(Counts(folder), sent["sent"])
    found = Drained(messages / sent["seconds"], rate)
    say(f"{system.name}, {processes} x {threads}: sent {found.sent_per_s:,.0f}/s, drained {found.run_per_s:,.0f}/s")
    return found


def timed(worker: Process, counts: Counts, total: int, processes: int) -> float:
    """Executions a second from the moment that every process has run something, start-up left out."""
    deadline = time.monotonic() + LIMIT_S
    first: tuple[float, int] | None = None
    working = 0
    while True:
        by_process, now = counts.by_process(), time.monotonic()
        done = sum(by_process)
        if working < len(by_process) <= processes:
            first, working = (now, done), len(by_process)
        if first is not None and done >= total:
            break
        if now > deadline:
            raise CannotRun(f"only {done} of {total} ran within {LIMIT_S:g} s: {worker.last_words()}")
        worker.check()
        time.sleep(LOOK_S)
    if now == first[0]:
        raise CannotRun(f"{total} messages are too few to be timed")
    return (done - first[1]) / (now - first[0])


def check_once(counts: Counts, total: int) -> None:
    """Nothing died, so nothing may have run twice."""
    ran = counts.total()
    if ran != total:
        raise CannotRun(f"{total} messages were executed {ran} times")


def wait_for(counts: Counts, total: int, worker: Process, limit_s: float = LIMIT_S) -> None:
    """Returns once ``total`` executions have been counted."""
    deadline = time.monotonic() + limit_s
    while counts.total() < total:
        if time.monotonic() > deadline:
            raise CannotRun(f"only {counts.total()} of {total} ran within {limit_s:g} s: {worker.last_words()}")
        worker.check()
        time.sleep(LOOK_S)


def warm(system: System, folder: Path, worker: Process, before: int = 0) -> int:
    """Runs a few messages through an idle worker, so that what is measured next is its steady state.

    ``before`` have run already; the answer is how many have run by now.
    """
    total: int = before + system.produce(folder, "loop", "task", 50)["sent"]
    wait_for(Counts(folder), total, worker)
    return total
