"""What the network does to a worker's connections to Redis is done to nobody's messages.

All goes through a proxy that delays, holds, resets and cuts; the server itself is well.
"""

from __future__ import annotations

import random
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from greenroom.errors import BrokerError, BrokerTimeout
from greenroom.ports.transport import Delivery
from scripts.servers import Redis, free_port
from tests.chaos.history import Fault
from tests.chaos.kit import forget, judge, note
from tests.chaos.redis_kit import (
    LEASE_MS,
    PATIENT_S,
    TIMEOUT_S,
    Sender,
    beat_faster,
    build,
    count,
    open_gate,
    send,
    send_surely,
    starts,
    wait_until_empty,
    wait_until_started,
    worker_process,
    working,
)
from tests.proxy import Proxy
from tests.runtime.cli_kit import wait_until


@pytest.fixture(autouse=True)
def _profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    beat_faster(monkeypatch.setattr)
    monkeypatch.setenv("GREENROOM_RUN_FOLDER", str(tmp_path))
    yield
    forget(tmp_path)


@pytest.fixture
def proxy(redis_server: Redis) -> Iterator[Proxy]:
    with Proxy(redis_server.port) as proxy:
        yield proxy


def pause(seconds: float) -> None:
    """Lets the time pass that a fault lasts."""
    threading.Event().wait(seconds)


# --- F60, F61: partitions


def test_f60_a_short_partition(tmp_path: Path, redis_server: Redis, proxy: Proxy) -> None:
    """F60: a worker is cut off for less than its lease, again and again, under load. Nothing is lost, and nothing runs
    twice, here or elsewhere."""
    broker = build(tmp_path, proxy.url(redis_server.url), timeout_s=0.2)
    sender_broker = build(tmp_path, redis_server.url, timeout_s=PATIENT_S)
    with worker_process(tmp_path, redis_server.url), working(broker), Sender(tmp_path, sender_broker) as sender:
        for _ in range(3):
            sender.wait_for_more(40)
            proxy.hold()
            pause(LEASE_MS / 2000)
            proxy.heal()
        sender.wait_for_more(40)
        sender.stop()
        wait_until_empty(broker)
    verdict = judge(tmp_path, sender_broker)
    assert verdict.accepted == sender.count
    assert verdict.again == 0
    broker.close()
    sender_broker.close()


def test_f60_a_long_partition(tmp_path: Path, redis_server: Redis, proxy: Proxy) -> None:
    """F60: a worker of another host is cut off for three leases while it runs a message. That runs elsewhere; it ends
    here, too, but is not settled a second time. What it has claimed besides runs elsewhere alone: before its lease is
    over the worker lets it go. Back again, it works on."""
    broker = build(tmp_path, redis_server.url)
    with worker_process(tmp_path, proxy.url(redis_server.url), threads=1) as cut_off:
        short = [f"short-{number}" for number in range(200)]  # after which more than one is claimed at a time
        send(tmp_path, broker, short)
        wait_until_empty(broker)
        send(tmp_path, broker, ["runs", "held"], "gated")
        wait_until_started(tmp_path, "runs")
        wait_until(lambda: broker.transport.counts(["default"])["default"].claimed == 2, "both are claimed")
        proxy.hold()
        lost = Fault("lost", cut_off.pid, time.monotonic())
        with working(broker, 2):
            wait_until_started(tmp_path, "runs", times=2)
            recovered_s = time.monotonic() - lost.at_s
            open_gate(tmp_path)
            wait_until(lambda: count(tmp_path, "end") == 203, "it has ended in both places")
            pause(max(0.0, 3 * LEASE_MS / 1000 - recovered_s))
            proxy.heal()
            wait_until_empty(broker)
        send(tmp_path, broker, ["later"])
        wait_until_started(tmp_path, "later")
        wait_until_empty(broker)
        assert starts(tmp_path, "later") == [cut_off.pid]
        assert cut_off.pid not in starts(tmp_path, "held")
    verdict = judge(tmp_path, broker, lost)
    assert (verdict.accepted, verdict.again) == (203, 1)
    print(f"recovered in {recovered_s:.2f} s")
    assert recovered_s < 5
    broker.close()


@pytest.mark.parametrize("direction", ["up", "down"])
def test_f61_one_way_loss(tmp_path: Path, redis_server: Redis, proxy: Proxy, direction: str) -> None:
    """F61: what the worker says does not arrive, or the answers do not, again and again, for longer than it waits for
    them. Claims whose answer was lost are not leaked: nothing is lost, nothing runs twice."""
    broker = build(tmp_path, proxy.url(redis_server.url), timeout_s=0.2)
    sender_broker = build(tmp_path, redis_server.url, timeout_s=PATIENT_S)
    with working(broker), Sender(tmp_path, sender_broker) as sender:
        for _ in range(5):
            sender.wait_for_more(30)
            proxy.hold(up=direction == "up", down=direction == "down")
            pause(0.5)
            proxy.heal()
        sender.wait_for_more(30)
        sender.stop()
        wait_until_empty(broker)
    verdict = judge(tmp_path, sender_broker)
    assert verdict.accepted == sender.count
    assert verdict.again == 0
    broker.close()
    sender_broker.close()


def test_f61_a_claim_that_arrives_late(tmp_path: Path, redis_server: Redis, proxy: Proxy) -> None:
    """F61: a claim is on its way for so long that it is asked for again, on another connection, and arrives after all,
    when it is not waited for any more. It claims nothing then: nobody would ever learn of it."""
    late = build(tmp_path, proxy.url(redis_server.url), timeout_s=0.2)
    other = build(tmp_path, redis_server.url, timeout_s=PATIENT_S)
    consumer = late.transport.consumer("late")
    consumer.subscribe(["default"])
    assert claim(consumer) == []
    proxy.freeze()
    with pytest.raises(BrokerTimeout):
        consumer.exchange((), 10)
    assert claim(consumer) == []
    send(tmp_path, other, ["one"])
    done = trips_done(redis_server)
    proxy.thaw()
    wait_until(lambda: trips_done(redis_server) > done, "the late claim has arrived")
    (delivery,) = claim(consumer)
    assert delivery.crashes == 0
    late.close()
    other.close()


def test_f61_a_claim_without_an_answer_and_without_a_way_to_ask(
    tmp_path: Path, redis_server: Redis, proxy: Proxy
) -> None:
    """F61: the answer to a claim is lost, and then the server cannot be reached for a while. That what was asked last
    was certainly not done says nothing of what was asked before: the claim is not leaked."""
    cut_off = build(tmp_path, proxy.url(redis_server.url), timeout_s=0.2)
    other = build(tmp_path, redis_server.url, timeout_s=PATIENT_S)
    consumer = cut_off.transport.consumer("cut off")
    consumer.subscribe(["default"])
    assert claim(consumer) == []
    send(tmp_path, other, ["one"])
    proxy.hold(up=False)
    with pytest.raises(BrokerTimeout):
        consumer.exchange((), 10)
    proxy.heal()
    proxy.refuse()
    for _ in range(2):
        with pytest.raises(BrokerError):
            consumer.exchange((), 10)
    proxy.reopen()
    (delivery,) = claim(consumer)
    assert delivery.crashes == 0
    cut_off.close()
    other.close()


def claim(consumer: Any) -> list[Delivery]:
    """What the next trip brings that is answered: a busy machine may take longer than is waited for here."""
    found: list[list[Delivery]] = []

    def is_answered() -> bool:
        with suppress(BrokerError):
            found.append(list(consumer.exchange((), 10).deliveries))
        return bool(found)

    wait_until(is_answered, "a trip is answered")
    return found[0]


def trips_done(server: Redis) -> int:
    return int(server.cli("INFO", "commandstats")["cmdstat_evalsha"]["calls"])


def test_f61_a_send_without_an_answer(tmp_path: Path, redis_server: Redis, proxy: Proxy) -> None:
    """F61: a send whose answer does not come raises that it is not known whether the message was taken. It was, once,
    and the next send is not confused by the answer that comes late."""
    broker = build(tmp_path, proxy.url(redis_server.url), timeout_s=0.2)
    for number in range(5):
        send_surely(tmp_path, broker, f"sure-{number}")  # there is a connection now
        proxy.hold(up=False)
        note(tmp_path, "sent", f"unsure-{number}")
        with pytest.raises(BrokerTimeout):
            broker.actors["plain"].send(f"unsure-{number}")
        proxy.heal()
    send_surely(tmp_path, broker, "last")
    with working(broker):
        wait_until_empty(broker)
    assert all(len(starts(tmp_path, f"unsure-{number}")) == 1 for number in range(5))
    verdict = judge(tmp_path, broker)
    assert (verdict.accepted, verdict.again) == (6, 0)
    broker.close()


# --- F62, F63: connections that end, or do not


def test_f62_a_storm_of_resets(tmp_path: Path, redis_server: Redis, proxy: Proxy) -> None:
    """F62: all connections of senders and workers are reset, at random times, for three seconds. What was accepted is
    done once; what was not may be, once; and within moments all is as before."""
    broker = build(tmp_path, proxy.url(redis_server.url))
    random_ = random.Random(62)
    with working(broker), Sender(tmp_path, broker) as sender:
        deadline_s = time.monotonic() + 3
        while time.monotonic() < deadline_s:
            pause(random_.uniform(0.01, 0.2))
            proxy.reset()
        calm_s = time.monotonic()
        before = count(tmp_path, "start")
        sender.wait_for_more(20)
        wait_until(lambda: count(tmp_path, "start") >= before + 20, "messages run as before")
        recovered_s = time.monotonic() - calm_s
        sender.stop()
        wait_until_empty(broker)
    verdict = judge(tmp_path, broker)
    assert verdict.accepted > 50
    assert verdict.again == 0
    print(f"recovered in {recovered_s:.2f} s")
    assert recovered_s < 5
    broker.close()


@pytest.mark.parametrize("busy", [True, False], ids=["busy", "idle"])
def test_f63_a_host_that_vanished(tmp_path: Path, redis_server: Redis, proxy: Proxy, *, busy: bool) -> None:
    """F63: the server's host vanishes, and another one takes its address: old connections say nothing for ever, and
    nobody hangs up. A worker notices, be it busy or idle, and works on new ones; so does who sends."""
    broker = build(tmp_path, proxy.url(redis_server.url))
    other = build(tmp_path, redis_server.url)
    with working(broker, 2):
        send(tmp_path, broker, ["before"])
        wait_until_empty(broker)
        if busy:
            send(tmp_path, broker, ["runs"], "gated")
            wait_until_started(tmp_path, "runs")
        proxy.freeze()
        began_s = time.monotonic()
        send(tmp_path, other, ["from elsewhere"[:4]])
        send(tmp_path, broker, ["unsure"])  # the first one notices, the second one is sent
        send(tmp_path, broker, ["sure"])
        open_gate(tmp_path)
        wait_until_started(tmp_path, "from", "sure")
        recovered_s = time.monotonic() - began_s
        wait_until_empty(other)
    print(f"recovered in {recovered_s:.2f} s")
    assert recovered_s < 2 + 8 * TIMEOUT_S
    verdict = judge(tmp_path, other)
    assert verdict.again == 0
    broker.close()
    other.close()


# --- F64: slow networks


@pytest.mark.parametrize("kind", ["far", "narrow", "bursts"])
def test_f64_slow(tmp_path: Path, redis_server: Redis, proxy: Proxy, kind: str) -> None:
    """F64: half a second there and back; 64 kbit/s; a network that stands still again and again. Nobody is taken for
    dead, nothing runs twice, a send takes less than three seconds, and no threads pile up."""
    broker = build(tmp_path, proxy.url(redis_server.url), timeout_s=5, lease_ms=3000)
    slowest_s = 0.0
    with working(broker):
        send(tmp_path, broker, ["before"])
        wait_until_empty(broker)
        threads = threading.active_count()
        if kind == "far":
            proxy.delay(250)
        elif kind == "narrow":
            proxy.rate(8000)
        for number in range(3):
            began_s = time.monotonic()
            if kind == "bursts":
                proxy.hold()
                threading.Timer(0.2, proxy.heal).start()
            send(tmp_path, broker, [f"m{number}"])
            slowest_s = max(slowest_s, time.monotonic() - began_s)
        assert threading.active_count() <= threads + 2
        wait_until_empty(broker)
        proxy.delay(0)
        proxy.rate(float("inf"))
    verdict = judge(tmp_path, broker)
    assert (verdict.accepted, verdict.again) == (4, 0)
    print(f"the slowest send took {slowest_s:.2f} s")
    assert slowest_s < 3
    broker.close()


# --- F65: cut in the middle of a frame


def test_f65_a_send_is_cut(tmp_path: Path, redis_server: Redis, proxy: Proxy) -> None:
    """F65: the connection ends after each number of bytes, in either direction. The message is stored once or not at
    all; once if the send said so."""
    accepted = 0
    for direction in ("up", "down"):
        for size in range(0, 700, 8):
            proxy.cut_after(**{direction: size})
            broker = build(tmp_path, proxy.url(redis_server.url))
            before = count_ready(redis_server)
            try:
                broker.actors["plain"].send(f"{direction}-{size}")
            except BrokerError:
                assert count_ready(redis_server) - before in (0, 1)
            else:
                accepted += 1
                assert count_ready(redis_server) - before == 1
            broker.close()
    assert 0 < accepted < 175
    assert count_ready(redis_server) == redis_server.cli("HLEN", bodies_key(redis_server))


def count_ready(server: Redis) -> int:
    key = bodies_key(server)
    return 0 if key is None else int(server.cli("HLEN", key))


def bodies_key(server: Redis) -> bytes | None:
    keys = server.cli("KEYS", "{chaos}:g1:m:*")
    return keys[0] if keys else None


def test_f65_a_worker_is_cut(tmp_path: Path, redis_server: Redis, proxy: Proxy) -> None:
    """F65: a worker's connections end after each number of bytes, in either direction, under load. Nothing is lost, and
    nothing runs twice."""
    other = build(tmp_path, redis_server.url, timeout_s=PATIENT_S)
    broker = build(tmp_path, proxy.url(redis_server.url))
    random_ = random.Random(65)
    with working(broker), Sender(tmp_path, other, per_s=500) as sender:
        for direction in ("up", "down"):
            for _ in range(20):
                proxy.cut_after(**{direction: random_.randint(0, 5000)})
                proxy.reset()
                sender.wait_for_more(10)
        proxy.heal()
        proxy.reset()
        sender.stop()
        wait_until_empty(other)
    verdict = judge(tmp_path, other)
    assert verdict.accepted == sender.count
    assert verdict.again == 0
    broker.close()
    other.close()


# --- F68: TLS


EC = ("ec", "-pkeyopt", "ec_paramgen_curve:prime256v1")


class Authority:
    """Makes certificates in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.certificate = folder / "ca.crt"
        self._openssl("req", "-x509", "-newkey", *EC, "-nodes", "-keyout", "ca.key", "-out", "ca.crt",
                      "-days", "2", "-subj", "/CN=authority",
                      "-addext", "keyUsage=critical,keyCertSign,cRLSign")  # fmt: skip

    def _openssl(self, *words: str) -> None:
        subprocess.run(["openssl", *words], cwd=self.folder, check=True, capture_output=True, timeout=60)

    def issue(self, name: str, host: str, days: int = 2) -> dict[str, Path]:
        """A certificate for a host, as settings of a server."""
        # Since Python 3.13 a chain has to be complete in what it says.
        (self.folder / f"{name}.txt").write_text(f"subjectAltName={host}\nauthorityKeyIdentifier=keyid\n")
        self._openssl("req", "-newkey", *EC, "-nodes", "-keyout", f"{name}.key", "-out", f"{name}.csr",
                      "-subj", "/CN=server")  # fmt: skip
        self._openssl("x509", "-req", "-in", f"{name}.csr", "-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial",
                      "-out", f"{name}.crt", "-days", str(days), "-extfile", f"{name}.txt")  # fmt: skip
        file = self.folder / name
        return {"tls_cert_file": file.with_suffix(".crt"), "tls_key_file": file.with_suffix(".key")}


def test_f68_tls(tmp_path: Path, start_redis: Callable[..., Redis]) -> None:
    """F68: with a good certificate messages go through; an expired one, one of another host, one of an authority that
    nobody knows, and a server that does not speak TLS are refused with the reason, and nothing is sent in the clear."""
    authority = Authority(tmp_path)
    ca = {"tls_ca_cert_file": authority.certificate, "tls_auth_clients": "no"}
    cases = {
        "good": (authority.issue("good", "IP:127.0.0.1"), None),
        "expired": (authority.issue("expired", "IP:127.0.0.1", days=-1), "expired"),
        "other host": (authority.issue("other", "DNS:example.org"), "mismatch|doesn't match|not valid for"),
    }
    for name, (certificate, error) in cases.items():
        server = start_redis(tls_port=free_port(), **certificate, **ca)
        url = f"rediss://127.0.0.1:{server.settings['tls_port']}/0?ssl_ca_certs={authority.certificate}"
        check_tls(tmp_path, url, name, error)
        assert count_ready(server) == (error is None)
        if error is None:
            check_tls(tmp_path, url.partition("?")[0], "unknown authority", "self.signed|unable to get")
            assert count_ready(server) == 1
    plain = start_redis()
    check_tls(tmp_path, plain.url.replace("redis:", "rediss:"), "plain", "does it speak TLS")
    assert count_ready(plain) == 0


def check_tls(folder: Path, url: str, name: str, error: str | None) -> None:
    broker = build(folder, url, timeout_s=PATIENT_S)
    if error is None:
        send(folder, broker, [name])
        with working(broker, 1):
            wait_until_started(folder, name)
            broker.actors["plain"].send_with_options(args=("kept",), delay=60_000)
    else:
        with pytest.raises(BrokerError, match=error):
            broker.actors["plain"].send(name)
    broker.close()
