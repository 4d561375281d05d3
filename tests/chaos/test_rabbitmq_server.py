"""What happens to the RabbitMQ server happens to nobody's messages.

One server for all of these, each in a virtual host of its own: it is killed once and restarted once, for that takes it
eight seconds.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from greenroom.brokers.rabbitmq import RabbitmqBroker
from greenroom.errors import BrokerTimeout, ConnectionFailed
from scripts.servers import RabbitMQ
from tests.chaos.kit import forget, judge
from tests.chaos.rabbitmq_kit import TIMEOUT_MS, build, cut_since, rabbitmq_worker, unsettled, wait_until_done
from tests.chaos.redis_kit import Sender, count, open_gate, send, send_surely, starts, wait_until_started, working
from tests.runtime.cli_kit import wait_until
from tests.services import fresh_vhost

#: How many messages a server has that is troubled under load.
LOAD = 100
#: What RabbitMQ has if nobody says otherwise.
DEFAULTS = {"consumer_timeout": 1_800_000, "channel_tick_interval": 60_000}


@pytest.fixture(autouse=True)
def _run_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("GREENROOM_RUN_FOLDER", str(tmp_path))
    yield
    forget(tmp_path)


@pytest.fixture
def url(rabbitmq_troubled: RabbitMQ) -> str:
    """An empty virtual host on the server that is troubled."""
    return fresh_vhost(rabbitmq_troubled)


def pause(seconds: float) -> None:
    """Lets the time pass that a fault lasts."""
    threading.Event().wait(seconds)


@contextmanager
def settings(server: RabbitMQ, **values: int) -> Iterator[None]:
    """Settings of the server for channels that are opened from now on."""
    _set(server, values)
    try:
        yield
    finally:
        _set(server, {name: DEFAULTS[name] for name in values})


def _set(server: RabbitMQ, values: dict[str, int]) -> None:
    server.ctl("eval", ", ".join(f"application:set_env(rabbit, {name}, {v})" for name, v in values.items()) + ".")


def test_f30_the_server_is_killed(tmp_path: Path, rabbitmq_troubled: RabbitMQ, url: str) -> None:
    """F30: ``kill -9`` of the server under load, with a worker here and one in another process. What was confirmed is
    done, also what was delayed and came due meanwhile; what was not confirmed has raised; what was running runs again,
    and nothing else that was settled some time before."""
    server = rabbitmq_troubled
    broker, sender_broker = build(tmp_path, url), build(tmp_path, url)
    send(tmp_path, sender_broker, ["slow"], "gated")
    send(tmp_path, sender_broker, ["first"], delay=1000)
    send(tmp_path, sender_broker, [f"delayed-{n}" for n in range(20)], delay=5000)
    with rabbitmq_worker(tmp_path, url) as other, working(broker), Sender(tmp_path, sender_broker) as sender:
        wait_until_started(tmp_path, "slow", "first")
        sender.wait_for_more(LOAD)
        from_s = time.monotonic()
        server.kill()
        faults = [fault for pid in (other.pid, os.getpid()) for fault in cut_since(pid, from_s)]
        server.start()
        began_s = time.monotonic()
        before = count(tmp_path, "accepted")
        wait_until(lambda: count(tmp_path, "accepted") >= before + LOAD, "the sender has recovered")
        wait_until_started(tmp_path, "slow", times=2)
        print(f"recovered in {time.monotonic() - began_s:.2f} s")
        sender.stop()
        open_gate(tmp_path)
        wait_until_done(tmp_path, broker)
    verdict = judge(tmp_path, broker, *faults)
    print(verdict)
    assert verdict.accepted >= 2 * LOAD + 22
    assert len(starts(tmp_path, "slow")) == 2
    broker.close()
    sender_broker.close()


def test_f23_f31_the_server_is_restarted_and_comes_later(
    tmp_path: Path, rabbitmq_troubled: RabbitMQ, url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """F23: the server is stopped under load. Nothing is lost, and only what was held may run again.
    F31: While it is away sending fails at once, as not connected, and so does the start of a worker. Workers that run
    go on by themselves when it is there."""
    server = rabbitmq_troubled
    broker, late = build(tmp_path, url), build(tmp_path, url)
    with working(broker), Sender(tmp_path, broker) as sender:
        sender.wait_for_more(LOAD)
        from_s = time.monotonic()
        os.kill(server.pid, signal.SIGTERM)
        wait_until(lambda: not server.is_running(), "the server has stopped")
        faults = cut_since(os.getpid(), from_s)
        began_s = time.monotonic()
        with pytest.raises(ConnectionFailed):
            late.actors["plain"].send("too soon")
        assert time.monotonic() - began_s < TIMEOUT_MS / 1000 + 1
        with pytest.raises(ConnectionFailed), working(late, 1):
            pass
        wait_until(lambda: "trying again" in caplog.text, "a worker says that it waits")
        server.start()
        with working(late, 1):
            sender.wait_for_more(LOAD)
            sender.stop()
            wait_until_done(tmp_path, broker)
    verdict = judge(tmp_path, broker, *faults)
    print(verdict)
    assert verdict.accepted > LOAD
    assert starts(tmp_path, "too soon") == []
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.CRITICAL] == []
    broker.close()
    late.close()


def test_f22_the_server_stands_still(tmp_path: Path, rabbitmq_troubled: RabbitMQ, url: str) -> None:
    """F22: SIGSTOP of the server for longer than a sender waits. Sending fails in time, as "not known whether", and the
    next one on a new connection, as "not there". Afterwards all goes on: what was accepted is done once, what was not
    is done once or not at all."""
    broker = build(tmp_path, url, publish_timeout_ms=1000)
    with working(broker, 1):
        send(tmp_path, broker, ["runs"], "gated")
        wait_until_started(tmp_path, "runs")
        rabbitmq_troubled.pause()
        outcomes = []
        for id in ("unsure", "not-there"):
            began_s = time.monotonic()
            with pytest.raises(BrokerTimeout) as raised:
                broker.actors["plain"].send(id)
            assert time.monotonic() - began_s < 5
            outcomes.append(raised.value.outcome)
        rabbitmq_troubled.resume()
        open_gate(tmp_path)
        send_surely(tmp_path, broker, "probe")
        sure = [f"m{n}" for n in range(20)]
        send(tmp_path, broker, sure)
        wait_until_done(tmp_path, broker)
    assert outcomes == ["unknown", "none"]
    assert [id for id in ("runs", *sure) if len(starts(tmp_path, id)) != 1] == []
    assert len(starts(tmp_path, "unsure")) <= 1
    assert starts(tmp_path, "not-there") == []
    broker.close()


def test_f33_a_task_runs_for_longer_than_the_server_likes(
    tmp_path: Path, rabbitmq_troubled: RabbitMQ, url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """F33, ``consumer_timeout``: the server closes the channel of a worker that has not settled a message in time. The
    log says what to raise. The message runs again, on a new channel; the first run's settlement is not sent there, so
    that what has the same number on it is not lost."""
    with settings(rabbitmq_troubled, consumer_timeout=1000, channel_tick_interval=200):
        broker = build(tmp_path, url)
        with working(broker, 2):
            send(tmp_path, broker, ["slow"], "gated")
            wait_until_started(tmp_path, "slow")
            from_s = time.monotonic()
            wait_until(lambda: "Raise consumer_timeout in rabbitmq.conf" in caplog.text, "the log says what to do")
            wait_until_started(tmp_path, "slow", times=2)
            faults = cut_since(os.getpid(), from_s)
            open_gate(tmp_path)
            send(tmp_path, broker, [f"m{n}" for n in range(20)])
            wait_until_done(tmp_path, broker)
            wait_until(lambda: "stale_ack" in caplog.text, "the settlement of the first run has come too late")
    verdict = judge(tmp_path, broker, *faults)
    assert (verdict.accepted, verdict.again) == (21, 1)
    broker.close()


def test_f35_the_server_is_short_of_memory(tmp_path: Path, rabbitmq_troubled: RabbitMQ, url: str) -> None:
    """F35: while there is an alarm, sending says in time that the server takes no messages. Its worker goes on
    meanwhile: what waits is claimed and settled. Afterwards sending works, without anybody's doing."""
    server = rabbitmq_troubled
    broker = build(tmp_path, url)
    send(tmp_path, broker, [f"m{n}" for n in range(20)], "gated")
    with working(broker, 2):
        wait_until(lambda: count(tmp_path, "start") == 2, "two of them run")
        server.ctl("set_vm_memory_high_watermark", "0")
        try:
            wait_until(lambda: "takes no messages" in _refusal(broker), "a sender is told so")
            open_gate(tmp_path)
            wait_until(lambda: unsettled(tmp_path) == set(), "all are settled, in spite of the alarm")
            assert broker.transport.counts(["default"])["default"].ready == 0
        finally:
            server.ctl("set_vm_memory_high_watermark", "0.4")
        send_surely(tmp_path, broker, "probe")
        wait_until_done(tmp_path, broker)
    assert all(len(starts(tmp_path, f"m{n}")) == 1 for n in range(20))
    broker.close()


def _refusal(broker: RabbitmqBroker) -> str:
    """What a sender is told; what is sent first may be written, or even taken, before we hear of the alarm."""
    began_s = time.monotonic()
    text = ""
    try:
        broker.actors["plain"].send("refused")
    except BrokerTimeout as e:
        text = str(e)
    assert time.monotonic() - began_s < TIMEOUT_MS / 1000 + 3
    return text
