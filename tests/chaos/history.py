"""Judges what happened to messages while things went wrong: a history in, violations out.

A history is what senders, actors and the chaos itself have written down, each on the spot and in a file of its own, so
that it survives ``kill -9``. All times are of the monotonic clock, which all processes of a host share.

The promises (``docs/guarantees.md``):

* **lost**: what was accepted comes to an end: it succeeds, or is a dead letter.
* **phantom**: what runs was sent; what was refused never runs.
* **duplicated**: a message starts again only if its last start failed, or if its process was killed, or lost its
  lease, before the message was settled.
* **overlap**: two runs of a message are at the same time only if the first one's process had lost its lease.
* **double ack**: a message is settled as done once, and does not start after that.
* **early**: nothing starts before it is due.
"""

from __future__ import annotations

from bisect import bisect
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

#: Seconds that a start may come before its due time: clocks are read at different moments.
EARLY_TOLERANCE_S = 0.02
#: How long before a cut a settlement may not have arrived yet, in seconds.
UNCONFIRMED_S = 2.0
#: And how many of the last ones, however long ago: where the server stands still, nothing new comes to be settled.
UNCONFIRMED = 32


class Event(NamedTuple):
    """One line of a history.

    ``kind``: sent, accepted, refused (by a sender); start, end, fail (by an actor: begun, returned, raised); ack (the
    engine has settled it as done). ``due_s`` goes with ``sent``: not before this time.
    """

    kind: str
    id: str
    at_s: float
    pid: int = 0
    due_s: float = 0.0


class Fault(NamedTuple):
    """What was done to a process. ``kill``: it is dead from ``at_s`` on. ``lost``: others may have taken what it held,
    from ``at_s`` on, while it still runs. ``cut``: its connection has ended at ``at_s``, and what it held then is
    handed out again at once; where no settlement is confirmed, also what it had settled within the last moments. Where
    a retry is published before its message is settled, there may be two of it then, which succeed once each."""

    kind: str
    pid: int
    at_s: float


@dataclass
class Verdict:
    """What the checker found: message ids by violation, and how much there was to look at."""

    accepted: int = 0
    started: int = 0
    again: int = 0  # starts after the first
    allowed: int = 0  # of these
    violations: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    @property
    def is_valid(self) -> bool:
        return not any(self.violations.values())

    def __str__(self) -> str:
        found = ", ".join(f"{kind} {len(ids)} ({', '.join(ids[:5])})" for kind, ids in sorted(self.violations.items()))
        return (
            f"accepted {self.accepted}, started {self.started}, again {self.again} (allowed {self.allowed}): "
            f"{found or 'valid'}"
        )


class Run(NamedTuple):
    """One start of a message and what became of it; ``end_s`` is infinite if nothing was heard of it any more."""

    start_s: float
    end_s: float
    pid: int
    failed: bool


def check(events: Iterable[Event], faults: Sequence[Fault] = (), dead: Collection[str] = ()) -> Verdict:
    """Holds a history against the promises.

    Parameters:
      events: In any order.
      faults: What was done to processes.
      dead: The ids of the dead letters in the end.
    """
    by_id: dict[str, list[Event]] = defaultdict(list)
    events = list(events)
    for event in events:
        by_id[event.id].append(event)
    judge = _Judge(faults, frozenset(dead))
    judge.note_acks(events)
    for id, its_events in by_id.items():
        judge.judge(id, sorted(its_events, key=lambda event: event.at_s))
    for id in dead:
        if id not in by_id:
            judge.verdict.violations["phantom"].append(id)
    return judge.verdict


class _Judge:
    def __init__(self, faults: Sequence[Fault], dead: frozenset[str]) -> None:
        self.verdict = Verdict()
        self._dead = dead
        self._killed_s = {fault.pid: fault.at_s for fault in faults if fault.kind == "kill"}
        #: By process: when its connection was cut, and since when its settlements may have been lost to that.
        self._cuts_s: dict[int, list[tuple[float, float]]] = defaultdict(list)
        for fault in faults:
            if fault.kind == "cut":
                self._cuts_s[fault.pid].append((fault.at_s, fault.at_s - UNCONFIRMED_S))
        self._lost_s = {fault.pid: fault.at_s for fault in faults if fault.kind == "lost"}

    def note_acks(self, events: Iterable[Event]) -> None:
        """Takes down which settlements were the last ones before each cut."""
        acks_s: dict[int, list[float]] = defaultdict(list)
        for event in events:
            if event.kind == "ack":
                acks_s[event.pid].append(event.at_s)
        for pid, cuts in self._cuts_s.items():
            its_s = sorted(acks_s[pid])
            for number, (at_s, since_s) in enumerate(cuts):
                last_s = its_s[: bisect(its_s, at_s)][-UNCONFIRMED:]
                cuts[number] = (at_s, min([since_s, *last_s[:1]]))

    def judge(self, id: str, events: list[Event]) -> None:
        kinds = {event.kind for event in events}
        runs = self._runs(events)
        acks = [event for event in events if event.kind == "ack"]
        verdict = self.verdict
        verdict.accepted += "accepted" in kinds
        verdict.started += bool(runs)
        succeeded = any(event.kind == "end" for event in events)
        if "accepted" in kinds and not succeeded and id not in self._dead:
            self._violation("lost", id)
        if runs and ("sent" not in kinds or "refused" in kinds):
            self._violation("phantom", id)
        settled = acks
        acks = [ack for ack in acks if not self._is_void(ack, runs)]
        twins = sum(run.failed and self._was_cut(run, run.end_s, float("inf")) for run in runs)
        if len(acks) > 1 + twins or (len(acks) > twins and any(run.start_s > acks[twins].at_s for run in runs)):
            self._violation("double ack", id)
        due_s = max((event.due_s for event in events if event.kind == "sent"), default=0.0)
        if runs and runs[0].start_s < due_s - EARLY_TOLERANCE_S:
            self._violation("early", id)
        for first, second in pairwise(runs):
            settled_s = [ack.at_s for ack in settled if ack.pid == first.pid and first.end_s <= ack.at_s]
            held_until_s = min([at_s for at_s in settled_s if at_s <= second.start_s], default=first.end_s)
            twins -= self._judge_again(id, first, second, held_until_s, twins)

    def _is_void(self, ack: Event, runs: Sequence[Run]) -> bool:
        """Whether a settlement may not have counted: what had run was lost to a cut before it arrived."""
        began = max((run for run in runs if run.pid == ack.pid and run.start_s <= ack.at_s), default=None)
        return began is not None and self._was_cut(began, ack.at_s, float("inf"))

    def _was_cut(self, run: Run, held_until_s: float, again_s: float) -> bool:
        """Whether a process lost the message of a run, which it held until a time (or for ever), before another."""
        first_s = run.start_s - UNCONFIRMED_S  # it is not known to the moment when a cut came
        return any(first_s <= at_s <= again_s and since_s <= held_until_s for at_s, since_s in self._cuts_s[run.pid])

    def _judge_again(self, id: str, first: Run, second: Run, held_until_s: float, twins: int) -> bool:
        """Judges a start after the first; whether a twin is what explains it."""
        self.verdict.again += 1
        lost = self._lost_s.get(first.pid, float("inf")) <= second.start_s
        lost = lost or self._was_cut(first, held_until_s, second.start_s)
        killed = self._killed_s.get(first.pid, float("inf")) <= second.start_s
        is_explained = first.failed or lost or killed
        if is_explained or twins:
            self.verdict.allowed += 1
        else:
            self._violation("duplicated", id)
        if second.start_s < first.end_s and not (lost or twins):
            self._violation("overlap", id)
        return not is_explained and twins > 0

    def _runs(self, events: Sequence[Event]) -> list[Run]:
        runs: list[Run] = []
        open_at: dict[int, list[float]] = defaultdict(list)  # by process, which should have one at a time
        for event in events:
            if event.kind == "start":
                open_at[event.pid].append(event.at_s)
            elif event.kind in ("end", "fail") and open_at[event.pid]:
                runs.append(Run(open_at[event.pid].pop(0), event.at_s, event.pid, event.kind == "fail"))
        for pid, starts in open_at.items():  # nobody heard of their end
            end_s = self._killed_s.get(pid, float("inf"))
            runs += [Run(start_s, end_s, pid, failed=False) for start_s in starts]
        return sorted(runs)

    def _violation(self, kind: str, id: str) -> None:
        self.verdict.violations[kind].append(id)


def read_events(folder: Path) -> list[Event]:
    """All events that were written into files ``history-*`` of a folder. A last line that was cut off is left out."""
    events = []
    for path in sorted(folder.glob("history-*")):
        for line in path.read_text().splitlines(keepends=True):
            if line.endswith("\n"):
                kind, id, at_s, pid, due_s = line.split()
                events.append(Event(kind, id, float(at_s), int(pid), float(due_s)))
    return events


def line_of(event: Event) -> bytes:
    """An event as a line of a file; ids must be without blanks."""
    return f"{event.kind} {event.id} {event.at_s:.6f} {event.pid} {event.due_s:.6f}\n".encode()
