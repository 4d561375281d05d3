"""Metrics: their names, and gauges that come back to zero."""

from __future__ import annotations

import itertools
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import greenroom as dramatiq
from greenroom.brokers.stub import StubBroker
from greenroom.core.run import Run
from greenroom.middleware import Middleware, SkipMessage
from greenroom.middleware.prometheus import BUCKETS_MS, Prometheus
from greenroom.ports.transport import Delivery, ErrorText
from scripts.servers.process import free_port
from tests.runtime.cli_kit import Program, wait_until

MakeWorker = Callable[..., dramatiq.Worker]
_names = itertools.count()


@pytest.fixture
def prometheus(broker: StubBroker) -> Iterator[Prometheus]:
    """The middleware, serving at some free port."""
    prometheus = Prometheus(port=0)
    broker.add_middleware(prometheus)
    prometheus.after_process_boot(broker)
    yield prometheus
    worker: Any = None
    prometheus.after_worker_shutdown(broker, worker)


@pytest.fixture
def name() -> str:
    """An actor's name that no other test has: a process's values outlive a test."""
    return f"actor_{next(_names)}"


class Samples:
    """What the metrics of one actor are."""

    def __init__(self, prometheus: Prometheus, actor_name: str) -> None:
        assert prometheus._metrics is not None
        self._registry = prometheus._metrics.registry
        self._labels = {"queue_name": "default", "actor_name": actor_name}

    def __getitem__(self, metric: str) -> float:
        return self._registry.get_sample_value(f"dramatiq_{metric}", self._labels) or 0

    def gauges(self) -> tuple[float, float]:
        return self["messages_inprogress"], self["delayed_messages_inprogress"]


def scrape(prometheus: Prometheus, path: str = "/metrics") -> str:
    assert prometheus._server is not None
    assert prometheus._server.serves.wait(10)
    with urllib.request.urlopen(f"http://127.0.0.1:{prometheus._server.port}{path}", timeout=10) as answer:
        assert answer.headers["Content-Type"].startswith("text/plain")
        body: bytes = answer.read()
        return body.decode()


def test_a_success_is_counted(broker: StubBroker, prometheus: Prometheus, name: str, worker: dramatiq.Worker) -> None:
    """Once in the total and once in the histogram, and nothing is left in progress."""
    samples = Samples(prometheus, name)
    seen: list[float] = []
    work = dramatiq.actor(lambda: seen.append(samples["messages_inprogress"]), actor_name=name)
    work.send()
    work.send()
    broker.join("default", timeout=10_000)
    assert len(seen) == 2
    assert all(1 <= in_progress <= 2 for in_progress in seen)
    assert samples["messages_total"] == 2
    assert samples["message_duration_milliseconds_count"] == 2
    assert samples["message_errors_total"] == samples["message_rejects_total"] == 0
    assert samples.gauges() == (0, 0)


def test_failures_retries_and_rejects_are_counted(
    broker: StubBroker, prometheus: Prometheus, name: str, make_worker: MakeWorker
) -> None:
    """Three attempts, two retries, one dead letter."""

    def fail() -> None:
        raise ValueError

    samples = Samples(prometheus, name)
    dramatiq.actor(fail, actor_name=name, max_retries=2, min_backoff=0, max_backoff=0).send()
    make_worker(broker)
    broker.join("default", timeout=10_000, fail_fast=False)
    wait_until(lambda: samples["message_rejects_total"] == 1, "the dead letter is counted")
    assert samples["messages_total"] == 3
    assert samples["message_errors_total"] == 3
    assert samples["message_retries_total"] == 2
    assert samples.gauges() == (0, 0)


def test_settlements_that_came_too_late_are_counted(
    broker: StubBroker, prometheus: Prometheus, name: str, make_worker: MakeWorker
) -> None:
    """Once for each message that had been given to somebody else."""
    samples, entered, gate = Samples(prometheus, name), threading.Event(), threading.Event()

    def work() -> None:
        entered.set()
        assert gate.wait(30)

    dramatiq.actor(work, actor_name=name).send()
    worker: Any = make_worker(broker)
    assert entered.wait(30)
    worker._pump.consumer.abandon()
    gate.set()
    broker.join("default", timeout=10_000)
    wait_until(lambda: samples["stale_leases_total"] == 1, "it is counted")


def test_crashes_are_counted(broker: StubBroker, prometheus: Prometheus, name: str) -> None:
    """When a message comes back because its worker has died: each crash once, whether the message begins again or is
    given up. A retry inherits the number and is no crash."""

    def run(attempt: int, crashes: int) -> Run:
        message = dramatiq.Message("default", name, (), {}, {})
        return Run(message, Delivery("default", "id", b"", 1, attempt, crashes, attempt > 1), None)

    samples = Samples(prometheus, name)
    for attempt, crashes in ((1, 0), (2, 0), (2, 1), (3, 2), (1, 2)):
        prometheus.before_process_message(broker, run(attempt, crashes))
    assert samples["message_crashes_total"] == 2
    for error in (ErrorText("TooManyCrashes", ""), ErrorText("ValueError", ""), None):
        given_up = run(4, 3)
        given_up.error = error
        prometheus.after_nack(broker, given_up)
    assert samples["message_crashes_total"] == 3


class SkipAll(Middleware):
    def before_process_message(self, broker: Any, message: Any) -> None:
        raise SkipMessage("no")


@pytest.mark.parametrize("position", ["before", "after"])
def test_skipped_messages_leave_no_gauge(
    broker: StubBroker, prometheus: Prometheus, name: str, worker: dramatiq.Worker, position: Any
) -> None:
    """Whether the skip came before or after it was counted: the gauge is neither left nor negative."""
    broker.add_middleware(SkipAll(), **{position: Prometheus})
    samples = Samples(prometheus, name)
    work = dramatiq.actor(lambda: None, actor_name=name)
    for _ in range(3):
        work.send()
    broker.join("default", timeout=10_000)
    assert samples.gauges() == (0, 0)
    assert samples["messages_total"] == 3


def test_expired_messages_leave_no_gauge(
    broker: StubBroker, prometheus: Prometheus, name: str, worker: dramatiq.Worker
) -> None:
    """They are skipped by a middleware that comes first."""
    samples = Samples(prometheus, name)
    dramatiq.actor(lambda: None, actor_name=name, max_age=0).send()
    broker.join("default", timeout=10_000, fail_fast=False)
    wait_until(lambda: samples["message_rejects_total"] == 1, "the dead letter is counted")
    assert samples.gauges() == (0, 0)


def test_delayed_messages_are_counted_until_they_run(
    broker: StubBroker, prometheus: Prometheus, name: str, make_worker: MakeWorker
) -> None:
    """From the moment that this process delays them."""
    samples = Samples(prometheus, name)
    dramatiq.actor(lambda: None, actor_name=name).send_with_options(delay=50)
    assert samples.gauges() == (0, 1)
    make_worker(broker)
    broker.join("default", timeout=10_000)
    assert samples.gauges() == (0, 0)


def delayed_message(name: str, eta: int) -> dramatiq.Message[Any]:
    return dramatiq.Message("default", name, (), {}, {"eta": eta})


def test_a_delayed_message_that_another_process_runs_is_forgotten(
    broker: StubBroker, prometheus: Prometheus, name: str
) -> None:
    """When it is due it is no longer delayed, whoever runs it."""
    samples = Samples(prometheus, name)
    prometheus.before_delay_message(broker, delayed_message(name, broker.clock.now_ms() + 3_600_000))
    prometheus.before_delay_message(broker, delayed_message(name, broker.clock.now_ms() - 1))
    assert samples.gauges() == (0, 2)
    scrape(prometheus)
    assert samples.gauges() == (0, 1)


def test_a_message_that_is_delayed_again_counts_once(broker: StubBroker, prometheus: Prometheus, name: str) -> None:
    """A retry keeps its id."""
    samples = Samples(prometheus, name)
    message = delayed_message(name, broker.clock.now_ms() + 60_000)
    prometheus.before_delay_message(broker, message)
    prometheus.before_delay_message(broker, message.copy(options={"eta": broker.clock.now_ms() + 120_000}))
    assert samples.gauges() == (0, 1)
    prometheus.after_nack(broker, message)
    assert samples.gauges() == (0, 0)


def test_a_stopped_worker_has_nothing_in_progress(broker: StubBroker, name: str) -> None:
    """Whatever was left running, and whatever was delayed."""
    prometheus = Prometheus(port=0)
    prometheus.after_process_boot(broker)
    samples = Samples(prometheus, name)
    message = delayed_message(name, broker.clock.now_ms() + 60_000)
    prometheus.before_delay_message(broker, message)
    prometheus.before_process_message(broker, message.copy(message_id="other"))
    assert samples.gauges() == (1, 1)
    worker: Any = None
    prometheus.after_worker_shutdown(broker, worker)
    assert samples.gauges() == (0, 0)


def test_a_program_that_only_sends_counts_nothing(broker: StubBroker, name: str) -> None:
    """Without a process boot there are no metrics, and no port is taken."""
    broker.add_middleware(Prometheus())
    dramatiq.actor(lambda: None, actor_name=name).send_with_options(delay=60_000)
    broker.flush_all()


def test_what_is_served(broker: StubBroker, prometheus: Prometheus, name: str, worker: dramatiq.Worker) -> None:
    """At any path, in Prometheus's text, with Dramatiq's names and labels."""

    def fail() -> None:
        raise ValueError

    samples = Samples(prometheus, name)
    dramatiq.actor(fail, actor_name=name, max_retries=1, min_backoff=0, max_backoff=0).send()
    broker.join("default", timeout=10_000, fail_fast=False)
    wait_until(lambda: samples["message_rejects_total"] == 1, "the dead letter is counted")
    text = scrape(prometheus, "/anything")
    labels = f'actor_name="{name}",queue_name="default"'
    assert f"dramatiq_messages_total{{{labels}}} 2.0" in text
    assert f"dramatiq_message_errors_total{{{labels}}} 2.0" in text
    assert f"dramatiq_message_retries_total{{{labels}}} 1.0" in text
    assert f"dramatiq_message_rejects_total{{{labels}}} 1.0" in text
    assert f"dramatiq_messages_inprogress{{{labels}}} 0.0" in text
    assert f'dramatiq_delayed_messages_inprogress{{actor_name="{name}",' in text
    assert (
        f'dramatiq_message_duration_milliseconds_bucket{{actor_name="{name}",le="+Inf",queue_name="default"}}' in text
    )


def test_the_buckets() -> None:
    """In milliseconds, as documented."""
    assert BUCKETS_MS[:3] == (5, 10, 25)
    assert BUCKETS_MS[-3:] == (600_000, 900_000, float("inf"))
    assert len(BUCKETS_MS) == 19


def test_it_serves_this_host_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """127.0.0.1:9191, unless the environment or the program says otherwise."""
    assert (Prometheus().host, Prometheus().port) == ("127.0.0.1", 9191)
    monkeypatch.setenv("dramatiq_prom_host", "0.0.0.0")
    monkeypatch.setenv("dramatiq_prom_port", "9999")
    assert (Prometheus().host, Prometheus().port) == ("0.0.0.0", 9999)
    monkeypatch.setenv("greenroom_prom_port", "9998")
    assert Prometheus().port == 9998
    assert Prometheus(host="::1", port=1).host == "::1"


def test_a_port_in_use_is_told_and_not_fatal(
    broker: StubBroker, name: str, make_worker: MakeWorker, caplog: pytest.LogCaptureFixture
) -> None:
    """Messages run all the same."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        prometheus = Prometheus(port=taken.getsockname()[1])
        broker.add_middleware(prometheus)
        prometheus.after_process_boot(broker)
        dramatiq.actor(lambda: None, actor_name=name).send()
        worker = make_worker(broker)
        broker.join("default", timeout=10_000)
        wait_until(lambda: [r for r in caplog.records if r.levelno == logging.WARNING], "it is told")
        worker.stop()
    (record,) = [r for r in caplog.records if r.levelno == logging.WARNING]
    assert "Metrics are not served at 127.0.0.1:" in record.getMessage()


PROGRAM = """
import os, sys
import greenroom as dramatiq
from greenroom.brokers.stub import StubBroker
from greenroom.middleware.prometheus import Prometheus
from prometheus_client import Counter
own = Counter("own_total", "A metric of the program's own.")

def boot():
    broker = StubBroker()
    prometheus = Prometheus(port=0)
    prometheus.after_process_boot(broker)
    return broker, prometheus

def message(n):
    return dramatiq.Message("default", "work", (n,), {}, {})

reader, writer = os.pipe()
if os.fork() == 0:  # a worker process that dies while two messages run and one is delayed
    broker, prometheus = boot()
    for n in range(3):
        prometheus.before_process_message(broker, message(n))
    done = message(3)
    prometheus.before_process_message(broker, done)
    prometheus.after_process_message(broker, done)
    prometheus.before_delay_message(broker, message(4).copy(options={"eta": broker.clock.now_ms() + 60_000}))
    own.inc(5)
    os.kill(os.getpid(), 9)
os.wait()
broker, prometheus = boot()
running = message(5)
prometheus.before_process_message(broker, running)
own.inc(2)
sys.path.insert(0, os.environ["TESTS"])
from tests.compat.test_prometheus import scrape
print(scrape(prometheus))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_the_gauges_of_a_dead_process_are_forgotten(tmp_path: Path) -> None:
    """One process serves all; of a killed one the counters stay, what it had in progress does not."""
    environment = {
        **os.environ,
        "greenroom_prom_db": str(tmp_path / "metrics"),
        "TESTS": str(Path(__file__).parents[2]),
    }
    for variable in ("PROMETHEUS_MULTIPROC_DIR", "prometheus_multiproc_dir"):
        environment.pop(variable, None)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    labels = 'actor_name="work",queue_name="default"'
    assert f"dramatiq_messages_inprogress{{{labels}}} 1.0" in done.stdout
    assert "dramatiq_delayed_messages_inprogress{" not in done.stdout
    assert f"dramatiq_messages_total{{{labels}}} 1.0" in done.stdout
    assert "own_total 7.0" in done.stdout


def test_without_the_package_the_error_names_the_extra(tmp_path: Path) -> None:
    """An import of the middleware says what to install."""
    program = "import sys; sys.modules['prometheus_client'] = None; import greenroom.middleware.prometheus"
    environment = {**os.environ, "greenroom_prom_db": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert "ImportError" in done.stderr
    assert "pip install 'greenroom[prometheus]'" in done.stderr


def test_one_process_of_the_command_serves_for_all(tmp_path: Path) -> None:
    """With ``-p 2`` a process beside the workers serves the values of both, at the address that the program gave, also
    after a worker has died and after a reload."""
    port = free_port()
    program = Program(tmp_path).write(
        f"""
from greenroom.middleware.prometheus import Prometheus
broker.add_middleware(Prometheus(port={port}))

@greenroom.actor
def meet(mine, other):
    mark(mine)
    wait_for(other)
"""
    )

    def total() -> float:
        with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=10) as answer:
            text = answer.read().decode()
            return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith("dramatiq_messages_to"))
        return -1.0

    folder = str(tmp_path / "prom")  # this process's own would be inherited
    variables = {"PROMETHEUS_MULTIPROC_DIR": folder, "prometheus_multiproc_dir": folder}
    with program.start("worker", "app", "-p", "2", "-t", "1", **variables) as running:
        running.wait_until_ready()
        program.send("meet", "a", "b")
        program.send("meet", "b", "a")
        wait_until(lambda: total() == 2, "both workers' messages are counted")
        wait_until(lambda: not program.waiting(), "both are settled: neither runs again")
        wait_until(lambda: len(running.workers()) == 2, "both have said so")
        os.kill(running.workers()[0], signal.SIGKILL)
        running.wait_for_text("(?s)(Worker process is ready.*){3}")
        wait_until(lambda: total() == 2, "they still are")
        running.process.send_signal(signal.SIGHUP)
        running.wait_for_text("(?s)(Metrics are served at .*){2}")
        wait_until(lambda: total() == 2, "the successor serves the same values")
        running.stop()
        assert total() == -1
