"""What all cases share: options, rounds in turn, percentiles, temporary folders, the table."""

from __future__ import annotations

import contextlib
import math
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")


class CannotRun(Exception):
    """A case could not be measured; the message says why, in one line."""


class Skipped(Exception):
    """A case that was not asked for, in a way that its message explains."""


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line asks of every case.

    ``messages`` is None for the default of the case. ``prototype`` is the folder of the yardstick.
    """

    rounds: int = 3
    messages: int | None = None
    quick: bool = False
    prototype: Path | None = None
    folder: Path | None = None

    def count(self, full: int, quick: int) -> int:
        """How many messages: as the command line says, else ``full``, or ``quick`` in quick mode."""
        return self.messages or (quick if self.quick else full)


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table. ``ok`` is None where there is no target."""

    case: str
    ours: str
    peer: str
    ratio: str
    target: str
    ok: bool | None


def faster(case: str, ours: float, peer: float, *, at_least: float, unit: str = "/s") -> Row:
    """Rates, where the target is a multiple of the peer's."""
    ratio = ours / peer
    target = f">= {at_least:g}x"
    return Row(case, f"{ours:,.0f}{unit}", f"{peer:,.0f}{unit}", f"{ratio:.2f}x", target, ratio >= at_least)


def within(case: str, ours: float, peer: float | None, *, at_most: float, unit: str) -> Row:
    """Costs, where the target is a figure of its own; the ratio says how many times cheaper than the peer."""
    beside = "-" if peer is None else f"{peer:.3g} {unit}"
    ratio = "-" if peer is None or ours <= 0 else f"{peer / ours:.1f}x"
    return Row(case, f"{ours:.3g} {unit}", beside, ratio, f"<= {at_most:g} {unit}", ours <= at_most)


def in_turn(rounds: int, *measures: Callable[[], T]) -> list[list[T]]:
    """Runs the measures A B A B ..., so that a slow minute of the machine strikes all; results by measure."""
    results: list[list[T]] = [[] for _ in measures]
    for _ in range(rounds):
        for measure, found in zip(measures, results, strict=True):
            found.append(measure())
    return results


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least ``share`` of all values do not exceed."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def medians(rounds: Sequence[Sequence[float]], share: float) -> float:
    """The median over rounds of the percentile in each."""
    return statistics.median(percentile(values, share) for values in rounds)


def say(line: str) -> None:
    """Prints a line of progress at once."""
    print(f"  {line}", flush=True)


@contextlib.contextmanager
def scratch(options: Options) -> Iterator[Path]:
    """A temporary folder for one measurement."""
    with tempfile.TemporaryDirectory(prefix="greenroom-bench-", dir=options.folder) as folder:
        yield Path(folder)


def table(rows: Sequence[Row]) -> str:
    """The rows as text in columns."""
    verdict = {True: "ok", False: "short", None: ""}
    head = ("case", "ours", "beside", "ratio", "target", "")
    lines = [head, *((r.case, r.ours, r.peer, r.ratio, r.target, verdict[r.ok]) for r in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    texts = []
    for line in lines:
        cells = [line[0].ljust(widths[0]), *(text.rjust(w) for text, w in zip(line[1:5], widths[1:5], strict=True))]
        texts.append("  ".join([*cells, line[5]]).rstrip())
    texts.insert(1, "-" * max(map(len, texts)))
    return "\n".join(texts)
