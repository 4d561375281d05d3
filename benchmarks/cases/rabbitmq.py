"""On RabbitMQ, beside Dramatiq, Celery and taskiq on the same server."""

from __future__ import annotations

from statistics import median

from ..draining import drain
from ..harness import Options, Row, faster, in_turn
from ..networked import drained, idle_starts, lateness, libraries, sent
from ..servers import rabbitmq
from ..systems import System, bare_pika, celery, networked, prototype, taskiq

UNCONFIRMED = {"BENCH_CONFIRM": "no"}


def rabbitmq_drain(options: Options) -> list[Row]:
    """A task that does nothing, one worker process, 8 threads: beside Dramatiq, and the prototype where it is given."""
    with rabbitmq() as server:
        yardstick: tuple[tuple[System, float], ...] = ()
        if options.prototype is not None:
            yardstick = ((prototype(options, PENG="rabbit", RABBIT=server.url), 0.7),)
        return drained("rabbitmq_drain", options, server.url, 4.0, *yardstick)


def rabbitmq_celery(options: Options) -> list[Row]:
    """The same drain beside Celery, with 8 threads and early acknowledgement, its fastest."""
    return beside(options, "rabbitmq_celery", celery)


def rabbitmq_taskiq(options: Options) -> list[Row]:
    """The same drain beside taskiq, whose tasks are coroutines."""
    return beside(options, "rabbitmq_taskiq", taskiq)


def beside(options: Options, case: str, peer: object) -> list[Row]:
    """The drain beside another peer, without a target."""
    ours, slow = options.count(100_000, 20_000), options.count(10_000, 2_000)
    with rabbitmq() as server:
        other = peer(server.url)  # type: ignore[operator]  # one of the two above
        mine, theirs = in_turn(
            options.rounds,
            lambda: drain(options, networked("greenroom", server.url), ours),
            lambda: drain(options, other, slow),
        )
    return [faster(case, median(r.run_per_s for r in mine), median(r.run_per_s for r in theirs), at_least=1.0)]


def rabbitmq_send_many(options: Options) -> list[Row]:
    """One confirmed bulk send of 100 000 messages, beside Dramatiq's loop of unconfirmed single sends."""
    with rabbitmq() as server:
        systems = networked("greenroom", server.url), networked("dramatiq", server.url, **UNCONFIRMED)
        return [sent("rabbitmq_send_many", options, systems, ("bulk", "loop"), 0.9)]


def rabbitmq_send(options: Options) -> list[Row]:
    """Single sends: unconfirmed beside Dramatiq's, confirmed beside a bare confirmed publish of pika's."""
    with rabbitmq() as server:
        loose = libraries(server.url, **UNCONFIRMED)
        safe = networked("greenroom", server.url), bare_pika(server.url)
        return [
            sent("rabbitmq_send unconfirmed", options, loose, ("loop", "loop"), 1.0),
            sent("rabbitmq_send confirmed : pika", options, safe, ("loop", "loop"), 0.7),
        ]


def rabbitmq_idle_start(options: Options) -> list[Row]:
    """From the call of send to the start of the actor in an idle worker process."""
    with rabbitmq() as server:
        return idle_starts("rabbitmq_idle_start", options, server.url, p50_ratio=1.1, p99_ms=5.0)


def rabbitmq_due(options: Options) -> list[Row]:
    """30 000 messages that are due within 8 s: how late they start."""
    with rabbitmq() as server:
        ours = libraries(server.url)[:1]
        return [lateness("rabbitmq_due p99", options, ours, at_most_ms=500.0, sends_per_s=750)]


CASES = (
    rabbitmq_drain,
    rabbitmq_send_many,
    rabbitmq_send,
    rabbitmq_idle_start,
    rabbitmq_due,
    rabbitmq_celery,
    rabbitmq_taskiq,
)
