"""Greenroom and Dramatiq in turn on one server: the measurements behind the cases of Redis and RabbitMQ."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from .cases.idle_start import latencies
from .draining import drain, wait_for, warm
from .harness import Options, Row, faster, in_turn, medians, percentile, say, scratch, within
from .recorder import Counts, start_latencies_ms
from .systems import System, networked

#: The first message is due so long after the first is sent, and the last so much later.
DUE_AFTER_S = 3
DUE_WITHIN_S = 8.0


def libraries(url: str, **settings: str) -> tuple[System, System]:
    """Ours and the peer."""
    return networked("greenroom", url, **settings), networked("dramatiq", url, **settings)


def drained(case: str, options: Options, url: str, target: float, *more: tuple[System, float]) -> list[Row]:
    """``drain`` beside Dramatiq, and beside others that ``more`` names with their targets, all in one run."""
    ours, peer = libraries(url)
    mine, slow = options.count(100_000, 20_000), options.count(20_000, 5_000)
    rounds = in_turn(
        options.rounds,
        lambda: drain(options, ours, mine),
        lambda: drain(options, peer, slow),
        *(lambda system=system: drain(options, system, mine) for system, _ in more),
    )
    rates = [median(found.run_per_s for found in one) for one in rounds]
    rows = [faster(case, rates[0], rates[1], at_least=target)]
    for rate, (system, at_least) in zip(rates[2:], more, strict=True):
        rows.append(faster(f"{case} : {system.name}", rates[0], rate, at_least=at_least))
    return rows


def sent(case: str, options: Options, systems: tuple[System, System], commands: tuple[str, str], target: float) -> Row:
    """Messages sent a second by ours beside the other, without a worker."""
    counts = (options.count(100_000 if commands[0] == "bulk" else 20_000, 5_000), options.count(20_000, 5_000))
    ours, peer = in_turn(
        options.rounds,
        lambda: send_rate(options, systems[0], commands[0], counts[0]),
        lambda: send_rate(options, systems[1], commands[1], counts[1]),
    )
    return faster(case, median(ours), median(peer), at_least=target)


def send_rate(options: Options, system: System, command: str, count: int) -> float:
    """One measurement of it."""
    with scratch(options) as folder:
        found = count / float(system.produce(folder, command, "task", count)["seconds"])
    say(f"{system.name}: {command} {found:,.0f}/s")
    return found


def idle_starts(
    case: str, options: Options, url: str, *, p99_ms: float, p50_ms: float = 0.0, p50_ratio: float = 0.0
) -> list[Row]:
    """From the call of ``send`` to the start in an idle worker. The median has a limit, or one relative to the peer."""
    systems, sends = libraries(url), options.count(1_000, 300)
    ours, peer = in_turn(options.rounds, *(lambda s=s: latencies(options, s, sends) for s in systems))
    mine, theirs = medians(ours, 0.5), medians(peer, 0.5)
    p50_ms = p50_ms or theirs * p50_ratio
    return [
        within(f"{case} p50", mine, theirs, at_most=p50_ms, unit="ms"),
        within(f"{case} p99", medians(ours, 0.99), medians(peer, 0.99), at_most=p99_ms, unit="ms"),
    ]


def lateness(
    case: str, options: Options, systems: Sequence[System], *, at_most_ms: float, sends_per_s: int = 5_000
) -> Row:
    """How late 30 000 messages start that are due within 8 s, the 99th percentile; the first system is ours.
    ``sends_per_s``: single sends that the slowest of them does at least, so that all are sent before one is due."""
    messages = options.count(30_000, 5_000)
    found = in_turn(1, *(lambda s=s: late_ms(options, s, messages, sends_per_s) for s in systems))
    peer = percentile(found[1][0], 0.99) if len(found) > 1 else None
    return within(case, percentile(found[0][0], 0.99), peer, at_most=at_most_ms, unit="ms")


def late_ms(options: Options, system: System, messages: int, sends_per_s: int) -> list[float]:
    """Milliseconds from the moment that each was due to its start. They are sent while the worker is idle."""
    begin_s = DUE_AFTER_S + messages // sends_per_s
    with scratch(options) as folder, system.work(folder) as worker:
        before = warm(system, folder, worker)
        memory = worker.rss_bytes()
        system.produce(folder, "scheduled", "due", messages, "--seconds", begin_s, "--spread", DUE_WITHIN_S)
        grown = (worker.rss_bytes() - memory) / 1_000_000
        wait_for(Counts(folder), before + messages, worker)
        found = start_latencies_ms(folder)
    p50, p99 = percentile(found, 0.5), percentile(found, 0.99)
    say(f"{system.name}: {messages:,} due: p50 {p50:.0f} ms, p99 {p99:.0f} ms late; memory {grown:+.1f} MB meanwhile")
    return found
