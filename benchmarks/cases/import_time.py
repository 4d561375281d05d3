"""``import greenroom`` in a fresh process, start of the interpreter left out."""

from __future__ import annotations

import platform
from statistics import median

from ..harness import Options, Row, in_turn, say, scratch, within
from ..systems import System, answer, greenroom, huey

TARGET_MS = 60.0
CODE = """
import json, time
begin = time.perf_counter()
import {first}
end = time.perf_counter()
import {then}
print(json.dumps([(end - begin) * 1e3, (time.perf_counter() - begin) * 1e3]))
"""


def run(options: Options) -> list[Row]:
    """11 processes each after one that fills the caches; then, without a target, what a worker imports on top."""
    rounds = 5 if options.quick else 11

    def measure(system: System, first: str, then: str) -> list[float]:
        with scratch(options) as folder:
            line = [system.python, "-c", CODE.format(first=first, then=then)]
            return list(answer(f"import {first}", line, system.environment(folder), folder))

    measures = (
        lambda: measure(greenroom(), "greenroom", "greenroom.brokers.sqlite, greenroom.worker"),
        lambda: measure(huey(), "huey", "huey.consumer"),
    )
    in_turn(1, *measures)
    ours, peer = in_turn(rounds, *measures)
    bare, worker = ([median(times[i] for times in found) for found in (ours, peer)] for i in (0, 1))
    say(f"greenroom {bare[0]:.1f} ms, huey {bare[1]:.1f} ms; Python {platform.python_version()}")
    return [
        within("import_time", bare[0], bare[1], at_most=TARGET_MS, unit="ms"),
        Row(
            "import_time with a worker",
            f"{worker[0]:.3g} ms",
            f"{worker[1]:.3g} ms",
            f"{worker[1] / worker[0]:.1f}x",
            "",
            None,
        ),
    ]
