"""What the network, an operator or another program does to a worker's connections and queues on RabbitMQ.

The server is the one that all tests share, each in a virtual host of its own; a proxy makes the network bad.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pika
import pytest

from greenroom.engines.rabbitmq import line
from greenroom.errors import BrokerTimeout
from scripts.servers import RabbitMQ
from tests.chaos.history import Fault
from tests.chaos.kit import forget, judge, kill
from tests.chaos.rabbitmq_kit import build, cut, cut_since, rabbitmq_worker, wait_until_done
from tests.chaos.redis_kit import PATIENT_S, Sender, count, open_gate, send, starts, wait_until_started, working
from tests.proxy import Proxy
from tests.runtime.cli_kit import wait_until

#: The heartbeat of connections whose end is to be noticed soon: the server gives up after two seconds, pika after six.
FAST = "?heartbeat=1"


@pytest.fixture(autouse=True)
def _run_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("GREENROOM_RUN_FOLDER", str(tmp_path))
    yield
    forget(tmp_path)


@pytest.fixture
def proxy(rabbitmq_shared: RabbitMQ) -> Iterator[Proxy]:
    with Proxy(rabbitmq_shared.port) as proxy:
        yield proxy


def pause(seconds: float) -> None:
    """Lets the time pass that a fault lasts."""
    threading.Event().wait(seconds)


# --- F33: what is lost with a channel


def test_a_tag_of_another_channel_takes_nobody_elses_message(tmp_path: Path, rabbitmq_url: str, proxy: Proxy) -> None:
    """F33: a worker's connection ends while L runs with delivery tag 11. On its next channel others get the tags around
    11, and run. L ends: its tag means nothing any more, so nothing is settled by it. Then the worker is killed, and all
    that ran comes to an end elsewhere."""
    broker = build(tmp_path, rabbitmq_url)
    others = [f"p{n}" for n in range(5)]
    with rabbitmq_worker(tmp_path, proxy.url(rabbitmq_url), threads=8) as worker:
        send(tmp_path, broker, [f"a{n}" for n in range(10)])
        wait_until(lambda: count(tmp_path, "ack") == 10, "ten tags are used up")
        send(tmp_path, broker, ["L"], "late")
        wait_until_started(tmp_path, "L")
        from_s = time.monotonic()
        proxy.reset()
        faults = cut_since(worker.pid, from_s)
        wait_until_started(tmp_path, "L", times=2)
        send(tmp_path, broker, [f"b{n}" for n in range(8)])
        wait_until(lambda: count(tmp_path, "ack") == 19, "nine tags of the new channel are used up")
        send(tmp_path, broker, others, "gated")
        wait_until_started(tmp_path, *others)
        (tmp_path / "gate-L").touch()
        wait_until(lambda: "stale_ack: 1" in (tmp_path / "other.txt").read_text(), "L is settled too late")
        faults.append(kill(worker))
        with working(broker, 8):
            wait_until_started(tmp_path, *others, times=2)
            open_gate(tmp_path)
            wait_until_done(tmp_path, broker)
    verdict = judge(tmp_path, broker, *faults)
    assert (verdict.accepted, verdict.again) == (24, 6)
    broker.close()


def test_f33_an_operator_closes_all_connections(tmp_path: Path, rabbitmq_url: str, rabbitmq_shared: RabbitMQ) -> None:
    """F33: all connections are closed by an operator, under load, twice. Nothing is lost, only what was held runs
    again, and senders and workers go on by themselves."""
    broker, sender_broker = build(tmp_path, rabbitmq_url), build(tmp_path, rabbitmq_url)
    vhost = rabbitmq_url.rpartition("/")[2]
    faults: list[Fault] = []
    with working(broker), Sender(tmp_path, sender_broker) as sender:
        for _ in range(2):
            sender.wait_for_more(50)
            from_s = time.monotonic()
            rabbitmq_shared.ctl("close_all_connections", "--vhost", vhost, "for a test")
            faults += cut_since(os.getpid(), from_s)
        sender.wait_for_more(50)
        sender.stop()
        wait_until_done(tmp_path, broker)
    verdict = judge(tmp_path, broker, *faults)
    assert verdict.accepted >= 120
    broker.close()
    sender_broker.close()


def test_f33_a_queue_of_another_kind(tmp_path: Path, rabbitmq_url: str, caplog: pytest.LogCaptureFixture) -> None:
    """F33: one of a worker's queues exists with other arguments. The error names the queue, the argument and what to
    do; the worker serves the other queues."""
    with closing(pika.BlockingConnection(pika.URLParameters(rabbitmq_url))) as stranger:
        stranger.channel().queue_declare("odd", durable=True, arguments={"x-max-priority": 5})
        broker = build(tmp_path, rabbitmq_url)
        broker.declare_queue("odd")
        with working(broker, 2):
            wait_until(lambda: "Queue odd cannot be consumed" in caplog.text, "the worker tells of the queue")
            send(tmp_path, broker, [f"m{n}" for n in range(20)])
            wait_until_done(tmp_path, broker)
    assert "inequivalent arg 'x-" in caplog.text
    assert "Delete the queue" in caplog.text
    assert judge(tmp_path, broker).again == 0
    broker.close()


# --- F34, F36: what vanishes


def test_f34_the_queue_is_deleted(tmp_path: Path, rabbitmq_url: str) -> None:
    """F34: another program deletes the queue, or purges it, while a worker consumes from it: it is declared again
    within five seconds, and what is sent then runs."""
    with closing(pika.BlockingConnection(pika.URLParameters(rabbitmq_url))) as stranger:
        channel: Any = stranger.channel()
        broker = build(tmp_path, rabbitmq_url)
        with working(broker, 1):
            for number, act in enumerate((channel.queue_delete, channel.queue_purge, channel.queue_delete)):
                send(tmp_path, broker, [f"before-{number}"])
                wait_until_started(tmp_path, f"before-{number}")
                act("default")
                began_s = time.monotonic()
                send(tmp_path, broker, [f"after-{number}"])
                wait_until_started(tmp_path, f"after-{number}")
                assert time.monotonic() - began_s < 5
            wait_until_done(tmp_path, broker)
    assert judge(tmp_path, broker).accepted == 6
    broker.close()


def test_f36_what_has_no_queue_is_returned(tmp_path: Path, rabbitmq_url: str) -> None:
    """F36: the queue is deleted, and nobody but the sender is there. RabbitMQ returns the message; the queue is
    declared again, and the message is sent again: ``send`` has returned, so it is there."""
    with closing(pika.BlockingConnection(pika.URLParameters(rabbitmq_url))) as stranger:
        channel = stranger.channel()
        broker = build(tmp_path, rabbitmq_url)
        send(tmp_path, broker, ["lost-with-its-queue"])
        channel.queue_delete("default")
        for number in range(3):
            send(tmp_path, broker, [f"m{number}"])
        assert count(tmp_path, "accepted") == 4
        assert broker.transport.counts(["default"])["default"].ready == 3
    broker.close()


# --- F60, F61: partitions


def test_f60_a_short_partition(tmp_path: Path, rabbitmq_url: str, proxy: Proxy) -> None:
    """F60: a worker is cut off for less than its heartbeat allows, again and again, under load. Nothing is lost, and
    nothing runs twice."""
    broker = build(tmp_path, proxy.url(rabbitmq_url))
    sender_broker = build(tmp_path, rabbitmq_url, publish_timeout_ms=int(PATIENT_S * 1000))
    with working(broker), Sender(tmp_path, sender_broker) as sender:
        for _ in range(3):
            sender.wait_for_more(40)
            proxy.hold()
            pause(0.5)
            proxy.heal()
        sender.wait_for_more(40)
        sender.stop()
        wait_until_done(tmp_path, broker)
    verdict = judge(tmp_path, broker)
    assert verdict.accepted == sender.count
    assert verdict.again == 0
    broker.close()
    sender_broker.close()


def test_f60_a_long_partition(tmp_path: Path, rabbitmq_url: str, proxy: Proxy) -> None:
    """F60: a worker is cut off for longer than the server waits for its heartbeat, while it runs a message. That runs
    elsewhere, soon; the first run ends, too, and is not settled. Back again, the worker works on."""
    broker = build(tmp_path, rabbitmq_url)
    with rabbitmq_worker(tmp_path, proxy.url(rabbitmq_url) + FAST, threads=1) as cut_off:
        send(tmp_path, broker, ["runs"], "gated")
        wait_until_started(tmp_path, "runs")
        proxy.hold()
        faults = [cut(cut_off.pid)]
        with working(broker, 1):
            wait_until_started(tmp_path, "runs", times=2)
            print(f"recovered in {time.monotonic() - faults[0].at_s:.2f} s")
            open_gate(tmp_path)
            wait_until(lambda: count(tmp_path, "end") == 2, "it has ended in both places")
            wait_until_done(tmp_path, broker)
        proxy.heal()
        send(tmp_path, broker, ["later"])
        wait_until_done(tmp_path, broker)
    assert starts(tmp_path, "later") == [cut_off.pid]
    verdict = judge(tmp_path, broker, *faults)
    assert (verdict.accepted, verdict.again) == (2, 1)
    broker.close()


@pytest.mark.parametrize("direction", ["up", "down"])
def test_f61_one_way_loss(tmp_path: Path, rabbitmq_url: str, proxy: Proxy, direction: str) -> None:
    """F61: what is said to the server does not arrive for a while, or its answers do not, under load. A sender that
    waits in vain says so; what it does not know may have been taken, once. Nothing is lost."""
    broker = build(tmp_path, proxy.url(rabbitmq_url), publish_timeout_ms=500)
    with working(broker), Sender(tmp_path, broker) as sender:
        for _ in range(2):
            sender.wait_for_more(30)
            proxy.hold(up=direction == "up", down=direction == "down")
            wait_until(lambda held=sender.count: sender.count >= held + 2, "senders have given up")
            proxy.heal()
        sender.wait_for_more(60)
        sender.stop()
        wait_until_done(tmp_path, broker)
    verdict = judge(tmp_path, broker)
    assert verdict.accepted >= 60
    assert verdict.again == 0
    broker.close()


# --- F62, F63: resets, silence


def test_f62_a_storm_of_resets(tmp_path: Path, rabbitmq_url: str, proxy: Proxy) -> None:
    """F62: all connections are reset again and again, under load. Nothing is lost, only what was held runs again, and
    afterwards the throughput is back at once."""
    broker, sender_broker = build(tmp_path, proxy.url(rabbitmq_url)), build(tmp_path, proxy.url(rabbitmq_url))
    random_ = random.Random(62)
    faults: list[Fault] = []
    with working(broker), Sender(tmp_path, sender_broker) as sender:
        for _ in range(6):
            sender.wait_for_more(20)
            pause(random_.uniform(0.0, 0.3))
            from_s = time.monotonic()
            proxy.reset()
            faults += cut_since(os.getpid(), from_s)
        before = count(tmp_path, "ack")
        wait_until(lambda: count(tmp_path, "ack") >= before + 100, "the throughput is back")
        print(f"100 messages after the last reset: {time.monotonic() - faults[-1].at_s:.2f} s")
        sender.stop()
        wait_until_done(tmp_path, broker)
    verdict = judge(tmp_path, broker, *faults)
    print(verdict)
    assert verdict.accepted >= 100
    broker.close()
    sender_broker.close()


def test_f63_the_server_falls_silent(
    tmp_path: Path,
    rabbitmq_url: str,
    proxy: Proxy,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """F63: connections lead nowhere any more, and nobody says so. A sender notices when it is not answered in time, a
    worker asks the server when it has heard nothing for a while: both open another connection, and what the worker had
    held runs again when the server misses its heartbeat."""
    assert line.SILENT_S + line.DEAF_S < 30
    monkeypatch.setattr(line, "SILENT_S", 0.7)
    monkeypatch.setattr(line, "DEAF_S", 0.7)
    broker = build(tmp_path, proxy.url(rabbitmq_url) + FAST, publish_timeout_ms=500)
    with working(broker, 2):
        send(tmp_path, broker, ["runs"], "gated")
        wait_until_started(tmp_path, "runs")
        proxy.freeze()
        faults = [cut(os.getpid())]
        with pytest.raises(BrokerTimeout):
            broker.actors["plain"].send("unsure")
        send(tmp_path, broker, ["sure"])
        assert count(tmp_path, "accepted") == 2
        wait_until_started(tmp_path, "runs", times=2)
        print(f"recovered in {time.monotonic() - faults[0].at_s:.2f} s")
        assert time.monotonic() - faults[0].at_s < 30
        open_gate(tmp_path)
        wait_until_done(tmp_path, broker)
    assert "was silent for too long" in caplog.text
    assert len(starts(tmp_path, "unsure")) <= 1
    broker.close()
