"""On Redis, beside Dramatiq on the same server."""

from __future__ import annotations

from statistics import median

from tests.proxy import proxy_process

from ..draining import drain, wait_for
from ..harness import Options, Row, faster, in_turn, say, scratch
from ..networked import drained, idle_starts, lateness, libraries, sent
from ..recorder import Counts
from ..servers import redis
from ..systems import System, networked, prototype
from .backlog import claims

#: The prototype's server has one port for all; its ready messages are kept by priority, as ours.
PROTOTYPE = {"PENG": "redis", "RREADY": "zset", "RSEND": "raw"}


def redis_drain(options: Options) -> list[Row]:
    """A task that does nothing, one worker process, 8 threads: beside Dramatiq, and the prototype where it is given."""
    with redis() as server:
        yardstick = ()
        if options.prototype is not None:
            yardstick = ((prototype(options, RPORT=str(server.port), **PROTOTYPE), 0.7),)
        return drained("redis_drain", options, server.url, 40.0, *yardstick)


def redis_send_many(options: Options) -> list[Row]:
    """One bulk send of 100 000 messages, beside Dramatiq's loop of single sends."""
    with redis() as server:
        return [sent("redis_send_many", options, libraries(server.url), ("bulk", "loop"), 8.0)]


def redis_send(options: Options) -> list[Row]:
    """A loop of 20 000 single sends."""
    with redis() as server:
        return [sent("redis_send", options, libraries(server.url), ("loop", "loop"), 2.0)]


def redis_idle_start(options: Options) -> list[Row]:
    """From the call of send to the start of the actor in an idle worker process."""
    with redis() as server:
        return idle_starts("redis_idle_start", options, server.url, p50_ms=1.2, p99_ms=5.0)


def redis_due(options: Options) -> list[Row]:
    """30 000 messages that are due within 8 s: how late they start."""
    with redis() as server:
        return [lateness("redis_due p99", options, libraries(server.url), at_most_ms=250.0)]


def redis_scale(options: Options) -> list[Row]:
    """An actor that sleeps 1 ms: two worker processes beside one, both ours."""
    messages = options.count(40_000, 20_000)
    with redis() as server:
        ours = networked("greenroom", server.url)
        two, one = in_turn(
            options.rounds,
            lambda: drain(options, ours, messages, actor="nap", processes=2),
            lambda: drain(options, ours, messages, actor="nap"),
        )
    rates = [median(r.run_per_s for r in rounds) for rounds in (two, one)]
    return [faster("redis_scale 2 : 1", rates[0], rates[1], at_least=1.8)]


def redis_backlog(options: Options) -> list[Row]:
    """Claiming 100 messages with 1 000 000 waiting, beside the same with 10 000: the engine alone; and memory."""
    with redis() as server:
        ours = networked("greenroom", server.url)
        few, many = (worker_mb(options, ours, waiting) for waiting in (10_000, options.count(1_000_000, 200_000)))
        memory = Row(
            "redis_backlog memory",
            f"{many:.1f} MB",
            f"{few:.1f} MB",
            f"{many / few:.2f}x",
            "<= 1.1x",
            many <= 1.1 * few,
        )
        return [*claims("redis_backlog", options, ours), memory]


def worker_mb(options: Options, system: System, waiting: int) -> float:
    """The memory (resident set) of a worker that has run 5 000 of so many messages, in megabytes."""
    with scratch(options) as folder:
        system.produce(folder, "bulk", "nap", waiting)
        with system.work(folder) as worker:
            wait_for(Counts(folder), 5_000, worker)
            found = worker.rss_bytes() / 1_000_000
    say(f"{system.name}: {found:.1f} MB with {waiting:,} waiting")
    return found


def redis_far(options: Options) -> list[Row]:
    """The drain through a proxy that holds each byte for 1 ms each way, beside the drain on loopback, both ours."""
    messages = options.count(100_000, 20_000)
    with redis() as server, proxy_process(server.port, delay_ms=1.0) as far:
        near, there = networked("greenroom", server.url), networked("greenroom", f"redis://127.0.0.1:{far}/0")
        slow, fast = in_turn(
            options.rounds, lambda: drain(options, there, messages), lambda: drain(options, near, messages)
        )
    rates = [median(r.run_per_s for r in rounds) for rounds in (slow, fast)]
    return [faster("redis_far : near", rates[0], rates[1], at_least=0.45)]


CASES = (
    redis_drain,
    redis_send_many,
    redis_send,
    redis_idle_start,
    redis_due,
    redis_backlog,
    redis_scale,
    redis_far,
)
